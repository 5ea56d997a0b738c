"""Numbers in, files out: results.json, the gallery, and the tables that README.md and the gallery share.

Every table is made from results.json alone. `python report.py` writes those of the committed results into README.md,
between the marks `<!-- table: name -->` and `<!-- end -->`, and what benchmark.py measured between `<!-- benchmark -->`
and `<!-- end -->`.
"""

import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config import STAGES
from files import read_json, write_json, write_text
from train import count_iterations, has_native_bfloat16, held_out_count

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib", "mlxtend")
STAGE_FIGURES = {
    "latent_traversal": "Latent traversal",
    "prior_samples": "Samples from the prior",
    "tsne": "t-SNE of the codes",
    "ELBO_Curve": "ELBO per iteration",
}

# ---- Before the run


def environment(device):
    """Describe what a run's numbers depend on besides its settings."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "bfloat16": has_native_bfloat16(device),
    }


def describe_data(dataset):
    """Say in a line which data are used."""
    counts = f"{len(dataset.train_images):,} training and {len(dataset.test_images):,} test images"
    failure = f" (no download: {dataset.download_error})" if dataset.download_error else ""
    return f"{dataset.name} from {dataset.source}: {counts}{failure}"


def progress_bar(experiments, image_count):
    """Return a tqdm bar over all iterations of some experiments."""
    total = sum(count_iterations(image_count, plan.config) for plan in dict.fromkeys(experiments))
    return tqdm(total=total, unit="it", smoothing=0.02, dynamic_ncols=True)


def new_results(settings, config, dataset, environment):
    """Start the contents of results.json with everything that is known before the run."""
    return {
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "train_count": len(dataset.train_images),
            "held_out_count": held_out_count(len(dataset.train_images)),
            "test_count": len(dataset.test_images),
            "note": dataset.note,
            "fingerprint": dataset.fingerprint,
        },
        "quick": settings.quick,
        "config": vars(config) | {"latent_dims": settings.latent_dims, "architectures": settings.architectures},
        "seed": settings.seed,
        "environment": environment,
        "runs": {},
    }


def run_results(checkpoint, stages):
    """Return the entry of a run in results.json: its numbers at each stage, and those of the end once more on top."""
    weights = checkpoint["stages"]["end"]
    return {
        "parameters": sum(value.numel() for name, value in weights.items() if name != "sigma"),
        "iterations": len(checkpoint["history"]["loss"]),
        "train_seconds": checkpoint["train_seconds"],
        **{key: stages["end"][key] for key in ("sigma", "test", "tsne")},
        "stages": stages,
    }


# ---- Tables


def table(header, rows):
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def interval(value, error, digits):
    """Write a value with its standard error or deviation."""
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def over_seeds(runs, value, digits):
    """Write the mean and standard deviation over runs of value(run)."""
    values = [value(run) for run in runs]
    return interval(np.mean(values), np.std(values, ddof=1), digits)


def _bound_heading(results):
    """Head a column of importance-weighted bounds: on how many of the test images, with how many draws for each."""
    test = next(iter(results["runs"].values()))["test"]
    return f"log p(x) ≥ ({test['iw_images']} images, {test['iw_samples']} draws)"


def entropy_table(results):
    """Items 1.2 and 1.3: the estimates beside their references."""
    names = {"balanced": "1.2: π = (0.2, 0.5, 0.3)", "degenerate": "1.3: π = (1e-5, 1 − 2e-5, 1e-5)"}
    rows = [
        [
            names[key],
            f"{gmm['samples']:,}",
            gmm["seed"],
            interval(gmm["entropy"], gmm["standard_error"], 4),
            f"{gmm['quadrature']:.6f}",
            f"{gmm['lower_bound']:.4f} … {gmm['upper_bound']:.4f}",
            f"{gmm['single_gaussian']:.6f}",
        ]
        for key, gmm in results["gmm"].items()
    ]
    return table(["mixture", "N", "seed", "Ĥ ± standard error", "quadrature", "bounds", "H of N(μ₂, Σ₂)"], rows)


def grouping_table(results):
    """Item 1.3: the grouping bound, and how few points the rare components give."""
    gmm = results["gmm"]["degenerate"]
    mean, mixing = gmm["mean_component_entropy"], gmm["mixing_entropy"]
    rows = [
        ["mean of the components' entropies, H̄: lower grouping bound", f"{mean:.6f}"],
        ["entropy of the single Gaussian N(μ₂, Σ₂)", f"{gmm['single_gaussian']:.6f}"],
        ["entropy of the mixture, by quadrature", f"{gmm['quadrature']:.6f}"],
        ["H̄ + H(π): upper grouping bound", f"{mean + mixing:.6f}"],
        ["H(π)", f"{mixing:.4e}"],
        ["gap to the single Gaussian, by quadrature", f"{gmm['gap_quadrature']:.4e}"],
        [f"points from the rare components among {gmm['samples']:,}", gmm["rare_samples"]],
    ]
    return table(["1.3", "nats, or points"], rows)


def gap_table(results):
    """Item 1.3: the gap to the single Gaussian, three ways."""
    names = {
        "plain": "(a) plain Monte Carlo",
        "control_variate": "(b) control variate",
        "multiple_importance": "(c) control variate, multiple importance sampling",
    }
    gmm = results["gmm"]["degenerate"]
    rows = [
        [
            names[key],
            f"{method['samples']:,}",
            f"{method['estimate']:.3e}",
            f"{method['standard_error']:.1e}",
            f"{(method['estimate'] - gmm['gap_quadrature']) / method['standard_error']:+.1f}",
            f"{method['rms_error_in_standard_errors']:.1f}",
            f"{method['samples_for_one_percent']:.1e}",
        ]
        for key, method in gmm["gap_methods"].items()
    ]
    rows.append(["quadrature", "", f"{gmm['gap_quadrature']:.6e}", "", "", "", ""])
    header = [
        "H(p) − H(N₂)",
        "N",
        "nats",
        "standard error",
        "error in standard errors",
        f"root mean square of that over {gmm['calibration_runs']} runs",
        "N for a standard error of 1 %",
    ]
    return table(header, rows)


def run_table(results):
    """Every run's end."""
    rows = [
        [
            name,
            f"{run['parameters']:,}",
            f"{run['train_seconds']:.0f}",
            interval(run["test"]["elbo"], run["test"]["elbo_standard_error"], 1),
            f"{run['test']['nll']:.1f}",
            f"{run['test']['kl']:.1f}",
            interval(run["test"]["iw_log_likelihood"], run["test"]["iw_standard_error"], 1),
            f"{run['test']['iw_elbo']:.1f}",
            f"{run['sigma']:.4f}",
            run["test"]["active_units"],
        ]
        for name, run in results["runs"].items()
    ]
    header = ["run", "parameters", "training (s)", "test ELBO", "NLL", "KL"]
    return table([*header, _bound_heading(results), "ELBO of the same images", "σ", "active units"], rows)


