"""Runs: their checkpoints, `--resume`, the command line that draws one of them, and side by side in processes."""

import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import assert_equal_weights, coarsely_drawn, make
from joblib import delayed
from threadpoolctl import threadpool_limits

import runs
from config import STAGES, Settings, TrainConfig
from files import InputError
from report import new_results
from runs import Run, load_checkpoint, new_model, side_by_side, train_or_resume
from sample_from_prior import plot_prior_samples
from train import CPU, train
from VAE import VAE

ROOT = Path(__file__).parent.parent
SMALL = TrainConfig(epochs=2, batch_size=16)
RUN = Run("mlp", 2, SMALL)
APART = Settings(device="cpu")
HERE = Settings(device="cpu", quick=True)  # a trial, whose runs are made in this process


@pytest.fixture
def few(dataset):
    """Forty digits to train on, four of them held out: 6 iterations of `SMALL`."""
    return dataset.first(40, 20)


@pytest.fixture
def settings(tmp_path):
    return Settings(checkpoints=str(tmp_path / "checkpoints"), device="cpu", resume=True)


# ------------------------------------------------------------------------------------------------- runs and --resume


def test_run_is_trained_from_the_weights_of_its_seed_and_kept_whole(few, settings, capsys):
    run = Run("mlp", 2, replace(SMALL, seed=5), "variant")
    model, stages = make(seed=5), {}
    history = train(model, few.train_images, run.config, lambda stage, _: stages.update({stage: deepcopy(model)}))
    started = time.perf_counter()
    checkpoint = train_or_resume(run, few, settings)
    assert 0 < checkpoint["train_seconds"] < time.perf_counter() - started
    assert checkpoint["history"] == history
    for stage in STAGES:
        assert_equal_weights(load_checkpoint(Path(settings.checkpoints) / "mlp_z2_variant.pt", stage), stages[stage])
        assert_equal_weights(runs.model_at(checkpoint, stage), stages[stage])
    bar = capsys.readouterr().err.split("\r")[-1]
    assert all(word in bar for word in (run.name, "100%", "6/6", f"ELBO {-history['loss'][-1]:.0f}"))


def test_resume_takes_over_what_would_be_made_again_and_trains_anew_otherwise(
    few, settings, tmp_path, monkeypatch, capsys
):
    def seconds(**changes):
        return train_or_resume(RUN, few, replace(settings, **changes))["train_seconds"]

    monkeypatch.setattr(runs, "PROJECT", tmp_path)
    for name in runs.SOURCES:
        shutil.copy(ROOT / name, tmp_path)
    first = seconds()  # where there is nothing to take over
    assert seconds() == first
    assert "6/6" in capsys.readouterr().err.split("\r")[-1]
    times = [first, seconds(resume=False)]
    assert "anew" not in capsys.readouterr().err
    for name in ("ELBO.py", "VAE.py", "train.py"):
        with (tmp_path / name).open("a") as code:
            code.write("# edited")
        times.append(seconds())
        path = runs.checkpoint_path(RUN, settings)
        assert f"{path}: made with other settings, code or data; trained anew" in capsys.readouterr().err
    assert len(set(times)) == len(times)


def test_origin_tells_apart_all_that_weights_follow_from_and_nothing_else(few, dataset, monkeypatch):
    def origin(run=RUN, data=few, device=CPU):
        return json.dumps(runs.made_from(run, data, device), sort_keys=True)

    def origin_with(name, value):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            return origin()

    version, bfloat16 = runs.version, runs.environment(CPU)["bfloat16"]
    config = replace(SMALL, sigma=1.0)
    changes = {"architecture": "conv", "latent_dim": 3, "variant": "a", "repetition": 1, "config": config}
    origins = [
        origin(),
        *(origin(replace(RUN, **{name: value})) for name, value in changes.items()),
        origin(data=dataset.first(41, 20)),
        origin(device=torch.device("meta")),
        origin_with("torch.get_num_threads", lambda: 99),
        origin_with("torch.cpu.get_capabilities", lambda: {"avx512_bf16": not bfloat16}),
        origin_with("runs.version", lambda name: "0" if name == "torch" else version(name)),
    ]
    assert len(set(origins)) == len(origins)
    assert origin_with("runs.version", lambda name: version(name) if name == "torch" else "0") == origins[0]


def test_diverging_run_is_named_and_leaves_no_checkpoint(few, settings):
    run = replace(RUN, config=TrainConfig(epochs=1, learning_rate=1e30))  # its only batch is good, its calibration not
    with pytest.raises(InputError, match=r"^mlp_z2: .*: lower the learning rate$"):
        train_or_resume(run, few, settings)
    assert not Path(settings.checkpoints).exists()


