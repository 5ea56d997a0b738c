"""The film: what the plane of codes of a VAE with two latent dimensions decodes to, as training goes on."""

from io import BytesIO
from itertools import count
from typing import NamedTuple

import numpy as np
from PIL import Image

from drawing import Figure, Line2D, mosaic, style
from files import whole_file
from latent_traversal import PLANE_EDGE, decode_plane
from mnist import evenly_spaced
from train import calibrated_sigma, count_iterations, encode_means, evaluate, hold_out, seeded, train
from tsne import DIGIT_COLORS

NETWORKS = {"conv": "convolutional", "mlp": "fully connected"}
FRAMES = 40
FIRST = 1 / 200  # of the training; before, all codes decode to one grey
CODES = 400  # test images whose codes are shown
GREYS = 8  # 1.4 MB on full MNIST; 1.2 with 6, 1.6 with 10
FRAME_SECONDS, LAST_SECONDS = 0.2, 3.0


class Frame(NamedTuple):
    """The plane of codes after an iteration of training."""

    network: str  # in words, with K
    iteration: int
    elbo: float  # of all test images, nats per image
    plane: np.ndarray  # (height, width), pixel values in [0, 1]
    codes: np.ndarray  # (N, 2), posterior means of some test images
    labels: np.ndarray  # (N,), their classes


def frame_iterations(total):
    """Choose iterations from the first that shows something to `total`, evenly on a log scale as integers go."""
    first = max(1, round(FIRST * total))
    return np.unique(np.geomspace(first, total, FRAMES).round().astype(int)).tolist()


def record(model, dataset, config):
    """Train a `VAE` of two latent dimensions just as `train.train` does, and return its frames: a list of `Frame`."""
    frames, iterations = [], count(1)
    *shown, last = frame_iterations(count_iterations(len(dataset.train_labels), config))
    held_out = hold_out(dataset.train_images)[1].to(model.sigma.device)
    images, labels = (evenly_spaced(part, CODES) for part in (dataset.test_images, dataset.test_labels))
    network = f"{NETWORKS.get(model.architecture, model.architecture)} network, K = {model.latent_dim}"

    def add_frame(iteration):
        elbo, plane = evaluate(model, dataset.test_images)["elbo"], mosaic(decode_plane(model), gap=0)
        frames.append(Frame(network, iteration, elbo, plane, encode_means(model, images), labels.numpy()))

    def look(_):
        iteration = next(iterations)
        if iteration in shown:
            with seeded(0, model.sigma.device):  # the training's random numbers stay its own
                model.sigma.fill_(config.sigma or calibrated_sigma(model, held_out))  # it sets this only at its stages
            add_frame(iteration)

    train(model, dataset.train_images, config, on_iteration=look)
    add_frame(last)  # with the sigma that the training stored
    return frames


def write_film(frames, path):
    """Write frames, a list of `Frame`, to `path` as an animated GIF that starts anew after its last, longer frame."""
    with style.context("default"):
        pictures = [_draw(frame) for frame in frames]
    milliseconds = [1000 * FRAME_SECONDS] * (len(frames) - 1) + [1000 * LAST_SECONDS]
    with whole_file(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0
        )


def _draw(frame):
    """Draw a frame in the film's few colours: a Pillow image with a palette."""
    figure = Figure(figsize=(6, 6), dpi=100)
    axes = figure.add_axes((0.085, 0.08, 0.815, 0.815))  # fixed, so that nothing moves from frame to frame
    edges = (-PLANE_EDGE, PLANE_EDGE)
    axes.imshow(frame.plane, cmap="gray", vmin=0, vmax=1, extent=edges * 2, origin="upper")
    axes.scatter(*frame.codes.T, s=14, c=DIGIT_COLORS[frame.labels], edgecolors="white", linewidths=0.5)
    axes.set(xlim=edges, ylim=edges, xticks=range(-3, 4), yticks=range(-3, 4))
    axes.set_xlabel("$z_1$", labelpad=0)
    axes.set_ylabel("$z_2$", labelpad=0)
    handles = [Line2D([], [], color=color, marker="o", linestyle="") for color in DIGIT_COLORS]
    figure.legend(handles, range(10), loc="center right", title="class", handletextpad=0, frameon=False)
    elbo = f"{frame.elbo:,.1f}".replace("-", "−")
    outside = np.count_nonzero((np.abs(frame.codes) > PLANE_EDGE).any(axis=1))
    figure.text(0.085, 0.95, f"{frame.network}\niteration {frame.iteration:,}", va="center")
    about = f"test ELBO {elbo} nats per image\ncodes of {len(frame.codes)} test digits, {outside} of them outside"
    figure.text(0.9, 0.95, about, va="center", ha="right")
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    colors = np.concatenate([np.linspace(0, 1, GREYS)[:, None].repeat(3, axis=1), DIGIT_COLORS])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * colors).astype(int).ravel().tolist())
    return Image.open(drawn).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
