"""Settings: what they mean, what they may be, and the command line that is made from them.

A field's metadata holds its bounds and its help text, and a value that cannot be used is refused here, before any work
is done. Nothing heavy is imported, so that `python main.py --help` answers at once.
"""

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import NamedTuple

from files import InputError

ARCHITECTURES = ("conv", "mlp")  # the names in VAE.ARCHITECTURES, here without importing torch
STAGES = {"begin": "beginning", "middle": "middle", "end": "end"}  # as folders and keys: as titles
EPOCHS = 10
SMALL_SET, SMALL_SET_EPOCHS = 20_000, 60  # fewer training images than that are trained on for longer
MAX_SEED = 2**31
EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def option(default, help, bounds=None, **argument):
    """Declare a field that is also a command-line option: its help, the least and the greatest value it may have, and
    further arguments of argparse.
    """
    return field(default=default, metadata={"bounds": bounds, "argument": {"help": help, **argument}})


def check(condition, name, found, expected):
    """Raise `InputError` about the setting `name` unless the condition holds."""
    if not condition:
        raise InputError(f"{name.replace('_', '-')}: found {found!r}, expected {expected}")


@dataclass(frozen=True)
class TrainConfig:
    """How a VAE is trained; `InputError`, a `ValueError`, names a value that cannot be used."""

    epochs: int = option(EPOCHS, "passes over the training images", (1, 10**6))
    batch_size: int = option(128, "images for each gradient step", (1, 10**6))
    learning_rate: float = option(3e-3, "peak of the one-cycle schedule for Adam", (1e-30, 1e30))
    seed: int = option(
        0, "of Problem 1's samples, and of each training's first weights, batches and draws", (0, MAX_SEED)
    )
    sigma: float | None = option(
        None, "decoder's standard deviation, in pixel values; unset, calibrated on each batch", (1e-6, 1e6), type=float
    )
    plain_epochs: int = option(
        5, "last epochs, with images as they are; before, each is turned, sheared and scaled a little", (0, 10**6)
    )
    float32: bool = option(False, "train in float32 even where the device computes in bfloat16 too")

    def __post_init__(self):
        for setting in fields(self):
            if setting.metadata["bounds"]:
                check_bounds(setting, getattr(self, setting.name))


def check_bounds(setting, value):
    """Raise `InputError` unless each number of a field's value is of its kind and within its bounds, or is unset."""
    least, most = setting.metadata["bounds"]
    kind = setting.metadata["argument"].get("type", setting.type)
    expected = f"{'an integer' if kind is int else 'a number'} from {least} to {most}"
    for number in value if isinstance(value, tuple) else (value,):
        good = isinstance(number, Integral if kind is int else Real) and not isinstance(number, bool)
        unset = number is None and setting.default is None
        check(unset or (good and least <= number <= most), setting.name, number, expected)


class Scale(NamedTuple):
    """How much of everything a run uses: in full, or for a quick look at the whole path."""

    train_images: int | None  # None: all
    test_images: int | None
    epochs: int | None  # None: as many as suit the training set
    entropy_samples: int  # points of each running estimate in Problem 1
    tsne_images: int
    importance_images: int  # images and draws for the importance-weighted bound
    importance_samples: int


FULL = Scale(None, None, None, 1_000_000, 2000, 500, 200)
QUICK = Scale(1000, 500, 5, 20_000, 200, 20, 20)


@dataclass(frozen=True)
class Settings(TrainConfig):
    """Everything that `python main.py` can be told."""

    epochs: int | None = option(
        None,
        f"passes over the training images; unset, {EPOCHS}, or {SMALL_SET_EPOCHS} for fewer than {SMALL_SET:,} images",
        (1, 10**6),
        type=int,
    )
    data_root: str = option("data", "folder whose MNIST/raw holds, or is to hold, the four files of the data set")
    dataset_name: str | None = option(None, "name of a data set that is not MNIST; unset, its folder's", type=str)
    figures: str = option("figures", "folder for figures, results.json and the gallery")
    checkpoints: str = option("checkpoints", "folder for trained weights")
    latent_dims: tuple[int, ...] = option((2, 16), "numbers of latent dimensions", (1, 256), type=int, nargs="+")
    architectures: tuple[str, ...] = option(ARCHITECTURES, "networks", type=str, nargs="+", choices=ARCHITECTURES)
    device: str = option("auto", "torch device such as cpu, cuda or mps; auto takes an accelerator if there is one")
    offline: bool = option(False, "do not try to download MNIST")
    quick: bool = option(False, "the whole path on a small sample, in under a minute: a trial, not a result")
    resume: bool = option(False, "take over runs with the same settings and data that an earlier call finished")

    def __post_init__(self):
        super().__post_init__()
        for name in ("latent_dims", "architectures"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), name, values, "each once")

    @property
    def scale(self):
        """The `Scale` of this run."""
        return QUICK if self.quick else FULL

    def train_config(self, image_count):
        """The `TrainConfig` of this run for that many training images."""
        config = {setting.name: getattr(self, setting.name) for setting in fields(TrainConfig)}
        if self.epochs is None:
            config["epochs"] = self.scale.epochs or (SMALL_SET_EPOCHS if image_count < SMALL_SET else EPOCHS)
        return TrainConfig(**config)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, exit status 2, and nothing else; its help shows the defaults."""

    def __init__(self, prog=None, description=None):
        super().__init__(prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message):
        self.exit(EXIT_INPUT_ERROR, f"{self.prog}: error: {message}\n")


def parse_settings(
    arguments=None,
    prog="main.py",
    description="Make every figure and number of the assignment: Gaussian mixtures, then VAEs on MNIST.",
):
    """Make `Settings` from a command line; exits with status 2 and one line on an argument that cannot be used."""
    parser = OneLineParser(prog, description)
    for setting in fields(Settings):
        flag, argument = "--" + setting.name.replace("_", "-"), setting.metadata["argument"]
        if setting.type is bool:
            parser.add_argument(flag, action="store_true", **argument)
        else:
            parser.add_argument(flag, **{"type": setting.type, "default": setting.default, **argument})
    values = vars(parser.parse_args(arguments))
    try:
        return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except InputError as error:
        parser.error(str(error))


def parse_figure_arguments(description, with_data):
    """Parse what the scripts that draw one figure of a checkpoint are told: checkpoint, output, stage, data_root."""
    parser = OneLineParser(description=description)
    parser.add_argument("checkpoint", help="file made by main.py, such as checkpoints/conv_z16.pt")
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument("--stage", default="end", choices=tuple(STAGES), help="of training")
    if with_data:
        parser.add_argument("--data-root", default="data", help="folder whose MNIST/raw holds the data set")
    arguments = parser.parse_args()
    if not arguments.output.lower().endswith(".png"):
        parser.error(f"output: found {arguments.output!r}, expected a name that ends in .png")
    return arguments


@contextlib.contextmanager
def user_errors_in_one_line(program):
    """Turn what a user can cause, bad input or a diverging training, into one line and exit status 2."""
    try:
        yield
    except (InputError, OSError, FloatingPointError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT_ERROR)


def say(text):
    """Print to a terminal or log of any encoding; a reader who has left (`main.py | head -1`) ends no work."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit fails again
