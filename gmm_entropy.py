"""Problem 1: the differential entropy of a Gaussian mixture, by Monte Carlo and by exact references.

The entropy H(p) = E_p[-log p] of a mixture has no closed form, because the logarithm stands outside the sum over
components. Sampling from p and averaging -log p estimates it (1.2). Where a component is as rare as 1e-5 that average
is blind to what the rare components add (1.3), and a control variate with multiple importance sampling sees it.
Every entropy is in nats, every array float64. Points enter and leave as (n, d); inside they are rows, (d, n), so that
each coordinate is contiguous. Mathematics first, then the numbers of the report, then the figures.
"""

import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy.integrate import cubature
from scipy.linalg import solve_triangular
from scipy.special import entr, logsumexp
from threadpoolctl import ThreadpoolController

from files import save_figure

# Three shapes (tilted up, tilted down, nearly round) near enough to overlap, far enough to be told apart: with
# components that coincide, or that never meet, the mixture's entropy would have a closed form.
MEANS = ((-2.0, 0.5), (0.5, 0.0), (2.0, 2.2))
COVARIANCES = (((1.0, 0.6), (0.6, 0.8)), ((1.2, -0.7), (-0.7, 0.9)), ((0.6, 0.1), (0.1, 0.5)))
BALANCED_WEIGHTS = (0.2, 0.5, 0.3)
DEGENERATE_WEIGHTS = (1e-5, 1 - 2e-5, 1e-5)
SECOND = 1  # index of N(mu_2, Sigma_2), the single Gaussian of 1.3

N_SAMPLES = 100_000
N_MAX = 1_000_000  # samples at the right end of the plots
REPLICATES = 8  # independent repetitions in the plots
CALIBRATION_RUNS = 50  # over which errors are compared with their standard errors

