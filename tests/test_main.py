"""The one command as its users give it: what it makes, takes over and refuses, and what it leaves when it is ended."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_mnist import LABELS, contents, write_set

import main
import report
from files import errors_in_one_line, write_text
from train import STAGES

ROOT = Path(main.__file__).parent
RUNS = ("mlp_z1", "mlp_z2")
SMALL = ["--quick", "--offline", "--architectures", "mlp", "--latent-dims", "1", "2", "--epochs", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def data_root(dataset, tmp_path_factory):
    """A folder with 60 digits to train on and 30 to test on."""
    root = tmp_path_factory.mktemp("data") / "Číslice für $5"
    write_set(root, dataset.train.choose(60), dataset.test.choose(30))
    return root


def command(folder, *arguments, **environment):
    """Put scripts and templates alone into a new folder, and return what subprocess needs to run them as a user does.

    A notebook has left its backend. A matplotlibrc turns pictures over and asks for LaTeX. The terminal has ASCII only.
    """
    if not folder.exists():
        shutil.copytree(ROOT / "templates", folder / "Bündel" / "templates")
        for script in ROOT.glob("*.py"):
            shutil.copy(script, folder / "Bündel")
        (folder / "matplotlibrc").write_text("image.origin: lower\ntext.usetex: True\nfont.size: 30\n")
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    terminal = {"PYTHONIOENCODING": "ascii", "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [sys.executable, "Bündel/main.py", *SMALL, *map(str, arguments)]
    return {"args": arguments, "cwd": folder, "env": os.environ | notebook | terminal | environment}


@pytest.fixture(scope="module")
def made(data_root, tmp_path_factory):
    """A folder after a whole run without a standard error and with a reader who left: `main.py ... 2>&- | head -1`."""
    folder = tmp_path_factory.mktemp("a") / "Arbeit für $x_2 und $y"
    run = command(folder, "--data-root", data_root)
    run["args"] = ["sh", "-c", '"$@" 2>&-', "sh", *run["args"]]
    (folder / "figures" / "evidence").mkdir(parents=True)
    (folder / "figures" / "evidence" / "results.json").write_text("mine")
    before = contents(folder)
    with subprocess.Popen(**run, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"MNIST from disk: 60 training and 30 test images\n"
        process.stdout.close()
        assert process.wait(timeout=600) == 0
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(folder).parts[0] for path in after.keys() - before} == {"figures", "checkpoints"}
    return folder


def test_whole_run_makes_every_figure_and_a_gallery_that_shows_them(made):
    plots = ("latent_traversal", "prior_samples", "tsne", "ELBO_Curve")
    expected = {f"{run}/{stage}/{plot}.png" for run in RUNS for stage in STAGES for plot in plots}
    expected |= {"gmm_scatter.png", "gmm_entropy.png", "gmm_entropy_degenerate.png", "ELBO_Curve.png"}
    figures = made / "figures"
    assert {path.relative_to(figures).as_posix() for path in figures.rglob("*.png")} == expected
    gallery = (figures / "README.md").read_text(encoding="utf-8")
    for name in expected:
        assert np.asarray(Image.open(figures / name).convert("L")).std() > 5, f"{name} is blank"
        assert f"({name})" in gallery or f'src="{name}"' in gallery


def test_whole_run_writes_the_numbers_that_the_report_needs_beside_those_of_the_gallery(made):
    results = json.loads((made / "figures" / "results.json").read_text(encoding="utf-8"))
    assert results["dataset"] == {"name": "MNIST", "source": "disk", "train_count": 60, "test_count": 30}
    assert results["environment"].keys() >= {"python", "torch", "device", "threads"}
    balanced, degenerate = results["gmm"]["balanced"], results["gmm"]["degenerate"]
    assert {results["seed"], results["config"]["seed"], balanced["seed"], degenerate["seed"]} == {3}
    assert balanced["lower_bound"] < balanced["quadrature"] < balanced["upper_bound"]
    assert degenerate.keys() >= {"gap", "gap_standard_error", "single_gaussian_estimate_error"}
    assert tuple(results["runs"]) == RUNS
    for run in results["runs"].values():
        assert run.keys() >= {"parameters", "iterations", "train_seconds", "sigma", "untrained_knn_accuracy"}
        assert run["test"].keys() >= {"iw_log_likelihood", "active_units"}
        assert run["test"]["elbo"] == pytest.approx(-run["test"]["nll"] - run["test"]["kl"])
        assert run["tsne"].keys() >= {"knn_accuracy", "trustworthiness"}


def test_resume_takes_over_the_trainings_and_makes_the_same_files(made, data_root):
    """One training after another, as where there are no semaphores, and for a reader who leaves at once."""
    before = contents(made)  # checkpoints too, and in them the seconds that the trainings took
    run = command(made, "--data-root", data_root, "--resume", JOBLIB_MULTIPROCESSING="0")
    with subprocess.Popen(**run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.close()
        assert process.wait(timeout=600) == 0
    assert contents(made) == before


def read(terminal, seconds, *words):
    """Read what is said on a terminal until all the words are, or until no process has the terminal open any more."""
    said, deadline = "", time.monotonic() + seconds
    while not words or not all(word in said for word in words):
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], said
        try:
            new = os.read(terminal, 10_000).decode()
        except OSError:  # which is how Linux says that it is the end
            new = ""
        if not new:
            break
        said += new
    return said


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_ended_run_leaves_no_process_after_ten_seconds_and_the_files_as_they_were(number, status, data_root, tmp_path):
    """While two trainings are under way. Ctrl-C reaches all processes of a terminal."""
    termios = pytest.importorskip("termios", reason="Windows has other terminals and no such signals")
    run = command(tmp_path / "run", "--data-root", data_root, "--epochs", "1000000", "--device", "cpu")
    (tmp_path / "run" / "Bündel" / "gmm_entropy.py").write_text("run_problem_1 = print")  # which spares seconds
    write_text(tmp_path / "run" / "figures" / "README.md", report.FIRST_LINE)
    before = contents(tmp_path)
    terminal, other_end = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a shell's background commands ignore it
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), other_end)
    process = subprocess.Popen(**run, **ends, start_new_session=True)
    os.close(other_end)
    try:
        read(terminal, 600, "mlp_z1:", "mlp_z2:")  # their progress bars
        send = os.killpg if number == "SIGINT" else os.kill
        send(process.pid, signal.Signals[number])
        said = read(terminal, 10)
    finally:
        os.close(terminal)
        process.kill()
    assert process.wait() == status
    assert "Traceback" not in said
    if number == "SIGINT":
        assert said.splitlines()[-1] == "main.py: interrupted; finished trainings are kept for --resume"
    assert contents(tmp_path) == before


@pytest.fixture
def refused(tmp_path, data_root, capsys, monkeypatch):
    """A function that runs main.py in this process and in a new folder, without Problem 1.

    The run must end with status 2 and one line on standard error, which is returned.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "run_problem_1", lambda *_: {})

    def refused(*arguments):
        with pytest.raises(SystemExit, match="2"), errors_in_one_line():
            main.main(main.parse_arguments([*SMALL, "--data-root", str(data_root), "--latent-dims", "2", *arguments]))
        *usage, line = capsys.readouterr().err.splitlines()
        assert not usage or usage[0].startswith("usage: ")
        return line

    return refused


