"""Files: each is there whole or as it was before, whatever ends the writing, and what holds something else is named."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import files
from files import (
    DOTS_PER_INCH,
    LOCK,
    InputError,
    read_json,
    save_figure,
    whole_file,
    write_json,
    write_text,
    writing_alone_in,
)

ROOT = Path(__file__).parent.parent
VALUES = {
    "σ": 0.1,
    "counts": [1, -2, 10**20],
    "nothing": None,
    "yes": True,
    "inner": {"text": 'quoted "ELBO"\n', "": []},
}


def contents(folder):
    """Every file and folder below `folder` but locks, a file with its bytes."""
    paths = [path for path in folder.rglob("*") if path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def enter(*folders):
    """Begin to write to folders, and end at once."""
    with writing_alone_in(*folders):
        pass


def leave_leftover(path):
    """Do to the folder of `path` what a run does that is killed while it writes `path`."""
    with whole_file(path) as temporary:
        temporary.touch()
    path.unlink()
    temporary.write_text("half a fi" * 100)


def run_python(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, env=os.environ | environment, timeout=60
    )


# -------------------------------------------------------------------------------------------------- whole or not at all


def test_earlier_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("earlier")
    with whole_file(path) as temporary:
        assert temporary.parent == tmp_path  # a file can be renamed in one step within a folder, not between disks
        temporary.write_text("half")
        assert path.read_text() == "earlier"
        temporary.write_text("whole")
    assert contents(tmp_path) == {"numbers.txt": b"whole"}


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("place", ["a", "one/a", "one/two/three/a"])
def test_missing_folders_are_made(tmp_path, kind, place):
    for text in ("first", "second"):
        write_text(kind(tmp_path / place), text)
        assert (tmp_path / place).read_text() == text
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1


@pytest.mark.parametrize("written", ["", "half a fi"], ids=["before", "after"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, error, written):
    path = tmp_path / "numbers.json"
    write_json(path, {"earlier": 1})

    def fail():
        with whole_file(path) as temporary:
            if written:
                temporary.write_text(written)
            raise error

    with pytest.raises(error):
        fail()
    assert json.loads(path.read_text()) == {"earlier": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_killed_write_leaves_the_earlier_file_and_a_leftover_that_can_be_removed(tmp_path):
    path = tmp_path / "folder" / "numbers.json"
    write_text(path, "earlier")
    program = """if True:
        import os, signal, sys
        from files import whole_file
        with whole_file(sys.argv[1]) as temporary:
            temporary.write_text("half a fi")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(program, path).returncode == -signal.SIGKILL
    assert path.read_text() == "earlier"
    assert len(list(path.parent.iterdir())) == 2
    enter(tmp_path)
    assert contents(tmp_path) == {"folder": None, "folder/numbers.json": b"earlier"}


def test_next_write_takes_a_killed_ones_leftover_away(tmp_path):
    leave_leftover(tmp_path / "a")
    write_text(tmp_path / "a", "whole")
    assert contents(tmp_path) == {"a": b"whole"}


@pytest.mark.parametrize(
    ("error", "number", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, "No space left on device"),
        (OSError("the disk has gone"), None, "the disk has gone"),
    ],
)
def test_error_of_the_disk_names_the_file_that_was_wanted(tmp_path, error, number, reason):
    def fail():
        with whole_file(tmp_path / "numbers.txt"):
            raise error

    with pytest.raises(OSError, match=reason) as raised:
        fail()
    assert (raised.value.errno, raised.value.strerror) == (number, reason)
    assert raised.value.filename == str(tmp_path / "numbers.txt")
    assert contents(tmp_path) == {}


def test_folder_in_place_of_the_file_is_an_os_error_that_names_it(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    with pytest.raises(OSError, match="directory") as raised:
        write_text(tmp_path / "taken", "text")
    assert raised.value.filename == str(tmp_path / "taken")
    assert contents(tmp_path) == {"taken": None, "taken/mine": b"mine"}


@pytest.mark.parametrize("below", ["figure.png", "folder/figure.png"])
def test_file_where_a_folder_is_needed_is_an_os_error_that_names_it(tmp_path, below):
    (tmp_path / "file").write_text("earlier")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / below, "text")
    assert contents(tmp_path) == {"file": b"earlier"}


# -------------------------------------------------------------------------------------------------------------- folders


def test_only_leftovers_are_removed_from_a_folder_and_those_below_it(tmp_path):
    for name in ("figure.png", "below/figure.png", "below/deeper/.hidden"):
        leave_leftover(tmp_path / name)
    kept = {"figure.png", "a.part", ".part", "below/.figure.png.part", "below/deeper/whole-or-not"}
    for name in kept:
        write_text(tmp_path / name, "mine")
    leave_leftover(tmp_path / "another.png")
    enter(str(tmp_path))
    assert {name for name, content in contents(tmp_path).items() if content is not None} == kept


def test_leftover_that_is_gone_before_it_can_be_removed_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_leftovers", lambda folder: [folder / "gone"])
    enter(tmp_path)


def test_folders_are_made_or_keep_what_is_in_them_but_for_leftovers(tmp_path):
    write_text(tmp_path / "used" / "below" / "a.png", "mine")
    leave_leftover(tmp_path / "used" / "below" / "b.png")
    enter(tmp_path / "new" / "one", str(tmp_path / "used"))
    folders = dict.fromkeys(("new", "new/one", "used", "used/below"))
    assert contents(tmp_path) == {**folders, "used/below/a.png": b"mine"}


