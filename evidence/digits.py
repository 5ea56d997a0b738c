"""The evidence's pictures of digits: coded and decoded, drawn, joined by paths, moved from, and the worst of them."""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from drawing import ORANGE, Rectangle, ScalarMappable, colormaps, draw_mosaic, figure_file, mosaic_centres
from ELBO import kl_diag_normal
from evidence.experiments import fit_code_mixture
from evidence.posterior import sample_mixture
from latent_traversal import REACH, dimension_kl
from mnist import CLASSES, evenly_spaced
from sample_from_prior import sample_prior
from train import IMAGES_AT_ONCE, decode, encode_means

NAMES = {
    "conv": "convolutional",
    "mlp": "fully connected",
    "conv-mlp": "convolutional encoder, fully connected decoder",
    "mlp-conv": "fully connected encoder, convolutional decoder",
}
GAP = 2  # white pixels between digits
DRAWN = 8  # samples in a row
GREATEST_ERROR = 0.75  # pixel value at the ends of the errors' colours
ERROR_COLORS = 15  # each for a tenth: few enough to survive the palette of a figure's file
STEPS = 9  # digits of a path, its ends included
PAIRS = {"different classes": ((0, 6), (3, 8), (4, 9), (1, 7)), "the same class": ((2, 2), (4, 4), (5, 5), (7, 7))}
MOVED = (0, 3, 5, 7)  # classes whose digits are moved from
MOVED_DIMENSIONS = 3
WORST = 10


def plot_digits_by_model(models, dataset, path, title=""):
    """Write what models {name: VAE} make of the same test digits, and what they draw, to `path`: a row for each."""
    real = _digits(dataset), *evenly_spaced(dataset.test_images, 2 * DRAWN).split(DRAWN)
    panels = {
        "reconstructions": {name: _reconstruct(model, real[0]) for name, model in models.items()},
        "samples from the prior": {name: sample_prior(model, DRAWN) for name, model in models.items()},
        "samples from the code mixture": {
            name: sample_mixture(model, fit_code_mixture(model, dataset), DRAWN) for name, model in models.items()
        },
    }
    with _sheet(path, 0.4 + 0.334 * (1 + len(models)), title) as figure:
        subplots = figure.subplots(1, 3, width_ratios=[*map(len, real)])
        for axes, digits, (label, own) in zip(subplots, real, panels.items(), strict=True):
            _draw_labelled_rows(axes, {"test digits": digits, **own}, label)
        for axes in subplots[1:]:
            axes.set_yticks([])


def plot_networks(models, dataset, path, title=""):
    """Write what models {architecture: VAE} make of the same test digits, each one's error, and samples, to `path`."""
    digits = torch.cat([_digits(dataset), _digits(dataset, 1)])[: 2 * DRAWN]
    errors = ScalarMappable(cmap=colormaps["bwr"].resampled(ERROR_COLORS))
    errors.set_clim(-GREATEST_ERROR, GREATEST_ERROR)
    reconstructions = {NAMES[name]: _reconstruct(model, digits) for name, model in models.items()}
    differences = {
        f"error, {name}": errors.to_rgba((images - digits).view(-1, 28).numpy()).reshape(-1, 28, 28, 4)[..., :3]
        for name, images in reconstructions.items()
    }
    samples = {NAMES[name]: sample_prior(model, 2 * DRAWN) for name, model in models.items()}
    with _sheet(path, 0.75 + 0.475 * (1 + 3 * len(models)), title) as figure:
        above, below = figure.subplots(2, 1, height_ratios=(1 + 2 * len(models), len(models)))
        _draw_labelled_rows(
            above, {"test digits": digits, **reconstructions, **differences}, "the same test digits, reconstructed"
        )
        _draw_labelled_rows(
            below, samples, "samples from the prior: the same draws of z, in two different latent spaces"
        )
        bar = figure.colorbar(errors, ax=[above, below], shrink=0.7, anchor=(0, 0.8), extend="both", pad=0.01)
        bar.set_label("reconstruction − test digit (pixel value)")


@torch.no_grad()
def plot_interpolation(model, dataset, path, title=""):
    """Write paths between pairs of test digits to `path`: straight in codes, then decoded, and straight in pixels."""
    with _sheet(path, 4.4, title) as figure:
        share = torch.linspace(0, 1, STEPS).view(-1, 1)
        for axes, (label, pairs) in zip(figure.subplots(1, len(PAIRS)), PAIRS.items(), strict=True):
            rows = {}
            for first, last in pairs:
                ends = torch.cat([_digit(dataset, first), _digit(dataset, last, nth=int(first == last))])
                codes = torch.from_numpy(encode_means(model, ends))
                rows[f"{first} → {last}, codes"] = decode(model, torch.lerp(codes[:1], codes[1:], share))
                rows[f"{first} → {last}, pixels"] = torch.lerp(ends[:1], ends[1:], share.view(-1, 1, 1, 1))
            _draw_labelled_rows(axes, rows, f"between digits of {label}")
            axes.set_xticks(mosaic_centres(STEPS, GAP)[::2], ["0", "¼", "½", "¾", "1"])
            axes.set_xlabel("share of the second digit's code or pixels")