def stage_table(results):
    """Item 2.4: the numbers behind the stage figures."""
    rows = [
        [
            name,
            stage,
            f"{numbers['iteration']:,}",
            f"{numbers['test']['elbo']:.1f}",
            f"{numbers['test']['kl']:.1f}",
            numbers["test"]["active_units"],
            f"{numbers['sigma']:.3f}",
            f"{numbers['tsne']['knn_accuracy']:.3f}",
            f"{numbers['tsne']['trustworthiness']:.3f}",
        ]
        for name, run in results["runs"].items()
        for stage, numbers in run["stages"].items()
    ]
    header = ["run", "stage", "iteration", "test ELBO", "KL", "active units", "σ", "5-NN accuracy of the map"]
    return table([*header, "trustworthiness"], rows)


def _grouped(results, sigma_rules=("calibrated",)):
    """Yield (architecture, latent size, rule for sigma, the runs of all seeds)."""
    runs = results["evidence"]["runs"]
    keys = dict.fromkeys((run["architecture"], run["latent_dim"], run["sigma_rule"]) for run in runs)
    for key in keys:
        if key[2] in sigma_rules:
            yield *key, [run for run in runs if (run["architecture"], run["latent_dim"], run["sigma_rule"]) == key]


def architecture_table(results):
    """Item 2.5: convolutional against fully connected, over seeds."""
    rows = []
    for architecture, dim, _, runs in _grouped(results):
        if dim in results["config"]["latent_dims"]:
            network = results["evidence"]["networks"][f"{architecture}_z{dim}"]
            rows.append(
                [
                    architecture,
                    dim,
                    f"{network['parameters'] / 1e6:.2f} M",
                    f"{network['multiply_adds'] / 1e6:.1f} M",
                    f"{results['runs'][f'{architecture}_z{dim}']['train_seconds'] / results['config']['epochs']:.1f}",
                    over_seeds(runs, lambda run: run["elbo"], 1),
                    over_seeds(runs, lambda run: run["nll"], 1),
                    over_seeds(runs, lambda run: run["kl"], 2),
                    over_seeds(runs, lambda run: run["iw_log_likelihood"], 1),
                    over_seeds(runs, lambda run: run["sigma"], 4),
                    over_seeds(runs, lambda run: run["active_units"], 1),
                ]
            )
    header = ["network", "K", "parameters", "multiply-adds", "s per epoch"]
    return table([*header, "test ELBO", "NLL", "KL", _bound_heading(results), "σ", "active units"], rows)


