"""The numbers in REPORT.md and README.md: tables and quoted numbers, made anew from figures/evidence/results.json.

A table stands between the marks `<!-- table: name -->` and `<!-- end -->`. A number that the prose quotes is followed
by a mark with its place in the results, as in `903.3<!-- runs.conv_z16.test.elbo -->`, or with differences and ratios
of places, worked out from left to right; the number of its decimals stays. `over_seeds` is the place of means and
deviations over seeds.
"""

import math
import re

import numpy as np

from files import write_text
from report import entropy_table, gap_table, table

SETTINGS = ("group", "architecture", "latent_dim", "epochs", "sigma_rule")  # that runs of one group share
CARRYING = 0.1  # nats, above which a dimension counts as carrying the code
PAGES = ("REPORT.md", "README.md")
TABLE = re.compile(r"(<!-- table: (\w+) -->)\n.*?\n?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(?=<!-- ([\w.-]+(?: [-/] [\w.-]+)*) -->)")


class Spread(dict):
    """Mean and standard deviation of a number over seeds; formatted as "mean ± deviation", or "mean" if of one."""

    def __init__(self, values):
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        super().__init__(mean=float(np.mean(values)), deviation=deviation)

    def __format__(self, digits):
        deviation = "" if math.isnan(self["deviation"]) else f" ± {self['deviation']:{digits}}"
        return f"{self['mean']:{digits}}{deviation}"


def spreads(measurements):
    """Replace the numbers of equal dicts, each of one seed, by a `Spread` over them; what is no number is left out."""
    first, *_ = measurements
    return {
        key: spreads([one[key] for one in measurements])
        if isinstance(value, dict)
        else Spread([one[key] for one in measurements])
        for key, value in first.items()
        if isinstance(value, (dict, int, float))
    }


def over_seeds(evidence):
    """Summarise the runs that differ only in their seed: {"conv_z16": {"elbo": Spread, ...}, "mlp_z16_sigma1": ...}."""
    groups = {}
    for run in evidence["runs"]:
        groups.setdefault(run["group"], []).append(run | code_statistics(run))
    return {name: spreads(runs) | {key: runs[0][key] for key in SETTINGS} for name, runs in groups.items()}


def code_statistics(run):
    """Work out what tables and prose say of a run's codes and images besides what was measured."""
    carried = [nats for nats in run["kl_per_dimension"] if nats > CARRYING]
    return {
        "error": 1000 * run["reconstruction_mse"],
        "overfitting": run["train_elbo"] - run["elbo"],
        "carrying": len(carried),
        "idle": len(run["kl_per_dimension"]) - len(carried),
        "idle_kl": run["kl"] - sum(carried),
        "idle_but_active": run["active_units"] - len(carried),
    }


# ---- Tables


def measured_in(experiment, evidence):
    """Return the measurements of the runs of an experiment."""
    return [run for run in evidence["runs"] if run["name"] in evidence["experiments"][experiment]]


def _groups_in(experiment, results):
    """Return means and deviations over the seeds of an experiment's runs."""
    evidence = results["evidence"]
    groups = over_seeds(evidence)
    return [groups[name] for name in dict.fromkeys(run["group"] for run in measured_in(experiment, evidence))]


def architecture_table(results):
    """Item 2.5: convolutional against fully connected, over seeds."""
    rows = [
        {
            **group,
            **{key: count / 1e6 for key, count in results["evidence"]["networks"][group["group"]].items()},
            "epoch_seconds": results["runs"][group["group"]]["train_seconds"] / group["epochs"],
        }
        for group in _groups_in("networks", results)
    ]
    columns = {
        "run": "{group}",
        "parameters": "{parameters:.2f} M",
        "multiply-adds": "{multiply_adds:.1f} M",
        "s per epoch": "{epoch_seconds:.1f}",
        "test ELBO": "{elbo:.1f}",
        "of images trained on": "{train_elbo:.1f}",
    }
    return table(rows, columns)


def halves_table(results):
    """Item 2.5: encoder and decoder of either architecture, over seeds."""
    rows = [
        {
            **group,
            "encoder": group["architecture"].split("-")[0],
            "decoder": group["architecture"].split("-")[-1],
            "parameters": results["evidence"]["networks"][group["group"]]["parameters"] / 1e6,
        }
        for group in _groups_in("halves", results)
    ]
    columns = {
        "encoder": "{encoder}",
        "decoder": "{decoder}",
        "parameters": "{parameters:.2f} M",
        "test ELBO": "{elbo:.1f}",
        "KL": "{kl:.2f}",
        "1000 × MSE": "{error:.2f}",
    }
    return table(rows, columns)


def budget_table(results):
    """Item 2.5: annealed runs of few and many epochs, one seed."""
    rows, columns = {}, {"epochs": "{epochs}"}
    for run in measured_in("budgets", results["evidence"]):
        name, epochs = run["architecture"], run["epochs"]
        rows.setdefault(epochs, {"epochs": epochs})[name] = run
        columns[f"{name}, s"] = f"{{{name}[train_seconds]:.0f}}"
        columns[f"{name}, test ELBO"] = f"{{{name}[elbo]:.1f}}"
    return table([rows[epochs] for epochs in sorted(rows)], columns)


