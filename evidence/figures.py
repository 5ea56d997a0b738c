"""The evidence's pictures: what is measured at each latent size, and digits coded, drawn and joined by paths.

A colour stands for a network in every figure, a line style or a marker for whatever else differs.
"""

from functools import reduce
from operator import getitem, itemgetter

import numpy as np
import torch
from scipy.stats import chi

from drawing import BLUE, ORANGE, Circle, Line2D, ScalarMappable, draw_mosaic, figure_file, mosaic_centres
from evidence.experiments import fit_code_mixture, trained_model
from evidence.pages import CARRYING, measured_in, over_seeds
from evidence.posterior import draw_codes, sample_mixture
from mnist import CLASSES, evenly_spaced
from sample_from_prior import sample_prior
from train import decode, encode_means

NAMES = {"conv": "convolutional", "mlp": "fully connected"}
COLORS = {"conv": BLUE, "mlp": ORANGE}
GAP = 2  # white pixels between digits
DRAWN = 8  # samples in a row
GREATEST_ERROR = 0.75  # pixel value at the ends of the errors' colours
STEPS = 9  # digits of a path, its ends included
PAIRS = {"different classes": ((0, 6), (3, 8), (4, 9), (1, 7)), "the same class": ((2, 2), (4, 4), (5, 5), (7, 7))}
RADII = (1, 2, 3)  # standard deviations of the prior
WIDTHS = (2.4, 1.7, 1.0)  # points, of the lines that hold as much as is within each


# ---- Numbers


def plot_latent_sizes(groups, real, path, title=""):
    """Write how each measurement depends on the latent size, mean and standard deviation over seeds, to `path`.

    Parameters
    ----------
    groups : list of dict
        Of `pages.over_seeds`, one for each network and size, of calibrated sigma.
    real : dict
        "density" and "coverage" of real digits.
    path : path-like
        PNG file to write.
    title : str
    """
    panels = {
        "ELBO (nats per image)": ("elbo", "train_elbo"),
        "KL(q(z|x) ‖ prior) (nats per image)": ("kl",),
        "reconstruction error (MSE per pixel)": ("reconstruction_mse",),
        f"dimensions with more than {CARRYING} nats": ("carrying",),
        "5-NN accuracy of codes (share)": ("code_knn_accuracy",),
        "KL(q(z) ‖ prior) less the null check's (nats)": ("divergence.held_out",),
        "coverage of samples": ("prior_samples.coverage", "mixture_samples.coverage"),
        "density of samples": ("prior_samples.density", "mixture_samples.density"),
    }
    groups = sorted(groups, key=itemgetter("latent_dim"))
    networks, sizes = _networks(groups), list(dict.fromkeys(group["latent_dim"] for group in groups))
    with figure_file(path, (10, 10.5), title) as figure:
        for axes, (label, keys) in zip(figure.subplots(4, 2, sharex=True).flat, panels.items(), strict=True):
            for network, dodge in zip(networks, (0.97, 1.03), strict=False):  # or one curve would hide the other
                own = [group for group in groups if group["architecture"] == network]
                at = [dodge * group["latent_dim"] for group in own]
                for key, style in zip(keys, ("o-", "s--"), strict=False):
                    spreads = [reduce(getitem, key.split("."), group) for group in own]
                    means, deviations = ([spread[part] for spread in spreads] for part in ("mean", "deviation"))
                    axes.errorbar(at, means, deviations, fmt=style, color=COLORS[network], capsize=3, markersize=5)
            axes.set_title(label, fontsize="medium")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(dim) for dim in sizes])
            axes.grid(alpha=0.3)
        *_, coverage, density = figure.axes
        density.set_yscale("log", base=2)
        density.yaxis.set_major_formatter("{x:g}")
        for axes, value in ((coverage, real["coverage"]), (density, real["density"])):
            axes.axhline(value, color="black", linestyle=":")
            axes.set_xlabel("latent dimensions K")
        handles = [Line2D([], [], color=COLORS[network], linewidth=3, label=NAMES[network]) for network in networks]
        styles = {
            "test images; samples from the prior": {"marker": "o"},
            "images trained on; samples from the mixture": {"marker": "s", "linestyle": "--"},
            "real digits": {"linestyle": ":"},
        }
        handles += [Line2D([], [], color="black", label=label, **style) for label, style in styles.items()]
        caption = f"mean ± 1 standard deviation over {groups[0]['elbo'].seeds} seeds"
        figure.legend(handles=handles, loc="outside lower center", ncols=3, title=caption)


