"""Problem 1: the differential entropy of a Gaussian mixture, by Monte Carlo and by exact references.

The entropy H(p) = E_p[-log p] of a mixture has no closed form, because the logarithm stands outside the sum over
components. Sampling from p and averaging -log p estimates it (1.2). Where a component is as rare as 1e-5 that average
is blind to what the rare components add (1.3), and a control variate with importance sampling sees it.
Every entropy is in nats, every array float64. Points enter and leave as (n, d); inside they are x, (d, n), a column
each, so that each coordinate is contiguous. Mathematics first, then the numbers of the report, then the figures.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.integrate import cubature
from scipy.special import entr, logsumexp
from threadpoolctl import ThreadpoolController

# Three shapes (tilted up, tilted down, nearly round) near enough to overlap, far enough to be told apart: with
# components that coincide, or that never meet, the mixture's entropy would have a closed form.
MEANS = ((-2.0, 0.5), (0.5, 0.0), (2.0, 2.2))
COVARIANCES = (((1.0, 0.6), (0.6, 0.8)), ((1.2, -0.7), (-0.7, 0.9)), ((0.6, 0.1), (0.1, 0.5)))
BALANCED_WEIGHTS = (0.2, 0.5, 0.3)
DEGENERATE_WEIGHTS = (1e-5, 1 - 2e-5, 1e-5)
SECOND = 1  # index of N(mu_2, Sigma_2), the single Gaussian of 1.3

N_SAMPLES = 100_000
N_MIN, N_MAX = 10, 1_000_000  # samples at the two ends of the plots
REPLICATES = 8  # independent repetitions in the plots
CALIBRATION_RUNS = 50  # repetitions over which errors are compared with their standard errors

GAP_METHODS = ("plain", "control_variate", "multiple_importance")  # see `entropy_gap`
CHUNK = 65_536  # points worked on at once: fewer, and threads wait for the interpreter lock; more, and for memory
TOLERANCE = 1e-6  # what float32 leaves of the weights' sum, and of a covariance's symmetry relative to its entries
FARTHEST_MEAN = 1e12  # smallest standard deviations; float64 there still tells apart 1e-4 of one
QUADRATURE_RADIUS = 10.0  # standard deviations; exp(-10**2 / 2) = 2e-22 lies outside
QUADRATURE_ERROR = 1e-11  # absolute, in nats, and relative


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error (nats), and the number of samples behind it."""

    value: float
    standard_error: float
    n: int


class RunningEstimate(NamedTuple):
    """Estimates after each of `counts` samples, (m,); `values` and `standard_errors` (replicates, m) are in nats."""

    counts: np.ndarray
    values: np.ndarray
    standard_errors: np.ndarray


