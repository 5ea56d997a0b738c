"""Speed, measured side by side with what one would use instead, by `python -m evidence.benchmark`.

Contenders take turns, with the same threads, batches and images. After one turn that is not counted, a ratio is taken
within each turn, the other's seconds over ours, so that a slow moment hits both sides: above 1, ours is faster. Cells
show medians over the turns, which is why a ratio's need not be that of its row's seconds.
"""

import copy
import inspect
import io
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stderr
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torchvision import datasets, transforms

import mnist
import train
from config import OneLineParser, TrainConfig, check, say, user_errors_in_one_line
from drawing import PALETTE, figure_file
from ELBO import elbo_loss
from files import write_text
from gmm_entropy import BALANCED_WEIGHTS, COVARIANCES, GMM, MEANS, mc_entropy
from runs import PROJECT, environment
from VAE import IMAGE_SHAPE, PIXELS, VAE

LATENT_DIM = 16
TURN_IMAGES = 6_400  # that each contender trains on in a turn
PEERS_LEARNING_RATE = 1e-3  # Adam's default, and what tutorials use
GREATEST_LOAD = 0.3  # other work, in processors, beside which timings still mean something
COMPARED = ("what", "ours", "other", "ratio (least – greatest)")


class Bench(NamedTuple):
    """What is measured, and how much of it."""

    dataset: mnist.Dataset
    data_root: str
    output: str  # where the page goes, and beside it the figure
    turns: int = 5
    epochs: tuple[int, ...] = (1, 2, 5, 10)  # after which the ELBO is measured
    samples: tuple[int, ...] = (10**6, 10**7)  # of the entropy
    commands: tuple[tuple[str, ...], ...] = (("--help",), ("--quick",), ())  # options of main.py


QUICK = {"turns": 1, "epochs": (1, 2), "samples": (10**5, 10**6), "commands": (("--help",), ("--quick",))}


# ---- Turns, and rows of tables


def take_turns(turns, contenders):
    """Call every function of {name: function} in turn, and return {name: results}, the first turn left out."""
    results = [{name: function() for name, function in contenders.items()} for _ in range(turns + 1)]
    return {name: [turn[name] for turn in results[1:]] for name in contenders}


def compared(what, ours, other, show):
    """Make a row of what each turn cost both sides, written by `show`."""
    ratios = [theirs / own for own, theirs in zip(ours, other, strict=True)]
    spread = f"{np.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
    return [what, show(np.median(ours)), show(np.median(other)), spread]


