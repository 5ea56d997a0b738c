"""The gallery shows the numbers of figures/results.json, whichever run of main.py wrote them last."""

import json
from pathlib import Path

import pytest

import report

FIGURES = Path(__file__).parent.parent / "figures"


@pytest.fixture(scope="module")
def results():
    return json.loads((FIGURES / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gallery():
    return (FIGURES / "README.md").read_text(encoding="utf-8")


def test_gallery_is_that_of_the_results(results, gallery):
    assert gallery == report.gallery(results)


@pytest.mark.parametrize("place", ["test", "tsne"])
def test_a_changed_number_of_one_run_changes_the_gallery(results, gallery, place):
    name, run = next(iter(results["runs"].items()))
    end = run["stages"]["end"]
    other = json.loads(json.dumps(end[place]), parse_float=lambda digits: 1.5 * float(digits))
    changed = {**run, "stages": {**run["stages"], "end": {**end, place: other}}}
    assert report.gallery({**results, "runs": {**results["runs"], name: changed}}) != gallery


def test_gallery_of_other_data_or_of_a_trial_says_so(results):
    trial = report.gallery({**results, "quick": True, "dataset": {**results["dataset"], "name": "SOME DIGITS"}})
    assert "Data: SOME DIGITS" in trial
    assert "A trial run" in trial
    assert "A trial run" not in report.gallery({**results, "quick": False})
