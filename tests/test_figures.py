"""Item 2.4's figures on real digits and tiny models: what they show, and that they are the same in all surroundings."""

import importlib
import sys

import numpy as np
import pytest
import torch
from conftest import make
from matplotlib import rc_context, rcParams
from PIL import Image

from config import TrainConfig
from drawing import DOTS_PER_INCH, figure_file, mosaic
from ELBO import kl_diag_normal
from latent_traversal import STEPS, decode_plane, dimension_kl, plot_latent_traversal, traverse
from runs import Run
from sample_from_prior import plot_prior_samples, sample_prior
from train import decode, encode_means, plot_elbo_curve, plot_elbo_curves, seeded
from tsne import DIGIT_COLORS, LABEL_DISTANCE, LIMIT, Embedding, embed, plot_tsne

NO_MATHEMATICS = "of $\\a user's$ own"  # as a formula it cannot be set
MATPLOTLIBRC = {"image.origin": "lower", "text.usetex": True, "font.size": 30.0, "axes.facecolor": "red"}
RUNS = [Run(architecture, 2, TrainConfig()) for architecture in ("conv", "mlp")]
SCRIPTS = ("train", "latent_traversal", "sample_from_prior", "tsne")
FIGURES = {
    "traversal": lambda model, history, x, y, at: plot_latent_traversal(model, at, x, NO_MATHEMATICS),
    "prior samples": lambda model, history, x, y, at: plot_prior_samples(model, at, title=NO_MATHEMATICS),
    "t-SNE": lambda model, history, x, y, at: plot_tsne(model, x, y, at, title=NO_MATHEMATICS),
    "curve": lambda model, history, x, y, at: plot_elbo_curve(history, at, {"end": 520.0}, title=NO_MATHEMATICS),
    "curves": lambda model, history, x, y, at: plot_elbo_curves(dict.fromkeys(RUNS, history), at, NO_MATHEMATICS),
}


def mosaic_of(images, gap=1):
    """Tile images (rows, columns, 28, 28) into one, with white lines between neighbours."""
    framed = [[np.pad(image, ((0, gap), (0, gap)), constant_values=1) for image in row] for row in np.asarray(images)]
    tiled = np.block(framed)
    return tiled[: tiled.shape[0] - gap, : tiled.shape[1] - gap]


# ---- All figures


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("model", [2], indirect=True)
def test_figure_is_the_same_whatever_a_matplotlibrc_says(figure, model, dataset, history, tmp_path, monkeypatch):
    """And draws no numbers that somebody else counts on."""
    monkeypatch.setattr("drawing.DOTS_PER_INCH", 50)
    given = model, history, dataset.test_images[:60], dataset.test_labels[:60]
    before = torch.get_rng_state()
    FIGURES[figure](*given, tmp_path / "first")
    with rc_context(MATPLOTLIBRC):
        FIGURES[figure](*given, tmp_path / "second")
        assert {name: rcParams[name] for name in MATPLOTLIBRC} == MATPLOTLIBRC
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert np.asarray(Image.open(tmp_path / "first").convert("L")).std() > 10


@pytest.mark.parametrize("name", SCRIPTS)
def test_backend_of_a_notebook_that_is_not_installed_here_is_not_asked_for(name, monkeypatch, tmp_path):
    """Imported anew, matplotlib would refuse it."""
    monkeypatch.setenv("MPLBACKEND", "of-a-notebook")
    for module in ("matplotlib", "drawing", "runs", *SCRIPTS):
        monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.import_module(name)
    with sys.modules["drawing"].figure_file(tmp_path / "a.png", (1, 1)) as figure:
        figure.subplots()


@pytest.mark.parametrize(("colors", "rare", "tolerance"), [("gray", "gray", 0), ("hsv", "lime", 24)])
def test_figure_is_a_png_of_its_size_whose_few_colours_show_what_all_do(tmp_path, colors, rare, tolerance):
    """In two thirds of the bytes; greys are exact."""
    dots = np.random.default_rng(0).normal(size=(2, 5000))
    with figure_file(tmp_path / "few", (4, 3), NO_MATHEMATICS) as figure:
        axes = figure.subplots()
        axes.scatter(*dots, c=dots[0], cmap=colors, alpha=0.5)
        axes.plot([0, 3], [0, 3], ".", color=rare, markersize=2)
        figure.savefig(tmp_path / "all", format="png", dpi=DOTS_PER_INCH)
    few, whole = (Image.open(tmp_path / name, formats=["PNG"]) for name in ("few", "all"))
    assert np.divide(few.size, few.info["dpi"]) == pytest.approx((4, 3), rel=1e-3)
    assert np.ptp([few.convert("RGB"), whole.convert("RGB")], axis=0).max() <= tolerance
    assert (tmp_path / "few").stat().st_size < 2 / 3 * (tmp_path / "all").stat().st_size


