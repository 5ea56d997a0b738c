"""The experiments that REPORT.md's explanations rest on: what is trained, and what is measured.

With three seeds each: the main runs, encoder and decoder exchanged (2.5), both networks at seven latent sizes (2.6),
and sigma = 1. With one: both networks for budgets from 1 to 20 epochs (2.5), and as other machines train them. What is
measured is kept beside the checkpoints, so that --resume takes it over.
"""

import copy
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from joblib import delayed
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from evidence.film import record, write_film
from evidence.posterior import divergence_from_prior, draw_codes, fit_mixture, sample_mixture
from evidence.quality import SAMPLES, SampleJudge
from files import read_json, write_json
from main import show_stages
from mnist import evenly_spaced, load_packaged
from report import run_results
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
    model_at,
    new_model,
    progress_bar,
    read_checkpoint,
    seeded,
    side_by_side,
    train_or_resume,
)
from tsne import NEIGHBOURS, encode_means
from VAE import VAE

LATENT_DIMS = (1, 2, 4, 8, 16, 32, 64)
SEEDS = 3
BUDGETS = (1, 2, 3, 5, 10, 20)  # epochs
FIXED_SIGMA = 1.0
FIXED_SIGMA_NETWORK = "mlp"  # the quicker one
LATENT_DIM = 16  # of the experiments with one size
MIXTURE_CODES = 20_000  # training codes that a mixture is fitted to
KNN_CODES = 10_000  # training codes that classify the test codes
TRAINED_ON = 10_000  # training images whose ELBO shows how much a network overfits


def planned_runs(settings, config):
    """List the runs of all experiments, {experiment: its runs}; a run can serve several.

    The main runs come first, then what is quick to train, so that an interrupted call has the most of them.
    """
    names, dims = settings.architectures, settings.latent_dims
    dim = LATENT_DIM if LATENT_DIM in dims else dims[-1]
    sizes = dims if settings.quick else sorted({*LATENT_DIMS, *dims})
    budgets = [config.epochs] if settings.quick else sorted({*BUDGETS, config.epochs})
    halves = [f"{encoder}-{decoder}" for encoder, decoder in permutations(names, 2)]

    def planned(architecture, latent_dim, **changes):
        own = replace(config, **changes)
        return Run(architecture, latent_dim, own, variant(own, config))

    seeds = [config.seed + index for index in range(SEEDS)]
    sigma = {"architecture": FIXED_SIGMA_NETWORK, "latent_dim": dim, "sigma": FIXED_SIGMA}
    return {
        "main": [planned(name, size) for name in names for size in dims],
        "networks": [planned(name, size, seed=seed) for seed in seeds for name in names for size in dims],
        "halves": [planned(name, dim, seed=seed) for seed in seeds for name in (*names, *halves)],
        "sigma": [planned(**sigma, seed=seed) for seed in seeds if FIXED_SIGMA_NETWORK in names],
        "sizes": [planned(name, size, seed=seed) for seed in seeds for size in sizes for name in names],
        "budgets": [planned(name, dim, epochs=epochs) for epochs in budgets for name in names],
    }


def variant(config, main):
    """Name what sets a run apart from the main run of its architecture and size."""
    marks = [f"sigma{config.sigma:g}"] if config.sigma else []
    marks += [f"epochs{config.epochs}"] if config.epochs != main.epochs else []
    marks += [f"seed{config.seed}"] if config.seed != main.seed else []
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


def collect(plan, dataset, settings):
    """Train and measure the runs of a plan.

    Returns
    -------
    dict
        "experiments": the names of each one's runs; "runs": for each run its settings and measurements, where "group"
        is its name without its seed; "real_digits": density and coverage that training digits reach; "prior_check": the
        divergence measured on codes that are truly from the prior; "networks": parameters and multiply-adds of each
        architecture and latent size.
    """
    runs = list(dict.fromkeys(run for experiment in plan.values() for run in experiment))
    judge = SampleJudge(dataset)
    measured = side_by_side([delayed(make_run)(run, dataset, settings, judge) for run in runs], settings)
    kinds = dict.fromkeys((run.architecture, run.latent_dim) for run in runs)
    counts = len(dataset.train_images), len(dataset.test_images)
    return {
        "experiments": {name: [run.name for run in experiment] for name, experiment in plan.items()},
        "runs": list(tqdm(measured, "runs", len(runs), unit="run", dynamic_ncols=True)),
        "real_digits": judge.rate(evenly_spaced(dataset.train_images, SAMPLES))._asdict(),
        "prior_check": {str(dim): prior_check(dim, *counts) for dim in sorted({dim for _, dim in kinds})},
        "networks": {f"{architecture}_z{dim}": describe_network(architecture, dim) for architecture, dim in kinds},
    }


