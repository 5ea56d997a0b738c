"""The pages: what becomes of Markdown in a browser, and the page to touch."""

import json
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from evidence import plane
from evidence.pages import html_page, write_pages
from tsne import LIMIT

ROOT = Path(__file__).parent.parent
PARAGRAPHS = (
    "# Mixtures and *codes*",
    "[Front](README.md#run), [gallery](figures/README.md#a), $5 or 6$7, K = 16, 7.6 ± 2.4, `K = 16`, $\\frac12$:",
    "Next\n```math\n\\log\\frac{a}{b}\n```\n## Numbers",
    "| K | ELBO: conv | ELBO: mlp | KL |\n| :--- | ---: | ---: | ---: |\n| 2 | 212.1 | 204.5 | 9.9 |",
    "| | begin | end |\n| --- | --- | --- |\n| map | ![map, begin](a.png) | ![map, end](b.png) |",
    *("![words](c.png)", "*What $x$ **is**.*", "[![film](d.gif)](REPORT.md)", "*A lead-in.* And *no caption*"),
)


def tree_of(text):
    """The elements of a page, which is well-formed XML but for its script."""
    return ElementTree.fromstring(re.sub(r"(?s)<script>.*?</script>", "", text))


def words(element):
    return "".join(element.itertext()).strip()


@pytest.fixture(scope="module")
def page():
    return tree_of(html_page("\n\n".join(PARAGRAPHS), "Report"))


def test_page_has_title_contents_and_links_that_a_browser_shows(page):
    assert words(page.find("head/title")) == "Report: Mixtures and codes"
    links = {words(link): link.get("href") for link in page.iter("a")}
    assert {"Front": "README.html#run", "gallery": "REPORT.html#appendix"}.items() <= links.items()
    assert (links["README"], links["Numbers"]) == ("README.html", "#" + page.find(".//h2").get("id"))


def test_formulas_are_mathml_and_the_rest_is_text_without_line_breaks_in_equations(page):
    assert [formula.get("display") for formula in page.findall(".//{*}math")] == ["inline", "block", "inline"]
    assert "$5 or 6$7, K\u00a0=\u00a016, 7.6\u00a0±\u00a02.4, K = 16," in words(page)


def test_numbers_are_on_the_right_and_columns_share_a_header(page):
    upper, lower, row = (list(row) for row in page.find(".//table").iter("tr"))
    assert [(words(cell), cell.get("colspan")) for cell in upper] == [("", "1"), ("ELBO", "2"), ("", "1")]
    assert [words(cell) for cell in lower] == ["K", "conv", "mlp", "KL"]
    assert {cell.get("style") for cells in (lower, row) for cell in cells[1:]} == {"text-align:right"}


def test_every_picture_opens_or_leads_on_and_italics_after_it_are_its_caption(page):
    links = {link.find("img").get("src"): link.get("href") for link in page.findall(".//a[img]")}
    assert links == {"a.png": "a.png", "b.png": "b.png", "c.png": "c.png", "d.gif": "REPORT.html"}
    assert [words(caption) for caption in page.iter("figcaption")] == ["What x is.", ""]
    assert words(page.findall(".//p")[-2]) == "A lead-in. And no caption"


def test_report_has_every_figure_of_2_4_once(tmp_path):
    shown = "".join(f"![](figures/conv_z{dim}/{stage}/tsne.png)\n" for dim in (2, 16) for stage in ("begin", "end"))
    for name, text in (("README", "# Read"), ("REPORT", f"# Report\n\n{shown}")):
        (tmp_path / f"{name}.md.j2").write_text(text, encoding="utf-8")
    write_pages({}, tmp_path, tmp_path)
    page = tree_of((tmp_path / "REPORT.html").read_text(encoding="utf-8"))
    pictures = [picture.get("src") for picture in page.findall(".//main//img")]
    assert sorted(pictures) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("figures/*_z*/*/*.png"))


def test_committed_pages_are_made_from_the_results_and_their_links_lead_somewhere(tmp_path):
    write_pages(json.loads((ROOT / "figures/evidence/results.json").read_text(encoding="utf-8")), tmp_path)
    for name in ("README.md", "REPORT.md", "README.html", "REPORT.html"):
        made, kept = ((folder / name).read_text(encoding="utf-8") for folder in (tmp_path, ROOT))
        formula = r"(?s)<math.*?</math>"  # marked up otherwise by other versions of latex2mathml
        assert re.sub(formula, "", kept) == re.sub(formula, "", made), "run: python -m evidence.pages"
        for link in re.findall(r'(?:href|src)="(?!https?:)([^"#]*)', kept):
            assert (ROOT / link).exists(), link
            assert not link.endswith(".md")


def test_page_to_touch_shows_what_its_networks_decode_and_encode(dataset, tmp_path, monkeypatch):
    def decode(z):  # images whose left half is as bright as z_1 is large, and whose right half as z_2 is
        return ((z / LIMIT + 1) / 2).repeat_interleave(14, dim=1).view(-1, 1, 1, 28).expand(-1, 1, 28, 28)

    model = SimpleNamespace(sigma=torch.ones(()), encode=lambda x: (x[:, 0, 14, 13:15], None), decode=decode)
    monkeypatch.setattr(plane, "model_at", lambda checkpoint, stage: model)
    monkeypatch.setattr(plane, "SIDE", 5)
    checkpoint = {"architecture": "conv", "latent_dim": 2, "history": {"stages": {"begin": 46, "end": 4610}}}
    plane.make(checkpoint, dataset, tmp_path)
    text, digits = (tmp_path / "plane.html").read_text(encoding="utf-8"), dataset.test.choose(plane.DIGITS)
    assert [words(heading) for heading in tree_of(text).iter("h2")] == ["beginning iteration 46", "end iteration 4,610"]
    stage = json.loads(re.search(r"stages = (\[.*\]);", text)[1])[0]
    decoded = np.asarray(Image.open(BytesIO(b64decode(stage["plane"]))).convert("L")) / 255
    halves = decoded.reshape(5, 28, 5, 2, 14).mean(axis=(1, 4))  # (rows, columns, halves)
    np.testing.assert_allclose(halves, np.stack(np.meshgrid(np.arange(5), np.arange(5)[::-1]), axis=2) / 4, atol=0.05)
    codes = digits.images[:, 0, 14, 13:15]
    np.testing.assert_allclose(stage["codes"], codes, atol=0.0051)
    np.testing.assert_allclose(stage["medians"]["7"], np.median(codes[digits.labels == 7], axis=0), atol=0.0051)
