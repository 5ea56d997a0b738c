"""Item 2.6: the aggregate posterior, and how far it is from the prior.

Training draws codes from the aggregate posterior q(z), the average of q(z|x) over the images, while sampling draws them
from the prior p(z) = N(0, I). A Gaussian mixture fitted to codes stands for q(z): its samples show what the decoder can
do, and its divergence from the prior is in expectation no more than that of q(z), since it is smoother.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from gmm_entropy import GMM, mc_entropy
from train import IMAGES_AT_ONCE, decode, seeded

MAX_COMPONENTS = 50
MIN_CODES_PER_COMPONENT = 100
ENTROPY_SAMPLES = 200_000


class Divergence(NamedTuple):
    """KL from N(0, I) in nats: a lower bound of that of codes, and that of the mixture fitted to others of them."""

    test_codes: float  # mean of log q(z) - log p(z) over test codes, q the mixture
    test_codes_standard_error: float
    mixture: float  # -H(q) - E_q[log p] of the mixture; larger than `test_codes` where the mixture overfits
    mixture_standard_error: float


@torch.no_grad()
def draw_codes(model, images, seed=0):
    """Draw one code z ~ q(z|x) for each image: samples of the aggregate posterior, a float64 array (N, K)."""
    device = model.sigma.device
    with seeded(seed, device):
        codes = [model.reparameterize(*model.encode(x.to(device))) for x in images.split(IMAGES_AT_ONCE)]
    return torch.cat(codes).cpu().double().numpy()


def fit_mixture(codes, seed=0):
    """Fit a `GMM` of full covariances to codes (N, K) by expectation-maximisation (scikit-learn)."""
    components = max(1, min(MAX_COMPONENTS, len(codes) // MIN_CODES_PER_COMPONENT))
    fit = GaussianMixture(components, random_state=seed, reg_covar=1e-4, tol=1e-2, max_iter=50).fit(codes)
    return GMM(fit.weights_, fit.means_, fit.covariances_)


def divergence_from_prior(mixture, test_codes, seed=0):
    """Measure how far codes (M, K), and a mixture q, a `GMM`, fitted to other codes, are from N(0, I): a `Divergence`.

    The mean of log q - log p over test codes is KL(r || p) - KL(r || q) for the distribution r that they are from: a
    lower bound of KL(r || p). The mixture's own divergence is -H(q) - E_q[log p]: its entropy is Problem 1's Monte
    Carlo estimate, and the cross term has the closed form -(1/2) E_q[|z|^2 + K log 2 pi].
    """
    log_ratio = mixture.log_prob(test_codes) - log_prior(test_codes)
    entropy = mc_entropy(mixture, ENTROPY_SAMPLES, seed)
    second_moments = np.square(mixture.means).sum(1) + np.trace(mixture.covariances, axis1=1, axis2=2)
    cross_entropy = 0.5 * (mixture.weights @ second_moments + mixture.means.shape[1] * math.log(2 * math.pi))
    return Divergence(
        test_codes=float(log_ratio.mean()),
        test_codes_standard_error=float(log_ratio.std(ddof=1) / math.sqrt(len(log_ratio))),
        mixture=float(cross_entropy - entropy.value),
        mixture_standard_error=float(entropy.standard_error),
    )


def refitted_divergence(mixture, count, test_count, seed=0):
    """Measure a mixture's divergence from the prior, and what its draws give as if they were codes, in nats.

    Returns
    -------
    dict
        "known", the divergence; "test_codes" and "mixture", as of a `Divergence`, of a mixture fitted to `count` draws.
    """
    rng = np.random.default_rng(seed)
    draws, test_draws = (mixture.sample(n, rng)[0] for n in (count, test_count))
    found = divergence_from_prior(fit_mixture(draws), test_draws)
    known = divergence_from_prior(mixture, test_draws).mixture
    return {"known": known, "test_codes": found.test_codes, "mixture": found.mixture}


def log_prior(codes):
    """Return log N(z; 0, I) in nats for codes (N, K): (N,)."""
    return -0.5 * (np.square(codes).sum(1) + codes.shape[1] * math.log(2 * math.pi))


def sample_mixture(model, mixture, count, seed=0):
    """Decode `count` draws from a mixture of codes: images (count, 1, 28, 28)."""
    codes, _ = mixture.sample(count, np.random.default_rng(seed))
    return decode(model, torch.from_numpy(codes).float())