GAP_METHODS = ("plain", "control_variate", "multiple_importance")  # of `entropy_gap`
CHUNK = 65_536  # points worked on at once: fewer, and threads wait for the interpreter lock; more, and for memory
TOLERANCE = 1e-8  # weights' sum; asymmetry of a covariance relative to its largest entry
QUADRATURE_RADIUS = 10.0  # standard deviations; exp(-10**2 / 2) = 2e-22 lies outside
QUADRATURE_TOLERANCE = 1e-11  # nats
QUADRATURE_ROUNDING = 1e-13  # relative; what double precision leaves of a very large entropy


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error (nats), and the number of samples behind it."""

    value: float
    standard_error: float
    n: int


class GMM:
    """Gaussian mixture p(x) = sum_k weights[k] N(x; means[k], covariances[k]).

    Parameters
    ----------
    weights : array_like, shape (K,)
        Non-negative, summing to 1. A component of weight 0 is allowed.
    means : array_like, shape (K, d)
    covariances : array_like, shape (K, d, d)
        Symmetric and positive definite.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, the weights are no distribution, or a covariance is not
        symmetric or not positive definite.
    """

    def __init__(self, weights, means, covariances):
        weights, means, covariances = (np.array(values, dtype=float) for values in (weights, means, covariances))
        found = weights.shape, means.shape, covariances.shape
        if means.ndim != 2 or means.size == 0 or found != (means.shape[:1], means.shape, means.shape + means.shape[1:]):
            raise ValueError(f"weights, means, covariances have shapes {found}, expected (K,), (K, d), (K, d, d)")
        _require_finite(weights, "weights")
        _require_finite(means, "means")
        if weights.min() < 0 or abs(weights.sum() - 1) > TOLERANCE:
            raise ValueError(f"weights are {weights.tolist()}, expected non-negative with sum 1")
        self.weights, self.means, self.covariances = weights / math.fsum(weights), means, covariances
        self.cholesky = np.stack([_cholesky(c, f"covariance {k}") for k, c in enumerate(covariances)])
        self._whiteners = np.stack([solve_triangular(f, np.eye(len(f)), lower=True) for f in self.cholesky])
        self._log_normalizers = np.array([-_log_root_det(factor) for factor in np.sqrt(2 * np.pi) * self.cholesky])
        with np.errstate(divide="ignore"):  # log 0 = -inf is the log-weight of an absent component
            self._log_weights = np.log(self.weights)

    def sample(self, n, rng):
        """Draw `n` independent points, in random order.

        Parameters
        ----------
        n : int
        rng : numpy.random.Generator

        Returns
        -------
        points : ndarray, shape (n, d)
        labels : ndarray of int, shape (n,)
            Index of the component that generated each point.

        Raises
        ------
        ValueError
            If `n` is negative.
        """
        counts = rng.multinomial(n, self.weights)
        points = self._draw(counts, rng).T
        order = rng.permutation(n)
        return points[order], np.repeat(np.arange(len(counts)), counts)[order]

    def log_prob(self, points):
        """Log-density at `points`, finite to about 1e150 standard deviations (beyond, squares overflow to -inf).

        Parameters
        ----------
        points : array_like, shape (n, d)

        Returns
        -------
        ndarray, shape (n,)
            Nats.

        Raises
        ------
        ValueError
            If `points` has another shape or holds a NaN or an infinity.
        """
        points = np.asarray(points, dtype=float)
        if points.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"points have shape {points.shape}, expected (n, {self.means.shape[1]})")
        log_density = np.empty(len(points))
        for start in range(0, len(points), CHUNK):
            chunk = slice(start, start + CHUNK)
            _require_finite(points[chunk], "points")
            log_density[chunk] = self._log_density(np.ascontiguousarray(points[chunk].T))
        return log_density

    def _draw(self, counts, rng):
        """Draw counts[k] points from each component k, and return them as rows (d, n), grouped by component."""
        rows = np.empty((self.means.shape[1], counts.sum()))
        groups = np.split(rows, np.cumsum(counts)[:-1], axis=1)  # views
        for mean, factor, group in zip(self.means, self.cholesky, groups, strict=True):
            np.add(factor @ rng.standard_normal(group.shape), mean[:, None], out=group)
        return rows

    def _component_log_densities(self, rows):
        """log N(x; mean_k, covariance_k) for each component, shape (K, n)."""
        squares = np.empty((len(self.weights), rows.shape[1]))
        with np.errstate(over="ignore"):
            for mean, whitener, square in zip(self.means, self._whiteners, squares, strict=True):
                # The mean goes first: whitening x and mean apart would cancel digits far from the origin.
                z = whitener @ (rows - mean[:, None])
                np.einsum("dn,dn->n", z, z, out=square)
        squares *= -0.5
        squares += self._log_normalizers[:, None]
        return squares

    def _log_density(self, rows):
        terms = self._component_log_densities(rows)
        terms += self._log_weights[:, None]
        return _log_sum_exp(terms)


def gaussian_entropy(covariance):
    """Entropy of a Gaussian, log det(2 pi e covariance) / 2 (Cover & Thomas 2006, Theorem 8.4.1).

    Parameters
    ----------
    covariance : array_like, shape (d, d)

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        If `covariance` is not a finite, symmetric, positive definite matrix.
    """
    return float(_log_root_det(np.sqrt(2 * np.pi * np.e) * _cholesky(covariance, "covariance")))


def mc_entropy(gmm, n, seed=0, threads=None):
    """Item 1.2: the mean of -log p over `n` samples from p, an unbiased estimate of the entropy.

    In short, `points, _ = gmm.sample(n, rng)` and `-gmm.log_prob(points).mean()`, though with other random numbers.
    The samples are drawn, used and dropped chunk by chunk, so memory does not grow with `n`. Each chunk has a random
    stream of its own, so the value does not depend on `threads`.

    Parameters
    ----------
    gmm : GMM
    n : int
        Number of samples.
    seed : int or sequence of int
    threads : int, optional
        By default, one for each processor.

    Returns
    -------
    Estimate
        Nats. The standard error of a single sample is NaN.

    Raises
    ------
    ValueError
        If `n` < 1.
    """
    mean, variance_of_mean = _mean(partial(_surprise, gmm), _chunks(n, seed), threads)
    return Estimate(float(mean), math.sqrt(variance_of_mean), n)


def entropy_gap(gmm, component, n, seed=0, method="multiple_importance", threads=None):
    """Item 1.3: H(p) - H(N_c), how far the mixture's entropy is from that of its component c.

    The methods, all unbiased:

    ``"plain"``
        The mean of -log p under p, less the closed form of H(N_c).
    ``"control_variate"``
        -log N_c has a known mean under p, so that only log N_c - log p is averaged. What rare components add still
        hangs on the few samples that they happen to generate, and so does the standard error.
    ``"multiple_importance"``
        The same difference, averaged over an equal share of samples from each component and weighted by p over the
        equal-weight mixture: the balance heuristic (Veach & Guibas 1995).

    Parameters
    ----------
    gmm : GMM
    component : int
        Index c, from 0.
    n : int
        Number of samples, at least one for each component of positive weight.
    seed, threads
        As in `mc_entropy`.
    method : str

    Returns
    -------
    Estimate
        Nats.

    Raises
    ------
    ValueError
        If `component`, `n` or `method` is out of range.
    """
    strata, offset = _gap_strata(gmm, component, method)
    mean, standard_error = _stratified(partial(_mean, threads=threads), strata, n, seed)
    return Estimate(float(offset + mean), float(standard_error), n)


def entropy_bounds(gmm):
    """Closed-form bounds on the entropy from the components' pairwise distances.

    Kolchinsky & Tracey 2017: H_D = sum_k w_k H(N_k) - sum_i w_i log sum_j w_j exp(-D(N_i, N_j)) is a lower
    bound for D the Bhattacharyya distance, and an upper bound for D the Kullback-Leibler divergence.

    Returns
    -------
    lower, upper : float
        Nats.
    """
    indices = range(len(gmm.weights))
    entropies = np.array([gaussian_entropy(covariance) for covariance in gmm.covariances])
    bhattacharyya = np.array([[_bhattacharyya(gmm, i, j) for j in indices] for i in indices])
    kullback_leibler = np.array([[_cross_entropy(gmm, i, j) for j in indices] for i in indices]) - entropies[:, None]

    def bound(distances):
        return float(gmm.weights @ (entropies - logsumexp(-distances, b=gmm.weights, axis=1)))

    return bound(bhattacharyya), bound(kullback_leibler)


def quadrature_entropy(gmm):
    """Entropy of a mixture in the plane by adaptive cubature, to about `QUADRATURE_TOLERANCE`.

    H(p) = sum_k w_k E_{N_k}[-log p], each expectation in the coordinates that whiten its component. The domain is
    cut at the corners of the boxes around the other components, so that a narrow one is not stepped over.
    A needle that lies across the axes of those coordinates, thinner than 1e-3 of its length, can still be missed.

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        If the mixture's dimension is not 2.
    ArithmeticError
        If the cubature does not reach its tolerance.
    """
    if gmm.means.shape[1] != 2:
        raise ValueError(f"quadrature_entropy needs a mixture in 2 dimensions, found {gmm.means.shape[1]}")
    return float(sum(gmm.weights[k] * _expected_surprise(gmm, k) for k in np.flatnonzero(gmm.weights)))


def component_counts(gmm, n, seed=0):
    """How many of the samples of `mc_entropy(gmm, n, seed)` each component generates, shape (K,)."""
    return sum(rng.multinomial(size, gmm.weights) for size, rng in _chunks(n, seed))


class Running(NamedTuple):
    """Estimates after each of `counts` samples, (m,); `values` and `standard_errors` (replicates, m) are in nats."""

    counts: np.ndarray
    values: np.ndarray
    standard_errors: np.ndarray


def running_entropy(gmm, n_max=N_MAX, seed=0, replicates=REPLICATES):
    """The estimate of `mc_entropy` as its samples come in, from 10 to `n_max`, in independent replicates."""
    return _running([partial(_surprise, gmm)], 0.0, n_max, seed, replicates)


def running_gap(gmm, component, method, n_max=N_MAX, seed=0, replicates=REPLICATES):
    """The estimate of `entropy_gap` as its samples come in, from 10 to `n_max`, in independent replicates."""
    return _running(*_gap_strata(gmm, component, method), n_max, seed, replicates)


# What the estimators share: the mean of the values at random samples, which a function (size, rng) draws and evaluates.
# A stratum is such a function; samples shared equally among several estimate the mean of their expectations.


def _surprise(gmm, size, rng):
    """-log p at `size` samples from p."""
    rows = gmm._draw(rng.multinomial(size, gmm.weights), rng)
    return -gmm._log_density(rows)


def _gap_strata(gmm, component, method):
    """Strata, and an offset: the mean of the strata's expectations plus the offset is the gap."""
    if not 0 <= component < len(gmm.weights):
        raise ValueError(f"component is {component}, expected 0 to {len(gmm.weights) - 1}")
    if method not in GAP_METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(GAP_METHODS)}")
    entropy = gaussian_entropy(gmm.covariances[component])
    if method == "plain":
        return [partial(_surprise, gmm)], -entropy
    present = np.flatnonzero(gmm.weights)

    def log_ratio(weights, size, rng):
        terms = gmm._component_log_densities(gmm._draw(rng.multinomial(size, weights), rng))
        log_p = _log_sum_exp(terms + gmm._log_weights[:, None])
        if method == "control_variate":
            return terms[component] - log_p
        log_q = _log_sum_exp(terms[present] - np.log(len(present)))  # the equal-weight mixture
        return (terms[component] - log_p) * np.exp(log_p - log_q)

    proposals = [gmm.weights] if method == "control_variate" else np.eye(len(gmm.weights))[present]
    cross_entropies = [_cross_entropy(gmm, k, component) for k in range(len(gmm.weights))]
    return [partial(log_ratio, weights) for weights in proposals], gmm.weights @ cross_entropies - entropy


