"""Item 2.6: how good samples are as digits, judged by a classifier.

The classifier is an ordinary convolutional network, trained on the training digits as they are. It gives two measures.
One is the share of images that it recognises. The other is the Frechet distance of images from test digits in its last
hidden layer.
Its rating of other test digits is the yardstick of both.
"""

import joblib
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evidence.training import remembered
from train import IMAGES_AT_ONCE, seeded

FEATURES = 64  # units of the last hidden layer
CONFIDENCE = 0.99  # an image counts as recognised if one class is at least so probable
EPOCHS, BATCH, LEARNING_RATE = 2, 128, 3e-3


class Judge:
    """Rates images by a trained classifier, against a random half of the test digits.

    Parameters
    ----------
    classifier : torch.nn.Sequential
        From images (N, 1, 28, 28) to the logits of ten classes. The input of its last layer are the features.
    test : mnist.Part
        Test digits: one half of them is the reference, `others` is the other half.
    """

    def __init__(self, classifier, test):
        self.classifier = classifier
        digits, self.others = test.choose(len(test.labels)).images.tensor_split(2)
        self.count = len(self.others)  # samples to rate: the distance depends on their number
        self.reference, _ = self.look(digits)

    @torch.no_grad()
    def look(self, images):
        """Return features (N, 64) and logits (N, 10) of images (N, 1, 28, 28)."""
        features = torch.cat([self.classifier[:-1](x) for x in images.split(IMAGES_AT_ONCE)])
        return features.double().numpy(), self.classifier[-1](features)

    def rate(self, images):
        """Rate images (N, 1, 28, 28): the share "recognised", and the "frechet_distance" from the reference."""
        features, logits = self.look(images)
        recognised = (logits.softmax(1).amax(1) >= CONFIDENCE).float().mean().item()
        return {"recognised": recognised, "frechet_distance": frechet_distance(features, self.reference)}

    def describe(self, test):
        """Return the accuracy on test digits, and the ratings of test digits and of averages of two."""
        averages = (self.others + self.others.roll(1, 0)) / 2
        return {
            "accuracy": (self.look(test.images)[1].argmax(1) == test.labels).float().mean().item(),
            "confidence": CONFIDENCE,
            "samples": self.count,
            "test_digits": self.rate(self.others),
            "averages_of_two_digits": self.rate(averages),
        }


def make_judge(path, dataset, resume):
    """Return a `Judge` whose classifier is kept at `path`, trained now or, with `resume`, taken over."""

    def trained_weights():
        with seeded(0):
            classifier = make_classifier()
            train_classifier(classifier, dataset.train.images, dataset.train.labels)
        return {name: weight.tolist() for name, weight in classifier.state_dict().items()}

    made_from = f"torch {torch.__version__}, data {joblib.hash(dataset.train.pixels.numpy())}"
    weights = remembered(path, made_from, resume, trained_weights)
    classifier = make_classifier()
    classifier.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    return Judge(classifier, dataset.test)


def make_classifier():
    """Return the untrained classifier of digits."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, kernel_size=5, padding=2), nn.MaxPool2d(2), nn.ReLU()),  # (16, 14, 14)
        *(nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.MaxPool2d(2), nn.ReLU()),  # (32, 7, 7)
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, FEATURES), nn.ReLU()),
        nn.Linear(FEATURES, 10),
    )


def train_classifier(classifier, images, labels):
    """Train a classifier by Adam with a one-cycle learning rate."""
    batches = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(images)).split(BATCH)]
    optimizer = torch.optim.Adam(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        functional.cross_entropy(classifier(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()


def frechet_distance(points, others):
    """Frechet distance, not its square, between Gaussians fitted to points (N, D) and (M, D) (Dowson & Landau 1982)."""
    (mean, covariance), (other_mean, other) = ((x.mean(0), np.cov(x.T)) for x in (points, others))
    roots = np.sqrt(np.linalg.eigvals(covariance @ other).astype(complex)).real
    square = np.square(mean - other_mean).sum() + np.trace(covariance + other) - 2 * roots.sum()
    return float(np.sqrt(max(square, 0)))
