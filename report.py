"""Numbers in, pages out: results.json, and the gallery of all figures from its template in templates/."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from drawing import run_title
from files import InputError, write_text
from train import STAGES

TEMPLATES = Path(__file__).resolve().parent / "templates"
FIRST_LINE = "# Gallery"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")


def check_folder(folder):
    """Raise `InputError` if the gallery would be written over a README.md or a results.json of something else."""
    gallery = folder / "README.md"
    ours = gallery.is_file() and gallery.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE)
    others = [name for name in ("README.md", "results.json") if (folder / name).exists()]
    if others and not ours:
        raise InputError(f"{folder} has a {others[0]} of its own; name another folder for the figures")


def settings(args, dataset, config):
    """Return the head of results.json: data, settings, versions and machine."""
    counts = {"train_count": len(dataset.train.labels), "test_count": len(dataset.test.labels)}
    data = {"name": dataset.name, "source": dataset.source, **counts}
    versions = {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}
    machine = {"platform": f"{platform.system()} {platform.machine()}", "device": str(args.device), "threads": 1}
    settings = {"quick": args.quick, "config": asdict(config), "seed": args.seed}
    return {"dataset": data, **settings, "environment": versions | machine}


def write(results, folder):
    """Write the gallery and results.json; a NaN is a `ValueError`, since JSON has none."""
    numbers, gallery = json.dumps(results, indent=2, allow_nan=False) + "\n", page("gallery.md.j2", results)
    write_text(folder / "README.md", gallery)
    write_text(folder / "results.json", numbers)


def page(template, values, folder=TEMPLATES):
    """Fill a template of `folder`; a missing value is an error.

    In templates `x | n(".2f")` writes a number in Python's format, by default with thousands separated.
    """
    pages = Environment(loader=FileSystemLoader(folder), trim_blocks=True, undefined=StrictUndefined)
    pages.filters["n"] = lambda number, form=",": format(number, form).replace("-", "−")
    return pages.get_template(template).render(values, run_title=run_title, STAGES=STAGES) + "\n"
