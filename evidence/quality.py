"""How good samples are as digits, judged by a small classifier and in the space of its features.

What it calls recognised, and how near to real digits samples lie, is measured against test digits. `references` says
how real, blurred and averaged digits fare with the same judge.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional

from mnist import CLASSES, evenly_chosen, evenly_spaced
from train import IMAGES_AT_ONCE, augment, seeded
from tsne import NEIGHBOURS

SAMPLES = 2_000  # generated, and as many real digits to compare them with
FEATURES = 64  # of the classifier
CONFIDENCE = 0.9  # probability of one class, from which an image counts as recognised
EPOCHS, BATCH, LEARNING_RATE = 8, 128, 3e-3
COMPONENTS = 50  # principal components of pixels, the space that blur is tried in too
BLURS = (0.5, 1.0, 1.5)  # standard deviations of a Gaussian, in pixels


class Quality(NamedTuple):
    """How images compare with real digits."""

    recognised: float  # the share that the classifier gives `CONFIDENCE` or more to one class
    classes: list[float]  # the share of each class, by the likeliest
    class_entropy: float  # of those shares, in nats; log 10 if classes are equally frequent
    density: float  # how deep in the real digits' neighbourhoods they lie; 1 for real ones, and not bounded by it
    coverage: float  # the share of real digits with one of them in its neighbourhood
    frechet: float  # distance between Gaussians fitted to both in feature space (Heusel et al. 2017)


class Neighbourhoods:
    """Balls around real points (N, D), each as far as its 5th nearest neighbour (Naeem et al. 2020)."""

    def __init__(self, real):
        self.real = real
        # A point's nearest neighbour among the points themselves is the point, so one more is asked for.
        distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(real).kneighbors(real)
        self.radii = distances[:, -1]

    def rate(self, points):
        """Return density and coverage of points (M, D)."""
        inside = pairwise_distances(self.real, points) < self.radii[:, None]  # (real, points)
        return float(inside.sum() / (NEIGHBOURS * len(points))), float(inside.any(1).mean())


def expected_coverage(real_count, count):
    """Coverage to expect of `count` points from the very distribution of the real ones: Naeem et al. 2020, Lemma 2."""
    steps = np.arange(1, NEIGHBOURS + 1)
    return float(1 - np.prod((real_count - steps) / (real_count + count - steps)))


class SampleJudge:
    """Rates images beside test digits with a classifier of digits, which is trained when the judge is made.

    Attributes
    ----------
    accuracy : float
        Share of the test digits that the classifier is right about.
    others : torch.Tensor, shape (N, 1, 28, 28)
        Test digits that are none of those that images are compared with.
    """

    def __init__(self, dataset, seed=0):
        with seeded(seed):
            self.features, self.last = train_classifier(dataset.train_images, dataset.train_labels)
        test_images = dataset.test_images
        chosen = evenly_chosen(len(test_images), min(SAMPLES, len(test_images) // 2))
        self.accuracy = float((self._logits(test_images)[1].argmax(1) == dataset.test_labels).float().mean())
        self.others = evenly_spaced(test_images[~chosen], SAMPLES)
        self.real = self._logits(test_images[chosen])[0].numpy()
        self.neighbourhoods = Neighbourhoods(self.real)

    @torch.no_grad()
    def _logits(self, images):
        """Return features (N, 64) and the classes' logits (N, 10)."""
        features = torch.cat([self.features(x) for x in images.split(IMAGES_AT_ONCE)])
        return features, self.last(features)

    def recognised(self, images):
        """Tell of each image (N, 1, 28, 28) whether it is recognised: a mask (N,)."""
        return (self._logits(images)[1].softmax(1).amax(1) >= CONFIDENCE).numpy()

    def rate(self, images):
        """Rate images (N, 1, 28, 28): a `Quality`."""
        features, logits = self._logits(images)
        shares = logits.argmax(1).bincount(minlength=CLASSES) / len(images)
        density, coverage = self.neighbourhoods.rate(features.numpy())
        return Quality(
            recognised=float(self.recognised(images).mean()),
            classes=shares.tolist(),
            class_entropy=float(torch.special.entr(shares).sum()),
            density=density,
            coverage=coverage,
            frechet=frechet_distance(features.numpy(), self.real),
        )


