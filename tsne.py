"""Item 2.4: the latent space in two dimensions, by t-SNE of the codes of test digits."""

from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KernelDensity, KNeighborsClassifier

from drawing import Line2D, draw_prior_circles, figure_file, to_rgb, withStroke
from mnist import evenly_spaced
from runs import draw_checkpoint
from train import encode_means

NEIGHBOURS = 5
FOLDS = 5
PERPLEXITY = 30.0
ITERATIONS = 500  # half of scikit-learn's default
IMAGES = 2000  # test images drawn by the script
LIMIT = 4.0  # edge of the plane of codes, the same at every stage; standard deviations of the prior
LABEL_DISTANCE = 0.05  # least, between two classes' labels; share of a panel's width
# Found by search: any two are at least 46 units of CIELAB apart, 27 to readers without red cones and 20 to readers
# without green ones (simulated after Machado et al. 2009); 3, 5, 8 and 4, 7, 9 at least 75 to all of them.
DIGIT_COLORS = np.array([*map(to_rgb, ["#67e", "#e09", "#900", "k", "#075", "#0cf", "#fa9", "#109", "#a70", "#ad0"])])


class Embedding(NamedTuple):
    """Codes and their map, with how well the map keeps digits apart and neighbours together."""

    codes: np.ndarray  # (N, K) posterior means
    points: np.ndarray  # (N, 2)
    knn_accuracy: float  # of a 5-nearest-neighbour classifier on the points, cross-validated
    trustworthiness: float  # Venna and Kaski 2001: 1 if the map brings no strangers together


def embed(codes, labels, seed=0):
    """Map codes (N, K) to the plane by t-SNE, from a PCA start, and rate the map with the labels (N,)."""
    perplexity = min(PERPLEXITY, (len(codes) - 1) / 3)
    points = TSNE(
        perplexity=perplexity, init=_pca_start(codes, seed), max_iter=ITERATIONS, random_state=seed
    ).fit_transform(codes)
    classifier = KNeighborsClassifier(NEIGHBOURS)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    accuracy = cross_val_score(classifier, points, labels, cv=folds).mean()
    return Embedding(codes, points, float(accuracy), float(trustworthiness(codes, points, n_neighbors=NEIGHBOURS)))


def _pca_start(codes, seed):
    """Return the first two principal components at the scale that t-SNE starts from.

    A single code dimension gets faint noise beside it: a map that starts on a line would never leave it.
    """
    if codes.shape[1] == 1:
        noise = np.random.default_rng(seed).normal(scale=0.01 * codes.std(), size=codes.shape)
        codes = np.hstack([codes, noise.astype(codes.dtype)])
    points = PCA(2, svd_solver="full").fit_transform(codes)
    return 1e-4 * points / max(points[:, 0].std(), np.finfo(np.float32).tiny)


def plot_tsne(model, images, labels, path, seed=0, title="", embedding=None):
    """Write a t-SNE map of images' codes to `path`, coloured by digit; where K = 2, the codes themselves beside it.

    Parameters
    ----------
    model : VAE
    images : torch.Tensor, shape (N, 1, 28, 28)
    labels : torch.Tensor, shape (N,)
        Classes 0..9.
    path : path-like
        PNG file to write.
    seed : int
        Of t-SNE.
    title : str
    embedding : Embedding, optional
        The map, where `embed` has made it already.

    Returns
    -------
    Embedding
    """
    labels = np.asarray(labels)
    embedding = embedding or embed(encode_means(model, images), labels, seed)
    panels = 2 if model.latent_dim == 2 else 1
    rating = f"{NEIGHBOURS}-NN accuracy {embedding.knn_accuracy:.3f}, trustworthiness {embedding.trustworthiness:.3f}"
    with figure_file(path, (0.8 + 5.2 * panels, 5.6), title) as figure:
        axes, *plane = figure.subplots(1, panels, squeeze=False)[0]
        _scatter(axes, embedding.points, labels, seed, np.ptp(embedding.points, axis=0).max())
        axes.set_title(f"t-SNE of {len(labels):,} codes\n{rating}", fontsize="medium")
        axes.set(xticks=[], yticks=[])  # its units mean nothing
        axes.set_aspect("equal", adjustable="datalim")
        if plane:
            _draw_codes(*plane, embedding.codes, labels, seed)
        handles = [Line2D([], [], color=color, marker="o", linestyle="") for color in DIGIT_COLORS]
        figure.legend(handles, range(10), loc="outside right center", title="class")
    return embedding


def _draw_codes(axes, codes, labels, seed):
    inside = (np.abs(codes) <= LIMIT).all(axis=1)
    _scatter(axes, codes[inside], labels[inside], seed, 2 * LIMIT)
    draw_prior_circles(axes, color="black", linewidth=0.8)
    title = f"posterior means ({(~inside).sum():,} more outside)\ncircles: 1, 2, 3 standard deviations of the prior"
    axes.set_title(title, fontsize="medium")
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xlabel="$\\mu_1$", ylabel="$\\mu_2$")


def _scatter(axes, points, labels, seed, width):
    """Draw points in the colours of their classes, and each class's label where it is densest in a panel that wide."""
    order = np.random.default_rng(seed).permutation(len(points))  # so that no class lies on top
    axes.scatter(*points[order].T, s=7, c=DIGIT_COLORS[labels[order]], linewidths=0)
    taken = np.empty((0, 2))
    classes = {digit: points[labels == digit] for digit in np.unique(labels)}
    for digit, own in sorted(classes.items(), key=lambda item: item[1].std()):  # the narrowest has least choice
        density = KernelDensity(bandwidth=0.03 * width or 1.0).fit(own).score_samples(own)
        free = np.linalg.norm(own[:, None] - taken, axis=2).min(axis=1, initial=np.inf).clip(max=LABEL_DISTANCE * width)
        at = own[np.lexsort([density, free])[-1]]
        taken = np.vstack([taken, at])
        text = axes.text(*at, str(digit), ha="center", va="center", size="large", weight="bold")
        text.set_path_effects([withStroke(linewidth=4, foreground="white")])


def _draw(model, data, **at):
    images, labels = (evenly_spaced(part, IMAGES) for part in (data.test_images, data.test_labels))
    plot_tsne(model, images, labels, **at)


if __name__ == "__main__":
    draw_checkpoint(__doc__, _draw)
