"""The experiments behind items 2.5 and 2.6, and the likelihood's own: what is trained, and what is measured.

The fully connected network at seven latent sizes, and once more with sigma = 1, and the convolutional one at the main
sizes, each with three seeds: the bounds, the codes, and how good samples are. What is measured is kept beside the
checkpoints, so that --resume takes it over.
"""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from evidence.posterior import divergence_from_prior, draw_codes, fit_mixture, sample_mixture
from evidence.quality import SAMPLES, SampleJudge
from files import read_json, write_json
from mnist import evenly_spaced
from sample_from_prior import sample_prior
from train import (
    Run,
    calibrated_sigma,
    checkpoint_path,
    choose_device,
    evaluate,
    hold_out,
    load_checkpoint,
    made_from,
    seeded,
)
from tsne import NEIGHBOURS, encode_means
from VAE import VAE

LATENT_DIMS = (1, 2, 4, 8, 16, 32, 64)
SWEPT = "mlp"  # the network that is taken over all of these sizes and both rules for sigma; others at the main sizes
SEEDS = 3
FIXED_SIGMA = 1.0
FIXED_SIGMA_LATENT_DIM = 16
MIXTURE_CODES = 20_000  # training codes that a mixture is fitted to
KNN_CODES = 10_000  # training codes that classify the test codes


def planned_runs(settings, config):
    """List the runs: the sweep over latent sizes, then those with a fixed sigma; the main runs are among them."""
    fixed_dim = FIXED_SIGMA_LATENT_DIM if FIXED_SIGMA_LATENT_DIM in settings.latent_dims else settings.latent_dims[-1]
    cases = [(name, dim, None) for name in settings.architectures for dim in latent_sizes(settings, name)]
    cases += [(name, fixed_dim, FIXED_SIGMA) for name in settings.architectures if name == SWEPT]
    return [
        Run(name, dim, replace(config, seed=config.seed + index, sigma=sigma), variant(sigma, config.seed, index))
        for name, dim, sigma in cases
        for index in range(SEEDS)
    ]


def latent_sizes(settings, architecture):
    """Return the latent sizes at which an architecture is measured."""
    if settings.quick or architecture != SWEPT:
        return settings.latent_dims
    return tuple(sorted({*LATENT_DIMS, *settings.latent_dims}))


def variant(sigma, seed, index):
    """Name what sets a run apart from the plain run of its architecture and size."""
    marks = [f"sigma{sigma:g}"] if sigma else []
    marks += [f"seed{seed + index}"] if index else []
    return "_".join(marks)


def remembered(what, run, dataset, settings, measurement):
    """Return what `measurement()`, a dict fit for JSON, gives for a run, now or, with --resume, in an earlier call."""
    path = Path(settings.checkpoints) / f"{run.name}.{what}.json"
    origin = made_from(run, dataset, choose_device(settings.device))
    if settings.resume and path.exists():
        found = read_json(path)
        if found.get("made_from") == origin:
            return found["results"]
    results = measurement()
    write_json(path, {"made_from": origin, "results": results})
    return results


def trained_model(run, settings):
    """Return the model of a run that has been trained, on the device of the settings."""
    return load_checkpoint(checkpoint_path(run, settings)).to(choose_device(settings.device))


def collect(runs, dataset, settings):
    """Measure runs that have been trained.

    Returns
    -------
    dict
        "runs": a dict of settings and measurements for each run; "real_digits": density and coverage that training
        digits reach; "prior_check": the divergence measured on codes that are truly from the prior; "networks":
        parameters and multiply-adds of each architecture and latent size.
    """
    judge = SampleJudge(dataset)
    measured = []
    for run in tqdm(runs, desc="measuring", unit="run", dynamic_ncols=True):

        def measure_run(run=run):
            return measure(trained_model(run, settings), dataset, settings.scale, judge)

        numbers = remembered("measured", run, dataset, settings, measure_run)
        rule = "calibrated" if run.config.sigma is None else run.config.sigma
        settled = {"architecture": run.architecture, "latent_dim": run.latent_dim, "sigma_rule": rule}
        measured.append({**settled, "seed": run.config.seed, **numbers})
    sizes = sorted({run.latent_dim for run in runs})
    counts = len(dataset.train_images), len(dataset.test_images)
    return {
        "runs": measured,
        "real_digits": judge.rate(evenly_spaced(dataset.train_images, SAMPLES))._asdict(),
        "prior_check": {str(dim): prior_check(dim, *counts) for dim in sizes},
        "networks": {
            f"{architecture}_z{dim}": describe_network(architecture, dim)
            for architecture in settings.architectures
            for dim in sizes
        },
    }


def measure(model, dataset, scale, judge):
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
