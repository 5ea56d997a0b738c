"""Runs with names: trained side by side, measured once, and remembered beside their checkpoints."""

import json
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import joblib
import torch

from checkpoints import model_at, train_or_resume
from evidence.posterior import sample_posterior
from files import say, write_text
from main import processes
from mnist import choose
from sample_from_prior import sample_prior
from train import TrainConfig, calibrated_sigma, encode_means, evaluate, split_off_calibration
from tsne import TSNE_IMAGES, knn_accuracy
from VAE import PIXELS

LATENT_DIM = 16  # of the questions that take a single size
PERMUTED = "permuted"  # variant: the pixels of all images in the same random order
SIGMA = "sigma"  # variant: this and the value of a fixed sigma, such as "sigma0.5"
LEAST_KL = 0.1  # nats, of a dimension in use; most have far less or far more
TRAIN_IMAGES = 10_000  # training images for the ELBO, to measure overfitting
OWN = ("seed", "elbo_standard_error")  # what an average over seeds leaves out
SETTINGS = ("architecture", "latent_dim", "variant", "sigma_rule")  # what the runs of a group share
HERE = Path(__file__).resolve().parent
CODE = ("training", "judge", "posterior", "networks", "film")
MEASURING = [*sorted(HERE.parent.glob("*.py")), *(HERE / f"{name}.py" for name in CODE)]


class Run(NamedTuple):
    """A training of main.py, except for these fields."""

    architecture: str
    latent_dim: int
    seed: int = 0
    variant: str = ""

    @property
    def group(self):
        """The name without the seed, such as "conv_z16" or "mlp_z16_sigma0.5"."""
        return "_".join(filter(None, [self.architecture, f"z{self.latent_dim}", self.variant]))

    @property
    def name(self):
        """Such as "conv_z16", which is main.py's run, or "mlp_z16_permuted_seed2"."""
        return self.group + (f"_seed{self.seed}" if self.seed else "")

    @property
    def config(self):
        """The `TrainConfig` of the run."""
        fixed = self.variant.startswith(SIGMA)
        return TrainConfig(seed=self.seed, sigma=float(self.variant.removeprefix(SIGMA)) if fixed else None)


def permuted(dataset):
    """Return a data set with the pixels of all images in the same random order."""
    order = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(0))

    def move(part):
        return part._replace(pixels=part.pixels.flatten(1)[:, order].view_as(part.pixels))

    return dataset._replace(train=move(dataset.train), test=move(dataset.test))


def measure_all(runs, dataset, judge, folder, resume):
    """Train and measure runs, as many at once as there are processors: {name: what `measure_one` returns}.

    Checkpoints and measurements are kept in `folder`. With `resume` those that are still valid are reused.
    """
    side_by_side, more, measured = processes(len(runs)), (dataset, judge, folder, resume), {}
    calls = (joblib.delayed(measure_one)(run, line % side_by_side.n_jobs, *more) for line, run in enumerate(runs))
    for numbers in side_by_side(calls):
        measured[numbers["name"]] = numbers
        say(f"{len(measured)} of {len(runs)}: {numbers['name']}, test ELBO {numbers['elbo']:.1f} nats")
    return measured


def measure_one(run, line, dataset, judge, folder, resume):
    """Train a run, or take it over, and measure it: its entry in results.json."""
    torch.set_num_threads(1)
    data, path = permuted(dataset) if run.variant == PERMUTED else dataset, folder / f"{run.name}.pt"
    checkpoint = train_or_resume(path, run.architecture, run.latent_dim, data, run.config, resume=resume, line=line)
    measurement = partial(measure, run, checkpoint, data, judge)
    numbers = remembered(path.with_suffix(".json"), checkpoint["made_from"], resume, measurement)
    used = sum(kl > LEAST_KL for kl in numbers["kl_per_dimension"])
    described = {"name": run.name, **run._asdict(), "sigma_rule": run.config.sigma or "calibrated"}
    return described | numbers | {"dimensions_in_use": used}


def remembered(path, made_from, resume, measurement):
    """Return what `measurement()` gives, and keep it at `path`; with `resume`, take over what is there.

    It is measured again if its origin or the measuring code has changed.
    """
    origin = f"{made_from}, measured by {joblib.hash(b''.join(file.read_bytes() for file in MEASURING))}"
    if resume and path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_from"] == origin:
            return kept["measured"]
    measured = measurement()
    write_text(path, json.dumps({"made_from": origin, "measured": measured}, allow_nan=False))
    return measured


def measure(run, checkpoint, dataset, judge):
    """Measure a trained run on test images, and its samples: a dict of numbers.

    They come from `evaluate`; "train_elbo" is of images trained on, and "knn_accuracy" of codes. "fitted_sigma" is
    calibrated on held-out images after training, and "elbo_with_fitted_sigma" uses it.
    Last comes what the judge says of samples from the prior and from the mixture fitted to codes, such as
    "prior_recognised". With permuted pixels this is left out, because the judge would not know the digits.
    """
    model, digits = model_at(checkpoint), dataset.test.choose(TSNE_IMAGES)
    trained_on, held_out = split_off_calibration(dataset.train.pixels, run.config)
    trained_on = trained_on[choose(len(trained_on), TRAIN_IMAGES)]
    measured = {
        "train_seconds": checkpoint["train_seconds"],
        "sigma": model.sigma.item(),
        **evaluate(model, dataset.test.images),
        "train_elbo": evaluate(model, trained_on / 255)["elbo"],
        "knn_accuracy": knn_accuracy(encode_means(model, digits.images), digits.labels.numpy()),
    }
    if run.variant != PERMUTED:
        prior = sample_prior(model, judge.count, run.seed)
        mixture = sample_posterior(model, dataset.train, judge.count, run.seed)
        for source, images in {"prior": prior, "mixture": mixture}.items():
            measured |= {f"{source}_{key}": value for key, value in judge.rate(images).items()}
    model.sigma.fill_(calibrated_sigma(model, held_out / 255))
    refitted = evaluate(model, dataset.test.images)["elbo"]
    return measured | {"fitted_sigma": model.sigma.item(), "elbo_with_fitted_sigma": refitted}


def over_seeds(runs):
    """Average measured runs over their seeds.

    Returns
    -------
    dict
        {group: {...}}: its "architecture", "latent_dim", "variant" and "sigma_rule", and for each measurement that is a
        number a dict of the "mean" and its "standard_error".
    """
    groups, summaries = {}, {}
    for run in runs:
        groups.setdefault(Run(*(run[field] for field in Run._fields)).group, []).append(run)
    for name, (first, *more) in groups.items():
        numbers = [key for key in first if key not in {*SETTINGS, *OWN} and isinstance(first[key], int | float)]
        summaries[name] = {key: first[key] for key in SETTINGS}
        summaries[name] |= {key: mean_and_error([run[key] for run in (first, *more)]) for key in numbers}
    return summaries


def mean_and_error(values):
    """Return the "mean" and its "standard_error", None if there is a single value."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": fmean(values), "standard_error": error}
