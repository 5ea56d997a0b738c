"""The evidence's pictures: that they show the numbers and the digits that they are given, and nothing else."""

import numpy as np
import pytest
import torch
from conftest import make
from numpy.linalg import norm
from scipy.stats import chi

from evidence import digits as digit_figures
from evidence import figures
from evidence.digits import GAP, STEPS
from evidence.experiments import fit_code_mixture
from evidence.figures import COLORS
from evidence.pages import over_seeds
from evidence.posterior import draw_codes, sample_mixture
from mnist import evenly_spaced
from sample_from_prior import sample_prior
from train import decode, encode_means

NETWORKS = ("conv", "mlp")
SIZES = (1, 16, 32, 64)
QUALITY = ("recognised", "coverage", "density", "frechet", "class_entropy")


@pytest.fixture(scope="module")
def few(dataset):
    return dataset.first(600, 200)


@pytest.fixture
def runs():
    """Measurements of both networks at some sizes with three seeds, no two numbers alike, in no order of size."""
    rng = np.random.default_rng(0)
    names = ("elbo", "train_elbo", "kl", "reconstruction_mse", "code_knn_accuracy", "active_units", "seconds")
    names += ("iw_log_likelihood", "iw_elbo", "information_bound", "sigma", "elbo_with_fitted_sigma")
    return [
        {
            **{"group": f"{architecture}_z{dim}", "architecture": architecture, "latent_dim": dim},
            **{"seed": seed, "epochs": 10, "sigma_rule": "calibrated"},
            **{name: rng.random() for name in names},
            "kl_per_dimension": (10 ** rng.uniform(-2, 0, dim)).tolist(),
            "prior_divergence": {"test_codes": rng.random(), "mixture": rng.random()},
            "prior_samples": {name: rng.random() for name in QUALITY},
            "mixture_samples": {name: rng.random() for name in QUALITY},
        }
        for architecture in ("mlp", "conv")
        for dim in SIZES[::-1]
        for seed in range(3)
    ]


def of(runs, architecture, dim):
    return [run for run in runs if (run["architecture"], run["latent_dim"]) == (architecture, dim)]


# ---------------------------------------------------------------------------------------------------------- numbers


def summaries(runs):
    return list(over_seeds({"runs": runs}).values())


def assert_mean_and_deviation_shown(axes, runs, *values):
    """Each network's lines show, at every size, mean and deviation over seeds of values, functions of a run."""
    cases = [(name, value) for name in NETWORKS for value in values]
    for (line, _, (deviations,)), (name, value) in zip(axes.containers, cases, strict=True):
        seeds = [[value(run) for run in of(runs, name, dim)] for dim in SIZES]
        assert line.get_color() == COLORS[name]
        assert np.allclose(line.get_xdata(), SIZES, rtol=0.05)
        assert np.allclose(line.get_ydata(), np.mean(seeds, axis=1))
        lengths = [high - low for (_, low), (_, high) in deviations.get_segments()]
        assert np.allclose(lengths, 2 * np.std(seeds, axis=1, ddof=1))


def assert_points_named(axes, groups, keys, number):
    """Every group has a point at the means of two keys, named by a number; a group's line has its network's colour."""
    expected = {tuple(group[key]["mean"] for key in keys): f"{group[number]:g}" for group in groups}
    assert {text.xy: text.get_text() for text in axes.texts} == expected
    for line, network in zip(axes.lines, NETWORKS, strict=False):
        own = sorted((group for group in groups if group["architecture"] == network), key=lambda group: group[number])
        assert line.get_color() == COLORS[network]
        assert np.allclose(line.get_xydata(), [[group[key]["mean"] for key in keys] for group in own])


