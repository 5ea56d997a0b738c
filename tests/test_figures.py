"""Item 2.4's figures: they show what the model gives, and look the same whatever a user's matplotlib is told."""

import numpy as np
import pytest
import torch
from matplotlib import color_sequences, rc_context, rcParams
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.manifold import trustworthiness
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from drawing import draw_class_numbers, mosaic, mosaic_centres, run_title
from latent_traversal import CODES, STEPS, decode_plane, plot_latent_traversal, traverse
from mnist import choose
from sample_from_prior import plot_prior_samples, sample_prior
from train import encode_means, evaluate
from tsne import LIMIT, embed, plot_tsne

MATPLOTLIBRC = {"image.origin": "lower", "text.usetex": True, "font.size": 30.0, "axes.facecolor": "red"}
TITLE = run_title("mlp", 2, "end", "5,000 images")
FIGURES = {
    "traversal": lambda model, digits, path: plot_latent_traversal(model, path, digits.images, TITLE),
    "samples": lambda model, digits, path: plot_prior_samples(model, path, title=TITLE),
    "t-SNE": lambda model, digits, path: plot_tsne(model, digits.images, digits.labels, path, title=TITLE),
}


class Glass:
    """A stand-in for a VAE that one can look through: the first K pixels of an image are its code."""

    def __init__(self, latent_dim):
        self.latent_dim, self.sigma = latent_dim, torch.tensor(1.0)

    def decode(self, z):
        return torch.nn.functional.pad(z, (0, 784 - self.latent_dim)).view(-1, 1, 28, 28)

    def encode(self, x):
        return x.view(-1, 784)[:, : self.latent_dim], torch.zeros(len(x), self.latent_dim)


@pytest.fixture(params=[1, 2, 16], ids="K={}".format)
def glass(request):
    return Glass(request.param)


def texts(labels):
    return [label.get_text() for label in labels]


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figure_is_always_the_same_and_draws_no_number_that_others_count_on(draw, trained, dataset, tmp_path):
    digits, state = dataset.test.choose(50), torch.get_rng_state()
    draw(trained.model, digits, tmp_path / "first")
    with rc_context(MATPLOTLIBRC):
        draw(trained.model, digits, tmp_path / "second")
        assert {key: rcParams[key] for key in MATPLOTLIBRC} == MATPLOTLIBRC
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert np.asarray(Image.open(tmp_path / "first", formats=["PNG"]).convert("L")).std() > 10


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_mosaic_has_white_lines_between_images(gap):
    images = np.random.default_rng(0).random((3, 2, 28, 28))
    framed = [[np.pad(image, ((0, gap), (0, gap)), constant_values=1) for image in row] for row in images]
    tiled = np.block(framed)[: 3 * (28 + gap) - gap, : 2 * (28 + gap) - gap]
    assert np.array_equal(mosaic(torch.from_numpy(images), gap), tiled)


def test_traversal_moves_one_dimension_from_minus_to_plus_three_and_leaves_the_others_at_0(glass, drawn, tmp_path):
    kl = np.arange(glass.latent_dim) / 8
    for k, row in enumerate(traverse(glass)):
        codes = torch.zeros(STEPS, glass.latent_dim)
        codes[:, k] = torch.linspace(-3, 3, STEPS)
        assert_close(glass.encode(row)[0], codes)
    plot_latent_traversal(glass, tmp_path / "a", kl=kl)
    axes, *plane = drawn[0].axes
    assert len(plane) == (glass.latent_dim == 2)
    assert np.array_equal(axes.images[0].get_array(), mosaic(traverse(glass)))
    assert texts(axes.get_yticklabels()) == [f"$z_{{{k + 1}}}$  {nats:.2f}" for k, nats in enumerate(kl)]
    assert texts(axes.get_xticklabels()) == ["−3", "0", "+3"]
    assert axes.get_yticks().tolist() == [13.5 + 29 * row for row in range(len(kl))]
    assert axes.get_xticks().tolist() == [13.5 + 29 * step for step in (0, 5, 10)]


def test_traversal_measures_the_kl_of_each_dimension_itself(trained, dataset, drawn, tmp_path):
    images = dataset.test.choose(50).images
    plot_latent_traversal(trained.model, tmp_path / "a", images)
    kl = evaluate(trained.model, images)["kl_per_dimension"]
    assert [text.split()[-1] for text in texts(drawn[0].axes[0].get_yticklabels())] == [f"{nats:.2f}" for nats in kl]


