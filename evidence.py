"""The report's evidence: every claim of items 2.5 and 2.6 over several seeds, and the likelihood's own experiment.

`python main.py --evidence` trains both architectures at each latent size with each seed, and once more with sigma = 1,
and measures each: the bounds, the codes, and how good samples are.
"""

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import color_sequences
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch.utils.flop_counter import FlopCounterMode

from experiment import Experiment
from files import save_figure
from mnist import evenly_spaced
from sample_from_prior import (
    divergence_from_prior,
    draw_codes,
    draw_grid,
    fit_mixture,
    sample_mixture,
    sample_prior,
)
from train import calibrated_sigma, evaluate, hold_out, seeded
from tsne import NEIGHBOURS, encode_means
from VAE import VAE

LATENT_DIMS = (1, 2, 4, 8, 16, 32, 64)
SWEPT = "mlp"  # the network that is taken over all of these sizes and both rules for sigma; others at the main sizes
SEEDS = 3
FIXED_SIGMA = 1.0
FIXED_SIGMA_LATENT_DIM = 16
MIXTURE_CODES = 20_000  # training codes that a mixture is fitted to
KNN_CODES = 10_000  # training codes that classify the test codes
SAMPLES = 2_000  # generated, and as many real digits to compare them with
FEATURES = 50  # principal components of the training images' pixels


def planned_experiments(settings, config):
    """List the evidence's experiments: the sweep over latent sizes, then the runs with a fixed sigma."""
    fixed_dim = settings.latent_dims[-1] if settings.quick else FIXED_SIGMA_LATENT_DIM
    cases = [(name, dim, config.sigma) for name in settings.architectures for dim in latent_sizes(settings, name)]
    cases += [(name, fixed_dim, FIXED_SIGMA) for name in settings.architectures if name == SWEPT]
    return [
        planned_experiment(architecture, dim, replace(config, seed=config.seed + index, sigma=sigma), index)
        for architecture, dim, sigma in cases
        for index in range(SEEDS)
    ]


def latent_sizes(settings, architecture):
    """Return the latent sizes at which an architecture is measured."""
    if settings.quick or architecture != SWEPT:
        return settings.latent_dims
    return tuple(sorted({*LATENT_DIMS, *settings.latent_dims}))


def planned_experiment(architecture, latent_dim, config, index):
    """Name an experiment after what sets it apart from the plain run of its architecture and size."""
    marks = [f"sigma{config.sigma:g}"] if config.sigma else []
    marks += [f"seed{config.seed}"] if index else []
    return Experiment(architecture, latent_dim, config, "_".join(marks))


def collect(settings, config, laboratory):
    """Carry out and measure all planned experiments.

    Returns
    -------
    dict
        "runs": a dict of settings and measurements for each experiment; "real_digits": density and coverage that
        training digits reach; "prior_check": the divergence measured on codes that are truly from the prior;
        "networks": parameters and multiply-adds of each architecture and latent size.
    """
    dataset = laboratory.dataset
    experiments = planned_experiments(settings, config)
    judge = SampleJudge(dataset)
    runs = []
    for experiment in experiments:
        checkpoint = laboratory.obtain(experiment)
        laboratory.bar.set_description(f"measuring {experiment.name}")
        model = laboratory.model(checkpoint)
        measured = laboratory.remembered(
            experiment, lambda model=model: measure_all(model, dataset, settings.scale, judge)
        )
        rule = "calibrated" if experiment.config.sigma is None else experiment.config.sigma
        settled = {"architecture": experiment.architecture, "latent_dim": experiment.latent_dim, "sigma_rule": rule}
        runs.append(
            {**settled, "seed": experiment.config.seed, "train_seconds": checkpoint["train_seconds"], **measured}
        )
    sizes = sorted({experiment.latent_dim for experiment in experiments})
    return {
        "runs": runs,
        "real_digits": judge.rate(evenly_spaced(dataset.train_images, SAMPLES))._asdict(),
        "prior_check": {
            str(dim): prior_check(dim, len(dataset.train_images), len(dataset.test_images)) for dim in sizes
        },
        "networks": {
            f"{architecture}_z{dim}": describe_network(architecture, dim)
            for architecture in settings.architectures
            for dim in sizes
        },
    }


