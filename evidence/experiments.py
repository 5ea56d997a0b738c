"""The experiments that REPORT.md's explanations rest on: what is trained, and what is measured.

With three seeds each: the main runs, encoder and decoder exchanged, permuted pixels and fewer images (2.5), both
networks at seven latent sizes (2.6), and fixed sigmas. With one: both networks for budgets from 1 to 20 epochs (2.5),
and as other machines train them. What is measured is kept beside the checkpoints, so that --resume takes it over.
"""

import copy
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from joblib import delayed
from sklearn.neighbors import KNeighborsClassifier
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from config import MAX_SEED, check
from evidence.film import record, write_film
from evidence.plane import write_plane
from evidence.posterior import (
    divergence_from_prior,
    draw_codes,
    fit_mixture,
    log_prior,
    refitted_divergence,
    sample_mixture,
)
from evidence.quality import CONFIDENCE, SAMPLES, SampleJudge, expected_coverage, references
from files import InputError, read_json, write_json
from main import measure_stages
from mnist import CLASSES, IMAGE_SIDE, evenly_spaced, load_packaged
from report import run_results
from runs import (
    PROJECT,
    Run,
    checkpoint_path,
    choose_device,
    made_from,
    model_at,
    new_model,
    read_checkpoint,
    runs_at_once,
    side_by_side,
    train_or_resume,
)
from sample_from_prior import prior_codes
from train import calibrated_sigma, count_iterations, decode, encode_means, evaluate, hold_out, seeded
from tsne import NEIGHBOURS
from VAE import VAE

LATENT_DIMS = (1, 2, 4, 8, 16, 32, 64)
SEEDS = 3
BUDGETS = (1, 2, 3, 5, 10, 20)  # epochs
FIXED_SIGMAS = (0.05, 0.1, 0.2, 0.5, 1.0)
FIXED_SIGMA_NETWORK = "mlp"  # the quicker one
LATENT_DIM = 16  # of the experiments with one size
SHARES = (0.1, 0.25, 0.5)  # of the training images, to train on for as many iterations as on all
MIXTURE_CODES = 20_000  # training codes that a mixture is fitted to
KNN_CODES = 10_000  # training codes that classify the test codes
BENCHMARK = PROJECT / "figures" / "evidence" / "benchmark.md"
TRAINED_ON = 10_000  # training images whose ELBO shows how much a network overfits


def planned_runs(settings, config):
    """List the runs of all experiments, {experiment: its runs}; a run can serve several.

    The main runs come first, then what is quick to train, so that an interrupted call has the most of them.
    """
    most = MAX_SEED - SEEDS + 1
    check(config.seed <= most, "seed", config.seed, f"at most {most}, since the next {SEEDS - 1} are used too")
    names, dims = settings.architectures, settings.latent_dims
    dim = LATENT_DIM if LATENT_DIM in dims else dims[-1]
    sizes = dims if settings.quick else sorted({*LATENT_DIMS, *dims})
    budgets = [config.epochs] if settings.quick else sorted({*BUDGETS, config.epochs})
    swapped = [f"{encoder}-{decoder}" for encoder in names for decoder in names if encoder != decoder]
    ends = [dim] if settings.quick else sorted({dim, sizes[-1]})
    sigmas = FIXED_SIGMAS[-1:] if settings.quick else FIXED_SIGMAS

    def planned(architecture, latent_dim, **changes):
        own = replace(config, **changes)
        return Run(architecture, latent_dim, own, variant(own, config), own.seed - config.seed)

    seeds = range(config.seed, config.seed + SEEDS)
    fixed = [name for name in names if name == FIXED_SIGMA_NETWORK]
    return {
        "main": [planned(name, size) for name in names for size in dims],
        "networks": [planned(name, size, seed=seed) for seed in seeds for name in names for size in dims],
        "halves": [planned(name, size, seed=seed) for seed in seeds for size in ends for name in (*names, *swapped)],
        "sigma": [planned(name, dim, sigma=sigma, seed=seed) for seed in seeds for sigma in sigmas for name in fixed],
        "sizes": [planned(name, size, seed=seed) for seed in seeds for size in sizes for name in names],
        "budgets": [planned(name, dim, epochs=epochs) for epochs in budgets for name in names],
    }


