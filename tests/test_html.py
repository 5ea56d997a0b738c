"""The pages that open from a folder: REPORT.html and figures/index.html show what their Markdown does; the plane."""

import html
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
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
from evidence.plane import DIGITS, DIGITS_IN_A_ROW, write_plane
from mnist import evenly_spaced
from tsne import LIMIT

ROOT = Path(__file__).parent.parent
VOID = {"meta", "img", "br", "hr", "input", "link", "path", "circle"}
PAGES = {"REPORT.html": "REPORT.md", "figures/index.html": "figures/README.md"}
RESULTS = {"REPORT.html": "figures/evidence/results.json", "figures/index.html": "figures/results.json"}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def runs_of(name):
    return json.loads(read(RESULTS[name]))["runs"]


class Elements(HTMLParser):
    """The elements of a page, [(name, attributes)], each of which must be closed where HTML asks for it."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def all(self, name, attribute):
        return [attributes.get(attribute) for tag, attributes in self.found if tag == name]


@pytest.fixture(params=PAGES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def elements(name):
    return Elements(read(name))


def test_committed_page_is_its_markdown():
    runs = runs_of("REPORT.html")
    assert read("REPORT.html") == report_html(read("REPORT.md"), runs), "run: python -m evidence.pages"
    assert read("figures/index.html") == report.html_page(read("figures/README.md"))


def test_every_picture_of_the_markdown_and_of_2_4_is_there_and_has_words(name, elements):
    pictures = [picture for picture in elements.all("img", "src") if picture]  # but for the frame of large ones
    assert all((ROOT / name).parent.joinpath(picture).is_file() for picture in pictures)
    assert set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", read(PAGES[name]))) <= set(pictures)
    stages = {picture for picture in pictures if re.search(r"/(begin|middle|end)/", picture)}
    assert len(stages) == 12 * len(runs_of(name))
    assert set(pictures) <= set(elements.all("a", "href"))
    assert all(
        text for text, picture in zip(elements.all("img", "alt"), elements.all("img", "src"), strict=True) if picture
    )


def test_every_formula_is_mathml_and_none_is_left_as_source(name, elements):
    text = read(PAGES[name])
    blocks = re.findall(r"^```math$.*?^```$", text, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"\$[^$]+\$", re.sub(r"^```.*?^```$|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE))
    formulas = re.findall(r"<math .*?</math>", read(name), flags=re.DOTALL)
    assert len(formulas) == len(blocks) + len(inline)
    assert elements.all("math", "display").count("block") == len(blocks)
    words = " ".join("".join(ElementTree.fromstring(formula).itertext()) for formula in formulas)
    assert not re.search(r"\\|\$", words + re.sub(r"<(script|math|code).*?</\1>", "", read(name), flags=re.DOTALL))


def test_page_names_no_other_host_and_its_links_lead_somewhere(name, elements):
    assert "//" not in re.sub(r"^// .*$", "", read(name), flags=re.MULTILINE)
    for link in elements.all("a", "href"):
        path, _, anchor = link.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), link
        assert not anchor or file.suffix != ".html" or f'id="{anchor}"' in file.read_text(encoding="utf-8"), link


def test_headings_are_in_order_and_in_the_contents(name, elements):
    headings = [(int(tag[1]), found["id"]) for tag, found in elements.found if re.fullmatch(r"h\d", tag)]
    levels = [level for level, _ in headings]
    assert levels[0] == 1
    assert all(1 < level <= before + 1 for before, level in pairwise(levels))
    assert {f"#{anchor}" for _, anchor in headings[1:]} <= set(elements.all("a", "href"))
    assert elements.all("html", "lang") == ["en"]


def test_caption_stays_with_its_figure_and_dollars_that_are_no_formula_stay():
    body = report.html_page("# A\n\n![b < c](d.png)\n\n*Figure 1. $x$* and\nmore.\n\n![](e.png)\n\n$5 or 6$7, `$y$`")
    figure = re.search(r"<figure>(.*?)</figure>", body, flags=re.DOTALL)[1]
    assert figure.startswith('<a href="d.png"><img src="d.png" alt="b &lt; c"')
    assert "<math" in figure
    assert figure.endswith("and\nmore.</figcaption>")
    assert "<p>$5 or 6$7, <code>$y$</code></p>" in body


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
    np.testing.assert_allclose(second_row, images[DIGITS_IN_A_ROW, 0], atol=0.51 / 15)


def picture(text):
    return np.asarray(Image.open(BytesIO(b64decode(text))).convert("L")) / 255


def test_committed_plane_is_one_small_file():
    text = read("figures/evidence/plane.html")
    found = Elements(text)
    assert len(text) <= 1_500_000
    assert found.all("img", "src") + found.all("script", "src") + found.all("link", "href") == [None]
    assert "//" not in re.sub(r"[\w+/=]{1000,}| // .*$", "", text, flags=re.MULTILINE)
    assert text.count('class="plane"') == 3
