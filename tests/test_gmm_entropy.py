"""Problem 1 against oracles: SciPy, closed forms, and repetition over seeds."""

import json
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from scipy.special import logsumexp

import gmm_entropy
from gmm_entropy import COVARIANCES, GMM, MEANS, SECOND, entropy_bounds, entropy_gap, gaussian_entropy, mc_entropy
from gmm_entropy import quadrature_entropy as quadrature

BALANCED = GMM(gmm_entropy.BALANCED_WEIGHTS, MEANS, COVARIANCES)
DEGENERATE = GMM(gmm_entropy.DEGENERATE_WEIGHTS, MEANS, COVARIANCES)
SINGLE = GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])


def random_gmm(components, d):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(components, d, d)) + 2 * np.eye(d)
    means = 2 * rng.normal(size=(components, d))
    return GMM(rng.dirichlet(np.ones(components)), means, factors @ factors.transpose(0, 2, 1))


# The mixture.


@pytest.mark.parametrize(("components", "d"), [(1, 1), (1, 5), (3, 2), (4, 5), (2, 30)])
def test_log_density_agrees_with_scipy(components, d):
    gmm = random_gmm(components, d)
    points = np.random.default_rng(1).normal(scale=4, size=(500, d))
    terms = [stats.multivariate_normal(m, c).logpdf(points) for m, c in zip(gmm.means, gmm.covariances, strict=True)]
    np.testing.assert_allclose(gmm.log_prob(points), logsumexp(terms, b=gmm.weights[:, None], axis=0), rtol=1e-10)


def test_log_density_of_far_points_is_finite():
    gmm = GMM([0.5, 0.5], [[0.0, 0.0], [1.0, 0.0]], [np.eye(2), 4 * np.eye(2)])
    np.testing.assert_allclose(gmm.log_prob([[0, 1e6], [1e150, 0]]), [-(1e12 + 1) / 8, -1e300 / 8], rtol=1e-10)


def test_means_far_from_the_origin_lose_no_digits():
    points = np.random.default_rng(0).integers(-64, 64, size=(100, 2)) / 16
    near, far = (GMM([0.5, 0.5], np.array([[-2.0, 0.5], [0.5, 0.0]]) + o, COVARIANCES[:2]) for o in (0, 2.0**38))
    np.testing.assert_array_equal(far.log_prob(points + 2.0**38), near.log_prob(points))


def test_components_of_weight_zero_change_nothing():
    narrow = 1e-6 * np.eye(2)
    gmm = GMM([0, *BALANCED.weights, 0], [(1e3, 0), *MEANS, (0, 1e3)], [narrow, *COVARIANCES, narrow])
    (points, labels), (expected, expected_labels) = (m.sample(5000, np.random.default_rng(0)) for m in (gmm, BALANCED))
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(labels, expected_labels + 1)
    np.testing.assert_array_equal(gmm.log_prob(points), BALANCED.log_prob(points))
    assert quadrature(gmm) == pytest.approx(quadrature(BALANCED), rel=1e-12)
    assert entropy_bounds(gmm) == pytest.approx(entropy_bounds(BALANCED), rel=1e-12)
    assert entropy_gap(gmm, SECOND + 1, 5000) == pytest.approx(entropy_gap(BALANCED, SECOND, 5000), rel=1e-9)


def test_weights_that_are_rounded_are_scaled_to_sum_to_one():
    gmm = GMM(np.array([0.2, 0.8]) * (1 + 9e-7), np.zeros((2, 1)), np.ones((2, 1, 1)))
    np.testing.assert_allclose(gmm.weights, [0.2, 0.8], rtol=1e-14)


# One stream.


def test_mixtures_of_one_seed_share_their_uniforms_and_their_normals():
    first, second = np.random.default_rng(0).spawn(2)
    uniforms, normals = first.random((1000, 1)), second.standard_normal((1000, 2))
    for gmm in (BALANCED, DEGENERATE, SINGLE):
        points, labels = gmm.sample(1000, np.random.default_rng(0))
        np.testing.assert_array_equal(labels, (uniforms > np.cumsum(gmm.weights[:-1])).sum(axis=1))
        for k, (mean, covariance) in enumerate(zip(gmm.means, gmm.covariances, strict=True)):
            expected = mean + normals[labels == k] @ np.linalg.cholesky(covariance).T
            np.testing.assert_allclose(points[labels == k], expected, rtol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_more_samples_in_other_chunks_continue_the_same_points(d, monkeypatch):
    gmm = random_gmm(3, d)
    points, labels = gmm.sample(1000, np.random.default_rng(0))
    whole = mc_entropy(gmm, 1000), entropy_gap(gmm, 0, 1000)
    monkeypatch.setattr(gmm_entropy, "CHUNK", 3)
    more_points, more_labels = gmm.sample(1500, np.random.default_rng(0))
    np.testing.assert_array_equal(more_points[:1000], points)
    np.testing.assert_array_equal(more_labels[:1000], labels)
    for estimate, expected in zip((mc_entropy(gmm, 1000), entropy_gap(gmm, 0, 1000)), whole, strict=True):
        assert estimate == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [2, 10, 100_000])