def _chunks(n, seed, stratum=0, strata=1):
    """Yield the size and the random generator of each chunk of one stratum's equal share of `n` samples."""
    if n < strata:
        raise ValueError(f"n is {n}, expected at least {strata}")
    share = (n + stratum) // strata
    for start in range(0, share, CHUNK):
        stream = np.random.SeedSequence(seed, spawn_key=(stratum, start // CHUNK))
        yield min(CHUNK, share - start), np.random.default_rng(stream)


def _mean(draw_values, chunks, threads):
    """Mean of the values over the chunks, and the variance of that mean (NaN for a single value)."""

    def moments(chunk):
        values = draw_values(*chunk)
        mean = values.mean()
        values -= mean
        return len(values), mean, np.square(values, out=values).sum()

    n, mean, squares = 0, 0.0, 0.0
    for size, chunk_mean, chunk_squares in _map_in_order(moments, chunks, threads or os.cpu_count()):
        difference = chunk_mean - mean  # Chan, Golub & LeVeque 1983
        squares += chunk_squares + difference**2 * n * size / (n + size)
        n += size
        mean += difference * size / n
    return mean, squares / (n - 1) / n if n > 1 else math.nan


def _map_in_order(function, items, threads):
    """Like `map`, in threads (numpy lets go of the interpreter lock), with only a few items under way at once."""
    np.empty(4_000_000)  # freed at once: from then on glibc keeps blocks up to this size, which are slow to map anew
    # The matrix library's own threads would contend with these.
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(function, item) for item in islice(items, 4 * threads))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))


