"""Numbers in, pages out: results.json, and the gallery, whose words are in templates/gallery.md.j2."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from files import write_json, write_text
from runs import environment, in_processes, model_at, runs_at_once
from train import held_out_count

TEMPLATES = Path(__file__).resolve().parent / "templates"


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
    """Write results.json and the gallery."""
    write_json(folder / "results.json", results)
    write_text(folder / "README.md", gallery(results))


def gallery(results):
    """Return the page of all figures, in the assignment's order, with the numbers that belong to them."""
    return page("gallery.md.j2", results)


def summary(results):
    """Return a line for each run: what it reached, in nats per image, and how long it took."""
    line = "{}: test ELBO {test[elbo]:.1f}, log p(x) >= {test[iw_log_likelihood]:.1f}, {train_seconds:.0f} s"
    return "\n".join(line.format(name, **run) for name, run in results["runs"].items())


def page(template, values, folder=TEMPLATES):
    """Fill a template of `folder` with values; one that it names and that is not there is an error.

    In templates `x | n(".2f")` writes a number in Python's format, by default with thousands separated.
    """
    loader = FileSystemLoader([folder, TEMPLATES])
    pages = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    pages.filters["n"] = lambda number, spec=",": format(number, spec)
    return pages.get_template(template).render(values)
