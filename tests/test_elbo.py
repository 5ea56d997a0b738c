"""The bound against oracles: torch.distributions, SciPy, autograd, Monte Carlo, and a model whose log p(x) is exact."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ELBO import (
    elbo_loss,
    importance_weighted_log_likelihood,
    kl_diag_normal,
    kl_per_dimension,
    negative_log_likelihood,
    optimal_sigma,
)

STANDARD_ERRORS = 4  # that an estimate may be off
PRECISIONS = ((torch.float64, 1e-12), (torch.float32, 1e-5))


def random_tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def blurred(digits):
    """Stand-ins for reconstructions: the digits, blurred."""
    return nn.functional.avg_pool2d(digits, 5, stride=1, padding=2)


@pytest.fixture
def posterior():
    return random_tensor(8, 5, seed=1), random_tensor(8, 5, seed=2)


# ------------------------------------------------------------------------------------------ negative log-likelihood


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 7.0])
def test_nll_is_that_of_torch_distributions(digits, blurred, sigma, dtype, rtol):
    x, recon_x = digits.to(dtype), blurred.to(dtype)
    exact = -Independent(Normal(recon_x.double(), sigma), 3).log_prob(x.double())
    nll = negative_log_likelihood(x, recon_x, sigma, reduction="none")
    assert nll.dtype == dtype
    torch.testing.assert_close(nll.double(), exact, rtol=rtol, atol=rtol * 784)
    assert torch.equal(negative_log_likelihood(x.flatten(1), recon_x.flatten(1), sigma, reduction="none"), nll)


@pytest.mark.parametrize("shade", [0.0, 1.0], ids=["black", "white"])
def test_nll_of_a_perfectly_reconstructed_uniform_image_is_the_constant_alone(shade):
    x = torch.full((1, 1, 28, 28), shade)
    nll = negative_log_likelihood(x, x, sigma=0.1)
    assert optimal_sigma(x, x) == 0
    assert nll.item() == pytest.approx(784 * math.log(0.1 * math.sqrt(2 * math.pi)), rel=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, torch.tensor(0.0), torch.ones(2), torch.ones(1, 1)])
def test_nll_refuses_a_sigma_that_is_not_one_positive_number(digits, blurred, sigma):
    with pytest.raises(ValueError, match="sigma must be one positive, finite number"):
        negative_log_likelihood(digits, blurred, sigma)


@pytest.mark.parametrize("loss", [negative_log_likelihood, optimal_sigma, elbo_loss])
def test_images_of_two_shapes_or_of_integers_are_refused(digits, posterior, loss):
    """Else (B, 784) is broadcast against (B, 1, 28, 28), and 200^2 is 64 in a byte: numbers, but wrong ones."""
    codes = posterior if loss is elbo_loss else ()
    integers = (255 * digits).byte()
    for images in ((digits.flatten(1), digits), (integers, integers), (integers, digits), (digits, integers)):
        with pytest.raises(ValueError, match="x and recon_x must "):
            loss(*images, *codes)


def test_nll_is_least_at_the_optimal_sigma(digits, blurred):
    x, recon_x = digits.double(), blurred.double()
    found = minimize_scalar(
        lambda log_sigma: negative_log_likelihood(x, recon_x, math.exp(log_sigma)).item(),
        bounds=(-6, 3),
        options={"xatol": 1e-9},
    )
    sigma = optimal_sigma(x, recon_x)
    assert sigma.item() == pytest.approx(math.exp(found.x), rel=1e-6)
    assert sigma.item() ** 2 == pytest.approx(nn.functional.mse_loss(recon_x, x).item(), rel=1e-12)


# --------------------------------------------------------------------------------------------------- KL divergence


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_kl_is_that_of_any_two_gaussians_at_a_diagonal_covariance_and_the_prior(posterior, dtype, rtol):
    """Item 2.3: where the formula for any covariances starts from."""
    mu, logvar = posterior
    prior = MultivariateNormal(torch.zeros_like(mu), torch.eye(5, dtype=torch.float64))
    exact = kl_divergence(MultivariateNormal(mu, logvar.exp().diag_embed()), prior)
    kl = kl_diag_normal(mu.to(dtype), logvar.to(dtype), reduction="none")
    assert kl.dtype == dtype
    torch.testing.assert_close(kl.double(), exact, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reach", [1e-6, 1e-3, 1.0, 80.0])
def test_kl_is_never_negative_and_zero_only_at_the_prior(reach, dtype):
    logvar = torch.arange(-10_000, 10_001, dtype=dtype) * (reach / 10_000)
    kl = kl_per_dimension(torch.zeros_like(logvar), logvar)
    assert kl.isfinite().all()
    assert (kl >= 0).all()
    assert kl[10_000] == 0
    assert (kl[logvar.abs() > 1e-6] > 0).all()
    assert (kl_per_dimension(logvar, torch.zeros_like(logvar))[logvar != 0] > 0).all()


def test_kl_keeps_its_digits_near_the_prior():
    """In float32, 1 + v - e^v would be 0 or -1e-7 here; the exact value is v^2 / 4 + v^3 / 12 + ..."""
    logvar = torch.tensor([1e-3, -1e-3, 3e-3])
    exact = logvar.double() ** 2 / 4 + logvar.double() ** 3 / 12 + logvar.double() ** 4 / 48
    torch.testing.assert_close(kl_per_dimension(0 * logvar, logvar).double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("extreme", [-80.0, 80.0])
def test_extreme_log_variances_have_a_finite_kl_and_gradient(extreme, dtype, rtol):
    logvar = torch.tensor([[extreme]], dtype=dtype, requires_grad=True)
    kl = kl_diag_normal(torch.zeros_like(logvar), logvar)
    kl.backward()
    assert kl.item() == pytest.approx(0.5 * (math.exp(extreme) - 1 - extreme), rel=rtol)
    assert logvar.grad.item() == pytest.approx(0.5 * (math.exp(extreme) - 1), rel=rtol)


def test_kl_takes_one_distribution_without_a_batch(posterior):
    mu, logvar = (value[0] for value in posterior)
    for reduction in ("mean", "sum", "none"):
        assert torch.equal(kl_diag_normal(mu, logvar, reduction), kl_diag_normal(mu[None], logvar[None]))


@pytest.mark.parametrize("shape", [(8, 1), (5,), (1, 5), (5, 8)])
def test_kl_refuses_shapes_that_differ(posterior, shape):
    with pytest.raises(ValueError, match="mu and logvar must have the same shape"):
        kl_diag_normal(posterior[0], torch.zeros(shape, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("batch", [1, 8])
def test_reductions_are_over_the_batch_only(digits, blurred, posterior, batch):
    images, codes = (digits[:batch], blurred[:batch]), [value[:batch].float() for value in posterior]
    arguments_of = {negative_log_likelihood: images, kl_diag_normal: codes, elbo_loss: (*images, *codes)}
    for loss, arguments in arguments_of.items():
        none, total, mean = (loss(*arguments, reduction=name) for name in ("none", "sum", "mean"))
        assert none.shape == (batch,)
        torch.testing.assert_close(total, none.sum())
        torch.testing.assert_close(mean, none.sum() / batch)
        torch.testing.assert_close(loss(*arguments), mean)
        with pytest.raises(ValueError, match="'mean', 'sum' or 'none', not 'average'"):
            loss(*arguments, reduction="average")


@pytest.mark.parametrize(("given", "sigma"), [({}, 1.0), ({"sigma": 0.2}, 0.2), ({"sigma": torch.tensor([3.0])}, 3.0)])
def test_loss_and_its_terms_are_the_log_densities_that_they_stand_for(digits, blurred, posterior, given, sigma):
    """-log p(x|z), KL and their sum in torch.distributions; the standard deviation of 1 and the mean are defaults."""
    x, recon_x, (mu, logvar) = digits.double(), blurred.double(), posterior
    nll = -Independent(Normal(recon_x, sigma), 3).log_prob(x)
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    terms = elbo_loss(x, recon_x, mu, logvar, **given, return_parts=True)
    for term, exact in zip(terms, (nll + kl, nll, kl), strict=True):
        torch.testing.assert_close(term, exact.mean(), rtol=1e-12, atol=0)
    assert elbo_loss(x, recon_x, mu, logvar, **given) == terms[0]
    assert negative_log_likelihood(x, recon_x, **given) == terms[1]


@pytest.mark.parametrize("shape", [(4, 1, 3), (3, 3), (1, 3), (3,)])
def test_loss_refuses_codes_that_are_not_one_for_each_image(shape):
    """Else they are broadcast against the images' likelihoods."""
    x, codes = torch.zeros(4, 6), torch.zeros(shape)
    with pytest.raises(ValueError, match=r"mu and logvar must be \(B, K\) for 4 images"):
        elbo_loss(x, x, codes, codes)