def measure_all(model, dataset, scale, judge):
    """Measure a trained model's bounds, codes and samples."""
    test = evaluate(model, dataset.test_images, scale.importance_images, scale.importance_samples)
    with seeded(0):
        fitted_sigma = calibrated_sigma(model, hold_out(dataset.train_images)[1].to(model.sigma.device))
    refitted = copy.deepcopy(model)
    refitted.sigma.fill_(fitted_sigma)
    return {
        "sigma": model.sigma.item(),
        **test,
        "fitted_sigma": fitted_sigma,
        "elbo_with_fitted_sigma": evaluate(refitted, dataset.test_images)["elbo"],
        "code_knn_accuracy": code_knn_accuracy(model, dataset),
        **measure_samples(model, dataset, judge),
    }


def code_knn_accuracy(model, dataset):
    """Classify test codes by their 5 nearest training codes; the share that is right."""
    classifier = KNeighborsClassifier(NEIGHBOURS)
    images, labels = (evenly_spaced(values, KNN_CODES) for values in (dataset.train_images, dataset.train_labels))
    classifier.fit(encode_means(model, images), labels)
    return float(classifier.score(encode_means(model, dataset.test_images), dataset.test_labels))


def measure_samples(model, dataset, judge):
    """Measure how far the codes are from the prior, and how good samples from the prior and from a mixture are."""
    mixture = fit_code_mixture(model, dataset)
    divergence = divergence_from_prior(mixture, draw_codes(model, dataset.test_images, seed=1))
    return {
        "prior_divergence": divergence._asdict(),
        "prior_samples": judge.rate(sample_prior(model, SAMPLES))._asdict(),
        "mixture_samples": judge.rate(sample_mixture(model, mixture, SAMPLES))._asdict(),
    }


def fit_code_mixture(model, dataset):
    """Fit a mixture to codes of training images from all over the set."""
    return fit_mixture(draw_codes(model, evenly_spaced(dataset.train_images, MIXTURE_CODES)))


def prior_check(latent_dim, train_count, test_count):
    """Measure the divergence from the prior of codes that are from the prior: it must be about 0."""
    rng = np.random.default_rng(0)
    mixture = fit_mixture(rng.standard_normal((min(train_count, MIXTURE_CODES), latent_dim)))
    return divergence_from_prior(mixture, rng.standard_normal((test_count, latent_dim)))._asdict()


def describe_network(architecture, latent_dim):
    """Count parameters, and the multiply-adds that one image costs from pixels to reconstruction."""
    model = VAE(latent_dim, architecture)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 28, 28))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}


# ---- The quality of samples


class Quality(NamedTuple):
    """How samples compare with real images (Naeem et al. 2020)."""

    density: float  # how deep in the real images' neighbourhoods the samples lie; 1 for real images
    coverage: float  # the share of real images with a sample in their neighbourhood; at most 1


class SampleJudge:
    """Rates samples by density and coverage against test images, in the space of the pixels' principal components."""

    def __init__(self, dataset):
        train = evenly_spaced(dataset.train_images, MIXTURE_CODES).flatten(1).numpy()
        self.features = PCA(min(FEATURES, len(train)), random_state=0).fit(train)
        self.real = self._project(evenly_spaced(dataset.test_images, SAMPLES))
        # A point's nearest neighbour among the points themselves is the point, so one more is asked for.
        distances, _ = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(self.real).kneighbors(self.real)
        self.radii = distances[:, -1]

    def _project(self, images):
        return self.features.transform(images.flatten(1).numpy())

    def rate(self, images):
        """Rate images (N, 1, 28, 28): a `Quality`."""
        inside = pairwise_distances(self.real, self._project(images)) < self.radii[:, None]  # (real, samples)
        return Quality(float(inside.sum() / (NEIGHBOURS * inside.shape[1])), float(inside.any(1).mean()))


# ---- Figures