_libraries = cache(ThreadpoolController)  # looking for them takes a millisecond


def _stratified(estimator, strata, n, seed):
    """Mean of the strata's means, and its standard error: the variances of independent strata add."""
    parts = [estimator(draw_values, _chunks(n, seed, k, len(strata))) for k, draw_values in enumerate(strata)]
    means, variances = zip(*parts, strict=True)
    return np.mean(means, axis=0), np.sqrt(np.sum(variances, axis=0)) / len(strata)


def _running(strata, offset, n_max, seed, replicates):
    counts = np.unique(np.geomspace(10, n_max, 200).astype(int))
    estimator = partial(_running_mean, counts=counts // len(strata))
    seeds = np.random.SeedSequence(seed).generate_state(replicates).tolist()
    runs = [_stratified(estimator, strata, counts[-1], replicate_seed) for replicate_seed in seeds]
    values, standard_errors = np.stack(runs, axis=1)
    return Running(counts, offset + values, standard_errors)


def _running_mean(draw_values, chunks, counts):
    """As `_mean`, over the first n values, for each n of `counts` (all at least 2)."""
    # A chunk comes grouped by component; permuted, each of its beginnings is a fair sample.
    values = np.concatenate([rng.permutation(draw_values(size, rng)) for size, rng in chunks])
    center = values.mean()  # near the running mean, so that the difference of squares keeps its digits
    deviations = values - center
    mean = np.cumsum(deviations)[counts - 1] / counts
    mean_square = np.cumsum(deviations**2)[counts - 1] / counts
    return center + mean, np.maximum(mean_square - mean**2, 0) / (counts - 1)


# Formulas for Gaussians.


def _cross_entropy(gmm, i, j):
    """E_{N_i}[-log N_j] in nats: the trace and the squared distance in the coordinates that whiten j."""
    trace = np.sum((gmm._whiteners[j] @ gmm.cholesky[i]) ** 2)
    distance = np.sum((gmm._whiteners[j] @ (gmm.means[i] - gmm.means[j])) ** 2)
    return (trace + distance) / 2 - gmm._log_normalizers[j]


def _bhattacharyya(gmm, i, j):
    """-log of the integral of sqrt(N_i N_j), in nats."""
    factor = np.linalg.cholesky((gmm.covariances[i] + gmm.covariances[j]) / 2)
    z = solve_triangular(factor, gmm.means[i] - gmm.means[j], lower=True)
    return z @ z / 8 + _log_root_det(factor) - (_log_root_det(gmm.cholesky[i]) + _log_root_det(gmm.cholesky[j])) / 2


def _expected_surprise(gmm, k):
    """E_{N_k}[-log p] in two dimensions, nats."""

    def integrand(z):
        rows = gmm.means[k][:, None] + gmm.cholesky[k] @ z.T
        return np.exp(-np.sum(z**2, axis=1) / 2) / (2 * np.pi) * -gmm._log_density(rows)

    limits = np.full(2, QUADRATURE_RADIUS)
    centers = (gmm.means - gmm.means[k]) @ gmm._whiteners[k].T
    reaches = QUADRATURE_RADIUS * np.linalg.norm(gmm._whiteners[k] @ gmm.cholesky, axis=2)
    corners = np.concatenate([centers - reaches, centers + reaches])
    cuts = list(corners[np.all(np.abs(corners) < limits, axis=1)])
    result = cubature(integrand, -limits, limits, points=cuts, atol=QUADRATURE_TOLERANCE, rtol=QUADRATURE_ROUNDING)
    if result.status != "converged":
        raise ArithmeticError(f"component {k}: the cubature's error is {result.error:.1e}, not {QUADRATURE_TOLERANCE}")
    return result.estimate


def _log_root_det(factor):
    """log sqrt det C from the Cholesky factor of C."""
    return np.sum(np.log(np.diagonal(factor)))


def _log_sum_exp(terms):
    """log sum_k exp(terms[k]), shape (n,); overwrites `terms`. SciPy's takes several times as long on a chunk."""
    # A peak of -inf, where every square overflowed, would give -inf - -inf = NaN.
    peak = terms.max(axis=0, initial=np.finfo(float).min)
    terms -= peak
    np.exp(terms, out=terms)
    with np.errstate(divide="ignore"):
        return peak + np.log(terms.sum(axis=0))


def _cholesky(covariance, name):
    covariance = np.asarray(covariance, dtype=float)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or covariance.size == 0:
        raise ValueError(f"{name} has shape {covariance.shape}, expected (d, d)")
    _require_finite(covariance, name)
    if np.abs(covariance - covariance.T).max() > TOLERANCE * np.abs(covariance).max():
        raise ValueError(f"{name} is {covariance.tolist()}, expected a symmetric matrix")
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise ValueError(f"{name} is {covariance.tolist()}, expected a positive definite matrix") from None


def _require_finite(values, name):
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: found a NaN or an infinity, expected finite numbers")


# The numbers of the report.


def solve_problem_1(seed=0):
    """Every number of Problem 1, in nats, as a plain dictionary with the keys `balanced` and `degenerate`."""
    balanced, degenerate, single = _mixtures()
    estimate = mc_entropy(single, N_SAMPLES, seed)
    alone = {
        "single_gaussian_estimate": estimate.value,
        "single_gaussian_estimate_error": estimate.standard_error,
    }
    gap = _gap_summary(degenerate, seed)
    return {"balanced": _summary(balanced, seed), "degenerate": _summary(degenerate, seed) | alone | gap}


def _mixtures():
    """The mixtures of 1.1 and of 1.3, and the single Gaussian N(mu_2, Sigma_2) as a mixture of one."""
    single = GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])
    return *(GMM(weights, MEANS, COVARIANCES) for weights in (BALANCED_WEIGHTS, DEGENERATE_WEIGHTS)), single


