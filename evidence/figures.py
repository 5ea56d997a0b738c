"""The evidence's pictures: numbers over latent sizes, sigmas and budgets, and codes beside the prior.

A colour stands for a network in every figure, a line style or a marker for whatever else differs. The pictures of
digits are in digits.py; `draw_figures` makes all of them.
"""

from functools import reduce
from operator import getitem, itemgetter

import numpy as np
from scipy.stats import chi

from drawing import BLUE, BROWN, ORANGE, PURPLE, Circle, Line2D, figure_file
from evidence import digits
from evidence.digits import NAMES
from evidence.experiments import fit_code_mixture, trained_model
from evidence.pages import CARRYING, budget_seconds, measured_in, over_seeds
from evidence.posterior import draw_codes

COLORS = {"conv": BLUE, "mlp": ORANGE, "conv-mlp": PURPLE, "mlp-conv": BROWN}
STYLES = ("o-", "s--")
BLURRED = {"test digits": "black", "mixture samples": PURPLE}
SPACES = {"coverage": "features", "pixel_coverage": "pixels"}
RADII = (1, 2, 3)  # standard deviations of the prior
SPECTRUM_STYLES = ((":", "^"), ("--", "s"), ("-", "o"))
WIDTHS = (2.4, 1.7, 1.0)  # points, of the lines that hold as much as is within each


# ---- Numbers


def plot_latent_sizes(groups, path, title=""):
    """Write how each measurement depends on the latent size, mean and standard deviation over seeds, to `path`.

    Parameters
    ----------
    groups : list of dict
        Of `pages.over_seeds`, one for each network and size, of calibrated sigma.
    path : path-like
        PNG file to write.
    title : str
    """
    panels = {
        "ELBO (nats per image)": {"elbo": "test images", "train_elbo": "images trained on"},
        "KL(q(z|x) ‖ prior) (nats per image)": {"kl": ""},
        "reconstruction error (1000 × MSE per pixel)": {"error": ""},
        f"dimensions with more than {CARRYING} nats": {"carrying": ""},
        "5-NN accuracy of codes (share)": {"code_knn_accuracy": ""},
        "KL(q(z) ‖ prior), two lower bounds (nats)": {
            "prior_divergence.test_codes": "of a mixture fitted to codes",
            "information_bound": "mean KL − log N",
        },
    }
    with figure_file(path, (10, 9), title) as figure:
        subplots = figure.subplots(3, 2, sharex=True)
        _draw_over_sizes([*subplots.flat], panels, groups)
        for axes in (subplots[0, 0], subplots[2, 1]):
            axes.legend(handles=_in_black(axes), fontsize="small")
        _name_networks(figure, groups)


def plot_samples_as_digits(groups, references, path, title=""):
    """Write what a classifier of digits, and its features, say of samples at each latent size to `path`.

    `groups` are as in `plot_latent_sizes`, `references` as in `experiments.collect`.
    """
    names = {"recognised": "share recognised", "coverage": "coverage", "density": "density"}
    names |= {"frechet": "Fréchet distance", "class_entropy": "entropy of the classes (nats)"}
    panels = {label: _of_samples(key) for key, label in names.items()}
    blurred = {images: [row for row in references if row["images"] == images] for images in BLURRED}
    with figure_file(path, (10, 9.2), title) as figure:
        *over_sizes, over_blur = figure.subplots(3, 2).flat
        _draw_over_sizes(over_sizes, panels, groups)
        for axes, key in zip(over_sizes, names, strict=True):
            axes.axhline(blurred["test digits"][0][key], color="black", linestyle=":", label="test digits")
        _set_log_scale(over_sizes[3], "y")
        for images, rows in blurred.items():
            for (key, space), style in zip(SPACES.items(), STYLES, strict=True):
                points = sorted((row["blur"], row[key]) for row in rows)
                over_blur.plot(*zip(*points, strict=True), style, color=BLURRED[images], label=f"{images}, in {space}")
        over_blur.set_title("coverage, judged in two spaces", fontsize="medium")
        over_blur.set_xlabel("standard deviation of a blur (pixels)")
        over_blur.grid(alpha=0.3)
        over_blur.legend(fontsize="small")
        _name_networks(figure, groups, _in_black(over_sizes[0]))


def plot_bound_gap(groups, path, title=""):
    """Write by how much the importance-weighted bound exceeds the ELBO, over the latent size and over KL, to `path`."""
    panel = {"importance-weighted bound − ELBO (nats per image)": {"gap": ""}}
    with figure_file(path, (10, 4.2), title) as figure:
        over_sizes, over_kl = figure.subplots(1, 2)
        _draw_over_sizes([over_sizes], panel, groups)
        for network in _networks(groups):
            _draw_numbered(over_kl, _of(groups, network), ("kl", "gap"), "latent_dim")
        over_kl.set_title("the same against KL; the numbers are K", fontsize="medium")
        over_kl.set_xlabel("KL(q(z|x) ‖ prior) (nats per image)")
        _name_networks(figure, groups)


