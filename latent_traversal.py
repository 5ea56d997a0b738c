"""Item 2.4: what each latent dimension does, seen by moving it from -3 to +3 while the others stay at 0."""

import numpy as np
import torch
from matplotlib import color_sequences
from matplotlib.figure import Figure

from ELBO import kl_per_dimension
from files import save_figure
from mnist import evenly_spaced
from sample_from_prior import PITCH, decode, draw_mosaic, draw_prior_circles
from train import draw_checkpoint
from tsne import encode_means

STEPS = 11
REACH = 3.0  # standard deviations of the prior
SIDE = 20  # digits along each axis of the plane
IMAGES = 2000  # whose codes are shown, and over which a dimension's KL is averaged
BLUE, ORANGE, *_ = color_sequences["petroff10"]


@torch.no_grad()
def traverse(model):
    """Decode the codes that are 0 but for one dimension, moved over -3..+3: images of shape (K, steps, 28, 28)."""
    values = torch.linspace(-REACH, REACH, STEPS, device=model.sigma.device)
    z = torch.einsum("s,jk->jsk", values, torch.eye(model.latent_dim, device=values.device))
    return model.decode(z.flatten(0, 1)).view(model.latent_dim, STEPS, 28, 28).cpu()


@torch.no_grad()
def dimension_kl(model, images):
    """Return each dimension's KL from the prior in nats, (K,), averaged over images (N, 1, 28, 28)."""
    mu, logvar = model.encode(evenly_spaced(images, IMAGES).to(model.sigma.device))
    return kl_per_dimension(mu, logvar).mean(0).cpu()


def decode_plane(model, side=SIDE):
    """Decode a grid of codes over -3..+3 in both of two dimensions: images (side * side, 1, 28, 28).

    They come in rows from the top: z_1 grows to the right and z_2 upwards.
    """
    values = torch.linspace(-REACH, REACH, side)
    z2, z1 = torch.meshgrid(values.flip(0), values, indexing="ij")
    return decode(model, torch.stack([z1.flatten(), z2.flatten()], dim=1))


def plot_latent_traversal(model, path, images=None, title="", order=None):
    """Write a traversal to `path`: a row for each latent dimension, its value on the axis below.

    Where K = 2, the plane of codes is below it.

    Parameters
    ----------
    model : VAE
    path : path-like
        PNG file to write.
    images : torch.Tensor, shape (N, 1, 28, 28), optional
        If given, rows are labelled with and ordered by their dimension's KL over these images, the largest on top,
        and the plane shows their codes.
    title : str
    order : sequence of int, optional
        The dimensions from top to bottom, such as those of the training's end, so that each keeps its row.
    """
    dimensions = range(model.latent_dim)
    labels = [f"$z_{{{k + 1}}}$" for k in dimensions]
    heading = "one row per latent dimension"
    if images is not None:
        heading += ", with its KL from the prior"
        kl = dimension_kl(model, images)
        labels = [f"{label}  {nats:.2f} nats" for label, nats in zip(labels, kl.tolist(), strict=True)]
        heading += ", in the order of the end" if order else ""
        order = order or kl.argsort(descending=True).tolist()
    heights = [0.58 * model.latent_dim] + [7.3] * (model.latent_dim == 2)  # inches
    figure = Figure(figsize=(8, 1.6 + sum(heights)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2)  # inches; the layout takes the labels' mathematics for narrower
    figure.suptitle(title)
    axes, *plane = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    _draw_rows(axes, traverse(model), list(order or dimensions), labels)
    axes.set_title(heading, fontsize="medium")
    if plane:
        _draw_plane(*plane, model, images)
    save_figure(figure, path)


def _draw_rows(axes, rows, order, labels):
    draw_mosaic(axes, rows[order], STEPS, interpolation="nearest")
    centres = PITCH * np.arange(max(rows.shape[:2])) + 13.5
    axes.set_xticks(centres[:STEPS], [f"{value:+.1f}" for value in np.linspace(-REACH, REACH, STEPS).round(6) + 0.0])
    axes.set_yticks(centres[: len(order)], [labels[k] for k in order])
    axes.set_xlabel("value of that dimension, the others at 0 (standard deviations of the prior)")


def _draw_plane(axes, model, images):
    edge = REACH * SIDE / (SIDE - 1)  # of the outermost digits, whose centres are at the reach
    draw_mosaic(axes, decode_plane(model), SIDE, extent=(-edge, edge, -edge, edge))
    draw_prior_circles(axes, color=BLUE, linestyle="--", linewidth=1.5)
    title = "digits decoded over the plane; the prior's 1, 2 and 3 standard deviations (blue)"
    if images is not None:
        codes = encode_means(model, evenly_spaced(images, IMAGES))
        axes.scatter(*codes.T, s=5, color=ORANGE, linewidths=0)
        title += f"\nand the codes of {len(codes):,} test images (orange)"
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xlabel="$z_1$", ylabel="$z_2$")
    axes.set_title(title, fontsize="medium")


if __name__ == "__main__":
    draw_checkpoint(__doc__, lambda model, data, **at: plot_latent_traversal(model, images=data.test_images, **at))
