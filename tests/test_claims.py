"""The sentences of README.md and REPORT.md that compare or explain, each with the predicate that holds it."""

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gmm_entropy import COVARIANCES, DEGENERATE_WEIGHTS, GMM, MEANS, N_SAMPLES, SECOND

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / "figures/evidence/results.json").read_text(encoding="utf-8"))
PAGES = " ".join(" ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in ("README.md", "REPORT.md"))
SIZES = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = ("conv", "mlp")
FIXED = ("mlp_z16_sigma1", "mlp_z16_sigma0.5")


class Results:
    """What predicates read: `r("conv_z16")` are the means over seeds, `r.at(name, stage)` is a run of main.py."""

    def __init__(self, results):
        self.even, self.rare = (SimpleNamespace(**results["main"]["gmm"][key]) for key in ("balanced", "degenerate"))
        self.runs, self.judge = results["main"]["runs"], results["judge"]
        self.controls = SimpleNamespace(**results["main"]["controls"], **results["latent_sizes"])
        self.groups = results["sigma"]["groups"] | results["networks"]["groups"]

    def __call__(self, group):
        numbers = {key: value["mean"] for key, value in self.groups[group].items() if isinstance(value, dict)}
        return SimpleNamespace(**numbers, overfitting=numbers["train_elbo"] - numbers["elbo"])

    def at(self, name, stage="end"):
        measured = self.runs[name]["stages"][stage]
        return SimpleNamespace(**measured["test"], **measured["tsne"])

    def lead(self, group, errors=-2):
        """The lead over the fully connected network, and so many of its standard errors."""
        return self.groups[group]["lead"]["mean"] + errors * self.groups[group]["lead"]["standard_error"]

    def first_half(self, name):
        """The share of the test ELBO's gain over the mean image that comes in the first half of a training."""
        gains = [self.at(name, stage).elbo - self.controls.mean_image_elbo for stage in ("middle", "end")]
        return gains[0] / gains[1]

    def over_sizes(self, network, key):
        """A measurement at each K."""
        return [getattr(self(f"{network}_z{dim}"), key) for dim in SIZES]


def rare_share(rare):
    """The share of the gap that points of the rare components make up."""
    surplus = [rare.weights[k] * (rare.component_surprise[k] - rare.single_gaussian) for k in (0, 2)]
    return sum(surplus) / rare.gap_quadrature


def paired_error():
    """The standard error of the difference of 1.3's two Monte Carlo estimates, which share their normals."""
    mixtures = GMM(DEGENERATE_WEIGHTS, MEANS, COVARIANCES), GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])
    values = [gmm.log_prob(gmm.sample(N_SAMPLES, np.random.default_rng(0))[0]) for gmm in mixtures]
    return np.subtract(*values).std() / N_SAMPLES**0.5


def rises(values):
    return all(less < more for less, more in pairwise(values))


def falls(values):
    return rises(values[::-1])


