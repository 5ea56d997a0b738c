"""Speed against the usual libraries, by `python -m evidence.benchmark --data-root data`, which prints a table.

Everything runs in one thread. The contenders take turns, so that a slow moment hits all of them, and the first turn is
not counted. Seconds are CPU seconds, which leave out the work of other programs.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits  # comes with scikit-learn
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import mnist
from files import InputError, errors_in_one_line, say
from gmm_entropy import BALANCED_WEIGHTS, COVARIANCES, GMM, MEANS, mc_entropy
from train import TrainConfig, train
from VAE import IMAGE_SHAPE, PIXELS, VAE

SAMPLES = 10**6  # of the entropy
IMAGES = 20_000  # of a training
TURNS = 5  # that are counted


def sklearn_entropy(gmm, n):
    """Estimate the entropy with scikit-learn, whose mixture is given its parameters instead of being fitted."""
    mixture = GaussianMixture(len(gmm.weights), random_state=0)
    mixture.weights_, mixture.means_, mixture.covariances_ = gmm.weights, gmm.means, gmm.covariances
    mixture.precisions_cholesky_ = np.linalg.inv(gmm.cholesky).transpose(0, 2, 1)
    points, _ = mixture.sample(n)
    return -mixture.score_samples(points).mean()


def torch_entropy(gmm, n):
    """Estimate the entropy with torch.distributions."""
    weights, means, factors = map(torch.from_numpy, (gmm.weights, gmm.means, gmm.cholesky))
    mixture = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, scale_tril=factors))
    return -mixture.log_prob(mixture.sample((n,))).mean().item()


def tutorial_model():
    """Return a VAE with the network of pytorch/examples: 784-400-20 and back."""
    model = VAE(latent_dim=20)
    model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 400), nn.ReLU(), nn.Linear(400, 2 * 20))
    model.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, PIXELS), nn.Unflatten(1, IMAGE_SHAPE))
    return model


def train_as_tutorials_do(images):
    """Train for an epoch as pytorch/examples does: DataLoader, ToTensor, Adam, cross-entropy and KL."""
    model = tutorial_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, _ in DataLoader(images, batch_size=128, shuffle=True):
        optimizer.zero_grad()
        recon_x, mu, logvar = model(x)
        cross_entropy = nn.functional.binary_cross_entropy(recon_x, x, reduction="sum")
        loss = cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss.backward()
        loss.item()
        optimizer.step()


def take_turns(contenders):
    """Call every function of {name: function} in turn: {name: CPU seconds of each turn but the first}."""
    seconds = {name: [] for name in contenders}
    for _ in range(1 + TURNS):
        for name, function in contenders.items():
            started = time.process_time()
            function()
            seconds[name].append(time.process_time() - started)
    return {name: turns[1:] for name, turns in seconds.items()}


def main(arguments=None):
    """Measure, and print a line for each contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-root", default="data", help="folder with MNIST/raw, as main.py downloads it")
    root = parser.parse_args(arguments).data_root
    dataset = mnist.load(root, offline=True)
    if dataset.source != "disk":
        raise InputError(f"{root}: no MNIST/raw with MNIST in it")
    images = dataset.train.choose(IMAGES).images
    chosen = mnist.choose(len(dataset.train.labels), IMAGES).tolist()
    same_images = Subset(datasets.MNIST(root, transform=transforms.ToTensor()), chosen)
    gmm = GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES)
    config = TrainConfig(epochs=1, calibration_images=1)  # all images but one are trained on
    entropy = {
        "mc_entropy": lambda: mc_entropy(gmm, SAMPLES),
        "scikit-learn": lambda: sklearn_entropy(gmm, SAMPLES),
        "torch.distributions": lambda: torch_entropy(gmm, SAMPLES),
    }
    training = {
        "train.train": lambda: train(tutorial_model(), images, config),
        "DataLoader, as in tutorials": lambda: train_as_tutorials_do(same_images),
    }
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for what, count, contenders in (("samples", SAMPLES, entropy), ("images", len(images), training)):
            say(f"{f'{count:,} {what}':30}{'CPU seconds, least':>20}{'median':>10}{f'{what} a second':>20}")
            for name, seconds in take_turns(contenders).items():
                median = np.median(seconds)
                say(f"{name:30}{min(seconds):20.3f}{median:10.3f}{count / median:20,.0f}")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