def train_classifier(images, labels):
    """Train a classifier of digits: its networks from images to features (N, 64), and from these to logits (N, 10).

    Of each batch an eighth are averages of two digits (mixup, Zhang et al. 2018) and an eighth have the halves of two
    (CutMix, Yun et al. 2019), with half a label each: so it learns to be unsure of what is no digit.
    """
    features = nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, FEATURES),
        nn.ReLU(),
    )
    last = nn.Linear(FEATURES, CLASSES)
    parameters = [*features.parameters(), *last.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    batches = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(images)).split(BATCH)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
    for batch in batches:
        x, y = mixed(augment(images[batch]), functional.one_hot(labels[batch], CLASSES).float())
        optimizer.zero_grad()
        functional.cross_entropy(last(features(x)), y).backward()
        optimizer.step()
        schedule.step()
    return features, last


def mixed(x, y):
    """Mix a quarter of a batch with others of it: half of those by average, half with the lower half of another."""
    part = len(x) // 8
    others, labels = x.roll(part, 0), y.roll(part, 0)
    averages = (x + others)[:part] / 2
    halves = torch.cat([x[part : 2 * part, :, :14], others[part : 2 * part, :, 14:]], dim=2)
    return torch.cat([averages, halves, x[2 * part :]]), torch.cat([(y + labels)[: 2 * part] / 2, y[2 * part :]])


def frechet_distance(points, others):
    """Squared Frechet distance between Gaussians fitted to points (N, D) and (M, D)."""
    (mean, covariance), (other_mean, other) = ((x.mean(0), np.cov(x.T)) for x in (points, others))
    roots = np.sqrt(np.linalg.eigvals(covariance @ other).astype(complex)).real
    return float(np.square(mean - other_mean).sum() + np.trace(covariance + other) - 2 * roots.sum())


def blurred(images, sigma):
    """Blur images (N, 1, 28, 28) by a Gaussian of `sigma` pixels."""
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma)))


def references(judge, dataset, samples):
    """Rate real digits, averages of two, and digits and `samples` that are blurred: what the ratings can be.

    Returns
    -------
    list of dict
        "images", "blur" in pixels, the fields of `Quality`, and "pixel_density" and "pixel_coverage", in the space of
        the pixels' principal components.
    """
    train = evenly_spaced(dataset.train_images, 10 * SAMPLES).flatten(1).numpy()
    components = PCA(min(COMPONENTS, len(train)), random_state=0).fit(train)
    test_images = dataset.test_images
    real = test_images[evenly_chosen(len(test_images), min(SAMPLES, len(test_images) // 2))]
    neighbourhoods = Neighbourhoods(components.transform(real.flatten(1).numpy()))
    labels = judge._logits(judge.others)[1].argmax(1)
    different = labels != labels.roll(1)
    kinds = [("test digits", judge.others, 0), ("training digits", evenly_spaced(dataset.train_images, SAMPLES), 0)]
    kinds += [("averages of two digits", ((judge.others + judge.others.roll(1, 0)) / 2)[different], 0)]
    kinds += [("noise", torch.rand(judge.others.shape, generator=torch.Generator().manual_seed(0)), 0)]
    kinds += [("mixture samples", samples, 0)]
    kinds += [("test digits", blurred(judge.others, blur), blur) for blur in BLURS]
    kinds += [("mixture samples", blurred(samples, blur), blur) for blur in BLURS]
    rated = []
    for name, images, blur in kinds:
        density, coverage = neighbourhoods.rate(components.transform(images.flatten(1).numpy()))
        pixels = {"pixel_density": density, "pixel_coverage": coverage}
        rated.append({"images": name, "blur": blur, **judge.rate(images)._asdict(), **pixels})
    return rated
