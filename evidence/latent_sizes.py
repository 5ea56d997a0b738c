"""Item 2.6: what changes with more or with fewer latent dimensions?"""

import numpy as np
from sklearn.decomposition import PCA

from drawing import figure_file
from evidence.pictures import SHOWN, digits_of, draw_over_sizes, draw_rows, network_style, reconstruct
from evidence.posterior import sample_posterior
from evidence.training import Run, over_seeds
from sample_from_prior import sample_prior
from tsne import TSNE_IMAGES, knn_accuracy
from VAE import PIXELS

PCA_IMAGES = 10_000  # training images that principal components are fitted to
DRAWN = 8  # samples in a row
MEASURES = {"recognised": "share recognised", "frechet_distance": "Fréchet distance"}
SOURCES = {"mixture": "s-", "prior": "o--"}


def plan(networks, latent_dims, seeds):
    """Return the runs of the question."""
    return [Run(network, dim, seed) for seed in range(seeds) for network in networks for dim in latent_dims]


def answer(runs, dataset):
    """Summarise measured runs; beside them the 5-NN accuracy of principal components, and their squared error."""
    digits = dataset.test.choose(TSNE_IMAGES)
    dims = sorted({run["latent_dim"] for run in runs})
    pca = PCA(dims[-1], random_state=0).fit(dataset.train.choose(PCA_IMAGES).images.flatten(1).numpy())
    components = pca.transform(digits.images.flatten(1).numpy())
    images = dataset.test.images.flatten(1).numpy()
    unexplained = np.square(images - pca.mean_).mean() - np.square(pca.transform(images)).mean(0).cumsum() / PIXELS
    return {
        "groups": over_seeds(runs),
        "pca_knn_accuracy": {str(dim): knn_accuracy(components[:, :dim], digits.labels) for dim in dims},
        "pca_mse": {str(dim): float(unexplained[dim - 1]) for dim in dims},
    }


def draw(results, load, dataset, folder):
    """Write both figures to `folder`; `load` returns the `VAE` of a `Run`."""
    groups = results["latent_sizes"]["groups"].values()
    plot_numbers(groups, results["judge"]["test_digits"], folder / "latent_sizes.png")
    dims = [group["latent_dim"] for group in groups if group["architecture"] == SHOWN.architecture]
    models = {f"K = {dim}": load(SHOWN._replace(latent_dim=dim)) for dim in dims}
    plot_digits(models, dataset, folder / "digits_by_latent_size.png")


def plot_numbers(groups, test_digits, path):
    """Write ELBO, dimensions in use, and the measures of samples and of test digits against K to `path`."""
    with figure_file(path, (8.5, 7)) as figure:
        elbo, active, *judged = figure.subplots(2, 2).flat
        draw_over_sizes(elbo, groups, "elbo", "test ELBO (nats)")
        elbo.legend()
        draw_over_sizes(active, groups, "dimensions_in_use", "dimensions in use")
        active.set_yscale("log", base=2)
        active.yaxis.set_major_formatter("{x:g}")
        for axes, (measure, label) in zip(judged, MEASURES.items(), strict=True):
            for source, fmt in SOURCES.items():
                draw_over_sizes(axes, groups, f"{source}_{measure}", label, fmt)
            axes.axhline(test_digits[measure], color="black", linestyle=":")
        words = {"samples from the code mixture": "s-", "samples from the prior": "o--", "test digits": ":"}
        lines = [axes.plot([], [], fmt, color="black", label=label)[0] for label, fmt in words.items()]
        figure.legend(handles=lines, loc="outside lower center", ncols=3)


def plot_digits(models, dataset, path):
    """Write what models {label: VAE} make of the same test digits, and their samples, to `path`: a row for each."""
    digits, others = digits_of(dataset.test), dataset.test.choose(2 * DRAWN).images.split(DRAWN)
    panels = {
        "reconstructions": (digits, lambda model: reconstruct(model, digits)),
        "samples from the prior": (others[0], lambda model: sample_prior(model, DRAWN)),
        "samples from the code mixture": (others[1], lambda model: sample_posterior(model, dataset.train, DRAWN)),
    }
    with figure_file(path, (9, 0.8 + 0.3 * (1 + len(models))), network_style(SHOWN.architecture)["label"]) as figure:
        subplots = figure.subplots(1, 3, sharey=True, width_ratios=(len(digits), DRAWN, DRAWN))
        for axes, (label, (real, make)) in zip(subplots, panels.items(), strict=True):
            draw_rows(axes, {"test digits": real} | {name: make(model) for name, model in models.items()}, label)
