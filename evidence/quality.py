"""How good samples are: density and coverage beside real digits (Naeem et al. 2020)."""

from typing import NamedTuple

from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from mnist import evenly_spaced
from tsne import NEIGHBOURS

SAMPLES = 2_000  # generated, and as many real digits to compare them with
FEATURES = 50  # principal components of the training images' pixels
FEATURE_IMAGES = 20_000  # that they are computed from


class Quality(NamedTuple):
    """How samples compare with real images (Naeem et al. 2020)."""

    density: float  # how deep in the real images' neighbourhoods the samples lie; 1 for real images
    coverage: float  # the share of real images with a sample in their neighbourhood; at most 1


class SampleJudge:
    """Rates samples by density and coverage against test images, in the space of the pixels' principal components."""

    def __init__(self, dataset):
        train = evenly_spaced(dataset.train_images, FEATURE_IMAGES).flatten(1).numpy()
        self.features = PCA(min(FEATURES, len(train)), random_state=0).fit(train)
        self.real = self._project(evenly_spaced(dataset.test_images, SAMPLES))
        # A point's nearest neighbour among the points themselves is the point, so one more is asked for.
        distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(self.real).kneighbors(self.real)
        self.radii = distances[:, -1]

    def _project(self, images):
        return self.features.transform(images.flatten(1).numpy())

    def rate(self, images):
        """Rate images (N, 1, 28, 28): a `Quality`."""
        inside = pairwise_distances(self.real, self._project(images)) < self.radii[:, None]  # (real, samples)
        return Quality(float(inside.sum() / (NEIGHBOURS * inside.shape[1])), float(inside.any(1).mean()))
