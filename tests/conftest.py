"""What several test files share: the packaged real digits, and one small trained model with its history."""

from typing import NamedTuple

import pytest
import torch

import mnist
from config import TrainConfig
from train import seeded, train
from VAE import VAE


class Trained(NamedTuple):
    """A model after a short training, not to be changed by the tests that look at it."""

    model: VAE
    history: dict
    config: TrainConfig
    images: torch.Tensor


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return mnist.load(tmp_path_factory.mktemp("data"), offline=True)


@pytest.fixture(scope="session")
def digits(dataset):
    """Eight real digits."""
    return dataset.train_images[:8]


@pytest.fixture(scope="session")
def trained(dataset):
    config = TrainConfig(epochs=6, batch_size=64)
    images = dataset.train_images[:555]  # 55 are held out, and the last of 8 batches is smaller: 52
    with seeded(config.seed):
        model = VAE(2, "mlp")
    return Trained(model, train(model, images, config), config, images)
