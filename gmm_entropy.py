"""Problem 1 of the assignment (1.1 to 1.3): a Gaussian mixture and its differential entropy.

The entropy H(p) = E_p[-log p] of a mixture has no closed form, because the logarithm stands outside the sum over
components. Averaging -log p over samples from p estimates it (1.2). A component as rare as
1e-5 (1.3) hardly ever gives a sample. So there we draw from all components equally often, and weight each point.

Entropies are in nats and arrays are float64. First the mathematics, then the numbers of the report, then its figures.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drawing import BLUE, GRAY, ORANGE, figure_file

# Three shapes (tilted up, tilted down, nearly round), near enough to overlap and far enough apart to be told apart.
# If the components coincided, or never met, the entropy would have a closed form.
MEANS = ((-2.0, 0.5), (0.5, 0.0), (2.0, 2.2))
COVARIANCES = (((1.0, 0.6), (0.6, 0.8)), ((1.2, -0.7), (-0.7, 0.9)), ((0.6, 0.1), (0.1, 0.5)))
BALANCED_WEIGHTS = (0.2, 0.5, 0.3)
DEGENERATE_WEIGHTS = (1e-5, 1 - 2e-5, 1e-5)
SECOND = 1  # index of N(mu_2, Sigma_2), the single Gaussian of 1.3

N_SAMPLES = 100_000  # behind each number of the report
N_MIN, N_MAX = 10, 1_000_000  # samples at the two ends of the curves
RUNS = 4  # curves in the figure of 1.2: the seed of the report and the next three

CHUNK = 16_384  # coordinates drawn, or places of a grid, at once: few enough for the processor's cache
TOLERANCE = 1e-6  # what rounding to float32 may do to the sum of the weights and to the symmetry of a covariance
GRID_STEP = 0.25  # in units of the smallest standard deviation
GRID_REACH = 10.0  # standard deviations from a mean; the density there is exp(-10**2 / 2) = 2e-22 of its peak
GRID_POINTS = 10**7  # at most


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error (nats), and the number of samples behind it.

    From `running_means` each of the three is an array.
    """

    value: float
    standard_error: float
    n: int


