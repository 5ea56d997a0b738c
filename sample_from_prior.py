"""Item 2.4: images decoded from the prior, z ~ N(0, I)."""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch.nn.functional import pad

from files import save_figure
from train import IMAGES_AT_ONCE, draw_checkpoint, seeded

ROWS = 10  # of a grid of samples
PITCH = 29  # pixels from one image of a grid to the next: a white line lies between them


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
    images = sample_prior(model, ROWS**2, seed)
    draw_grid(figure.subplots(), images, "100 images decoded from z ~ N(0, I)", interpolation="nearest")
    save_figure(figure, path)


def draw_grid(axes, images, title="", columns=ROWS, **options):
    """Draw images (N, 1, 28, 28), N a multiple of `columns`, without axes; `options` are those of imshow."""
    draw_mosaic(axes, images, columns, **options)
    axes.set_axis_off()
    axes.set_title(title, fontsize="medium")


def draw_mosaic(axes, images, columns, **options):
    """Draw images (N, ..., 28, 28), N a multiple of `columns`, in rows; `options` are those of imshow."""
    cells = pad(images.reshape(-1, columns, 28, 28), (0, PITCH - 28, 0, PITCH - 28), value=1.0)
    mosaic = cells.transpose(1, 2).reshape(-1, columns * PITCH)[: 28 - PITCH, : 28 - PITCH]
    axes.imshow(mosaic.numpy(), cmap="gray", vmin=0, vmax=1, **options)


def draw_prior_circles(axes, **options):
    """Draw circles of 1, 2 and 3 standard deviations of the prior on a plane of codes; `options` are of a Circle."""
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, **options))


if __name__ == "__main__":
    draw_checkpoint(__doc__, plot_prior_samples, with_data=False)
