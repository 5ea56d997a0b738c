"""Item 2.2: what does the decoder's sigma decide? It is fixed at two values, or calibrated."""

from drawing import figure_file, run_title
from evidence.pictures import digits_of, draw_rows, reconstruct
from evidence.training import LATENT_DIM, SIGMA, Run, over_seeds
from sample_from_prior import sample_prior

NETWORK = "mlp"
VARIANTS = (f"{SIGMA}1", f"{SIGMA}0.5", "")  # the last is calibrated
DRAWN = 10  # samples in a row


def plan(_networks, _latent_dims, seeds):
    """Return the runs of the question."""
    return [Run(NETWORK, LATENT_DIM, seed, variant) for seed in range(seeds) for variant in VARIANTS]


def answer(runs, _):
    """Summarise measured runs: the ELBO with their own sigma, and with one fitted afterwards to held-out images."""
    return {"groups": over_seeds(runs)}


def draw(_, load, dataset, folder):
    """Write the figure to `folder`: the same test digits reconstructed, and samples, for each sigma."""
    digits, others = digits_of(dataset.test), dataset.test.choose(DRAWN).images
    reconstructions, samples = {"test digits": digits}, {"test digits": others}
    for variant in VARIANTS:
        model = load(Run(NETWORK, LATENT_DIM, variant=variant))
        label = f"σ = {model.sigma:.2g}" + ("" if variant else ",\ncalibrated")
        reconstructions[label], samples[label] = reconstruct(model, digits), sample_prior(model, DRAWN)
    with figure_file(folder / "sigma.png", (6, 5), run_title(NETWORK, LATENT_DIM)) as figure:
        above, below = figure.subplots(2, 1)
        draw_rows(above, reconstructions, "reconstructions")
        draw_rows(below, samples, "samples from the prior")
