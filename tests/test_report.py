"""The report quotes only measured numbers: README.md and the gallery against results.json."""

import copy
import json
import re
from pathlib import Path

import pytest

from report import EVIDENCE_TABLES, TABLES, fill_benchmark, fill_tables, gallery

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results():
    results = json.loads((ROOT / "figures" / "results.json").read_text(encoding="utf-8"))
    if "evidence" not in results:
        pytest.skip("figures/ was made anew by a run without --evidence; README.md quotes one with it")
    return results


def test_readme_tables_are_those_of_the_results(results):
    assert fill_tables(README, results) == README, "run: python report.py"


def test_benchmark_in_the_readme_is_the_last_output():
    output = (ROOT / "figures" / "benchmark.md").read_text(encoding="utf-8")
    assert output in README, "run: python report.py"
    assert fill_benchmark(README, output) == README
    assert "another output" in fill_benchmark(README, "another output\n")


def test_gallery_is_that_of_the_results(results):
    assert (ROOT / "figures" / "README.md").read_text(encoding="utf-8") == gallery(results)


def test_every_table_stands_in_the_readme():
    assert set(re.findall(r"<!-- table: (\w+) -->", README)) == {*TABLES, *EVIDENCE_TABLES}


@pytest.mark.parametrize("name", [*TABLES, *EVIDENCE_TABLES])
def test_a_changed_number_changes_its_table(results, name):
    table = (TABLES | EVIDENCE_TABLES)[name]
    changed = scaled(copy.deepcopy(results), 1.5)
    assert table(changed) != table(results)


def scaled(value, factor):
    """Multiply every measured number by a factor."""
    if isinstance(value, dict):
        return {key: scaled(item, factor) for key, item in value.items()}
    if isinstance(value, list):
        return [scaled(item, factor) for item in value]
    return value * factor if isinstance(value, float) else value


def test_numbers_that_the_prose_quotes_are_those_of_the_results(results):
    """Such a number is followed by a comment that names its place in results.json."""
    quoted = re.findall(r"([-+]?[\d,]*\.?\d+)<!-- ([\w.]+) -->", README)
    assert quoted, "the prose quotes no number"
    for text, path in quoted:
        digits = len(text.partition(".")[2])
        assert float(text.replace(",", "")) == pytest.approx(round(lookup(results, path), digits)), path


def lookup(results, path):
    for key in path.split("."):
        results = results[key]
    return results


def test_every_link_of_readme_and_gallery_leads_to_a_file():
    for page in (ROOT / "README.md", ROOT / "figures" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