def _summary(gmm, seed):
    estimate = mc_entropy(gmm, N_SAMPLES, seed)
    lower, upper = entropy_bounds(gmm)
    return {
        "weights": gmm.weights.tolist(),
        "means": gmm.means.tolist(),
        "covariances": gmm.covariances.tolist(),
        "samples": estimate.n,
        "seed": seed,
        "entropy": estimate.value,
        "standard_error": estimate.standard_error,
        "quadrature": quadrature_entropy(gmm),
        "lower_bound": lower,
        "upper_bound": upper,
        "single_gaussian": gaussian_entropy(gmm.covariances[SECOND]),
        # Conditioning on the component (Cover & Thomas 2006, section 8.6): mean <= H(p) <= mean + mixing entropy.
        "mean_component_entropy": float(gmm.weights @ [gaussian_entropy(c) for c in gmm.covariances]),
        "mixing_entropy": float(entr(gmm.weights).sum()),
    }


def _gap_summary(gmm, seed):
    exact = quadrature_entropy(gmm) - gaussian_entropy(gmm.covariances[SECOND])
    methods = {method: _method_summary(gmm, method, exact, seed) for method in GAP_METHODS}
    return {
        "gap": methods["multiple_importance"]["estimate"],
        "gap_standard_error": methods["multiple_importance"]["standard_error"],
        "gap_quadrature": exact,
        "gap_methods": methods,
        "calibration_runs": CALIBRATION_RUNS,
        "rare_samples": int(np.delete(component_counts(gmm, N_SAMPLES, seed), SECOND).sum()),
    }


