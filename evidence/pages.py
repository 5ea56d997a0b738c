"""The numbers in REPORT.md and README.md: tables and quoted numbers, made anew from figures/evidence/results.json.

A table stands between the marks `<!-- table: name -->` and `<!-- end -->`. A number that the prose quotes is followed
by a mark with its place in the results, as in `903.3<!-- runs.conv_z16.test.elbo -->`, or with differences and ratios
of places, worked out from left to right; the number of its decimals stays. `over_seeds` is the place of means and
deviations over seeds.
"""

import re

import numpy as np

from files import write_text
from report import bound_heading, entropy_table, gap_table, grouping_table, run_table, stage_table, table

CARRYING = 0.1  # nats, above which a dimension counts as carrying the code
PAGES = ("REPORT.md", "README.md")
TABLE = re.compile(r"(<!-- table: (\w+) -->)\n.*?\n?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(?=<!-- ([\w.]+(?: [-/] [\w.]+)*) -->)")


class Spread(dict):
    """Mean and standard deviation of a number over seeds; formatted as "mean ± deviation"."""

    def __init__(self, values):
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        super().__init__(mean=float(np.mean(values)), deviation=deviation)

    def __format__(self, digits):
        return f"{self['mean']:{digits}} ± {self['deviation']:{digits}}"


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
        suffix = "" if run["sigma_rule"] == "calibrated" else f"_sigma{run['sigma_rule']:g}"
        groups.setdefault(f"{run['architecture']}_z{run['latent_dim']}{suffix}", []).append(run)
    return {
        name: {
            "name": name,
            "network": runs[0]["architecture"],
            "size": runs[0]["latent_dim"],
            "rule": runs[0]["sigma_rule"],
            "error": Spread([1000 * run["reconstruction_mse"] for run in runs]),
            "carrying": Spread([sum(nats > CARRYING for nats in run["kl_per_dimension"]) for run in runs]),
            **spreads(runs),
        }
        for name, runs in groups.items()
    }


# ---- Tables


def _calibrated(results):
    """Return the groups of runs whose sigma is calibrated."""
    return [group for group in over_seeds(results["evidence"]).values() if not _is_fixed(group)]


def _is_fixed(group):
    return group["rule"] != "calibrated"


def architecture_table(results):
    """Item 2.5: convolutional against fully connected, over seeds."""
    rows = [
        {
            **group,
            "millions": {key: count / 1e6 for key, count in results["evidence"]["networks"][group["name"]].items()},
            "epoch_seconds": results["runs"][group["name"]]["train_seconds"] / results["config"]["epochs"],
        }
        for group in _calibrated(results)
        if group["size"] in results["config"]["latent_dims"]
    ]
    columns = {
        "network": "{network}",
        "K": "{size}",
        "parameters": "{millions[parameters]:.2f} M",
        "multiply-adds": "{millions[multiply_adds]:.1f} M",
        "s per epoch": "{epoch_seconds:.1f}",
        "test ELBO": "{elbo:.1f}",
        "NLL": "{nll:.1f}",
        "KL": "{kl:.2f}",
        bound_heading(results): "{iw_log_likelihood:.1f}",
        "σ": "{sigma:.4f}",
        "active units": "{active_units:.1f}",
    }
    return table(rows, columns)


def sweep_table(results):
    """Item 2.6: the bounds and the codes at each latent size, over seeds."""
    columns = {
        "network": "{network}",
        "K": "{size}",
        "test ELBO": "{elbo:.1f}",
        bound_heading(results): "{iw_log_likelihood:.1f}",
        "NLL": "{nll:.1f}",
        "KL": "{kl:.2f}",
        "active units": "{active_units:.1f}",
        "dimensions over 0.1 nats": "{carrying:.1f}",
        "1000 × MSE": "{error:.2f}",
        "5-NN accuracy of the codes": "{code_knn_accuracy:.3f}",
    }
    return table(_calibrated(results), columns)


def sample_table(results):
    """Item 2.6: why samples from the prior worsen, over seeds."""
    check, real = results["evidence"]["prior_check"], results["evidence"]["real_digits"]
    rows = [{**group, "check": check[str(group["size"])]} for group in _calibrated(results)]
    columns = {
        "network": "{network}",
        "K": "{size}",
        "KL(q ‖ prior), held out": "{prior_divergence[held_out]:.2f}",
        "plug-in": "{prior_divergence[mixture]:.2f}",
        "null check": "{check[held_out]:+.2f} … {check[mixture]:+.2f}",
        "density, prior": "{prior_samples[density]:.2f}",
        "density, mixture": "{mixture_samples[density]:.2f}",
        "coverage, prior": "{prior_samples[coverage]:.2f}",
        "coverage, mixture": "{mixture_samples[coverage]:.2f}",
    }
    real_digits = f"\n| real digits |  |  |  |  | {real['density']:.2f} |  | {real['coverage']:.2f} |  |"
    return table(rows, columns) + real_digits


def sigma_table(results):
    """The likelihood's own experiment: sigma = 1 against calibrated sigma, over seeds."""
    groups = over_seeds(results["evidence"])
    pairs = [(group, groups[f"{group['network']}_z{group['size']}"]) for group in groups.values() if _is_fixed(group)]
    columns = {
        "network": "{network}",
        "K": "{size}",
        "σ": "{rule}",
        "test ELBO": "{elbo:.1f}",
        "with σ fitted after": "{elbo_with_fitted_sigma:.1f}",
        "fitted σ": "{fitted_sigma:.4f}",
        "KL": "{kl:.2f}",
        "active units": "{active_units:.1f}",
        "1000 × MSE": "{error:.2f}",
        "KL(q ‖ prior), held out": "{prior_divergence[held_out]:.2f}",
        "coverage, prior": "{prior_samples[coverage]:.2f}",
        "coverage, mixture": "{mixture_samples[coverage]:.2f}",
    }
    return table([group for pair in pairs for group in pair], columns)


def data_table(results):
    """What all numbers are of."""
    columns = {"data": "{name} ({source})", "training": "{train_count:,}", "test": "{test_count:,}"}
    return table([results["dataset"]], columns)


TABLES = {
    "data": data_table,
    "entropy": entropy_table,
    "grouping": grouping_table,
    "gap": gap_table,
    "runs": run_table,
    "stages": stage_table,
    "architectures": architecture_table,
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
