"""Item 2.2: the two terms of the evidence lower bound (ELBO), and a tighter bound to judge it by.

For an image x with code z ~ q(z|x) the model's log-likelihood is bounded below by

    log p(x) >= ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)),      Kingma & Welling 2014, eq. (3)

with a Gaussian decoder p(x|z) = N(x; recon_x, sigma^2 I), a diagonal Gaussian posterior q(z|x) = N(mu, diag e^logvar)
and the prior p(z) = N(0, I). Training minimises the negative ELBO. All public functions but the last, which takes a
model, are pure functions of tensors.
"""

import math

import torch

LOG_2PI = math.log(2 * math.pi)


def _reduce(per_item, reduction):
    """Reduce one value per image, (B,), over the batch in the way that torch's losses name."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    return per_item if reduction == "none" else getattr(per_item, reduction)()


def _check(**tensors):
    """Refuse what would give a wrong number: shapes that broadcast, and integers, whose squares wrap around.

    For example 200 ** 2 is 64 in 8 bits, and (784,) minus (B, 784) has a shape, though not the one that was meant.
    """
    (name, tensor), (other_name, other) = tensors.items()
    if tensor.shape != other.shape or not (tensor.is_floating_point() and other.is_floating_point()):
        found = " and ".join(f"{value.dtype} {tuple(value.shape)}" for value in tensors.values())
        raise ValueError(f"{name} and {other_name} must be floating-point numbers of the same shape, not {found}")


def negative_log_likelihood(x, recon_x, sigma=1.0, reduction="mean"):
    """Negative log-density of images under a Gaussian decoder, -log N(x; recon_x, sigma^2 I), all constants included.

    Parameters
    ----------
    x, recon_x : torch.Tensor, shape (B, ...)
        Images and their reconstructions (the decoder's means). A single image is (1, ...).
    sigma : float or torch.Tensor, shape () or (1,)
        Standard deviation of every pixel, in the unit of x; for a trained `VAE` it is its `sigma`, not the default.
    reduction : {"mean", "sum", "none"}
        Over the batch; pixels are always summed.

    Returns
    -------
    torch.Tensor
        Nats: a scalar, per image for "mean", or shape (B,) for "none".

    Raises
    ------
    ValueError
        If the shapes differ or have no batch, the images are integers, sigma is not one positive number, or the
        reduction is unknown.
    """
    _check(x=x, recon_x=recon_x)
    if x.ndim < 2:
        raise ValueError(f"x and recon_x must be batches of images (B, ...), not {tuple(x.shape)}")
    sigma = torch.as_tensor(sigma, dtype=recon_x.dtype, device=recon_x.device)
    if not (sigma.shape in {(), (1,)} and sigma > 0 and sigma.isfinite()):
        raise ValueError(f"sigma must be one positive, finite number, not {sigma.tolist()}")
    squared_error = (x - recon_x).square().flatten(1).sum(1)
    pixels = math.prod(x.shape[1:])
    per_image = 0.5 * squared_error / sigma.square() + pixels * (sigma.log() + 0.5 * LOG_2PI)
    return _reduce(per_image, reduction)


def kl_diag_normal(mu, logvar, reduction="mean"):
    """KL divergence of a diagonal Gaussian from the prior, KL(N(mu, diag e^logvar) || N(0, I)).

    -1/2 sum_k (1 + logvar_k - mu_k^2 - e^logvar_k): Kingma & Welling 2014, appendix B; proved in REPORT.md, item 2.3.

    Parameters
    ----------
    mu, logvar : torch.Tensor, shape (B, K) or (K,)
        Mean and log-variance of each latent dimension.
    reduction : {"mean", "sum", "none"}
        Over the batch; latent dimensions are always summed.

    Returns
    -------
    torch.Tensor
        Nats: a scalar, per image for "mean", or shape (B,) for "none" (a scalar for inputs of shape (K,)).

    Raises
    ------
    ValueError
        If the shapes differ or are none of these, the numbers are integers, or the reduction is unknown.
    """
    return _reduce(kl_per_dimension(mu, logvar).sum(-1), reduction)


def kl_per_dimension(mu, logvar):
    """Each latent dimension's share of `kl_diag_normal`, in nats; same shape as mu, same errors."""
    _check(mu=mu, logvar=logvar)
    if mu.ndim not in {1, 2}:
        raise ValueError(f"mu and logvar must have shape (B, K) or (K,), not {tuple(mu.shape)}")
    # expm1(v) - v keeps more digits near v = 0, where 1 + v - e^v cancels: a collapsed dimension has a KL of about 0.
    return 0.5 * (mu.square() + torch.expm1(logvar) - logvar)


def elbo_loss(x, recon_x, mu, logvar, sigma=1.0, reduction="mean"):
    """Negative ELBO: `negative_log_likelihood` plus `kl_diag_normal`, with their parameters and errors.

    With recon_x decoded from one draw z ~ q(z|x) this is an unbiased estimate of the negative bound, in nats. It also
    raises `ValueError` if mu and logvar are not (B, K) for B images.
    """
    if mu.ndim != 2 or mu.shape[:1] != x.shape[:1]:
        raise ValueError(f"mu and logvar must be (B, K) for images {tuple(x.shape)}, not {tuple(mu.shape)}")
    return negative_log_likelihood(x, recon_x, sigma, reduction) + kl_diag_normal(mu, logvar, reduction)


def optimal_sigma(x, recon_x):
    """Maximum-likelihood standard deviation of the decoder: the root of the mean squared error, a scalar tensor.

    It is in the unit of x. There the derivative of `negative_log_likelihood` with respect to sigma is zero (the
    optimal sigma of Rybkin et al. 2021).

    Raises
    ------
    ValueError
        If the shapes differ or the images are integers.
    """
    _check(x=x, recon_x=recon_x)
    return (x - recon_x).square().mean().sqrt()


def importance_weighted_log_likelihood(model, x, samples=1000, samples_at_once=2):
    """Estimate the importance-weighted lower bound on log p(x): tighter than the ELBO, and exact as `samples` grows.

    log (1/S) sum_s p(x|z_s) p(z_s) / q(z_s|x) with z_s ~ q(z|x): Burda et al. 2016, eq. (8).

    Parameters
    ----------
    model : VAE
        Or anything with its `encode`, `reparameterize`, `decode` and `sigma`.
    x : torch.Tensor, shape (B, ...)
        Images.
    samples : int
        S, draws of z for each image, from torch's global generator; S = 1 gives the ELBO in expectation.
    samples_at_once : int
        Draws decoded together: memory is that many reconstructions of x.

    Returns
    -------
    torch.Tensor, shape (B,)
        Nats per image, without gradient.

    Raises
    ------
    ValueError
        If `samples` or `samples_at_once` is less than 1.
    """
    if samples < 1 or samples_at_once < 1:
        raise ValueError(f"samples and samples_at_once must be at least 1, not {samples} and {samples_at_once}")
    log_weights = []
    with torch.no_grad():
        mu, logvar = model.encode(x)
        for start in range(0, samples, samples_at_once):
            log_weights.append(_log_weights(model, x, mu, logvar, min(samples_at_once, samples - start)))
    return torch.logsumexp(torch.cat(log_weights), dim=0) - math.log(samples)


def _log_weights(model, x, mu, logvar, draws):
    """log p(x|z) + log p(z) - log q(z|x) for `draws` codes of each image, shape (draws, B)."""
    mu, logvar = mu.repeat(draws, 1), logvar.repeat(draws, 1)
    z = model.reparameterize(mu, logvar)
    epsilon = (z - mu) * torch.exp(-0.5 * logvar)
    log_prior_over_posterior = 0.5 * (epsilon.square() + logvar - z.square()).sum(1)  # log 2 pi cancels
    recon_x = model.decode(z).flatten(1)
    nll = negative_log_likelihood(x.flatten(1).repeat(draws, 1), recon_x, model.sigma, reduction="none")
    return (log_prior_over_posterior - nll).view(draws, len(x))