def _method_summary(gmm, method, exact, seed):
    gap = entropy_gap(gmm, SECOND, N_SAMPLES, seed, method)
    seeds = np.random.SeedSequence(seed).generate_state(CALIBRATION_RUNS).tolist()
    runs = [entropy_gap(gmm, SECOND, N_SAMPLES, run_seed, method) for run_seed in seeds]
    scores = np.array([(run.value - exact) / run.standard_error for run in runs])
    return {
        "estimate": gap.value,
        "standard_error": gap.standard_error,
        "samples": gap.n,
        "samples_for_one_percent": gap.n * (gap.standard_error / (0.01 * exact)) ** 2,
        "rms_error_in_standard_errors": float(_root_mean_square(scores)),  # 1 if the standard errors are true
    }


# Figures.

COMPONENT_COLORS = ("red", "green", "blue")  # the assignment's
# Of one meaning in every panel, and told apart by colour-blind readers too; black is for what is known exactly.
BLUE, ORANGE, RED, GRAY, PURPLE, *_, CYAN = color_sequences["petroff10"]
METHOD_COLORS = {"plain": ORANGE, "control_variate": PURPLE, "multiple_importance": BLUE}
NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval
MAGNIFIED = 10_000  # samples from which on an inset shows the estimates


def run_problem_1(folder, seed=0, n_max=N_MAX):
    """Make the figures of items 1.1 to 1.3 in `folder` and return the numbers of `solve_problem_1`.

    Parameters
    ----------
    folder : path
        Receives gmm_scatter.png, gmm_entropy.png and gmm_entropy_degenerate.png.
    seed : int
    n_max : int
        Number of samples at the right end of the plots.
    """
    folder = Path(folder)
    results = solve_problem_1(seed)
    balanced, degenerate, single = _mixtures()
    points, labels = balanced.sample(N_SAMPLES, np.random.default_rng(seed))
    plot_scatter(balanced, points, labels, folder / "gmm_scatter.png", seed)
    plot_entropy(running_entropy(balanced, n_max, seed), results["balanced"], folder / "gmm_entropy.png")
    entropies = [running_entropy(gmm, n_max, seed) for gmm in (degenerate, single)]
    gaps = {method: running_gap(degenerate, SECOND, method, n_max, seed) for method in GAP_METHODS}
    plot_entropy_degenerate(*entropies, gaps, results["degenerate"], folder / "gmm_entropy_degenerate.png")
    return results


