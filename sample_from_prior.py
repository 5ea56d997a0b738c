"""Item 2.4: images decoded from the prior, z ~ N(0, I)."""

import torch

from drawing import draw_mosaic, figure_file
from runs import draw_checkpoint
from train import decode, seeded

ROWS = 10


def prior_codes(count, latent_dim, seed=0):
    """Draw codes from the prior, (count, K): the same for the same seed and K."""
    with seeded(seed):
        return torch.randn(count, latent_dim)


def sample_prior(model, count, seed=0):
    """Decode `count` draws from the prior: images (count, 1, 28, 28)."""
    return decode(model, prior_codes(count, model.latent_dim, seed))


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
    images = sample_prior(model, ROWS**2, seed)
    with figure_file(path, (6, 6.4), title) as figure:
        axes = figure.subplots()
        draw_mosaic(axes, images.view(ROWS, ROWS, 28, 28), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title("100 images decoded from z ~ N(0, I)", fontsize="medium")


if __name__ == "__main__":
    draw_checkpoint(__doc__, plot_prior_samples, with_data=False)
