"""Item 2.4: the latent space in two dimensions, by t-SNE of the codes of test digits."""

import numpy as np
from sklearn.manifold import TSNE, trustworthiness
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from checkpoints import run_figure_script
from drawing import PALETTE, draw_class_numbers, draw_prior_circles, figure_file
from train import encode_means

NEIGHBOURS = 5
PERPLEXITY = 30.0  # scikit-learn's default
ITERATIONS = 500  # half of scikit-learn's default
TSNE_IMAGES = 2000  # test images in a map
LIMIT = 4.0  # half width of the plane of codes at every stage, in standard deviations of the prior


def embed(codes, seed=0):
    """Map codes (N, K) to the plane by t-SNE: points (N, 2)."""
    init = "pca" if codes.shape[1] > 1 else "random"
    perplexity = min(PERPLEXITY, (len(codes) - 1) / 3)
    return TSNE(perplexity=perplexity, init=init, max_iter=ITERATIONS, random_state=seed).fit_transform(codes)


def knn_accuracy(points, labels, seed=0):
    """Return the accuracy of a 5-nearest-neighbour classifier on points (N, D), in five-fold cross-validation."""
    folds = KFold(5, shuffle=True, random_state=seed)
    points, labels = np.asarray(points), np.asarray(labels)
    return float(cross_val_score(KNeighborsClassifier(NEIGHBOURS), points, labels, cv=folds).mean())


def plot_tsne(model, images, labels, path, seed=0, title=""):
    """Write a t-SNE map of images' codes to `path`, coloured by digit; where K = 2, the codes themselves above it.

    Parameters
    ----------
    model : VAE
    images : torch.Tensor, shape (N, 1, 28, 28)
    labels : torch.Tensor, shape (N,)
        Classes 0..9.
    path : path-like
        PNG file to write.
    seed : int
        Of t-SNE and of the cross-validation.
    title : str

    Returns
    -------
    dict
        knn_accuracy of the map and codes_knn_accuracy of the codes (5 nearest neighbours), and the map's
        trustworthiness: 1 if all neighbours in the map are neighbours among the codes (Venna & Kaski 2001).
    """
    labels = np.asarray(labels)
    codes = encode_means(model, images)
    points = embed(codes, seed)
    ratings = {"knn_accuracy": knn_accuracy(points, labels, seed)}
    ratings["codes_knn_accuracy"] = knn_accuracy(codes, labels, seed)
    ratings["trustworthiness"] = float(trustworthiness(codes, points, n_neighbors=NEIGHBOURS))
    panels = 2 if model.latent_dim == 2 else 1
    with figure_file(path, (4.5, 0.5 + 4.3 * panels), title) as figure:
        *plane, axes = figure.subplots(panels, squeeze=False)[:, 0]
        for axis in plane:
            inside = (np.abs(codes) <= LIMIT).all(axis=1)
            draw_prior_circles(axis, color="gray", linewidth=0.8)
            axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xlabel="$\\mu_1$", ylabel="$\\mu_2$")
            _scatter(axis, codes[inside], labels[inside], seed)
            axis.set_title("codes, and 1, 2, 3 standard deviations of the prior", fontsize="medium")
        _scatter(axes, points, labels, seed)
        axes.set(xticks=[], yticks=[])  # the units of a map mean nothing
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(f"t-SNE; {NEIGHBOURS}-NN accuracy {ratings['knn_accuracy']:.2f}", fontsize="medium")
    return ratings


def _scatter(axes, points, labels, seed):
    """Draw points in the colours of their classes, and the class's number at its median."""
    order = np.random.default_rng(seed).permutation(len(points))  # so that no class lies on top
    axes.scatter(*points[order].T, s=5, c=np.array(PALETTE)[labels[order]], linewidths=0)
    draw_class_numbers(axes, points, labels, size=13)


def _draw(model, dataset, path, title):
    digits = dataset.test.choose(TSNE_IMAGES)
    plot_tsne(model, digits.images, digits.labels, path, title=title)


if __name__ == "__main__":
    run_figure_script(__doc__, _draw)
