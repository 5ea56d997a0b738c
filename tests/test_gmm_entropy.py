"""Problem 1 against oracles: SciPy, closed forms, quadrature, and repetition over seeds."""

import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import nothing_rendered
from scipy import stats
from scipy.integrate import quad
from scipy.special import entr, logsumexp, softmax
from threadpoolctl import threadpool_info

import gmm_entropy
from gmm_entropy import COVARIANCES, GMM, MEANS, SECOND, entropy_gap, gaussian_entropy, mc_entropy, quadrature_entropy

ROOT = Path(gmm_entropy.__file__).parent
STANDARD_NORMAL = GMM([1.0], [[0.0]], [[[1.0]]])
BALANCED = GMM(gmm_entropy.BALANCED_WEIGHTS, MEANS, COVARIANCES)
DEGENERATE = GMM(gmm_entropy.DEGENERATE_WEIGHTS, MEANS, COVARIANCES)


def random_gmm(components, dimension, seed, spread=2.0):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(components, dimension, dimension)) + 2 * np.eye(dimension)
    means = spread * rng.normal(size=(components, dimension))
    return GMM(rng.dirichlet(np.ones(components)), means, factors @ factors.transpose(0, 2, 1))


def gap_by_quadrature(gmm, component):
    return quadrature_entropy(gmm) - gaussian_entropy(gmm.covariances[component])


# The mixture.


@pytest.mark.parametrize(("components", "dimension"), [(1, 1), (3, 2), (4, 5), (2, 30)])
def test_log_density_agrees_with_scipy(components, dimension):
    gmm = random_gmm(components, dimension, seed=1)
    points = np.random.default_rng(2).normal(scale=4, size=(1000, dimension))
    parameters = zip(gmm.weights, gmm.means, gmm.covariances, strict=True)
    terms = [np.log(w) + stats.multivariate_normal(m, c).logpdf(points) for w, m, c in parameters]
    np.testing.assert_allclose(gmm.log_prob(points), logsumexp(terms, axis=0), rtol=1e-10)


def test_far_points_have_a_finite_log_density():
    log_density = BALANCED.log_prob([[1e6, -1e6], [1e150, 1e150], [1e160, 0.0]])
    expected = [stats.multivariate_normal(m, c).logpdf([1e6, -1e6]) for m, c in zip(MEANS, COVARIANCES, strict=True)]
    assert log_density[0] == pytest.approx(logsumexp(expected, b=gmm_entropy.BALANCED_WEIGHTS), rel=1e-12)
    assert np.isfinite(log_density[1])
    assert log_density[2] == -np.inf


def test_means_far_from_the_origin_lose_no_digits():
    means = np.array([[-2.0, 0.5], [0.5, 0.0]])
    points = np.random.default_rng(0).integers(-64, 64, size=(100, 2)) / 16
    near, far = (GMM((0.5, 0.5), means + offset, COVARIANCES[:2]) for offset in (0, 2.0**38))
    np.testing.assert_array_equal(far.log_prob(points + 2.0**38), near.log_prob(points))


def test_nearly_singular_covariance_works():
    covariance = np.array([[1.0, 1 - 1e-12], [1 - 1e-12, 1.0]])
    gmm = GMM([1.0], [[0.0, 0.0]], [covariance])
    log_det = np.log(1 - covariance[0, 1]) + np.log(1 + covariance[0, 1])
    assert gmm.log_prob([[0.0, 0.0]])[0] == pytest.approx(-np.log(2 * np.pi) - log_det / 2, abs=1e-9)
    estimate = mc_entropy(gmm, 20_000)
    assert abs(estimate.value - gaussian_entropy(covariance)) < 5 * estimate.standard_error


def test_component_of_weight_zero_changes_nothing():
    gmm = GMM([*gmm_entropy.BALANCED_WEIGHTS, 0], [*MEANS, (40.0, 40.0)], [*COVARIANCES, np.eye(2)])
    points, labels = gmm.sample(5000, np.random.default_rng(0))
    assert labels.max() == 2
    np.testing.assert_array_equal(gmm.log_prob(points), BALANCED.log_prob(points))
    assert quadrature_entropy(gmm) == pytest.approx(quadrature_entropy(BALANCED), abs=1e-10)
    assert gmm_entropy.entropy_bounds(gmm) == pytest.approx(gmm_entropy.entropy_bounds(BALANCED), abs=1e-12)
    gap, reference = (entropy_gap(mixture, SECOND, 30_000) for mixture in (gmm, BALANCED))
    assert gap.value == pytest.approx(reference.value, abs=4 * (gap.standard_error + reference.standard_error))


