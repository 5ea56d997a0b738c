"""The sentences of README.md and REPORT.md that compare or explain, each with the predicate that holds it."""

import copy
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = json.loads((ROOT / "figures/evidence/results.json").read_text(encoding="utf-8"))
PAGES = " ".join(" ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in ("README.md", "REPORT.md"))


def balanced(r):
    return r["main"]["gmm"]["balanced"]


def degenerate(r):
    return r["main"]["gmm"]["degenerate"]


def rare_share(r):
    """The share of the gap that the rare components' surprise makes up."""
    d = degenerate(r)
    costs = [d["component_surprise"][k] - d["single_gaussian"] for k in (0, 2)]
    return sum(d["weights"][k] * cost for k, cost in zip((0, 2), costs, strict=True)) / d["gap_quadrature"]


def run(r, name):
    return r["main"]["runs"][name]


def elbo(r, name, stage="end"):
    return run(r, name)["stages"][stage]["test"]["elbo"]


def kl(r, name, stage="end"):
    return run(r, name)["stages"][stage]["test"]["kl"]


def map_accuracy(r, name, stage="end"):
    return run(r, name)["stages"][stage]["tsne"]["knn_accuracy"]


def mean_image(r):
    return r["main"]["controls"]["mean_image_elbo"]


def gains(r, name):
    """What the test ELBO gains over that of the mean image in the first half of a training, and in the second."""
    middle = elbo(r, name, "middle")
    return middle - mean_image(r), elbo(r, name) - middle


def codes_accuracy(r, name):
    return run(r, name)["tsne"]["codes_knn_accuracy"]


CLAIMS = [
    (
        "indistinguishable from the entropy of the single Gaussian",
        lambda r: (
            abs(degenerate(r)["entropy"] - degenerate(r)["single_gaussian"]) < 2 * degenerate(r)["standard_error"]
        ),
    ),
    ("which is lower by", lambda r: degenerate(r)["gap_quadrature"] > 0),
    ("Plain Monte Carlo cannot see this gap", lambda r: degenerate(r)["standard_error"] > 10 * degenerate(r)["gap"]),
    (
        "importance sampling finds the gap",
        lambda r: (
            abs(degenerate(r)["gap"] - degenerate(r)["gap_quadrature"]) < 3 * degenerate(r)["gap_standard_error"]
            and degenerate(r)["gap"] > 10 * degenerate(r)["gap_standard_error"]
        ),
    ),
    (
        "Left: the estimates of the mixture and of $N_2$ lie on one line",
        lambda r: abs(degenerate(r)["entropy"] - degenerate(r)["single_gaussian_estimate"]) < 1e-3,
    ),
    ("% of the gap", lambda r: 0.9 < rare_share(r) < 1),
    (
        "The exact value is",
        lambda r: abs(balanced(r)["entropy"] - balanced(r)["quadrature"]) < 3 * balanced(r)["standard_error"],
    ),
    (
        "They overlap, so that the entropy has no closed form",
        lambda r: balanced(r)["lower_bound"] < balanced(r)["quadrature"] < balanced(r)["upper_bound"],
    ),
    (
        "because its test ELBO is higher at K = 16",
        lambda r: elbo(r, "conv_z16") - elbo(r, "mlp_z16") > 50,
    ),
    (
        "Classes part in the first half of training",
        lambda r: all(
            map_accuracy(r, name, "middle") - map_accuracy(r, name, "begin")
            > 3 * (map_accuracy(r, name) - map_accuracy(r, name, "middle"))
            for name in ("conv_z2", "conv_z16")
        ),
    ),
    (
        "the second half gains less",
        lambda r: all(gains(r, name)[0] > 3 * gains(r, name)[1] for name in ("conv_z2", "conv_z16")),
    ),
    (
        "The KL hardly changes in the second half",
        lambda r: abs(kl(r, "conv_z2") / kl(r, "conv_z2", "middle") - 1) < 0.1,
    ),
    (
        "At the beginning no row changes: every code gives the mean image",
        lambda r: (
            abs(elbo(r, "conv_z16", "begin") - mean_image(r)) < 5
            and max(run(r, "conv_z16")["stages"]["begin"]["test"]["kl_per_dimension"]) < 0.2
        ),
    ),
    ("The KL stays near 0 at first", lambda r: kl(r, "conv_z16", "begin") < 2),
    ("From the middle on each class has a place of its own", lambda r: map_accuracy(r, "conv_z16", "middle") > 0.9),
    (
        "At the end 4 and 9 still share a place",
        lambda r: map_accuracy(r, "conv_z2") < 0.9 < map_accuracy(r, "conv_z16"),
    ),
    (
        "So training brings digits of a class together in both cases",
        lambda r: all(
            codes_accuracy(r, name) > run(r, name)["untrained_knn_accuracy"] + 0.05 for name in ("conv_z2", "conv_z16")
        ),
    ),
    (
        "but with two dimensions less well than pixels do",
        lambda r: (
            codes_accuracy(r, "conv_z2") < r["main"]["controls"]["pixels_knn_accuracy"] - 0.03
            and codes_accuracy(r, "conv_z16") > r["main"]["controls"]["pixels_knn_accuracy"]
        ),
    ),
    ("At K = 16 the test ELBO falls by", lambda r: elbo(r, "conv_z16") > elbo(r, "mlp_z16") + 50),
    (
        "at K = 2 the two networks are about equal",
        lambda r: abs(elbo(r, "conv_z2") - elbo(r, "mlp_z2")) < 10,
    ),
    (
        "The fully connected network has more parameters, but needs",
        lambda r: (
            run(r, "mlp_z16")["parameters"] > 1.5 * run(r, "conv_z16")["parameters"]
            and run(r, "conv_z16")["train_seconds"] > 2 * run(r, "mlp_z16")["train_seconds"]
        ),
    ),
    (
        "The difference is in the error of a pixel",
        lambda r: run(r, "mlp_z16")["test"]["mse"] > 1.1 * run(r, "conv_z16")["test"]["mse"],
    ),
    (
        "With 16 dimensions instead of 2 the test ELBO of the convolutional network rises by",
        lambda r: elbo(r, "conv_z16") - elbo(r, "conv_z2") > 500,
    ),
    (
        "The KL rises from",
        lambda r: kl(r, "conv_z16") > 3 * kl(r, "conv_z2") and kl(r, "conv_z16") / 16 < kl(r, "conv_z2") / 2,
    ),
    (
        "the squared error of a pixel falls to",
        lambda r: all(
            4 * run(r, f"{net}_z16")["test"]["mse"] < run(r, f"{net}_z2")["test"]["mse"] for net in ("conv", "mlp")
        ),
    ),
    ("All 16 dimensions are in use", lambda r: min(run(r, "conv_z16")["test"]["kl_per_dimension"]) > 1),
]


@pytest.mark.parametrize(("words", "holds"), CLAIMS, ids=[words for words, _ in CLAIMS])
def test_claim_stands_on_a_page_and_holds(words, holds):
    assert re.sub(r"\s+", " ", words) in PAGES
    assert holds(RESULTS)


def test_claims_can_fail():
    """With the two networks exchanged, or with the two latent sizes, several claims are false."""
    for exchange in ({"conv": "mlp", "mlp": "conv"}, {"z2": "z16", "z16": "z2"}):
        other = copy.deepcopy(RESULTS)
        runs = other["main"]["runs"]
        names = {name: "_".join(exchange.get(part, part) for part in name.split("_")) for name in runs}
        other["main"]["runs"] = {names[name]: value for name, value in runs.items()}
        assert sum(not holds(other) for _, holds in CLAIMS) >= 5
