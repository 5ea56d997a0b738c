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
from files import errors_in_one_line
from train import STAGES

ROOT = Path(main.__file__).parent
RUNS = ("mlp_z1", "mlp_z2")
SMALL = "--quick --offline --architectures mlp --latent-dims 1 2 --epochs 2 --seed 3 --data-root".split()


@pytest.fixture(scope="module")
def data_root(dataset, tmp_path_factory):
    """A folder with 60 digits to train on and 30 to test on."""
    root = tmp_path_factory.mktemp("data") / "Číslice für $5"
    write_set(root, dataset.train.choose(60), dataset.test.choose(30))
    return root


def command(folder, *arguments, **environment):
    """What subprocess needs to run the bundle in `folder` as a user does who has been at work there.

    A notebook has left its backend. A matplotlibrc turns pictures over and asks for LaTeX. The terminal is ASCII's.
    """
    surroundings = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONIOENCODING": "ascii"}
    environment = os.environ | surroundings | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
    return {"args": [sys.executable, "Bündel/main.py", *map(str, arguments)], "cwd": folder, "env": environment}


@pytest.fixture(scope="module")
def made(data_root, tmp_path_factory):
    """A folder after a whole run of the scripts and templates alone, whose reader left: `main.py ... 2>&1 | head -1`."""
    folder = tmp_path_factory.mktemp("Arbeit für $x_2 und $y")
    (folder / "Bündel").mkdir()
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder / "Bündel")
    shutil.copytree(ROOT / "templates", folder / "Bündel" / "templates")
    (folder / "matplotlibrc").write_text("image.origin: lower\ntext.usetex: True\nfont.size: 30\n")
    (folder / "figures" / "evidence").mkdir(parents=True)
    (folder / "figures" / "evidence" / "results.json").write_text("mine")
    before = contents(folder)
    options = command(folder, *SMALL, data_root)
    process = subprocess.Popen(**options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == b"MNIST from disk: 60 training and 30 test images\n"
    process.stdout.close()
    assert process.wait(timeout=300) == 0
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


def test_whole_run_writes_the_numbers_that_the_report_needs(made):
    results = json.loads((made / "figures" / "results.json").read_text(encoding="utf-8"))
    assert results["dataset"] == {"name": "MNIST", "source": "disk", "train_count": 60, "test_count": 30}
    assert results["environment"].keys() >= {"python", "torch", "device", "threads"}
    assert results["controls"].keys() == {"mean_image_elbo", "pixels_knn_accuracy"}
    seeds = {results["seed"], results["config"]["seed"], *(gmm["seed"] for gmm in results["gmm"].values())}
    assert seeds == {3}
    for gmm in results["gmm"].values():
        assert gmm["lower_bound"] < gmm["quadrature"] < gmm["upper_bound"]
        assert gmm["entropy"] == pytest.approx(gmm["quadrature"], abs=4 * gmm["standard_error"])
    gap = {"gap", "gap_standard_error", "single_gaussian_estimate", "single_gaussian_estimate_error", "single_gaussian"}
    assert results["gmm"]["degenerate"].keys() >= {"samples", *gap}
    assert tuple(results["runs"]) == RUNS
    for run in results["runs"].values():
        assert run["stages"].keys() == STAGES.keys()
        assert run.keys() >= {"parameters", "iterations", "train_seconds", "sigma", "untrained_knn_accuracy"}
        assert run["test"].keys() >= {"iw_log_likelihood", "active_units"}
        assert run["test"]["elbo"] == pytest.approx(-run["test"]["nll"] - run["test"]["kl"])
        assert run["tsne"].keys() >= {"knn_accuracy", "trustworthiness"}


def test_resume_takes_over_the_trainings_and_makes_the_same_files(made, data_root):
    """One training after another, as where there are no semaphores, and with a standard error that is closed."""

    def trained():
        return {path: path.stat().st_mtime_ns for path in (made / "checkpoints").iterdir()}

    before, files = trained(), contents(made)
    options = command(made, *SMALL, data_root, "--resume", JOBLIB_MULTIPROCESSING="0")
    options["args"] = ["sh", "-c", '"$@" 2>&-', "sh", *options["args"]]
    subprocess.run(**options, check=True, timeout=300, stdout=subprocess.DEVNULL)
    assert trained() == before
    assert contents(made) == files


def read(terminal, seconds, words=()):
    """Read a terminal until all the words are there, or to its end, when no process has it open any more."""
    said, deadline = "", time.monotonic() + seconds
    while not (words and all(word in said for word in words)):
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], said
        try:
            said += os.read(terminal, 10_000).decode()
        except OSError:  # what Linux makes of the end
            break
    return said


@pytest.mark.skipif(os.name != "posix", reason="its signals and terminals are POSIX's")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ended_run_leaves_no_process_after_ten_seconds_and_no_half_file(number, status, made, data_root, tmp_path):
    shutil.copytree(made / "figures", tmp_path / "figures")
    before = contents(tmp_path / "figures")
    terminal, other_end = os.openpty()
    arguments = (*SMALL, data_root, "--epochs", "1000000", "--figures", tmp_path / "figures")
    process = subprocess.Popen(
        **command(made, *arguments, "--checkpoints", tmp_path / "checkpoints"),
        **dict.fromkeys(("stdin", "stdout", "stderr"), other_end),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background commands ignore
    )
    os.close(other_end)
    read(terminal, 120, ["mlp_z1:", "mlp_z2:"])
    send = os.killpg if number == signal.SIGINT else os.kill  # Ctrl-C reaches the whole group
    send(process.pid, number)
    said = read(terminal, 10)
    assert process.wait(timeout=10) == status
    assert "Traceback" not in said
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "main.py: interrupted; with --resume it takes over what is trained"
    assert {path.name for path in (tmp_path / "checkpoints").glob("*")} == set()
    assert contents(tmp_path / "figures") == before