def sweep_table(results):
    """Item 2.6: the bounds and the codes at each latent size, over seeds."""
    rows = [
        [
            architecture,
            dim,
            over_seeds(runs, lambda run: run["elbo"], 1),
            over_seeds(runs, lambda run: run["iw_log_likelihood"], 1),
            over_seeds(runs, lambda run: run["nll"], 1),
            over_seeds(runs, lambda run: run["kl"], 2),
            over_seeds(runs, lambda run: run["active_units"], 1),
            over_seeds(runs, lambda run: 1000 * run["reconstruction_mse"], 2),
            over_seeds(runs, lambda run: run["code_knn_accuracy"], 3),
        ]
        for architecture, dim, _, runs in _grouped(results)
    ]
    header = [
        "network",
        "K",
        "test ELBO",
        _bound_heading(results),
        "NLL",
        "KL",
        "active units",
        "1000 × MSE",
        "5-NN accuracy of the codes",
    ]
    return table(header, rows)


def sample_table(results):
    """Item 2.6: why samples from the prior worsen, over seeds."""
    evidence = results["evidence"]
    rows = []
    for architecture, dim, _, runs in _grouped(results):
        check = evidence["prior_check"][str(dim)]
        rows.append(
            [
                architecture,
                dim,
                over_seeds(runs, lambda run: run["prior_divergence"]["held_out"], 2),
                f"{runs[0]['prior_divergence']['held_out_standard_error']:.2f}",
                over_seeds(runs, lambda run: run["prior_divergence"]["mixture"], 2),
                f"{check['held_out']:+.2f} … {check['mixture']:+.2f}",
                *(
                    over_seeds(runs, lambda run, source=source, quality=quality: run[source][quality], 2)
                    for quality in ("density", "coverage")
                    for source in ("prior_samples", "mixture_samples")
                ),
            ]
        )
    real = evidence["real_digits"]
    rows.append(["real digits", "", "", "", "", "", f"{real['density']:.2f}", "", f"{real['coverage']:.2f}", ""])
    header = [
        "network",
        "K",
        "KL(q ‖ prior), held out",
        "its standard error",
        "the mixture's own",
        "of true prior codes",
    ]
    return table([*header, "density, prior", "density, mixture", "coverage, prior", "coverage, mixture"], rows)


def sigma_table(results):
    """The likelihood's own experiment: sigma = 1 against calibrated sigma, over seeds."""
    fixed = list(_grouped(results, sigma_rules=(1.0,)))
    sizes = {(architecture, dim) for architecture, dim, _, _ in fixed}
    calibrated = [row for row in _grouped(results) if (row[0], row[1]) in sizes]
    rows = [
        [
            architecture,
            dim,
            "calibrated" if rule == "calibrated" else f"{rule:g}",
            over_seeds(runs, lambda run: run["elbo"], 1),
            over_seeds(runs, lambda run: run["elbo_with_fitted_sigma"], 1),
            over_seeds(runs, lambda run: run["fitted_sigma"], 4),
            over_seeds(runs, lambda run: run["kl"], 2),
            over_seeds(runs, lambda run: run["active_units"], 1),
            over_seeds(runs, lambda run: 1000 * run["reconstruction_mse"], 2),
            over_seeds(runs, lambda run: run["prior_divergence"]["held_out"], 2),
            over_seeds(runs, lambda run: run["prior_samples"]["coverage"], 2),
            over_seeds(runs, lambda run: run["mixture_samples"]["coverage"], 2),
        ]
        for architecture, dim, rule, runs in fixed + calibrated
    ]
    header = ["network", "K", "σ", "test ELBO", "with σ fitted after", "fitted σ", "KL", "active units", "1000 × MSE"]
    return table([*header, "KL(q ‖ prior), held out", "coverage, prior", "coverage, mixture"], rows)


TABLES = {
    "entropy": entropy_table,
    "grouping": grouping_table,
    "gap": gap_table,
    "runs": run_table,
    "stages": stage_table,
}
EVIDENCE_TABLES = {
    "architectures": architecture_table,
    "sweep": sweep_table,
    "samples": sample_table,
    "sigma": sigma_table,
}