class GMM:
    """Gaussian mixture p(x) = sum_k weights[k] N(x; means[k], covariances[k]).

    Parameters
    ----------
    weights : array_like, shape (K,)
        Non-negative, with sum 1 within 1e-6; they are scaled to have the sum 1. A weight may be 0.
    means : array_like, shape (K, d)
    covariances : array_like, shape (K, d, d)
        Symmetric and positive definite.

    Raises
    ------
    ValueError
        If a shape does not fit, an entry is not finite, the weights are no distribution, or a covariance is not
        symmetric, not positive definite, or singular up to rounding.

    Attributes
    ----------
    weights, means, covariances : ndarray
        The parameters, as float64.
    cholesky : ndarray, shape (K, d, d)
        Lower triangular L_k with L_k L_k^T = covariances[k].
    """

    def __init__(self, weights, means, covariances):
        weights, means, covariances = (np.array(values, dtype=float) for values in (weights, means, covariances))
        shapes = weights.shape, means.shape, covariances.shape
        expected = means.shape[:1], means.shape, means.shape + means.shape[1:]
        if means.ndim != 2 or means.size == 0 or shapes != expected:
            raise ValueError(f"weights, means, covariances have shapes {shapes}, expected (K,), (K, d), (K, d, d)")
        if not (weights.min() >= 0 and abs(weights.sum() - 1) <= TOLERANCE):  # so that NaN is refused
            raise ValueError(f"weights are {weights.tolist()}, expected non-negative numbers with sum 1")
        if not np.isfinite(means).all():
            raise ValueError(f"means are {means.tolist()}, expected finite numbers")
        self.weights, self.means, self.covariances = weights / math.fsum(weights), means, covariances
        self.cholesky = np.stack([_cholesky(covariance) for covariance in covariances])
        self._whiteners = np.linalg.inv(self.cholesky)
        self._log_normalizers = -np.log(np.sqrt(2 * np.pi) * np.diagonal(self.cholesky, axis1=1, axis2=2)).sum(axis=1)
        with np.errstate(divide="ignore"):  # log 0 = -inf is the log-weight of an absent component
            self._log_weights = np.log(self.weights)

    def sample(self, n, rng):
        """Draw the first `n` points of a stream that `rng` determines.

        The components come from one random generator and the normals from another, both spawned from `rng`: its seed
        counts, and not what was drawn from it. So with a new `rng` of the same seed a larger `n` continues the same
        points, and mixtures of one dimension share normals.

        Parameters
        ----------
        n : int
            At least 1.
        rng : numpy.random.Generator

        Returns
        -------
        points : ndarray, shape (n, d)
        labels : ndarray of int, shape (n,)
            Index of the component that generated each point.

        Raises
        ------
        ValueError
            If `n` < 1.
        """
        return tuple(map(np.concatenate, zip(*self.chunks(n, rng), strict=True)))

    def chunks(self, n, rng):
        """Yield the points and labels of `sample`, with its errors, in pieces: memory does not grow with `n`."""
        if n < 1:
            raise ValueError(f"n is {n}, expected at least 1")
        uniforms, normals = rng.spawn(2)
        edges = np.cumsum(self.weights)
        edges /= edges[-1]  # exactly 1 at the end: a component of weight 0 is never drawn
        d = self.means.shape[1]
        largest = math.ceil(CHUNK / d)
        for start in range(0, n, largest):
            size = min(largest, n - start)
            labels = np.searchsorted(edges, uniforms.random(size), side="right")
            z = normals.standard_normal((size, d))
            # x = mu_k + L_k z; `take` is faster than an index in brackets
            points = self.means.take(labels, axis=0) + np.einsum("nij,nj->ni", self.cholesky.take(labels, axis=0), z)
            yield points, labels

    def log_prob(self, points):
        """Log-density at `points`, by a log-sum-exp over the components.

        It is finite up to about 1e150 standard deviations from the means; farther out, squares overflow.

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
            If `points` has another shape or an entry is not finite.
        """
        points = np.asarray(points, dtype=float)
        if points.ndim != 2 or points.shape[1] != self.means.shape[1]:
            raise ValueError(f"points have shape {points.shape}, expected (n, {self.means.shape[1]})")
        if not np.isfinite(points).all():
            raise ValueError("points hold a NaN or an infinity, expected finite numbers")
        return self._mix(self._component_log_densities(points))

    def _component_log_densities(self, points):
        """log N(x; mu_k, Sigma_k) at each point, shape (K, n)."""
        x = np.ascontiguousarray(points.T)  # (d, n): whole rows are faster to work on
        log_densities = np.empty((len(self.weights), len(points)))
        for k, whitener in enumerate(self._whiteners):
            z = whitener @ (x - self.means[k][:, None])
            log_densities[k] = self._log_normalizers[k] - np.einsum("dn,dn->n", z, z) / 2
        return log_densities

    def _mix(self, log_densities):
        """log sum_k weights[k] exp(log_densities[k]), shape (n,)."""
        terms = log_densities + self._log_weights[:, None]
        peak = terms.max(axis=0, initial=np.finfo(float).min)  # a peak of -inf would give -inf - -inf = NaN
        terms -= peak
        return peak + np.log(np.exp(terms, out=terms).sum(axis=0))


def mc_entropy(gmm, n, seed=0):
    """Item 1.2: estimate H(p) by -1/n sum_i log p(x_i) over samples x_i from p. It is unbiased.

    The samples are `gmm.sample(n, np.random.default_rng(seed))`, a chunk at a time.

    Parameters
    ----------
    gmm : GMM
    n : int
        Number of samples.
    seed : int

    Returns
    -------
    Estimate
        Nats. The standard error of a single sample is NaN.

    Raises
    ------
    ValueError
        If `n` < 1.
    """
    return _mean(_surprises(gmm, n, seed))