def test_gradients_are_those_of_finite_differences(posterior):
    x, recon_x = random_tensor(8, 2, 3, seed=3), random_tensor(8, 2, 3, seed=4).requires_grad_()
    mu, logvar = (value.clone().requires_grad_() for value in posterior)
    sigma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: elbo_loss(x, *inputs), (recon_x, mu, logvar, sigma))


# -------------------------------------------------------------------------------------- importance-weighted bound


class LinearGaussian(nn.Module):
    """Probabilistic PCA (Tipping & Bishop 1999): x = W z + b + sigma epsilon, where all is known in closed form.

    The columns of W are orthogonal, so that the exact posterior is diagonal. `encode` returns it, moved by `shift`
    standard deviations and its log-variance by `stretch`. The draws of z are the rows of `epsilon`, in their order.
    """

    def __init__(self, shift=0.0, stretch=0.0, seed=0):
        super().__init__()
        self.weight = torch.linalg.qr(random_tensor(6, 3, seed=1)).Q * torch.tensor([2.0, 1.0, 0.5])
        self.bias = random_tensor(6, seed=2)
        self.sigma = torch.tensor(0.4, dtype=torch.float64)
        self.shift, self.stretch = shift, stretch
        self.epsilon = random_tensor(150_000, 3, seed=seed)

    def marginal(self):
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(6)
        return multivariate_normal(self.bias.numpy(), covariance.numpy())

    def encode(self, x):
        precision = 1 + self.weight.square().sum(0) / self.sigma**2
        mean = (x - self.bias) @ self.weight / self.sigma**2 / precision
        logvar = (self.stretch - precision.log()).expand_as(mean)
        return mean + self.shift / precision.sqrt(), logvar

    def reparameterize(self, mu, logvar):
        epsilon, self.epsilon = self.epsilon.tensor_split([len(mu)])
        return mu + (0.5 * logvar).exp() * epsilon

    def decode(self, z):
        return z @ self.weight.T + self.bias