class GMM:
    """Gaussian mixture p(x) = sum_k weights[k] N(x; means[k], covariances[k]).

    Parameters
    ----------
    weights : array_like, shape (K,)
        Non-negative, summing to 1 within 1e-6; they are scaled to do so exactly. A component of weight 0 is allowed.
    means : array_like, shape (K, d)
    covariances : array_like, shape (K, d, d)
        Symmetric and positive definite.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, the weights are no distribution, a covariance is not
        symmetric or not positive definite, or a mean has an entry of more than 1e12 times its component's
        smallest standard deviation: beyond, float64 rounds the component's points to a visible grid.
    """

    def __init__(self, weights, means, covariances):
        weights, means, covariances = (np.array(values, dtype=float) for values in (weights, means, covariances))
        components, dimension = means.shape if means.ndim == 2 else (0, 0)
        shapes = weights.shape, means.shape, covariances.shape
        expected = (components,), (components, dimension), (components, dimension, dimension)
        if shapes != expected or means.size == 0:
            raise ValueError(f"weights, means, covariances have shapes {shapes}, expected (K,), (K, d), (K, d, d)")
        _require_finite(weights, "weights")
        _require_finite(means, "means")
        if weights.min() < 0 or abs(weights.sum() - 1) > TOLERANCE:
            raise ValueError(
                f"weights are {weights.tolist()}, sum {weights.sum():.9g}, expected non-negative with sum 1"
            )
        self.weights, self.means, self.covariances = weights / math.fsum(weights), means, covariances
        self.cholesky = np.stack([_cholesky(c, f"covariance {k}") for k, c in enumerate(covariances)])
        limits = FARTHEST_MEAN * np.linalg.norm(self.cholesky, -2, axis=(1, 2))  # -2: the smallest singular value
        for k in np.flatnonzero(np.abs(means).max(axis=1) > limits):
            raise ValueError(f"mean {k} is {means[k].tolist()}, expected at most {limits[k]:.1e} for its covariance")
        self._whiteners = np.linalg.inv(self.cholesky)
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
        x, counts = self._draw(n, rng)
        order = rng.permutation(n)
        return x.T[order], np.repeat(np.arange(len(counts)), counts)[order]

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
        _require_finite(points, "points")
        return self._log_density(points.T)

    def _draw(self, n, rng):
        """Draw `n` points x, grouped by component, and return them with the number of each component's."""
        counts = rng.multinomial(n, self.weights)
        z = [rng.standard_normal((self.means.shape[1], count)) for count in counts]
        groups = [self.means[k][:, None] + self.cholesky[k] @ z[k] for k in range(len(counts))]
        return np.concatenate(groups, axis=1), counts

    def _log_density(self, x):
        return self._mix(self._component_log_densities(x))

    def _component_log_densities(self, x):
        """log N(x; mean_k, covariance_k) for each component, shape (K, n)."""
        squares = np.empty((len(self.weights), x.shape[1]))
        with np.errstate(over="ignore"):
            for mean, whitener, square in zip(self.means, self._whiteners, squares, strict=True):
                # The mean goes first: whitening x and mean apart would cancel digits far from the origin.
                z = whitener @ (x - mean[:, None])
                np.einsum("dn,dn->n", z, z, out=square)
        return self._log_normalizers[:, None] - squares / 2

    def _mix(self, log_densities):
        """log sum_k weights[k] exp(log_densities[k])."""
        return _log_sum_exp(log_densities + self._log_weights[:, None])


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
    return _estimate(partial(_surprise, gmm), n, seed, threads)


def running_entropy(gmm, n_max=N_MAX, seed=0, replicates=REPLICATES):
    """The estimate of `mc_entropy` as its samples come in, from 10 to `n_max`, in independent replicates.

    Raises
    ------
    ValueError
        If `n_max` < 10.
    """
    return _running_estimate(partial(_surprise, gmm), n_max, seed, replicates)


def _surprise(gmm, n, rng):
    """-log p at `n` samples from p."""
    x, _ = gmm._draw(n, rng)
    return -gmm._log_density(x)