def plot_scatter(gmm, points, labels, path, seed):
    """Item 1.1: samples coloured by the component that generated them, with its 1 and 2 sigma ellipses."""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*points.T, c=np.array(COMPONENT_COLORS)[labels], s=2, alpha=0.15, linewidths=0, rasterized=True)
    for k, (weight, mean) in enumerate(zip(gmm.weights, gmm.means, strict=True)):
        name = f"component {k + 1}: weight {weight:.1f}, mean ({mean[0]:g}, {mean[1]:g})"
        axes.scatter([], [], color=COMPONENT_COLORS[k], label=name)
        for sigmas in (1, 2):
            _draw_ellipse(axes, mean, gmm.covariances[k], sigmas)
    axes.plot([], [], color="black", label="1 and 2 standard deviations")
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal", title=f"{len(points):,} samples from p(x), seed {seed}")
    axes.legend(loc="lower left", fontsize=10)
    save_figure(figure, path)


def plot_entropy(running, result, path):
    """Item 1.2: the estimate against the number of samples, and its error against the predicted N^(-1/2)."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhspan(result["lower_bound"], result["upper_bound"], color=CYAN, alpha=0.4, label="closed-form bounds")
    _magnify(left, partial(_plot_estimates, running=running, exact=result["quadrature"]), running)
    _plot_errors(right, running, result["quadrature"])
    _finish(figure, running, result, path)


def plot_entropy_degenerate(running, single, gaps, result, path):
    """Item 1.3: as 1.2, beside N_2's own estimate (`single`), and below it the gap between the two by three methods."""
    figure = Figure(figsize=(10, 9.2), layout="constrained")
    (top_left, top_right), (left, right) = figure.subplots(2, 2)
    exact, gap = result["quadrature"], result["gap_quadrature"]

    def plot_both(axes):
        _plot_estimates(axes, running, exact)
        label = f"$N_2$ alone, same seed; $H(N_2)$: {result['single_gaussian']:.6f}"
        axes.plot(single.counts, single.values[0], color=RED, label=label)

    _magnify(top_left, plot_both, running)
    _plot_errors(top_right, running, exact)
    top_right.axhline(gap, color="black", linestyle=":", label=f"the gap $H(p) - H(N_2)$: {gap:.3e}")
    top_right.legend(loc="lower left")
    _plot_gaps(left, gaps, gap)
    _plot_gap_errors(right, gaps, gap)
    _finish(figure, running, result, path)


def _plot_estimates(axes, running, exact):
    axes.plot(running.counts, running.values[1:].T, color=GRAY, linewidth=0.7, alpha=0.7)
    _plot_interval(axes, running, METHOD_COLORS["plain"], "one run and its 95 % interval")
    axes.axhline(exact, color="black", linestyle="--", label=f"quadrature: {exact:.6f}")