def test_weights_that_are_rounded_are_scaled_to_sum_to_one():
    rounded = softmax(np.linspace(0, 3, 50).astype(np.float32)) * np.float32(1 + 5e-7)
    gmm = GMM(rounded, np.zeros((50, 1)), np.ones((50, 1, 1)))
    assert abs(rounded.sum(dtype=float) - 1) > 1e-7
    np.testing.assert_allclose(gmm.weights, rounded / rounded.sum(dtype=float), rtol=1e-14)


def test_samples_have_the_moments_and_frequencies_of_their_components_and_come_in_random_order():
    n = 200_000
    points, labels = BALANCED.sample(n, np.random.default_rng(3))
    assert stats.chisquare(np.bincount(labels), n * BALANCED.weights).pvalue > 1e-4
    repeats, expected = np.mean(labels[1:] == labels[:-1]), np.sum(BALANCED.weights**2)
    assert abs(repeats - expected) < 5 * np.sqrt(expected / n)
    for k, (mean, covariance) in enumerate(zip(BALANCED.means, BALANCED.covariances, strict=True)):
        own = points[labels == k]
        np.testing.assert_allclose(own.mean(axis=0), mean, atol=5 * np.sqrt(covariance.max() / len(own)))
        np.testing.assert_allclose(np.cov(own.T), covariance, atol=8 * covariance.max() / np.sqrt(len(own)))


# Closed forms, bounds and quadrature.


@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_gaussian_entropy_agrees_with_scipy(dimension):
    covariance = random_gmm(1, dimension, seed=5).covariances[0]
    assert gaussian_entropy(covariance) == pytest.approx(stats.multivariate_normal(cov=covariance).entropy(), rel=1e-12)


def test_quadrature_of_one_gaussian_is_the_closed_form():
    covariance = [[1e6, 999.0], [999.0, 1.0]]
    assert quadrature_entropy(GMM([1], [[5, 5]], [covariance])) == pytest.approx(gaussian_entropy(covariance), abs=1e-9)


@pytest.mark.parametrize(
    # The sum of -p log p over a grid of step 0.02, p from SciPy: the entropies that the report states.
    ("gmm", "exact"),
    [(BALANCED, 3.28029154529), (DEGENERATE, 2.57419046943)],
)
def test_quadrature_agrees_with_a_plain_grid(gmm, exact):
    assert quadrature_entropy(gmm) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 1e-3, 1e-5])
def test_quadrature_sees_a_narrow_component_inside_a_wide_one(sigma):
    def integrand(log_radius):
        radius = np.exp(log_radius)
        log_p = logsumexp([-(radius**2) / 2, -((radius / sigma) ** 2) / 2 - 2 * np.log(sigma)]) - np.log(4 * np.pi)
        return -2 * np.pi * radius**2 * np.exp(log_p) * log_p

    edges = np.linspace(np.log(sigma) - 15, np.log(12), 60)
    exact = sum(quad(integrand, a, b, epsabs=1e-14)[0] for a, b in pairwise(edges))
    concentric = GMM((0.5, 0.5), np.zeros((2, 2)), [np.eye(2), sigma**2 * np.eye(2)])
    assert quadrature_entropy(concentric) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_quadrature_sees_a_narrow_tilted_component_far_from_the_center_of_a_wide_one(order):
    means, covariances = [[0.3, -0.2], [2.3, -1.1]], [[[1.0, 0.6], [0.6, 0.8]], [[1e-6, 5e-7], [5e-7, 1e-6]]]
    gmm = GMM([0.5, 0.5], np.array(means)[order], np.array(covariances)[order])
    estimate = mc_entropy(gmm, 1_000_000)
    assert quadrature_entropy(gmm) == pytest.approx(estimate.value, abs=4 * estimate.standard_error)