def entropy_gap(gmm, component, n, seed=0, method="multiple_importance", threads=None):
    """Item 1.3: H(p) - H(N_c), how far the mixture's entropy is from that of its component c.

    The methods, all unbiased:

    ``"plain"``
        The mean of -log p under p, less the closed form of H(N_c).
    ``"control_variate"``
        -log N_c has a known mean under p, so that only log N_c - log p is averaged. What rare components add still
        hangs on the few samples that they happen to generate, and so does the standard error.
    ``"multiple_importance"``
        The same difference, averaged over samples from q, the mixture of the same components with equal weights, and
        weighted by p / q: the balance heuristic (Veach & Guibas 1995).

    Parameters
    ----------
    gmm : GMM
    component : int
        Index c, from 0.
    n, seed, threads
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
    return _estimate(_gap_values(gmm, component, method), n, seed, threads)


def running_gap(gmm, component, method, n_max=N_MAX, seed=0, replicates=REPLICATES):
    """The estimate of `entropy_gap` as its samples come in; otherwise as `running_entropy`."""
    return _running_estimate(_gap_values(gmm, component, method), n_max, seed, replicates)


def _gap_values(gmm, component, method):
    """Return a function (n, rng) of `n` independent values whose expectation is the gap."""
    if not 0 <= component < len(gmm.weights):
        raise ValueError(f"component is {component}, expected 0 to {len(gmm.weights) - 1}")
    if method not in GAP_METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(GAP_METHODS)}")
    entropy = gaussian_entropy(gmm.covariances[component])
    if method == "plain":
        return lambda n, rng: _surprise(gmm, n, rng) - entropy
    equal_weights = (gmm.weights > 0) / np.count_nonzero(gmm.weights)
    proposal = gmm if method == "control_variate" else GMM(equal_weights, gmm.means, gmm.covariances)
    # E_p[-log N_c] - H(N_c)
    known = gmm.weights @ [_cross_entropy(gmm, k, component) for k in range(len(gmm.weights))] - entropy
    return lambda n, rng: known + _weighted_log_ratio(gmm, proposal, component, n, rng)


def _weighted_log_ratio(gmm, proposal, component, n, rng):
    """(log N_c - log p) p / q at `n` samples from the proposal q, a mixture of the components of p."""
    x, _ = proposal._draw(n, rng)
    log_densities = gmm._component_log_densities(x)
    log_p, log_q = gmm._mix(log_densities), proposal._mix(log_densities)
    return (log_densities[component] - log_p) * np.exp(log_p - log_q)


def _estimate(draw_values, n, seed, threads):
    """Mean of `n` values of the function `draw_values(size, rng)`, drawn and dropped chunk by chunk, in threads."""
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")

    def moments(chunk):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, chunk)))
        values = draw_values(min(CHUNK, n - chunk * CHUNK), rng)
        return len(values), values.mean(), values.var()

    # Freed at once: from then on glibc keeps blocks up to this size, which are slow to map anew. Ten million samples
    # then take 0.8 s instead of 1.8 s (medians of 9 new processes each, two threads).
    np.empty(4_000_000)
    # The matrix library's own threads would contend with these.
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        sizes, means, variances = np.transpose(list(pool.map(moments, range(math.ceil(n / CHUNK)))))
    mean = np.average(means, weights=sizes)
    variance = np.average(variances + (means - mean) ** 2, weights=sizes)  # within chunks, and between them
    return Estimate(float(mean), math.sqrt(variance / (n - 1)) if n > 1 else math.nan, n)


_libraries = cache(ThreadpoolController)  # looking for them takes a millisecond


def _running_estimate(draw_values, n_max, seed, replicates):
    if n_max < N_MIN:
        raise ValueError(f"n_max is {n_max}, expected at least {N_MIN}")
    counts = np.unique(np.geomspace(N_MIN, n_max, 200).astype(int))
    # Samples come grouped by component; permuted, each of their beginnings is a fair sample.
    runs = [rng.permutation(draw_values(n_max, rng)) for rng in np.random.default_rng(seed).spawn(replicates)]
    values, mean_squares = (np.cumsum(terms, axis=1)[:, counts - 1] / counts for terms in (runs, np.square(runs)))
    variances = np.maximum(mean_squares - values**2, 0)  # rounding may leave less than 0
    return RunningEstimate(counts, values, np.sqrt(variances / (counts - 1)))


# Exact references.


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
    """Entropy of a mixture in the plane by adaptive cubature, to about `QUADRATURE_ERROR`.

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


def _cross_entropy(gmm, i, j):
    """E_{N_i}[-log N_j] in nats: the trace and the squared distance in the coordinates that whiten j."""
    trace = np.sum((gmm._whiteners[j] @ gmm.cholesky[i]) ** 2)
    distance = np.sum((gmm._whiteners[j] @ (gmm.means[i] - gmm.means[j])) ** 2)
    return (trace + distance) / 2 - gmm._log_normalizers[j]


def _bhattacharyya(gmm, i, j):
    """-log of the integral of sqrt(N_i N_j), in nats."""
    factor = np.linalg.cholesky((gmm.covariances[i] + gmm.covariances[j]) / 2)
    z = np.linalg.solve(factor, gmm.means[i] - gmm.means[j])
    return z @ z / 8 + _log_root_det(factor) - (_log_root_det(gmm.cholesky[i]) + _log_root_det(gmm.cholesky[j])) / 2


def _expected_surprise(gmm, k):
    """E_{N_k}[-log p] in two dimensions, nats."""

    def integrand(z):
        x = gmm.means[k][:, None] + gmm.cholesky[k] @ z.T
        return np.exp(-np.sum(z**2, axis=1) / 2) / (2 * np.pi) * -gmm._log_density(x)

    limits = np.full(2, QUADRATURE_RADIUS)
    centers = (gmm.means - gmm.means[k]) @ gmm._whiteners[k].T
    reaches = QUADRATURE_RADIUS * np.linalg.norm(gmm._whiteners[k] @ gmm.cholesky, axis=2)
    corners = np.concatenate([centers - reaches, centers + reaches])
    result = cubature(integrand, -limits, limits, points=list(corners), atol=QUADRATURE_ERROR, rtol=QUADRATURE_ERROR)
    if result.status != "converged":
        raise ArithmeticError(f"component {k}: the cubature's error is {result.error:.1e}, not {QUADRATURE_ERROR}")
    return result.estimate


