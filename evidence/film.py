"""The film: what the plane of codes of the convolutional network with K = 2 decodes to, as training goes on."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from checkpoints import new_model
from drawing import PALETTE, draw_class_numbers, draw_mosaic, figure_file, run_title
from files import whole_file
from latent_traversal import PLANE_EDGE, REACH, decode_plane
from train import TrainConfig, encode_means, iterations_of, train

FRAMES = 40
FIRST = 1 / 200  # of the training: before it, all codes decode to the same image
CODES = 400  # test digits whose codes are shown
GREYS = 8  # enough for digits, and few enough for a small file
FRAME_SECONDS, LAST_SECONDS = 0.2, 3.0


def make(dataset, folder, config=None):
    """Train the network, and write film.gif to `folder`: its plane of codes as training goes on.

    Parameters
    ----------
    dataset : mnist.Dataset
        Its training images are trained on, and the codes of some of its test images are shown.
    folder : path-like
    config : TrainConfig, optional
    """
    config = config or TrainConfig()
    model = new_model("conv", 2, config.seed)
    digits = dataset.test.choose(CODES)
    shown = frame_iterations(iterations_of(len(dataset.train.labels), config))
    frames = []

    def on_iteration(iteration, _):
        if iteration in shown:
            title = f"{run_title('conv', 2)}, iteration {iteration:,}\n{dataset.note}".strip()
            frames.append(draw_frame(decode_plane(model), encode_means(model, digits.images), digits.labels, title))

    train(model, dataset.train.images, config, on_iteration=on_iteration)
    milliseconds = [1000 * FRAME_SECONDS] * (len(frames) - 1) + [1000 * LAST_SECONDS]
    with whole_file(Path(folder) / "film.gif") as path:
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def frame_iterations(total):
    """Return the iterations to show, up to `total`: evenly on a log scale, because the first ones change most."""
    return np.unique(np.geomspace(max(1, FIRST * total), total, FRAMES).round().astype(int)).tolist()


def draw_frame(plane, codes, labels, title):
    """Draw decoded images (rows, columns, 28, 28), and on them codes (N, 2) in the colours of their classes.

    Return a Pillow image with the film's few colours.
    """
    edges = (-PLANE_EDGE, PLANE_EDGE)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "frame.png"
        with figure_file(path, (5, 5.4), title) as figure:
            axes = figure.subplots()
            draw_mosaic(axes, plane, gap=0, extent=edges * 2)
            axes.scatter(*codes.T, s=16, c=np.array(PALETTE)[labels], edgecolors="white", linewidths=0.6)
            axes.set(xlim=edges, ylim=edges, xlabel="$z_1$", ylabel="$z_2$")
            inside = (np.abs(codes) < REACH).all(axis=1)
            draw_class_numbers(axes, codes[inside], labels[inside], size=12)
        picture = Image.open(path).convert("RGB")
    colors = np.concatenate([np.linspace(0, 1, GREYS)[:, None].repeat(3, axis=1), PALETTE])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * colors).astype(int).ravel().tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)