CONV = ("conv_z2", "conv_z16")
CLAIMS = {
    # Problem 1
    "indistinguishable": lambda r: abs(r.rare.entropy - r.rare.single_gaussian) < 2 * r.rare.standard_error,
    "nats above that of the single Gaussian": lambda r: r.rare.gap_quadrature > 0,
    "100,000 plain samples cannot resolve this gap": lambda r: r.rare.standard_error > 10 * r.rare.gap,
    "difference is about as large as the gap": lambda r: 0.5 < paired_error() / r.rare.gap_quadrature < 2,
    "importance sampling finds the gap": lambda r: (
        abs(r.rare.gap - r.rare.gap_quadrature) < 3 * r.rare.gap_standard_error < r.rare.gap / 10
    ),
    "lie on one line": lambda r: abs(r.rare.entropy - r.rare.single_gaussian_estimate) < 1e-3,
    "The rest: points of $N_2$ are slightly less dense in the mixture": lambda r: 0.9 < rare_share(r.rare) < 1,
    "Numerical integration gives": lambda r: abs(r.even.entropy - r.even.quadrature) < 3 * r.even.standard_error,
    # 2.2
    "of 16 dimensions are used": lambda r: r("mlp_z16_sigma1").dimensions_in_use < 8,
    "does not repair this": lambda r: r("mlp_z16").elbo > r("mlp_z16_sigma1").elbo_with_fitted_sigma + 100,
    "the sharper the reconstructions": lambda r: falls([r(name).mse for name in (*FIXED, "mlp_z16")]),
    "So calibration gives the best decoder, but the fewest recognised samples from the prior": lambda r: all(
        r(name).mixture_recognised < r("mlp_z16").mixture_recognised - 0.05
        and r(name).prior_recognised > 2 * r("mlp_z16").prior_recognised
        for name in FIXED
    ),
    # 2.4
    "In the first half of training most classes separate": lambda r: all(
        r.at(name, "middle").knn_accuracy > (r.at(name, "begin").knn_accuracy + 3 * r.at(name).knn_accuracy) / 4
        for name in CONV
    ),
    "about nine tenths of its gain": lambda r: all(0.85 < r.first_half(name) < 0.95 for name in CONV),
    "stays at about 10": lambda r: all(abs(r.at("conv_z2", stage).kl - 10) < 0.5 for stage in ("middle", "end")),
    "differs from the mean image": lambda r: abs(r.at("conv_z16", "begin").elbo - r.controls.mean_image_elbo) < 5,
    "At the beginning the KL is below one nat": lambda r: r.at("conv_z16", "begin").kl < 1,
    "nearly every class has its own place": lambda r: r.at("conv_z16", "middle").knn_accuracy > 0.94,
    "most classes mix": lambda r: r.at("conv_z2", "begin").knn_accuracy < 0.5,
    "First 4, 7 and 9 mix": lambda r: r.at("conv_z16", "begin").knn_accuracy < 0.75,
    "4 with 9, and 3 with 5": lambda r: r.at("conv_z2").knn_accuracy < 0.9,
    "So training groups the classes at both sizes": lambda r: all(
        r.at(name).codes_knn_accuracy > r.runs[name]["untrained_knn_accuracy"] + 0.05 for name in CONV
    ),
    "at K = 2 less well than raw pixels": lambda r: (
        r.at("conv_z2").codes_knn_accuracy + 0.03 < r.controls.pixels_knn_accuracy < r.at("conv_z16").codes_knn_accuracy
    ),
    "at K = 16 the ELBO still rises": lambda r: r.at("conv_z16").elbo > r.at("conv_z16", "middle").elbo + 50,
    # 2.5
    "its ELBO is higher at K = 16": lambda r: r.lead("conv_z16") > 50,
    "training takes a fifth of the time": lambda r: 4 < r("conv_z16").train_seconds / r("mlp_z16").train_seconds < 6,
    "The lead grows from K = 2 to 64": lambda r: rises(r.over_sizes("conv", "lead")[1:]),
    "trainings differ more": lambda r: max(SIZES, key=lambda k: r.groups[f"conv_z{k}"]["lead"]["standard_error"]) == 1,
    "and falls behind the fully connected one": lambda r: r.lead("conv_z16_permuted", 2) < -20,
    "for which the order makes no difference": lambda r: abs(r("mlp_z16_permuted").elbo - r("mlp_z16").elbo) < 8,
    "gains nothing on test images": lambda r: (
        r.lead("mlp_wide_z16") < 2 and r("mlp_wide_z16").overfitting > r("mlp_z16").overfitting + 10
    ),
    "network overfits more": lambda r: r("mlp_z16").overfitting > r("conv_z16").overfitting + 10,
    # 2.6
    "More dimensions raise the ELBO and sharpen the reconstructions, as far as they are used": lambda r: (
        rises(r.over_sizes("conv", "elbo")) and falls(r.over_sizes("conv", "mse"))
    ),
    "But beyond 4, fewer samples from the prior are recognised": lambda r: all(
        falls(r.over_sizes(network, "prior_recognised")[2:6]) for network in NETWORKS
    ),
    "Principal components do worse": lambda r: all(
        error > 1.3 * mse for error, mse in zip(r.controls.pca_mse.values(), r.over_sizes("conv", "mse"), strict=True)
    ),
    "at about equal ELBO": lambda r: abs(r("mlp_z64").elbo - r("mlp_z32").elbo) < 5,
    "these samples improve up to K = 16": lambda r: falls(r.over_sizes("conv", "prior_frechet_distance")[:5]),
    "hardly at fault": lambda r: r("conv_z16").mixture_recognised > 0.9 * r.judge["test_digits"]["recognised"],
    "of averages of two": lambda r: (
        r.judge["averages_of_two_digits"]["recognised"] < 0.2 < 0.8 < r.judge["test_digits"]["recognised"]
    ),
}


@pytest.mark.parametrize("words", CLAIMS)
def test_claim_stands_on_a_page_and_holds(words):
    assert words in PAGES
    assert CLAIMS[words](Results(RESULTS))


def exchanged(results, names):
    """Results in which the parts of all keys such as "conv_z16_permuted" are exchanged as `names` says."""
    if not isinstance(results, dict):
        return results
    return {
        "_".join(names.get(part, part) for part in key.split("_")): exchanged(value, names)
        for key, value in results.items()
    }


@pytest.mark.parametrize("names", [{"conv": "mlp", "mlp": "conv"}, {"z2": "z16", "z16": "z2"}])
def test_claims_can_fail(names):
    """With the two networks exchanged, or with the two latent sizes, several claims are false."""
    other, failed = Results(exchanged(RESULTS, names)), 0
    for holds in CLAIMS.values():
        with suppress(KeyError):  # of a kind of run that only one of the networks has
            failed += not holds(other)
    assert failed >= 6