def plot_rate_distortion(sizes, halves, sigmas, budgets, path, title=""):
    """Write the rate, KL, of all trainings against their distortion, the error of reconstruction, to `path`.

    Each argument before `path` is a list of dicts of `pages.over_seeds`: over latent sizes; with encoder and decoder
    exchanged, among others; over fixed sigmas; over budgets of epochs.
    """
    exchanged = [group for group in halves if "-" in group["architecture"]]
    sizes, exchanged = (sorted(groups, key=itemgetter("latent_dim")) for groups in (sizes, exchanged))
    panels = [
        (sizes, "latent_dim", "numbers: K", exchanged, "D:"),
        (sigmas, "sigma_rule", "numbers: σ; pale: over K", sizes, "-"),
        (budgets, "epochs", "numbers: epochs, one seed; pale: over K", sizes, "-"),
    ]
    panels, keys = [panel for panel in panels if panel[0]], ("kl", "error")
    with figure_file(path, (10, 5), title) as figure:
        subplots = figure.subplots(1, len(panels))
        for axes, (groups, number, label, others, style) in zip(subplots, panels, strict=True):
            for network in _networks(groups):
                _draw_numbered(axes, _of(groups, network), keys, number)
            _set_log_scale(axes, "y")
            axes.autoscale(groups is sizes)
            for network in _networks(others):
                axes.plot(*_means(_of(others, network), keys), style, color=COLORS[network], markersize=5, alpha=0.6)
            axes.set_title(label, fontsize="medium")
            axes.set_xlabel("rate: KL (nats per image)")
        subplots[0].set_ylabel("distortion: 1000 × MSE per pixel")
        _name_networks(figure, sizes + exchanged, ncols=2, caption="mean")


def plot_kl_spectrum(runs, path, title=""):
    """Write the sorted KL of each dimension at the three largest latent sizes to `path`, a panel for each network.

    Thin lines are seeds, thick ones their mean at each rank, up to a dot at the last. `runs` is a list of dicts as in
    `collect`, of calibrated sigma.
    """
    networks = _networks(runs)
    with figure_file(path, (10, 4.2), title) as figure:
        panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            own = _of(runs, network)
            for dim, (style, marker) in zip(
                sorted({run["latent_dim"] for run in own})[-3:], SPECTRUM_STYLES, strict=False
            ):
                alike = [run for run in own if run["latent_dim"] == dim]
                spectra = np.array([sorted(run["kl_per_dimension"], reverse=True) for run in alike])
                ranks, color = range(1, dim + 1), COLORS[network]
                label = f"K = {dim}: {', '.join(str(_carrying(run)) for run in alike)}"
                axes.plot(ranks, spectra.T, style, color=color, linewidth=0.7, alpha=0.6)
                axes.plot(
                    ranks, spectra.mean(0), style, marker=marker, markevery=[-1], color=color, linewidth=2, label=label
                )
            axes.axhline(CARRYING, color="black", linewidth=1)
            axes.annotate(f"{CARRYING} nats", (1, CARRYING), (0, 3), textcoords="offset points")
            axes.set(yscale="log", title=NAMES[network], xlabel="dimension, in order of its KL")
            axes.grid(alpha=0.3)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.legend(
                loc="lower left", title=f"dimensions above\n{CARRYING} nats, by seed", fontsize="small", handlelength=4
            )
        panels[0].set_ylabel("KL of the dimension (nats per image)")


def plot_elbo_time(budgets, path, title=""):
    """Write the test ELBO that annealed trainings of some lengths reach against their seconds to `path`.

    `budgets` are of `pages.over_seeds`, and differ in their epochs.
    """
    with figure_file(path, (8, 5), title) as figure:
        axes = figure.subplots()
        for network in _networks(budgets):
            _draw_numbered(axes, _of(budgets, network), ("seconds", "elbo"), "epochs")
        _set_log_scale(axes, "x")
        axes.set(xlabel="training (seconds)", ylabel="test ELBO (nats per image)")
        axes.legend(loc="lower right", title="each point: a whole training\nof that many epochs")


def _of_samples(key):
    """Name a measurement of samples from the prior and of those from the mixture: a panel of `_draw_spreads`."""
    return {"prior_samples." + key: "samples from the prior", "mixture_samples." + key: "samples from the mixture"}


def _draw_over_sizes(subplots, panels, groups):
    """Draw spreads over latent sizes."""
    sizes = sorted({group["latent_dim"] for group in groups})
    _draw_spreads(subplots, panels, groups, itemgetter("latent_dim"))
    for axes in subplots:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(dim) for dim in sizes])
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("latent dimensions K")


def _draw_spreads(subplots, panels, groups, place):
    """Draw means and deviations over seeds at each group's place, for panels {label: {key: what its line shows}}."""
    groups, networks = sorted(groups, key=place), _networks(groups)
    dodges = (0.97, 1.03) if len(networks) == 2 else (1,)  # or one curve would hide the other
    for axes, (label, keys) in zip(subplots, panels.items(), strict=True):
        for network, dodge in zip(networks, dodges, strict=True):
            own = _of(groups, network)
            at = [dodge * place(group) for group in own]
            for (key, what), style in zip(keys.items(), STYLES, strict=False):
                spreads = [reduce(getitem, key.split("."), group) for group in own]
                means, deviations = ([spread[part] for spread in spreads] for part in ("mean", "deviation"))
                color = COLORS[network]
                axes.errorbar(at, means, deviations, fmt=style, color=color, capsize=3, markersize=5, label=what)
        axes.set_title(label, fontsize="medium")
        axes.grid(alpha=0.3)


