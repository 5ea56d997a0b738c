"""Problem 1 against oracles: SciPy, scikit-learn, closed forms, quadrature, and repetition over seeds."""

import inspect
import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy import stats
from scipy.integrate import quad
from scipy.special import entr, logsumexp
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info

import gmm_entropy
from gmm_entropy import (
    BALANCED_WEIGHTS,
    CHUNK,
    COVARIANCES,
    DEGENERATE_WEIGHTS,
    GAP_METHODS,
    GMM,
    MEANS,
    N_MAX,
    N_SAMPLES,
    REPLICATES,
    SECOND,
    Running,
    component_counts,
    entropy_bounds,
    entropy_gap,
    gaussian_entropy,
    mc_entropy,
    quadrature_entropy,
    run_problem_1,
    running_entropy,
    running_gap,
    solve_problem_1,
)

ROOT = Path(gmm_entropy.__file__).parent


@pytest.fixture(scope="module")
def balanced():
    return GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES)


@pytest.fixture(scope="module")
def degenerate():
    return GMM(DEGENERATE_WEIGHTS, MEANS, COVARIANCES)


def random_gmm(components, dimension, seed, spread=2.0):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(components, dimension, dimension)) + 2 * np.eye(dimension)
    means = spread * rng.normal(size=(components, dimension))
    return GMM(rng.dirichlet(np.ones(components)), means, factors @ factors.transpose(0, 2, 1))


def concentric(sigma, weight=0.5):
    return GMM((1 - weight, weight), np.zeros((2, 2)), np.stack([np.eye(2), sigma**2 * np.eye(2)]))


def radial_entropy(sigma, weight=0.5):
    """Entropy of `concentric` by a one-dimensional integral over the radius, independent of the module."""

    def integrand(log_radius):
        radius = np.exp(log_radius)
        parts = [np.log(1 - weight) - radius**2 / 2, np.log(weight) - (radius / sigma) ** 2 / 2 - 2 * np.log(sigma)]
        log_p = logsumexp(parts) - np.log(2 * np.pi)
        return -2 * np.pi * radius**2 * np.exp(log_p) * log_p

    edges = np.linspace(np.log(sigma) - 15, np.log(12), 60)
    return sum(quad(integrand, a, b, epsabs=1e-14)[0] for a, b in pairwise(edges))


# The mixture.


@pytest.mark.parametrize(("components", "dimension"), [(1, 1), (3, 2), (4, 5), (2, 30)])
def test_log_density_agrees_with_scipy(components, dimension):
    gmm = random_gmm(components, dimension, seed=1)
    points = np.random.default_rng(2).normal(scale=4, size=(CHUNK + 7, dimension))
    parameters = zip(gmm.weights, gmm.means, gmm.covariances, strict=True)
    terms = [np.log(w) + stats.multivariate_normal(m, c).logpdf(points) for w, m, c in parameters]
    np.testing.assert_allclose(gmm.log_prob(points), logsumexp(terms, axis=0), rtol=1e-10)


def test_log_density_agrees_with_scikit_learn(balanced):
    reference = GaussianMixture(3)
    reference.weights_, reference.means_ = balanced.weights, balanced.means
    reference.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(balanced.covariances))
    points, _ = balanced.sample(1000, np.random.default_rng(0))
    np.testing.assert_allclose(balanced.log_prob(points), reference.score_samples(points), rtol=1e-10)


def test_far_points_have_a_finite_log_density(balanced):
    log_density = balanced.log_prob(np.array([[1e6, -1e6], [1e150, 1e150]]))
    expected = [stats.multivariate_normal(m, c).logpdf([1e6, -1e6]) for m, c in zip(MEANS, COVARIANCES, strict=True)]
    assert log_density[0] == pytest.approx(logsumexp(expected, b=BALANCED_WEIGHTS), rel=1e-12)
    assert np.isfinite(log_density).all()
    assert balanced.log_prob([[1e160, 0.0]])[0] == -np.inf


def test_means_far_from_the_origin_lose_no_digits():
    means = np.array([[-2.0, 0.5], [0.5, 0.0]])
    points = np.random.default_rng(0).integers(-64, 64, size=(100, 2)) / 16
    near, far = (GMM((0.5, 0.5), means + offset, COVARIANCES[:2]) for offset in (0, 2.0**40))
    np.testing.assert_array_equal(far.log_prob(points + 2.0**40), near.log_prob(points))