def fill_tables(text, results):
    """Return `text` with every table between its marks made anew from results; an unknown name is a `KeyError`."""

    def fill(mark):
        return f"{mark[1]}\n{(TABLES | EVIDENCE_TABLES)[mark[2]](results)}\n{mark[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?\n?(<!-- end -->)", fill, text, flags=re.DOTALL)


def fill_benchmark(text, output):
    """Return `text` with `output`, a file that benchmark.py wrote, between its marks."""
    return re.sub(
        r"(<!-- benchmark -->\n).*?(<!-- end -->)", lambda mark: mark[1] + output + mark[2], text, flags=re.DOTALL
    )


# ---- After the run


def write(results, folder):
    """Write results.json and the gallery."""
    write_json(folder / "results.json", results)
    write_text(folder / "README.md", gallery(results))


def summary(results):
    """Return the closing table, for a terminal."""
    lines = [f"{'run':10} {'test ELBO':>10} {'NLL':>8} {'KL':>6} {'log p(x) ≥':>11} {'σ':>7} {'units':>6} {'s':>6}"]
    for name, run in results["runs"].items():
        test = run["test"]
        lines.append(
            f"{name:10} {test['elbo']:10.1f} {test['nll']:8.1f} {test['kl']:6.1f} {test['iw_log_likelihood']:11.1f} "
            f"{run['sigma']:7.4f} {test['active_units']:6} {run['train_seconds']:6.0f}"
        )
    return "\n".join(lines)


def gallery(results):
    """Return the page of all figures, in the assignment's order, with the numbers that belong to them."""
    dataset, config = results["dataset"], results["config"]
    trial = "**A trial run (`--quick`): its numbers show that all works, not how well.**" if results["quick"] else ""
    parts = [
        "# Gallery",
        trial,
        f"Data: {dataset['name']} ({dataset['source']}), {dataset['train_count']:,} training images, of which "
        f"{dataset['held_out_count']:,} only calibrate the stored σ, and {dataset['test_count']:,} test images. "
        f"{config['epochs']} epochs, batches of {config['batch_size']}, seed {results['seed']}. Nats per image "
        "throughout; every number stands in [results.json](results.json).",
        "## Problem 1: Gaussian mixture",
        "### 1.1 Samples",
        "![Scatter plot of 100,000 samples, coloured by component](gmm_scatter.png)",
        "### 1.2 Entropy by Monte Carlo",
        "![Entropy estimate against the number of samples](gmm_entropy.png)",
        "### 1.3 Nearly degenerate weights",
        "![Entropy estimate and gap to the single Gaussian](gmm_entropy_degenerate.png)",
        entropy_table(results),
        grouping_table(results),
        gap_table(results),
        "## Problem 2: variational autoencoders",
        run_table(results),
        "![ELBO per iteration of all runs](ELBO_Curve.png)",
        "### 2.4 Three stages of training",
        stage_table(results),
        *(_stage_figures(results, name, title) for name, title in STAGE_FIGURES.items()),
    ]
    if "evidence" in results:
        parts += _evidence_parts(results)
    return "\n\n".join(part for part in parts if part) + "\n"


def _stage_figures(results, name, title):
    def link(run, stage):
        path = f"{run}/{stage}/{name}.png"
        return f"[![{title}, {run}, {stage}]({path})]({path})"

    rows = [[f"**{run}**", *(link(run, stage) for stage in STAGES)] for run in results["runs"]]
    return f"#### {title}\n\n" + table(["run", *STAGES], rows)


def _evidence_parts(results):
    architectures = results["config"]["architectures"]
    fixed = dict.fromkeys(architecture for architecture, *_ in _grouped(results, sigma_rules=(1.0,)))
    return [
        "### 2.5 Convolutional against fully connected",
        architecture_table(results),
        "### 2.6 Latent sizes",
        "![Measurements against the latent size](latent_sweep.png)",
        sweep_table(results),
        sample_table(results),
        *(f"![Reconstructions and samples of the {name} networks](samples_{name}.png)" for name in architectures),
        "### σ = 1 against calibrated σ",
        sigma_table(results),
        *(f"![Reconstructions and samples for each rule, {name}](sigma_{name}.png)" for name in fixed),
    ]


def main():
    """Write the tables of figures/results.json and of figures/benchmark.md into README.md."""
    here = Path(__file__).parent
    readme = here / "README.md"
    text = fill_tables(readme.read_text(encoding="utf-8"), read_json(here / "figures" / "results.json"))
    benchmark = (here / "figures" / "benchmark.md").read_text(encoding="utf-8")
    write_text(readme, fill_benchmark(text, benchmark))


if __name__ == "__main__":
    main()
