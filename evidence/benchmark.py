"""Speed, measured side by side with what one would use instead: `python -m evidence.benchmark`.

Each measurement is a function that returns a table; its docstring, printed above the table, says what is compared and
why under these settings. Contenders take turns with the same threads, batch size and images. After one uncounted turn
each, ratios are taken within a turn, so that a slow moment hits both sides, and the table shows their median, the least
and the greatest. The other side needs `pip install -r requirements-benchmark.txt`.
"""

import contextlib
import inspect
import io
import logging
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from matplotlib import color_sequences
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import mnist
import report
from config import OneLineParser, TrainConfig, say, user_errors_in_one_line
from ELBO import elbo_loss
from files import save_figure, write_text
from gmm_entropy import BALANCED_WEIGHTS, COVARIANCES, GMM, MEANS, mc_entropy
from train import (
    ADAM_BETAS,
    calibrated_sigma,
    count_iterations,
    environment,
    evaluate,
    hold_out,
    mixed_precision,
    seeded,
    shuffled_batches,
)
from train import train as train_ours
from VAE import IMAGE_SHAPE, PIXELS, VAE

CPU = torch.device("cpu")
PROJECT = Path(__file__).resolve().parent.parent
FIGURES = PROJECT / "figures" / "evidence"
FIGURE = "benchmark_elbo_time.png"
LATENT_DIM = 16
BATCH_SIZE = 128
PEERS_LEARNING_RATE = 1e-3  # Adam's default, and what tutorials use
MATRIX_SIZES = (256, 512, 1024, 2048)  # of the square products among which the fastest is sought
PRODUCTS = 5  # of each size
# of a training step: parts of the names of torch's operators
OPERATORS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "convolutions": ("convolution",),
    "Adam": ("adam", "Adam"),
    "activations": ("silu", "sigmoid"),
    "copies, and conversions between float32 and bfloat16": ("aten::copy_", "aten::_to_copy"),
}
COMPARED = ("what", "ours", "other", "ratio (least – greatest)", "goal", "met")


class Scale(NamedTuple):
    """How much is measured."""

    turns: int
    images: int  # trained on in a turn
    train_images: int | None  # in whole epochs; None: all
    test_images: int | None
    marks: tuple[int, ...]  # epochs after which the ELBO is measured
    samples: int  # of the entropy
    memory_samples: tuple[int, int]
    patience: int  # epochs that a peer has to reach our ELBO


FULL = Scale(5, 6_400, None, None, (1, 2, 5, 10), 10**6, (10**6, 5 * 10**7), 20)
QUICK = Scale(1, 1_280, 1_280, 500, (1, 2), 10**5, (10**5, 10**6), 2)


class Bench(NamedTuple):
    """What a measurement is given."""

    dataset: mnist.Dataset
    data_root: str
    scale: Scale


# ---- Turns, and rows of tables


def take_turns(turns, contenders):
    """Call every function of {name: function} in turn, and return {name: results}, the first turn left out."""
    results = [{name: function() for name, function in contenders.items()} for _ in range(turns + 1)]
    return {name: [turn[name] for turn in results[1:]] for name in contenders}


def seconds(function):
    """Call a function, and return how long it took."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def faster(what, ours, other, goal, show):
    """Make a row of each turn's seconds, written by `show`; `other` may be a word on why there is none."""
    if isinstance(other, str):
        return [what, show(median(ours)), other, "–", f"≥ {goal}×", "–"]
    ratios = [theirs / own for own, theirs in zip(ours, other, strict=True)]
    return [what, show(median(ours)), show(median(other)), *at_least(ratios, goal, "×")]


def at_least(ratios, goal, unit=""):
    """Make the last cells of a row from each turn's ratio."""
    spread = f"{median(ratios):.2f}{unit} ({min(ratios):.2f} – {max(ratios):.2f})"
    return [spread, f"≥ {goal}{unit}", "yes" if median(ratios) >= goal else "no"]