def _log_root_det(factor):
    """log sqrt det C from the Cholesky factor of C."""
    return np.sum(np.log(np.diagonal(factor)))


def _log_sum_exp(terms):
    """log sum_k exp(terms[k]), shape (n,); overwrites `terms`. SciPy's takes several times as long on a chunk."""
    # A peak of -inf, where every square overflowed, would give -inf - -inf = NaN.
    peak = terms.max(axis=0, initial=np.finfo(float).min)
    terms -= peak
    with np.errstate(divide="ignore"):
        return peak + np.log(np.exp(terms, out=terms).sum(axis=0))


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
    results = {"balanced": _summary(balanced, seed), "degenerate": _summary(degenerate, seed)}
    alone = mc_entropy(single, N_SAMPLES, seed)
    exact = results["degenerate"]["quadrature"] - results["degenerate"]["single_gaussian"]
    methods = {method: _method_summary(degenerate, method, exact, seed) for method in GAP_METHODS}
    results["degenerate"] |= {
        "single_gaussian_estimate": alone.value,
        "single_gaussian_estimate_error": alone.standard_error,
        "gap": methods["multiple_importance"]["estimate"],
        "gap_standard_error": methods["multiple_importance"]["standard_error"],
        "gap_quadrature": exact,
        "gap_methods": methods,
        "calibration_runs": CALIBRATION_RUNS,
        "expected_rare_samples": float(N_SAMPLES * np.delete(degenerate.weights, SECOND).sum()),
    }
    return results


def _mixtures():
    """The mixtures of 1.1 and of 1.3, and the single Gaussian N(mu_2, Sigma_2) as a mixture of one."""
    balanced, degenerate = (GMM(weights, MEANS, COVARIANCES) for weights in (BALANCED_WEIGHTS, DEGENERATE_WEIGHTS))
    return balanced, degenerate, GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])


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
NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval


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
    from drawing import figure_file  # here and below, so that the mathematics imports without matplotlib

    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    with figure_file(path, (8, 6.4), f"{len(points):,} samples from p(x), seed {seed}") as figure:
        axes = figure.subplots()
        axes.scatter(*points.T, c=np.array(COMPONENT_COLORS)[labels], s=2, alpha=0.15, linewidths=0)
        for k, (weight, mean) in enumerate(zip(gmm.weights, gmm.means, strict=True)):
            name = f"component {k + 1}: weight {weight:.1f}, mean ({mean[0]:g}, {mean[1]:g})"
            axes.scatter([], [], color=COMPONENT_COLORS[k], label=name)
            for sigmas in (1, 2):
                axes.plot(*(mean[:, None] + sigmas * gmm.cholesky[k] @ circle), color="black", linewidth=1.2)
        axes.plot([], [], color="black", label="1 and 2 standard deviations")
        axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        axes.legend(loc="lower left")


def plot_entropy(running, result, path):
    """Item 1.2: the estimate against the number of samples, and its error against the predicted N^(-1/2)."""
    from drawing import CYAN

    with _draw_panels(path, 1, running, result) as (left, right):
        left.axhspan(result["lower_bound"], result["upper_bound"], color=CYAN, alpha=0.4, label="closed-form bounds")
        _plot_estimates(left, running, result)
        _plot_errors(right, running, result["quadrature"])


def plot_entropy_degenerate(running, single, gaps, result, path):
    """Item 1.3: as 1.2, beside N_2's own estimate (`single`), and below it the gap between the two by three methods."""
    from drawing import BLUE, BROWN, CYAN, PURPLE, RED

    exact = result["gap_quadrature"]
    bounds = [result[name] - result["single_gaussian"] for name in ("lower_bound", "upper_bound")]
    with _draw_panels(path, 2, running, result) as ((top_left, top_right), (left, right)):
        _plot_estimates(top_left, running, result, single)
        top_right.axhline(exact, color="black", linestyle=":", label=f"the gap $H(p) - H(N_2)$: {exact:.3e}")
        _plot_errors(top_right, running, result["quadrature"])
        left.axhspan(*bounds, color=CYAN, alpha=0.4, label="closed-form bounds: {:.1e} to {:.1e}".format(*bounds))
        for (method, gap), color in zip(gaps.items(), (BROWN, PURPLE, BLUE), strict=True):
            name = method.replace("_", " ")
            right.loglog(gap.counts, _root_mean_square(gap.values - exact) / exact, color=color, label=name)
            if method != "plain":  # which cannot see the gap
                _plot_interval(left, gap, color, name)
        left.axhline(exact, color="black", linestyle="--", label=f"quadrature: {exact:.3e}")
        left.axhline(0, color=RED, linestyle="--", label="$H(N_2)$")
        left.yaxis.set_major_formatter(lambda nats, _: f"{1e4 * nats:.1f}")
        left.set(ylabel="$H(p) - H(N_2)$ ($10^{-4}$ nats)", title="Estimated gap, one run and its 95 % interval")
        left.set_ylim(bottom=min(-exact, left.get_ylim()[0]))  # room for the legend
        right.axhline(0.01, color="black", linestyle="--", label="1 % of the gap")
        right.set(ylim=(1e-5, None), ylabel="root mean square error / gap", title="Relative error of the gap")


