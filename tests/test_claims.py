"""The sentences of README.md and REPORT.md that compare or explain, each with the predicate that holds it."""

import copy
import json
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gmm_entropy import COVARIANCES, DEGENERATE_WEIGHTS, GMM, MEANS, N_SAMPLES, SECOND

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / "figures/evidence/results.json").read_text(encoding="utf-8"))
PAGES = " ".join(" ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in ("README.md", "REPORT.md"))
SIZES = (1, 2, 4, 8, 16, 32, 64)


def balanced(r):
    return r["main"]["gmm"]["balanced"]


def degenerate(r):
    return r["main"]["gmm"]["degenerate"]


def rare_share(r):
    """The share of the gap that the rare components' surprise makes up."""
    d = degenerate(r)
    costs = [d["component_surprise"][k] - d["single_gaussian"] for k in (0, 2)]
    return sum(d["weights"][k] * cost for k, cost in zip((0, 2), costs, strict=True)) / d["gap_quadrature"]


def paired_error():
    """The standard error of the difference of 1.3's two Monte Carlo estimates, which share their normals."""
    mixtures = GMM(DEGENERATE_WEIGHTS, MEANS, COVARIANCES), GMM([1.0], [MEANS[SECOND]], [COVARIANCES[SECOND]])
    values = [gmm.log_prob(gmm.sample(N_SAMPLES, np.random.default_rng(0))[0]) for gmm in mixtures]
    return np.subtract(*values).std() / N_SAMPLES**0.5


def run(r, name):
    return r["main"]["runs"][name]


def at(r, name, stage, key):
    """A number of main.py's run at a stage: of the test images, or of the map."""
    measured = run(r, name)["stages"][stage]
    return (measured["test"] | measured["tsne"])[key]


def gain_in_first_half(r, name):
    """The share of the test ELBO's gain over the mean image that comes in the first half of a training."""
    mean_image = r["main"]["controls"]["mean_image_elbo"]
    return (at(r, name, "middle", "elbo") - mean_image) / (at(r, name, "end", "elbo") - mean_image)


def mean(r, group, key):
    """The mean over seeds of a measurement of a group of runs."""
    groups = r["networks"]["groups"] | r["sigma"]["groups"]
    return groups[group][key]["mean"]


def lead(r, group, errors=2):
    """The lead of a group over the fully connected network, less so many of its standard errors."""
    value = r["networks"]["groups"][group]["lead"]
    return value["mean"] - errors * (value["standard_error"] or 0)


def by(r, network, key):
    """The sizes K of a network, sorted by a measurement."""
    return sorted(SIZES, key=lambda dim: mean(r, f"{network}_z{dim}", key))


def overfitting(r, group):
    """How far the ELBO of training images is above that of test images."""
    return mean(r, group, "train_elbo") - mean(r, group, "elbo")


CONV = ("conv_z2", "conv_z16")
CLAIMS = [
    # Problem 1
    (
        "indistinguishable from the entropy of the single Gaussian",
        lambda r: (
            abs(degenerate(r)["entropy"] - degenerate(r)["single_gaussian"]) < 2 * degenerate(r)["standard_error"]
        ),
    ),
    ("nats above that of the single Gaussian", lambda r: degenerate(r)["gap_quadrature"] > 0),
    (
        "100,000 plain samples cannot resolve this gap",
        lambda r: degenerate(r)["standard_error"] > 10 * degenerate(r)["gap"],
    ),
    (
        "the standard error of their difference is about as large as the gap",
        lambda r: 0.5 < paired_error() / degenerate(r)["gap_quadrature"] < 2,
    ),
    (
        "importance sampling finds the gap",
        lambda r: (
            abs(degenerate(r)["gap"] - degenerate(r)["gap_quadrature"]) < 3 * degenerate(r)["gap_standard_error"]
            and degenerate(r)["gap"] > 10 * degenerate(r)["gap_standard_error"]
        ),
    ),
    (
        "lie on one line, because nearly all their points are the same",
        lambda r: abs(degenerate(r)["entropy"] - degenerate(r)["single_gaussian_estimate"]) < 1e-3,
    ),
    ("The rest: points of $N_2$ are slightly less dense in the mixture", lambda r: 0.9 < rare_share(r) < 1),
    (
        "Numerical integration gives",
        lambda r: abs(balanced(r)["entropy"] - balanced(r)["quadrature"]) < 3 * balanced(r)["standard_error"],
    ),
    # 2.2
    ("of 16 dimensions are used", lambda r: mean(r, "mlp_z16_sigma1", "dimensions_in_use") < 8),
    (
        "Refitting $\\sigma_x$ does not repair this",
        lambda r: mean(r, "mlp_z16", "elbo") > mean(r, "mlp_z16_sigma1", "elbo_with_fitted_sigma") + 100,
    ),
    (
        "The smaller $\\sigma_x$, the sharper the reconstructions",
        lambda r: (
            mean(r, "mlp_z16_sigma1", "mse") > 1.5 * mean(r, "mlp_z16_sigma0.5", "mse") > 2 * mean(r, "mlp_z16", "mse")
        ),
    ),
    (
        "So calibration gives the best decoder, but the worst samples from the prior",
        lambda r: all(
            mean(r, f"mlp_z16_{other}", "mixture_recognised") < mean(r, "mlp_z16", "mixture_recognised") - 0.05
            and mean(r, f"mlp_z16_{other}", "prior_recognised") > 2 * mean(r, "mlp_z16", "prior_recognised")
            for other in ("sigma1", "sigma0.5")
        ),
    ),
    # 2.4
    (
        "In the first half of training most classes separate",
        lambda r: all(
            at(r, name, "middle", "knn_accuracy") - at(r, name, "begin", "knn_accuracy")
            > 3 * (at(r, name, "end", "knn_accuracy") - at(r, name, "middle", "knn_accuracy"))
            for name in CONV
        ),
    ),
    ("about nine tenths of its gain", lambda r: all(0.85 < gain_in_first_half(r, name) < 0.95 for name in CONV)),
    (
        "nats, all in the reconstruction: the KL stays at about 10",
        lambda r: all(abs(at(r, "conv_z2", stage, "kl") - 10) < 0.5 for stage in ("middle", "end")),
    ),
    (
        "At the beginning hardly any image differs from the mean image",
        lambda r: abs(at(r, "conv_z16", "begin", "elbo") - r["main"]["controls"]["mean_image_elbo"]) < 5,
    ),
    ("At the beginning the KL is below one nat", lambda r: at(r, "conv_z16", "begin", "kl") < 1),
    (
        "nearly every class has a place of its own",
        lambda r: all(at(r, "conv_z16", stage, "knn_accuracy") > 0.94 for stage in ("middle", "end")),
    ),
    ("4 mixes with 9, and 3 with 5", lambda r: at(r, "conv_z2", "end", "knn_accuracy") < 0.9),
    (
        "So training groups the classes at both sizes",
        lambda r: all(
            at(r, name, "end", "codes_knn_accuracy") > run(r, name)["untrained_knn_accuracy"] + 0.05 for name in CONV
        ),
    ),
    (
        "at K = 2 raw pixels do it better",
        lambda r: (
            at(r, "conv_z2", "end", "codes_knn_accuracy")
            < r["main"]["controls"]["pixels_knn_accuracy"] - 0.03
            < at(r, "conv_z16", "end", "codes_knn_accuracy") - 0.03
        ),
    ),
    # 2.5
    (
        "at K = 16 the ELBO still rises",
        lambda r: at(r, "conv_z16", "end", "elbo") > at(r, "conv_z16", "middle", "elbo") + 50,
    ),
    ("its ELBO is higher at K = 16", lambda r: lead(r, "conv_z16") > 50),
    ("At K = 2 the two networks are about equal", lambda r: abs(mean(r, "conv_z2", "lead")) < 20),
    (
        "training takes a fifth of the time",
        lambda r: 4 < mean(r, "conv_z16", "train_seconds") / mean(r, "mlp_z16", "train_seconds") < 6,
    ),
    ("and falls behind the fully connected one", lambda r: lead(r, "conv_z16_permuted", -2) < -20),
    (
        "for which the order makes no difference",
        lambda r: abs(mean(r, "mlp_z16_permuted", "elbo") - mean(r, "mlp_z16", "elbo")) < 8,
    ),
    (
        "gains nothing on test images",
        lambda r: lead(r, "mlp_wide_z16") < 2 and overfitting(r, "mlp_wide_z16") > overfitting(r, "mlp_z16") + 10,
    ),
    (
        "The rest is that the fully connected network overfits more",
        lambda r: overfitting(r, "mlp_z16") > overfitting(r, "conv_z16") + 10,
    ),
    (
        "The lead grows from K = 2 to 64",
        lambda r: all(lead(r, f"conv_z{more}", 1) > lead(r, f"conv_z{less}", -1) for less, more in pairwise(SIZES[1:])),
    ),
    # 2.6
    (
        "More dimensions raise the ELBO and sharpen the reconstructions, as far as they are used",
        lambda r: all(
            mean(r, f"conv_z{less}", "elbo") < mean(r, f"conv_z{more}", "elbo")
            and mean(r, f"conv_z{less}", "mse") > mean(r, f"conv_z{more}", "mse")
            for less, more in pairwise(SIZES)
        ),
    ),
    (
        "But beyond 4, fewer samples from the prior look like digits",
        lambda r: all(
            mean(r, f"conv_z{less}", "prior_recognised") > mean(r, f"conv_z{more}", "prior_recognised")
            for less, more in pairwise(SIZES[2:])
        ),
    ),
    (
        "Principal components do worse",
        lambda r: all(r["latent_sizes"]["pca_mse"][str(K)] > 1.3 * mean(r, f"conv_z{K}", "mse") for K in SIZES),
    ),
    (
        "and its ELBO stays the same",
        lambda r: (
            abs(mean(r, "mlp_z64", "elbo") - mean(r, "mlp_z32", "elbo")) < 10
            and abs(mean(r, "mlp_z64", "dimensions_in_use") - mean(r, "mlp_z32", "dimensions_in_use")) < 3
        ),
    ),
    (
        "about half at K = 2 and 4",
        lambda r: all(0.4 < mean(r, f"conv_z{K}", "prior_recognised") < 0.6 for K in (2, 4)),
    ),
    (
        "It is smallest from K = 4 to 16",
        lambda r: all({*by(r, network, "prior_frechet_distance")[:3]} == {4, 8, 16} for network in ("conv", "mlp")),
    ),
    (
        "So the decoder is hardly at fault",
        lambda r: mean(r, "conv_z16", "mixture_recognised") > 0.9 * r["judge"]["test_digits"]["recognised"],
    ),
    (
        "of averages of two",
        lambda r: (
            r["judge"]["averages_of_two_digits"]["recognised"] < 0.2 < 0.8 < r["judge"]["test_digits"]["recognised"]
        ),
    ),
]


@pytest.mark.parametrize(("words", "holds"), CLAIMS, ids=[words for words, _ in CLAIMS])
def test_claim_stands_on_a_page_and_holds(words, holds):
    assert re.sub(r"\s+", " ", words) in PAGES
    assert holds(RESULTS)


def exchanged(results, names):
    """Results in which the parts of all keys such as "conv_z16_permuted" are exchanged as `names` says."""
    if not isinstance(results, dict):
        return results
    keys = {key: "_".join(names.get(part, part) for part in key.split("_")) for key in results}
    return {keys[key]: exchanged(value, names) for key, value in results.items()}


@pytest.mark.parametrize("names", [{"conv": "mlp", "mlp": "conv"}, {"z2": "z16", "z16": "z2"}])
def test_claims_can_fail(names):
    """With the two networks exchanged, or with the two latent sizes, several claims are false."""
    other = copy.deepcopy(RESULTS)
    for part in ("main", "networks", "latent_sizes", "sigma"):
        other[part] = exchanged(other[part], names)
    failed = 0
    for _, holds in CLAIMS:
        with suppress(KeyError):  # of a kind of run that only one of the networks has
            failed += not holds(other)
    assert failed >= 6