def make_run(run, dataset, settings, judge):
    """Train a run and measure it: its settings and measurements."""
    with progress_bar(run, dataset) as bar:
        checkpoint = train_or_resume(run, dataset, settings, bar)
    model = model_at(checkpoint).to(choose_device(settings.device))
    numbers = remembered("measured", run, dataset, settings, lambda: measure(model, dataset, settings.scale, judge))
    return {**describe(run), "train_seconds": checkpoint["train_seconds"], **numbers}


def describe(run):
    """Say which run this is: its name, its group's, and the settings in which runs differ."""
    seedless = re.sub(r"_?seed\d+$", "", run.name)
    settled = {"architecture": run.architecture, "latent_dim": run.latent_dim, "epochs": run.config.epochs}
    rule = "calibrated" if run.config.sigma is None else run.config.sigma
    return {"name": run.name, "group": seedless, **settled, "sigma_rule": rule, "seed": run.config.seed}


def show_training(runs, dataset, settings, folder):
    """Measure the stages of runs as main.py does, and film a plane of codes among them into `folder`.

    Returns
    -------
    dict
        {name: what `report.run_results` makes of a run}.
    """
    planes = [run for run in runs if run.latent_dim == 2][-1:]  # the fully connected network, which is quicker
    calls = [delayed(show_run)(run, dataset, settings) for run in runs]
    calls += [delayed(film_run)(run, dataset, settings, folder) for run in planes]
    shown = list(side_by_side(calls, settings))
    return {run.name: results for run, results in zip(runs, shown, strict=False)}


def show_run(run, dataset, settings):
    """Return the results of a run that has been trained, as main.py has them in its results.json."""
    checkpoint = read_checkpoint(checkpoint_path(run, settings))

    def show():
        with TemporaryDirectory() as dropped:
            return show_stages(run, checkpoint, dataset, settings, Path(dropped))

    return run_results(checkpoint, remembered("stages", run, dataset, settings, show))


def film_run(run, dataset, settings, folder):
    """Train a run once more, and write its film into `folder`; with --resume, one that is there stays."""
    path = folder / "film.gif"

    def film():
        model = new_model(run).to(choose_device(settings.device))
        write_film(record(model, dataset, run.config), path)
        return {"bytes": path.stat().st_size}

    remembered("film", run, dataset, replace(settings, resume=settings.resume and path.exists()), film)


def train_elsewhere(plan, dataset, settings):
    """Train both networks at the one latent size as a machine without bfloat16 does, and one without MNIST.

    Returns
    -------
    dict
        {"float32": and "packaged": {name of the main run: its "elbo" and "train_seconds"}}.
    """
    packaged = load_packaged().first(settings.scale.train_images, settings.scale.test_images)
    config = settings.train_config(len(packaged.train_images))
    main_runs = [run for run in plan["halves"] if run in plan["main"]]
    calls = [delayed(train_in_float32)(replace(run, variant="float32"), dataset, settings) for run in main_runs]
    calls += [
        delayed(train_plainly)(replace(run, variant="packaged", config=config), packaged, settings) for run in main_runs
    ]
    trained, names = list(side_by_side(calls, settings)), [run.name for run in main_runs]
    return {
        "float32": dict(zip(names, trained[: len(names)], strict=True)),
        "packaged": dict(zip(names, trained[len(names) :], strict=True)),
    }


def train_in_float32(run, dataset, settings):
    """Train a run with bfloat16 switched off."""
    with patch("train.has_native_bfloat16", return_value=False):
        return train_plainly(run, dataset, settings)


def train_plainly(run, dataset, settings):
    """Train a run, and measure no more than its test ELBO and its seconds."""
    with progress_bar(run, dataset) as bar:
        checkpoint = train_or_resume(run, dataset, settings, bar)
    model = model_at(checkpoint).to(choose_device(settings.device))
    return {"elbo": evaluate(model, dataset.test_images)["elbo"], "train_seconds": checkpoint["train_seconds"]}


def measure(model, dataset, scale, judge):
    """Measure a trained model's bounds, codes and samples."""
    test = evaluate(model, dataset.test_images, scale.importance_images, scale.importance_samples)
    trained_on, held_out = hold_out(dataset.train_images)
    with seeded(0):
        fitted_sigma = calibrated_sigma(model, held_out.to(model.sigma.device))
    refitted = copy.deepcopy(model)
    refitted.sigma.fill_(fitted_sigma)
    return {
        "sigma": model.sigma.item(),
        **test,
        "train_elbo": evaluate(model, evenly_spaced(trained_on, TRAINED_ON))["elbo"],
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
    """Count parameters, and the multiply-adds that one image costs from pixels to reconstruction; linear layers apart.

    A linear layer does one multiply-add with each of its weights.
    """
    model = VAE(latent_dim, architecture)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 28, 28))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2, "linear_weights": linear}