def _surprises(gmm, n, seed):
    """Yield chunks of -log p at `n` samples from p; their expectation is H(p)."""
    return (-gmm.log_prob(points) for points, _ in gmm.chunks(n, np.random.default_rng(seed)))


def entropy_gap(gmm, component, n, seed=0):
    """Item 1.3: estimate H(p) - H(N_c), how far the entropy of a mixture is from that of its component c.

    The gap is E_p[log N_c - log p] + (E_p[-log N_c] - H(N_c)). The bracket has a closed form (a control variate). The
    first mean is taken over samples from q, the mixture of the same components with equal weights, each weighted by
    p / q (the balance heuristic of Veach & Guibas 1995). So rare components are sampled as often as the others.

    Parameters
    ----------
    gmm : GMM
    component : int
        Index c, from 0.
    n, seed
        As in `mc_entropy`; the samples are those of q.

    Returns
    -------
    Estimate
        Nats.

    Raises
    ------
    ValueError
        If `component` is no index of a component, or `n` < 1.
    """
    return _mean(_gap_values(gmm, component, n, seed))


def _gap_values(gmm, component, n, seed):
    """Yield chunks of `n` independent values whose expectation is the gap of `entropy_gap`."""
    if component not in range(len(gmm.weights)):
        raise ValueError(f"component is {component}, expected 0 to {len(gmm.weights) - 1}")
    cross_entropies = _cross_entropies(gmm)[:, component]
    known = gmm.weights @ cross_entropies - cross_entropies[component]
    equal_weights = (gmm.weights > 0) / np.count_nonzero(gmm.weights)
    proposal = GMM(equal_weights, gmm.means, gmm.covariances)
    for points, _ in proposal.chunks(n, np.random.default_rng(seed)):
        log_densities = gmm._component_log_densities(points)
        log_p, log_q = gmm._mix(log_densities), proposal._mix(log_densities)
        yield known + (log_densities[component] - log_p) * np.exp(log_p - log_q)


def _mean(chunks):
    """Estimate the mean of values in chunks, which are merged as in Chan, Golub & LeVeque (1983)."""
    n, mean, squares = 0, 0.0, 0.0  # squares: sum of squared deviations from the mean
    for values in chunks:
        size, shift = len(values), values.mean() - mean
        n += size
        mean += shift * size / n
        squares += size * values.var() + shift**2 * size * (n - size) / n
    return Estimate(float(mean), math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan, n)


