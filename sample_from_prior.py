"""Item 2.4: images decoded from the prior, z ~ N(0, I)."""

import torch

from checkpoints import run_figure_script
from drawing import draw_mosaic, figure_file
from train import decode, seeded

ROWS = 10


def sample_prior(model, count, seed=0):
    """Decode `count` draws from the prior: images (count, 1, 28, 28), the same codes for the same seed and K."""
    with seeded(seed):
        z = torch.randn(count, model.latent_dim)
    return decode(model, z)


def plot_prior_samples(model, path, seed=0, title=""):
    """Write a 10x10 grid of images decoded from the prior to `path`, a PNG file.

    With one seed all stages of a model show the same codes.
    """
    images = sample_prior(model, ROWS**2, seed).view(ROWS, ROWS, 28, 28)
    with figure_file(path, (4.5, 4.9), title) as figure:
        axes = figure.subplots()
        draw_mosaic(axes, images, interpolation="nearest")
        axes.set_axis_off()


if __name__ == "__main__":
    run_figure_script(__doc__, lambda model, _, path, title: plot_prior_samples(model, path, title=title))
