"""Numbers in, pages out: results.json, and the gallery, whose words are in templates/gallery.md.j2.

A page is Markdown, which GitHub shows; `html_page` makes of it one that any browser opens from a folder.
"""

import re
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from files import write_json, write_text
from runs import environment, in_processes, model_at, runs_at_once
from train import held_out_count

TEMPLATES = Path(__file__).resolve().parent / "templates"
OPENED_AS = {"figures/README.md": "figures/index.html", "REPORT.md": "REPORT.html"}  # pages that there are as HTML too
OPERATORS = {  # which latex2mathml takes for letters, or spaces otherwise than TeX
    "<mi>log</mi>": '<mo lspace="0.17em" rspace="0.17em">log</mo>',
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",
    "<mi>&#x02016;</mi>": '<mo lspace="0.28em" rspace="0.28em">&#x02016;</mo>',
    '<mo stretchy="false">&#x0007C;</mo>': '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>',
}


def new_results(settings, config, dataset, device, run_count):
    """Start the contents of results.json with everything that is known before the run."""
    surroundings = environment(device) | {"runs_at_once": runs_at_once(settings, run_count)}
    if in_processes(settings):
        surroundings["threads"] = 1  # of each process
    train_count = len(dataset.train_labels)
    return {
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "train_count": train_count,
            "held_out_count": held_out_count(train_count),
            "test_count": len(dataset.test_labels),
            "note": dataset.note,
            "fingerprint": dataset.fingerprint,
        },
        "quick": settings.quick,
        "config": vars(config) | {"latent_dims": settings.latent_dims, "architectures": settings.architectures},
        "seed": settings.seed,
        "environment": surroundings,
        "runs": {},
    }


def run_results(checkpoint, stages):
    """Return the entry of a run in results.json: its numbers at each stage, and those of the end once more on top."""
    return {
        "parameters": sum(parameter.numel() for parameter in model_at(checkpoint).parameters()),
        "iterations": len(checkpoint["history"]["loss"]),
        "train_seconds": checkpoint["train_seconds"],
        **{key: stages["end"][key] for key in ("sigma", "test", "tsne")},
        "stages": stages,
    }


def write(results, folder):
    """Write results.json and the gallery, as Markdown and as HTML."""
    write_json(folder / "results.json", results)
    write_text(folder / "README.md", gallery(results))
    write_text(folder / "index.html", html_page(gallery(results)))


def gallery(results):
    """Return the page of all figures, in the assignment's order, with the numbers that belong to them."""
    return page("gallery.md.j2", results)


def summary(results):
    """Return a line for each run: what it reached, in nats per image, and how long it took."""
    line = "{}: test ELBO {test[elbo]:.1f}, log p(x) >= {test[iw_log_likelihood]:.1f}, {train_seconds:.0f} s"
    return "\n".join(line.format(name, **run) for name, run in results["runs"].items())


def page(template, values, folder=TEMPLATES):
    """Fill a template of `folder` with values; one that it names and that is not there is an error.

    In templates `x | n(".2f")` writes a number in Python's format, by default with thousands separated, and
    `x | plain` a name of the user's, as plain text in Markdown.
    """
    loader = FileSystemLoader([folder, TEMPLATES])
    pages = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    pages.filters["n"] = lambda number, spec=",": format(number, spec)
    pages.filters["plain"] = lambda text: re.sub(r"([\\`*_$<>&\[\]])", r"\\\1", text)
    return pages.get_template(template).render(values)


# ---- Markdown to HTML


def html_page(markdown):
    """Return a page of Markdown as HTML that needs no network: with contents, and formulas as MathML.

    A picture alone in its paragraph is a figure, the paragraph after it its caption if that begins with "*Figure".
    """
    converter = MarkdownIt("commonmark").enable("table").use(anchors_plugin, max_level=4)
    converter.use(dollarmath_plugin, allow_space=False, allow_digits=False, renderer=lambda latex, _: mathml(latex))
    converter.add_render_rule("fence", _fence)
    converter.add_render_rule("image", _image)
    tokens = converter.parse(markdown)
    headings = [
        {"level": token.tag, "anchor": token.attrs["id"], "text": converter.renderer.render(text.children, {}, {})}
        for token, text in pairwise(tokens)
        if token.type == "heading_open"
    ]
    body = converter.renderer.render(tokens, converter.options, {})
    alone = r'(?s)<p>(<a href="[^"]*"><img [^>]*></a>)</p>(?:\n<p>(<em>Figure.*?)</p>)?'
    body = re.sub(alone, r"<figure>\1<figcaption>\2</figcaption></figure>", body)
    body = body.replace("<table>", '<div class="table" tabindex="0"><table>').replace("</table>", "</table></div>")
    body = body.replace(" ± ", "&#160;±&#160;")  # which no line breaks
    for name, opened in OPENED_AS.items():
        body = body.replace(f'href="{name}', f'href="{opened}')
    return page("page.html.j2", {"title": headings[0]["text"], "headings": headings[1:], "body": body})


def mathml(latex, display="inline"):
    """Return a formula as MathML, `display` being "inline" or "block"."""
    math = convert(latex.strip(), display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    for found, meant in OPERATORS.items():
        math = math.replace(found, meant)
    return math


def _fence(renderer, tokens, place, options, env):
    """Render a fenced block: formulas if it is named `math`, else code."""
    if tokens[place].info != "math":
        return renderer.fence(tokens, place, options, env)
    return f'<div class="math block">{mathml(tokens[place].content, "block")}</div>\n'


def _image(renderer, tokens, place, options, env):
    """Render a picture as a link to itself, where it is not a link already."""
    image = renderer.image(tokens, place, options, env)
    linked = place and tokens[place - 1].type == "link_open"
    return image if linked else f'<a href="{tokens[place].attrs["src"]}">{image}</a>'