def test_training_goes_on_where_standard_error_is_closed(few, settings, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    for seed in (0, 1):  # the second finds the first's checkpoint, and would say so
        run = replace(RUN, config=replace(SMALL, seed=seed))
        assert train_or_resume(run, few, settings)["made_from"]["config"]["seed"] == seed


# ------------------------------------------------------------------------------------------------------ checkpoints


class Intruder:
    """An object whose unpickling makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("trace",)


MLP = {"latent_dim": 2, "architecture": "mlp"}
UNUSABLE = {
    "text": b"These are not weights.\n",
    "text that is a pickle's opcode": b"(a tuple that nobody began",
    "bare pickle": pickle.dumps(MLP),
    "bare pickle of code": pickle.dumps(Intruder()),
    "code": MLP | {"stages": {"end": VAE(2, "mlp").state_dict()}, "more": Intruder()},
    "number": 5,
    "weights alone": VAE(2, "mlp").state_dict(),
    "no stages": MLP,
    "stages that are none": MLP | {"stages": None},
    "unknown architecture": MLP | {"architecture": "resnet", "stages": {"end": {}}},
    "another architecture's weights": MLP | {"stages": {"end": VAE(2, "conv").state_dict()}},
    "another stage": MLP | {"stages": {"begin": VAE(2, "mlp").state_dict()}},
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_checkpoint_is_an_error_of_one_line_and_its_code_is_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: found .+$"):
        load_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def checkpoint(tmp_path):
    """A file with the weights of three models, one for each stage, in a folder whose name is no mathematics."""
    path = tmp_path / "$\\frac$" / "mlp_z2.pt"
    stages = {stage: new_model(replace(RUN, config=TrainConfig(seed=k))).state_dict() for k, stage in enumerate(STAGES)}
    runs.save_checkpoint(path, new_model(RUN), stages)
    return path


def test_cut_or_missing_checkpoint_is_an_error_that_names_the_file(checkpoint, few):
    settings, size = Settings(checkpoints=str(checkpoint.parent), device="cpu", resume=True), checkpoint.stat().st_size
    for kept in (0.9999, 0.5, 0.1, 0.001, 0.0):
        os.truncate(checkpoint, int(kept * size))
        with pytest.raises(InputError, match=r"mlp_z2\.pt: .*, expected a checkpoint made by main\.py$"):
            train_or_resume(RUN, few, settings)
    for path in (checkpoint.parent, checkpoint.with_name("missing.pt")):
        with pytest.raises(InputError, match=r": .*, expected a checkpoint made by main\.py$"):
            load_checkpoint(path)


# ---------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("accelerator", [None, torch.device("cuda")])
def test_auto_is_an_accelerator_that_is_there_or_the_cpu(accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    assert runs.choose_device("auto") == (accelerator or CPU)
    assert runs.choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "", "cpu:x", "meta"])
def test_device_that_cannot_compute_is_named(name):
    with pytest.raises(InputError, match=f"^device: found '{name}', expected "):
        runs.choose_device(name)


# ------------------------------------------------------------------------------------------------- figure of a model


@pytest.mark.parametrize("stage", STAGES)
def test_figure_shows_the_stage_and_names_with_dollars(checkpoint, dataset, tmp_path, monkeypatch, stage):
    output = tmp_path / "a.png"

    def plot(model, data, path, title):
        assert_equal_weights(model, load_checkpoint(checkpoint, stage))
        assert title == f"{checkpoint}, {STAGES[stage]} of training\n$\\frac$, 5,000 images"
        plot_prior_samples(model, path, title=title)

    monkeypatch.setattr("mnist.load", lambda root, offline: replace(dataset, name="$\\frac$"))
    monkeypatch.setattr(sys, "argv", ["figure.py", str(checkpoint), "--output", str(output), "--stage", stage])
    with coarsely_drawn():
        runs.draw_checkpoint("A figure.", plot)
    assert output.stat().st_size > 1000


OUTPUTS = ("a.pdf", "", ".", "/", "mlp_z2.pt", "a.png/")
CALLS = [["mlp_z2.pt"], ["missing.pt", "--output", "a.png"], *(["mlp_z2.pt", "--output", name] for name in OUTPUTS)]


@pytest.mark.parametrize("arguments", CALLS)
def test_figure_that_cannot_be_drawn_is_one_line_and_no_file_is_harmed(checkpoint, monkeypatch, capsys, arguments):
    monkeypatch.chdir(checkpoint.parent)
    monkeypatch.setattr(sys, "argv", ["figure.py", *arguments])
    content = checkpoint.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        runs.draw_checkpoint("A figure.", plot_prior_samples, with_data=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("figure.py: error: ")
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert checkpoint.read_bytes() == content


# ------------------------------------------------------------------------------------------------------ side by side


@pytest.fixture
def machine(monkeypatch):
    """A function that gives this machine so many threads, and memory for so many runs."""

    def machine(threads, memory=99):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(runs, "memory", lambda: memory * runs.BYTES_PER_RUN)

    return machine


@pytest.mark.parametrize(
    ("threads", "memory", "count", "expected"),
    [(8, 99, 4, 4), (2, 99, 4, 2), (8, 2.5, 4, 2), (8, 0.5, 4, 1), (1, 99, 4, 1), (8, 99, 1, 1), (8, math.inf, 4, 4)],
)
def test_runs_are_made_at_once_as_far_as_threads_and_memory_go(machine, threads, memory, count, expected):
    machine(threads, memory)
    assert runs.runs_at_once(APART, count) == expected


def test_memory_is_in_bytes_and_without_bounds_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**6}.get, raising=False)
    assert runs.memory() == 4096 * 10**6
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert runs.memory() == math.inf


def losses(images, seed):
    config = replace(SMALL, seed=seed)
    return train(new_model(replace(RUN, config=config)), images, config)["loss"]


def meet(folder, seconds, *training):
    """Train, then wait a while for another call: how many came, where this one is, and its losses."""
    found = losses(*training)
    (folder / str(time.monotonic_ns())).touch()
    deadline = time.monotonic() + seconds
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    ignoring = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return len(list(folder.iterdir())), os.getpid(), torch.get_num_threads(), ignoring, found


@pytest.mark.parametrize(("memory", "seen", "seconds"), [(2, [2, 2], 60), (1, [1, 2], 0.1)])
def test_runs_in_processes_of_one_thread_meet_where_there_is_memory(machine, few, tmp_path, memory, seen, seconds):
    """They leave interrupts to this process, and train as it would with one thread."""
    machine(4, memory)
    handler = signal.getsignal(signal.SIGINT)
    trainings = [(few.train_images, seed) for seed in (0, 1)]
    calls = [delayed(meet)(tmp_path, seconds, *training) for training in trainings]
    came, processes, threads, ignoring, found = zip(*side_by_side(calls, APART), strict=True)
    assert list(came) == seen
    assert os.getpid() not in processes
    assert (threads, ignoring) == ((1, 1), (True, True))
    with threadpool_limits(1):
        assert list(found) == [losses(*training) for training in trainings]
    assert found[0] != found[1]
    assert signal.getsignal(signal.SIGINT) == handler
    described = new_results(APART, SMALL, few, CPU, run_count=2)["environment"]
    assert (described["runs_at_once"], described["threads"]) == (memory, 1)


@pytest.mark.parametrize(("settings", "device"), [(HERE, "cpu"), (APART, "cuda")])
def test_runs_of_a_trial_or_on_an_accelerator_are_made_in_this_process(machine, few, monkeypatch, settings, device):
    machine(4)
    monkeypatch.setattr(runs, "choose_device", lambda name: torch.device(device))
    described = new_results(settings, SMALL, few, CPU, run_count=2)["environment"]
    calls = [delayed(os.getpid)(), delayed(torch.get_num_threads)()]
    assert list(side_by_side(calls, settings)) == [os.getpid(), described["threads"]]
    assert described["runs_at_once"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (delayed(load_checkpoint)("missing.pt"), "^missing.pt: .* main.py$"),
        (delayed(os._exit)(9), "^a process .* --resume .*$"),
    ],
    ids=["refused", "ended"],
)
def test_failure_in_a_process_is_one_line_and_the_other_runs_are_not_waited_for(machine, call, message):
    machine(2)
    with pytest.raises(InputError, match=message):
        list(side_by_side([call, delayed(time.sleep)(600)], APART))


LONG = """
import sys, types
sys.modules["gmm_entropy"] = types.SimpleNamespace(run_problem_1=lambda *_: {})
import main
main.main(["--offline", "--architectures", "mlp", "--epochs", "10000", "--data-root", *sys.argv[1:]])
"""


@pytest.mark.skipif(os.name != "posix", reason="its signals are POSIX's")
def test_interrupt_ends_the_command_and_all_its_processes_with_one_line(foreign_data, tmp_path):
    """As Ctrl-C in a terminal, which reaches the whole group; standard output is open until its last process ends."""
    places = [foreign_data, "--figures", tmp_path / "figures", "--checkpoints", tmp_path / "checkpoints"]
    said = tmp_path / "said"
    with said.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", LONG, *places],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    while not all(run in said.read_text() for run in ("mlp_z2:", "mlp_z16:")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said.read_text()
    last = said.read_text().splitlines()[-1]
    assert last == "main.py: interrupted; finished: Problem 1. The same command with --resume goes on."