def test_plane_has_the_first_code_to_the_right_and_the_second_upwards(drawn, tmp_path):
    glass, images = Glass(2), torch.randn(CODES + 1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    codes = glass.encode(decode_plane(glass, side=3))[0].view(3, 3, 2)
    assert codes.tolist() == [[[x, y] for x in (-3, 0, 3)] for y in (3, 0, -3)]
    plot_latent_traversal(glass, tmp_path / "a", images, kl=[0, 0])
    axes = drawn[0].axes[1]
    (picture,), (dots,) = axes.images, axes.collections
    assert np.array_equal(picture.get_array(), mosaic(decode_plane(glass)))
    left, right, bottom, top = picture.get_extent()
    first, *_, last = left + (right - left) * (mosaic_centres(15) + 0.5) / picture.get_array().shape[1]
    assert (first, last, bottom, top) == pytest.approx((-3, 3, left, right), abs=0.01)
    assert np.array_equal(dots.get_offsets(), encode_means(glass, images[choose(CODES + 1, CODES)]))
    assert [circle.get_radius() for circle in axes.patches] == [1, 2, 3]


def test_prior_samples_are_decoded_standard_normal_codes_the_same_for_the_same_seed(glass, drawn, tmp_path):
    codes, _ = glass.encode(sample_prior(glass, 2000, seed=4))
    assert_close(codes.mean(0), torch.zeros(glass.latent_dim), rtol=0, atol=4 / 2000**0.5)  # standard errors
    assert_close(codes.T @ codes / 2000, torch.eye(glass.latent_dim), rtol=0, atol=6 / 2000**0.5)
    assert not torch.equal(sample_prior(glass, 100, seed=5), sample_prior(glass, 100, seed=4))
    plot_prior_samples(glass, tmp_path / "a", seed=4)
    (picture,) = drawn[0].axes[0].images
    assert np.array_equal(picture.get_array(), mosaic(sample_prior(glass, 100, seed=4).view(10, 10, 28, 28)))
    assert (picture.get_clim(), picture.get_cmap().name, picture.origin) == ((0, 1), "gray", "upper")


def test_map_shows_every_code_in_the_colour_of_its_class_and_its_number_in_the_middle(glass, drawn, tmp_path):
    rng, labels, colors = np.random.default_rng(0), np.arange(100) % 10, np.array(color_sequences["petroff10"])
    codes = rng.normal(labels[:, None] - 3, 0.1, (100, glass.latent_dim)).astype(np.float32)  # ten separate classes
    ratings = plot_tsne(glass, glass.decode(torch.from_numpy(codes)), torch.from_numpy(labels), tmp_path / "a")
    assert ratings["knn_accuracy"] == 1
    *plane, last = drawn[0].axes
    assert len(plane) == (glass.latent_dim == 2)
    inside = (np.abs(codes) <= LIMIT).all(axis=1)
    for axes, points, shown in [(last, embed(codes), inside | True), *((axes, codes, inside) for axes in plane)]:
        (dots,) = axes.collections
        found = np.hstack([dots.get_offsets(), dots.get_facecolors()[:, :3]])
        expected = np.hstack([points, colors[labels]])[shown]
        assert not np.array_equal(found, expected)  # no class on top of the others
        assert np.array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
        for text in axes.texts:
            own = points[shown & (labels == int(text.get_text()))]
            assert text.get_position() == tuple(own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()])
        assert len(axes.texts) == len({*labels[shown]})
        assert axes is last or axes.get_xlim() == axes.get_ylim() == (-LIMIT, LIMIT)


def test_numbers_of_classes_that_mix_stand_beside_one_another():
    points, axes = np.random.default_rng(0).normal(size=(300, 2)), Figure().subplots()
    axes.set(xlim=(-5, 5))
    draw_class_numbers(axes, points, np.arange(300) % 3)
    assert pdist([text.get_position() for text in axes.texts]).min() > 0.7


def test_ratings_are_those_of_scikit_learn(trained, dataset, drawn, tmp_path):
    digits = dataset.test.choose(100)
    labels, codes = digits.labels.numpy(), encode_means(trained.model, digits.images)
    ratings = plot_tsne(trained.model, digits.images, digits.labels, tmp_path / "a", seed=1)
    points = embed(codes, seed=1)
    for name, places in (("knn_accuracy", points), ("codes_knn_accuracy", codes)):
        right = 0
        for known, new in KFold(5, shuffle=True, random_state=1).split(places):
            right += KNeighborsClassifier(5).fit(places[known], labels[known]).score(places[new], labels[new]) / 5
        assert ratings[name] == pytest.approx(right)
    assert ratings["trustworthiness"] == pytest.approx(trustworthiness(codes, points, n_neighbors=5))
    assert f"{ratings['knn_accuracy']:.2f}" in drawn[0].axes[1].get_title()