def test_nearly_singular_covariance_works():
    covariance = np.array([[1.0, 1 - 1e-12], [1 - 1e-12, 1.0]])
    gmm = GMM([1.0], [[0.0, 0.0]], [covariance])
    log_det = np.log(1 - covariance[0, 1]) + np.log(1 + covariance[0, 1])
    assert gmm.log_prob([[0.0, 0.0]])[0] == pytest.approx(-np.log(2 * np.pi) - log_det / 2, abs=1e-9)
    estimate = mc_entropy(gmm, 20_000)
    assert abs(estimate.value - gaussian_entropy(covariance)) < 5 * estimate.standard_error


def test_component_of_weight_zero_changes_nothing(balanced):
    gmm = GMM([*BALANCED_WEIGHTS, 0], [*MEANS, (40.0, 40.0)], [*COVARIANCES, np.eye(2)])
    points, labels = gmm.sample(5000, np.random.default_rng(0))
    assert labels.max() == 2
    np.testing.assert_array_equal(gmm.log_prob(points), balanced.log_prob(points))
    assert quadrature_entropy(gmm) == pytest.approx(quadrature_entropy(balanced), abs=1e-10)
    assert entropy_bounds(gmm) == pytest.approx(entropy_bounds(balanced), abs=1e-12)
    gap, reference = (entropy_gap(mixture, SECOND, 30_000) for mixture in (gmm, balanced))
    assert gap.value == pytest.approx(reference.value, abs=4 * (gap.standard_error + reference.standard_error))
    assert gap.standard_error == pytest.approx(reference.standard_error, rel=0.1)


def test_weights_are_scaled_to_sum_to_one():
    gmm = GMM([0.5, 0.5 + 5e-9], [[0.0], [1.0]], [[[1.0]]] * 2)
    assert gmm.weights.sum() == pytest.approx(1, abs=1e-15)


def test_samples_have_the_moments_and_frequencies_of_their_components(balanced):
    n = 200_000
    points, labels = balanced.sample(n, np.random.default_rng(3))
    assert points.shape == (n, 2)
    assert stats.chisquare(np.bincount(labels), n * balanced.weights).pvalue > 1e-4
    for k, (mean, covariance) in enumerate(zip(balanced.means, balanced.covariances, strict=True)):
        own = points[labels == k]
        np.testing.assert_allclose(own.mean(axis=0), mean, atol=5 * np.sqrt(covariance.max() / len(own)))
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=8 * covariance.max() / np.sqrt(len(own)))
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), (own - mean).T)
        assert stats.kstest(np.sum(whitened**2, axis=0), stats.chi2(2).cdf).pvalue > 1e-4


def test_samples_come_in_random_order(balanced):
    _, labels = balanced.sample(100_000, np.random.default_rng(4))
    repeats = np.count_nonzero(labels[1:] == labels[:-1])
    expected = np.sum(balanced.weights**2)
    assert abs(repeats / (len(labels) - 1) - expected) < 5 * np.sqrt(expected / len(labels))


# Closed forms, bounds and quadrature.


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_gaussian_entropy_agrees_with_scipy(dimension):
    covariance = random_gmm(1, dimension, seed=5).covariances[0]
    assert gaussian_entropy(covariance) == pytest.approx(stats.multivariate_normal(cov=covariance).entropy(), rel=1e-12)


def test_quadrature_of_one_gaussian_is_the_closed_form():
    covariance = [[1e6, 999.0], [999.0, 1.0]]
    assert quadrature_entropy(GMM([1], [[5, 5]], [covariance])) == pytest.approx(gaussian_entropy(covariance), abs=1e-9)