def at_most(what, value, goal, unit):
    """Make a row without another side."""
    return [what, f"{value:.3g} {unit}", "–", "–", f"≤ {goal} {unit}", "yes" if value <= goal else "no"]


def growth(measured):
    """Make a table of {what is varied: {its value: seconds}}."""
    return ("varied", "least", "middle", "most"), [
        [what, *(f"{value:,}: {duration:.3g} s" for value, duration in durations.items())]
        for what, durations in measured.items()
    ]


# ---- Ways to train: each takes (model, images, config, on_iteration=function of the loss)


def train_in_float32(*arguments, **options):
    """Train as `train.train` does on a processor without bfloat16."""
    with patch("train.has_native_bfloat16", return_value=False):
        return train_ours(*arguments, **options)


OURS = {"default precision": train_ours, "float32": train_in_float32}


def train_as_tutorials_do(model, images, config, on_iteration, data_root):
    """Train as pytorch/examples does: DataLoader, ToTensor, Adam as it comes, summed cross-entropy and KL."""
    dataset = Subset(MNIST(data_root, transform=ToTensor()), range(len(images)))
    loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEERS_LEARNING_RATE)
    for _ in range(config.epochs):
        for x, _ in loader:
            optimizer.zero_grad()
            recon_x, mu, logvar = model(x)
            cross_entropy = functional.binary_cross_entropy(recon_x, x, reduction="sum")
            loss = cross_entropy - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss.backward()
            optimizer.step()
            on_iteration(loss.item())


def train_with_learned_sigma(model, images, config, on_iteration):
    """Train as `train.train` does, but with log sigma as one more of Adam's parameters, starting at sigma = 1."""
    log_sigma = torch.zeros((), requires_grad=True)
    parameters = [*model.parameters(), log_sigma]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, betas=ADAM_BETAS, fused=True)
    steps = count_iterations(len(images), config)
    images, _ = hold_out(images)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps, cycle_momentum=False)
    with seeded(config.seed):
        for batch in shuffled_batches(len(images), config):
            x = images[batch]
            with mixed_precision(CPU):
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
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as TheirVAE  # noqa: N811
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):
        def forward(self, x):
            mu, logvar = self.network(x).chunk(2, dim=1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def forward(self, z):
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))

    class AfterStep(TrainingCallback):
        def on_train_step_end(self, training_config, **_):
            on_iteration(None)

    encoder, decoder = Encoder(), Decoder()
    encoder.network, decoder.network = model.encoder, model.decoder
    theirs = TheirVAE(VAEConfig(input_dim=IMAGE_SHAPE, latent_dim=model.latent_dim), encoder, decoder)
    images, _ = hold_out(images)
    data = BaseDataset(images, torch.zeros(len(images)))
    with tempfile.TemporaryDirectory() as folder, quietly():
        settings = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=config.batch_size,
            num_epochs=config.epochs,
            learning_rate=PEERS_LEARNING_RATE,
            no_cuda=True,
        )
        BaseTrainer(theirs, data, training_config=settings, callbacks=[AfterStep()]).train()


def what_pythae_lacks():
    """Say why there is no pythae to compare with; empty if there is one."""
    try:
        with quietly():
            import pythae.trainers  # noqa: F401
    except ImportError as error:
        return "not installed" if error.name == "pythae" else f"not usable: {error}"
    return ""