def test_class_has_the_same_shade_in_every_figure(tmp_path):
    """However many other colours there are."""
    rng = np.random.default_rng(0)
    for colors in ("hsv", "gray"):
        with figure_file(tmp_path / "a", (4, 3)) as figure:
            axes = figure.subplots()
            axes.scatter(*rng.normal(size=(2, 3000)), c=rng.random(3000), cmap=colors, alpha=0.5)
            axes.scatter(rng.normal(size=300), rng.normal(size=300), c=np.tile(DIGIT_COLORS, (30, 1)))
        found = {tuple(color) for _, color in Image.open(tmp_path / "a").convert("RGB").getcolors(256)}
        assert {tuple(color) for color in np.rint(255 * DIGIT_COLORS).astype(int)} <= found


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_mosaic_has_white_lines_between_images_in_grey_or_in_colours(gap):
    images = np.random.default_rng(0).random((3, 2, 28, 28, 3))
    channels = [mosaic_of(images[..., channel], gap) for channel in range(3)]
    assert np.array_equal(mosaic(images, gap), np.stack(channels, axis=-1))
    assert np.array_equal(mosaic(torch.from_numpy(images[..., 0]), gap), channels[0])


# ---- Traversal


@torch.no_grad()
def test_traversal_moves_one_dimension_from_minus_to_plus_three(model):
    steps = torch.linspace(-3, 3, STEPS).unsqueeze(1)
    expected = [model.decode(steps * direction).squeeze(1) for direction in torch.eye(model.latent_dim)]
    torch.testing.assert_close(traverse(model), torch.stack(expected))


def test_traversal_rows_are_in_the_order_of_their_kl_or_in_one_from_elsewhere(model, dataset, drawn, tmp_path):
    images, dimensions = dataset.test_images[:100], list(range(model.latent_dim))
    kl = dimension_kl(model, images)
    with torch.no_grad():
        torch.testing.assert_close(kl.sum(), kl_diag_normal(*model.encode(images)))
    assert kl.argsort().tolist() == dimensions  # so that the largest comes first in another order than the model's
    for given in ({}, {"images": images}, {"images": images, "order": dimensions}):
        plot_latent_traversal(model, tmp_path / "a.png", **given)
    for figure, order, nats in zip(drawn, (dimensions, dimensions[::-1], dimensions), (False, True, True), strict=True):
        axes, *planes = figure.axes
        assert len(planes) == (model.latent_dim == 2)
        assert np.array_equal(axes.images[0].get_array(), mosaic_of(traverse(model)[order]))
        for k, label in zip(order, axes.get_yticklabels(), strict=True):
            assert f"z_{{{k + 1}}}" in label.get_text()
            assert (f"{kl[k]:.2f} nats" in label.get_text()) == nats
        assert [float(label.get_text()) for label in axes.get_xticklabels()][::5] == [-3, 0, 3]


@pytest.mark.parametrize("model", [2], indirect=True)
@torch.no_grad()
def test_plane_has_the_first_code_to_the_right_and_the_second_upwards(model, dataset, drawn, tmp_path):
    codes = [[-3, 3], [0, 3], [3, 3], [-3, 0], [0, 0], [3, 0], [-3, -3], [0, -3], [3, -3]]  # as read
    decoded = model.decode(torch.tensor(codes).float()).view(3, 3, 28, 28)
    torch.testing.assert_close(decode_plane(model, side=3), decoded)
    images = dataset.test_images[:50]
    edge = 3 * 20 / 19  # the first and the last of 20 digits have their middle at 3
    model.encoder[-1].bias[0] += edge - np.median(encode_means(model, images)[:, 0])  # so that some are outside
    plot_latent_traversal(model, tmp_path / "a.png", images)
    axes = drawn[0].axes[1]
    (picture,), (dots,) = axes.images, axes.collections
    assert np.array_equal(picture.get_array(), mosaic_of(decode_plane(model)))
    assert picture.get_extent() == pytest.approx([-edge, edge, -edge, edge])
    codes = encode_means(model, images)
    assert np.allclose(dots.get_offsets(), codes)
    outside = (np.abs(codes) > edge).any(axis=1).sum()
    assert 0 < outside < 50
    assert f"orange; {outside} of them outside" in axes.get_title()
    assert [circle.get_radius() for circle in axes.patches] == [1, 2, 3]


# ---- Prior samples


def test_prior_samples_are_decoded_standard_normal_codes_in_a_grid_from_black_to_white(model, drawn, tmp_path):
    with seeded(4), torch.no_grad():
        images = model.decode(torch.randn(100, model.latent_dim))
    torch.testing.assert_close(sample_prior(model, 100, seed=4), images)
    plot_prior_samples(model, tmp_path / "a.png", seed=4)
    (picture,) = drawn[0].axes[0].images
    assert np.allclose(picture.get_array(), mosaic_of(images.view(10, 10, 28, 28)), atol=1e-6)
    assert (picture.get_clim(), picture.get_cmap().name) == ((0, 1), "gray")


