"""The pages, by `python -m evidence.pages`: README and REPORT, as Markdown for GitHub and as HTML for a browser.

Their words are in the templates beside this file, and their numbers in figures/evidence/results.json. REPORT.html has
an appendix besides, with the figures of 2.4 that the report leaves out.
"""

import json
import re
from itertools import groupby, product
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from drawing import run_title
from files import write_text
from report import page
from train import STAGES

FOLDER = Path(__file__).resolve().parent
PROJECT = FOLDER.parent
FIGURES = {"latent_traversal": "traversal", "prior_samples": "samples", "tsne": "t-SNE", "ELBO_Curve": "ELBO"}
OPERATORS = {  # which latex2mathml takes for variables or brackets
    "<mi>log</mi>": '<mo lspace="0.17em" rspace="0.17em">log</mo>',
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",
    "<mi>&#x02016;</mi>": '<mo stretchy="false" lspace="0.28em" rspace="0.28em">&#x02016;</mo>',
    "<mo>&#x0007C;</mo>": '<mo stretchy="false">&#x0007C;</mo>',
    '<mo stretchy="false">&#x0007C;</mo>': '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>',
}


def write_pages(results, folder=PROJECT, templates=FOLDER):
    """Fill the templates with results, and write the four pages to `folder`."""
    for name, more in (("README", lambda _: ""), ("REPORT", appendix)):
        markdown = page(f"{name}.md.j2", results, templates)
        write_text(folder / f"{name}.md", markdown)
        write_text(folder / f"{name}.html", html_page(markdown + more(markdown), name.capitalize()))


def appendix(report):
    """Return a table in Markdown for each run: the stage figures that the report leaves out."""
    lines = ["", "## Appendix", ""]
    for network, dim in product(("conv", "mlp"), (2, 16)):
        rows = [f"| | {' | '.join(STAGES.values())} |", "| --- | --- | --- | --- |"]
        for name, words in FIGURES.items():
            paths = {when: f"figures/{network}_z{dim}/{stage}/{name}.png" for stage, when in STAGES.items()}
            alt = f"{words}, {run_title(network, dim)}"
            cells = [f"![{alt}, {when}]({path})" for when, path in paths.items() if path not in report]
            rows += [f"| {words} | {' | '.join(cells)} |"] if cells else []
        lines += [f"### {run_title(network, dim)}", "", *rows, ""] if rows[2:] else []
    return "\n".join(lines)


def html_page(markdown, kind):
    """Return Markdown as a page of HTML that needs no network, with contents, and formulas as MathML.

    The page's title is its kind, such as "Report", and its first heading. A picture that stands alone is a figure, and
    a paragraph in italics after it is its caption. Columns whose headers are "a: b" and "a: c" share a header "a".
    """
    converter = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=4)
    converter.use(dollarmath_plugin, allow_space=False, allow_digits=False, renderer=mathml)
    body = converter.render(re.sub(r"(?ms)^```math$(.*?)^```$", r"\n$$\1$$\n", markdown))
    body = re.sub(r'<a [^>]*><img|<img src="([^"]*)"[^>]*>', _picture_as_link, body)
    caption = r"(?:\n<p><em>((?:(?!</em>|</p>).)*)</em></p>)?"
    figure = r"<figure>\1<figcaption>\2</figcaption></figure>"
    body = re.sub(rf"(?s)<p>(<a [^>]*><img [^>]*></a>)</p>{caption}", figure, body)
    body = re.sub(r"(?s)<thead>.*?</thead>", _two_level_head, body)
    body = body.replace("<table>", '<div class="table" tabindex="0"><table>').replace("</table>", "</table></div>")
    # A browser shows Markdown raw. The gallery's figures are all in the report and its appendix.
    body = re.sub(r'href="figures/README\.md[^"]*"', 'href="REPORT.html#appendix"', body)
    body = re.sub(r'href="(README|REPORT)\.md', r'href="\1.html', body)
    # No line breaks in "K = 16" and beside "±", except in code, nor between a formula and a full stop.
    body = re.sub(r"(?s)<(pre|code)\b.*?</\1>|\b\w\s=\s(?=\S)|\s±\s", _bind, body)
    formula = r'(?s)(<span class="math inline">(?:(?!</span>).)*</span>[.,;:)]+)'
    body = re.sub(formula, r'<span class="whole">\1</span>', body)
    headings = re.findall(r'<(h\d) id="([^"]*)">(.*?)</h', body)
    return page("page.html.j2", {"kind": kind, "headings": headings, "body": body})


def mathml(latex, options):
    """Return a formula as MathML; the options of dollarmath say whether it has a line of its own."""
    math = convert(latex.strip(), display="block" if options["display_mode"] else "inline")
    for found, meant in OPERATORS.items():
        math = math.replace(found, meant)
    return math


def _picture_as_link(match):
    return f'<a href="{match[1]}">{match[0]}</a>' if match[1] else match[0]


def _two_level_head(match):
    cells = [(style, *text.rpartition(": ")) for style, text in re.findall(r"<th( [^>]*)?>(.*?)</th>", match[0])]
    groups = [(group, len(list(members))) for group, members in groupby(group for _, group, _, _ in cells)]
    upper = "".join(f'<th colspan="{columns}">{group}</th>' for group, columns in groups)
    lower = "".join(f"<th{style}>{text}</th>" for style, _, _, text in cells)
    return f"<thead><tr>{upper}</tr><tr>{lower}</tr></thead>" if any(group for group, _ in groups) else match[0]


def _bind(match):
    return match[0] if match[1] else re.sub(r"\s", "\u00a0", match[0])


if __name__ == "__main__":
    write_pages(json.loads((PROJECT / "figures" / "evidence" / "results.json").read_text(encoding="utf-8")))