@contextlib.contextmanager
def quietly():
    """Keep a library's progress bars and log lines off the terminal."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def new_model(architecture, latent_dim=LATENT_DIM):
    """Make a VAE whose weights are the same each time."""
    with seeded(0):
        return VAE(latent_dim, architecture)


def classic_model():
    """Make a VAE with the networks of pytorch/examples: 784-400-20 and back, ReLU."""
    model = VAE(latent_dim=20)
    model.encoder = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 400), nn.ReLU(), nn.Linear(400, 2 * 20))
    unflatten = nn.Unflatten(1, IMAGE_SHAPE)
    model.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, PIXELS), unflatten)
    return model


def step_seconds(trainer, make_model, bench):
    """Train for one turn, and return the median duration of a step, its loading of data included.

    A median leaves out what happens once a training: starting up, calibrating the stored sigma, saving.
    """
    stamps, images = [], bench.dataset.train_images[: bench.scale.images]
    config = TrainConfig(epochs=1, batch_size=BATCH_SIZE)
    trainer(make_model(), images, config, on_iteration=lambda _: stamps.append(time.perf_counter()))
    return float(np.median(np.diff(stamps)))


# ---- Measurements


def throughput(bench, network, make_model, other, missing, goal):
    """Make rows of our loop against another, unless there is none for want of what is `missing`."""
    trainers = OURS if missing else OURS | {"other": other}
    steps = {name: partial(step_seconds, trainer, make_model, bench) for name, trainer in trainers.items()}
    times = take_turns(bench.scale.turns, steps)

    def show(duration):
        return f"{BATCH_SIZE / duration:,.0f} images/s"

    return [faster(f"{network}, {name}", times[name], missing or times["other"], goal, show) for name in OURS]


def against_tutorials(bench):
    """The network of pytorch/examples (784-400-20, ReLU, batches of 128) trained by `train.train`, against the recipe
    that tutorials use for it: torchvision's MNIST, ToTensor, DataLoader, Adam, binary cross-entropy. The second row
    switches bfloat16 off, and so shows how much is due to it.
    """
    other, missing = partial(train_as_tutorials_do, data_root=bench.data_root), ""
    try:
        MNIST(bench.data_root)
    except RuntimeError:
        missing = "no MNIST on disk"
    return COMPARED, throughput(bench, "784-400-20", classic_model, other, missing, 4)


def against_pythae(bench):
    """The bundle's networks (16 latent dimensions, batches of 128) trained by `train.train`, against the same networks
    in pythae's encoder and decoder classes, trained by its trainer from images in memory; in float32, since its mixed
    precision is for CUDA only.
    """
    missing = what_pythae_lacks()
    return COMPARED, [
        row
        for architecture, goal in (("mlp", 2.2), ("conv", 1.7))
        for row in throughput(bench, architecture, partial(new_model, architecture), train_with_pythae, missing, goal)
    ]


def share_of_peak(bench):
    """Floating-point operations of a training step (matrix products and convolutions, as torch.utils.flop_counter
    counts them) times steps per second, over the rate of the fastest square float32 matrix product, torch's or numpy's,
    measured in the same turn. In bfloat16 the share can exceed 1.
    """
    steps = {
        (architecture, name): partial(step_seconds, trainer, partial(new_model, architecture), bench)
        for architecture in ("mlp", "conv")
        for name, trainer in OURS.items()
    }
    results = take_turns(bench.scale.turns, {"peak": fastest_product, **steps})
    peaks, rows = results["peak"], []
    for architecture, name in steps:
        flops = step_flops(architecture)
        rates = [flops / duration for duration in results[architecture, name]]
        shares = [rate / peak for rate, peak in zip(rates, peaks, strict=True)]
        shown = [f"{value / 1e9:,.0f} GFLOP/s" for value in (median(rates), median(peaks))]
        rows.append([f"{architecture}, {name}", *shown, *at_least(shares, {"mlp": 0.7, "conv": 0.5}[architecture])])
    return COMPARED, rows


def step_flops(architecture):
    """Count the floating-point operations of a training step."""
    model, x = new_model(architecture), torch.rand(BATCH_SIZE, *IMAGE_SHAPE)
    with FlopCounterMode(display=False) as counter:
        elbo_loss(x, *model(x)).backward()
    return counter.get_total_flops()


def fastest_product():
    """Return the most floating-point operations per second that a square float32 matrix product reaches."""
    rates = []
    for size in MATRIX_SIZES:
        matrices = torch.rand(3, size, size)
        for product, (a, b, out) in ((torch.mm, matrices), (np.matmul, matrices.numpy())):
            rates += [2 * size**3 / seconds(partial(product, a, b, out=out)) for _ in range(PRODUCTS)]
    return max(rates)


def profile_of_a_step(bench):
    """Where a training step of the bundle's networks (16 latent dimensions, the default batch) spends its time: self
    CPU time of torch's operators in `train.train` by torch.profiler, in one thread, summed by what they do.
    """
    config = TrainConfig(epochs=1)
    images = bench.dataset.train_images[: bench.scale.images]
    profiles = {name: profile_step(new_model(name), images, config) for name in ("mlp", "conv")}
    totals = {name: sum(parts.values()) for name, parts in profiles.items()}
    rows = [
        [part, *(f"{parts[part]:.2f} ms, {parts[part] / totals[name]:.0%}" for name, parts in profiles.items())]
        for part in [*OPERATORS, "the rest"]
    ]
    return ("of a step", *profiles), rows


def profile_step(model, images, config):
    """Return the milliseconds of self CPU time that each part of a step takes, {part: mean over an epoch}."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, the time of the caller is not that of the work
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            train_ours(model, images, config)
    finally:
        torch.set_num_threads(threads)
    parts = dict.fromkeys([*OPERATORS, "the rest"], 0.0)
    for event in profiled.key_averages():
        part = next((part for part, names in OPERATORS.items() if any(name in event.key for name in names)), "the rest")
        parts[part] += event.self_cpu_time_total / 1000 / count_iterations(len(images), config)
    return parts