def _magnify(axes, plot, running):
    """Call `plot` on the axes, and on an inset that shows the estimates of `MAGNIFIED` samples and more."""
    inset = axes.inset_axes((0.46, 0.68, 0.48, 0.29))
    for panel in (axes, inset):
        plot(panel)
    start = min(MAGNIFIED, running.counts[-1] / 10)
    shown = running.values[:, running.counts >= start]
    inset.set(xscale="log", xlim=(start, running.counts[-1]), ylim=(shown.min(), shown.max()))
    inset.tick_params(labelsize="small")
    axes.set(ylabel="entropy (nats)", title=f"Estimate, {len(running.values)} runs")
    axes.legend(loc="lower right")


def _plot_errors(axes, running, exact):
    counts, errors = running.counts, np.abs(running.values - exact)
    deviation = _root_mean_square(running.standard_errors[:, -1]) * np.sqrt(counts[-1])
    axes.plot(counts, errors.T, color=GRAY, linewidth=0.7, alpha=0.7)
    axes.plot(counts, _root_mean_square(errors), color=METHOD_COLORS["plain"], label="root mean square of the runs")
    predicted = rf"predicted: {deviation:.2f} / $\sqrt{{N}}$"
    axes.plot(counts, deviation / np.sqrt(counts), color="black", linestyle="--", label=predicted)
    axes.set(yscale="log", ylabel="absolute error (nats)", title="Error against quadrature")
    axes.legend(loc="lower left")


def _plot_gaps(axes, gaps, exact):
    """Draw the gap by the methods that can see it."""
    for method in GAP_METHODS[1:]:
        _plot_interval(axes, gaps[method], METHOD_COLORS[method], method.replace("_", " "))
    axes.axhline(exact, color="black", linestyle="--", label=f"quadrature: {exact:.3e}")
    axes.yaxis.set_major_formatter(lambda nats, _: f"{1e4 * nats:.1f}")
    axes.set(ylabel="$H(p) - H(N_2)$ ($10^{-4}$ nats)", title="Estimated gap, one run and its 95 % interval")
    axes.legend(loc="lower left", fontsize=9)


def _plot_gap_errors(axes, gaps, exact):
    for method, running in gaps.items():
        relative = _root_mean_square(running.values - exact) / exact
        axes.plot(running.counts, relative, color=METHOD_COLORS[method], label=method.replace("_", " "))
    axes.axhline(0.01, color="black", linestyle="--", label="1 % of the gap")
    axes.set(yscale="log", ylim=(1e-5, None), ylabel="root mean square error / gap")
    axes.set_title(f"Relative error of the gap, {len(running.values)} runs")
    axes.legend(loc="lower left")


def _plot_interval(axes, running, color, name):
    """Draw the first run with its 95 % interval."""
    counts, value, half_width = running.counts, running.values[0], NORMAL_95 * running.standard_errors[0]
    axes.plot(counts, value, color=color, label=name)
    axes.fill_between(counts, value - half_width, value + half_width, color=color, alpha=0.25, linewidth=0)


def _finish(figure, running, result, path):
    """Give every panel its axis of sample counts, and the figure its title; save it."""
    for axes in figure.axes:
        axes.set(xscale="log", xlabel="number of samples N")
        axes.grid(alpha=0.3)
    weights = ", ".join(f"{weight:.6g}" for weight in result["weights"])
    title = f"Entropy of the mixture with weights {weights}; N up to {running.counts[-1]:,}, seed {result['seed']}"
    figure.suptitle(title)
    save_figure(figure, path)


def _root_mean_square(values):
    return np.sqrt(np.mean(values**2, axis=0))


def _draw_ellipse(axes, mean, covariance, sigmas):
    variances, directions = np.linalg.eigh(covariance)
    width, height = 2 * sigmas * np.sqrt(variances)
    angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
    axes.add_patch(Ellipse(mean, width, height, angle=angle, fill=False, color="black", linewidth=1.2))