def test_quadrature_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(gmm_entropy, "cubature", partial(gmm_entropy.cubature, max_subdivisions=2))
    with pytest.raises(ArithmeticError, match="component 0"):
        quadrature_entropy(BALANCED)


def test_bounds_agree_with_the_integrals_that_define_their_distances():
    gmm = GMM((0.3, 0.7), ((0.0,), (1.5,)), (((1.0,),), ((0.5,),)))
    first, second = (stats.norm(m, np.sqrt(v)) for m, v in ((0.0, 1.0), (1.5, 0.5)))

    def integral(function):
        return quad(function, -12, 12, epsabs=1e-13)[0]

    overlap = -np.log(integral(lambda x: np.sqrt(first.pdf(x) * second.pdf(x))))
    forward = integral(lambda x: first.pdf(x) * (first.logpdf(x) - second.logpdf(x)))
    backward = integral(lambda x: second.pdf(x) * (second.logpdf(x) - first.logpdf(x)))
    mean_entropy = 0.3 * first.entropy() + 0.7 * second.entropy()
    for bound, there, back in zip(
        gmm_entropy.entropy_bounds(gmm), (overlap, forward), (overlap, backward), strict=True
    ):
        mixing = 0.3 * np.log(0.3 + 0.7 * np.exp(-there)) + 0.7 * np.log(0.7 + 0.3 * np.exp(-back))
        assert bound == pytest.approx(mean_entropy - mixing, abs=1e-9)


def test_bounds_are_tight_for_equal_and_for_separate_components():
    equal = GMM((0.4, 0.6), ((1, 2), (1, 2)), np.stack([COVARIANCES[0]] * 2))
    assert gmm_entropy.entropy_bounds(equal) == pytest.approx([gaussian_entropy(COVARIANCES[0])] * 2, abs=1e-12)
    separate = GMM(gmm_entropy.BALANCED_WEIGHTS, 1e3 * np.array(MEANS), COVARIANCES)
    exact = separate.weights @ [gaussian_entropy(c) for c in COVARIANCES] + entr(separate.weights).sum()
    assert gmm_entropy.entropy_bounds(separate) == pytest.approx([exact] * 2, abs=1e-12)
    assert quadrature_entropy(separate) == pytest.approx(exact, abs=1e-9)


# Monte Carlo.


@pytest.mark.parametrize("gmm", [BALANCED, DEGENERATE], ids=["balanced", "degenerate"])
def test_95_percent_intervals_hold_the_entropy_95_times_in_100(gmm):
    exact = quadrature_entropy(gmm)
    estimates = [mc_entropy(gmm, 1000, seed) for seed in range(200)]
    scores = np.array([(estimate.value - exact) / estimate.standard_error for estimate in estimates])
    assert stats.binomtest(np.count_nonzero(np.abs(scores) < 1.96), len(scores), 0.95).pvalue > 1e-3
    assert abs(scores.mean()) < 4 / np.sqrt(len(scores))


@pytest.mark.parametrize("n", [2, 10, 2 * gmm_entropy.CHUNK, 2 * gmm_entropy.CHUNK + 5])
@pytest.mark.parametrize("threads", [None, 1, 5])
def test_estimate_is_the_mean_and_the_standard_error_of_its_samples_by_scipy_whatever_the_threads(n, threads):
    values = []
    for chunk, start in enumerate(range(0, n, gmm_entropy.CHUNK)):
        rng = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(0, chunk)))
        size = rng.multinomial(min(gmm_entropy.CHUNK, n - start), [1.0])
        values.extend(-stats.norm.logpdf(rng.standard_normal(size)))
    estimate = mc_entropy(STANDARD_NORMAL, n, seed=5, threads=threads)
    assert estimate == pytest.approx((np.mean(values), stats.sem(values), n), rel=1e-12)