def test_latent_sizes_show_mean_and_deviation_over_seeds_of_every_measurement(runs, drawn, tmp_path):
    figures.plot_latent_sizes(summaries(runs), tmp_path / "a.png")
    measurements = [
        [lambda run: run["elbo"], lambda run: run["train_elbo"]],
        [lambda run: run["kl"]],
        [lambda run: 1000 * run["reconstruction_mse"]],
        [lambda run: sum(nats > 0.1 for nats in run["kl_per_dimension"])],
        [lambda run: run["code_knn_accuracy"]],
        [lambda run: run["prior_divergence"]["test_codes"], lambda run: run["information_bound"]],
    ]
    for axes, values in zip(drawn[0].axes, measurements, strict=True):
        assert_mean_and_deviation_shown(axes, runs, *values)


def test_samples_are_shown_beside_test_digits_and_blur_in_both_spaces(runs, drawn, tmp_path):
    rng = np.random.default_rng(1)
    keys = (*QUALITY, "pixel_coverage")
    kinds = [(images, blur) for images in ("test digits", "mixture samples") for blur in (0, 1.5, 0.5)]
    references = [{"images": images, "blur": blur, **{key: rng.random() for key in keys}} for images, blur in kinds]
    figures.plot_samples_as_digits(summaries(runs), references, tmp_path / "a.png")
    *over_sizes, over_blur = drawn[0].axes
    for axes, key in zip(over_sizes, QUALITY, strict=True):
        sources = [
            lambda run, source=source, key=key: run[source][key] for source in ("prior_samples", "mixture_samples")
        ]
        assert_mean_and_deviation_shown(axes, runs, *sources)
        assert [references[0][key]] * 2 in [list(line.get_ydata()) for line in axes.lines]
    shown = [(rows, key) for rows in (references[:3], references[3:]) for key in ("coverage", "pixel_coverage")]
    for line, (rows, key) in zip(over_blur.lines, shown, strict=True):
        assert np.array_equal(line.get_xydata(), sorted((row["blur"], row[key]) for row in rows))


def test_gap_of_the_bounds_is_shown_over_sizes_and_against_kl(runs, drawn, tmp_path):
    figures.plot_bound_gap(summaries(runs), tmp_path / "a.png")
    over_sizes, over_kl = drawn[0].axes
    assert_mean_and_deviation_shown(over_sizes, runs, lambda run: run["iw_log_likelihood"] - run["iw_elbo"])
    assert_points_named(over_kl, summaries(runs), ("kl", "gap"), "latent_dim")


@pytest.mark.parametrize("sigma_too", [True, False])
def test_rate_and_distortion_of_every_training_are_shown(sigma_too, runs, drawn, tmp_path):
    sizes, halves = summaries(runs), summaries([run | {"architecture": "conv-mlp"} for run in of(runs, "conv", 16)])
    budgets = [group | {"epochs": group["latent_dim"]} for group in sizes]
    sigmas = [group | {"sigma_rule": 1 / group["latent_dim"]} for group in sizes if sigma_too]
    figures.plot_rate_distortion(sizes, halves, sigmas, budgets, tmp_path / "a.png")
    panels = [(sizes, "latent_dim"), (sigmas, "sigma_rule"), (budgets, "epochs")]
    for axes, (groups, number) in zip(drawn[0].axes, [panel for panel in panels if panel[0]], strict=True):
        assert_points_named(axes, groups, ("kl", "error"), number)
    exchanged = drawn[0].axes[0].lines[-1]
    assert np.allclose(exchanged.get_xydata(), [[halves[0][key]["mean"] for key in ("kl", "error")]])


def test_spectrum_shows_the_three_largest_sizes_in_falling_order_and_counts_those_that_carry(runs, drawn, tmp_path):
    figures.plot_kl_spectrum(runs, tmp_path / "a.png")
    for axes, name in zip(drawn[0].axes, NETWORKS, strict=True):
        lines, labels = axes.get_legend_handles_labels()
        for line, label, dim in zip(lines, labels, SIZES[1:], strict=True):
            spectra = np.array([run["kl_per_dimension"] for run in of(runs, name, dim)])
            assert np.allclose(line.get_ydata(), np.sort(spectra)[:, ::-1].mean(0))
            assert label == f"K = {dim}: " + ", ".join(map(str, (spectra > 0.1).sum(1)))