def variant(config, main):
    """Name what sets a run apart from the main run of its architecture and size, but for the seed."""
    marks = [f"sigma{config.sigma:g}"] if config.sigma else []
    marks += [f"epochs{config.epochs}"] if config.epochs != main.epochs else []
    return "_".join(marks)


def check_classes(dataset):
    """Raise `InputError` unless there are two test images of every class, which the figures show."""
    counts = torch.bincount(dataset.test_labels, minlength=CLASSES).tolist()
    if min(counts) < 2:
        raise InputError(f"{dataset.name}: found {counts} test images of the classes, expected at least 2 of each")


def remembered(what, run, dataset, settings, measurement):
    """Return what `measurement()`, a dict fit for JSON, gives for a run, now or, with --resume, in an earlier call."""
    path = Path(settings.checkpoints) / f"{run.name}.{what}.json"
    origin = made_from(run, dataset, choose_device(settings.device))
    kept = read_json(path) if settings.resume and path.exists() else {}
    if kept.get("made_from") != origin:
        kept = {"made_from": origin, "results": measurement()}
        write_json(path, kept)
    return kept["results"]


def trained_model(run, settings):
    """Return the model of a run that has been trained, on the device of the settings."""
    return model_at(read_checkpoint(checkpoint_path(run, settings))).to(choose_device(settings.device))


def collect(plan, dataset, settings):
    """Train and measure the runs of a plan.

    Returns
    -------
    dict
        "experiments": the names of each one's runs; "runs": for each run its settings and measurements, where "group"
        is its name without its seed; "judge" and "references": how good the judge of samples is, and what it says of
        real, blurred and averaged digits; "checks": for each main network and size the divergence from the prior of
        its mixture, and of draws from it that a mixture was fitted to again; "networks": parameters and multiply-adds
        of each architecture and latent size; "images_per_second": what the benchmark has measured.
    """
    runs = list(dict.fromkeys(run for experiment in plan.values() for run in experiment))
    judge = SampleJudge(dataset)
    lines = runs_at_once(settings, len(runs))
    calls = [delayed(measure_run)(run, 1 + k % lines, dataset, settings, judge) for k, run in enumerate(runs)]
    measured = tqdm(side_by_side(calls, settings), "runs", len(runs), unit="run", dynamic_ncols=True, position=0)
    measured = list(measured)
    first = [run for run in plan["sizes"] if not run.repetition]
    checks = side_by_side([delayed(check_refit)(run, dataset, settings) for run in first], settings)
    shown = trained_model(plan["halves"][0], settings)
    return {
        "experiments": {name: [run.name for run in experiment] for name, experiment in plan.items()},
        "runs": measured,
        "judge": {
            "accuracy": judge.accuracy,
            "confidence": CONFIDENCE,
            "expected_coverage": expected_coverage(SAMPLES, SAMPLES),
        },
        "references": references(judge, dataset, sample_mixture(shown, fit_code_mixture(shown, dataset), SAMPLES)),
        "checks": {run.name: check for run, check in zip(first, checks, strict=True)},
        "networks": {run.group: describe_network(run.architecture, run.latent_dim) for run in first},
        "images_per_second": benchmarked(),
    }


def measure_run(run, line, dataset, settings, judge):
    """Train a run, its progress in that line of the terminal, and measure it: its settings and measurements."""
    checkpoint = train_or_resume(run, dataset, settings, line)
    model = model_at(checkpoint).to(choose_device(settings.device))
    bounds = remembered("bounds", run, dataset, settings, lambda: measure_bounds(model, dataset, settings.scale))
    samples = remembered("samples", run, dataset, settings, lambda: measure_samples(model, dataset, judge))
    return {**describe(run), **bounds, **samples}


def describe(run):
    """Say which run this is: its name, its group's, and the settings in which runs differ."""
    settled = {"architecture": run.architecture, "latent_dim": run.latent_dim, "epochs": run.config.epochs}
    rule = "calibrated" if run.config.sigma is None else run.config.sigma
    return {"name": run.name, "group": run.group, **settled, "sigma_rule": rule, "seed": run.config.seed}


