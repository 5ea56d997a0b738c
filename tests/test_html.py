"""The pages that open from a folder: REPORT.html and figures/index.html show what their Markdown does; the plane."""

import html
import json
import re
from base64 import b64decode
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import make
from PIL import Image

import report
from evidence.pages import report_html
from evidence.plane import DIGITS, IN_A_ROW, write_plane
from mnist import evenly_spaced
from tsne import LIMIT

ROOT = Path(__file__).parent.parent
PAGES = {  # their Markdown and their numbers
    "REPORT.html": ("REPORT.md", "figures/evidence/results.json"),
    "figures/index.html": ("figures/README.md", "figures/results.json"),
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def runs_of(name):
    return json.loads(read(PAGES[name][1]))["runs"]


def tree_of(text):
    """The elements of a page, which is well-formed XML but for its script."""
    return ElementTree.fromstring(re.sub(r"(?s)<script>.*?</script>", "", text))


@pytest.fixture(params=PAGES)
def name(request):
    return request.param


@pytest.fixture
def page(name):
    return tree_of(read(name))


def test_committed_page_is_its_markdown(name):
    markdown = read(PAGES[name][0])
    made = report_html(markdown, runs_of(name)) if name == "REPORT.html" else report.html_page(markdown)
    formula = r"(?s)<math.*?</math>"  # marked up otherwise by other versions of latex2mathml
    assert re.sub(formula, "", read(name)) == re.sub(formula, "", made), "run: python -m evidence.pages"


def test_every_picture_of_the_markdown_and_of_2_4_is_there_and_has_words(name, page):
    pictures = {picture.get("src"): picture.get("alt") for picture in page.find("body/main").iter("img")}
    assert all((ROOT / name).parent.joinpath(picture).is_file() for picture in pictures)
    assert set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", read(PAGES[name][0]))) <= set(pictures)
    assert sum(bool(re.search(r"/(begin|middle|end)/", picture)) for picture in pictures) == 12 * len(runs_of(name))
    assert set(pictures) <= {link.get("href") for link in page.iter("a")}
    assert all(pictures.values())


def test_every_formula_is_mathml_and_none_is_left_as_source(name, page):
    text = read(PAGES[name][0])
    blocks = re.findall(r"(?sm)^```math$.*?^```$", text)
    inline = re.findall(r"\$[^$]+\$", re.sub(r"(?sm)^```.*?^```$|`[^`]*`", "", text))
    displays = [formula.get("display") for formula in page.iter("math")]
    assert (displays.count("block"), displays.count("inline")) == (len(blocks), len(inline))
    assert not re.search(r"[\\$]", re.sub(r"(?s)<(script|code).*?</\1>", "", read(name)))


def test_page_names_no_other_host_and_its_links_lead_somewhere(name, page):
    assert "//" not in re.sub(r"(?m)^// .*$", "", read(name))
    for link in page.iter("a"):
        path, _, anchor = link.get("href").partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), path
        assert not anchor or file.suffix != ".html" or f'id="{anchor}"' in file.read_text(encoding="utf-8"), anchor


def test_headings_are_in_order_and_in_the_contents(page):
    headings = [(element.tag, element.get("id")) for element in page.iter() if re.fullmatch(r"h\d", element.tag)]
    levels = [int(tag[1]) for tag, _ in headings]
    assert levels[0] == 1
    assert all(1 < level <= before + 1 for before, level in pairwise(levels))
    assert [link.get("href") for link in page.find("body/main/nav").iter("a")] == [f"#{at}" for _, at in headings[1:]]
    assert page.get("lang") == "en"


def test_caption_stays_with_its_figure_and_dollars_that_are_no_formula_stay():
    text = report.html_page("# A\n\n![b < c](d.png)\n\n*Figure 1. $x$* and\nmore.\n\n![](e.png)\n\n$5 or 6$7, `$y$`")
    figure = tree_of(text).find("body/main/figure")
    assert [figure.find("a").get("href"), figure.find("a/img").get("alt")] == ["d.png", "b < c"]
    assert "".join(figure.find("figcaption").itertext()) == "Figure 1. x and\nmore."
    assert "<p>$5 or 6$7, <code>$y$</code></p>" in text


def test_name_of_the_users_is_plain_text():
    results = json.loads(read("figures/results.json"))
    name = r"$a^$ of $\b$ <i> & *c* [d](e)"
    shown = report.html_page(report.gallery({**results, "dataset": {**results["dataset"], "name": name}}))
    assert f"Data: {html.escape(name)} (" in shown


# ---- The plane of codes


def test_plane_shows_what_models_decode_and_encode(tmp_path, dataset):
    models = {"begin": make(seed=1), "end": make(seed=2)}
    for name in "ab":
        write_plane(models, dataset, tmp_path / name)
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert text == (tmp_path / "b").read_text(encoding="utf-8")
    images = evenly_spaced(dataset.test_images, DIGITS)
    for model, stage in zip(models.values(), json.loads(re.search(r"stages = (\[.*\]);", text)[1]), strict=True):
        with torch.no_grad():
            upper_right, codes = model.decode(torch.tensor([[LIMIT, LIMIT]]))[0, 0], model.encode(images)[0]
        np.testing.assert_allclose(picture(stage["plane"])[:28, -28:], upper_right, atol=0.51 / 15)
        np.testing.assert_allclose(np.reshape(stage["codes"], (-1, 2)) / 100, codes, atol=0.0051)
    second_row = picture(re.search(r'digits = picture\("(.*?)"\)', text)[1])[28:56, :28]
    np.testing.assert_allclose(second_row, images[IN_A_ROW, 0], atol=0.51 / 15)


def picture(text):
    return np.asarray(Image.open(BytesIO(b64decode(text))).convert("L")) / 255


def test_committed_plane_is_one_small_file():
    text = read("figures/evidence/plane.html")
    assert len(text) <= 1_500_000
    assert not {"img", "link", "script"} & {element.tag for element in tree_of(text).iter()}
    assert "//" not in re.sub(r"[\w+/=]{1000,}| // .*$", "", text, flags=re.MULTILINE)
    assert text.count('class="plane"') == 3