@contextmanager
def _draw_panels(path, rows, running, result):
    """Yield the empty panels of a figure, two in a row, all against the number of samples."""
    from drawing import figure_file

    weights = ", ".join(f"{weight:.6g}" for weight in result["weights"])
    title = f"Entropy of the mixture with weights {weights}; N up to {running.counts[-1]:,}, seed {result['seed']}"
    with figure_file(path, (10, 4.4 * rows + 0.4), title) as figure:
        panels = figure.subplots(rows, 2, subplot_kw={"xscale": "log", "xlabel": "number of samples N"})
        yield panels
        for axes in panels.flat:
            axes.grid(alpha=0.3)
            axes.legend(loc="lower right" if axes is panels.flat[0] else "lower left", fontsize="small")


def _plot_estimates(axes, running, result, single=None):
    """Draw the estimates in a panel, and those of the last two decades again in an inset."""
    from drawing import GRAY, ORANGE, RED

    last, exact, alone = running.counts[-1], result["quadrature"], result["single_gaussian"]
    n, value, half_width = result["samples"], result["entropy"], NORMAL_95 * result["standard_error"]
    inset = axes.inset_axes((0.46, 0.68, 0.48, 0.29))
    for panel in (axes, inset):
        panel.semilogx(running.counts, running.values[1:].T, color=GRAY, linewidth=0.7, alpha=0.7)
        _plot_interval(panel, running, ORANGE, "one run and its 95 % interval")
        panel.plot([], [], color=GRAY, label=f"{len(running.values) - 1} more runs")
        panel.errorbar(n, value, half_width, fmt="kD", markersize=4, label=f"the report's {n:,} samples, 95 % interval")
        panel.axhline(exact, color="black", linestyle=(0, (3, 3)), label=f"quadrature: {exact:.6f}")
        if single:
            panel.plot(single.counts, single.values[0], color=RED, label="$N_2$ alone, same seed")
            panel.axhline(alone, color=RED, linestyle=(3, (3, 3)), label=f"$H(N_2)$: {alone:.6f}")
    shown = running.values[:, running.counts >= last / 100]
    inset.set(xlim=(last / 100, last), ylim=(shown.min(), shown.max()))
    inset.tick_params(labelsize="small")
    axes.set(ylabel="entropy (nats)", title=f"Estimate, {len(running.values)} runs")
    axes.set_ylim(min(axes.get_ylim()[0], 2 * exact - axes.get_ylim()[1]))  # room for the legend


def _plot_interval(axes, running, color, label):
    """Draw the first run with its 95 % interval."""
    counts, value, half_width = running.counts, running.values[0], NORMAL_95 * running.standard_errors[0]
    axes.plot(counts, value, color=color, label=label)
    axes.fill_between(counts, value - half_width, value + half_width, color=color, alpha=0.25, linewidth=0)


def _plot_errors(axes, running, exact):
    from drawing import BROWN, GRAY

    counts, errors = running.counts, running.values - exact
    deviation = _root_mean_square(running.standard_errors[:, -1]) * np.sqrt(counts[-1])
    axes.loglog(counts, np.abs(errors).T, color=GRAY, linewidth=0.7, alpha=0.7)[0].set_label(f"{len(errors)} runs")
    axes.loglog(counts, _root_mean_square(errors), color=BROWN, label="their root mean square")
    axes.loglog(counts, deviation / np.sqrt(counts), "k--", label=rf"predicted: {deviation:.2f} / $\sqrt{{N}}$")
    axes.set(ylabel="absolute error (nats)", title="Error against quadrature")


def _root_mean_square(values):
    return np.sqrt(np.mean(values**2, axis=0))
