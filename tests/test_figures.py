"""Item 2.4's figures on real digits and tiny models: what they show, and that they are the same every time."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from config import TrainConfig
from ELBO import kl_diag_normal
from latent_traversal import STEPS, decode_plane, dimension_kl, plot_latent_traversal, traverse
from sample_from_prior import decode, plot_prior_samples, sample_prior
from train import Run, plot_elbo_curve, plot_elbo_curves, seeded
from tsne import DIGIT_COLORS, LIMIT, embed, encode_means, plot_tsne

STANDARD_ERRORS = 4  # that an estimate may be off


def mosaic_of(images):
    """Tile images (rows, columns, 28, 28) into one, with a white line between neighbours."""
    framed = [[np.pad(image, ((0, 1), (0, 1)), constant_values=1) for image in row] for row in np.asarray(images)]
    return np.block(framed)[:-1, :-1]


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
    runs = [Run(architecture, 2, TrainConfig()) for architecture in ("conv", "mlp")]
    plot_elbo_curves(dict.fromkeys(runs, history), path, "title")


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
    axes, *_ = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"$z_{{{k + 1}}}$  {kl[k]:.2f} nats" for k in order]
    assert [tick.get_text() for tick in axes.get_xticklabels()][::5] == ["-3.0", "+0.0", "+3.0"]
    assert np.array_equal(axes.images[0].get_array(), mosaic_of(traverse(model)[order]))
    assert axes.images[0].get_clim() == (0, 1)


def test_traversal_without_images_keeps_the_order_of_the_dimensions(model, drawn, tmp_path):
    plot_latent_traversal(model, tmp_path / "a.png")
    axes, *_ = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"$z_{{{k + 1}}}$" for k in range(model.latent_dim)]
    assert np.array_equal(axes.images[0].get_array(), mosaic_of(traverse(model)))


def test_traversal_rows_take_an_order_from_elsewhere(model, dataset, drawn, tmp_path):
    order = list(range(model.latent_dim))  # not that of their KL
    plot_latent_traversal(model, tmp_path / "a.png", dataset.test_images[:50], order=order)
    axes, *_ = drawn[0].axes
    assert np.array_equal(axes.images[0].get_array(), mosaic_of(traverse(model)))
    assert [tick.get_text().split()[0] for tick in axes.get_yticklabels()] == [f"$z_{{{k + 1}}}$" for k in order]
    assert axes.get_title().endswith("in the order of the end")


@pytest.mark.parametrize("model", [2], indirect=True)
def test_plane_has_the_first_code_to_the_right_and_the_second_upwards(model):
    images = decode_plane(model, side=3)
    codes = [[-3, 3], [0, 3], [3, 3], [-3, 0], [0, 0], [3, 0], [-3, -3], [0, -3], [3, -3]]  # as read
    with torch.no_grad():
        torch.testing.assert_close(images, model.decode(torch.tensor(codes, dtype=torch.float32)))


def test_plane_of_two_codes_is_drawn_where_they_lie(model, dataset, drawn, tmp_path):
    images = dataset.test_images[:50]
    plot_latent_traversal(model, tmp_path / "a.png", images)
    _, *planes = drawn[0].axes
    assert len(planes) == (model.latent_dim == 2)
    for axes in planes:
        (picture,), (codes,) = axes.images, axes.collections
        assert np.array_equal(picture.get_array(), mosaic_of(decode_plane(model).view(20, 20, 28, 28)))
        left, right, bottom, top = picture.get_extent()
        assert (left, bottom) == (-right, -top)
        assert left + (right - left) / 40 == pytest.approx(-3)  # the middle of the first of 20 digits
        assert np.allclose(codes.get_offsets(), encode_means(model, images))
        assert [circle.get_radius() for circle in axes.patches] == [1, 2, 3]


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
    colors = [handle.get_color() for handle in drawn[0].legends[0].legend_handles]
    for axes, points in zip(drawn[0].axes, shown, strict=True):
        (dots,) = axes.collections
        assert axes.get_aspect() == 1
        assert not np.array_equal(dots.get_offsets(), points)  # no class on top of the others
        drawn_dots = {(*at, *color[:3]) for at, color in zip(dots.get_offsets(), dots.get_facecolors(), strict=True)}
        assert drawn_dots == {(*at, *colors[digit]) for at, digit in zip(points, labels, strict=True)}
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list("0123456789")
    title = drawn[0].axes[0].get_title()
    assert f"accuracy {embedding.knn_accuracy:.3f}, trustworthiness {embedding.trustworthiness:.3f}" in title


@pytest.mark.parametrize("model", [2], indirect=True)
@pytest.mark.parametrize("far", [0, 7])
def test_plane_of_codes_has_limits_that_do_not_depend_on_them(model, dataset, drawn, tmp_path, monkeypatch, far):
    codes, _ = clusters(50, 3, 2)
    codes /= np.abs(codes).max()
    codes[:far, 1] = LIMIT + 1
    monkeypatch.setattr("tsne.encode_means", lambda *_: codes)
    plot_tsne(model, dataset.test_images[:50], dataset.test_labels[:50], tmp_path / "a.png")
    axes = drawn[0].axes[1]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-LIMIT, LIMIT), (-LIMIT, LIMIT))
    assert [circle.get_radius() for circle in axes.patches] == [1, 2, 3]
    assert ("(7 more outside)" in axes.get_title()) == (far == 7)


def test_digits_that_mix_have_colours_far_apart_for_all_readers():
    """CIELAB distances of what normal, deuteranope and protanope readers see, the latter two by Machado et al. 2009."""
    deuteranope = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    protanope = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    linear = np.where(DIGIT_COLORS <= 0.04045, DIGIT_COLORS / 12.92, ((DIGIT_COLORS + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]
    )  # white is 1, 1, 1
    for seen in (np.eye(3), np.array(deuteranope), np.array(protanope)):
        x, y, z = np.cbrt(np.clip(linear @ seen.T, 0, 1) @ to_xyz.T).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        for one, other in ((3, 5), (3, 8), (5, 8), (4, 9)):
            assert np.linalg.norm(lab[one] - lab[other]) > 58