def markdown_table(header, rows):
    """Return a Markdown table of texts."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


# ---- Ways to train: each takes (model, images, config, on_iteration=function of the loss), as `train.train` does


def train_as_tutorials_do(model, images, config, on_iteration, data_root):
    """Train for an epoch as pytorch/examples does: DataLoader, ToTensor, Adam, cross-entropy and KL summed."""
    dataset = torch.utils.data.Subset(datasets.MNIST(data_root, transform=transforms.ToTensor()), range(len(images)))
    loader = torch.utils.data.DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEERS_LEARNING_RATE)
    for x, _ in loader:
        optimizer.zero_grad()
        recon_x, mu, logvar = model(x)
        cross_entropy = nn.functional.binary_cross_entropy(recon_x, x, reduction="sum")
        loss = cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss.backward()
        optimizer.step()
        on_iteration(loss.item())


def train_with_learned_sigma(model, images, config, on_iteration):
    """Train with log sigma as one more of Adam's parameters, starting at sigma = 1.

    Otherwise as `train.train`, but from grey instead of the mean image, without augmentation, with torch's warm-up.
    """
    log_sigma = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([*model.parameters(), log_sigma], betas=train.ADAM_BETAS, fused=True)
    steps = train.count_iterations(len(images), config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps, cycle_momentum=False)
    images, _ = train.hold_out(images)
    with train.seeded(config.seed):
        for batch in train.shuffled_batches(len(images), config):
            x = images[batch]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=train.has_native_bfloat16(train.CPU)):
                recon_x, mu, logvar = model(x)
            loss = elbo_loss(x, recon_x, mu, logvar, log_sigma.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_iteration(loss.item())


def train_with_pythae(model, images, config, on_iteration):
    """Train our networks, in place, as pythae's VAE with its own trainer and defaults (squared error, Adam, float32).

    Only the learning rate is not its default, 1e-4, which is too low for ten epochs. No evaluation and no checkpoints
    are asked for; the one that it always writes comes after the last iteration.
    """
    # For the length of this, pythae's progress bars and log lines go nowhere.
    with redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        from pythae import models, trainers
        from pythae.data.datasets import BaseDataset

        class Encoder(models.nn.BaseEncoder):
            def forward(self, x):
                mu, logvar = self.network(x).chunk(2, dim=1)
                return models.base.base_utils.ModelOutput(embedding=mu, log_covariance=logvar)

        class Decoder(models.nn.BaseDecoder):
            def forward(self, z):
                return models.base.base_utils.ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

        class AfterStep(trainers.training_callbacks.TrainingCallback):
            def on_train_step_end(self, training_config, **_):
                on_iteration(None)

        encoder, decoder = Encoder(), Decoder()
        encoder.network, decoder.network = model.encoder, model.decoder
        shape = models.VAEConfig(input_dim=IMAGE_SHAPE, latent_dim=model.latent_dim)
        images, _ = train.hold_out(images)
        settings = trainers.BaseTrainerConfig(output_dir=folder, num_epochs=config.epochs, no_cuda=True)
        settings.per_device_train_batch_size, settings.learning_rate = config.batch_size, PEERS_LEARNING_RATE
        data, theirs = BaseDataset(images, torch.zeros(len(images))), models.VAE(shape, encoder, decoder)
        trainers.BaseTrainer(theirs, data, training_config=settings, callbacks=[AfterStep()]).train()


def new_model(architecture):
    """Make a VAE whose weights are the same each time."""
    with train.seeded(0):
        return VAE(LATENT_DIM, architecture)


def classic_model():
    """Make a VAE with the networks of pytorch/examples: 784-400-20 and back, ReLU."""
    model = VAE(latent_dim=20)
    model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 400), nn.ReLU(), nn.Linear(400, 2 * 20))
    model.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, PIXELS), nn.Unflatten(1, IMAGE_SHAPE))
    return model


# ---- Measurements: each returns the header and the rows of a table; its docstring is the page's section above that


def against_tutorials(bench):
    """Training throughput against the tutorials' recipe

    The network of pytorch/examples (784-400-20, ReLU, batches of 128) trained by `train.train`, against the recipe that
    tutorials use for it: torchvision's MNIST, ToTensor, DataLoader, Adam, binary cross-entropy. Images a second are
    those of the median step, its loading of data included. The second row is without bfloat16, and so shows how much is
    due to that.
    """
    other = partial(train_as_tutorials_do, data_root=bench.data_root)
    return COMPARED, step_rows(bench, "784-400-20", classic_model, other)


def against_pythae(bench):
    """Training throughput against pythae

    The networks of this project (16 latent dimensions, batches of 128) trained by `train.train`, against the same
    networks in pythae's encoder and decoder classes, trained by its trainer from images in memory; in float32, since
    its mixed precision is for CUDA only. Rows and images a second are as against the tutorials.
    """
    mlp = step_rows(bench, "mlp", partial(new_model, "mlp"), train_with_pythae)
    conv = step_rows(bench, "conv", partial(new_model, "conv"), train_with_pythae)
    return COMPARED, mlp + conv


def step_rows(bench, network, make_model, other):
    """Make two rows of our loop, in default precision and in float32, against another in float32."""
    images = bench.dataset.train_images[:TURN_IMAGES]

    def steps(trainer, **precision):
        return partial(step_seconds, trainer, make_model, images, TrainConfig(epochs=1, **precision))

    ours = {"default precision": steps(train.train), "float32": steps(train.train, float32=True)}
    times = take_turns(bench.turns, ours | {"other": steps(other)})
    return [compared(f"{network}, {name}", times[name], times["other"], images_per_second) for name in ours]


def images_per_second(seconds):
    """Write the throughput of steps that take so many seconds each."""
    return f"{TrainConfig().batch_size / seconds:,.0f} images/s"


def step_seconds(trainer, make_model, images, config):
    """Train for one turn, and return the median duration of a step, its loading of data included.

    A median leaves out what happens once a training: starting up, calibrating the stored sigma, saving.
    """
    stamps = []
    trainer(make_model(), images, config, on_iteration=lambda _: stamps.append(time.perf_counter()))
    return np.median(np.diff(stamps))


def elbo_against_time(bench):
    """ELBO against training time

    The mlp network with 16 latent dimensions trained in four ways, one seed each: the test ELBO (nats per image) after
    some epochs, and the seconds until the last of them. So that ELBOs compare, sigma is fitted afterwards for each way,
    to the same 1,000 training images, which all hold out. Ours and sigma = 1 differ in nothing else; learned sigma
    starts from grey, without augmentation and with a warm-up of 30 % of the iterations;
    pythae has sigma = 1 and a constant learning rate of 1e-3, in float32.
    """
    calibrated, fixed = (TrainConfig(epochs=max(bench.epochs), sigma=sigma) for sigma in (None, 1.0))
    ways = {
        "ours: sigma calibrated": (train.train, calibrated),
        "pythae": (train_with_pythae, fixed),
        "sigma = 1": (train.train, fixed),
        "sigma learned by Adam": (train_with_learned_sigma, calibrated),
    }
    curves = {name: elbo_curve(bench, *way) for name, way in ways.items()}
    path = Path(bench.output).with_name("benchmark_elbo_time.png")
    title = f"mlp, z = {LATENT_DIM}, after {', '.join(map(str, bench.epochs))} epochs"
    plot_elbo_against_time(curves, path, bench.dataset.noted(title))
    rows = [[name, *map("{:+.1f}".format, elbos), f"{seconds[-1]:.1f}"] for name, (seconds, elbos) in curves.items()]
    return ("way", *(f"after epoch {epoch}" for epoch in bench.epochs), "seconds"), rows


def elbo_curve(bench, trainer, config):
    """Train the mlp network: the seconds until each of the bench's epochs is over, and the test ELBOs there."""
    model, images, models = new_model("mlp"), bench.dataset.train_images, []
    marks = [train.count_iterations(len(images), TrainConfig(epochs=epoch)) for epoch in bench.epochs]
    stamps = [time.perf_counter()]

    def after_iteration(_):
        stamps.append(time.perf_counter())
        if len(stamps) - 1 in marks:
            models.append(copy.deepcopy(model))

    trainer(model, images, config, on_iteration=after_iteration)
    _, calibration_images = train.hold_out(images)
    with train.seeded(0):
        for measured in models:
            measured.sigma.fill_(train.calibrated_sigma(measured, calibration_images))
    elbos = [train.evaluate(measured, bench.dataset.test_images)["elbo"] for measured in models]
    return [stamps[mark] - stamps[0] for mark in marks], elbos