def test_elbo_is_drawn_against_seconds_and_each_point_labelled_with_its_epochs(runs, drawn, tmp_path):
    budgets = summaries([run | {"epochs": run["latent_dim"]} for run in runs if run["seed"] == 0])
    figures.plot_elbo_time(budgets, tmp_path / "a.png")
    assert_points_named(drawn[0].axes[0], budgets, ("seconds", "elbo"), "epochs")


# ----------------------------------------------------------------------------------------------------------- digits


def rows_of(axes):
    """Cut the mosaic in the axes: [(label, colours (columns, 28, 28, 3)), ...]."""
    mosaic = np.pad(axes.images[0].get_array(), [(0, GAP), (0, GAP), (0, 0)], constant_values=1.0)
    side = 28 + GAP
    cells = mosaic.reshape(len(mosaic) // side, side, -1, side, 3).swapaxes(1, 2)
    labels = [text.get_text() for text in axes.get_yticklabels()] or [""] * len(cells)
    return [(label, row[:, :28, :28]) for label, row in zip(labels, cells, strict=True)]


def same(row, images):
    return np.allclose(row, images.reshape(-1, 28, 28, 1), atol=1e-6)


def reconstruct(model, images):
    return decode(model, torch.from_numpy(encode_means(model, images)))


def test_digits_of_each_size_are_its_own_reconstructions_and_samples(few, drawn, tmp_path):
    models = {"K = 1": make(1), "K = 3": make(3)}
    digit_figures.plot_digits_by_model(models, few, tmp_path / "a.png")
    reconstructions, prior, mixture = map(rows_of, drawn[0].axes)
    assert [label for label, _ in reconstructions] == ["test digits", "K = 1", "K = 3"]
    digits = torch.stack([few.test_images[few.test_labels == label][0] for label in range(10)])
    assert same(reconstructions[0][1], digits)
    for row, model in enumerate(models.values(), start=1):
        assert same(reconstructions[row][1], reconstruct(model, digits))
        assert same(prior[row][1], sample_prior(model, 8))
        assert same(mixture[row][1], sample_mixture(model, fit_code_mixture(model, few), 8))
    assert not np.array_equal(prior[0][1], mixture[0][1])  # no real digit is printed twice


def test_networks_are_shown_on_the_same_digits_and_draws_with_signed_errors(few, drawn, tmp_path):
    models = {"conv": make(2, "conv"), "mlp": make()}
    digit_figures.plot_networks(models, few, tmp_path / "a.png")
    above, below, _ = drawn[0].axes
    (_, digits), *rows = rows_of(above)
    for (_, reconstruction), (_, error) in zip(rows[:2], rows[2:], strict=True):
        difference, redness = (reconstruction - digits)[..., 0], error[..., 0] - error[..., 2]
        assert (redness[difference > 0.1] > 0).all()
        assert (redness[difference < -0.1] < 0).all()
        assert (error[np.abs(difference) < 0.04] == 1).all()  # no error is white
    for (_, samples), model in zip(rows_of(below), models.values(), strict=True):
        assert same(samples, sample_prior(model, 16))


def test_paths_are_straight_in_codes_and_in_pixels(few, drawn, tmp_path):
    model = make(3)
    digit_figures.plot_interpolation(model, few, tmp_path / "a.png")
    for axes in drawn[0].axes:
        rows = rows_of(axes)
        for (label, codes), (_, pixels) in zip(rows[::2], rows[1::2], strict=True):
            first, last = (few.test_images[few.test_labels == int(label[place])] for place in (0, 4))
            ends = torch.stack([first[0], last[int(label[0] == label[4])]])
            assert same(pixels[[0, STEPS // 2, -1]], torch.stack([ends[0], ends.mean(0), ends[1]]))
            middle = torch.from_numpy(encode_means(model, ends)).mean(0, keepdim=True)
            assert same(codes[STEPS // 2], decode(model, middle))


def test_samples_and_test_digits_stand_above_the_training_digits_nearest_to_them(few, drawn, tmp_path):
    model = make(2)
    digit_figures.plot_nearest(model, few, tmp_path / "a.png")
    train = few.train_images.flatten(1).numpy()
    compared = sample_prior(model, 16), evenly_spaced(few.test_images, 16)
    for axes, images in zip(drawn[0].axes, compared, strict=True):
        (_, shown), (_, nearest) = rows_of(axes)
        assert same(shown, images)
        distances = norm(shown[..., 0].reshape(16, 1, 784) - train, axis=2)
        assert same(nearest, train[distances.argmin(1)])
        labels = [float(text.get_text()) for text in axes.get_xticklabels()]
        assert np.allclose(labels, distances.min(1), atol=0.06)


def test_outliers_are_the_digits_of_greatest_error_and_of_greatest_kl(few, drawn, tmp_path):
    model = make(3)
    digit_figures.plot_outliers({"mlp": model}, few, tmp_path / "a.png")
    with torch.no_grad():
        mu, logvar = model.encode(few.test_images)
    kl = (0.5 * (mu**2 + logvar.exp() - 1 - logvar)).sum(1)
    errors = torch.from_numpy(norm((few.test_images - decode(model, mu)).flatten(1), axis=1)) ** 2
    for axes, values in zip(drawn[0].axes, (errors, kl), strict=True):
        worst = values.argsort(descending=True)[:10]
        (_, digits), (_, reconstructions) = rows_of(axes)
        assert same(digits, few.test_images[worst])
        assert same(reconstructions, reconstruct(model, few.test_images[worst]))
        expected = [f"“{few.test_labels[index]}”\n{values[index]:.0f}" for index in worst]
        assert [text.get_text() for text in axes.get_xticklabels()] == expected


def test_moves_from_a_digit_change_one_dimension_and_frame_the_digits_own_code(few, drawn, tmp_path):
    model = make(4)
    digit_figures.plot_traversal_from_digit(model, few, tmp_path / "a.png")
    for axes, label in zip(drawn[0].axes, digit_figures.MOVED, strict=True):
        digit = few.test_images[few.test_labels == label][:1]
        code = torch.from_numpy(encode_means(model, digit))
        for (name, row), frame in zip(rows_of(axes), axes.patches, strict=True):
            own = int(frame.get_center()[0] // (28 + GAP))
            assert same(row[[0, own]], torch.cat([digit, decode(model, code)]))
            far = code.clone()
            far[0, int(name.strip("${}z_")) - 1] = 3.0
            assert same(row[-1], decode(model, far)) or own == STEPS


# ------------------------------------------------------------------------------------------------------------ codes


def test_contours_hold_as_many_of_the_codes_as_the_circles_hold_of_the_prior(few, drawn, tmp_path):
    model = make(2)
    figures.plot_aggregate_posterior({2: model, 5: make(5)}, few, tmp_path / "a.png")
    plane, lengths = drawn[0].axes
    assert [circle.radius for circle in plane.patches] == [1, 2, 3]
    (contours,) = (found for found in plane.collections if hasattr(found, "levels"))
    densities = fit_code_mixture(model, few).log_prob(draw_codes(model, few.test_images, seed=1))
    held = [(densities > level).mean() for level in contours.levels[::-1]]
    assert held == pytest.approx([chi.cdf(radius, 2) for radius in (1, 2, 3)], abs=0.01)
    (curve,) = lengths.lines
    assert np.allclose(curve.get_ydata(), chi.pdf(curve.get_xdata(), 5))
