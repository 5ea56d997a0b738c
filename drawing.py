"""What all figures share: matplotlib's own defaults whatever the user's, PNG files, colours, digits in rows.

Other files take matplotlib's names from here, so that the line before its import holds for them too.
"""

import os
from contextlib import contextmanager

import numpy as np
from PIL import Image

os.environ["MPLBACKEND"] = "agg"  # no window is opened; and a notebook's backend may not be installed here

from matplotlib import color_sequences, colormaps, style
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Ellipse, Rectangle
from matplotlib.patheffects import withStroke

from files import whole_file

# And what is defined below.
__all__ = ["Circle", "Ellipse", "Figure", "Line2D", "Rectangle", "ScalarMappable", "colormaps", "to_rgb", "withStroke"]

DOTS_PER_INCH = 150
SURFACE = 1e-3  # share of a figure's pixels above which a colour stays exactly what it is
PALETTE = color_sequences["petroff10"]  # told apart by colour-blind readers too (Petroff 2021)
BLUE, ORANGE, RED, GRAY, PURPLE, BROWN, *_, CYAN = PALETTE


@contextmanager
def figure_file(path, size, title=""):
    """Yield an empty `Figure` of `size`, (width, height) in inches; when the block ends, write it to `path` as PNG.

    In the block matplotlib's defaults hold, whatever the user's matplotlibrc says. The title, which may hold names of
    the user's, is plain text.
    """
    with style.context("default"):
        figure = Figure(figsize=size, layout="constrained")
        if title:
            figure.suptitle(title, parse_math=False)
        yield figure
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
            _use_palette(temporary)


def _use_palette(path):
    """Give a PNG a palette of 256 colours: greys and surfaces stay what they are, others to the eye, in half the bytes.

    So what has one colour, such as a class, has the same in every figure.
    """
    with Image.open(path) as image:
        whole = image.convert("RGB")
        # Of Pillow's methods this one has the smallest greatest error; without dithering, surfaces stay smooth.
        few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        pixels, palette = np.asarray(whole).reshape(-1, 3), np.reshape(few.getpalette(), (-1, 3))
        _, first, counts = np.unique(pixels @ [65536, 256, 1], return_index=True, return_counts=True)
        surfaces = first[counts.argsort()][np.sort(counts) > SURFACE * len(pixels)]  # a pixel of each, the largest last
        palette[np.ravel(few)[surfaces]] = pixels[surfaces]
        few.putpalette(palette.ravel().tolist())
        few.save(path, "png", optimize=True, dpi=image.info["dpi"])


def mosaic(images, gap=1):
    """Tile images (rows, columns, 28, 28), or (rows, columns, 28, 28, 3) in colours, with white lines between them."""
    images = np.asarray(images)
    rows, columns, height, width, *colors = images.shape
    frame = [(0, 0), (0, 0), (0, gap), (0, gap)] + [(0, 0) for _ in colors]
    tiles = np.pad(images, frame, constant_values=1.0).swapaxes(1, 2)
    tiled = tiles.reshape(rows * (height + gap), columns * (width + gap), *colors)
    return tiled[: len(tiled) - gap, : tiled.shape[1] - gap]


def draw_mosaic(axes, images, gap=1, **options):
    """Draw images with values in [0, 1] as `mosaic` tiles them; `options` are those of imshow."""
    axes.imshow(mosaic(images, gap), cmap="gray", vmin=0, vmax=1, origin="upper", **options)


def mosaic_centres(count, gap=1):
    """Where the middles of the first `count` images of a mosaic are, in pixels along an axis."""
    return (28 + gap) * np.arange(count) + 13.5  # matplotlib counts from the middle of the first pixel


def draw_prior_circles(axes, **options):
    """Draw circles of 1, 2 and 3 standard deviations of the prior on a plane of codes; `options` are of a Circle."""
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, **options))