def plot_elbo_against_time(curves, path, title):
    """Draw {name: what `elbo_curve` returned}."""
    with figure_file(path, (8, 4.5), title) as figure:
        axes = figure.subplots()
        for (name, (seconds, elbos)), color in zip(curves.items(), PALETTE, strict=False):
            axes.plot(seconds, elbos, "o-", color=color, label=name)
        axes.set(xlabel="training time (seconds)", ylabel="test ELBO (nats per image)")
        axes.grid(alpha=0.3)
        axes.legend()


def entropy_against_libraries(bench):
    """Monte Carlo entropy against libraries

    The entropy of Problem 1's balanced mixture by plain Monte Carlo in float64, from drawing the N samples to their
    mean: `mc_entropy`, against GaussianMixture of scikit-learn (`sample`, `score_samples`) and MixtureSameFamily of
    torch.distributions (`sample`, `log_prob`) with the same parameters. Each has a process of its own, which is idle
    while it is not its turn. Memory, known on Linux only, is by how much the peak of that process has grown since its
    imports.
    """
    rows = []
    # In one process they would share caches, allocators and thread pools, and hinder each other.
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in ESTIMATORS}
        least = {name: in_process(pools[name], peak_memory) for name in pools}
        for n in bench.samples:
            calls = {name: partial(in_process, pools[name], entropy_seconds, ESTIMATORS[name], n) for name in pools}
            times = take_turns(bench.turns, calls)
            memory = {name: f"{in_process(pools[name], peak_memory) - least[name]:,.0f} MiB" for name in pools}
            for name in ("scikit-learn", "torch.distributions"):
                row = compared(f"N = {n:,}, {name}", times["ours"], times[name], "{:.3f} s".format)
                rows.append([*row, memory["ours"], memory[name]])
    return (*COMPARED, "memory of ours", "memory of other"), rows