def _draw_numbered(axes, groups, keys, number):
    """Draw a line through the means of two keys of a network's groups, each point named by a number of the group's."""
    groups = sorted(groups, key=itemgetter(number))
    places = _means(groups, keys)
    color, label = (names[groups[0]["architecture"]] for names in (COLORS, NAMES))
    axes.plot(*places, color=color, label=label)
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": color}
    for group, *place in zip(groups, *places, strict=True):
        axes.annotate(f"{group[number]:g}", place, ha="center", va="center", fontsize="x-small", bbox=box)
    axes.margins(0.08)
    axes.grid(alpha=0.3, which="both")


def _means(groups, keys):
    """List the means over seeds of each key."""
    return [[group[key]["mean"] for group in groups] for key in keys]


def _set_log_scale(axes, name):
    """Give an axis, "x" or "y", a logarithmic scale with plain numbers at 1, 2 and 5 times the powers of ten."""
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.get_major_locator().set_params(subs=(1, 2, 5))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _name_networks(figure, groups, styles=(), ncols=5, caption="mean ± 1 standard deviation"):
    """Put a legend below the figure with the networks' colours and line styles, which are handles."""
    networks = [Line2D([], [], color=COLORS[name], linewidth=3, label=NAMES[name]) for name in _networks(groups)]
    caption = f"{caption} over {groups[0]['elbo'].seeds} seeds"
    figure.legend(handles=[*networks, *styles], loc="outside lower center", ncols=ncols, title=caption)


def _in_black(axes):
    """Return legend handles for the line styles that the axes name, whatever network they are of."""
    named = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    lines = {label: getattr(handle, "lines", [handle])[0] for label, handle in named.items()}
    return [
        Line2D([], [], color="black", linestyle=line.get_linestyle(), marker=line.get_marker(), label=label)
        for label, line in lines.items()
    ]


def _of(groups, network):
    """Return those of an architecture."""
    return [group for group in groups if group["architecture"] == network]


def _networks(groups):
    """List the architectures of some runs or groups in the order of their colours."""
    return [name for name in COLORS if _of(groups, name)]


def _carrying(run):
    return sum(nats > CARRYING for nats in run["kl_per_dimension"])


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

    def groups(experiment):
        return [*over_seeds({"runs": measured_in(experiment, evidence)}).values()]

    sizes, sigmas = groups("sizes"), groups("sigma")
    budgets = [*over_seeds({"runs": budget_seconds(evidence)}).values()]
    plot_latent_sizes(sizes, folder / "latent_sizes.png", note)
    plot_samples_as_digits(sizes, evidence["references"], folder / "samples_as_digits.png", note)
    plot_bound_gap(sizes, folder / "bound_gap.png", note)
    plot_rate_distortion(sizes, groups("halves"), sigmas, budgets, folder / "rate_distortion.png", note)
    plot_kl_spectrum(runs, folder / "kl_spectrum.png", note)
    plot_elbo_time(budgets, folder / "elbo_time.png", note)

    first = [run for run in plan["sizes"] if run.config.seed == settings.seed]
    models = {(run.architecture, run.latent_dim): trained_model(run, settings) for run in first}
    network, dim = settings.architectures[0], plan["halves"][0].latent_dim
    own = {size: model for (name, size), model in models.items() if name == network}
    rows = {f"K = {size}": model for size, model in own.items()}
    digits.plot_digits_by_model(rows, dataset, folder / "digits_by_latent_size.png", note)
    both = {name: models[name, dim] for name in settings.architectures}
    digits.plot_networks(both, dataset, folder / "networks.png", note)
    digits.plot_outliers(both, dataset, folder / "outliers.png", note)
    shown = {size: own[size] for size in settings.latent_dims}
    plot_aggregate_posterior(shown, dataset, folder / "aggregate_posterior.png", note)
    digits.plot_interpolation(own[dim], dataset, folder / "interpolation.png", note)
    digits.plot_traversal_from_digit(own[dim], dataset, folder / "traversal_from_digit.png", note)
    digits.plot_nearest(own[dim], dataset, folder / "samples_near.png", note)

    fixed = [run for run in plan["sigma"] if run.config.seed == settings.seed]
    if fixed:
        network = fixed[0].architecture
        rules = {f"σ = {run.config.sigma:g}": trained_model(run, settings) for run in fixed}
        rules[f"calibrated: {models[network, dim].sigma.item():.2f}"] = models[network, dim]
        rules = dict(sorted(rules.items(), key=lambda rule: rule[1].sigma.item()))
        digits.plot_digits_by_model(rules, dataset, folder / "sigma.png", note)