@pytest.mark.parametrize("n_max", [10, 1000])
def test_running_estimate_is_the_mean_and_the_standard_error_of_the_first_samples_by_scipy(n_max):
    running = gmm_entropy.running_entropy(STANDARD_NORMAL, n_max, seed=6, replicates=2)
    assert (running.counts[0], running.counts[-1]) == (10, n_max)
    for run, rng in enumerate(np.random.default_rng(6).spawn(2)):
        z = rng.standard_normal(rng.multinomial(n_max, [1.0]))
        values = rng.permutation(-stats.norm.logpdf(z))
        np.testing.assert_allclose(running.values[run], [values[:n].mean() for n in running.counts], rtol=1e-12)
        errors = [stats.sem(values[:n]) for n in running.counts]
        np.testing.assert_allclose(running.standard_errors[run], errors, rtol=1e-9)


def test_matrix_library_has_one_thread_in_each_of_ours_and_all_its_own_afterwards(monkeypatch):
    def blas_threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    inside, before, default_rng = [], blas_threads(), np.random.default_rng

    def spy(stream):
        inside.append((threading.get_ident(), blas_threads()))
        return default_rng(stream)

    monkeypatch.setattr(np.random, "default_rng", spy)
    mc_entropy(BALANCED, 4 * gmm_entropy.CHUNK, threads=1)
    assert inside == 4 * [(inside[0][0], [1] * len(before))]
    assert blas_threads() == before


def test_one_sample_has_a_value_and_no_standard_error():
    estimate = mc_entropy(BALANCED, 1)
    assert np.isfinite(estimate.value)
    assert np.isnan(estimate.standard_error)