def linear_gaussian_data(count):
    """Return points (count, 6) of the linear-Gaussian model, and their exact log-densities."""
    marginal = LinearGaussian().marginal()
    x = marginal.rvs(count, random_state=0).reshape(count, 6)
    return torch.from_numpy(x), torch.from_numpy(marginal.logpdf(x).reshape(count))


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("batch", [1, 50])
def test_bound_is_exact_for_the_exact_posterior_and_has_no_gradient(samples, batch):
    x, log_px = linear_gaussian_data(batch)
    bound = importance_weighted_log_likelihood(LinearGaussian(), x.requires_grad_(), samples)
    torch.testing.assert_close(bound, log_px)
    assert not bound.requires_grad


def test_bound_rises_from_the_elbo_to_the_exact_log_likelihood():
    shift, stretch = 0.5, 0.6
    x, log_px = linear_gaussian_data(400)
    model = LinearGaussian(shift, stretch)
    gaps = {s: log_px - importance_weighted_log_likelihood(model, x, s, samples_at_once=64) for s in (1, 4, 16, 256)}
    standard_error = {s: gap.std().item() / math.sqrt(len(gap)) for s, gap in gaps.items()}
    gaps = {s: gap.mean().item() for s, gap in gaps.items()}
    # The ELBO is short of log p(x) by KL(q || posterior): here that of N(shift, e^stretch) from N(0, 1), three times.
    kl_to_posterior = kl_diag_normal(torch.full((3,), shift), torch.full((3,), stretch)).item()
    assert gaps[1] == pytest.approx(kl_to_posterior, abs=STANDARD_ERRORS * standard_error[1])
    assert gaps[1] > 2 * gaps[4] > 4 * gaps[16] > 8 * gaps[256]
    assert gaps[256] > -STANDARD_ERRORS * standard_error[256]
    assert abs(gaps[256]) < 0.02


@pytest.mark.parametrize("samples_at_once", [1, 4, 50])
def test_bound_does_not_depend_on_how_many_codes_are_decoded_at_once(samples_at_once):
    x, _ = linear_gaussian_data(5)
    bound = importance_weighted_log_likelihood(LinearGaussian(shift=1.0), x, 10, samples_at_once=10)
    portions = importance_weighted_log_likelihood(LinearGaussian(shift=1.0), x, 10, samples_at_once)
    torch.testing.assert_close(portions, bound)


def test_bound_survives_densities_far_below_the_smallest_number():
    """log p(x|z) is about -1e6 here: its exponential is 0 in any precision."""
    x, _ = linear_gaussian_data(3)
    bound = importance_weighted_log_likelihood(LinearGaussian(), x + 1000, 20)
    torch.testing.assert_close(bound, torch.from_numpy(LinearGaussian().marginal().logpdf(x + 1000)))


@pytest.mark.parametrize("numbers", [{"samples": 0}, {"samples": -1}, {"samples_at_once": 0}])
def test_bound_refuses_fewer_than_one_sample(numbers):
    with pytest.raises(ValueError, match="must be at least 1"):
        importance_weighted_log_likelihood(LinearGaussian(), linear_gaussian_data(2)[0], **numbers)