def plot_kl_spectrum(runs, path, title=""):
    """Write the sorted KL of each dimension at the three largest latent sizes to `path`, a panel for each network.

    Thin lines are seeds, thick ones their mean at each rank, up to a dot at the last. `runs` is a list of dicts as in
    `collect`, of calibrated sigma.
    """
    networks = _networks(runs)
    with figure_file(path, (10, 4.2), title) as figure:
        panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            own = [run for run in runs if run["architecture"] == network]
            for dim, style in zip(sorted({run["latent_dim"] for run in own})[-3:], (":", "--", "-"), strict=False):
                alike = [run for run in own if run["latent_dim"] == dim]
                spectra = np.array([sorted(run["kl_per_dimension"], reverse=True) for run in alike])
                ranks, color = range(1, dim + 1), COLORS[network]
                label = f"K = {dim}: {', '.join(str(_carrying(run)) for run in alike)}"
                axes.plot(ranks, spectra.T, style, color=color, linewidth=0.7, alpha=0.6)
                axes.plot(
                    ranks, spectra.mean(0), style, marker="o", markevery=[-1], color=color, linewidth=2, label=label
                )
            axes.axhline(CARRYING, color="black", linewidth=1)
            axes.annotate(f"{CARRYING} nats", (1, CARRYING), (0, 3), textcoords="offset points")
            axes.set(yscale="log", title=NAMES[network], xlabel="dimension, in order of its KL")
            axes.grid(alpha=0.3)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.legend(loc="lower left", title=f"dimensions above\n{CARRYING} nats, by seed", fontsize="small")
        panels[0].set_ylabel("KL of the dimension (nats per image)")


def plot_elbo_time(budgets, path, title=""):
    """Write the test ELBO that annealed trainings of some lengths reach against their seconds to `path`.

    `budgets` is a list of dicts of "architecture", "epochs", "train_seconds" and "elbo" (nats per image).
    """
    with figure_file(path, (8, 5), title) as figure:
        axes = figure.subplots()
        for network in _networks(budgets):
            own = sorted((run for run in budgets if run["architecture"] == network), key=itemgetter("epochs"))
            seconds, elbos = ([run[key] for run in own] for key in ("train_seconds", "elbo"))
            axes.plot(seconds, elbos, "o-", color=COLORS[network], label=NAMES[network])
            side = 1 if network == "conv" else -1  # below and above, where neither curve is
            for run, *point in zip(own, seconds, elbos, strict=True):
                offset = (9 * side, -10 * side)
                axes.annotate(str(run["epochs"]), point, offset, textcoords="offset points", ha="center", va="center")
        axes.set(xscale="log", xlabel="training (seconds)", ylabel="test ELBO (nats per image)")
        axes.margins(0.08)
        axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(loc="lower right", title="each point: a whole training,\nlabelled with its epochs")


def _networks(runs):
    """List the architectures of some runs in the order of their colours."""
    return [name for name in COLORS if any(run["architecture"] == name for run in runs)]


def _carrying(run):
    return sum(nats > CARRYING for nats in run["kl_per_dimension"])


# ---- Digits


def plot_digits_by_latent_size(models, dataset, path, title=""):
    """Write what models {K: VAE} make of the same test digits, and what they draw, to `path`: a row for each K."""
    rows = _rows_of_models({f"K = {dim}": model for dim, model in models.items()}, _digits(dataset), dataset, DRAWN)
    real = _digits(dataset), *evenly_spaced(dataset.test_images, 2 * DRAWN).split(DRAWN)
    with _sheet(path, 0.4 + 0.35 * (1 + len(models)), title) as figure:
        panels = figure.subplots(1, 3, width_ratios=[*map(len, real)])
        for axes, digits, (label, own) in zip(panels, real, rows.items(), strict=True):
            _draw_labelled_rows(axes, {"test digits": digits, **own}, label)
        for axes in panels[1:]:
            axes.set_yticks([])


def plot_sigma(models, dataset, path, title=""):
    """Write what models {name: VAE} that differ in sigma make of the same test digits, and what they draw."""
    digits = torch.cat([_digits(dataset), _digits(dataset, 1)])
    panels = _rows_of_models(models, digits, dataset, len(digits))
    panels["reconstructions"] = {"test digits": digits, **panels["reconstructions"]}
    with _sheet(path, 1.0 + 0.455 * sum(map(len, panels.values())), title) as figure:
        subplots = figure.subplots(3, 1, height_ratios=[*map(len, panels.values())])
        for axes, (label, rows) in zip(subplots, panels.items(), strict=True):
            _draw_labelled_rows(axes, rows, label)