def plot_nearest(model, dataset, path, title=""):
    """Write samples from the prior, and test digits to compare with, above their nearest training digits in pixels."""
    count = 2 * DRAWN
    shown = {"samples from the prior": sample_prior(model, count)}
    shown["test digits"] = evenly_spaced(dataset.test_images, count)
    train = dataset.train_images
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train.flatten(1))
    with _sheet(path, 3.05, title) as figure:
        for axes, (name, images) in zip(figure.subplots(2, 1), shown.items(), strict=True):
            distances, nearest = neighbours.kneighbors(images.flatten(1))
            rows = {name: images, "nearest training digits": train[nearest[:, 0]]}
            _draw_labelled_rows(axes, rows, "", [f"{distance:.1f}" for distance in distances[:, 0]])
        axes.set_xlabel("below each: Euclidean distance between the two, of pixel values in [0, 1]")


@torch.no_grad()
def plot_outliers(models, dataset, path, title=""):
    """Write the test digits of greatest squared error, and of greatest KL, of models {architecture: VAE} to `path`."""
    images = dataset.test_images
    with _sheet(path, 3.6 if len(models) > 1 else 5.6, title) as figure:
        columns = figure.subplots(2, len(models), squeeze=False).T
        for column, (name, model) in zip(columns, models.items(), strict=True):
            recon = _reconstruct(model, images)
            parts = (x.to(model.sigma.device) for x in images.split(IMAGES_AT_ONCE))
            kl = torch.cat([kl_diag_normal(*model.encode(x), reduction="none") for x in parts]).cpu()
            errors = (images - recon).square().flatten(1).sum(1)
            measured = {"squared error, summed over pixels": errors, "KL(q(z|x) ‖ prior) in nats": kl}
            for axes, (what, values) in zip(column, measured.items(), strict=True):
                worst = values.topk(min(WORST, len(values))).indices
                labels = zip(dataset.test_labels[worst].tolist(), values[worst].tolist(), strict=True)
                rows = {"test digits": images[worst], "reconstructions": recon[worst]}
                below = [f"“{label}”\n{value:.0f}" for label, value in labels]
                _draw_labelled_rows(axes, rows, f"{NAMES[name]}: greatest {what}", below)
                axes.set_xlabel("class, and that number")
        for axes in columns[1:].flat:
            axes.set_yticks([])


@torch.no_grad()
def plot_traversal_from_digit(model, dataset, path, title=""):
    """Write test digits whose codes move along the dimensions of greatest KL, one at a time, to `path`.

    A dimension takes values over -3..+3 while the others keep the digit's; the value nearest to the digit's own makes
    room for that, and is framed.
    """
    dimensions = dimension_kl(model, dataset.test_images).topk(min(MOVED_DIMENSIONS, model.latent_dim)).indices
    grid, centres = torch.linspace(-REACH, REACH, STEPS), mosaic_centres(1 + STEPS, GAP)
    with _sheet(path, 1.2 + 0.88 * len(dimensions), title) as figure:
        for axes, label in zip(figure.subplots(2, 2).flat, MOVED, strict=True):
            digit, rows = _digit(dataset, label), {}
            code = torch.from_numpy(encode_means(model, digit))
            for row, dimension in enumerate(dimensions.tolist()):
                own = code[0, dimension]
                column = int((grid - own).abs().argmin())
                codes = code.repeat(STEPS, 1)
                codes[:, dimension] = grid.index_fill(0, torch.tensor(column), own)
                rows[f"$z_{{{dimension + 1}}}$"] = torch.cat([digit, decode(model, codes)])
                corner = centres[1 + column] - 15, centres[row] - 15
                axes.add_patch(Rectangle(corner, 30, 30, fill=False, color=ORANGE, linewidth=2, clip_on=False))
            values = [f"{value:g}".replace("-", "−") if k % 2 == 0 else "" for k, value in enumerate(grid)]
            _draw_labelled_rows(axes, rows, "", ["test\ndigit", *values])
        figure.supxlabel(
            "value of the dimension; framed: the digit's own, in place of the one nearest to it", fontsize="medium"
        )


def _digit(dataset, label, nth=0):
    """Return the nth test image of a class, shape (1, 1, 28, 28)."""
    return dataset.test_images[dataset.test_labels == label][nth : nth + 1]


def _digits(dataset, nth=0):
    """Return the nth test image of every class, shape (10, 1, 28, 28)."""
    return torch.cat([_digit(dataset, label, nth) for label in range(CLASSES)])


def _reconstruct(model, images):
    """Decode the posterior means of images (N, 1, 28, 28): images of the same shape."""
    return decode(model, torch.from_numpy(encode_means(model, images)))


def _sheet(path, height, title):
    """Open a figure for rows of digits, as wide as a page and `height` inches high besides its title."""
    return figure_file(path, (10, height + 0.3 * bool(title)), title)


def _draw_labelled_rows(axes, rows, title, below=()):
    """Draw labelled rows of images, {label: (N, 1, 28, 28) greys or (N, 28, 28, 3) colours}, as one mosaic.

    `below` are the labels of the columns, if any.
    """
    arrays = map(np.asarray, rows.values())
    images = [row if row.shape[-1] == 3 else row.reshape(-1, 28, 28, 1).repeat(3, axis=-1) for row in arrays]
    draw_mosaic(axes, np.stack(images), GAP)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks(mosaic_centres(len(below), GAP), below)
    axes.set_yticks(mosaic_centres(len(rows), GAP), list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