def test_folder_is_for_one_writer_at_a_time_and_named_once_though_given_twice(tmp_path):
    with writing_alone_in(tmp_path / "a", tmp_path / "b", tmp_path / "." / "a"):
        for folder in ("a", "b"):
            with pytest.raises(InputError, match=f"{folder}: found another run writing to it"):
                enter(tmp_path / "free", tmp_path / folder)
        enter(tmp_path / "free")
    enter(tmp_path / "a", tmp_path / "b")


def test_folder_that_is_taken_is_refused_at_once(tmp_path):
    with writing_alone_in(tmp_path):
        started = time.monotonic()
        with pytest.raises(InputError):
            enter(tmp_path)
    assert time.monotonic() - started < 0.9  # seconds


def test_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), writing_alone_in(tmp_path):
        raise KeyError
    enter(tmp_path)


def test_leftovers_of_a_folder_below_that_has_a_writer_of_its_own_are_left_to_it(tmp_path):
    enter(tmp_path / "evidence")
    leave_leftover(tmp_path / "evidence" / "a.png")
    leave_leftover(tmp_path / "below" / "a.png")
    enter(tmp_path)
    assert [path.name for path in (tmp_path / "below").iterdir()] == []
    assert len(contents(tmp_path / "evidence")) == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "/proc/self/fdinfo"])
def test_folder_that_cannot_be_written_to_is_named_in_one_line(tmp_path, place):
    folder = tmp_path / place
    if not folder.is_relative_to(tmp_path) and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError) as raised:
        enter(tmp_path / "good", folder)
    message = str(raised.value)
    assert message.startswith(f"{folder}: ")
    assert message.endswith(", expected a folder that can be written to")
    assert "None" not in message
    assert "\n" not in message
    assert contents(tmp_path) == {"file": b"mine", "good": None}


# -------------------------------------------------------------------------------------------------------- text and JSON


def test_text_is_utf_8_whatever_the_locale_says(tmp_path):
    text = "σ = 0.1, −log p(x) → ∞\n"
    program = f"import sys; from files import write_text; write_text(sys.argv[1], {text!a})"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_python(program, tmp_path / "a", **locale).returncode == 0
    assert (tmp_path / "a").read_bytes() == text.encode("utf-8")


@pytest.mark.parametrize("values", [VALUES, [], 1.5, math.pi, 1e-300, "σ", None])
def test_json_gives_back_what_was_written(tmp_path, values):
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values


def test_json_is_for_people_and_line_tools_too(tmp_path):
    """Each value has a line of its own, each level is indented by two more, and the last line ends."""
    write_json(tmp_path / "a.json", {"a": 1, "b": {"c": [2, 3]}})
    text = (tmp_path / "a.json").read_text()
    indents = [len(line) - len(line.lstrip()) for line in text.splitlines()]
    assert indents == [0, 2, 2, 4, 6, 6, 4, 2, 0]
    assert {abs(after - before) for before, after in pairwise(indents)} == {0, 2}
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_number_that_json_has_not_is_refused_and_the_earlier_file_stays(tmp_path, number):
    write_json(tmp_path / "a.json", VALUES)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"runs": [{"elbo": number}]})
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    [b"", b'{"elbo": 1', b'{"elbo": 1} and more', b"\x89PNG\r\n\x1a\n\xff", json.dumps("x").encode("utf-16")],
    ids=["nothing", "half a file", "more", "a figure", "another encoding"],
)
def test_file_that_holds_something_other_than_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_json(tmp_path / "a.json")
    assert str(raised.value) == f"{tmp_path / 'a.json'}: found something else, expected JSON as written by main.py"


def test_missing_json_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")


# -------------------------------------------------------------------------------------------------------------- figures


def drawing(title=""):
    figure = Figure(figsize=(4, 3))
    figure.subplots().imshow(np.eye(5))
    figure.suptitle(title)
    return figure


@pytest.mark.parametrize("name", ["figure.png", "figure", "figure.jpg"])
def test_figure_is_a_png_of_its_size_in_inches(tmp_path, name):
    save_figure(drawing(), tmp_path / "new" / name)
    with Image.open(tmp_path / "new" / name) as image:
        assert image.format == "PNG"
        assert image.size == (4 * DOTS_PER_INCH, 3 * DOTS_PER_INCH)
        assert image.info["dpi"] == pytest.approx((DOTS_PER_INCH, DOTS_PER_INCH), rel=1e-3)
        assert np.asarray(image.convert("L")).std() > 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize(("colors", "tolerance"), [("gray", 0), ("hsv", 24)])
def test_figure_in_few_colours_shows_what_it_showed_in_all_of_them(tmp_path, colors, tolerance):
    """In two thirds of the bytes; greys are exact."""
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    dots = np.random.default_rng(0).normal(size=(2, 5000))
    axes.scatter(*dots, c=dots[0], cmap=colors, alpha=0.5)
    axes.plot([0, 3], [0, 3], ".", color="gray" if colors == "gray" else "lime", markersize=2)  # a colour few have
    save_figure(figure, tmp_path / "few.png")
    save_figure(figure, tmp_path / "again.png")
    figure.savefig(tmp_path / "all.png", dpi=DOTS_PER_INCH)
    few, all_of_them = (np.asarray(Image.open(tmp_path / name).convert("RGB"), int) for name in ("few.png", "all.png"))
    assert abs(few - all_of_them).max() <= tolerance
    assert (tmp_path / "few.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "few.png").stat().st_size < 2 / 3 * (tmp_path / "all.png").stat().st_size


def test_figure_that_cannot_be_drawn_leaves_the_earlier_file(tmp_path):
    (tmp_path / "figure.png").write_text("earlier")
    with pytest.raises(ValueError, match="unknown"):
        save_figure(drawing("$\\unknown$"), tmp_path / "figure.png")  # fails while the file is being written
    assert contents(tmp_path) == {"figure.png": b"earlier"}
