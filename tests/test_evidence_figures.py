"""The evidence's pictures: that they show the numbers and the digits that they are given, and nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi

from config import TrainConfig
from evidence.experiments import fit_code_mixture
from evidence.figures import (
    COLORS,
    GAP,
    STEPS,
    plot_aggregate_posterior,
    plot_digits_by_latent_size,
    plot_elbo_time,
    plot_interpolation,
    plot_kl_spectrum,
    plot_latent_sizes,
    plot_networks,
    plot_sigma,
)
from evidence.film import Frame, frame_iterations, record, write_film
from evidence.posterior import draw_codes, sample_mixture
from latent_traversal import decode_plane
from sample_from_prior import decode, sample_prior
from train import calibrated_sigma, evaluate, hold_out, seeded, train
from tsne import encode_means
from VAE import VAE

SIZES = (1, 16, 32, 64)
REAL = {"density": 0.95, "coverage": 0.9}
CHECK = {str(dim): {"held_out": -0.05 * dim} for dim in SIZES}


def make(latent_dim=2, architecture="mlp"):
    with seeded(latent_dim):
        return VAE(latent_dim, architecture)


@pytest.fixture(scope="module")
def few(dataset):
    return dataset.first(600, 200)


@pytest.fixture
def runs():
    """Measurements of both networks at some sizes with three seeds, no two numbers alike."""
    rng = np.random.default_rng(0)
    return [
        {
            "architecture": architecture,
            "latent_dim": dim,
            "seed": seed,
            **{key: rng.random() for key in ("elbo", "train_elbo", "kl", "reconstruction_mse", "code_knn_accuracy")},
            "kl_per_dimension": (10 ** rng.uniform(-2, 0, dim)).tolist(),
            "prior_divergence": {"held_out": rng.random()},
            "prior_samples": {"density": rng.random(), "coverage": rng.random()},
            "mixture_samples": {"density": rng.random(), "coverage": rng.random()},
        }
        for architecture in ("mlp", "conv")
        for dim in SIZES
        for seed in range(3)
    ]


BUDGETS = [
    {"architecture": name, "epochs": epochs, "train_seconds": seconds * epochs, "elbo": elbo - 100 / epochs}
    for name, seconds, elbo in (("mlp", 5.0, 820.0), ("conv", 20.0, 900.0))
    for epochs in (20, 1, 5)  # in no order
]


def draw_latent_sizes(runs, few, path):
    plot_latent_sizes(runs, REAL, CHECK, path, few.note)


def draw_kl_spectrum(runs, few, path):
    plot_kl_spectrum(runs, path, few.note)


def draw_elbo_time(runs, few, path):
    plot_elbo_time(BUDGETS, path)


def draw_digits_by_latent_size(runs, few, path):
    plot_digits_by_latent_size({1: make(1), 2: make(2)}, few, path)


def draw_networks(runs, few, path):
    plot_networks({"conv": make(2, "conv"), "mlp": make()}, few, path, few.note)


def draw_aggregate_posterior(runs, few, path):
    plot_aggregate_posterior({2: make(2), 16: make(16)}, few, path, few.note)


def draw_interpolation(runs, few, path):
    plot_interpolation(make(), few, path)


def draw_sigma(runs, few, path):
    plot_sigma({"calibrated σ": make(2), "σ = 1": make(3)}, few, path)


def draw_film(runs, few, path):
    write_film([Frame(1, -500.0, np.zeros((560, 560))), Frame(20, 100.0, np.ones((560, 560)))], path)


@pytest.mark.parametrize(
    "draw",
    [
        draw_latent_sizes,
        draw_kl_spectrum,
        draw_elbo_time,
        draw_digits_by_latent_size,
        draw_networks,
        draw_aggregate_posterior,
        draw_interpolation,
        draw_sigma,
        draw_film,
    ],
)
def test_picture_is_small_and_the_same_every_time(draw, runs, few, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for name in ("first", "second"):
        draw(runs, few, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = ((tmp_path / name).read_bytes() for name in ("first", "second"))
    assert first == second
    assert len(first) < 500_000
    with Image.open(tmp_path / "first") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


# ---------------------------------------------------------------------------------------------------------- numbers


def test_latent_sizes_show_mean_and_deviation_over_seeds_of_every_measurement(runs, drawn, tmp_path):
    plot_latent_sizes(runs, REAL, CHECK, tmp_path / "a.png")
    (figure,) = drawn
    measurements = [
        [lambda run: run["elbo"], lambda run: run["train_elbo"]],
        [lambda run: run["kl"]],
        [lambda run: run["reconstruction_mse"]],
        [lambda run: sum(nats > 0.1 for nats in run["kl_per_dimension"])],
        [lambda run: run["code_knn_accuracy"]],
        [lambda run: run["prior_divergence"]["held_out"] - CHECK[str(run["latent_dim"])]["held_out"]],
        [lambda run: run["prior_samples"]["coverage"], lambda run: run["mixture_samples"]["coverage"]],
        [lambda run: run["prior_samples"]["density"], lambda run: run["mixture_samples"]["density"]],
    ]
    for axes, values in zip(figure.axes, measurements, strict=True):
        cases = [(name, value) for name in COLORS for value in values]
        for bars, (name, value) in zip(axes.containers, cases, strict=True):
            seeds = [
                [value(run) for run in runs if (run["architecture"], run["latent_dim"]) == (name, dim)] for dim in SIZES
            ]
            line, _, (deviations,) = bars
            assert line.get_color() == COLORS[name]
            assert np.allclose(line.get_ydata(), np.mean(seeds, axis=1))
            lengths = [high - low for (_, low), (_, high) in deviations.get_segments()]
            assert np.allclose(lengths, 2 * np.std(seeds, axis=1, ddof=1))
            assert np.allclose(line.get_xdata(), SIZES, rtol=0.05)


def test_latent_sizes_have_one_legend_and_the_real_digits_lines(runs, drawn, tmp_path):
    plot_latent_sizes(runs, REAL, CHECK, tmp_path / "a.png")
    (figure,) = drawn
    (legend,) = figure.legends
    assert not any(axes.get_legend() for axes in figure.axes)
    assert legend.get_title().get_text() == "mean ± 1 standard deviation over 3 seeds"
    for axes, what in zip(figure.axes[-2:], ("coverage", "density"), strict=True):
        assert what in axes.get_title()
        assert [REAL[what]] * 2 in [list(line.get_ydata()) for line in axes.lines]


def test_spectrum_shows_the_three_largest_sizes_in_falling_order_and_counts_those_that_carry(runs, drawn, tmp_path):
    plot_kl_spectrum(runs, tmp_path / "a.png")
    for axes, name in zip(drawn[0].axes, COLORS, strict=True):
        thick = [line for line in axes.lines if line.get_label().startswith("K = ")]
        for line, dim in zip(thick, (16, 32, 64), strict=True):
            own = [run["kl_per_dimension"] for run in runs if (run["architecture"], run["latent_dim"]) == (name, dim)]
            assert np.allclose(line.get_ydata(), np.mean([sorted(nats)[::-1] for nats in own], axis=0))
            assert line.get_label() == f"K = {dim}: " + ", ".join(str((np.array(nats) > 0.1).sum()) for nats in own)
        assert len(axes.lines) == 3 * (3 + 1) + 1  # seeds and mean at each size, and the line at 0.1 nats


def test_elbo_is_drawn_against_seconds_and_each_point_labelled_with_its_epochs(drawn, tmp_path):
    plot_elbo_time(BUDGETS, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    for line, name in zip(axes.lines, COLORS, strict=True):
        own = sorted((run["train_seconds"], run["elbo"]) for run in BUDGETS if run["architecture"] == name)
        assert np.allclose(line.get_xydata(), own)
    labels = {text.xy: text.get_text() for text in axes.texts if text.get_text()}
    assert labels == {(run["train_seconds"], run["elbo"]): str(run["epochs"]) for run in BUDGETS}


# ----------------------------------------------------------------------------------------------------------- digits


def rows_of(axes):
    """Cut the mosaic in the axes: {label: greys (columns, 28, 28)}."""
    mosaic = np.pad(axes.images[0].get_array(), [(0, GAP), (0, GAP), (0, 0)], constant_values=1.0)
    side = 28 + GAP
    cells = mosaic.reshape(len(mosaic) // side, side, -1, side, 3).swapaxes(1, 2)
    assert (cells[:, :, 28:] == 1).all()
    assert (cells[:, :, :, 28:] == 1).all()
    labels = [text.get_text() for text in axes.get_yticklabels()] or [""] * len(cells)
    return [(label, row[:, :28, :28]) for label, row in zip(labels, cells, strict=True)]


def same(row, images):
    return np.allclose(row, images.reshape(-1, 28, 28, 1), atol=1e-6)


def test_digits_of_each_size_are_its_own_reconstructions_and_samples(few, drawn, tmp_path):
    models = {1: make(1), 3: make(3)}
    plot_digits_by_latent_size(models, few, tmp_path / "a.png")
    reconstructions, prior, mixture = map(rows_of, drawn[0].axes)
    assert [label for label, _ in reconstructions] == ["test digits", "K = 1", "K = 3"]
    digits = torch.stack([few.test_images[few.test_labels == label][0] for label in range(10)])
    assert same(reconstructions[0][1], digits)
    for row, model in enumerate(models.values(), start=1):
        expected = decode(model, torch.from_numpy(encode_means(model, digits)))
        assert same(reconstructions[row][1], expected)
        assert same(prior[row][1], sample_prior(model, 8))
        assert same(mixture[row][1], sample_mixture(model, fit_code_mixture(model, few), 8))
    assert not np.array_equal(prior[0][1], mixture[0][1])  # no real digit is printed twice


def test_originals_stand_once_above_what_each_sigma_makes_of_them(few, drawn, tmp_path):
    models = {"calibrated σ": make(2), "σ = 1": make(3)}
    plot_sigma(models, few, tmp_path / "a.png")
    labels = [[label for label, _ in rows_of(axes)] for axes in drawn[0].axes]
    assert labels == [["test digits", *models], [*models], [*models]]


def test_networks_are_shown_on_the_same_digits_and_draws_with_signed_errors(few, drawn, tmp_path):
    models = {"conv": make(2, "conv"), "mlp": make(2)}
    plot_networks(models, few, tmp_path / "a.png")
    above, below, bar = drawn[0].axes
    (_, digits), *rows = rows_of(above)
    for (_, reconstruction), (label, error) in zip(rows[:2], rows[2:], strict=True):
        assert label.startswith("error, ")
        bright, dark = (reconstruction - digits)[..., 0] > 0.1, (reconstruction - digits)[..., 0] < -0.1
        assert (error[bright][:, 0] > error[bright][:, 2]).all()  # red
        assert (error[dark][:, 0] < error[dark][:, 2]).all()  # blue
    for (_, samples), model in zip(rows_of(below), models.values(), strict=True):
        assert same(samples, sample_prior(model, 16))
    assert bar.get_ylabel() == "reconstruction − test digit (pixel value)"


def test_paths_are_straight_in_codes_and_in_pixels(few, drawn, tmp_path):
    model = make(3)
    plot_interpolation(model, few, tmp_path / "a.png")
    for axes in drawn[0].axes:
        rows = rows_of(axes)
        for (label, codes), (_, pixels) in zip(rows[::2], rows[1::2], strict=True):
            first, last = int(label[0]), int(label[4])
            first_ones, last_ones = (few.test_images[few.test_labels == digit] for digit in (first, last))
            ends = [first_ones[0], last_ones[int(first == last)]]
            assert same(pixels[0], ends[0])
            assert same(pixels[-1], ends[1])
            assert same(pixels[STEPS // 2], (ends[0] + ends[1]) / 2)
            means = torch.from_numpy(encode_means(model, torch.stack(ends)))
            assert same(codes[STEPS // 2], decode(model, means.mean(0, keepdim=True)))


# ------------------------------------------------------------------------------------------------------------ codes


def test_contours_hold_as_many_of_the_codes_as_the_circles_hold_of_the_prior(few, drawn, tmp_path):
    model = make(2)
    plot_aggregate_posterior({2: model, 5: make(5)}, few, tmp_path / "a.png")
    plane, lengths = drawn[0].axes
    assert [circle.radius for circle in plane.patches] == [1, 2, 3]
    (contours,) = (found for found in plane.collections if hasattr(found, "levels"))
    codes = draw_codes(model, few.test_images, seed=1)
    densities = fit_code_mixture(model, few).log_prob(codes)
    held = [(densities > level).mean() for level in contours.levels[::-1]]
    assert held == pytest.approx([chi.cdf(radius, 2) for radius in (1, 2, 3)], abs=0.01)
    (curve,) = lengths.lines
    assert np.allclose(curve.get_ydata(), chi.pdf(curve.get_xdata(), 5))


# ------------------------------------------------------------------------------------------------------------- film


@pytest.mark.parametrize("total", [1, 7, 40, 41, 348, 4600, 100_000])
def test_frames_are_distinct_iterations_from_the_first_to_the_last_on_a_log_scale(total):
    chosen = frame_iterations(total)
    assert len(chosen) == min(40, total)
    assert (chosen[0], chosen[-1]) == (1, total)
    steps = np.diff(chosen)
    assert (steps > 0).all()
    assert (np.diff(steps) >= -1).all()  # they grow, but for rounding


def test_recording_leaves_the_training_as_it_is_bit_by_bit(few):
    config = TrainConfig(epochs=2, batch_size=64)
    plain, recorded = make(), make()
    train(plain, few.train_images, config)
    frames = record(recorded, few, config)
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, recorded.state_dict()[name])
    last = frames[-1]
    assert last.iteration == 2 * 9  # batches of 540 images
    assert np.array_equal(last.plane[:28, :28], decode_plane(recorded)[0, 0])
    with seeded(0):
        recorded.sigma.fill_(calibrated_sigma(recorded, hold_out(few.train_images)[1]))
    assert last.elbo == evaluate(recorded, few.test_images)["elbo"]


def test_film_holds_every_frame_and_the_last_one_longest(tmp_path):
    rng = np.random.default_rng(0)
    frames = [Frame(iteration, -100.0, rng.random((560, 560))) for iteration in frame_iterations(400, 6)]
    write_film(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as picture:
        assert (picture.format, picture.n_frames, picture.info["loop"]) == ("GIF", 6, 0)
        assert 480 <= picture.width <= 560
        durations = []
        for number in range(6):
            picture.seek(number)
            durations.append(picture.info["duration"])
    assert durations == [200] * 5 + [3000]
