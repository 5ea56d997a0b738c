"""The bound against oracles: torch.distributions, Monte Carlo, autograd, and a model whose log p(x) is exact."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from ELBO import elbo_loss, kl_diag_normal, kl_per_dimension, negative_log_likelihood, optimal_sigma
from ELBO import importance_weighted_log_likelihood as importance_weighted

RNG = np.random.default_rng(0)
X, RECON_X = torch.from_numpy(RNG.random((2, 8, 1, 28, 28)))
MU, LOGVAR = torch.from_numpy(RNG.standard_normal((2, 8, 5)))
STANDARD_ERRORS = 4  # that an estimate may be off


# ---- Likelihood


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 7.0, torch.tensor([0.25])])
def test_nll_is_that_of_torch_distributions(sigma, dtype, tolerance):
    exact = -Independent(Normal(RECON_X, float(sigma)), 3).log_prob(X).to(dtype)
    x, recon_x = X.to(dtype), RECON_X.to(dtype)
    nll = negative_log_likelihood(x, recon_x, sigma, "none")
    assert_close(nll, exact, rtol=tolerance, atol=784 * tolerance)
    assert_close(negative_log_likelihood(x.flatten(1), recon_x.flatten(1), sigma, "none"), nll)


def test_nll_is_least_at_the_optimal_sigma():
    sigma = optimal_sigma(X, RECON_X).requires_grad_()
    nll = negative_log_likelihood(X, RECON_X, sigma)
    (slope,) = torch.autograd.grad(nll, sigma)
    assert abs(slope) < 1e-9
    for factor in (0.99, 1.01):
        assert negative_log_likelihood(X, RECON_X, factor * sigma) > nll


# ---- KL divergence


def test_kl_is_the_general_kl_of_two_gaussians():
    """Item 2.3: of a diagonal covariance and the prior. One linear map of both makes all full, and leaves the KL."""
    kl = kl_diag_normal(MU, LOGVAR, "none")
    for linear in (torch.eye(5).double(), torch.from_numpy(np.random.default_rng(1).standard_normal((5, 5)))):
        q = MultivariateNormal(MU @ linear.T, linear @ LOGVAR.exp().diag_embed() @ linear.T)
        assert_close(kl, kl_divergence(q, MultivariateNormal(torch.zeros_like(MU), linear @ linear.T)))
    assert_close(kl_diag_normal(MU[0], LOGVAR[0]), kl[0])  # one code without a batch


def test_kl_is_the_average_of_the_log_density_ratio_under_q():
    """Item 2.3: log q(z) - log p(z) is not the KL, its expectation under q is."""
    q, prior = Normal(MU[0], (LOGVAR[0] / 2).exp()), Normal(0.0, 1.0)
    z = q.mean + q.stddev * torch.from_numpy(np.random.default_rng(2).standard_normal((100_000, 5)))
    ratio = (q.log_prob(z) - prior.log_prob(z)).sum(1)
    error = STANDARD_ERRORS * ratio.std().item() / math.sqrt(len(ratio))
    assert ratio.mean().item() == pytest.approx(kl_diag_normal(MU[0], LOGVAR[0]).item(), abs=error)


def test_kl_of_each_dimension_keeps_its_digits_near_the_prior():
    """In float32, 1 + v - e^v would be 0 or -1e-7 here; the exact value is v^2 / 4 + v^3 / 12 + ..."""
    exact = kl_divergence(Normal(MU, (LOGVAR / 2).exp()), Normal(0.0, 1.0))
    assert_close(kl_per_dimension(MU, LOGVAR), exact)
    logvar = torch.tensor([1e-3, -1e-3, 3e-3, 0.0])
    assert_close(kl_per_dimension(0 * logvar, logvar), logvar**2 / 4 + logvar**3 / 12, rtol=1e-3, atol=0)


# ---- Both


def test_loss_is_the_sum_of_its_terms_and_reduced_over_the_batch():
    nll, kl = negative_log_likelihood(X, RECON_X, 0.2, "none"), kl_diag_normal(MU, LOGVAR, "none")
    assert nll.shape == kl.shape == (8,)
    for reduction, expected in {"none": nll + kl, "sum": (nll + kl).sum(), "mean": (nll + kl).sum() / 8}.items():
        assert_close(elbo_loss(X, RECON_X, MU, LOGVAR, 0.2, reduction), expected)
    by_default = elbo_loss(X, RECON_X, MU, LOGVAR)
    assert by_default == elbo_loss(X, RECON_X, MU, LOGVAR, 1.0, "mean")
    assert by_default == negative_log_likelihood(X, RECON_X) + kl_diag_normal(MU, LOGVAR)


def refuse(function, *arguments, **options):
    with pytest.raises(ValueError, match="must"):
        function(*arguments, **options)


def test_shapes_that_broadcast_and_integers_that_wrap_around_are_refused():
    """They would give a number, but a wrong one: 200^2 is 64 in a byte."""
    pixels, whole, fours = (255 * X).byte(), MU.long(), torch.ones(4, 2, 1, 1)
    for images in ((X.flatten(1), X), (pixels, pixels), (pixels, X), (X, pixels)):
        refuse(negative_log_likelihood, *images)
        refuse(optimal_sigma, *images)
    for codes in ((MU, MU[0]), (MU, MU[:, :1]), (fours, fours), (whole, whole), (whole, MU), (MU, whole)):
        refuse(kl_diag_normal, *codes)
    for codes in (MU[:1], MU[0], MU[:, None]):
        refuse(elbo_loss, X, X, codes, codes)


def test_settings_without_a_meaning_are_refused():
    refuse(kl_diag_normal, MU, LOGVAR, reduction="average")
    for sigma in (0, -1.0, math.nan, math.inf, torch.ones(2), torch.ones(1, 1)):
        refuse(negative_log_likelihood, X, RECON_X, sigma)
    for samples in ([0], [-1], [1, 0]):  # and how many at once
        refuse(importance_weighted, LinearGaussian(), LinearGaussian.x[:2], *samples)


# ---- Importance-weighted bound


class LinearGaussian:
    """Probabilistic PCA (Tipping & Bishop 1999): x = W z + b + sigma epsilon, where all is known in closed form.

    The columns of W are orthogonal, so that the exact posterior is diagonal. `encode` returns it, moved by `shift`
    standard deviations and its log-variance by `stretch`. Draws of z come from one stream, in portions of any size.
    """

    weight = torch.linalg.qr(MU[:6, :3]).Q * torch.tensor([2.0, 1.0, 0.5])
    bias, sigma = LOGVAR[:6, 0], torch.tensor(0.4).double()
    marginal = multivariate_normal(bias, weight @ weight.T + sigma**2 * torch.eye(6), seed=0)
    x = torch.from_numpy(marginal.rvs(2000))

    def __init__(self, shift=0.0, stretch=0.0):
        self.shift, self.stretch, self.rng = shift, stretch, np.random.default_rng(0)

    def encode(self, x):
        precision = 1 + self.weight.square().sum(0) / self.sigma**2
        mean = (x - self.bias) @ self.weight / self.sigma**2 / precision
        return mean + self.shift / precision.sqrt(), (self.stretch - precision.log()).expand_as(mean)

    def reparameterize(self, mu, logvar):
        return mu + (logvar / 2).exp() * torch.from_numpy(self.rng.standard_normal(mu.shape))

    def decode(self, z):
        return z @ self.weight.T + self.bias

    def log_p(self, x):
        return torch.from_numpy(self.marginal.logpdf(x))


@pytest.mark.parametrize("samples", [1, 7])
def test_importance_weighted_bound_is_exact_with_the_exact_posterior(samples):
    """Also where the density is far below the smallest number, e^-1e6."""
    model = LinearGaussian()
    x = torch.cat([model.x[:50], model.x[:50] + 1000])
    bound = importance_weighted(model, x.clone().requires_grad_(), samples)
    assert_close(bound, model.log_p(x))
    assert not bound.requires_grad


def test_importance_weighted_bound_rises_from_the_elbo_to_the_exact_log_likelihood():
    """The ELBO is short of log p(x) by KL(q || posterior), three times that of N(shift, e^stretch) from N(0, 1)."""
    model = LinearGaussian(shift=0.5, stretch=0.6)
    mu, logvar = model.encode(model.x)
    bounds = {0: -elbo_loss(model.x, model.decode(model.reparameterize(mu, logvar)), mu, logvar, model.sigma, "none")}
    bounds |= {samples: importance_weighted(model, model.x, samples, samples_at_once=64) for samples in (1, 4, 16, 128)}
    gaps = {samples: model.log_p(model.x) - bound for samples, bound in bounds.items()}
    error = {samples: STANDARD_ERRORS * gap.std().item() / math.sqrt(len(gap)) for samples, gap in gaps.items()}
    gaps = {samples: gap.mean().item() for samples, gap in gaps.items()}
    kl_to_posterior = 3 * kl_diag_normal(torch.tensor([0.5]), torch.tensor([0.6])).item()
    assert [gaps[0], gaps[1]] == [pytest.approx(kl_to_posterior, abs=error[samples]) for samples in (0, 1)]
    assert gaps[1] > 2 * gaps[4] > 4 * gaps[16] > 8 * gaps[128]
    assert abs(gaps[128]) < 0.02


def test_importance_weighted_bound_takes_1000_draws_however_many_at_once():
    model, same = LinearGaussian(1.0), LinearGaussian(1.0)
    assert_close(importance_weighted(model, model.x[:5]), importance_weighted(same, same.x[:5], 1000, 1))
