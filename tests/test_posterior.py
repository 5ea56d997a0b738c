"""The aggregate posterior: its codes, the mixture fitted to them, and its divergence from the prior in closed form."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from evidence.posterior import divergence_from_prior, draw_codes, fit_mixture, sample_mixture
from gmm_entropy import GMM

STANDARD_ERRORS = 4  # that an estimate may be off


def test_codes_are_draws_from_the_posterior_of_each_image_in_order(model, dataset):
    count, images = 1500, dataset.test_images[:2]  # in three portions
    with torch.no_grad():
        mu, logvar = (value.double().numpy() for value in model.encode(images))
    codes = draw_codes(model, images.repeat_interleave(count, dim=0), seed=1).reshape(2, count, model.latent_dim)
    sigma = np.exp(logvar / 2)
    assert codes.dtype == np.float64
    assert (abs(codes.mean(1) - mu) < STANDARD_ERRORS * sigma / math.sqrt(count)).all()
    assert (abs(codes.std(1) - sigma) < STANDARD_ERRORS * sigma / math.sqrt(2 * count)).all()
    assert len(np.unique(codes[..., 0])) > 0.99 * 2 * count  # no portion repeats another's draws


@pytest.mark.parametrize(("count", "dimension"), [(150, 1), (150, 5), (3000, 1), (3000, 5)])
def test_codes_from_the_prior_diverge_from_it_by_no_more_than_the_fit_is_uncertain(count, dimension):
    codes = np.random.default_rng(0).standard_normal((count + 5000, dimension))
    mixture = fit_mixture(codes[:count])
    found = divergence_from_prior(mixture, codes[count:])
    parameters = len(mixture.weights) * (1 + dimension + dimension * (dimension + 1) / 2)
    uncertain = 2 * parameters / (2 * count)  # in expectation a parameter adds 1 / 2N; twice that is allowed
    assert abs(found.test_codes) < uncertain + STANDARD_ERRORS * found.test_codes_standard_error
    assert abs(found.mixture) < uncertain + STANDARD_ERRORS * found.mixture_standard_error


@pytest.mark.parametrize(("dimension", "parts"), [(1, 3), (2, 1), (4, 3)])
def test_divergence_of_a_gaussian_is_its_closed_form(dimension, parts):
    """Of one with correlations, far from the prior, and whole or in equal parts the same; to the Monte Carlo error."""
    rng = np.random.default_rng(dimension)
    factor, mean = rng.normal(size=(dimension, dimension)) + np.eye(dimension), rng.normal(size=dimension)
    covariance = factor @ factor.T + 0.1 * np.eye(dimension)
    gaussian = MultivariateNormal(*map(torch.from_numpy, (mean, covariance)))
    prior = MultivariateNormal(torch.zeros(dimension).double(), torch.eye(dimension).double())
    exact = kl_divergence(gaussian, prior).item()
    mixture = GMM([1 / parts] * parts, [mean] * parts, [covariance] * parts)
    found = divergence_from_prior(mixture, rng.multivariate_normal(mean, covariance, 5000))
    assert found.mixture == pytest.approx(exact, abs=STANDARD_ERRORS * found.mixture_standard_error)
    assert found.test_codes == pytest.approx(exact, abs=STANDARD_ERRORS * found.test_codes_standard_error)
    assert 0 < found.mixture_standard_error < found.test_codes_standard_error < 0.1 * exact


def test_divergence_of_an_overfitted_mixture_lies_between_its_two_estimates():
    """Three hundred codes for three components in eight dimensions."""
    codes = 2 * np.random.default_rng(0).standard_normal((20_300, 8))
    found = divergence_from_prior(fit_mixture(codes[:300]), codes[300:])
    exact = 8 * 0.5 * (4 - 1 - math.log(4))
    assert found.test_codes + STANDARD_ERRORS * found.test_codes_standard_error < exact
    assert found.mixture - STANDARD_ERRORS * found.mixture_standard_error > exact


def test_fitted_mixture_has_the_moments_of_separate_groups_of_codes():
    rng = np.random.default_rng(0)
    groups = rng.normal(-4, 0.5, (220, 2)), rng.normal(4, 1.0, (79, 2))
    mixture = fit_mixture(np.concatenate(groups))
    for k, group in zip(np.argsort(mixture.means[:, 0]), groups, strict=True):
        assert mixture.weights[k] == pytest.approx(len(group) / 299, abs=1e-3)
        assert mixture.means[k] == pytest.approx(group.mean(0), abs=1e-3)
        assert mixture.covariances[k] == pytest.approx(np.cov(group.T, bias=True), abs=1e-3)


def test_mixture_samples_are_decoded_codes_of_the_mixture(model):
    ends = np.array([[-2.0], [2.0]]) * np.ones(model.latent_dim)
    mixture = GMM([0.5, 0.5], ends, [1e-12 * np.eye(model.latent_dim)] * 2)
    with torch.no_grad():
        decoded = model.decode(torch.from_numpy(ends).float())
    samples = sample_mixture(model, mixture, 20)
    differences = (samples[:, None] - decoded).abs().amax((2, 3, 4))  # of each sample from each end
    assert {*differences.argmin(1).tolist()} == {0, 1}
    assert differences.amin(1).max() < 1e-4
