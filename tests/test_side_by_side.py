"""Runs in processes of their own: what comes back from them, and that they end with the command, whatever ends it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from joblib import delayed
from threadpoolctl import threadpool_limits

import train
from config import Settings, TrainConfig
from files import InputError
from train import Run, new_model, runs_at_once, side_by_side

ROOT = Path(__file__).parent.parent
CPU = Settings(device="cpu")
ENDLESS = """
import gmm_entropy, main
gmm_entropy.run_problem_1 = lambda *_: {}
main.main()
"""


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Two at once on any machine."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def losses(images, seed):
    config = TrainConfig(epochs=2, batch_size=16, seed=seed)
    return train.train(new_model(Run("mlp", 2, config)), images, config)["loss"]


def late(seconds, value):
    time.sleep(seconds)
    return value


def refuse(name):
    raise InputError(f"{name}: found nothing")


def place():
    return os.getpid(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)


def test_results_come_in_the_order_of_the_calls():
    calls = [delayed(late)(seconds, seconds) for seconds in (0.3, 0.0, 0.1)]
    assert list(side_by_side(calls, CPU)) == [0.3, 0.0, 0.1]


@pytest.mark.parametrize("count", [1, 3])
def test_each_run_has_one_thread_of_a_process_that_leaves_interrupts_to_this_one(count):
    handler = signal.getsignal(signal.SIGINT)
    for process, threads, ours in side_by_side([delayed(place)()] * count, CPU):
        assert process != os.getpid()
        assert (threads, ours) == (1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is handler


def test_trial_runs_in_this_process():
    trial = Settings(device="cpu", quick=True)
    assert (runs_at_once(CPU), runs_at_once(trial)) == (2, 1)
    assert {process for process, *_ in side_by_side([delayed(place)()] * 2, trial)} == {os.getpid()}


def test_training_in_a_process_is_that_with_one_thread_here(digits):
    images = digits.repeat(5, 1, 1, 1)
    there = list(side_by_side([delayed(losses)(images, seed) for seed in (0, 1)], CPU))
    with threadpool_limits(1):
        assert there == [losses(images, seed) for seed in (0, 1)]
    assert there[0] != there[1]


def test_error_in_a_process_arrives_as_itself():
    with pytest.raises(InputError, match=r"^mlp_z2: found nothing$"):
        list(side_by_side([delayed(late)(0, 0), delayed(refuse)("mlp_z2"), delayed(late)(9, 0)], CPU))


@pytest.fixture
def command(foreign_data, tmp_path):
    """A function that starts main.py's two trainings in a group of processes of their own, as a terminal does."""
    started = []

    def command(*arguments):
        data = ("--offline", "--data-root", str(foreign_data), "--architectures", "mlp")
        places = ("--figures", str(tmp_path / "figures"), "--checkpoints", str(tmp_path / "checkpoints"))
        said = tmp_path / "said"
        with said.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", ENDLESS, *data, *places, *arguments],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "2"},
                stdout=subprocess.DEVNULL,
                stderr=stream,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        started.append(process)
        return process, said

    yield command
    for process in started:
        for one in group(process):
            os.kill(one, signal.SIGKILL)
        process.wait()


def group(process):
    """The processes of a group that are still at work."""
    found = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()[1:]]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == process.pid and not state.startswith("Z")]


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def lines(said):
    """What was said besides progress."""
    return [line for line in said.read_text().splitlines() if line.strip("\x1b[A ") and "it/s" not in line]


def test_diverging_run_in_a_process_is_one_clear_line(command):
    process, said = command("--epochs", "9", "--learning-rate", "1e30")
    assert process.wait(60) == 2
    (message,) = re.findall("main.py: error: .*", said.read_text())  # behind a bar, if another run was at work
    assert message.startswith("main.py: error: mlp_z")
    assert message.endswith("lower the learning rate")
    assert "Traceback" not in said.read_text()
    assert wait_until(lambda: not group(process), 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_command_and_an_interrupt_is_one_line(command, number):
    process, said = command("--epochs", "100000")
    assert wait_until(lambda: "ELBO" in said.read_text(), 60), said.read_text()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
        assert process.wait(20) == 130
        (line,) = [line for line in lines(said) if "%|" not in line]
        assert line.startswith("main.py: interrupted; ")
    else:
        process.send_signal(number)
        assert process.wait(20) == -number
    assert wait_until(lambda: not group(process), 10)
    assert "Traceback" not in said.read_text()