def elbo_against_time(bench):
    """The mlp network with 16 latent dimensions trained in four ways, one seed each: the test ELBO (nats per image)
    after some epochs, and the seconds of training, without those of measuring. For each way sigma is fitted afterwards,
    to the same 1,000 training images, which all hold out. Ours, sigma = 1 and learned sigma differ in nothing else;
    pythae has sigma = 1 and a constant learning rate of 1e-3, in float32.
    """
    calibrated, fixed = (TrainConfig(epochs=max(bench.scale.marks), sigma=sigma) for sigma in (None, 1.0))
    ways = {
        "ours: sigma calibrated": (train_ours, calibrated),
        "pythae": (train_with_pythae, fixed),
        "sigma = 1": (train_ours, fixed),
        "sigma learned by Adam": (train_with_learned_sigma, calibrated),
    }
    missing = what_pythae_lacks()
    rows, curves = [], {}
    for name, (trainer, config) in ways.items():
        if trainer is train_with_pythae and missing:
            rows.append([name, missing, *("–" for _ in bench.scale.marks)])
            continue
        curves[name] = curve = ElboCurve(new_model("mlp"), bench, bench.scale.marks)
        trainer(curve.model, bench.dataset.train_images, config, on_iteration=curve.step)
        rows.append([name, *(f"{elbo:+.1f}" for elbo in curve.elbos), f"{curve.elapsed:.1f}"])
    plot_elbo_against_time(curves, bench)
    return ("way", *(f"after epoch {mark}" for mark in bench.scale.marks), "seconds"), rows


