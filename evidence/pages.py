"""`python -m evidence.pages`: REPORT.md and README.md from their templates here and figures/evidence/results.json.

REPORT.html is REPORT.md with an appendix, for a browser and for paper.

Besides the results, templates may name `over_seeds`, which summarises runs that differ only in their seed, as in
`over_seeds.conv_z16.elbo.mean`, and `experiments`: the `runs` of each, and the summaries of their `groups`.
"""

import json
from pathlib import Path
from statistics import fmean, stdev

from config import STAGES
from files import write_text
from report import html_page, page

FOLDER = Path(__file__).resolve().parent
PAGES = ("REPORT.md", "README.md")
SETTINGS = ("group", "architecture", "latent_dim", "epochs", "sigma_rule")  # what the runs of a group share
CARRYING = 0.1  # nats of KL, above which a dimension counts as carrying the code


class Spread(dict):
    """Mean and standard deviation of a number over seeds; formatted as "mean ± deviation", or "mean" if of one."""

    def __init__(self, values):
        super().__init__(mean=fmean(values), deviation=stdev(values) if len(values) > 1 else float("nan"))
        self.seeds = len(values)

    def __format__(self, digits):
        deviation = f" ± {self['deviation']:{digits}}" if self.seeds > 1 else ""
        return f"{self['mean']:{digits}}{deviation}"


def spreads(measurements):
    """Replace the numbers of equal dicts, each of one seed, by a `Spread` over them; what is no number is left out."""
    columns = {key: [one[key] for one in measurements] for key in measurements[0]}
    return {
        key: spreads(values) if isinstance(values[0], dict) else Spread(values)
        for key, values in columns.items()
        if isinstance(values[0], (dict, int, float))
    }


def over_seeds(evidence):
    """Summarise the runs that differ only in their seed: {"conv_z16": {"elbo": Spread, ...}, "mlp_z16_sigma1": ...}."""
    groups = {}
    for run in evidence["runs"]:
        groups.setdefault(run["group"], []).append(run | derived(run))
    for run in evidence.get("elsewhere", ()):
        groups.setdefault(run["group"], []).append(run | {"overfitting": run["train_elbo"] - run["elbo"]})
    return {name: spreads(runs) | {key: runs[0][key] for key in SETTINGS} for name, runs in groups.items()}


def derived(run):
    """Work out what tables and prose say of a run's codes and images besides what was measured."""
    carried = [nats for nats in run["kl_per_dimension"] if nats > CARRYING]
    return {
        "error": 1000 * run["reconstruction_mse"],
        "overfitting": run["train_elbo"] - run["elbo"],
        "gap": run["iw_log_likelihood"] - run["iw_elbo"],
        "carrying": len(carried),
        "idle": len(run["kl_per_dimension"]) - len(carried),
        "idle_kl": run["kl"] - sum(carried),
        "idle_but_active": run["active_units"] - len(carried),
    }


def measured_in(experiment, evidence):
    """Return the measurements of the runs of an experiment."""
    return [run for run in evidence["runs"] if run["name"] in evidence["experiments"][experiment]]


def places(results):
    """Return all that templates may name."""
    evidence, groups = results["evidence"], over_seeds(results["evidence"])
    experiments = {}
    for name in evidence["experiments"]:
        runs = measured_in(name, evidence)
        names = dict.fromkeys(run["group"] for run in runs)
        experiments[name] = {"runs": runs, "groups": [groups[group] for group in names]}
    return results | {"over_seeds": groups, "experiments": experiments}


def write_pages(folder, results):
    """Write the pages to `folder`; a place that a template names and the results lack is an error."""
    for name in PAGES:
        write_text(folder / name, page(f"{name}.j2", places(results), FOLDER))
    write_text(folder / "REPORT.html", report_html((folder / "REPORT.md").read_text(encoding="utf-8"), results["runs"]))


def report_html(report, runs):
    """Return REPORT.md as HTML, with all figures of the runs, {name: ...}, in an appendix."""
    return html_page(report + page("appendix.md.j2", {"runs": runs, "stages": STAGES}, FOLDER))


def main():
    """Write the project's own pages."""
    project = FOLDER.parent
    write_pages(project, json.loads((project / "figures" / "evidence" / "results.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
