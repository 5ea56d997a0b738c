"""The benchmark: its arithmetic, and that it reports what is missing instead of hiding it."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from evidence import benchmark
from evidence.benchmark import at_least, at_most, faster, main, take_turns, what_pythae_lacks


def test_contenders_take_turns_and_the_first_turn_is_not_counted():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert take_turns(2, contenders) == {"a": [3, 5], "b": [4, 6]}
    assert calls == list("ababab")


def test_ratios_are_those_within_a_turn():
    row = faster("what", ours=[1.0, 2.0, 4.0], other=[3.0, 8.0, 4.0], goal=3, show=str)
    assert row == ["what", "2.0", "4.0", "3.00× (1.00 – 4.00)", "≥ 3×", "yes"]
    assert at_least([1.0, 2.0, 2.9], goal=3)[-1] == "no"
    assert [at_most("what", value, 3, "s")[-1] for value in (2.9, 3.1)] == ["yes", "no"]


def run(tmp_path, *names):
    """Run a trial of these measurements without a data set on disk; the rows of its output's tables, as lists."""
    output = tmp_path / "output.md"
    main(["--quick", "--data-root", str(tmp_path), "--only", *names, "--output", str(output)])
    lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("| ---")]


def test_entropies_that_are_compared_agree(tmp_path, monkeypatch):
    # Threads instead of processes, each of which would import for seconds.
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    header, *rows = run(tmp_path, "entropy")
    assert len(rows) == 4
    for row in rows:
        assert len(row) == len(header)
        ours, theirs = map(float, re.search(r"([\d.]+) and ([\d.]+) nats", row[0]).groups())
        assert ours == pytest.approx(theirs, abs=4 * 2**0.5 * 0.92 / 1e5**0.5)  # of 100,000 samples, the fewest


def test_what_is_missing_is_reported(tmp_path, monkeypatch):
    rows = run(tmp_path, "tutorial")[1:]
    assert [row[2] for row in rows] == ["no MNIST on disk"] * 2
    assert all(row[-1] == "–" for row in rows)
    monkeypatch.delitem(sys.modules, "pythae", raising=False)
    finder = SimpleNamespace(find_spec=lambda *_: None)  # finds no module
    monkeypatch.setattr(sys, "meta_path", [finder])
    assert what_pythae_lacks() == "not installed"
