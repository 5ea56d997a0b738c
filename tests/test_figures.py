"""Item 2.4's figures on real digits and tiny models: what they show, and that they are the same every time."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.distributions import MultivariateNormal, kl_divergence

from ELBO import kl_diag_normal
from gmm_entropy import GMM
from latent_traversal import STEPS, dimension_kl, plot_latent_traversal, traverse
from sample_from_prior import (
    decode,
    divergence_from_prior,
    draw_codes,
    fit_mixture,
    plot_prior_samples,
    sample_mixture,
    sample_prior,
)
from train import plot_elbo_curve, plot_elbo_curves, seeded
from tsne import embed, encode_means, plot_tsne
from VAE import VAE

STANDARD_ERRORS = 4  # that an estimate may be off


@pytest.fixture(params=[1, 2, 3], ids="K={}".format)
def model(request):
    """An untrained model whose latent dimensions differ: the encoder moves dimension k by about 10 (k + 1)."""
    with seeded(0):
        model = VAE(request.param, "mlp")
    with torch.no_grad():
        model.encoder[-1].weight[: request.param] *= 10 * torch.arange(1, request.param + 1).unsqueeze(1)
    return model


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that are saved during a test."""
    figures = []
    savefig = Figure.savefig

    def remember(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


@pytest.fixture
def history():
    """A history of 300 iterations that rises steeply, then slowly."""
    iterations = np.arange(1, 301)
    nll, kl = 5000 / iterations**2 - 100 * np.log(iterations), 3 * np.log(iterations)
    stages = {"begin": 10, "middle": 150, "end": 300}
    return {"loss": (nll + kl).tolist(), "nll": nll.tolist(), "kl": kl.tolist(), "stages": stages}


def mosaic_of(images):
    """Tile images (rows, columns, 28, 28) into one."""
    return np.block([[np.asarray(image) for image in row] for row in images])


def draw_traversal(model, dataset, history, path):
    plot_latent_traversal(model, path, dataset.test_images[:50], "title")


def draw_traversal_without_images(model, dataset, history, path):
    plot_latent_traversal(model, path)


def draw_prior_samples(model, dataset, history, path):
    plot_prior_samples(model, path, title="title")


def draw_tsne(model, dataset, history, path):
    plot_tsne(model, dataset.test_images[:120], dataset.test_labels[:120], path, title="title")


def draw_elbo_curve(model, dataset, history, path):
    plot_elbo_curve(history, path, {"begin": -60.0, "middle": 380.0, "end": 520.0}, 150, "title")


def draw_elbo_curves(model, dataset, history, path):
    plot_elbo_curves({"one": history, "another": history}, path, "title")


ALL_FIGURES = (
    draw_traversal,
    draw_traversal_without_images,
    draw_prior_samples,
    draw_tsne,
    draw_elbo_curve,
    draw_elbo_curves,
)


# -------------------------------------------------------------------------------------------------------- all files


@pytest.mark.parametrize("draw", ALL_FIGURES)
def test_figure_is_a_whole_png_with_the_same_bytes_every_time(draw, model, dataset, history, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002, the generator that must not be used
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for folder in ("first", "second"):
        draw(model, dataset, history, tmp_path / folder / "figure.png")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    first, second = (tmp_path / folder / "figure.png" for folder in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 10
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["figure.png", "figure.png", "first", "second"]


# -------------------------------------------------------------------------------------------------------- traversal


def test_traversal_moves_one_dimension_from_minus_to_plus_three(model):
    images = traverse(model)
    assert images.shape == (model.latent_dim, STEPS, 28, 28)
    for dimension in range(model.latent_dim):
        for step, value in enumerate(np.linspace(-3, 3, STEPS)):
            z = torch.zeros(1, model.latent_dim)
            z[0, dimension] = value
            with torch.no_grad():
                torch.testing.assert_close(images[dimension, step], model.decode(z)[0, 0])


def test_kl_of_the_dimensions_adds_up_to_that_of_the_codes(model, dataset):
    images = dataset.test_images[:100]
    with torch.no_grad():
        torch.testing.assert_close(dimension_kl(model, images).sum(), kl_diag_normal(*model.encode(images)))


def test_traversal_rows_are_ordered_by_and_labelled_with_their_kl(model, dataset, drawn, tmp_path):
    images = dataset.test_images[:100]
    plot_latent_traversal(model, tmp_path / "a.png", images)
    kl = dimension_kl(model, images)
    order = sorted(range(model.latent_dim), key=lambda k: -kl[k])
    assert order == list(range(model.latent_dim))[::-1]  # not the order that they have in the model
    (axes,) = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"$z_{{{k + 1}}}$  {kl[k]:.2f} nats" for k in order]
    assert [tick.get_text() for tick in axes.get_xticklabels()][::5] == ["-3.0", "+0.0", "+3.0"]
    assert np.array_equal(axes.images[0].get_array(), mosaic_of(traverse(model)[order]))
    assert axes.images[0].get_clim() == (0, 1)


def test_traversal_without_images_keeps_the_order_of_the_dimensions(model, drawn, tmp_path):
    plot_latent_traversal(model, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"$z_{{{k + 1}}}$" for k in range(model.latent_dim)]
    assert np.array_equal(axes.images[0].get_array(), mosaic_of(traverse(model)))


# ---------------------------------------------------------------------------------------------------- prior samples


def test_prior_samples_are_decoded_standard_normal_codes(model):
    with seeded(4), torch.no_grad():
        images = model.decode(torch.randn(30, model.latent_dim))
    torch.testing.assert_close(sample_prior(model, 30, seed=4), images)
    assert not torch.equal(sample_prior(model, 30, seed=5), images)


def test_prior_samples_are_drawn_as_a_grid_in_their_order(model, drawn, tmp_path):
    plot_prior_samples(model, tmp_path / "a.png", seed=2)
    (axes,) = drawn[0].axes
    expected = mosaic_of(sample_prior(model, 100, seed=2).view(10, 10, 28, 28))
    assert np.array_equal(axes.images[0].get_array(), expected)


def test_decoding_in_portions_changes_nothing(model):
    with seeded(0):
        z = torch.randn(2300, model.latent_dim)
    with torch.no_grad():
        torch.testing.assert_close(decode(model, z), model.decode(z))


# ----------------------------------------------------------------------------------------------- aggregate posterior


def test_codes_are_draws_from_the_posterior_of_their_image(model, dataset):
    count = 3000  # in three portions
    with torch.no_grad():
        mu, logvar = (value.double().numpy()[0] for value in model.encode(dataset.test_images[:1]))
    codes = draw_codes(model, dataset.test_images[:1].expand(count, -1, -1, -1), seed=1)
    sigma = np.exp(logvar / 2)
    assert codes.dtype == np.float64
    assert codes.shape == (count, model.latent_dim)
    assert (abs(codes.mean(0) - mu) < STANDARD_ERRORS * sigma / math.sqrt(count)).all()
    assert (abs(codes.std(0) - sigma) < STANDARD_ERRORS * sigma / math.sqrt(2 * count)).all()
    assert len(np.unique(codes[:, 0])) > 0.99 * count  # no portion repeats another's draws


def test_codes_are_in_the_order_of_the_images(model, dataset):
    images = dataset.test_images[:50]
    with torch.no_grad():
        model.encoder[-1].bias[model.latent_dim :] = -50  # sigma about 1e-11: codes are means
    assert np.allclose(draw_codes(model, images), encode_means(model, images), atol=1e-5)


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("count", [150, 5000])
def test_codes_from_the_prior_diverge_from_it_by_no_more_than_the_fit_is_uncertain(dimension, count):
    codes = np.random.default_rng(0).standard_normal((count + 5000, dimension))
    mixture = fit_mixture(codes[:count])
    divergence = divergence_from_prior(mixture, codes[count:])
    parameters = len(mixture.weights) * (1 + dimension + dimension * (dimension + 1) / 2)
    uncertain = 2 * parameters / (2 * count)  # in expectation a parameter adds 1 / 2N; twice that is allowed
    assert abs(divergence.held_out) < uncertain + STANDARD_ERRORS * divergence.held_out_standard_error
    assert abs(divergence.mixture) < uncertain + STANDARD_ERRORS * divergence.mixture_standard_error


@pytest.fixture(params=[1, 2, 4], ids="d={}".format)
def gaussian(request):
    """A Gaussian far from the prior, with correlations."""
    rng = np.random.default_rng(request.param)
    factor = rng.normal(size=(request.param, request.param)) + np.eye(request.param)
    covariance = torch.from_numpy(factor @ factor.T + 0.1 * np.eye(request.param))
    return MultivariateNormal(torch.from_numpy(rng.normal(size=request.param)), covariance)


def test_divergence_of_a_gaussian_is_its_closed_form(gaussian):
    """Of the mixture itself, of codes drawn from it, and of a mixture of equal parts, to the Monte Carlo error."""
    mean, covariance = gaussian.mean.numpy(), gaussian.covariance_matrix.numpy()
    dimension = len(mean)
    prior = MultivariateNormal(torch.zeros(dimension, dtype=torch.float64), torch.eye(dimension, dtype=torch.float64))
    exact = kl_divergence(gaussian, prior).item()
    codes = np.random.default_rng(9).multivariate_normal(mean, covariance, 5000)
    for parts in (1, 3):
        mixture = GMM(np.full(parts, 1 / parts), [mean] * parts, [covariance] * parts)
        found = divergence_from_prior(mixture, codes)
        assert found.mixture == pytest.approx(exact, abs=STANDARD_ERRORS * found.mixture_standard_error)
        assert found.held_out == pytest.approx(exact, abs=STANDARD_ERRORS * found.held_out_standard_error)
        assert 0 < found.mixture_standard_error < found.held_out_standard_error < 0.1 * exact


def test_divergence_of_an_overfitted_mixture_lies_between_its_two_estimates():
    """Three hundred codes for three components in eight dimensions."""
    codes = 2 * np.random.default_rng(0).standard_normal((20_300, 8))
    found = divergence_from_prior(fit_mixture(codes[:300]), codes[300:])
    exact = 8 * 0.5 * (4 - 1 - math.log(4))
    assert found.held_out + STANDARD_ERRORS * found.held_out_standard_error < exact
    assert found.mixture - STANDARD_ERRORS * found.mixture_standard_error > exact


def test_fitted_mixture_has_the_moments_of_separate_groups_of_codes():
    rng = np.random.default_rng(0)
    groups = rng.normal(-4, 0.5, (220, 2)), rng.normal(4, 1.0, (79, 2))
    mixture = fit_mixture(np.concatenate(groups))
    order = np.argsort(mixture.means[:, 0])
    assert mixture.weights[order] == pytest.approx([220 / 299, 79 / 299], abs=1e-3)
    for k, group in zip(order, groups, strict=True):
        assert mixture.means[k] == pytest.approx(group.mean(0), abs=1e-3)
        assert mixture.covariances[k] == pytest.approx(np.cov(group.T, bias=True), abs=1e-3)


def test_mixture_samples_are_decoded_codes_of_the_mixture(model):
    mean = 2 * np.ones(model.latent_dim)
    mixture = GMM([1.0], [mean], [1e-12 * np.eye(model.latent_dim)])
    images = sample_mixture(model, mixture, 5)
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(mean).float()[None]).expand(5, -1, -1, -1)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_mixture_samples_are_the_same_for_the_same_seed(model):
    mixture = GMM([0.5, 0.5], [-np.ones(model.latent_dim), np.ones(model.latent_dim)], 2 * [np.eye(model.latent_dim)])
    first, again, other = (sample_mixture(model, mixture, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------------------------------------------------ t-SNE


def clusters(count, classes, dimension, seed=0):
    """Return points (count, dimension) around `classes` far-apart centres, and the class of each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = 20 * rng.normal(size=(classes, dimension))
    return (centres[labels] + rng.normal(size=(count, dimension))).astype(np.float32), labels


def test_separate_classes_stay_separate_in_the_map_and_random_labels_are_at_chance():
    codes, labels = clusters(400, 10, 8)
    embedding = embed(codes, labels)
    assert embedding.points.shape == (400, 2)
    assert embedding.knn_accuracy == 1
    assert embedding.trustworthiness > 0.95
    shuffled = embed(codes, np.random.default_rng(1).permutation(labels))
    assert shuffled.knn_accuracy == pytest.approx(0.1, abs=STANDARD_ERRORS * math.sqrt(0.1 * 0.9 / 400))
    assert np.array_equal(shuffled.points, embedding.points)  # labels rate the map; they do not make it


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_few_codes_of_any_dimension_are_mapped(dimension):
    codes, labels = clusters(12, 2, dimension)
    embedding = embed(codes, labels)
    assert np.isfinite(embedding.points).all()
    assert 0 <= embedding.knn_accuracy <= 1
    assert 0 <= embedding.trustworthiness <= 1
    assert np.array_equal(embedding.codes, codes)


def test_map_shows_every_code_in_the_colour_of_its_class(model, dataset, drawn, tmp_path):
    images, labels = dataset.test_images[:120], dataset.test_labels[:120]
    embedding = plot_tsne(model, images, labels, tmp_path / "a.png")
    assert np.allclose(embedding.codes, encode_means(model, images))
    shown = [embedding.points] + ([embedding.codes] if model.latent_dim == 2 else [])
    assert len(drawn[0].axes) == len(shown)
    for axes, points in zip(drawn[0].axes, shown, strict=True):
        assert len(axes.collections) == 10
        assert len({tuple(dots.get_facecolor()[0]) for dots in axes.collections}) == 10
        for digit, dots in enumerate(axes.collections):
            assert dots.get_label() == str(digit)
            assert np.allclose(dots.get_offsets(), points[labels.numpy() == digit])
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list("0123456789")
    title = drawn[0].axes[0].get_title()
    assert f"accuracy {embedding.knn_accuracy:.3f}, trustworthiness {embedding.trustworthiness:.3f}" in title


# --------------------------------------------------------------------------------------------------- learning curve


def line(axes, label):
    """The data of the line of that label, as arrays of x and y."""
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found.get_data()


def faint_lines(axes):
    return [np.asarray(line.get_ydata()) for line in axes.lines if line.get_alpha() == 0.25]


def test_curve_shows_elbo_and_its_parts_at_every_iteration(history, drawn, tmp_path):
    test_elbo = {"begin": -60.0, "middle": 380.0, "end": 520.0}
    plot_elbo_curve(history, tmp_path / "a.png", test_elbo)
    whole, parts = drawn[0].axes
    elbo, reconstruction, kl = (-np.array(history[name]) for name in ("loss", "nll", "kl"))
    assert np.array_equal(faint_lines(whole), [elbo])
    assert np.array_equal(faint_lines(parts), [reconstruction, kl])
    iterations, values = line(whole, "ELBO, test set")
    assert (list(iterations), list(values)) == ([10, 150, 300], [-60, 380, 520])


def test_running_mean_is_over_a_tenth_of_the_iterations_on_either_side(history, drawn, tmp_path):
    plot_elbo_curve(history, tmp_path / "a.png")
    elbo = -np.array(history["loss"])
    iterations, smooth = line(drawn[0].axes[0], "ELBO, training batches")
    assert np.array_equal(iterations, np.arange(1, 301))
    near = [abs(iterations - i) <= 0.1 * i + 1e-9 for i in iterations]
    assert smooth == pytest.approx([elbo[window].mean() for window in near])


def test_stages_draw_up_to_their_iteration_on_the_axes_of_the_whole_training(history, drawn, tmp_path):
    test_elbo = {"begin": -60.0, "middle": 380.0, "end": 520.0}
    for stage, until in history["stages"].items():
        plot_elbo_curve(history, tmp_path / f"{stage}.png", test_elbo, until)
    for number, (figure, until) in enumerate(zip(drawn, history["stages"].values(), strict=True), start=1):
        assert [len(values) for axes in figure.axes for values in faint_lines(axes)] == [until] * 3
        assert len(line(figure.axes[0], "ELBO, test set")[0]) == number
    for first, second in pairwise(drawn):
        for axes, same_axes in zip(first.axes, second.axes, strict=True):
            assert axes.get_xlim() == same_axes.get_xlim()
            assert axes.get_ylim() == same_axes.get_ylim()


def test_axes_leave_out_the_depth_of_the_first_iterations_only(history, drawn, tmp_path):
    plot_elbo_curve(history, tmp_path / "a.png")
    elbo = -np.array(history["loss"])
    low, high = drawn[0].axes[0].get_ylim()
    assert elbo[:2].max() < low < elbo[10:].min()
    assert high > elbo.max()


def test_all_runs_are_in_one_figure(history, drawn, tmp_path):
    better = {**history, "loss": [loss - 50 for loss in history["loss"]]}
    plot_elbo_curves({"conv": history, "mlp": better}, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert np.array_equal(faint_lines(axes), [-np.array(run["loss"]) for run in (history, better)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["conv", "mlp"]
    assert len({line.get_color() for line in axes.lines}) == 2


@pytest.mark.parametrize("iterations", [1, 2])
def test_shortest_trainings_have_curves(iterations, tmp_path):
    values = [300.0, 200.0][:iterations]
    short = {"loss": values, "nll": values, "kl": [0.0] * iterations, "stages": {"begin": 1, "middle": 1}}
    plot_elbo_curve(short, tmp_path / "a.png", {"begin": -310.0, "middle": -310.0})
    plot_elbo_curves({"run": short}, tmp_path / "b.png")
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "b.png").exists()
