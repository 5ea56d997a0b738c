"""Numbers in, files out: results.json, the gallery, and the tables that the gallery and REPORT.md share.

Every table is made from results.json alone.
"""

from config import STAGES
from files import write_json, write_text
from runs import environment, in_processes, runs_at_once
from train import held_out_count

STAGE_FIGURES = {
    "latent_traversal": "Latent traversal",
    "prior_samples": "Samples from the prior",
    "tsne": "t-SNE of the codes",
    "ELBO_Curve": "ELBO per iteration",
}


def new_results(settings, config, dataset, device, run_count):
    """Start the contents of results.json with everything that is known before the run."""
    surroundings = environment(device) | {"runs_at_once": runs_at_once(settings, run_count)}
    if in_processes(settings):
        surroundings["threads"] = 1  # of each process
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
        "environment": surroundings,
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


def markdown_table(header, rows):
    """Return a Markdown table of cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def table(rows, columns):
    """Return a Markdown table with a line for each of `rows`, dicts, and a column for each {heading: its format}."""
    return markdown_table(list(columns), [[cell.format(**row) for cell in columns.values()] for row in rows])


def entropy_table(results):
    """Items 1.2 and 1.3: the estimates beside their references."""
    items = {"1.2": results["gmm"]["balanced"], "1.3": results["gmm"]["degenerate"]}
    weights = {item: ", ".join(f"{weight:.6g}" for weight in gmm["weights"]) for item, gmm in items.items()}
    columns = {
        "mixture": "{name}",
        "N (seed)": "{samples:,} ({seed})",
        "Ĥ ± standard error": "{entropy:.4f} ± {standard_error:.4f}",
        "quadrature": "{quadrature:.6f}",
        "bounds": "{lower_bound:.6f} … {upper_bound:.6f}",
        "H of N(μ₂, Σ₂)": "{single_gaussian:.6f}",
    }
    return table([{"name": f"{item}: π = ({weights[item]})", **gmm} for item, gmm in items.items()], columns)


def grouping_table(results):
    """Item 1.3: the grouping bound, and how few points the rare components give."""
    gmm = results["gmm"]["degenerate"]
    upper = gmm["mean_component_entropy"] + gmm["mixing_entropy"]
    rows = [
        ["mean of the components' entropies, H̄: lower grouping bound", f"{gmm['mean_component_entropy']:.6f}"],
        ["entropy of the single Gaussian N(μ₂, Σ₂)", f"{gmm['single_gaussian']:.6f}"],
        ["entropy of the mixture, by quadrature", f"{gmm['quadrature']:.6f}"],
        ["H̄ + H(π): upper grouping bound", f"{upper:.6f}"],
        ["H(π)", f"{gmm['mixing_entropy']:.4e}"],
        ["gap to the single Gaussian, by quadrature", f"{gmm['gap_quadrature']:.4e}"],
        [f"points expected from the rare components among {gmm['samples']:,}", f"{gmm['expected_rare_samples']:.1f}"],
    ]
    return markdown_table(["1.3", "nats, or points"], rows)


def gap_table(results):
    """Item 1.3: the gap to the single Gaussian, three ways."""
    names = {
        "plain": "(a) plain Monte Carlo",
        "control_variate": "(b) control variate",
        "multiple_importance": "(c) control variate, multiple importance sampling",
    }
    gmm = results["gmm"]["degenerate"]
    exact = gmm["gap_quadrature"]
    rows = [
        {"name": names[key], "error": (method["estimate"] - exact) / method["standard_error"], **method}
        for key, method in gmm["gap_methods"].items()
    ]
    columns = {
        f"H(p) − H(N₂), N = {gmm['samples']:,}": "{name}",
        "nats ± standard error": "{estimate:.3e} ± {standard_error:.1e}",
        "error in standard errors": "{error:+.1f}",
        f"root mean square of that over {gmm['calibration_runs']} runs": "{rms_error_in_standard_errors:.1f}",
        "N for a standard error of 1 %": "{samples_for_one_percent:.1e}",
    }
    return table(rows, columns) + f"\n| quadrature | {exact:.6e} |  |  |  |"


def run_table(results):
    """Every run's end."""
    test = next(iter(results["runs"].values()))["test"]
    bound = f"log p(x) ≥ ({test['iw_images']} images, {test['iw_samples']} draws)"
    columns = {
        "run": "{name}",
        "parameters": "{parameters:,}",
        "training (s)": "{train_seconds:.0f}",
        "test ELBO": "{test[elbo]:.1f} ± {test[elbo_standard_error]:.1f}",
        bound: "{test[iw_log_likelihood]:.1f} ± {test[iw_standard_error]:.1f}",
        "ELBO of the same images": "{test[iw_elbo]:.1f}",
    }
    return table([{"name": name, **run} for name, run in results["runs"].items()], columns)


def stage_table(results):
    """Item 2.4: the numbers behind the stage figures."""
    rows = [
        {"name": name, "stage": stage, **numbers}
        for name, run in results["runs"].items()
        for stage, numbers in run["stages"].items()
    ]
    columns = {
        "run, stage": "{name}, {stage}",
        "iteration": "{iteration:,}",
        "test ELBO": "{test[elbo]:.1f}",
        "KL": "{test[kl]:.1f}",
        "σ": "{sigma:.3f}",
        "5-NN accuracy of the map": "{tsne[knn_accuracy]:.3f}",
    }
    return table(rows, columns)


# ---- After the run


def write(results, folder):
    """Write results.json and the gallery."""
    write_json(folder / "results.json", results)
    write_text(folder / "README.md", gallery(results))


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
    return "\n\n".join(filter(None, parts)) + "\n"


def _stage_figures(results, name, title):
    def link(run, stage):
        path = f"{run}/{stage}/{name}.png"
        return f"[![{title}, {run}, {stage}]({path})]({path})"

    rows = [[f"**{run}**", *(link(run, stage) for stage in STAGES)] for run in results["runs"]]
    return f"#### {title}\n\n" + markdown_table(["run", *STAGES], rows)
