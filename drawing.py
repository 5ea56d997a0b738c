"""What all figures share: PNG files with matplotlib's own defaults, colours, and images in rows."""

from contextlib import contextmanager

import numpy as np
from matplotlib import color_sequences, style
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from files import whole_file

DOTS_PER_INCH = 120
PALETTE = color_sequences["petroff10"]  # told apart by colour-blind readers too (Petroff 2021)
BLUE, ORANGE, RED, GRAY, PURPLE, BROWN, *_, CYAN = PALETTE


@contextmanager
def figure_file(path, size, title=""):
    """Yield an empty `Figure` of `size`, (width, height) in inches; when the block ends, write it to `path` as PNG.

    In the block matplotlib's defaults hold, whatever the user's matplotlibrc says. No window or backend is needed.
    """
    with style.context("default"):
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize="medium")
        yield figure
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)


def mosaic(images, gap=1):
    """Tile images (rows, columns, 28, 28), with white lines of `gap` pixels between them, to (height, width)."""
    tiles = np.pad(np.asarray(images), [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=1.0).swapaxes(1, 2)
    tiled = tiles.reshape(tiles.shape[0] * tiles.shape[1], -1)
    return tiled[: len(tiled) - gap, : tiled.shape[1] - gap]


def draw_mosaic(axes, images, gap=1, **options):
    """Draw images with values in [0, 1] as `mosaic` tiles them; `options` are those of imshow."""
    axes.imshow(mosaic(images, gap), cmap="gray", vmin=0, vmax=1, origin="upper", **options)


def mosaic_centres(count, gap=1):
    """Return the centres of the first `count` images of a mosaic, in pixels along an axis."""
    return (28 + gap) * np.arange(count) + 13.5  # matplotlib counts from the middle of the first pixel


def draw_prior_circles(axes, **options):
    """Draw circles of 1, 2 and 3 standard deviations of the prior on a plane of codes; `options` are of a Circle."""
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, **options))


def draw_class_numbers(axes, points, labels, **options):
    """Write the number of each class on its point that is nearest to their median and not below another number.

    `points` are (N, 2), and `options` those of a text. The limits of the axes must be those of the finished figure.
    """
    extent, places = np.ptp([axes.get_xlim(), axes.get_ylim()], axis=1).max(), []
    for digit in np.unique(labels):
        own = points[labels == digit]
        crowded = sum(np.linalg.norm(own - place, axis=1) < 0.07 * extent for place in places)  # about a number's size
        places.append(own[np.argmin(np.linalg.norm(own - np.median(own, axis=0), axis=1) + extent * crowded)])
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": PALETTE[digit]}
        axes.text(*places[-1], str(digit), ha="center", va="center", weight="bold", bbox=box, **options)


def run_title(architecture, latent_dim, stage="", note=""):
    """Return a title such as "convolutional, K = 16, end of training", and the note on a line of its own."""
    network = {"conv": "convolutional", "mlp": "fully connected"}.get(architecture, architecture)
    title = f"{network}, K = {latent_dim}" + (f", {stage} of training" if stage else "")
    return "\n".join(filter(None, [title, note]))