def time_to_elbo(bench):
    """Seconds of training until the mlp network with 16 latent dimensions has the test ELBO that one annealed epoch of
    `train.train` gives it, sigma fitted afterwards as above; pythae is looked at after each epoch, and given up after
    the number of epochs in the row.
    """
    ours = ElboCurve(new_model("mlp"), bench, marks=[1])
    train_ours(ours.model, bench.dataset.train_images, TrainConfig(epochs=1), on_iteration=ours.step)
    what = f"until a test ELBO of {ours.elbos[0]:.1f}"
    missing = what_pythae_lacks()
    if missing:
        return COMPARED, [[what, f"{ours.elapsed:.1f} s", missing, "–", "≥ 10×", "–"]]
    limit = bench.scale.patience
    theirs = ElboCurve(new_model("mlp"), bench, marks=range(1, limit + 1), until=ours.elbos[0])
    with contextlib.suppress(ReachedError):
        config = TrainConfig(epochs=limit, sigma=1.0)
        train_with_pythae(theirs.model, bench.dataset.train_images, config, on_iteration=theirs.step)
    reached, ratio = theirs.elbos[-1] >= ours.elbos[0], theirs.elapsed / ours.elapsed
    other = f"{theirs.elapsed:.1f} s" if reached else f"{theirs.elbos[-1]:.1f}, {limit} epochs, {theirs.elapsed:.0f} s"
    shown = f"{ratio:.1f}×" if reached else f"over {ratio:.0f}×"
    return COMPARED, [[what, f"{ours.elapsed:.1f} s", other, shown, "≥ 10×", "yes" if ratio >= 10 else "no"]]


class ReachedError(Exception):
    """Ends a training whose ELBO is as high as it was to be."""


class ElboCurve:
    """Stops the clock at some epochs of a training to measure the model: `times` in seconds, and test `elbos`."""

    def __init__(self, model, bench, marks, until=float("inf")):
        self.model, self.dataset, self.until = model, bench.dataset, until
        images = bench.dataset.train_images
        _, self.held_out = hold_out(images)
        iterations = count_iterations(len(images), TrainConfig(epochs=1))
        self.marks = {mark * iterations for mark in marks}
        self.iteration, self.elapsed = 0, 0.0
        self.times, self.elbos = [], []
        self.started = time.perf_counter()

    def step(self, _):
        """Count an iteration; raises `ReachedError` once the ELBO is at least `until`."""
        self.iteration += 1
        if self.iteration in self.marks:
            self.elapsed += time.perf_counter() - self.started
            with seeded(0):  # and the training's own random numbers go on as if nothing had happened
                self.model.sigma.fill_(calibrated_sigma(self.model, self.held_out))
            self.times.append(self.elapsed)
            self.elbos.append(evaluate(self.model, self.dataset.test_images)["elbo"])
            if self.elbos[-1] >= self.until:
                raise ReachedError
            self.started = time.perf_counter()


def plot_elbo_against_time(curves, bench):
    """Draw {name: ElboCurve}; the figure of a trial does not replace the real one."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, curve), color in zip(curves.items(), cycle(color_sequences["petroff10"]), strict=False):
        axes.plot(curve.times, curve.elbos, "o-", color=color, label=name)
    axes.set(xlabel="training time (seconds)", ylabel="test ELBO (nats per image)")
    title = f"mlp, z = {LATENT_DIM}, after {', '.join(map(str, bench.scale.marks))} epochs"
    axes.set_title("\n".join(filter(None, [title, bench.dataset.note])))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, (Path(tempfile.gettempdir()) if bench.scale is QUICK else FIGURES) / FIGURE)


def entropy_against_libraries(bench):
    """The entropy of Problem 1's balanced mixture by plain Monte Carlo in float64, from drawing the samples to their
    mean: `mc_entropy`, against GaussianMixture of scikit-learn (`sample`, `score_samples`) and MixtureSameFamily of
    torch.distributions (`sample`, `log_prob`) with the same parameters and number of samples, each in a process of its
    own, which is idle while it is not its turn.
    """
    counts = bench.scale.samples, 10 * bench.scale.samples
    # In one process they would share caches, allocators and thread pools, and hinder each other.
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in ENTROPY_CONTENDERS
        }
        return COMPARED, [row for n in counts for row in entropy_rows(processes, n, bench.scale.turns)]


def entropy_rows(processes, n, turns):
    """Make a row for each library, with `n` samples."""
    turn = {name: lambda name=name: processes[name].submit(timed_entropy, name, n).result() for name in processes}
    results = take_turns(turns, turn)
    times = {name: [duration for duration, _ in result] for name, result in results.items()}
    values = {name: f"{result[-1][1]:.4f}" for name, result in results.items()}
    peers = [name for name in processes if name != "ours"]
    whats = {name: f"N = {n:,}, against {name}: {values['ours']} and {values[name]} nats" for name in peers}
    return [faster(whats[name], times["ours"], times[name], 10, lambda duration: f"{duration:.3f} s") for name in peers]


def timed_entropy(name, n):
    """Estimate the entropy of Problem 1's balanced mixture in one of three ways: (seconds, nats)."""
    gmm = GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES)
    started = time.perf_counter()
    value = ENTROPY_CONTENDERS[name](gmm, n)
    return time.perf_counter() - started, value