def test_estimate_is_the_mean_and_the_standard_error_over_the_samples(n):
    surprises = -BALANCED.log_prob(BALANCED.sample(n, np.random.default_rng(5))[0])
    assert mc_entropy(BALANCED, n, seed=5) == pytest.approx((surprises.mean(), stats.sem(surprises), n), rel=1e-12)


def test_one_sample_has_a_value_and_no_standard_error():
    value, standard_error, _ = mc_entropy(BALANCED, 1)
    assert (np.isfinite(value), np.isfinite(standard_error)) == (True, False)


def test_running_means_are_those_of_the_first_values():
    values = np.random.default_rng(0).gamma(2, size=150_000)
    assert gmm_entropy.running_means([values[:10]]).n == [10]
    running = gmm_entropy.running_means([values[:20], values[20:]])
    assert {10, 100_000, 150_000} <= set(running.n)
    assert np.diff(np.log(running.n[running.n > 1000])).max() < 0.05
    for value, error, n in np.transpose(running)[::25]:
        assert (value, error) == pytest.approx((values[: int(n)].mean(), stats.sem(values[: int(n)])), rel=1e-10)


def test_memory_does_not_grow_with_the_number_of_samples():
    tracemalloc.start()
    mc_entropy(BALANCED, 500_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6  # bytes; the samples alone would take 8e6


@pytest.mark.parametrize("gmm", [BALANCED, DEGENERATE], ids=["balanced", "degenerate"])
def test_errors_are_as_large_as_their_standard_errors_say(gmm):
    exact, seeds = quadrature(gmm), range(100)
    runs = [(exact, [mc_entropy(gmm, 1000, seed) for seed in seeds])]
    for k, covariance in enumerate(COVARIANCES):
        runs.append((exact - gaussian_entropy(covariance), [entropy_gap(gmm, k, 1000, seed) for seed in seeds]))
    for truth, estimates in runs:
        scores = [(value - truth) / standard_error for value, standard_error, _ in estimates]
        assert abs(np.mean(scores)) < 4 / np.sqrt(len(seeds))
        assert abs(np.std(scores) - 1) < 4 / np.sqrt(2 * len(seeds))


def test_gap_of_rare_components_is_found_to_a_percent():
    estimate = entropy_gap(DEGENERATE, SECOND, 100_000)
    assert estimate.value == pytest.approx(1.297741e-4, rel=0.01)
    assert estimate.standard_error < 0.003 * estimate.value
    assert mc_entropy(DEGENERATE, 100_000).standard_error > 20 * estimate.value


# Exact references.


@pytest.mark.parametrize("d", [1, 2, 7])
def test_gaussian_entropy_agrees_with_scipy(d):
    covariance = random_gmm(1, d).covariances[0]
    assert gaussian_entropy(covariance) == pytest.approx(stats.multivariate_normal(cov=covariance).entropy(), rel=1e-12)


def test_covariance_is_refused_when_it_is_singular_and_not_when_it_is_nearly_so():
    for seed in range(200):
        samples = np.random.default_rng(seed).normal(size=(50, 3))
        samples[:, 2] = samples[:, 0] + 100 * samples[:, 1]
        with pytest.raises(ValueError, match="positive definite"):
            gaussian_entropy(np.cov(samples.T))
    assert gaussian_entropy(np.diag([1.0, 1e-15])) == pytest.approx(1 + np.log(2 * np.pi) + np.log(1e-15) / 2)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_symmetry_is_judged_relative_to_the_covariance(scale):
    rounded, skewed = (scale * np.array([[1.0, 0.5 + asymmetry], [0.5, 1.0]]) for asymmetry in (9e-7, 1.2e-6))
    assert np.isfinite(gaussian_entropy(rounded))
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_entropy(skewed)


@pytest.mark.parametrize(
    # From adaptive integration, from the sum of SciPy's -p log p over a grid of step 0.02, or in closed form.
    ("gmm", "exact"),
    [
        (BALANCED, 3.28029154529),
        (DEGENERATE, 2.57419046943),
        (GMM([1], [[5, 5]], [[[400, 19], [19, 1]]]), 1 + np.log(2 * np.pi) + np.log(400 - 19**2) / 2),
        (GMM([0.5, 0.5], [[0, 0], [500, 0]], [np.eye(2)] * 2), 1 + np.log(2 * np.pi) + np.log(2)),
    ],
)
def test_quadrature_agrees_with_independent_integrals(gmm, exact):
    assert quadrature(gmm) == pytest.approx(exact, abs=2e-11)


def test_surprise_of_a_component_is_the_mean_over_its_own_samples():
    for k, surprise in enumerate(gmm_entropy.component_surprises(DEGENERATE)):
        alone = GMM([1.0], [MEANS[k]], [COVARIANCES[k]])
        values = -DEGENERATE.log_prob(alone.sample(20_000, np.random.default_rng(k))[0])
        assert abs(surprise - values.mean()) < 4 * stats.sem(values)


def test_bounds_agree_with_the_integrals_that_define_their_distances():
    grid = 0.05 * np.moveaxis(np.mgrid[-200:200, -200:200], 0, -1)
    logs = np.array([stats.multivariate_normal(m, c).logpdf(grid) for m, c in zip(MEANS, COVARIANCES, strict=True)])
    cross_entropies = -(0.05**2) * np.einsum("iab,jab->ij", np.exp(logs), logs)
    entropies = np.diag(cross_entropies)
    bhattacharyya = -np.log(0.05**2 * np.einsum("iab,jab->ij", np.exp(logs / 2), np.exp(logs / 2)))
    distances = bhattacharyya, cross_entropies - entropies[:, None]
    expected = [BALANCED.weights @ (entropies - np.log(np.exp(-d) @ BALANCED.weights)) for d in distances]
    assert entropy_bounds(BALANCED) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_entropy_lies_between_its_bounds(d):
    lower, upper = entropy_bounds(random_gmm(4, d))
    value, standard_error, _ = mc_entropy(random_gmm(4, d), 50_000)
    assert lower < value - 4 * standard_error < value + 4 * standard_error < upper


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GMM([], [], []), "have shapes"),
        (lambda: GMM([0.5, 0.5], [[0]], [[[1]]]), "have shapes"),
        (lambda: GMM([1], [[0, 0]], [[[1]]]), "have shapes"),
        (lambda: GMM([0.5, 0.5000012], [[0]] * 2, [[[1]]] * 2), "weights are"),
        (lambda: GMM([-0.5, 1.5], [[0]] * 2, [[[1]]] * 2), "weights are"),
        (lambda: GMM([np.nan], [[0]], [[[1]]]), "weights are"),
        (lambda: GMM([1], [[np.inf]], [[[1]]]), "means are"),
        (lambda: GMM([1], [[0]], [[[np.inf]]]), "finite"),
        (lambda: GMM([1], [[0, 0]], [[[1, 2], [2, 1]]]), "positive definite"),
        (lambda: GMM([1], [[0, 0]], [np.outer([0.7, 0.1], [0.7, 0.1])]), "positive definite"),
        (lambda: gaussian_entropy([[0.0]]), "clearly positive definite"),
        (lambda: gaussian_entropy(np.ones((2, 3))), r"expected \(d, d\)"),
        (lambda: BALANCED.log_prob(np.zeros(2)), r"shape \(2,\), expected \(n, 2\)"),
        (lambda: BALANCED.log_prob(np.zeros((4, 3))), r"shape \(4, 3\), expected \(n, 2\)"),
        (lambda: BALANCED.log_prob([[0.0, np.nan]]), "NaN"),
        (lambda: mc_entropy(BALANCED, 0), "n is 0, expected at least 1"),
        (lambda: entropy_gap(BALANCED, 3, 100), "component is 3, expected 0 to 2"),
        (lambda: entropy_gap(BALANCED, -1, 100), "component is -1"),
        (lambda: quadrature(random_gmm(2, 3)), "2 dimensions, found 3"),
        (lambda: quadrature(GMM([1], [[0, 0]], [np.diag([1.5e-6, 10.0])])), "1.7e.07 points"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The numbers of the report, and its figures.


@pytest.fixture(scope="module")
def problem_1():
    """The results of `run_problem_1` and its figures, which are not rendered."""
    figures = []

    @contextmanager
    def figure_file(path, size, title):
        figures.append(Figure(figsize=size, layout="constrained"))
        yield figures[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gmm_entropy, "figure_file", figure_file)
        return gmm_entropy.run_problem_1("unused", n_max=150_000), figures


def test_numbers_of_the_report_are_plain_and_agree_with_each_other(problem_1):
    results, _ = problem_1
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    for mixture, gmm in ((results["balanced"], BALANCED), (results["degenerate"], DEGENERATE)):
        assert (mixture["weights"], mixture["seed"]) == (gmm.weights.tolist(), 0)
        assert (mixture["entropy"], mixture["standard_error"], mixture["samples"]) == mc_entropy(gmm, 100_000)
        assert mixture["lower_bound"] < mixture["quadrature"] < mixture["upper_bound"]
        assert gmm.weights @ mixture["component_surprise"] == pytest.approx(mixture["quadrature"], rel=1e-12)
    degenerate = results["degenerate"]
    keys = ("single_gaussian_estimate", "single_gaussian_estimate_error")
    assert tuple(degenerate[key] for key in keys) == mc_entropy(SINGLE, 100_000)[:2]
    assert (degenerate["gap"], degenerate["gap_standard_error"]) == entropy_gap(DEGENERATE, SECOND, 100_000)[:2]
    exact = degenerate["quadrature"] - gaussian_entropy(COVARIANCES[SECOND])
    assert degenerate["gap_quadrature"] == pytest.approx(exact, rel=1e-9)


def test_scatter_shows_the_samples_behind_the_estimate_in_the_colours_of_their_components(problem_1):
    results, (figure, *_) = problem_1
    points = figure.axes[0].collections[0]
    assert -BALANCED.log_prob(points.get_offsets()).mean() == pytest.approx(results["balanced"]["entropy"], rel=1e-12)
    _, labels = BALANCED.sample(100_000, np.random.default_rng(0))
    red_green_blue = np.array([[1, 0, 0], [0, 128 / 255, 0], [0, 0, 1]])
    np.testing.assert_allclose(points.get_facecolors()[:, :3], red_green_blue[labels])


def test_curves_pass_through_the_estimates(problem_1):
    _, (_, balanced, degenerate) = problem_1
    panels = balanced.axes[0], degenerate.axes[0], degenerate.axes[1]
    runs = [mc_entropy(BALANCED, 100_000, seed) for seed in (1, 2, 3, 0)]
    pair = [mc_entropy(gmm, 100_000) for gmm in (DEGENERATE, SINGLE)]
    for axes, estimates in zip(panels, (runs, pair, [entropy_gap(DEGENERATE, SECOND, 100_000)]), strict=True):
        curves = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 100]
        values = [y for curve in curves for x, y in curve if x == 100_000]
        assert values == pytest.approx([estimate.value for estimate in estimates], rel=1e-12)


