"""Item 2.6: codes of images, and a mixture fitted to them that can be sampled.

Training decodes codes from the aggregate posterior, the average of q(z|x) over the images. Sampling decodes codes from
the prior N(0, I). A Gaussian mixture fitted to codes stands for the aggregate posterior: its samples show what the
decoder makes of codes like those in training.
"""

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from gmm_entropy import GMM
from train import IMAGES_AT_ONCE, decode, seeded

CODES = 20_000  # training images whose codes a mixture is fitted to
COMPONENTS = 50  # of the mixture


@torch.no_grad()
def draw_codes(model, images, seed=0):
    """Draw one code z ~ q(z|x) for each image: samples of the aggregate posterior, a float64 array (N, K)."""
    with seeded(seed):
        codes = [model.reparameterize(*model.encode(x)) for x in images.split(IMAGES_AT_ONCE)]
    return torch.cat(codes).double().numpy()


def fit_mixture(codes, seed=0, components=COMPONENTS):
    """Fit a `GMM` of full covariances to codes (N, K) by expectation-maximisation (scikit-learn)."""
    fit = GaussianMixture(components, random_state=seed, reg_covar=1e-4, tol=1e-2, max_iter=50).fit(codes)
    return GMM(fit.weights_, fit.means_, fit.covariances_)


def sample_mixture(model, mixture, count, seed=0):
    """Decode `count` draws from a mixture of codes: images (count, 1, 28, 28)."""
    codes, _ = mixture.sample(count, np.random.default_rng(seed))
    return decode(model, torch.from_numpy(codes).float())


def sample_posterior(model, part, count, seed=0):
    """Decode `count` draws from the mixture fitted to codes of a random choice of a `mnist.Part`'s images."""
    codes = draw_codes(model, part.choose(CODES).images, seed)
    return sample_mixture(model, fit_mixture(codes, seed), count, seed)