def in_process(pool, function, *arguments):
    """Call a function in a process of the pool, and return its result."""
    return pool.submit(function, *arguments).result()


def entropy_seconds(estimate, n):
    """Return how long an estimate of the balanced mixture's entropy from `n` samples takes."""
    gmm = GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES)
    started = time.perf_counter()
    estimate(gmm, n)
    return time.perf_counter() - started


def peak_memory():
    """Return the most memory (MiB) that this process has held so far; NaN where the system does not say."""
    # Not resource.getrusage: there the peak of a new process starts at that of its parent.
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else np.nan


def sklearn_entropy(gmm, n):
    """Estimate the entropy with scikit-learn, whose mixture is given its parameters instead of being fitted."""
    mixture = GaussianMixture(len(gmm.weights))
    mixture.weights_, mixture.means_, mixture.covariances_ = gmm.weights, gmm.means, gmm.covariances
    mixture.precisions_cholesky_ = np.linalg.inv(gmm.cholesky).transpose(0, 2, 1)
    points, _ = mixture.sample(n)
    return -mixture.score_samples(points).mean()


def torch_entropy(gmm, n):
    """Estimate the entropy with torch.distributions."""
    weights, means, factors = map(torch.from_numpy, (gmm.weights, gmm.means, gmm.cholesky))
    mixture = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, scale_tril=factors))
    return -mixture.log_prob(mixture.sample((n,))).mean().item()


ESTIMATORS = {"ours": mc_entropy, "scikit-learn": sklearn_entropy, "torch.distributions": torch_entropy}


def full_run(bench):
    """The full run

    Whole commands, each once, from its start to its end in a process of its own: what a user waits for. `--quick` is a
    trial of the whole path; `python main.py` makes all figures and numbers that the assignment asks for.
    """
    rows = []
    for options in bench.commands:
        with tempfile.TemporaryDirectory() as folder:
            places = ["--data-root", bench.data_root, "--figures", f"{folder}/f", "--checkpoints", f"{folder}/c"]
            command = [sys.executable, PROJECT / "main.py", *options, "--offline", *places]
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            rows.append([" ".join(["python main.py", *options]), f"{time.perf_counter() - started:.1f}"])
    return ("command", "seconds"), rows


MEASUREMENTS = against_tutorials, against_pythae, elbo_against_time, entropy_against_libraries, full_run


def machine():
    """Describe in a line what timings depend on; a word on standard error if there is much other work."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")  # Windows has none
    if load > GREATEST_LOAD:
        print(f"load before: found {load:.1f}; timings beside so much other work mean little", file=sys.stderr)
    facts = {"logical processors": os.cpu_count(), "load before": f"{load:.1f}", "pythae": version("pythae")}
    return ", ".join(f"{name} {value}" for name, value in (facts | environment(train.CPU)).items())


def main(arguments=None):
    """Measure what the command line `arguments` asks for; print the page as it grows, and write it to a file."""
    parser = OneLineParser("python -m evidence.benchmark", "Measure speed side by side.")
    parser.add_argument("--data-root", default="data", help="folder whose MNIST/raw holds MNIST, as main.py leaves it")
    parser.add_argument("--output", required=True, metavar="FILE.md", help="file for the page, its figure beside it")
    parser.add_argument("--quick", action="store_true", help="a trial of all but the full run, no result")
    names = [measure.__name__ for measure in MEASUREMENTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"any of {', '.join(names)}")
    options = parser.parse_args(arguments)
    with user_errors_in_one_line("python -m evidence.benchmark"):
        check(find_spec("pythae"), "pythae", "none", "what pip install -r requirements-benchmark.txt installs")
        dataset = mnist.load(options.data_root, offline=True)
        check(dataset.source == "disk", "data_root", options.data_root, "a folder whose MNIST/raw holds MNIST")
        bench = Bench(dataset, options.data_root, options.output)
        if options.quick:
            bench = bench._replace(dataset=dataset.first(1_280, 500), **QUICK)
        parts = [f"{bench.dataset.describe()}; {machine()}.", __doc__.strip()]
        say("\n\n".join(parts))
        for measure in MEASUREMENTS:
            if measure.__name__ in (options.only or names):
                parts.append(f"### {inspect.getdoc(measure)}\n\n{markdown_table(*measure(bench))}")
                say(f"\n{parts[-1]}")
        write_text(options.output, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
