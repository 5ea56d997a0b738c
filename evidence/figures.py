"""The report's figures: measurements against the latent size, and digits reconstructed and sampled."""

import numpy as np
import torch
from matplotlib import color_sequences
from matplotlib.figure import Figure

from evidence.experiments import fit_code_mixture, trained_model
from evidence.posterior import sample_mixture
from files import save_figure
from sample_from_prior import draw_grid, sample_prior


def plot_latent_sizes(runs, path, title=""):
    """Write how each measurement depends on the latent size, mean and standard deviation over seeds, to `path`.

    Parameters
    ----------
    runs : list of dict
        As in `collect`, of calibrated sigma.
    path : path-like
        PNG file to write.
    title : str
    """
    panels = {
        "test ELBO (nats per image)": {"": lambda run: run["elbo"]},
        "KL (nats per image)": {"": lambda run: run["kl"]},
        "reconstruction error (MSE per pixel)": {"": lambda run: run["reconstruction_mse"]},
        "active units": {"": lambda run: run["active_units"]},
        "5-NN accuracy of codes": {"": lambda run: run["code_knn_accuracy"]},
        "KL(q(z) ‖ prior), held out (nats)": {"": lambda run: run["prior_divergence"]["held_out"]},
        "coverage of samples": {
            ", from the prior": lambda run: run["prior_samples"]["coverage"],
            ", from the mixture": lambda run: run["mixture_samples"]["coverage"],
        },
        "density of samples": {
            ", from the prior": lambda run: run["prior_samples"]["density"],
            ", from the mixture": lambda run: run["mixture_samples"]["density"],
        },
    }
    architectures = dict.fromkeys(run["architecture"] for run in runs)
    sizes = sorted({run["latent_dim"] for run in runs})
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    figure.suptitle(title)
    for axes, (label, values) in zip(figure.subplots(4, 2).flat, panels.items(), strict=True):
        for architecture, color in zip(architectures, color_sequences["petroff10"], strict=False):
            own = [run for run in runs if run["architecture"] == architecture]
            for (suffix, value), style in zip(values.items(), ("o-", "s--"), strict=False):
                dims, means, deviations = _over_seeds(own, value)
                axes.errorbar(dims, means, deviations, fmt=style, color=color, capsize=3, label=architecture + suffix)
        axes.set_title(label, fontsize="medium")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(dim) for dim in sizes])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in figure.axes[-2:]:
        axes.set_xlabel("latent dimensions K")
    save_figure(figure, path)


def _over_seeds(runs, value):
    """Return the latent sizes, and a measurement's mean and standard deviation over the seeds at each."""
    dims = sorted({run["latent_dim"] for run in runs})
    seeds = [[value(run) for run in runs if run["latent_dim"] == dim] for dim in dims]
    return dims, [np.mean(values) for values in seeds], [np.std(values, ddof=1) for values in seeds]


@torch.no_grad()
def plot_reconstructions_and_samples(models, dataset, path, title=""):
    """Write rows of digits to `path`: originals, then for each model, {name: VAE}, reconstructions and samples.

    Samples are decoded from the prior, and from a mixture fitted to the model's codes.
    """
    count = 20
    originals = dataset.test_images[:count]
    figure = Figure(figsize=(10, 0.5 + 2.0 * len(models)), layout="constrained")
    figure.suptitle(title)
    for axes, (name, model) in zip(figure.subplots(len(models), squeeze=False)[:, 0], models.items(), strict=True):
        mixture = fit_code_mixture(model, dataset)
        device = model.sigma.device
        mu, _ = model.encode(originals.to(device))
        rows = {
            "test images": originals,
            "reconstructions": model.decode(mu).cpu(),
            "from the prior": sample_prior(model, count),
            "from the mixture": sample_mixture(model, mixture, count),
        }
        draw_grid(axes, torch.cat(list(rows.values())), name, columns=count)
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([28 * row + 13.5 for row in range(len(rows))], list(rows))
    save_figure(figure, path)


def draw_figures(runs, measured, dataset, settings, folder):
    """Write the evidence's figures to `folder`: the sweep, and digits at each size and for each rule for sigma."""
    calibrated = [numbers for numbers in measured if numbers["sigma_rule"] == "calibrated"]
    plot_latent_sizes(calibrated, folder / "latent_sizes.png", dataset.note)
    first_seed = [run for run in runs if run.config.seed == settings.seed]
    fixed = {(run.architecture, run.latent_dim) for run in first_seed if run.config.sigma}
    shown = {
        f"samples_{name}.png": [
            run
            for run in first_seed
            if run.architecture == name and run.latent_dim in settings.latent_dims and not run.config.sigma
        ]
        for name in settings.architectures
    }
    shown["sigma.png"] = [run for run in first_seed if (run.architecture, run.latent_dim) in fixed]
    for name, chosen in shown.items():
        models = {_caption(run): trained_model(run, settings) for run in chosen}
        if models:
            plot_reconstructions_and_samples(models, dataset, folder / name, dataset.note)


def _caption(run):
    rule = "calibrated σ" if run.config.sigma is None else f"σ = {run.config.sigma:g}"
    return f"{run.architecture}, z = {run.latent_dim}, {rule}"
