"""The page to touch: the plane of codes of a VAE with K = 2 under the reader's pointer, in one HTML file."""

from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from checkpoints import model_at
from drawing import PALETTE, mosaic, run_title
from files import write_text
from latent_traversal import decode_plane
from report import page
from train import STAGES, encode_means
from tsne import LIMIT

SIDE = 65  # decoded images along each axis
DIGITS = 1000  # test digits whose codes are shown
IN_A_ROW = 20  # of the picture that holds them
QUALITY = 40  # of the pictures, from 0 to 100


def make(checkpoint, dataset, folder):
    """Write plane.html to `folder`: at three stages of a training, what each code decodes to, and codes of test digits.

    Parameters
    ----------
    checkpoint : dict
        Of a network with K = 2, as `checkpoints.read_checkpoint` returns it.
    dataset : mnist.Dataset
    folder : path-like
    """
    digits = dataset.test.choose(min(DIGITS, len(dataset.test.labels)) // IN_A_ROW * IN_A_ROW)
    stages = []
    for stage, iteration in checkpoint["history"]["stages"].items():
        model = model_at(checkpoint, stage)
        plane, codes = decode_plane(model, SIDE, LIMIT), encode_means(model, digits.images).astype(float)
        classes = {label: codes[digits.labels == label] for label in digits.labels.unique().tolist()}
        medians = {label: np.median(codes, axis=0).round(2).tolist() for label, codes in classes.items()}
        shown = {"plane": picture(plane), "codes": codes.round(2).tolist(), "medians": medians}
        stages.append({"name": STAGES[stage], "iteration": iteration, **shown})
    values = {
        "network": run_title(checkpoint["architecture"], checkpoint["latent_dim"]),
        "note": dataset.note,
        "stages": stages,
        "labels": digits.labels.tolist(),
        "digits": picture(digits.images.view(-1, IN_A_ROW, 28, 28)),
        "in_a_row": IN_A_ROW,
        "colors": [to_hex(color) for color in PALETTE],
        "limit": LIMIT,
        "side": SIDE,
    }
    write_text(Path(folder) / "plane.html", page("plane.html.j2", values, Path(__file__).resolve().parent))


def picture(images):
    """Return images (rows, columns, 28, 28) as one WebP picture, in base64."""
    pixels, buffer = (255 * mosaic(images, gap=0)).round().astype(np.uint8), BytesIO()
    Image.fromarray(pixels).save(buffer, "WebP", quality=QUALITY)
    return b64encode(buffer.getvalue()).decode("ascii")