def our_entropy(gmm, n):
    """Estimate the entropy with `mc_entropy`."""
    return mc_entropy(gmm, n).value


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


ENTROPY_CONTENDERS = {"ours": our_entropy, "scikit-learn": sklearn_entropy, "torch.distributions": torch_entropy}


def memory_of_entropy(bench):
    """Peak resident memory of a new process that calls `mc_entropy`, with few and with many samples."""
    if sys.platform != "linux":
        return COMPARED, [["growth", "measured on Linux only", "–", "–", "≤ 64 MiB", "–"]]
    few, many = bench.scale.memory_samples
    low, high = peak_mebibytes(few), peak_mebibytes(many)
    return COMPARED, [at_most(f"growth from N = {few:,} ({low:.0f} MiB) to {many:,}", high - low, 64, "MiB")]


def peak_mebibytes(n):
    """Return the peak resident memory of a process that calls `mc_entropy` with `n` samples."""
    # Not resource.getrusage: there a child's peak starts at the memory of its parent, here far above its own.
    code = (
        "from gmm_entropy import *; mc_entropy(GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES), %d);"
        "print(open('/proc/self/status').read())"
    )
    child = subprocess.run([sys.executable, "-c", code % n], cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    return int(child.stdout.split("VmHWM:")[1].split()[0]) / 1024


def commands(bench):
    """Whole commands, from start to end, each in a new process: `--help` several times, `--quick` once."""
    answers = [run_main("--help") for _ in range(bench.scale.turns)]
    trial = run_main("--quick", "--offline", "--data-root", bench.data_root)
    helped, tried = "python main.py --help", "python main.py --quick"
    return COMPARED, [at_most(helped, median(answers), 1, "s"), at_most(tried, trial, 45, "s")]


def full_run(bench):
    """`python main.py`, every figure included, once."""
    duration = run_main("--offline", "--data-root", bench.data_root)
    return COMPARED, [at_most("python main.py", duration / 60, 8, "min")]


def run_main(*arguments):
    """Run main.py, its output in a folder that is dropped, and return how many seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        folders = ["--figures", f"{folder}/figures", "--checkpoints", f"{folder}/checkpoints"]
        command = [sys.executable, str(PROJECT / "main.py"), *arguments, *folders]
        return seconds(partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True))


def growth_of_training(bench):
    """Seconds of one epoch of `train.train` with the mlp network, median over the turns; where not varied, with all
    images, 16 latent dimensions and batches of 128. A call also calibrates sigma three times, on up to 1,000 images.
    """
    images = bench.dataset.train_images
    count = len(images)

    def epoch(part, latent_dim, batch_size):
        config = TrainConfig(epochs=1, batch_size=batch_size)
        return seconds(partial(train_ours, new_model("mlp", latent_dim), images[:part], config))

    varied = {
        "images": {part: (part, LATENT_DIM, BATCH_SIZE) for part in (count // 4, count // 2, count)},
        "latent dimensions": {latent_dim: (count, latent_dim, BATCH_SIZE) for latent_dim in (2, 16, 64)},
        "batch size": {batch_size: (count, LATENT_DIM, batch_size) for batch_size in (64, 128, 256)},
    }
    settings = {setting for values in varied.values() for setting in values.values()}
    times = take_turns(bench.scale.turns, {setting: partial(epoch, *setting) for setting in sorted(settings)})
    return growth(
        {what: {value: median(times[setting]) for value, setting in values.items()} for what, values in varied.items()}
    )


def growth_of_entropy(bench):
    """Seconds of `mc_entropy`, median over the turns; where not varied, N as in the comparison, K = 3 and d = 2."""
    n = bench.scale.samples

    def entropy(n=n, components=3, dimension=2):
        gmm = random_mixture(components, dimension)
        return median(
            take_turns(bench.scale.turns, {"entropy": lambda: seconds(lambda: mc_entropy(gmm, n))})["entropy"]
        )

    by_count = {count: entropy(count) for count in (n // 10, n, 10 * n)}
    by_components = {components: entropy(components=components) for components in (3, 10, 30)}
    by_dimension = {dimension: entropy(dimension=dimension) for dimension in (2, 8, 32)}
    return growth({"samples N": by_count, "components K": by_components, "dimensions d": by_dimension})


def random_mixture(components, dimension):
    """Make a mixture of equal weights, with means and covariances drawn at random."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((components, dimension, dimension))
    covariances = factors @ factors.transpose(0, 2, 1) / dimension + np.eye(dimension)
    return GMM(np.full(components, 1 / components), 3 * rng.standard_normal((components, dimension)), covariances)


# name on the command line: title and function
MEASUREMENTS = {
    "tutorial": ("Training throughput against the tutorials' recipe", against_tutorials),
    "pythae": ("Training throughput against pythae", against_pythae),
    "peak": ("Share of the fastest float32 matrix product", share_of_peak),
    "elbo": ("ELBO against training time", elbo_against_time),
    "profile": ("Where a training step spends its time", profile_of_a_step),
    "reach": ("Time until an ELBO", time_to_elbo),
    "entropy": ("Monte Carlo entropy against libraries", entropy_against_libraries),
    "memory": ("Memory of the Monte Carlo entropy", memory_of_entropy),
    "training-growth": ("How training time grows", growth_of_training),
    "entropy-growth": ("How entropy time grows", growth_of_entropy),
    "commands": ("Whole commands", commands),
    "full": ("The full run", full_run),  # minutes: left out by --quick
}


def machine():
    """Describe in a line what timings depend on."""
    facts = {"logical processors": os.cpu_count(), **environment(CPU)}
    with contextlib.suppress(AttributeError):  # Windows has no load average
        facts["load before"] = f"{os.getloadavg()[0]:.1f}"  # timings beside other work, above about 0.3, mean little
    with contextlib.suppress(PackageNotFoundError):
        facts["pythae"] = version("pythae")
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def main(arguments=None):
    """Measure what the command line `arguments` asks for; print the tables, and write them to a file if it says so."""
    parser = OneLineParser(
        "python -m evidence.benchmark",
        description="Measure speed side by side.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-root", default="data", help="folder whose MNIST/raw holds MNIST, as main.py leaves it")
    parser.add_argument("--output", metavar="FILE.md", help="file for the tables, which are printed in any case")
    parser.add_argument("--quick", action="store_true", help="a trial of all but the full run: not a result")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    options = parser.parse_args(arguments)
    names = options.only or [name for name in MEASUREMENTS if not (options.quick and name == "full")]
    with user_errors_in_one_line("evidence.benchmark"):
        scale = QUICK if options.quick else FULL
        dataset = mnist.load(options.data_root, offline=True).first(scale.train_images, scale.test_images)
        parts = [f"{dataset.describe()}; {machine()}."]
        say(parts[0])
        for title, measure in map(MEASUREMENTS.get, names):
            table = report.markdown_table(*measure(Bench(dataset, options.data_root, scale)))
            parts.append(f"### {title}\n\n{inspect.getdoc(measure)}\n\n{table}")
            say(f"\n{parts[-1]}")
        if options.output:
            write_text(options.output, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
