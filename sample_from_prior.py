"""Item 2.4: images decoded from the prior, z ~ N(0, I)."""

import torch
from matplotlib.figure import Figure

from files import save_figure
from train import IMAGES_AT_ONCE, draw_checkpoint, seeded

ROWS = 10  # of a grid of samples


@torch.no_grad()
def sample_prior(model, count, seed=0):
    """Decode `count` draws from the prior: images (count, 1, 28, 28), of the same codes for the same seed and K."""
    with seeded(seed):
        z = torch.randn(count, model.latent_dim)
    return decode(model, z)


@torch.no_grad()
def decode(model, z):
    """Decode codes (N, K) in portions: images (N, 1, 28, 28) on the CPU."""
    return torch.cat([model.decode(part.to(model.sigma.device)).cpu() for part in z.split(IMAGES_AT_ONCE)])


def plot_prior_samples(model, path, seed=0, title=""):
    """Write a 10x10 grid of images decoded from the prior to `path`.

    Parameters
    ----------
    model : VAE
    path : path-like
        PNG file to write.
    seed : int
        Of the draws; two stages of one model with the same seed show what training made of the same codes.
    title : str
    """
    figure = Figure(figsize=(6, 6.4), layout="constrained")
    figure.suptitle(title)
    draw_grid(figure.subplots(), sample_prior(model, ROWS**2, seed), "100 images decoded from z ~ N(0, I)")
    save_figure(figure, path)


def draw_grid(axes, images, title="", columns=ROWS):
    """Draw images (N, 1, 28, 28), N a multiple of `columns`, as one mosaic."""
    mosaic = images.reshape(-1, columns, 28, 28).transpose(1, 2).reshape(-1, columns * 28)
    axes.imshow(mosaic.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title, fontsize="medium")


if __name__ == "__main__":
    draw_checkpoint(__doc__, plot_prior_samples, with_data=False)
