"""The film: what the plane of codes of a VAE with two latent dimensions decodes to, as training goes on."""

from io import BytesIO
from itertools import count
from typing import NamedTuple

import numpy as np
from PIL import Image

from drawing import Figure, mosaic, style
from files import whole_file
from latent_traversal import PLANE_EDGE, decode_plane
from mnist import evenly_spaced
from train import calibrated_sigma, count_iterations, encode_means, evaluate, hold_out, seeded, train

NETWORKS = {"conv": "convolutional", "mlp": "fully connected"}
FRAMES = 40
FIRST = 1 / 200  # of the training; before, all codes decode to one grey
CODES = 500  # test images whose codes are shown
GREYS = 12  # 1.2 MB on full MNIST; 0.9 with 8, 1.45 with 16
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
    """Draw a frame in the film's few greys: a Pillow image with a palette."""
    figure = Figure(figsize=(5.2, 5.5), dpi=100)
    axes = figure.add_axes((0.1, 0.09, 0.889, 0.84))  # fixed, so that nothing moves from frame to frame
    axes.imshow(frame.plane, cmap="gray", vmin=0, vmax=1, extent=(-PLANE_EDGE, PLANE_EDGE) * 2, origin="upper")
    axes.set(xticks=range(-3, 4), yticks=range(-3, 4))
    axes.set_xlabel("$z_1$", labelpad=0)
    axes.set_ylabel("$z_2$", labelpad=0)
    elbo = f"{frame.elbo:,.0f}".replace("-", "−")
    figure.text(0.1, 0.95, f"iteration {frame.iteration:,}", fontsize="large")
    figure.text(0.989, 0.95, f"test ELBO {elbo} nats per image", fontsize="large", ha="right")
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    grey = np.asarray(Image.open(drawn).convert("L"))
    picture = Image.fromarray(np.rint(grey * ((GREYS - 1) / 255)).astype(np.uint8))
    picture.putpalette([round(255 * level / (GREYS - 1)) for level in range(GREYS) for _ in range(3)])
    return picture
