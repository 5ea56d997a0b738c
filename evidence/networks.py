"""Item 2.5: what changes without convolutions? Their lead over fully connected layers, and two reasons put to the test.

If convolutions help because neighbouring pixels belong together, they help less where all pixels are in another order.
If they help by computing more, a fully connected network that computes as much does as well.
"""

from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from drawing import figure_file
from evidence.pictures import draw_over_sizes, network_style
from evidence.training import LATENT_DIM, PERMUTED, Run, over_seeds
from VAE import ARCHITECTURES, IMAGE_SHAPE, VAE, mlp_decoder, mlp_encoder

BASE = "mlp"  # the network that a lead is over
WIDE = "mlp_wide"
WIDE_HIDDEN = 4736  # units, so that `size_of` counts as many multiply-adds as for the convolutional network

ARCHITECTURES[WIDE] = (partial(mlp_encoder, hidden=WIDE_HIDDEN), partial(mlp_decoder, hidden=WIDE_HIDDEN))


def plan(networks, latent_dims, seeds):
    """Return the runs of the question."""
    kinds = [(network, dim, "") for network in networks for dim in latent_dims]
    kinds += [(network, LATENT_DIM, PERMUTED) for network in networks] + [(WIDE, LATENT_DIM, "")]
    return [Run(network, dim, seed, variant) for seed in range(seeds) for network, dim, variant in kinds]


def answer(runs, _):
    """Summarise measured runs. The "lead" of a run is over the fully connected network of the same K, data and seed."""
    elbo = {run["name"]: run["elbo"] for run in runs}
    bases = [Run(BASE, run["latent_dim"], run["seed"], run["variant"]).name for run in runs]
    leading = [run | {"lead": run["elbo"] - elbo[base]} for run, base in zip(runs, bases, strict=True)]
    networks = dict.fromkeys(run["architecture"] for run in runs)
    return {
        "groups": over_seeds(leading),
        "sizes": {network: size_of(VAE(LATENT_DIM, network)) for network in networks},
    }


def size_of(model):
    """Return how many "parameters" a model has, and how many "multiply_adds" an image costs it.

    A multiply-add is a weight times a value, added to a sum. torch counts those of all linear and convolutional layers,
    from the image to its reconstruction.
    """
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *IMAGE_SHAPE))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() // 2}  # two operations each


def draw(results, _load, _dataset, folder):
    """Write the figure to `folder`: the lead against K, and the ELBO at one K with the pixels in two orders."""
    groups = results["networks"]["groups"].values()
    with figure_file(folder / "networks.png", (9, 3.8)) as figure:
        left, right = figure.subplots(1, 2)
        draw_over_sizes(left, [group for group in groups if not group["variant"]], "lead", "lead in test ELBO (nats)")
        left.legend()
        for group in groups:
            if group["latent_dim"] == LATENT_DIM:
                style, (mean, error) = network_style(group["architecture"]), group["elbo"].values()
                fill, size = ("none", 11) if group["variant"] else ("full", 6)  # so that one is seen around the other
                marker = {"fmt": "o", "fillstyle": fill, "markersize": size}
                right.errorbar(mean, style["label"], xerr=error, capsize=3, **marker, **style)
        right.set_xlabel(f"test ELBO at K = {LATENT_DIM} (nats)")
        right.margins(y=0.3)
        right.invert_yaxis()
        right.set_title("filled: images as they are\nopen: pixels permuted", fontsize="medium")
        right.grid(alpha=0.3)
