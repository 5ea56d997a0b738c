"""Which VAEs are trained: runs side by side in processes, their checkpoints, `--resume`, and figures of one."""

import hashlib
import io
import os
import platform
import signal
import sys
import threading
import time
import warnings
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from joblib import Parallel, parallel_config
from tqdm import tqdm

import mnist
from config import STAGES, TrainConfig, parse_figure_arguments, user_errors_in_one_line
from files import InputError, whole_file
from train import count_iterations, has_native_bfloat16, seeded, train
from VAE import VAE

PROJECT = Path(__file__).resolve().parent
SOURCES = ("ELBO.py", "VAE.py", "train.py")  # what a run's weights and measurements follow from
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")
BYTES_PER_RUN = 1.5e9  # memory of a process that trains on full MNIST, with room to spare


@dataclass(frozen=True)
class Run:
    """A VAE and how to train it."""

    architecture: str
    latent_dim: int
    config: TrainConfig
    variant: str = ""  # what sets it apart from the main run of its network and size, such as "sigma1"
    repetition: int = 0  # 0 for the first seed; the others have the seed in their name

    @property
    def group(self):
        """What it and the runs that differ in nothing but the seed are called."""
        return "_".join(filter(None, [self.architecture, f"z{self.latent_dim}", self.variant]))

    @property
    def name(self):
        """What its folder of figures and its file of weights are called."""
        return f"{self.group}_seed{self.config.seed}" if self.repetition else self.group


def choose_device(name):
    """Return the torch device of that name; "auto" is the accelerator (CUDA, MPS, ...) if there is one, or the CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device: found {name!r}, expected auto, cpu or an available accelerator") from error
    return torch.device(name)


# ---- Side by side


def side_by_side(calls, settings):
    """Make calls, each a `joblib.delayed` one, and yield what they return, in their order.

    On a CPU they are made in processes of one thread each, as many at once as `runs_at_once` says: networks as small as
    these gain little from more threads. The processes leave Ctrl-C to this one, which ends them.

    Raises
    ------
    InputError
        If the system ends a process, as where memory runs out.
    """
    at_once = runs_at_once(settings, len(calls))
    # At least two processes, though one may have to wait: joblib would make a single one's calls in this process.
    jobs = max(2, at_once) if in_processes(settings) else 1
    with warnings.catch_warnings(), parallel_config("loky", inner_max_num_threads=1, initializer=begin_process):
        warnings.filterwarnings("ignore", "Failed to kill subprocesses")  # loky without pgrep: it has killed all
        try:
            yield from Parallel(jobs, return_as="generator", pre_dispatch=at_once)(calls)
        except BrokenProcessPool as error:
            raise InputError(
                "a process that trained was ended by the system, perhaps for want of memory; "
                "the same command with --resume goes on"
            ) from error


def in_processes(settings):
    """Tell whether runs are made in processes of their own: on a CPU, but for a trial, which is over sooner."""
    return not settings.quick and choose_device(settings.device).type == "cpu"


def runs_at_once(settings, count):
    """Return how many of `count` runs are made at once: in processes, as many as there are threads and memory for."""
    if not in_processes(settings):
        return 1
    return max(1, int(min(count, torch.get_num_threads(), memory() / BYTES_PER_RUN)))


def memory():
    """Return the machine's memory in bytes, infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def begin_process():
    """Leave Ctrl-C to the parent, and write to the terminal without a lock that would be reported as leaked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())


# ---- Checkpoints


def train_or_resume(run, dataset, settings, line=0):
    """Return the checkpoint of a run, trained now or, with --resume, taken over from an earlier call.

    Parameters
    ----------
    run : Run
    dataset : mnist.Dataset
    settings : config.Settings
        Its `checkpoints` is the folder of <run.name>.pt; with its `resume`, a checkpoint there is taken over if it was
        made from the same settings, code, data and torch.
    line : int
        Line of the terminal, of those below the cursor, that shows the progress.

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
    with progress_bar(run, dataset, line) as bar:
        if settings.resume and path.exists():
            found = read_checkpoint(path)
            if found.get("made_from") == origin:
                bar.update(len(found["history"]["loss"]))
                return found
            bar.write(f"{path}: made with other settings, code or data; trained anew", file=sys.stderr)
        save_checkpoint(path, **train_run(run, dataset, device, bar), made_from=origin)
    return read_checkpoint(path)


def train_run(run, dataset, device, bar):
    """Train a run: what `save_checkpoint` is to keep of it."""
    model, stages = new_model(run).to(device), {}

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
    return {"model": model, "stages": stages, "history": history, "train_seconds": time.perf_counter() - started}


def progress_bar(run, dataset, line=0):
    """Return a tqdm bar over the iterations of a run, in that line of those below the cursor."""
    total = count_iterations(len(dataset.train_labels), run.config)
    closed = sys.stderr is None
    return tqdm(None, run.name, total, unit="it", smoothing=0.02, dynamic_ncols=True, position=line, disable=closed)


def checkpoint_path(run, settings):
    """Return where a run's checkpoint is kept."""
    return Path(settings.checkpoints) / f"{run.name}.pt"


def new_model(run):
    """Return the untrained `VAE` of a run, its weights drawn with the run's seed."""
    with seeded(run.config.seed):
        return VAE(run.latent_dim, run.architecture)


def made_from(run, dataset, device):
    """Return all that a run's weights follow from, as a dict that JSON and checkpoints can hold."""
    sources = b"".join((PROJECT / name).read_bytes() for name in SOURCES)
    code = hashlib.md5(sources, usedforsecurity=False).hexdigest()
    facts = ("torch", "device", "threads", "bfloat16")
    surroundings = {name: value for name, value in environment(device).items() if name in facts}
    return {**asdict(run), "code": code, "data": dataset.fingerprint, **surroundings}


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