def _rows_of_models(models, digits, dataset, drawn):
    """Reconstruct digits by models {name: VAE} and draw samples from them: {what: {name: images (N, 1, 28, 28)}}."""
    return {
        "reconstructions": {name: _reconstruct(model, digits) for name, model in models.items()},
        "samples from the prior": {name: sample_prior(model, drawn) for name, model in models.items()},
        "samples from the mixture": {
            name: sample_mixture(model, fit_code_mixture(model, dataset), drawn) for name, model in models.items()
        },
    }


def plot_networks(models, dataset, path, title=""):
    """Write what models {architecture: VAE} make of the same test digits, each one's error, and samples, to `path`."""
    digits = torch.cat([_digits(dataset), _digits(dataset, 1)])[: 2 * DRAWN]
    errors = ScalarMappable(cmap="RdBu_r")
    errors.set_clim(-GREATEST_ERROR, GREATEST_ERROR)
    reconstructions = {NAMES[name]: _reconstruct(model, digits) for name, model in models.items()}
    differences = {
        f"error, {name}": errors.to_rgba((images - digits).view(-1, 28).numpy()).reshape(-1, 28, 28, 4)[..., :3]
        for name, images in reconstructions.items()
    }
    samples = {NAMES[name]: sample_prior(model, 2 * DRAWN) for name, model in models.items()}
    with _sheet(path, 0.75 + 0.475 * (1 + 3 * len(models)), title) as figure:
        above, below = figure.subplots(2, 1, height_ratios=(1 + 2 * len(models), len(models)))
        _draw_labelled_rows(
            above, {"test digits": digits, **reconstructions, **differences}, "the same test digits, reconstructed"
        )
        _draw_labelled_rows(
            below, samples, "samples from the prior: the same draws of z, in two different latent spaces"
        )
        bar = figure.colorbar(errors, ax=[above, below], shrink=0.7, anchor=(0, 0.8), extend="both", pad=0.01)
        bar.set_label("reconstruction − test digit (pixel value)")


@torch.no_grad()
def plot_interpolation(model, dataset, path, title=""):
    """Write paths between pairs of test digits to `path`: straight in codes, then decoded, and straight in pixels."""
    with _sheet(path, 4.4, title) as figure:
        share = torch.linspace(0, 1, STEPS).view(-1, 1)
        for axes, (label, pairs) in zip(figure.subplots(1, len(PAIRS)), PAIRS.items(), strict=True):
            rows = {}
            for first, last in pairs:
                ends = torch.cat([_digit(dataset, first), _digit(dataset, last, nth=int(first == last))])
                codes = torch.from_numpy(encode_means(model, ends))
                rows[f"{first} → {last}, codes"] = decode(model, torch.lerp(codes[:1], codes[1:], share))
                rows[f"{first} → {last}, pixels"] = torch.lerp(ends[:1], ends[1:], share.view(-1, 1, 1, 1))
            _draw_labelled_rows(axes, rows, f"between digits of {label}")
            axes.set_xticks(mosaic_centres(STEPS, GAP)[::2], ["0", "¼", "½", "¾", "1"])
            axes.set_xlabel("share of the second digit's code or pixels")


def _digit(dataset, label, nth=0):
    """Return the nth test image of a class, shape (1, 1, 28, 28)."""
    return dataset.test_images[dataset.test_labels == label][nth : nth + 1]


def _digits(dataset, nth=0):
    """Return the nth test image of every class, shape (10, 1, 28, 28)."""
    return torch.cat([_digit(dataset, label, nth) for label in range(CLASSES)])


def _reconstruct(model, images):
    """Decode the posterior means of images (N, 1, 28, 28): images of the same shape."""
    return decode(model, torch.from_numpy(encode_means(model, images)))


def _sheet(path, height, title):
    """Open a figure for rows of digits, as wide as a page and `height` inches high besides its title."""
    return figure_file(path, (10, height + 0.3 * bool(title)), title)