def test_shade_is_the_95_percent_interval(problem_1):
    x, y = problem_1[1][2].axes[1].collections[0].get_paths()[0].vertices.T
    estimate = entropy_gap(DEGENERATE, SECOND, 100_000)
    interval = stats.norm.interval(0.95, estimate.value, estimate.standard_error)
    assert sorted(y[x == 100_000]) == pytest.approx(interval, rel=1e-6)


def test_other_mixtures_are_drawn_without_complaint(tmp_path, monkeypatch):
    monkeypatch.setattr(gmm_entropy, "N_SAMPLES", 500)
    monkeypatch.setattr(gmm_entropy, "MEANS", ((-3.0, -3.0), (3.0, 0.0), (1.0, 1.0), (0.0, 20.0)))
    monkeypatch.setattr(gmm_entropy, "COVARIANCES", (np.eye(2), np.eye(2) / 9, np.diag([9.0, 0.5]), np.eye(2)))
    monkeypatch.setattr(gmm_entropy, "BALANCED_WEIGHTS", (0.25, 0.25, 0.5, 0.0))
    monkeypatch.setattr(gmm_entropy, "DEGENERATE_WEIGHTS", (0.1, 0.7, 0.1, 0.1))
    for mixture in gmm_entropy.run_problem_1(tmp_path, seed=3, n_max=1000).values():
        assert abs(mixture["entropy"] - mixture["quadrature"]) < 4 * mixture["standard_error"]
    for name in ("gmm_scatter", "gmm_entropy", "gmm_entropy_degenerate"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG"
