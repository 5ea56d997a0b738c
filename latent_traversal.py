"""Item 2.4: what each latent dimension does, seen by moving it from -3 to +3 while the others stay at 0."""

import numpy as np
import torch
from matplotlib.figure import Figure

from ELBO import kl_per_dimension
from files import save_figure
from mnist import evenly_spaced
from train import draw_checkpoint

STEPS = 11
REACH = 3.0  # standard deviations of the prior
KL_IMAGES = 2000  # over which a dimension's KL is averaged


@torch.no_grad()
def traverse(model):
    """Decode the codes that are 0 but for one dimension, moved over -3..+3: images of shape (K, steps, 28, 28)."""
    values = torch.linspace(-REACH, REACH, STEPS, device=model.sigma.device)
    z = torch.einsum("s,jk->jsk", values, torch.eye(model.latent_dim, device=values.device))
    return model.decode(z.flatten(0, 1)).view(model.latent_dim, STEPS, 28, 28).cpu()


@torch.no_grad()
def dimension_kl(model, images):
    """Return each dimension's KL from the prior in nats, (K,), averaged over images (N, 1, 28, 28)."""
    mu, logvar = model.encode(evenly_spaced(images, KL_IMAGES).to(model.sigma.device))
    return kl_per_dimension(mu, logvar).mean(0).cpu()


def plot_latent_traversal(model, path, images=None, title=""):
    """Write a traversal to `path`: a row for each latent dimension, its value on the axis below.

    Parameters
    ----------
    model : VAE
    path : path-like
        PNG file to write.
    images : torch.Tensor, shape (N, 1, 28, 28), optional
        If given, rows are labelled with and ordered by their dimension's KL over these images, the largest on top.
    title : str
    """
    rows = traverse(model)
    order, labels = range(model.latent_dim), [f"$z_{{{k + 1}}}$" for k in range(model.latent_dim)]
    if images is not None:
        kl = dimension_kl(model, images)
        order = kl.argsort(descending=True).tolist()
        labels = [f"{label}  {nats:.2f} nats" for label, nats in zip(labels, kl.tolist(), strict=True)]
    mosaic = rows[list(order)].transpose(1, 2).reshape(28 * model.latent_dim, 28 * STEPS)
    figure = Figure(figsize=(8, 1.6 + 0.58 * model.latent_dim), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2)  # inches; the layout takes the labels' mathematics for narrower
    figure.suptitle(title)
    axes = figure.subplots()
    axes.imshow(mosaic.numpy(), cmap="gray", vmin=0, vmax=1)
    centres = [28 * step + 13.5 for step in range(max(STEPS, model.latent_dim))]
    axes.set_xticks(centres[:STEPS], [f"{value:+.1f}" for value in np.linspace(-REACH, REACH, STEPS).round(6) + 0.0])
    axes.set_yticks(centres[: model.latent_dim], [labels[k] for k in order])
    axes.set_xlabel("value of that dimension, the others at 0 (standard deviations of the prior)")
    if images is not None:
        axes.set_title("a row for each latent dimension, with its KL from the prior", fontsize="medium")
    save_figure(figure, path)


if __name__ == "__main__":
    draw_checkpoint(__doc__, lambda model, data, **at: plot_latent_traversal(model, images=data.test_images, **at))