@pytest.mark.parametrize("weights", [BALANCED_WEIGHTS, DEGENERATE_WEIGHTS])
def test_quadrature_agrees_with_a_plain_grid(weights):
    gmm = GMM(weights, MEANS, COVARIANCES)
    axis = np.arange(-14, 14, 0.04)
    log_p = gmm.log_prob(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    assert quadrature_entropy(gmm) == pytest.approx(np.sum(entr(np.exp(log_p))) * 0.04**2, abs=1e-10)


@pytest.mark.parametrize("sigma", [0.1, 1e-3, 1e-5])
def test_quadrature_sees_a_narrow_component_inside_a_wide_one(sigma):
    assert quadrature_entropy(concentric(sigma)) == pytest.approx(radial_entropy(sigma), abs=1e-9)


@pytest.mark.parametrize("narrow", [0, 1])
def test_quadrature_sees_a_narrow_tilted_component_far_from_the_center_of_a_wide_one(narrow):
    means, covariances = [[0.3, -0.2], [2.3, -1.1]], [[[1.0, 0.6], [0.6, 0.8]], [[1e-6, 5e-7], [5e-7, 1e-6]]]
    order = [1 - narrow, narrow]
    gmm = GMM([0.5, 0.5], np.array(means)[order], np.array(covariances)[order])
    estimate = mc_entropy(gmm, 1_000_000)
    assert quadrature_entropy(gmm) == pytest.approx(estimate.value, abs=4 * estimate.standard_error)


def test_quadrature_that_does_not_converge_is_an_error(balanced, monkeypatch):
    cubature = partial(gmm_entropy.cubature, max_subdivisions=2)
    monkeypatch.setattr(gmm_entropy, "cubature", cubature)
    with pytest.raises(ArithmeticError, match="component 0"):
        quadrature_entropy(balanced)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_entropy_lies_between_the_bounds_and_within_the_grouping_bound(seed):
    gmm = random_gmm(3, 2, seed, spread=1.5)
    lower, upper = entropy_bounds(gmm)
    exact = quadrature_entropy(gmm)
    mean_entropy = gmm.weights @ [gaussian_entropy(covariance) for covariance in gmm.covariances]
    assert mean_entropy < lower < exact < upper < mean_entropy + entr(gmm.weights).sum()


def test_bounds_agree_with_the_integrals_that_define_their_distances():
    gmm = GMM((0.3, 0.7), ((0.0,), (1.5,)), (((1.0,),), ((0.5,),)))
    first, second = (stats.norm(m, np.sqrt(v)) for m, v in ((0.0, 1.0), (1.5, 0.5)))

    def integral(function):
        return quad(function, -12, 12, epsabs=1e-13)[0]

    def bound(first_to_second, second_to_first):
        entropies = 0.3 * first.entropy() + 0.7 * second.entropy()
        mixing = 0.3 * np.log(0.3 + 0.7 * np.exp(-first_to_second)) + 0.7 * np.log(0.7 + 0.3 * np.exp(-second_to_first))
        return entropies - mixing

    overlap = -np.log(integral(lambda x: np.sqrt(first.pdf(x) * second.pdf(x))))
    forward = integral(lambda x: first.pdf(x) * (first.logpdf(x) - second.logpdf(x)))
    backward = integral(lambda x: second.pdf(x) * (second.logpdf(x) - first.logpdf(x)))
    assert entropy_bounds(gmm) == pytest.approx((bound(overlap, overlap), bound(forward, backward)), abs=1e-9)


def test_bounds_are_tight_for_equal_and_for_separate_components():
    equal = GMM((0.4, 0.6), ((1, 2), (1, 2)), np.stack([COVARIANCES[0]] * 2))
    assert entropy_bounds(equal) == pytest.approx([gaussian_entropy(COVARIANCES[0])] * 2, abs=1e-12)
    separate = GMM(BALANCED_WEIGHTS, 1e3 * np.array(MEANS), COVARIANCES)
    entropy = separate.weights @ [gaussian_entropy(c) for c in COVARIANCES] + entr(separate.weights).sum()
    assert entropy_bounds(separate) == pytest.approx([entropy] * 2, abs=1e-12)
    assert quadrature_entropy(separate) == pytest.approx(entropy, abs=1e-9)


# Monte Carlo.


@pytest.mark.parametrize("weights", [BALANCED_WEIGHTS, DEGENERATE_WEIGHTS])
def test_95_percent_intervals_hold_the_entropy_95_times_in_100(weights):
    gmm = GMM(weights, MEANS, COVARIANCES)
    exact = quadrature_entropy(gmm)
    estimates = [mc_entropy(gmm, 2000, seed) for seed in range(400)]
    scores = np.array([(estimate.value - exact) / estimate.standard_error for estimate in estimates])
    assert stats.binomtest(np.count_nonzero(np.abs(scores) < 1.96), len(scores), 0.95).pvalue > 1e-3
    assert abs(scores.mean()) < 4 / np.sqrt(len(scores))


def test_estimate_over_many_chunks_agrees_with_quadrature(balanced):
    n = 1_000_000
    estimate = mc_entropy(balanced, n, seed=1)
    assert estimate.n == n
    assert estimate.standard_error == pytest.approx(0.92 / np.sqrt(n), rel=0.05)
    assert abs(estimate.value - quadrature_entropy(balanced)) < 4 * estimate.standard_error


def test_estimate_is_the_mean_and_deviation_of_all_its_samples(balanced):
    n = 3 * CHUNK + 5
    values = running_entropy(balanced, n, seed=6, replicates=1)
    seed = int(np.random.SeedSequence(6).generate_state(1)[0])
    estimate = mc_entropy(balanced, n, seed)
    assert estimate.value == pytest.approx(values.values[0, -1], rel=1e-12)
    assert estimate.standard_error == pytest.approx(values.standard_errors[0, -1], rel=1e-9)


@pytest.mark.parametrize("n", [2, 10, CHUNK + 2])
def test_estimate_is_the_mean_and_the_standard_error_of_its_samples_by_scipy(balanced, monkeypatch, n):
    log_p, original = [], GMM._log_density
    monkeypatch.setattr(GMM, "_log_density", lambda *args: log_p.append(original(*args)) or log_p[-1].copy())
    estimate = mc_entropy(balanced, n, seed=5, threads=1)
    values = -np.concatenate(log_p)
    assert len(values) == n
    assert estimate == pytest.approx((values.mean(), stats.sem(values), n), rel=1e-12)


def test_seed_is_zero_unless_given(balanced, monkeypatch):
    estimators = (
        mc_entropy,
        component_counts,
        running_entropy,
        lambda gmm, n, **seed: entropy_gap(gmm, SECOND, n, **seed),
        lambda gmm, n, **seed: running_gap(gmm, SECOND, "plain", n, **seed),
    )
    for estimator in estimators:
        np.testing.assert_equal(estimator(balanced, 100), estimator(balanced, 100, seed=0))
    assert {inspect.signature(run).parameters["seed"].default for run in (solve_problem_1, run_problem_1)} == {0}


def test_one_dimensional_entropy_agrees_with_quad():
    gmm = random_gmm(3, 1, seed=7)
    exact = quad(lambda x: entr(np.exp(gmm.log_prob([[x]])[0])), -60, 60, limit=500, epsabs=1e-10)[0]
    estimate = mc_entropy(gmm, 200_000)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_five_dimensional_entropy_of_separate_components_is_the_closed_form():
    gmm = random_gmm(3, 5, seed=8, spread=1e4)
    exact = gmm.weights @ [gaussian_entropy(c) for c in gmm.covariances] + entr(gmm.weights).sum()
    estimate = mc_entropy(gmm, 100_000)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error


def test_value_depends_on_the_seed_and_not_on_the_threads(balanced):
    n = 20 * CHUNK + 1
    estimates = {mc_entropy(balanced, n, seed=2, threads=threads) for threads in (1, 2, 5)}
    assert estimates == {mc_entropy(balanced, n, seed=2)}
    assert mc_entropy(balanced, n, seed=3).value != mc_entropy(balanced, n, seed=2).value


def test_matrix_library_has_one_thread_in_each_chunk_and_all_its_own_afterwards(monkeypatch):
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    inside, original = [], GMM._log_density
    monkeypatch.setattr(GMM, "_log_density", lambda *args: inside.append(threads()) or original(*args))
    before = threads()
    mc_entropy(random_gmm(2, 32, seed=9), CHUNK + 1)
    assert inside == 2 * [[1] * len(before)]
    assert threads() == before


def test_one_sample_has_a_value_and_no_standard_error(balanced):
    estimate = mc_entropy(balanced, 1)
    assert np.isfinite(estimate.value)
    assert np.isnan(estimate.standard_error)


def test_counts_are_those_of_the_samples_drawn(balanced, monkeypatch):
    n, drawn, original = 2 * CHUNK + 3, [], GMM._draw
    monkeypatch.setattr(GMM, "_draw", lambda gmm, counts, rng: drawn.append(counts) or original(gmm, counts, rng))
    mc_entropy(balanced, n, seed=4)
    np.testing.assert_array_equal(component_counts(balanced, n, seed=4), sum(drawn))


def test_chunks_do_not_queue_up_ahead_of_the_threads():
    started = []
    items = (started.append(item) or item for item in range(1000))
    for done, result in enumerate(gmm_entropy._map_in_order(abs, items, threads=2)):
        assert result == done
        assert len(started) <= done + 4 * 2
    assert len(started) == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_samples():
    script = """
import gmm_entropy as g
gmm = g.GMM(g.BALANCED_WEIGHTS, g.MEANS, g.COVARIANCES)
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])  # KiB
g.mc_entropy(gmm, 1_000_000); before = peak()
g.mc_entropy(gmm, 10_000_000); print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 32 * 1024  # one array of the samples would take 160 MB


# The gap of 1.3.


def exact_gap(gmm):
    return quadrature_entropy(gmm) - gaussian_entropy(COVARIANCES[SECOND])


def test_gap_by_importance_sampling_is_precise_and_its_error_calibrated(degenerate):
    exact = exact_gap(degenerate)
    estimates = [entropy_gap(degenerate, SECOND, 6000, seed) for seed in range(200)]
    scores = np.array([(estimate.value - exact) / estimate.standard_error for estimate in estimates])
    assert max(estimate.standard_error for estimate in estimates) < 0.02 * exact
    assert abs(scores.mean()) < 4 / np.sqrt(len(scores))
    assert 0.85 < scores.std() < 1.15


@pytest.mark.parametrize("method", GAP_METHODS)
@pytest.mark.parametrize("component", range(3))
def test_every_method_estimates_the_gap_to_every_component(method, component):
    gmm = GMM((0.3, 0.4, 0.3), 0.3 * np.array(MEANS), COVARIANCES)
    exact = quadrature_entropy(gmm) - gaussian_entropy(COVARIANCES[component])
    estimate = entropy_gap(gmm, component, 200_000, 1, method)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.02


def test_plain_gap_is_the_entropy_less_the_closed_form(balanced):
    entropy = mc_entropy(balanced, 1000, seed=3)
    gap = entropy_gap(balanced, SECOND, 1000, 3, "plain")
    assert gap == pytest.approx(entropy._replace(value=entropy.value - gaussian_entropy(COVARIANCES[SECOND])))


@pytest.mark.parametrize("n", [3, 1000, 3 * CHUNK + 5])
def test_importance_sampling_draws_n_samples_an_equal_share_from_each_component(degenerate, monkeypatch, n):
    drawn, original = [], GMM._draw
    monkeypatch.setattr(GMM, "_draw", lambda gmm, counts, rng: drawn.append(counts) or original(gmm, counts, rng))
    entropy_gap(degenerate, SECOND, n)
    counts = sum(drawn)
    assert counts.sum() == n
    assert np.ptp(counts) <= 1


def test_gap_of_a_single_component_is_zero():
    gmm = GMM([1.0], [MEANS[0]], [COVARIANCES[0]])
    assert entropy_gap(gmm, 0, 100).value == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("method", GAP_METHODS)
def test_running_gap_ends_at_the_estimate_of_all_samples(degenerate, method):
    n = 3 * CHUNK
    running = running_gap(degenerate, SECOND, method, n, seed=9, replicates=2)
    seeds = np.random.SeedSequence(9).generate_state(2).tolist()
    estimates = np.array([entropy_gap(degenerate, SECOND, n, seed, method)[:2] for seed in seeds])
    np.testing.assert_allclose(running.values[:, -1], estimates[:, 0], rtol=1e-7)
    np.testing.assert_allclose(running.standard_errors[:, -1], estimates[:, 1], rtol=1e-7)


def test_running_estimate_and_its_error_are_fair_from_the_first_samples(balanced):
    running = running_entropy(balanced, 1000, seed=1, replicates=2000)
    assert running.counts[0] == 10
    early = running.values[:, 0]
    assert abs(early.mean() - quadrature_entropy(balanced)) < 4 * early.std() / np.sqrt(len(early))
    assert early.std() == pytest.approx(0.92 / np.sqrt(10), rel=0.1)
    # An unbiased variance, so that its mean over the runs is the true one; 5 % are four of that mean's own errors.
    deviation = running_entropy(balanced, 100_000, seed=2, replicates=1).standard_errors[0, -1] * np.sqrt(100_000)
    predicted = deviation / np.sqrt(running.counts)
    np.testing.assert_allclose(np.sqrt(np.mean(running.standard_errors**2, axis=0)), predicted, rtol=0.05)


def test_running_mean_and_its_error_are_those_of_the_first_values_by_scipy():
    def draw(size, rng):
        return rng.gamma(2, size=size)

    counts = np.array([2, 3, 10, CHUNK + 1, CHUNK + 5])
    mean, variance_of_mean = gmm_entropy._running_mean(draw, gmm_entropy._chunks(counts[-1], seed=1), counts)
    chunks = gmm_entropy._chunks(counts[-1], seed=1)
    values = np.concatenate([rng.permutation(draw(size, rng)) for size, rng in chunks])
    np.testing.assert_allclose(mean, [values[:n].mean() for n in counts], rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(variance_of_mean), [stats.sem(values[:n]) for n in counts], rtol=1e-9)


def test_running_estimates_reach_a_million_samples_in_eight_runs_unless_told_otherwise(balanced):
    assert (N_MAX, REPLICATES) == (1_000_000, 8)
    counts = running_entropy(balanced, replicates=1).counts
    assert (counts[0], counts[-1]) == (10, N_MAX)
    ratio = (N_MAX / 10) ** (1 / 199)  # two hundred, evenly spaced on the plots' logarithmic axis
    np.testing.assert_allclose(np.diff(np.log(counts[counts > 100_000])), np.log(ratio), rtol=2e-3)
    assert running_entropy(balanced, n_max=10).values.shape == (REPLICATES, 1)


# Inputs that cannot be used.


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([], [], [], r"shapes \(\(0,\), \(0,\), \(0,\)\), expected \(K,\), \(K, d\), \(K, d, d\)"),
        ([], np.empty((0, 2)), np.empty((0, 2, 2)), "have shapes"),
        ([[1.0]], [[0.0]], [[[1.0]]], "have shapes"),
        ([0.5, 0.5], [[0.0]], [[[1.0]]], "have shapes"),
        ([1.0], [[[0.0]]], [[[1.0]]], "have shapes"),
        ([1.0], [[0.0, 0.0]], [[[1.0]]], "have shapes"),
        ([0.5, 0.6], [[0.0]] * 2, [[[1.0]]] * 2, "weights are"),
        ([-0.5, 1.5], [[0.0]] * 2, [[[1.0]]] * 2, "weights are"),
        ([np.nan], [[0.0]], [[[1.0]]], "weights: found a NaN"),
        ([1.0], [[np.inf]], [[[1.0]]], "means: found a NaN"),
        ([1.0], [[0.0]], [[[np.nan]]], "covariance 0: found a NaN"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.4, 1.0]]], "covariance 0 .* symmetric"),
        ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], "covariance 0 .* positive definite"),
    ],
)
def test_parameters_that_are_no_mixture_are_refused(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GMM(weights, means, covariances)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda gmm: gmm.log_prob(np.zeros(2)), r"shape \(2,\), expected \(n, 2\)"),
        (lambda gmm: gmm.log_prob(np.zeros((4, 3))), r"shape \(4, 3\), expected \(n, 2\)"),
        (lambda gmm: gmm.log_prob([[0.0, np.nan]]), "points: found a NaN"),
        (lambda gmm: gmm.sample(-1, np.random.default_rng(0)), "n < 0"),
        (lambda gmm: mc_entropy(gmm, 0), "n is 0"),
        (lambda gmm: entropy_gap(gmm, SECOND, 2), "n is 2, expected at least 3"),
        (lambda gmm: entropy_gap(gmm, 3, 100), "component is 3"),
        (lambda gmm: entropy_gap(gmm, -1, 100), "component is -1"),
        (lambda gmm: entropy_gap(gmm, SECOND, 100, method="magic"), "method is 'magic'"),
        (lambda gmm: quadrature_entropy(random_gmm(2, 3, seed=0)), "2 dimensions, found 3"),
        (lambda gmm: gaussian_entropy(np.ones((2, 3))), r"expected \(d, d\)"),
        (lambda gmm: gaussian_entropy(np.ones((3, 2))), r"expected \(d, d\)"),
        (lambda gmm: gaussian_entropy(np.ones((1, 1, 1))), r"expected \(d, d\)"),
        (lambda gmm: gaussian_entropy(np.empty((0, 0))), r"expected \(d, d\)"),
    ],
)
def test_arguments_out_of_range_are_refused(balanced, call, message):
    with pytest.raises(ValueError, match=message):
        call(balanced)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_symmetry_is_judged_relative_to_the_covariance(scale):
    rounded, skewed = (scale * np.array([[1.0, 0.5 + asymmetry], [0.5, 1.0]]) for asymmetry in (1e-12, 1e-6))
    assert np.isfinite(gaussian_entropy(rounded))
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_entropy(skewed)


# Numbers and figures of the report.


def test_problem_is_the_one_that_the_report_states(balanced, degenerate):
    assert (BALANCED_WEIGHTS, DEGENERATE_WEIGHTS) == ((0.2, 0.5, 0.3), (1e-5, 1 - 2e-5, 1e-5))
    assert (N_SAMPLES, SECOND) == (100_000, 1)
    # By the sum of -p log p over a grid of step 0.02, p from SciPy.
    assert quadrature_entropy(balanced) == pytest.approx(3.28029154529, abs=1e-9)
    assert quadrature_entropy(degenerate) == pytest.approx(2.57419046943, abs=1e-9)
    assert gaussian_entropy(COVARIANCES[SECOND]) == pytest.approx(2.57406069537, abs=1e-9)


@pytest.fixture(scope="module")
def results():
    return solve_problem_1(seed=1)


def test_results_are_plain_numbers_that_agree_with_each_other(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    for mixture in results.values():
        assert mixture["samples"] == N_SAMPLES
        assert abs(mixture["entropy"] - mixture["quadrature"]) < 4 * mixture["standard_error"]
        assert mixture["lower_bound"] < mixture["quadrature"] < mixture["upper_bound"]
    assert results["degenerate"]["weights"] == list(DEGENERATE_WEIGHTS)


def test_single_gaussian_is_estimated_like_the_mixture(results):
    degenerate = results["degenerate"]
    error = degenerate["single_gaussian_estimate_error"]
    # -log N is half a chi-squared variable of d = 2 degrees of freedom and a constant: its variance is d / 2.
    assert error == pytest.approx(1 / np.sqrt(N_SAMPLES), rel=0.02)
    exact = stats.multivariate_normal(MEANS[SECOND], COVARIANCES[SECOND]).entropy()
    assert abs(degenerate["single_gaussian_estimate"] - exact) < 4 * error


def test_only_importance_sampling_resolves_the_gap(results):
    degenerate = results["degenerate"]
    assert degenerate["gap"] == pytest.approx(degenerate["gap_quadrature"], rel=0.01)
    needed = {method: row["samples_for_one_percent"] for method, row in degenerate["gap_methods"].items()}
    for method, row in degenerate["gap_methods"].items():
        standard_error = row["standard_error"] * np.sqrt(row["samples"] / needed[method])
        assert standard_error == pytest.approx(0.01 * degenerate["gap_quadrature"])
    assert needed["multiple_importance"] < N_SAMPLES < 1e10 < needed["plain"]


def test_standard_errors_of_all_but_the_control_variate_are_true(results):
    assert results["degenerate"]["calibration_runs"] == 50
    rms = {name: row["rms_error_in_standard_errors"] for name, row in results["degenerate"]["gap_methods"].items()}
    uncertainty = 1 / np.sqrt(2 * results["degenerate"]["calibration_runs"])  # of a root mean square around 1
    assert abs(rms["plain"] - 1) < 4 * uncertainty
    assert abs(rms["multiple_importance"] - 1) < 4 * uncertainty
    assert rms["control_variate"] > 3


def small_run(folder):
    """`run_problem_1` with fewer samples, since drawing a hundred thousand points takes seconds: its figures."""
    figures, save = {}, gmm_entropy.save_figure

    def remember(figure, path):
        figures[path.stem] = figure
        save(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gmm_entropy, "N_SAMPLES", 5000)
        patch.setattr(gmm_entropy, "CALIBRATION_RUNS", 2)
        patch.setattr(gmm_entropy, "save_figure", remember)
        run_problem_1(folder, seed=2, n_max=2000)
    return figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def figures(folder):
    return small_run(folder)


def test_figures_are_the_same_bytes_for_the_same_seed(figures, folder, tmp_path):
    small_run(tmp_path)
    names = {"gmm_scatter.png", "gmm_entropy.png", "gmm_entropy_degenerate.png"}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["gmm_scatter", "gmm_entropy", "gmm_entropy_degenerate"])
def test_figure_is_not_blank(figures, folder, name):
    pixels = imread(folder / f"{name}.png")
    assert pixels.shape[1] > 1000
    colors = np.round(255 * pixels).astype(np.uint8).view(np.uint32)  # a pixel's four channels in one number
    assert len(np.unique(colors)) > 50


def test_scatter_shows_red_green_and_blue(figures, folder):
    pixels = imread(folder / "gmm_scatter.png")[..., :3]
    for color in ((1, 0, 0), (0, 128 / 255, 0), (0, 0, 1)):
        assert np.count_nonzero(np.abs(pixels - color).max(axis=-1) < 0.02) > 50


@pytest.mark.parametrize(("name", "panels"), [("gmm_entropy", 2), ("gmm_entropy_degenerate", 4)])
def test_estimates_are_drawn_against_the_logarithm_of_the_number_of_samples(figures, name, panels):
    figure = figures[name]
    assert len(figure.axes) == panels
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "number of samples N")
        assert axes.xaxis.get_gridlines()[0].get_visible()
    assert "N up to 2,000, seed 2" in figure.get_suptitle()


def lines(axes):
    """The labelled curves of a panel, {label up to its number: values}; constants are drawn as lines of two points."""
    return {line.get_label().split(";")[0]: line.get_ydata() for line in axes.lines if len(line.get_ydata()) > 2}


def test_single_gaussian_is_drawn_beside_the_mixture_and_magnified(figures):
    panel = figures["gmm_entropy_degenerate"].axes[0]
    (inset,) = panel.child_axes
    single = GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])
    for axes in (panel, inset):
        assert np.array_equal(lines(axes)["$N_2$ alone, same seed"], running_entropy(single, 2000, seed=2).values[0])
    assert inset.get_xlim() == (200, 2000)  # the last of the two decades
    assert np.ptp(inset.get_ylim()) < np.ptp(panel.get_ylim()) / 3


def test_gap_is_drawn_on_a_linear_axis_by_the_methods_that_can_see_it(figures, degenerate):
    panel = figures["gmm_entropy_degenerate"].axes[2]
    assert panel.get_yscale() == "linear"
    assert set(lines(panel)) == {"control variate", "multiple importance"}
    expected = running_gap(degenerate, SECOND, "multiple_importance", 2000, seed=2).values[0]
    assert np.array_equal(lines(panel)["multiple importance"], expected)
    assert "10^{-4}$ nats" in panel.get_ylabel()
    assert panel.yaxis.get_major_formatter()(1.5e-4) == "1.5"


def test_colour_means_the_same_in_all_panels(figures):
    colors = {}
    for name in ("gmm_entropy", "gmm_entropy_degenerate"):
        for axes in figures[name].axes:
            for line in axes.lines:
                colors.setdefault(line.get_label(), set()).add(line.get_color())
    assert all(len(found) == 1 for label, found in colors.items() if not label.startswith("_"))
    plain = ("plain", "one run and its 95 % interval", "root mean square of the runs")
    assert len(set.union(*(colors[label] for label in plain))) == 1


def test_interval_holds_95_percent_of_a_normal_distribution():
    axes = Figure().subplots()
    running = Running(np.array([10, 20]), np.array([[1.0, 2.0]]), np.array([[0.3, 0.1]]))
    gmm_entropy._plot_interval(axes, running, "red", "one run")
    x, y = axes.collections[0].get_paths()[0].vertices.T
    for count, width in ((10, 0.3), (20, 0.1)):
        assert np.ptp(y[x == count]) == pytest.approx(2 * stats.norm.ppf(0.975) * width, rel=1e-3)