def plot_sweep(runs, path, title=""):
    """Write how each measurement depends on the latent size, mean and standard deviation over seeds, to `path`.

    Parameters
    ----------
    runs : list of dict
        As in `collect`, of calibrated sigma.
    path : path-like
        PNG file to write.
    title : str
    """
    panels = {
        "test ELBO (nats per image)": {"": lambda run: run["elbo"]},
        "KL (nats per image)": {"": lambda run: run["kl"]},
        "reconstruction error (MSE per pixel)": {"": lambda run: run["reconstruction_mse"]},
        "active units": {"": lambda run: run["active_units"]},
        "5-NN accuracy of codes": {"": lambda run: run["code_knn_accuracy"]},
        "KL(q(z) ‖ prior), held out (nats)": {"": lambda run: run["prior_divergence"]["held_out"]},
        "coverage of samples": {
            ", from the prior": lambda run: run["prior_samples"]["coverage"],
            ", from the mixture": lambda run: run["mixture_samples"]["coverage"],
        },
        "density of samples": {
            ", from the prior": lambda run: run["prior_samples"]["density"],
            ", from the mixture": lambda run: run["mixture_samples"]["density"],
        },
    }
    architectures = dict.fromkeys(run["architecture"] for run in runs)
    sizes = sorted({run["latent_dim"] for run in runs})
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    figure.suptitle(title)
    for axes, (label, values) in zip(figure.subplots(4, 2).flat, panels.items(), strict=True):
        for architecture, color in zip(architectures, color_sequences["petroff10"], strict=False):
            own = [run for run in runs if run["architecture"] == architecture]
            for (suffix, value), style in zip(values.items(), ("o-", "s--"), strict=False):
                dims, means, deviations = _over_seeds(own, value)
                axes.errorbar(dims, means, deviations, fmt=style, color=color, capsize=3, label=architecture + suffix)
        axes.set_title(label, fontsize="medium")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(dim) for dim in sizes])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in figure.axes[-2:]:
        axes.set_xlabel("latent dimensions K")
    save_figure(figure, path)


def _over_seeds(runs, value):
    """Return the latent sizes, and a measurement's mean and standard deviation over the seeds at each."""
    dims = sorted({run["latent_dim"] for run in runs})
    seeds = [[value(run) for run in runs if run["latent_dim"] == dim] for dim in dims]
    return dims, [np.mean(values) for values in seeds], [np.std(values, ddof=1) for values in seeds]


@torch.no_grad()
def plot_reconstructions_and_samples(models, dataset, path, title=""):
    """Write rows of digits to `path`: originals, then for each model, {name: VAE}, reconstructions and samples.

    Samples are decoded from the prior, and from a mixture fitted to the model's codes.
    """
    count = 20
    originals = dataset.test_images[:count]
    figure = Figure(figsize=(10, 0.5 + 2.0 * len(models)), layout="constrained")
    figure.suptitle(title)
    for axes, (name, model) in zip(figure.subplots(len(models), squeeze=False)[:, 0], models.items(), strict=True):
        mixture = fit_code_mixture(model, dataset)
        device = model.sigma.device
        mu, _ = model.encode(originals.to(device))
        rows = {
            "test images": originals,
            "reconstructions": model.decode(mu).cpu(),
            "from the prior": sample_prior(model, count),
            "from the mixture": sample_mixture(model, mixture, count),
        }
        draw_grid(axes, torch.cat(list(rows.values())), name, columns=count)
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([28 * row + 13.5 for row in range(len(rows))], list(rows))
    save_figure(figure, path)


def draw_figures(settings, config, laboratory, runs, folder):
    """Write the evidence's figures to `folder`: the sweep, and digits at each size and for each rule for sigma."""
    dataset = laboratory.dataset
    plot_sweep([run for run in runs if run["sigma_rule"] == "calibrated"], folder / "latent_sweep.png", dataset.note)
    first_seed = [plan for plan in planned_experiments(settings, config) if plan.config.seed == config.seed]
    for architecture in settings.architectures:
        plans = [plan for plan in first_seed if plan.architecture == architecture]
        fixed_sizes = {plan.latent_dim for plan in plans if plan.config.sigma}
        sweep = [plan for plan in plans if not plan.config.sigma and plan.latent_dim in settings.latent_dims]
        rules = [plan for plan in plans if plan.latent_dim in fixed_sizes]
        for name, shown in (("samples", sweep), ("sigma", rules)):
            models = {_caption(plan): laboratory.model(laboratory.obtain(plan)) for plan in shown}
            if models:
                plot_reconstructions_and_samples(models, dataset, folder / f"{name}_{architecture}.png", dataset.note)


def _caption(plan):
    rule = "calibrated σ" if plan.config.sigma is None else f"σ = {plan.config.sigma:g}"
    return f"{plan.architecture}, z = {plan.latent_dim}, {rule}"