def test_memory_does_not_grow_with_the_number_of_samples():
    tracemalloc.start()
    mc_entropy(BALANCED, 4_000_000, threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # bytes; one array of the samples would take 64e6


def test_mathematics_imports_without_any_other_file_and_without_matplotlib(tmp_path):
    for name in ("gmm_entropy.py", "ELBO.py", "VAE.py"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-c", "import gmm_entropy, ELBO, VAE, sys; print(*sys.modules)"]
    environment = os.environ | {"MPLBACKEND": "module://not_there"}
    (line,) = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).splitlines()
    assert "matplotlib" not in line.split()


# The gap of 1.3.


@pytest.mark.parametrize("method", gmm_entropy.GAP_METHODS)
@pytest.mark.parametrize("component", range(3))
def test_every_method_estimates_the_gap_to_every_component(method, component):
    gmm = GMM((0.3, 0.4, 0.3), 0.3 * np.array(MEANS), COVARIANCES)
    estimate = entropy_gap(gmm, component, 100_000, 1, method)
    assert abs(estimate.value - gap_by_quadrature(gmm, component)) < 4 * estimate.standard_error


def test_running_gap_and_its_error_are_fair_from_the_first_samples_of_many_components():
    gmm = random_gmm(8, 2, seed=3, spread=1.0)
    running = gmm_entropy.running_gap(gmm, 0, "multiple_importance", 30, seed=1, replicates=500)
    error = running.values - gap_by_quadrature(gmm, 0)
    assert np.all(np.abs(error.mean(axis=0)) < 4 * stats.sem(error))
    predicted = np.sqrt(np.mean(running.standard_errors**2, axis=0))
    np.testing.assert_allclose(error.std(axis=0), predicted, rtol=0.15)


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
        ([0.5, 0.50001], [[0.0]] * 2, [[[1.0]]] * 2, "weights are .* sum 1.00001, expected"),
        ([-0.5, 1.5], [[0.0]] * 2, [[[1.0]]] * 2, "weights are"),
        ([np.nan], [[0.0]], [[[1.0]]], "weights: found a NaN"),
        ([1.0], [[np.inf]], [[[1.0]]], "means: found a NaN"),
        ([1.0], [[0.0, -1e16]], [np.eye(2)], r"mean 0 is \[0.0, -1e\+16\], expected at most 1.0e\+12"),
        ([0.5, 0.5], [[1.0, 1.0]] * 2, [np.eye(2), np.diag([1.0, 1e-26])], "mean 1 is .* at most 1.0e-01"),
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
        (lambda gmm: mc_entropy(gmm, 0), "n is 0, expected at least 1"),
        (lambda gmm: gmm_entropy.running_entropy(gmm, 9), "n_max is 9, expected at least 10"),
        (lambda gmm: entropy_gap(gmm, 3, 100), "component is 3"),
        (lambda gmm: entropy_gap(gmm, -1, 100), "component is -1"),
        (lambda gmm: entropy_gap(gmm, SECOND, 100, method="magic"), "method is 'magic'"),
        (lambda gmm: quadrature_entropy(random_gmm(2, 3, seed=0)), "2 dimensions, found 3"),
        (lambda gmm: gaussian_entropy(np.ones((2, 3))), r"expected \(d, d\)"),
        (lambda gmm: gaussian_entropy(np.ones((1, 1, 1))), r"expected \(d, d\)"),
        (lambda gmm: gaussian_entropy(np.empty((0, 0))), r"expected \(d, d\)"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(BALANCED)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_symmetry_is_judged_relative_to_the_covariance(scale):
    rounded, skewed = (scale * np.array([[1.0, 0.5 + asymmetry], [0.5, 1.0]]) for asymmetry in (1e-7, 1e-5))
    assert np.isfinite(gaussian_entropy(rounded))
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_entropy(skewed)


# Numbers and figures of the report.


@pytest.fixture(scope="module")
def results():
    return gmm_entropy.solve_problem_1()


def test_results_are_plain_numbers_that_agree_with_each_other(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    for mixture in results.values():
        assert (mixture["samples"], mixture["seed"]) == (gmm_entropy.N_SAMPLES, 0)
        assert abs(mixture["entropy"] - mixture["quadrature"]) < 4 * mixture["standard_error"]
        assert mixture["lower_bound"] < mixture["quadrature"] < mixture["upper_bound"]
        assert mixture["mean_component_entropy"] < mixture["lower_bound"]
        assert mixture["upper_bound"] < mixture["mean_component_entropy"] + mixture["mixing_entropy"]
    assert results["balanced"]["entropy"] == mc_entropy(BALANCED, gmm_entropy.N_SAMPLES).value
    assert results["degenerate"]["weights"] == list(gmm_entropy.DEGENERATE_WEIGHTS)
    assert results["degenerate"]["expected_rare_samples"] == pytest.approx(2, abs=1e-9)


def test_single_gaussian_is_estimated_like_the_mixture(results):
    degenerate = results["degenerate"]
    error = degenerate["single_gaussian_estimate_error"]
    # -log N is half a chi-squared variable of d = 2 degrees of freedom and a constant: its variance is d / 2.
    assert error == pytest.approx(1 / np.sqrt(gmm_entropy.N_SAMPLES), rel=0.02)
    exact = stats.multivariate_normal(MEANS[SECOND], COVARIANCES[SECOND]).entropy()
    assert degenerate["single_gaussian"] == pytest.approx(exact)
    assert abs(degenerate["single_gaussian_estimate"] - exact) < 4 * error


def test_only_importance_sampling_resolves_the_gap(results):
    gap, methods = results["degenerate"]["gap_quadrature"], results["degenerate"]["gap_methods"]
    best = methods["multiple_importance"]
    assert results["degenerate"]["gap"] == best["estimate"] == pytest.approx(gap, rel=0.01)
    assert results["degenerate"]["gap_standard_error"] == best["standard_error"]
    for row in methods.values():
        standard_error = row["standard_error"] * np.sqrt(row["samples"] / row["samples_for_one_percent"])
        assert standard_error == pytest.approx(0.01 * gap)
    assert best["samples_for_one_percent"] < gmm_entropy.N_SAMPLES < 1e10 < methods["plain"]["samples_for_one_percent"]


def test_standard_errors_of_all_but_the_control_variate_are_true(results):
    rms = {name: row["rms_error_in_standard_errors"] for name, row in results["degenerate"]["gap_methods"].items()}
    uncertainty = 1 / np.sqrt(2 * results["degenerate"]["calibration_runs"])  # of a root mean square around 1
    assert abs(rms["plain"] - 1) < 4 * uncertainty
    assert abs(rms["multiple_importance"] - 1) < 4 * uncertainty
    assert rms["control_variate"] > 3


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The figures of `run_problem_1` in its order, made of few samples."""
    with pytest.MonkeyPatch.context() as patch, nothing_rendered() as drawn:
        patch.setattr(gmm_entropy, "N_SAMPLES", 5000)
        patch.setattr(gmm_entropy, "CALIBRATION_RUNS", 2)
        gmm_entropy.run_problem_1(tmp_path_factory.mktemp("figures"), n_max=2000)
    return drawn


def lines(axes):
    """The labelled curves of a panel, {label up to its number: values}."""
    return {line.get_label().split(";")[0]: line.get_ydata() for line in axes.lines if line.get_label()[0] != "_"}


def test_scatter_shows_each_sample_in_the_colour_of_its_component(figures):
    (axes,) = figures[0].axes
    points, labels = BALANCED.sample(5000, np.random.default_rng(0))
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
    red_green_blue = np.array([[1, 0, 0], [0, 128 / 255, 0], [0, 0, 1]])
    np.testing.assert_allclose(axes.collections[0].get_facecolors()[:, :3], red_green_blue[labels])


def test_ellipses_lie_one_and_two_standard_deviations_from_their_means(figures):
    ellipses = [line.get_xydata() for line in figures[0].axes[0].lines if len(line.get_xydata())]
    for k, sigmas in ((k, sigmas) for k in range(3) for sigmas in (1, 2)):
        offsets = ellipses[2 * k + sigmas - 1] - BALANCED.means[k]
        squares = np.sum(offsets @ np.linalg.inv(BALANCED.covariances[k]) * offsets, axis=1)
        np.testing.assert_allclose(squares, sigmas**2)


def test_estimates_are_drawn_against_the_logarithm_of_the_number_of_samples(figures):
    for figure, panels in zip(figures[1:], (2, 4), strict=True):
        assert len(figure.axes) == panels
        assert {(axes.get_xscale(), axes.get_xlabel()) for axes in figure.axes} == {("log", "number of samples N")}
        assert "N up to 2,000, seed 0" in figure.get_suptitle()


def test_single_gaussian_is_drawn_beside_the_mixture_in_the_panel_and_its_magnified_part(figures):
    panel = figures[2].axes[0]
    (inset,) = panel.child_axes
    single = GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])
    expected = gmm_entropy.running_entropy(single, 2000).values[0]
    for axes in (panel, inset):
        assert np.array_equal(lines(axes)["$N_2$ alone, same seed"], expected)


def test_estimate_of_the_report_is_drawn_with_its_95_percent_interval(figures):
    for figure, gmm in zip(figures[1:], (BALANCED, DEGENERATE), strict=True):
        estimate = mc_entropy(gmm, 5000)
        interval = stats.norm.interval(0.95, estimate.value, estimate.standard_error)
        for axes in (figure.axes[0], *figure.axes[0].child_axes):
            ((_, _, (bar,)),) = axes.containers
            np.testing.assert_allclose(bar.get_segments(), [[[5000, interval[0]], [5000, interval[1]]]], rtol=1e-5)


def test_gap_is_drawn_between_the_bounds_that_prove_it_and_above_the_single_gaussian(figures):
    entropies, _, gaps, _ = figures[2].axes
    single = gaussian_entropy(COVARIANCES[SECOND])
    assert set(next(y for label, y in lines(entropies).items() if label.startswith("$H(N_2)$"))) == {single}
    assert set(lines(gaps)["$H(N_2)$"]) == {0}
    assert set(lines(gaps)["quadrature: 1.298e-04"]) == {gap_by_quadrature(DEGENERATE, SECOND)}
    (span,) = gaps.patches
    bounds = np.subtract(gmm_entropy.entropy_bounds(DEGENERATE), single)
    np.testing.assert_allclose(span.get_bbox().intervaly, bounds)
    assert "4.0e-05 to 1.7e-04" in span.get_label()


def test_gap_is_drawn_with_its_95_percent_interval_by_the_methods_that_can_see_it(figures):
    panel = figures[2].axes[2]
    assert "plain" not in lines(panel)
    for method, band in zip(gmm_entropy.GAP_METHODS[1:], panel.collections, strict=True):
        expected = gmm_entropy.running_gap(DEGENERATE, SECOND, method, 2000)
        assert np.array_equal(lines(panel)[method.replace("_", " ")], expected.values[0])
        x, y = band.get_paths()[0].vertices.T
        half_width = stats.norm.ppf(0.975) * expected.standard_errors[0, 0]
        assert np.ptp(y[x == 10]) == pytest.approx(2 * half_width, rel=1e-3)
