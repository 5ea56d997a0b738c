"""Training a VAE on the ELBO, its checkpoints, measuring it on held-out images, and item 2.4's learning curve.

The decoder's sigma is calibrated: on each batch it takes its value of greatest likelihood (Rybkin et al. 2021). That
leaves the gradient as it is, since the ELBO's derivative with respect to sigma is zero there; and it sets the weight of
the reconstruction against the KL by how good the reconstruction is, instead of by a guess.
"""

import io
import math
import os
import platform
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, parallel_config
from matplotlib import color_sequences
from matplotlib.figure import Figure
from torch.nn import functional
from tqdm import tqdm

import mnist
from config import STAGES, TrainConfig, parse_figure_arguments, user_errors_in_one_line
from ELBO import (
    elbo_loss,
    importance_weighted_log_likelihood,
    kl_per_dimension,
    negative_log_likelihood,
    optimal_sigma,
)
from files import InputError, save_figure, whole_file
from VAE import VAE

ADAM_BETAS = (0.9, 0.99)
UNSCALED = 10  # first iterations that the learning curve's axes need not hold
HELD_OUT = 1000  # training images kept aside for calibrating the stored sigma; a tenth, if there are fewer than 10,000
VARIATION = 0.1  # of a varied image: the entries of its linear map differ from the identity's by at most this
IMAGES_AT_ONCE = 1000  # in measurements, which need no gradient
LEAST_SIGMA = 1 / 255 / math.sqrt(12)  # of rounding a pixel to a byte: a sharper density would mean nothing
DIVERGED = 1e12  # KL, nats per image
ACTIVE_VARIANCE = 0.01  # of a unit's posterior mean over the data: Burda et al. 2016, section 5.1

# ---- Training