def measure_main_runs(runs, dataset, settings):
    """Measure the stages of runs that have been trained as main.py does: {name: its entry in results.json}."""
    calls = [delayed(measure_main_run)(run, dataset, settings) for run in runs]
    return {run.name: results for run, results in zip(runs, side_by_side(calls, settings), strict=True)}


def measure_main_run(run, dataset, settings):
    """Return the entry of a run that has been trained in main.py's results.json."""
    checkpoint = read_checkpoint(checkpoint_path(run, settings))
    stages = remembered("stages", run, dataset, settings, lambda: measure_stages(checkpoint, dataset, settings)[0])
    return run_results(checkpoint, stages)


def show_plane(runs, dataset, settings, folder):
    """Train a run with a plane of codes once more, and film it; with --resume, a film that is there stays.

    It is the last of them, with the fully connected network, which is quicker. Its stages become a page to touch.
    """
    path = folder / "film.gif"
    settings = replace(settings, resume=settings.resume and path.exists())

    def film(run):
        model = new_model(run).to(choose_device(settings.device))
        write_film(record(model, dataset, run.config), path)
        return {"bytes": path.stat().st_size}

    last = [run for run in runs if run.latent_dim == 2][-1:]
    calls = [delayed(remembered)("film", run, dataset, settings, partial(film, run)) for run in last]
    list(side_by_side(calls, settings))
    for run in last:
        checkpoint = read_checkpoint(checkpoint_path(run, settings))
        stages = {stage: model_at(checkpoint, stage) for stage in checkpoint["stages"]}
        write_plane(stages, dataset, folder / "plane.html")


def planned_elsewhere(plan, dataset, settings):
    """List the trainings with other data or other arithmetic than the main runs': (run, its data set).

    Once, as a machine without bfloat16 trains, and one without MNIST. With `SEEDS` seeds, half as long and without
    augmentation, which would know what lies beside what: on the images as they are, on all with one permutation of
    their pixels, and on fewer of them.
    """
    packaged = load_packaged().first(settings.scale.train_images, settings.scale.test_images)
    base = [run for run in plan["halves"] if run in plan["main"]]
    main = base[0].config
    half = count_iterations(len(dataset.train_labels), main) / 2

    def once(variant, data, config):
        return [(replace(run, variant=variant, config=config), data) for run in base]

    def with_seeds(variant, data):
        epochs = max(1, round(half / count_iterations(len(data.train_labels), replace(main, epochs=1))))
        config = replace(main, epochs=epochs, plain_epochs=epochs)
        return [
            (replace(run, variant=variant, config=replace(config, seed=config.seed + k), repetition=k), data)
            for k in range(SEEDS)
            for run in base
        ]

    trained = once("float32", dataset, replace(main, float32=True))
    trained += once("packaged", packaged, settings.train_config(len(packaged.train_labels)))
    trained += with_seeds("plain", dataset) + with_seeds("permuted", permuted(dataset))
    for share in SHARES:
        count = round(share * len(dataset.train_labels))
        trained += with_seeds(f"images{count}", spread(dataset, count))
    return trained