def _side_by_side(results):
    """Return a row for each latent size, {"K": size, network: its group}, and the networks."""
    rows = {}
    for group in _groups_in("sizes", results):
        rows.setdefault(group["latent_dim"], {"K": group["latent_dim"]})[group["architecture"]] = group
    return [rows[size] for size in sorted(rows)], results["config"]["architectures"]


def sweep_table(results):
    """Item 2.6: the bounds and the codes at each latent size, over seeds."""
    rows, networks = _side_by_side(results)
    columns = {"K": "{K}"} | {f"{name}: test ELBO": f"{{{name}[elbo]:.1f}}" for name in networks}
    for what, cell in (("KL", "kl]:.1f"), (f"over {CARRYING} nats", "carrying]:.1f"), ("1000 × MSE", "error]:.2f")):
        heading = f"dimensions {what}" if what.startswith("over") else what
        columns[f"{heading}: {', '.join(networks)}"] = ", ".join(f"{{{name}[{cell}}}" for name in networks)
    return table(rows, columns)


def sample_table(results):
    """Item 2.6: why samples from the prior worsen, over seeds."""
    check, real = results["evidence"]["prior_check"], results["evidence"]["real_digits"]
    rows, networks = _side_by_side(results)
    for row in rows:
        row["null"] = null = check[str(row["K"])]
        for name in networks:
            divergence = row[name]["prior_divergence"]
            row[name] |= {key: divergence[key]["mean"] - null[key] for key in ("held_out", "mixture")}
    columns = {"K": "{K}"}
    for name in networks:
        columns[f"{name}: KL(q ‖ prior) held out, plug-in"] = f"{{{name}[held_out]:.1f}}, {{{name}[mixture]:.1f}}"
    columns["null check"] = "{null[held_out]:+.2f}, {null[mixture]:+.2f}"
    for name in networks:
        cell = f"{{{name}[prior_samples][coverage]:.2f}}, {{{name}[mixture_samples][coverage]:.2f}}"
        columns[f"{name}: coverage from prior, mixture"] = cell
    last = ["real digits", *[""] * (len(columns) - 2), f"{real['coverage']:.2f}"]
    return table(rows, columns) + f"\n| {' | '.join(last)} |"


def sigma_table(results):
    """The likelihood's own experiment: sigma = 1 against calibrated sigma, over seeds."""
    fixed, groups = _groups_in("sigma", results), over_seeds(results["evidence"])
    pairs = [(group, groups[f"{group['architecture']}_z{group['latent_dim']}"]) for group in fixed]
    columns = {
        "σ": "{sigma_rule}",
        "test ELBO": "{elbo:.1f}",
        "with σ fitted after": "{elbo_with_fitted_sigma:.1f}",
        "KL": "{kl:.2f}",
        f"dimensions over {CARRYING} nats": "{carrying:.1f}",
        "coverage: prior, mixture": "{prior_samples[coverage]:.2f}, {mixture_samples[coverage]:.2f}",
    }
    return table([group for pair in pairs for group in pair], columns)


TABLES = {
    "entropy": entropy_table,
    "gap": gap_table,
    "architectures": architecture_table,
    "halves": halves_table,
    "budgets": budget_table,
    "sweep": sweep_table,
    "samples": sample_table,
    "sigma": sigma_table,
}


# ---- Pages


def fill(text, results):
    """Return a page with every table and every quoted number made anew; `KeyError` if a place is not in the results."""
    places = {**results, "over_seeds": over_seeds(results["evidence"])}
    text = TABLE.sub(lambda mark: f"{mark[1]}\n{TABLES[mark[2]](results)}\n{mark[3]}", text)
    return NUMBER.sub(lambda mark: _written_like(mark[0], _value(places, mark[1])), text)


def fill_pages(folder, results):
    """Write the numbers of results into the pages in `folder`."""
    for page in (folder / name for name in PAGES):
        write_text(page, fill(page.read_text(encoding="utf-8"), results))


def _value(places, expression):
    """Look up a place such as runs.conv_z16.test.elbo, or work out differences and ratios from left to right."""
    first, *rest = re.split(r" ([-/]) ", expression)
    value = _look_up(places, first)
    for operator, place in zip(rest[::2], rest[1::2], strict=True):
        value = value - _look_up(places, place) if operator == "-" else value / _look_up(places, place)
    return value


def _look_up(places, path):
    for key in path.split("."):
        places = places[int(key)] if isinstance(places, list) else places[key]
    return places


def _written_like(text, value):
    """Write a value with the sign, the separators and the decimals of `text`."""
    sign, separator = "+" * text.startswith("+"), "," * ("," in text or abs(value) >= 1000)
    return f"{value:{sign}{separator}.{len(text.partition('.')[2])}f}"
