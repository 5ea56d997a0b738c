"""Two pictures, paths between digits and moves from a digit; then what all figures of the evidence share."""

import torch

from drawing import PALETTE, draw_mosaic, figure_file, mosaic_centres, run_title
from evidence.training import LATENT_DIM, Run
from latent_traversal import REACH
from train import decode, encode_means, evaluate
from VAE import ARCHITECTURES

SHOWN = Run("conv", LATENT_DIM)
GAP = 2  # white pixels between digits
STEPS = 9  # digits of a path
PAIRS = ((0, 6), (3, 8), (4, 9), (1, 7))  # classes that paths join
MOVED = (0, 3, 5, 7)  # classes of the digits that are moved
DIMENSIONS = 3  # along which a digit is moved
LABELS = {"mlp_wide": "fully connected, wide"}  # networks that main.py lacks


def draw(_, load, dataset, folder):
    """Write both pictures to `folder`; `load` returns the `VAE` of a `Run`."""
    plot_paths(load(SHOWN), dataset.test, folder / "interpolation.png")
    plot_moves(load(SHOWN), dataset.test, folder / "traversal_from_digit.png")


def plot_paths(model, test, path):
    """Write paths between pairs of test digits to `path`: straight in codes, then decoded, and straight in pixels."""
    share, rows = torch.linspace(0, 1, STEPS).view(-1, 1), {}
    for first, second in PAIRS:
        ends = digits_of(test, (first, second))
        codes = torch.from_numpy(encode_means(model, ends))
        rows[f"{first} to {second}, codes"] = decode(model, torch.lerp(codes[:1], codes[1:], share))
        rows[f"{first} to {second}, pixels"] = torch.lerp(ends[:1], ends[1:], share.view(-1, 1, 1, 1))
    with figure_file(path, (6, 5), run_title(model.architecture, model.latent_dim)) as figure:
        axes = figure.subplots()
        draw_rows(axes, rows)
        axes.set_xticks(mosaic_centres(STEPS, GAP)[:: STEPS // 4], ["0", "¼", "½", "¾", "1"])
        axes.set_xlabel("share of the second digit's code or pixels")


def plot_moves(model, test, path):
    """Write what test digits become along the dimensions of greatest KL to `path`.

    One dimension of a digit's code takes values over -3..+3, while the others stay. The digit stands before them.
    """
    kl = torch.tensor(evaluate(model, test.images)["kl_per_dimension"])
    dimensions = kl.topk(min(DIMENSIONS, model.latent_dim)).indices.tolist()
    values = range(-REACH, REACH + 1)
    with figure_file(path, (8, 4), run_title(model.architecture, model.latent_dim)) as figure:
        for axes, digit in zip(figure.subplots(2, 2).flat, digits_of(test, MOVED).split(1), strict=True):
            rows = {}
            for dimension in dimensions:
                codes = torch.from_numpy(encode_means(model, digit)).repeat(len(values), 1)
                codes[:, dimension] = torch.tensor(values)
                rows[f"$z_{{{dimension + 1}}}$"] = torch.cat([digit, decode(model, codes)])
            draw_rows(axes, rows)
            labels = ["digit", *(str(value).replace("-", "−") for value in values)]
            axes.set_xticks(mosaic_centres(len(labels), GAP), labels)
        figure.supxlabel("value of one dimension of the digit's code", fontsize="medium")


# ---- What all figures share


def digits_of(part, classes=range(10)):
    """Return the first image of each of some classes of a `mnist.Part`, (N, 1, 28, 28)."""
    return torch.cat([part.pixels[part.labels == digit][:1] / 255 for digit in classes])


def reconstruct(model, images):
    """Decode the posterior means of images (N, 1, 28, 28): images of the same shape."""
    return decode(model, torch.from_numpy(encode_means(model, images)))


def draw_rows(axes, rows, title=""):
    """Draw rows of images, {label: (N, 1, 28, 28)}, and their labels."""
    draw_mosaic(axes, torch.cat([*rows.values()], dim=1).transpose(0, 1), GAP)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks(mosaic_centres(len(rows), GAP), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def network_style(architecture):
    """Return the colour and the label of a network, as options of a plot."""
    label = LABELS.get(architecture, run_title(architecture, LATENT_DIM).partition(", K")[0])
    return {"color": PALETTE[[*ARCHITECTURES].index(architecture)], "label": label}


def draw_over_sizes(axes, groups, key, label, fmt="o-"):
    """Draw a measurement and its standard error against K: a line for each network among groups of `over_seeds`."""
    for network in dict.fromkeys(group["architecture"] for group in groups):
        own = {group["latent_dim"]: group[key] for group in groups if group["architecture"] == network}
        means, errors = zip(*((value["mean"], value["standard_error"] or 0) for value in own.values()), strict=True)
        axes.errorbar(own.keys(), means, errors, fmt=fmt, capsize=3, **network_style(network))
    dims = sorted({group["latent_dim"] for group in groups})
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, map(str, dims))
    axes.set(xlabel="latent dimensions K", ylabel=label)
    axes.grid(alpha=0.3)