def permuted(dataset):
    """Return a data set with one and the same permutation of the pixels in all of its images."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(IMAGE_SIDE**2))
    train, test = (part.flatten(1)[:, order].view(part.shape) for part in (dataset.train_pixels, dataset.test_pixels))
    return replace(dataset, train_pixels=train, test_pixels=test, fingerprint=f"{dataset.fingerprint}, permuted")


def spread(dataset, count):
    """Return a data set with that many of its training images, evenly spaced."""
    images, labels = (evenly_spaced(part, count) for part in (dataset.train_pixels, dataset.train_labels))
    return replace(dataset, train_pixels=images, train_labels=labels, fingerprint=f"{dataset.fingerprint}, {count}")


def train_elsewhere(plan, dataset, settings):
    """Train what `planned_elsewhere` lists: its settings, "elbo", and "train_elbo" of images trained on, for each."""
    planned = planned_elsewhere(plan, dataset, settings)
    lines = runs_at_once(settings, len(planned))
    calls = [delayed(train_plainly)(run, k % lines, data, settings) for k, (run, data) in enumerate(planned)]
    return list(side_by_side(calls, settings))


def train_plainly(run, line, dataset, settings):
    """Train a run, its progress in that line of the terminal, and measure no more than its bounds on two sets."""
    model = model_at(train_or_resume(run, dataset, settings, line)).to(choose_device(settings.device))

    def bounds():
        own = {"train_elbo": hold_out(dataset.train_images)[0], "elbo": dataset.test_images}
        return {name: evaluate(model, evenly_spaced(images, TRAINED_ON))["elbo"] for name, images in own.items()}

    return {**describe(run), **remembered("plain", run, dataset, settings, bounds)}


def measure_bounds(model, dataset, scale):
    """Measure a trained model's bounds, on test images and on images that it was trained on."""
    trained_on, calibration_images = hold_out(dataset.train_images)
    with seeded(0):
        fitted_sigma = calibrated_sigma(model, calibration_images.to(model.sigma.device))
    refitted = copy.deepcopy(model)
    refitted.sigma.fill_(fitted_sigma)
    bounds = evaluate(model, dataset.test_images, scale.importance_images, scale.importance_samples)
    return {
        "sigma": model.sigma.item(),
        **bounds,
        # Hoffman & Johnson 2016: how far the average of these images' q(z|x) is from the prior, at least.
        "information_bound": max(0.0, bounds["kl"] - math.log(len(dataset.test_labels))),
        "train_elbo": evaluate(model, evenly_spaced(trained_on, TRAINED_ON))["elbo"],
        "fitted_sigma": fitted_sigma,
        "elbo_with_fitted_sigma": evaluate(refitted, dataset.test_images)["elbo"],
        "code_knn_accuracy": code_knn_accuracy(model, dataset),
    }


def code_knn_accuracy(model, dataset):
    """Classify test codes by their 5 nearest training codes; the share that is right."""
    images, labels = (evenly_spaced(values, KNN_CODES) for values in (dataset.train_images, dataset.train_labels))
    classifier = KNeighborsClassifier(NEIGHBOURS).fit(encode_means(model, images), labels)
    return float(classifier.score(encode_means(model, dataset.test_images), dataset.test_labels))


def measure_samples(model, dataset, judge):
    """Measure how far the codes are from the prior, and how good samples from the prior and from a mixture are.

    "recognised_by_density" are the shares recognised of the samples from the prior, in quarters of them: from those of
    whose codes the mixture has the least density, relative to the prior's, to those of which it has the most.
    """
    mixture = fit_code_mixture(model, dataset)
    z = prior_codes(SAMPLES, model.latent_dim)
    from_prior = decode(model, z)
    log_ratio = mixture.log_prob(z.double().numpy()) - log_prior(z.double().numpy())
    recognised = judge.recognised(from_prior)[np.argsort(log_ratio)]
    return {
        "prior_divergence": divergence_from_prior(mixture, draw_codes(model, dataset.test_images, seed=1))._asdict(),
        "prior_samples": judge.rate(from_prior)._asdict(),
        "mixture_samples": judge.rate(sample_mixture(model, mixture, SAMPLES))._asdict(),
        "reconstructions": judge.rate(decode(model, torch.from_numpy(encode_means(model, judge.others))))._asdict(),
        "recognised_by_density": [float(part.mean()) for part in np.array_split(recognised, 4)],
    }


def fit_code_mixture(model, dataset):
    """Fit a mixture to codes of training images from all over the set."""
    return fit_mixture(draw_codes(model, evenly_spaced(dataset.train_images, MIXTURE_CODES)))


def check_refit(run, dataset, settings):
    """Measure the divergence from the prior of a run's mixture and, as if they were codes, of draws from it."""

    def check():
        mixture = fit_code_mixture(trained_model(run, settings), dataset)
        codes, test_codes = min(len(dataset.train_labels), MIXTURE_CODES), len(dataset.test_labels)
        return refitted_divergence(mixture, codes, test_codes)

    return remembered("refit", run, dataset, settings, check)


def benchmarked():
    """Return the images a second that the last benchmark trained on: {"mlp, default precision": ...}."""
    page = BENCHMARK.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+, [\w ]+) \| ([\d,]+) images/s", page, flags=re.MULTILINE)
    return {name: int(speed.replace(",", "")) for name, speed in rows}


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