def train(model, images, config=None, on_stage=None, on_iteration=None):
    """Maximise the ELBO of `images` by Adam with a one-cycle learning rate.

    Some of the images are held out (`hold_out`), and the sigma that is stored with the weights is calibrated on them:
    images trained on have smaller errors than new ones.

    Parameters
    ----------
    model : VAE
        Trained in place, on the device it is on; its `sigma` is set too.
    images : torch.Tensor, shape (N, 1, 28, 28)
        Training images in [0, 1].
    config : TrainConfig, optional
    on_stage : callable, optional
        Called as on_stage(name, iteration) at the three stages: "begin" after 1 % of the iterations (at least 10),
        "middle" after half, "end" after the last.
    on_iteration : callable, optional
        Called as on_iteration(loss) after each iteration, loss a float in nats per image.

    Returns
    -------
    dict
        "loss", "nll" and "kl": lists with a value for each iteration, in nats per image (loss = nll + kl is the
        negative ELBO of the batch); "stages": the iteration of each stage.

    Raises
    ------
    FloatingPointError
        If the loss is not finite or the KL is above 10^12 nats, as after a far too high learning rate.
    ValueError
        If there are fewer than two images.
    """
    config = config or TrainConfig()
    device = model.sigma.device
    iterations = count_iterations(len(images), config)
    images, held_out = hold_out(images.to(device))
    stages = stage_iterations(iterations)
    history = {"loss": [], "nll": [], "kl": [], "stages": stages}
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=ADAM_BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=iterations, cycle_momentum=False
    )
    with seeded(config.seed):
        batches = shuffled_batches(len(images), config)
        for iteration, batch in enumerate(batches, start=1):
            x = images[batch]
            if iteration <= config.varied * iterations:
                x = vary(x)
            with mixed_precision(device):
                recon_x, mu, logvar = model(x)
            # A NaN in recon_x still shows in the loss; sigma has to be a number.
            sigma = config.sigma or optimal_sigma(x, recon_x).detach().clamp(min=LEAST_SIGMA).nan_to_num(1.0)
            loss, nll, kl = elbo_loss(x, recon_x, mu, logvar, sigma, return_parts=True)
            if not (loss.isfinite() and kl < DIVERGED):
                raise FloatingPointError(f"the loss is {loss:.3g} at iteration {iteration}: lower the learning rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            for name, value in (("loss", loss), ("nll", nll), ("kl", kl)):
                history[name].append(value.item())
            if on_iteration:
                on_iteration(history["loss"][-1])
            for name in (name for name, at in stages.items() if at == iteration):
                model.sigma.fill_(config.sigma or calibrated_sigma(model, held_out))
                if on_stage:
                    on_stage(name, iteration)
    return history


def hold_out(images):
    """Split images (N, ...) into those that are trained on and, evenly spaced among them, those that are held out.

    Raises `ValueError` if there are fewer than two.
    """
    chosen = mnist.evenly_chosen(len(images), held_out_count(len(images)))
    return images[~chosen], images[chosen]


def held_out_count(image_count):
    """How many of that many training images are held out."""
    if image_count < 2:
        raise ValueError(f"found {image_count} training images, expected at least 2: one to train on, one held out")
    return max(1, min(HELD_OUT, image_count // 10))


def count_iterations(image_count, config):
    """How many iterations a training takes with that many images, those held out included."""
    return config.epochs * math.ceil((image_count - held_out_count(image_count)) / config.batch_size)


def stage_iterations(iterations):
    """After which iteration each stage of a training of that length is reached."""
    begin = min(max(10, round(0.01 * iterations)), math.ceil(iterations / 3))  # a very short training has stages too
    return dict(zip(STAGES, (begin, max(begin, iterations // 2), iterations), strict=True))


def shuffled_batches(count, config):
    """Yield the indices of every batch of every epoch; each epoch is a new permutation."""
    for _ in range(config.epochs):
        yield from torch.randperm(count).split(config.batch_size)


def vary(images):
    """Turn, shear and scale images (N, 1, 28, 28) a little about their centre, each by its own random linear map."""
    maps = torch.eye(2).to(images) + images.new_empty(len(images), 2, 2).uniform_(-VARIATION, VARIATION)
    grid = functional.affine_grid(functional.pad(maps, (0, 1)), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@contextmanager
def seeded(seed):
    """Seed torch's global generators for a block, and leave them afterwards as they were before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def mixed_precision(device):
    """Compute matrix products in bfloat16 where the processor does so natively, otherwise in float32 as usual."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_native_bfloat16(device))


def has_native_bfloat16(device):
    """Tell whether a device has bfloat16 arithmetic: a property, not a timing, so that every run decides alike."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return False


def choose_device(name):
    """Return the torch device of that name; "auto" is the accelerator (CUDA, MPS, ...) if there is one, or the CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device: found {name!r}, expected auto, cpu or an available accelerator") from error
    return torch.device(name)


# ---- Runs, their checkpoints, and what they depend on

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib", "mlxtend")


@dataclass(frozen=True)
class Run:
    """A VAE and how to train it; `variant` tells apart those that differ in nothing else of their name."""

    architecture: str
    latent_dim: int
    config: TrainConfig
    variant: str = ""

    @property
    def name(self):
        """What its folder of figures and its file of weights are called."""
        return f"{self.architecture}_z{self.latent_dim}" + (f"_{self.variant}" if self.variant else "")


def side_by_side(calls, settings):
    """Make calls, each a `joblib.delayed` one, and yield what they return, in their order.

    As many run at once as `runs_at_once` says, if more than one then in processes with a thread each: networks as small
    as these gain little from more. The processes leave an interrupt to this one, which ends them.
    """
    # Two for a single call too: one would not be a process, and would have all threads.
    jobs = min(runs_at_once(settings), max(2, len(calls)))
    warnings.filterwarnings("ignore", "Failed to kill subprocesses")  # loky without pgrep: it has killed all there are
    processes = {"inner_max_num_threads": 1, "initializer": join_parent, "initargs": (os.getpid(),)}
    with parallel_config("loky", **processes), ignoring_interrupts():
        results = Parallel(jobs, return_as="generator")(calls)
    yield from results


def runs_at_once(settings):
    """Return how many runs `side_by_side` makes at once: on a CPU as many as torch has threads, in a trial one."""
    alone = settings.quick or choose_device(settings.device).type != "cpu"
    return 1 if alone else torch.get_num_threads()


def join_parent(parent):
    """Make this process end within a second of its parent, and write to the terminal without a lock of its own."""
    tqdm.set_lock(threading.RLock())  # tqdm's would be reported as leaked when this process is ended

    def end_after_parent():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_after_parent, daemon=True).start()


@contextmanager
def ignoring_interrupts():
    """Ignore Ctrl-C for a block; processes started in it ignore it for good."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def progress_bar(run, dataset, line=0):
    """Return a tqdm bar over the iterations of a run, in that line of those below the cursor."""
    total = count_iterations(len(dataset.train_images), run.config)
    return tqdm(total=total, unit="it", smoothing=0.02, dynamic_ncols=True, position=line)


def train_or_resume(run, dataset, settings, bar):
    """Return the checkpoint of a run, trained now or, with --resume, taken over from an earlier call.

    Parameters
    ----------
    run : Run
    dataset : mnist.Dataset
    settings : config.Settings
        Its `checkpoints` is the folder of <run.name>.pt; with its `resume`, a checkpoint there is taken over if it was
        made from the same settings, networks, data and versions.
    bar : tqdm.tqdm
        Advanced by one for each iteration.

    Returns
    -------
    dict
        As `read_checkpoint` returns it, with "history" as of `train`, "train_seconds", and "made_from".

    Raises
    ------
    InputError
        If the training diverges, or the file to take over is no checkpoint.
    """
    path = checkpoint_path(run, settings)
    device = choose_device(settings.device)
    origin = made_from(run, dataset, device)
    bar.set_description(run.name)
    if settings.resume and path.exists():
        found = read_checkpoint(path)
        if found.get("made_from") == origin:
            bar.update(len(found["history"]["loss"]))
            return found
        bar.write(f"{path}: made with other settings, data or versions; trained anew", file=sys.stderr)

    model = new_model(run).to(device)
    stages = {}

    def keep(stage, _):
        stages[stage] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def show(loss):
        bar.set_postfix_str(f"ELBO {-loss:.0f}", refresh=False)
        bar.update()

    started = time.perf_counter()
    try:
        history = train(model, dataset.train_images, run.config, keep, show)
    except FloatingPointError as error:
        raise InputError(f"{run.name}: {error}") from error
    seconds = time.perf_counter() - started
    save_checkpoint(path, model, stages, history=history, train_seconds=seconds, made_from=origin)
    return read_checkpoint(path)


def checkpoint_path(run, settings):
    """Return where a run's checkpoint is kept."""
    return Path(settings.checkpoints) / f"{run.name}.pt"


def new_model(run):
    """Return the untrained `VAE` of a run, its weights drawn with the run's seed."""
    with seeded(run.config.seed):
        return VAE(run.latent_dim, run.architecture)


def made_from(run, dataset, device):
    """Return all that a run's weights follow from, as a dict that JSON and checkpoints can hold."""
    networks = str(new_model(run))  # tells an edited network apart
    return {**asdict(run), "networks": networks, "data": dataset.fingerprint, "environment": environment(device)}


def environment(device):
    """Describe what a run's numbers depend on besides its settings: versions, device, threads."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "bfloat16": has_native_bfloat16(device),
    }


def save_checkpoint(path, model, stages, **more):
    """Write the weights of a model at each stage, {stage: state_dict}, and whatever else is to be kept with them."""
    buffer = io.BytesIO()  # torch.save to a file hides a full disk's OSError behind a RuntimeError
    shape = {"latent_dim": model.latent_dim, "architecture": model.architecture}
    torch.save({**shape, "stages": stages, **more}, buffer)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path):
    """Return what `save_checkpoint` wrote to `path`, as a dict; `InputError` if that is not what the file holds."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # no code in the file is ever run
        missing = {"latent_dim", "architecture", "stages"} - set(checkpoint)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}, expected a checkpoint made by main.py") from error
    except Exception as error:  # damaged pickles fail in more ways than pickle has classes for
        raise InputError(f"{path}: found something else, expected a checkpoint made by main.py") from error
    if missing:
        raise InputError(f"{path}: found no {' nor '.join(sorted(missing))}, expected a checkpoint made by main.py")
    return checkpoint


def model_at(checkpoint, stage="end"):
    """Return the `VAE` of a checkpoint, on the CPU, as it was at a stage."""
    model = VAE(checkpoint["latent_dim"], checkpoint["architecture"])
    model.load_state_dict(checkpoint["stages"][stage])
    return model.eval()


def load_checkpoint(path, stage="end"):
    """Return the `VAE` saved at `path` as it was at a stage; `InputError` names a file or stage that will not do."""
    checkpoint = read_checkpoint(path)
    try:
        return model_at(checkpoint, stage)
    except (AttributeError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{path}: found no weights for its architecture at stage {stage!r}") from error


def draw_checkpoint(description, plot, with_data=True):
    """Run the command line that the figure scripts share: `python tsne.py CHECKPOINT --output FILE`.

    `plot` is called as plot(model, dataset, path=..., title=...), without the dataset if `with_data` is false.
    """
    arguments = parse_figure_arguments(description, with_data)
    with user_errors_in_one_line(Path(sys.argv[0]).name):
        model = load_checkpoint(arguments.checkpoint, arguments.stage)
        title = f"{arguments.checkpoint}, {STAGES[arguments.stage]} of training"
        if not with_data:
            return plot(model, path=arguments.output, title=title)
        data = mnist.load(arguments.data_root, offline=True)
        plot(model, data, path=arguments.output, title=data.noted(title))


# ---- Measuring


@torch.no_grad()
def calibrated_sigma(model, images):
    """Return the decoder's standard deviation of greatest likelihood for `images`, a float in pixel values.

    The images are on the model's device; one code for each is drawn from torch's global generator.
    """
    squares = [len(x) * optimal_sigma(x, model(x)[0]).square() for x in images.split(IMAGES_AT_ONCE)]
    return max(LEAST_SIGMA, math.sqrt(sum(squares) / len(images)))


@torch.no_grad()
def evaluate(model, images, importance_images=0, importance_samples=100, seed=0):
    """Measure the bound and its parts on held-out images, with the model's stored sigma.

    Parameters
    ----------
    model : VAE
    images : torch.Tensor, shape (N, 1, 28, 28)
    importance_images, importance_samples : int
        Images, evenly spaced among `images`, and draws for each, for the importance-weighted bound; 0 leaves it out.
    seed : int
        Of the draws z ~ q(z|x), one for each image.

    Returns
    -------
    dict
        elbo, elbo_standard_error, nll, kl (nats per image), reconstruction_mse (per pixel), active_units,
        kl_per_dimension (nats, a list of K), and iw_log_likelihood with iw_standard_error, iw_images, iw_samples, and
        iw_elbo, the ELBO of the same images.

    Raises
    ------
    FloatingPointError
        If an image's bound is not finite, as after a training that diverged.
    """
    device = model.sigma.device
    nll, kl, squared_error, mus = [], [], [], []
    with seeded(seed):
        for x in images.split(IMAGES_AT_ONCE):
            outputs = model(x.to(device))
            # In double precision, since the bound is the small difference of large numbers.
            x, recon_x, mu, logvar = (value.cpu().double() for value in (x, *outputs))
            nll.append(negative_log_likelihood(x, recon_x, model.sigma, reduction="none"))
            kl.append(kl_per_dimension(mu, logvar))
            squared_error.append((x - recon_x).square().flatten(1).mean(1))
            mus.append(mu)
        nll, kl, squared_error, mus = map(torch.cat, (nll, kl, squared_error, mus))
        elbo = -nll - kl.sum(1)
        if not elbo.isfinite().all():
            raise FloatingPointError(f"the ELBO of held-out images is {elbo.mean().item()}: lower the learning rate")
        results = {
            "elbo": elbo.mean().item(),
            "elbo_standard_error": standard_error(elbo),
            "nll": nll.mean().item(),
            "kl": kl.sum(1).mean().item(),
            "reconstruction_mse": squared_error.mean().item(),
            "active_units": int((mus.var(0) > ACTIVE_VARIANCE).sum()),
            "kl_per_dimension": kl.mean(0).tolist(),
        }
        if importance_images:
            x = mnist.evenly_spaced(images, importance_images).to(device)
            bound = importance_weighted_log_likelihood(model, x, importance_samples).cpu().double()
            results |= {
                "iw_log_likelihood": bound.mean().item(),
                "iw_standard_error": standard_error(bound),
                "iw_elbo": mnist.evenly_spaced(elbo, importance_images).mean().item(),
                "iw_images": len(x),
                "iw_samples": importance_samples,
            }
    return results


def standard_error(values):
    """Return the standard error of the mean of a tensor's values, as a float."""
    return values.std().item() / math.sqrt(len(values))


# ---- Item 2.4: the learning curve

LINE_STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 3)), (0, (8, 2, 2, 2)))


def plot_elbo_curve(history, path, test_elbo=None, until=None, title=""):
    """Write item 2.4's learning curve to `path`: the ELBO of every iteration, beside it its two parts.

    Parameters
    ----------
    history : dict
        As `train` returns it.
    path : path-like
        PNG file to write.
    test_elbo : dict, optional
        {stage: test ELBO in nats per image}, drawn at the stages' iterations.
    until : int, optional
        The last iteration to draw; the axes fit what is drawn.
    title : str
    """
    until = until or len(history["loss"])
    curves = {name: [-value for value in history[name][:until]] for name in ("loss", "nll", "kl")}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplot_mosaic([["loss", "nll"], ["loss", "kl"]])
    blue, orange, *_ = color_sequences["petroff10"]
    reached = {stage: at for stage, at in history["stages"].items() if stage in (test_elbo or ()) and at <= until}
    at_stages = [test_elbo[stage] for stage in reached]
    shown_too = {"loss": at_stages, "nll": [], "kl": [0.0]}
    for (name, values), label in zip(curves.items(), ("ELBO", "−NLL", "−KL"), strict=True):
        iterations = range(1, until + 1)
        panels[name].plot(iterations, values, color=blue, alpha=0.25, linewidth=0.8)
        panels[name].plot(iterations, _running_mean(values), color=blue, label="training batches, running mean")
        _set_curve_axes(panels[name], [values, shown_too[name]], f"{label} (nats per image)")
    if reached:
        panels["loss"].plot(reached.values(), at_stages, "o", color=orange, markeredgecolor="black", label="test set")
    panels["loss"].legend(loc="upper left")
    save_figure(figure, path)


def plot_elbo_curves(histories, path, title=""):
    """Write the running mean of each run's ELBO, {`Run`: history}, into one figure at `path`.

    A colour for each network, and a line style for each latent size.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    elbos = {run: [-loss for loss in history["loss"]] for run, history in histories.items()}
    networks = list(dict.fromkeys(run.architecture for run in histories))
    sizes = list(dict.fromkeys(run.latent_dim for run in histories))
    for run, elbo in elbos.items():
        network, size = networks.index(run.architecture), sizes.index(run.latent_dim)
        axes.plot(
            range(1, len(elbo) + 1),
            _running_mean(elbo),
            color=color_sequences["petroff10"][network],
            linestyle=LINE_STYLES[size % len(LINE_STYLES)],
            linewidth=3 / (1 + network),  # the one on top is narrower, and hides none below it
            label=run.name,
        )
    _set_curve_axes(axes, elbos.values(), "ELBO of the training batches, running mean (nats per image)")
    axes.legend(loc="upper left")
    save_figure(figure, path)


def _running_mean(values):
    """Average each value over the iterations within 10 % of its own, an even window on a logarithmic axis."""
    sums = np.cumsum([0.0, *values])
    iterations = np.arange(1, len(values) + 1)
    first = np.ceil(0.9 * iterations).astype(int)
    last = np.minimum((1.1 * iterations).astype(int), len(values))
    return (sums[last] - sums[first - 1]) / (last - first + 1)


def _set_curve_axes(axes, curves, label):
    """Scale the axes to whole curves, save for the first iterations, whose depth can flatten all the rest."""
    longest = max(map(len, curves))
    shown = [value for curve in curves for value in curve[min(UNSCALED, len(curve) // 10) :]]
    margin = 0.05 * (max(shown) - min(shown)) or 1.0  # nats, around a training of one iteration
    axes.set(xscale="log", xlim=(1, 1.2 * longest), ylim=(min(shown) - margin, max(shown) + margin))
    axes.set(xlabel="iteration", ylabel=label)
    axes.grid(alpha=0.3)
