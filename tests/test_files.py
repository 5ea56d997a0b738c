"""Files: each is there whole or as it was before, whatever ends the writing, and what holds something else is named."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from files import LOCK, InputError, read_json, whole_file, write_json, write_text, writing_alone_in

ROOT = Path(__file__).parent.parent


def contents(folder):
    """Every file and folder below `folder` but locks, a file with its bytes."""
    paths = [path for path in folder.rglob("*") if path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def run_python(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, env=os.environ | environment, timeout=60
    )


# ---- Whole or not at all


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("place", ["a", "one/two/three/a"])
def test_earlier_file_is_there_until_the_new_one_is_whole_and_missing_folders_are_made(tmp_path, kind, place):
    path = tmp_path / place
    write_text(kind(path), "earlier")
    with whole_file(kind(path)) as temporary:
        assert temporary.parent == path.parent  # within a folder a file is renamed in one step, between disks it is not
        temporary.write_text("half")
        assert path.read_text() == "earlier"
        temporary.write_text("whole")
    assert [content for content in contents(tmp_path).values() if content is not None] == [b"whole"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    def fail(temporary):
        temporary.write_text("half a fi")
        raise error

    write_text(tmp_path / "a", "earlier")
    with pytest.raises(error), whole_file(tmp_path / "a") as temporary:
        fail(temporary)
    assert contents(tmp_path) == {"a": b"earlier"}


def test_killed_write_leaves_the_earlier_file_and_the_next_write_takes_its_leftover_away(tmp_path):
    write_text(tmp_path / "a", "earlier")
    program = """if True:
        import os, sys
        from files import whole_file
        with whole_file(sys.argv[1]) as temporary:
            temporary.write_text("half a fi")
            os._exit(9)  # as abrupt as a kill
    """
    assert run_python(program, tmp_path / "a").returncode == 9
    assert (tmp_path / "a").read_text() == "earlier"
    assert len(contents(tmp_path)) == 2
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
    with pytest.raises(OSError, match=reason) as raised, whole_file(tmp_path / "a"):
        raise error
    assert (raised.value.errno, raised.value.strerror) == (number, reason)
    assert raised.value.filename == str(tmp_path / "a")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("place", ["folder", "file/a", "file/below/a"])
def test_folder_and_file_in_each_others_place_stay_and_are_named(tmp_path, place):
    write_text(tmp_path / "file", "mine")
    write_text(tmp_path / "folder" / "a", "mine")
    before = contents(tmp_path)
    with pytest.raises(OSError, match=r"directory|exists") as raised:
        write_text(tmp_path / place, "text")
    assert raised.value.filename in {str(tmp_path / name) for name in ("folder", "file", "file/below")}
    assert contents(tmp_path) == before


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_path_without_a_file_name_is_refused(path):
    with pytest.raises(InputError, match="found a folder, expected the name of a file"):
        write_text(path, "text")


# ---- Folders


def test_folder_is_for_one_writer_at_a_time_and_named_once_though_given_twice(tmp_path):
    write_text(tmp_path / "a" / "mine", "mine")
    with writing_alone_in(tmp_path / "a", str(tmp_path / "b" / "c"), tmp_path / "." / "a"):
        for folder in ("a", "b/c"):
            with pytest.raises(InputError, match=f"{folder}: found another run writing to it"):
                writing_alone_in(tmp_path / "free", tmp_path / folder).__enter__()
        with writing_alone_in(tmp_path / "free"):
            pass
    assert contents(tmp_path) == {"a": None, "a/mine": b"mine", "b": None, "b/c": None, "free": None}


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "/proc/self/fdinfo"])
def test_folder_that_cannot_be_written_to_is_named_in_one_line(tmp_path, place):
    folder = tmp_path / place
    if not folder.is_relative_to(tmp_path) and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    (tmp_path / "file").write_text("mine")
    line = rf"^{re.escape(str(folder))}: (?!None).+, expected a folder that can be written to$"
    with pytest.raises(InputError, match=line), writing_alone_in(tmp_path / "good", folder):
        pass
    assert contents(tmp_path) == {"file": b"mine", "good": None}


# ---- Text and JSON


def test_text_is_utf_8_whatever_the_locale_says(tmp_path):
    text = "σ = 0.1, −log p(x) → ∞\n"
    program = f"import sys; from files import write_text; write_text(sys.argv[1], {text!a})"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run_python(program, tmp_path / "a", **locale).returncode == 0
    assert (tmp_path / "a").read_bytes() == text.encode("utf-8")


def test_json_gives_back_what_was_written(tmp_path):
    values = {"σ": 0.1, "many": [math.pi, -2, 10**20, 1e-300], "inner": {"": 'a "quote"\n', "b": [None, True]}}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_number_that_json_has_not_is_refused_and_the_earlier_file_stays(tmp_path, number):
    write_text(tmp_path / "a", "earlier")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"runs": [{"elbo": number}]})
    assert contents(tmp_path) == {"a": b"earlier"}


@pytest.mark.parametrize(
    "content",
    [b"", b'{"elbo": 1', b'{"elbo": 1} and more', b"[1]", b"\x89PNG\r\n\x1a\n\xff", json.dumps({}).encode("utf-16")],
    ids=["nothing", "half a file", "more", "a list", "a figure", "another encoding"],
)
def test_file_that_holds_something_else_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_json(tmp_path / "a.json")
    assert str(raised.value) == f"{tmp_path / 'a.json'}: found something else, expected JSON as written by main.py"