UNUSABLE = ["--epochs 0", "--epochs many", "--learning-rate nan", "--latent-dims", "--latent-dims 0", "--seed -1"]
UNUSABLE += ["--seed 4294967296", "--architectures transformer", "--device abacus", "--device meta", "--colour red"]


@pytest.mark.parametrize("arguments", UNUSABLE)
def test_unusable_argument_is_named(refused, arguments):
    assert arguments.split()[0] in refused(*arguments.split())


def test_help_is_for_every_terminal(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.parse_arguments(["--help"])
    assert capsys.readouterr().out.isascii()


@pytest.mark.parametrize("here", [None, torch.device("cuda")])
def test_auto_is_an_accelerator_if_there_is_one(here, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: here)
    assert main.parse_arguments([]).device == (here or torch.device("cpu"))


@pytest.mark.parametrize("place", ["figures", "checkpoints", "figures/README.md", "figures/results.json"])
def test_folder_that_is_none_or_holds_something_else_is_named_and_left_as_it_is(refused, place):
    write_text(place, "mine")
    assert place.partition("/")[0] in refused()
    assert Path(place).read_text() == "mine"


def test_damaged_data_are_named(refused, data_root):
    shutil.copytree(data_root, "in two\nlines")
    Path("in two\nlines", "MNIST", "raw", LABELS).write_bytes(b"")
    assert "in two lines/MNIST" in refused("--data-root", "in two\nlines")


def test_diverging_training_is_told_and_leaves_no_checkpoint(refused):
    assert "lower the learning rate" in refused("--learning-rate", "1e6", "--epochs", "20")
    assert not Path("checkpoints").exists()


def test_full_disk_is_told_and_earlier_files_survive(refused, tmp_path):
    resource = pytest.importorskip("resource")
    write_text("checkpoints/mlp_z2.pt", "earlier")
    before, limit = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # does to a write what a full disk does
    try:
        assert "File too large" in refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert contents(tmp_path) == before