def running_means(chunks):
    """Estimate the mean of the first n values, for n from 10 to all of them.

    Parameters
    ----------
    chunks : iterable of ndarray
        The values, at least 10.

    Returns
    -------
    Estimate
        Of arrays, shape (m,): about 200 estimates, evenly spaced on a logarithmic axis of `n`, with n = 100,000 among
        them if there are so many values.
    """
    values = np.concatenate(list(chunks))
    counts = np.geomspace(N_MIN, len(values), 200).astype(int)
    counts = np.unique([*counts, min(N_SAMPLES, len(values))])
    return Estimate(*np.transpose([_mean([values[:n]]) for n in counts]))


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
        If `covariance` is not a finite, symmetric, positive definite matrix, or is singular up to rounding.
    """
    return float(np.log(np.sqrt(2 * np.pi * np.e) * np.diagonal(_cholesky(covariance))).sum())


def _cholesky(covariance):
    """The lower triangular factor of a covariance, or ValueError."""
    covariance = np.asarray(covariance, dtype=float)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or covariance.size == 0:
        raise ValueError(f"a covariance has shape {covariance.shape}, expected (d, d)")
    if not np.isfinite(covariance).all():
        raise ValueError(f"a covariance is {covariance.tolist()}, expected finite numbers")
    if np.abs(covariance - covariance.T).max() > TOLERANCE * np.abs(covariance).max():
        raise ValueError(f"a covariance is {covariance.tolist()}, expected a symmetric matrix")
    eigenvalues = np.linalg.eigvalsh(covariance)
    # So small an eigenvalue may be rounding noise of a singular matrix, even where the factorization succeeds.
    if eigenvalues[0] <= len(covariance) * np.finfo(float).eps * eigenvalues[-1]:
        raise ValueError(f"a covariance is {covariance.tolist()}, expected a clearly positive definite matrix")
    return np.linalg.cholesky(covariance)


def entropy_bounds(gmm):
    """Closed-form bounds on H(p) from the pairwise distances of the components (Kolchinsky & Tracey 2017).

    sum_k w_k H(N_k) - sum_i w_i log sum_j w_j exp(-D(N_i, N_j)) is a lower bound if D is the Bhattacharyya distance
    and an upper bound if D is the Kullback-Leibler divergence.

    Returns
    -------
    lower, upper : float
        Nats.
    """
    cross_entropies = _cross_entropies(gmm)
    entropies = np.diagonal(cross_entropies)
    divergences = cross_entropies - entropies[:, None]
    offsets = gmm.means[:, None] - gmm.means
    pooled = (gmm.covariances[:, None] + gmm.covariances) / 2
    log_dets = np.linalg.slogdet(gmm.covariances).logabsdet
    squares = np.einsum("ijd,ijd->ij", offsets, np.linalg.solve(pooled, offsets[..., None])[..., 0])
    bhattacharyya = squares / 8 + np.linalg.slogdet(pooled).logabsdet / 2 - (log_dets[:, None] + log_dets) / 4

    def bound(distances):
        return float(gmm.weights @ (entropies - np.logaddexp.reduce(gmm._log_weights - distances, axis=1)))

    return bound(bhattacharyya), bound(divergences)


def _cross_entropies(gmm):
    """E_{N_i}[-log N_j], shape (K, K); the entropies of the components are its diagonal."""
    factors = gmm._whiteners @ gmm.cholesky[:, None]  # [i, j]: N_i in the coordinates that whiten N_j
    offsets = np.einsum("jab,ijb->ija", gmm._whiteners, gmm.means[:, None] - gmm.means)
    return ((factors**2).sum(axis=(2, 3)) + (offsets**2).sum(axis=2)) / 2 - gmm._log_normalizers


def quadrature_entropy(gmm):
    """Entropy of a mixture in the plane, H(p) = sum_k w_k E_{N_k}[-log p], by `component_surprises`.

    Returns
    -------
    float
        Nats.

    Raises
    ------
    ValueError
        If the dimension is not 2, or the grid would need more than 10^7 points.
    """
    return float(gmm.weights @ component_surprises(gmm))


def component_surprises(gmm):
    """E_{N_k}[-log p] for each component of a mixture in the plane: what a point of component k costs on average.

    A sum over a grid is nearly exact for smooth functions that vanish at its ends (Trefethen & Weideman 2014). Its step
    is a quarter of the smallest standard deviation, and it reaches ten standard deviations from each mean; all
    mixtures tried had an error below 1e-9. The grid ignores a component of weight 0, so its own value means nothing.

    Returns
    -------
    ndarray, shape (K,)
        Nats.

    Raises
    ------
    ValueError
        If the dimension is not 2, or the grid would need more than 10^7 points.
    """
    if gmm.means.shape[1] != 2:
        raise ValueError(f"the quadrature needs a mixture in 2 dimensions, found {gmm.means.shape[1]}")
    present = gmm.weights > 0
    means, covariances = gmm.means[present], gmm.covariances[present]
    reach = GRID_REACH * np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    step = GRID_STEP * np.sqrt(np.linalg.eigvalsh(covariances).min())
    corner = (means - reach).min(axis=0)
    sides = np.ceil(((means + reach).max(axis=0) - corner) / step)
    if sides.prod() > GRID_POINTS:
        raise ValueError(f"the quadrature would need {sides.prod():.1e} points, expected at most {GRID_POINTS:.0e}")
    shape = tuple(sides.astype(int))
    surprises = np.zeros(len(gmm.weights))
    for start in range(0, math.prod(shape), CHUNK):
        cells = np.unravel_index(np.arange(start, min(start + CHUNK, math.prod(shape))), shape)
        log_densities = gmm._component_log_densities(corner + step * np.stack(cells, axis=1))
        surprises -= np.exp(log_densities) @ gmm._mix(log_densities)
    return step**2 * surprises


# The numbers of the report, and its figures.

COMPONENT_COLORS = ("red", "green", "blue", *"cmyk")  # the first three are the assignment's
NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval


def run_problem_1(folder, seed=0, n_max=N_MAX):
    """Draw the figures of 1.1 to 1.3 and return the numbers of the report.

    Parameters
    ----------
    folder : path
        Receives gmm_scatter.png, gmm_entropy.png and gmm_entropy_degenerate.png.
    seed : int
    n_max : int
        Number of samples at the right end of the curves, at least 10.

    Returns
    -------
    dict
        Plain numbers and lists, in nats, in the dicts "balanced" (1.2) and "degenerate" (1.3). `component_surprise`
        holds E_{N_k}[-log p] for each component k; weighted by `weights` its sum is `quadrature`, the exact entropy.
    """
    folder = Path(folder)
    balanced, degenerate = (GMM(weights, MEANS, COVARIANCES) for weights in (BALANCED_WEIGHTS, DEGENERATE_WEIGHTS))
    single = GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])
    results = {"balanced": _summary(balanced, seed), "degenerate": _summary(degenerate, seed)}
    more = results["degenerate"]
    more["single_gaussian_estimate"], more["single_gaussian_estimate_error"], _ = mc_entropy(single, N_SAMPLES, seed)
    more["gap"], more["gap_standard_error"], _ = entropy_gap(degenerate, SECOND, N_SAMPLES, seed)
    more["gap_quadrature"] = more["quadrature"] - more["single_gaussian"]
    plot_scatter(balanced, *balanced.sample(N_SAMPLES, np.random.default_rng(seed)), folder / "gmm_scatter.png")
    runs = [running_means(_surprises(balanced, n_max, seed + run)) for run in range(RUNS)]
    plot_entropy(runs, results["balanced"], folder / "gmm_entropy.png")
    runs = [running_means(_surprises(gmm, n_max, seed)) for gmm in (degenerate, single)]
    running_gap = running_means(_gap_values(degenerate, SECOND, n_max, seed))
    plot_degenerate(*runs, running_gap, results["degenerate"], folder / "gmm_entropy_degenerate.png")
    return results


def _summary(gmm, seed):
    """What the report says of both mixtures."""
    value, standard_error, n = mc_entropy(gmm, N_SAMPLES, seed)
    lower, upper = entropy_bounds(gmm)
    mixture = {"weights": gmm.weights.tolist(), "means": gmm.means.tolist(), "covariances": gmm.covariances.tolist()}
    estimate = {"samples": n, "seed": seed, "entropy": value, "standard_error": standard_error}
    exact = {"quadrature": quadrature_entropy(gmm), "component_surprise": component_surprises(gmm).tolist()}
    closed = {"lower_bound": lower, "upper_bound": upper, "single_gaussian": gaussian_entropy(gmm.covariances[SECOND])}
    return mixture | estimate | exact | closed


def plot_scatter(gmm, points, labels, path):
    """Item 1.1: samples coloured by the component that generated them, with its ellipses of 1 and 2 sigma."""
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    with figure_file(path, (7, 6), f"{len(points):,} samples of the mixture") as figure:
        axes = figure.subplots()
        axes.scatter(*points.T, c=np.array(COMPONENT_COLORS)[labels], s=2, alpha=0.15, linewidths=0)
        for k, (weight, mean, factor) in enumerate(zip(gmm.weights, gmm.means, gmm.cholesky, strict=True)):
            axes.scatter([], [], color=COMPONENT_COLORS[k], label=f"component {k + 1}, weight {weight:g}")
            axes.plot(*(mean[:, None] + factor @ circle), *(mean[:, None] + 2 * factor @ circle), color="black")
        axes.plot([], [], color="black", label="1 and 2 standard deviations")
        axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        figure.legend(loc="outside lower center", ncols=2)  # beside the points, wherever they are


def plot_entropy(runs, result, path):
    """Item 1.2: the estimates of several runs, and their errors, against the number of samples."""
    n, value, exact, counts = result["samples"], result["entropy"], result["quadrature"], runs[0].n
    deviation = result["standard_error"] * math.sqrt(n)
    with figure_file(path, (8.5, 3.8), "Entropy of the mixture, estimated from N samples") as figure:
        left, right = _draw_panels(figure, "entropy (nats)", "absolute error (nats)")
        for run in runs[1:]:
            left.plot(run.n, run.value, color=GRAY, alpha=0.5, linewidth=1)
            right.loglog(run.n, abs(run.value - exact), color=GRAY, alpha=0.5, linewidth=1)
        _draw_run(left, runs[0], ORANGE, f"seed {result['seed']}, 95 % interval")
        right.loglog(runs[0].n, abs(runs[0].value - exact), color=ORANGE)
        left.plot([], [], color=GRAY, label=f"{len(runs) - 1} more seeds")
        left.plot(n, value, "kD", label=f"N = {n:,}: ${value:.4f}$")
        left.axhline(exact, color="black", linestyle="--", label=f"exact: ${exact:.4f}$")
        half_height = 2.5 * deviation / math.sqrt(N_MIN)  # so that the estimates, not their first intervals, fill it
        left.set(ylim=(exact - half_height, exact + half_height))
        left.legend(loc="lower right")
        right.plot(n, abs(value - exact), "kD")
        right.plot(counts, deviation / np.sqrt(counts), "k--", label=rf"predicted: ${deviation:.2f}\,/\sqrt{{N}}$")
        right.legend(loc="lower left")


def plot_degenerate(mixture, single, gap, result, path):
    """Item 1.3: the estimate beside that of N_2 alone, and the gap between the two entropies."""
    entropy, exact = result["single_gaussian"], result["gap_quadrature"]
    mantissa, exponent = f"{exact:.3e}".split("e")
    with figure_file(path, (8.5, 3.8), "Nearly degenerate weights: the mixture $p$ and its component $N_2$") as figure:
        left, right = _draw_panels(figure, "entropy (nats)", "$H(p) - H(N_2)$ (nats)")
        left.plot(mixture.n, mixture.value, color=ORANGE, alpha=0.6, linewidth=5, label="mixture")
        left.plot(single.n, single.value, color=BLUE, label="$N_2$ alone, same normals")
        left.axhline(entropy, color="black", linestyle="--", label=f"$H(N_2)$ = ${entropy:.4f}$")
        left.legend()
        _draw_run(right, gap, BLUE, "importance sampling\nand its 95 % interval")
        right.axhline(exact, color="black", linestyle="--", label=rf"exact: ${mantissa}\times10^{{{int(exponent)}}}$")
        right.axhline(0, color="black", linewidth=1)
        right.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
        right.legend(loc="center right")  # between the two lines


def _draw_panels(figure, *quantities):
    """Two panels side by side, of quantities against the number of samples."""
    panels = figure.subplots(1, 2, subplot_kw={"xscale": "log", "xlabel": "number of samples N"})
    figure.get_layout_engine().set(wspace=0.06)
    for axes, quantity in zip(panels, quantities, strict=True):
        axes.set(ylabel=quantity)
        axes.grid(alpha=0.3)
    return panels


def _draw_run(axes, run, color, label):
    """Draw estimates with the 95 % interval of each."""
    half_width = NORMAL_95 * run.standard_error
    axes.plot(run.n, run.value, color=color, label=label)
    axes.fill_between(run.n, run.value - half_width, run.value + half_width, color=color, alpha=0.25, linewidth=0)
