"""The evidence's pictures: that they show the numbers and the digits that they are given, and nothing else."""

import numpy as np
import pytest
import torch
from conftest import make
from scipy.stats import chi

from evidence import figures
from evidence.experiments import fit_code_mixture
from evidence.figures import COLORS, GAP, STEPS
from evidence.pages import over_seeds
from evidence.posterior import draw_codes, sample_mixture
from sample_from_prior import sample_prior
from train import decode, encode_means

SIZES = (1, 16, 32, 64)


@pytest.fixture(scope="module")
def few(dataset):
    return dataset.first(600, 200)


@pytest.fixture
def runs():
    """Measurements of both networks at some sizes with three seeds, no two numbers alike, in no order of size."""
    rng = np.random.default_rng(0)
    names = ("elbo", "train_elbo", "kl", "reconstruction_mse", "code_knn_accuracy", "active_units", "train_seconds")
    return [
        {
            **{"group": f"{architecture}_z{dim}", "architecture": architecture, "latent_dim": dim},
            **{"seed": seed, "epochs": 10, "sigma_rule": "calibrated"},
            **{name: rng.random() for name in names},
            "kl_per_dimension": (10 ** rng.uniform(-2, 0, dim)).tolist(),
            "prior_divergence": {"held_out": rng.random(), "mixture": rng.random()},
            "prior_samples": {"density": rng.random(), "coverage": rng.random()},
            "mixture_samples": {"density": rng.random(), "coverage": rng.random()},
        }
        for architecture in ("mlp", "conv")
        for dim in SIZES[::-1]
        for seed in range(3)
    ]


def of(runs, architecture, dim):
    return [run for run in runs if (run["architecture"], run["latent_dim"]) == (architecture, dim)]


# ---------------------------------------------------------------------------------------------------------- numbers


def test_latent_sizes_show_mean_and_deviation_over_seeds_of_every_measurement(runs, drawn, tmp_path):
    real = {"density": 0.95, "coverage": 0.9}
    check = {str(dim): {"held_out": -0.05 * dim, "mixture": 0.0} for dim in SIZES}
    groups = list(over_seeds({"runs": runs, "prior_check": check}).values())
    figures.plot_latent_sizes(groups, real, tmp_path / "a.png")
    measurements = [
        [lambda run: run["elbo"], lambda run: run["train_elbo"]],
        [lambda run: run["kl"]],
        [lambda run: run["reconstruction_mse"]],
        [lambda run: sum(nats > 0.1 for nats in run["kl_per_dimension"])],
        [lambda run: run["code_knn_accuracy"]],
        [lambda run: run["prior_divergence"]["held_out"] + 0.05 * run["latent_dim"]],
        [lambda run: run["prior_samples"]["coverage"], lambda run: run["mixture_samples"]["coverage"]],
        [lambda run: run["prior_samples"]["density"], lambda run: run["mixture_samples"]["density"]],
    ]
    for axes, values in zip(drawn[0].axes, measurements, strict=True):
        cases = [(name, value) for name in COLORS for value in values]
        for (line, _, (deviations,)), (name, value) in zip(axes.containers, cases, strict=True):
            seeds = [[value(run) for run in of(runs, name, dim)] for dim in SIZES]
            assert line.get_color() == COLORS[name]
            assert np.allclose(line.get_xdata(), SIZES, rtol=0.05)
            assert np.allclose(line.get_ydata(), np.mean(seeds, axis=1))
            lengths = [high - low for (_, low), (_, high) in deviations.get_segments()]
            assert np.allclose(lengths, 2 * np.std(seeds, axis=1, ddof=1))
    for axes, what in zip(drawn[0].axes[-2:], ("coverage", "density"), strict=True):
        assert [real[what]] * 2 in [list(line.get_ydata()) for line in axes.lines]


def test_spectrum_shows_the_three_largest_sizes_in_falling_order_and_counts_those_that_carry(runs, drawn, tmp_path):
    figures.plot_kl_spectrum(runs, tmp_path / "a.png")
    for axes, name in zip(drawn[0].axes, COLORS, strict=True):
        lines, labels = axes.get_legend_handles_labels()
        for line, label, dim in zip(lines, labels, SIZES[1:], strict=True):
            spectra = np.array([run["kl_per_dimension"] for run in of(runs, name, dim)])
            assert np.allclose(line.get_ydata(), np.sort(spectra)[:, ::-1].mean(0))
            assert label == f"K = {dim}: " + ", ".join(map(str, (spectra > 0.1).sum(1)))


def test_elbo_is_drawn_against_seconds_and_each_point_labelled_with_its_epochs(runs, drawn, tmp_path):
    budgets = [run | {"epochs": run["latent_dim"]} for run in runs if run["seed"] == 0]
    figures.plot_elbo_time(budgets, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    for line, name in zip(axes.lines, COLORS, strict=True):
        own = [(run["train_seconds"], run["elbo"]) for dim in SIZES for run in of(budgets, name, dim)]
        assert np.allclose(line.get_xydata(), own)
    labels = {text.xy: text.get_text() for text in axes.texts}
    assert labels == {(run["train_seconds"], run["elbo"]): str(run["epochs"]) for run in budgets}


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
    models = {1: make(1), 3: make(3)}
    figures.plot_digits_by_latent_size(models, few, tmp_path / "a.png")
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
    figures.plot_networks(models, few, tmp_path / "a.png")
    above, below, _ = drawn[0].axes
    (_, digits), *rows = rows_of(above)
    for (_, reconstruction), (_, error) in zip(rows[:2], rows[2:], strict=True):
        difference, redness = (reconstruction - digits)[..., 0], error[..., 0] - error[..., 2]
        assert (redness[difference > 0.1] > 0).all()
        assert (redness[difference < -0.1] < 0).all()
    for (_, samples), model in zip(rows_of(below), models.values(), strict=True):
        assert same(samples, sample_prior(model, 16))


def test_paths_are_straight_in_codes_and_in_pixels(few, drawn, tmp_path):
    model = make(3)
    figures.plot_interpolation(model, few, tmp_path / "a.png")
    for axes in drawn[0].axes:
        rows = rows_of(axes)
        for (label, codes), (_, pixels) in zip(rows[::2], rows[1::2], strict=True):
            first, last = (few.test_images[few.test_labels == int(label[place])] for place in (0, 4))
            ends = torch.stack([first[0], last[int(label[0] == label[4])]])
            assert same(pixels[[0, STEPS // 2, -1]], torch.stack([ends[0], ends.mean(0), ends[1]]))
            middle = torch.from_numpy(encode_means(model, ends)).mean(0, keepdim=True)
            assert same(codes[STEPS // 2], decode(model, middle))


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
