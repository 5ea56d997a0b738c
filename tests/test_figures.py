"""Item 2.4's figures on real digits and tiny models: what they show, and that they are the same every time."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ELBO import kl_diag_normal
from latent_traversal import STEPS, dimension_kl, plot_latent_traversal, traverse
from sample_from_prior import decode, plot_prior_samples, sample_prior
from train import plot_elbo_curve, plot_elbo_curves, seeded
from tsne import embed, encode_means, plot_tsne

STANDARD_ERRORS = 4  # that an estimate may be off


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


@pytest.mark.parametrize(
    ("draw", "model"),
    [*((draw, 2) for draw in ALL_FIGURES), (draw_traversal, 1), (draw_traversal, 3), (draw_tsne, 1)],
    indirect=["model"],
)
def test_figure_is_a_whole_png_with_the_same_bytes_every_time(draw, model, dataset, history, tmp_path, monkeypatch):
    monkeypatch.setattr("files.DOTS_PER_INCH", 50)
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