def _draw_labelled_rows(axes, rows, title):
    """Draw labelled rows of images, {label: (N, 1, 28, 28) greys or (N, 28, 28, 3) colours}, as one mosaic."""
    arrays = map(np.asarray, rows.values())
    images = [row if row.shape[-1] == 3 else row.reshape(-1, 28, 28, 1).repeat(3, axis=-1) for row in arrays]
    draw_mosaic(axes, np.stack(images), GAP)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks(mosaic_centres(len(rows), GAP), list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


# ---- Codes


def plot_aggregate_posterior(models, dataset, path, title=""):
    """Write how codes z ~ q(z|x) of test digits lie beside the prior, for models {K: VAE}, to `path`.

    At K = 2 in the plane: regions of equal density of the fitted mixture against the prior's circles, each holding as
    many of the codes as the circle holds of the prior. At another K by their length |z|, which under the prior has the
    chi distribution with K degrees of freedom.
    """
    with figure_file(path, (5 * len(models), 5), title) as figure:
        for axes, (dim, model) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
            codes = draw_codes(model, dataset.test_images, seed=1)
            draw = _draw_contours if dim == 2 else _draw_lengths
            draw(axes, codes, fit_code_mixture(model, dataset), COLORS[model.architecture])


def _draw_contours(axes, codes, mixture, color):
    masses = [chi.cdf(radius, 2) for radius in RADII]
    reach = 1.1 * max(*RADII, np.quantile(np.abs(codes), 0.999))
    side = np.linspace(-reach, reach, 200)
    plane = np.stack(np.meshgrid(side, side), axis=-1)
    densities = mixture.log_prob(plane.reshape(-1, 2)).reshape(200, 200)
    levels = np.quantile(mixture.log_prob(codes), [1 - mass for mass in masses])
    axes.plot(*codes.T, ".", color="gray", markersize=1.5, alpha=0.4)
    axes.contour(side, side, densities, sorted(levels), colors=[color], linestyles="-", linewidths=WIDTHS[::-1])
    for radius, width in zip(RADII, WIDTHS, strict=True):
        axes.add_patch(Circle((0, 0), radius, fill=False, linestyle="--", linewidth=width))
    axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), xlabel="$z_1$", ylabel="$z_2$")
    axes.set_title("K = 2: lines around " + ", ".join(f"{100 * mass:.0f} %" for mass in masses), fontsize="medium")
    handles = [
        Line2D([], [], color="gray", marker=".", linestyle="", label="codes of test digits"),
        Line2D([], [], color=color, label="of the codes, by density"),
        Line2D([], [], color="black", linestyle="--", label="of the prior: 1, 2, 3 σ"),
    ]
    axes.legend(handles=handles, loc="upper left", fontsize="small")


def _draw_lengths(axes, codes, mixture, color):
    dim = codes.shape[1]
    lengths = np.linalg.norm(codes, axis=1)
    drawn = np.linalg.norm(mixture.sample(len(codes), np.random.default_rng(0))[0], axis=1)
    ends = min(lengths.min(), chi.ppf(1e-3, dim)), max(np.quantile(lengths, 0.999), chi.ppf(0.999, dim))
    bins, fine = np.linspace(*ends, 40), np.linspace(*ends, 300)
    axes.hist(lengths, bins, density=True, color=color, alpha=0.5, label="codes of test digits")
    axes.hist(drawn, bins, density=True, histtype="step", color=color, linewidth=1.5, label="draws from the mixture")
    axes.plot(fine, chi.pdf(fine, dim), "k--", label=f"prior: χ distribution, {dim} degrees of freedom")
    axes.set(xlabel="length |z| of a code (standard deviations of the prior)", ylabel="share of codes per unit of |z|")
    axes.set_title(f"K = {dim}: distance from the origin", fontsize="medium")
    axes.margins(y=0.25)
    axes.legend(loc="upper right", fontsize="small")


# ---- All of them


def draw_figures(plan, evidence, dataset, settings, folder):
    """Write the figures of a plan's runs, trained before, and of what `collect` measured of them, to `folder`."""
    note, runs = dataset.note, measured_in("sizes", evidence)
    groups = [*over_seeds(evidence | {"runs": runs}).values()]
    plot_latent_sizes(groups, evidence["real_digits"], folder / "latent_sizes.png", note)
    plot_kl_spectrum(runs, folder / "kl_spectrum.png", note)
    plot_elbo_time(measured_in("budgets", evidence), folder / "elbo_time.png", note)

    first = [run for run in plan["sizes"] if run.config.seed == settings.seed]
    models = {(run.architecture, run.latent_dim): trained_model(run, settings) for run in first}
    network, dim = settings.architectures[0], settings.latent_dims[-1]
    sizes = {size: model for (name, size), model in models.items() if name == network}
    plot_digits_by_latent_size(sizes, dataset, folder / "digits_by_latent_size.png", note)
    plot_networks({name: models[name, dim] for name in settings.architectures}, dataset, folder / "networks.png", note)
    shown = {size: sizes[size] for size in settings.latent_dims}
    plot_aggregate_posterior(shown, dataset, folder / "aggregate_posterior.png", note)
    plot_interpolation(sizes[dim], dataset, folder / "interpolation.png", note)
    for fixed in plan["sigma"][:1]:
        calibrated_too = models[fixed.architecture, fixed.latent_dim]
        rules = {"calibrated σ": calibrated_too, f"σ = {fixed.config.sigma:g}": trained_model(fixed, settings)}
        plot_sigma(rules, dataset, folder / "sigma.png", note)
