"""The aggregate posterior: its codes, the mixture fitted to them, and its divergence from the prior in closed form."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from evidence.posterior import divergence_from_prior, draw_codes, fit_mixture, sample_mixture
from gmm_entropy import GMM
from tsne import encode_means

STANDARD_ERRORS = 4  # that an estimate may be off


def test_codes_are_draws_from_the_posterior_of_their_image(model, dataset):
    count = 3000  # in three portions
    with torch.no_grad():
        mu, logvar = (value.double().numpy()[0] for value in model.encode(dataset.test_images[:1]))
    codes = draw_codes(model, dataset.test_images[:1].expand(count, -1, -1, -1), seed=1)
    sigma = np.exp(logvar / 2)
    assert codes.dtype == np.float64
    assert codes.shape == (count, model.latent_dim)
    assert (abs(codes.mean(0) - mu) < STANDARD_ERRORS * sigma / math.sqrt(count)).all()
    assert (abs(codes.std(0) - sigma) < STANDARD_ERRORS * sigma / math.sqrt(2 * count)).all()
    assert len(np.unique(codes[:, 0])) > 0.99 * count  # no portion repeats another's draws


def test_codes_are_in_the_order_of_the_images(model, dataset):
    images = dataset.test_images[:50]
    with torch.no_grad():
        model.encoder[-1].bias[model.latent_dim :] = -50  # sigma about 1e-11: codes are means
    assert np.allclose(draw_codes(model, images), encode_means(model, images), atol=1e-5)


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("count", [150, 5000])
def test_codes_from_the_prior_diverge_from_it_by_no_more_than_the_fit_is_uncertain(dimension, count):
    codes = np.random.default_rng(0).standard_normal((count + 5000, dimension))
    mixture = fit_mixture(codes[:count])
    divergence = divergence_from_prior(mixture, codes[count:])
    parameters = len(mixture.weights) * (1 + dimension + dimension * (dimension + 1) / 2)
    uncertain = 2 * parameters / (2 * count)  # in expectation a parameter adds 1 / 2N; twice that is allowed
    assert abs(divergence.held_out) < uncertain + STANDARD_ERRORS * divergence.held_out_standard_error
    assert abs(divergence.mixture) < uncertain + STANDARD_ERRORS * divergence.mixture_standard_error


@pytest.fixture(params=[1, 2, 4], ids="d={}".format)
def gaussian(request):
    """A Gaussian far from the prior, with correlations."""
    rng = np.random.default_rng(request.param)
    factor = rng.normal(size=(request.param, request.param)) + np.eye(request.param)
    covariance = torch.from_numpy(factor @ factor.T + 0.1 * np.eye(request.param))
    return MultivariateNormal(torch.from_numpy(rng.normal(size=request.param)), covariance)


def test_divergence_of_a_gaussian_is_its_closed_form(gaussian):
    """Of the mixture itself, of codes drawn from it, and of a mixture of equal parts, to the Monte Carlo error."""
    mean, covariance = gaussian.mean.numpy(), gaussian.covariance_matrix.numpy()
    dimension = len(mean)
    prior = MultivariateNormal(torch.zeros(dimension, dtype=torch.float64), torch.eye(dimension, dtype=torch.float64))
    exact = kl_divergence(gaussian, prior).item()
    codes = np.random.default_rng(9).multivariate_normal(mean, covariance, 5000)
    for parts in (1, 3):
        mixture = GMM(np.full(parts, 1 / parts), [mean] * parts, [covariance] * parts)
        found = divergence_from_prior(mixture, codes)
        assert found.mixture == pytest.approx(exact, abs=STANDARD_ERRORS * found.mixture_standard_error)
        assert found.held_out == pytest.approx(exact, abs=STANDARD_ERRORS * found.held_out_standard_error)
        assert 0 < found.mixture_standard_error < found.held_out_standard_error < 0.1 * exact


def test_divergence_of_an_overfitted_mixture_lies_between_its_two_estimates():
    """Three hundred codes for three components in eight dimensions."""
    codes = 2 * np.random.default_rng(0).standard_normal((20_300, 8))
    found = divergence_from_prior(fit_mixture(codes[:300]), codes[300:])
    exact = 8 * 0.5 * (4 - 1 - math.log(4))
    assert found.held_out + STANDARD_ERRORS * found.held_out_standard_error < exact
    assert found.mixture - STANDARD_ERRORS * found.mixture_standard_error > exact


def test_fitted_mixture_has_the_moments_of_separate_groups_of_codes():
    rng = np.random.default_rng(0)
    groups = rng.normal(-4, 0.5, (220, 2)), rng.normal(4, 1.0, (79, 2))
    mixture = fit_mixture(np.concatenate(groups))
    order = np.argsort(mixture.means[:, 0])
    assert mixture.weights[order] == pytest.approx([220 / 299, 79 / 299], abs=1e-3)
    for k, group in zip(order, groups, strict=True):
        assert mixture.means[k] == pytest.approx(group.mean(0), abs=1e-3)
        assert mixture.covariances[k] == pytest.approx(np.cov(group.T, bias=True), abs=1e-3)


def test_mixture_samples_are_decoded_codes_of_the_mixture(model):
    mean = 2 * np.ones(model.latent_dim)
    mixture = GMM([1.0], [mean], [1e-12 * np.eye(model.latent_dim)])
    images = sample_mixture(model, mixture, 5)
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(mean).float()[None]).expand(5, -1, -1, -1)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_mixture_samples_are_the_same_for_the_same_seed(model):
    mixture = GMM([0.5, 0.5], [-np.ones(model.latent_dim), np.ones(model.latent_dim)], 2 * [np.eye(model.latent_dim)])
    first, again, other = (sample_mixture(model, mixture, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