def test_coding_and_decoding_in_portions_change_nothing(model, digits, monkeypatch):
    monkeypatch.setattr("train.IMAGES_AT_ONCE", 3)
    with torch.no_grad():
        mu, _ = model.encode(digits)
        torch.testing.assert_close(decode(model, mu), model.decode(mu))
    np.testing.assert_allclose(encode_means(model, digits), mu, rtol=1e-5, atol=1e-5)


# ---- t-SNE


def clusters(count, classes, dimension):
    """Return points (count, dimension) around `classes` far-apart centres, and the class of each."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = 20 * rng.normal(size=(classes, dimension))
    return (centres[labels] + rng.normal(size=(count, dimension))).astype(np.float32), labels


def test_separate_classes_stay_separate_in_the_map_and_random_labels_are_at_chance():
    codes, labels = clusters(200, 10, 8)
    embedding = embed(codes, labels)
    assert embedding.knn_accuracy == 1
    assert embedding.trustworthiness > 0.95
    shuffled = embed(codes, np.random.default_rng(1).permutation(labels))
    assert shuffled.knn_accuracy == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 200))  # standard errors
    assert np.array_equal(shuffled.points, embedding.points)  # labels rate the map; they do not make it


@pytest.mark.parametrize("dimension", [1, 2, 8])
def test_few_codes_of_any_dimension_are_mapped(dimension):
    codes, labels = clusters(12, 2, dimension)
    _, points, *ratings = embed(codes, labels)
    assert np.isfinite(points).all()
    assert all(0 <= rating <= 1 for rating in ratings)


def test_map_shows_every_code_in_the_colour_of_its_class(model, dataset, drawn, tmp_path):
    images, labels = dataset.test_images[:60], dataset.test_labels[:60]
    embedding = plot_tsne(model, images, labels, tmp_path / "a.png")
    assert np.allclose(embedding.codes, encode_means(model, images))
    shown = [embedding.points] + ([embedding.codes] if model.latent_dim == 2 else [])
    colors = [handle.get_color() for handle in drawn[0].legends[0].legend_handles]
    for axes, points in zip(drawn[0].axes, shown, strict=True):
        (dots,) = axes.collections
        assert axes.get_aspect() == 1
        assert not np.array_equal(dots.get_offsets(), points)  # no class on top of the others
        drawn_dots = {(*at, *color[:3]) for at, color in zip(dots.get_offsets(), dots.get_facecolors(), strict=True)}
        inside = (np.abs(points) <= (np.inf if points is embedding.points else LIMIT)).all(axis=1)
        expected = {(*at, *colors[digit]) for at, digit in zip(points[inside], labels[inside].tolist(), strict=True)}
        assert drawn_dots == expected
        assert {int(text.get_text()) for text in axes.texts} == set(labels[inside].tolist())
    assert f"accuracy {embedding.knn_accuracy:.3f}" in drawn[0].axes[0].get_title()


def test_label_stands_on_a_point_of_its_class_where_it_is_densest_and_on_no_other_label(drawn, tmp_path):
    """Two classes side by side have narrow parts far from their medians; a third has the same points as the first."""
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0, 0.1, (60, 2)), rng.uniform(-10, 10, (40, 2))
    points = np.concatenate([narrow + 8, wide, narrow - 8, wide, narrow + 8, wide])
    labels = np.repeat([3, 5, 9], 100)
    model = make(5)
    plot_tsne(model, None, labels, tmp_path / "a.png", embedding=Embedding(points, points, 1.0, 1.0))
    at = {int(text.get_text()): np.array(text.get_position()) for text in drawn[0].axes[0].texts}
    assert all((points[labels == digit] == place).all(axis=1).any() for digit, place in at.items())
    assert np.allclose([at[3], at[5]], [[8, 8], [-8, -8]], atol=0.3)
    assert np.linalg.norm(at[9] - at[3]) > LABEL_DISTANCE * np.ptp(points, axis=0).max()


@pytest.mark.parametrize("model", [2], indirect=True)
def test_plane_of_codes_has_limits_that_do_not_depend_on_them(model, drawn, tmp_path):
    codes = np.linspace(-1, 1, 100).reshape(50, 2)
    codes[:7, 1] = LIMIT + 1
    plot_tsne(model, None, np.arange(50) % 3, tmp_path / "a.png", embedding=Embedding(codes, codes, 1.0, 1.0))
    axes = drawn[0].axes[1]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-LIMIT, LIMIT), (-LIMIT, LIMIT))
    assert "(7 more outside)" in axes.get_title()
