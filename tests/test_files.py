"""Files are whole or as they were, printing ends no run, and no other page is written over."""

import math
import os
import sys

import pytest
from jinja2 import UndefinedError

import report
from files import InputError, say, whole_file, write_text


def test_text_is_written_whole_as_utf_8_over_what_a_killed_run_has_left(tmp_path):
    path = tmp_path / "new" / "folder" / "a"
    with whole_file(path) as temporary:
        temporary.write_text("earlier")
    earlier = path.stat().st_ino
    temporary.write_text("half")  # as a killed run leaves it
    write_text(path, "σ = 0.1")
    assert path.stat().st_ino != earlier  # another file has taken the name in one step
    assert path.read_bytes() == "σ = 0.1".encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt("no"), OSError(28, "no")])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    write_text(path, "earlier")
    with pytest.raises(type(error), match="no"), whole_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        assert path.read_text() == "earlier"
        raise error
    assert path.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_who_leaves_ends_no_work_and_every_terminal_can_read(monkeypatch, capsys):
    say("σ")
    assert capsys.readouterr().out == "\\u03c3\n"
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        say("to nobody")
        say("to nobody")


def test_figures_go_to_a_new_folder_or_over_an_earlier_gallery_and_over_no_other_page(tmp_path):
    report.check_folder(tmp_path / "new")
    for name, text in (("results.json", "{}"), ("README.md", "# Mine")):
        write_text(tmp_path / name, text)
        with pytest.raises(InputError, match=f"^{tmp_path} has a {name}"):
            report.check_folder(tmp_path)
    write_text(tmp_path / "README.md", report.FIRST_LINE)
    report.check_folder(tmp_path)


def test_page_shows_real_minus_signs_and_refuses_a_missing_value(tmp_path):
    write_text(tmp_path / "page", '{{ elbo | n(",.1f") }}{{ unit }}')
    assert report.page("page", {"elbo": -1234.56, "unit": " nats"}, tmp_path) == "−1,234.6 nats\n"
    with pytest.raises(UndefinedError, match="unit"):
        report.page("page", {"elbo": 0}, tmp_path)


@pytest.mark.parametrize(("results", "error"), [({"elbo": math.nan}, ValueError), ({"elbo": 1.0}, UndefinedError)])
def test_results_that_are_no_number_or_not_all_there_are_not_written(tmp_path, results, error):
    with pytest.raises(error):
        report.write(results, tmp_path)
    assert not list(tmp_path.iterdir())
