"""The plane of codes of a VAE with two latent dimensions, under the reader's pointer: one HTML file."""

import math
from base64 import b64encode
from io import BytesIO

import numpy as np
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch.nn import functional

from config import STAGES
from drawing import mosaic
from evidence.pages import FOLDER
from files import write_text
from mnist import evenly_spaced
from report import page
from train import decode, encode_means
from tsne import DIGIT_COLORS, LIMIT

SIDE = 49  # decoded digits along each axis
CROWDING = 2.5  # by sinh nearer to each other towards 0, where classes meet: 0.09 apart there, 0.42 at the edge
DIGITS = 1600  # test images whose codes are shown
IN_A_ROW = 40  # of the picture that holds them
GREYS = 16


def write_plane(stages, dataset, path):
    """Write the page to `path`.

    Parameters
    ----------
    stages : dict
        At each stage of a training, named as in `config.STAGES`, its `VAE` of two latent dimensions.
    dataset : mnist.Dataset
        Of its test images `DIGITS` are shown, evenly spaced.
    path : path-like
        HTML file to write; at most 1.5 MB, complete in itself.
    """
    images, labels = (evenly_spaced(part, DIGITS) for part in (dataset.test_images, dataset.test_labels))
    whole_rows = functional.pad(images, (0, 0) * 3 + (0, -len(images) % IN_A_ROW))
    values = {
        "stages": [_stage(STAGES[stage], model, images) for stage, model in stages.items()],
        "architecture": next(iter(stages.values())).architecture,
        "dataset": dataset.name,
        "labels": "".join(map(str, labels.tolist())),
        "digits": _picture(whole_rows.view(-1, IN_A_ROW, 28, 28)),
        "digits_in_a_row": IN_A_ROW,
        "colors": [to_hex(color) for color in DIGIT_COLORS],
        "limit": LIMIT,
        "side": SIDE,
        "crowding": CROWDING,
    }
    write_text(path, page("plane.html.j2", values, FOLDER))


def _stage(name, model, images):
    """Return what the page shows of a stage: the plane decoded, z_2 growing upwards, and codes in hundredths."""
    values = LIMIT * torch.sinh(CROWDING * torch.linspace(-1, 1, SIDE)) / math.sinh(CROWDING)
    z2, z1 = torch.meshgrid(values.flip(0), values, indexing="ij")
    decoded = decode(model, torch.stack([z1.flatten(), z2.flatten()], dim=1)).view(SIDE, SIDE, 28, 28)
    codes = encode_means(model, images)
    return {
        "name": name,
        "plane": _picture(decoded),
        "codes": np.rint(100 * codes).astype(int).flatten().tolist(),
        "outside": int((np.abs(codes) > LIMIT).any(axis=1).sum()),
    }


def _picture(images):
    """Return images (rows, columns, 28, 28) with values in [0, 1] as the text of one PNG of 16 greys, in base64."""
    levels = np.rint((GREYS - 1) * mosaic(images, gap=0)).astype(np.uint8)
    picture, buffer = Image.fromarray(levels).convert("P"), BytesIO()
    picture.putpalette([255 * level // (GREYS - 1) for level in range(GREYS) for _ in "RGB"])
    picture.save(buffer, "png", bits=4, optimize=True)
    return b64encode(buffer.getvalue()).decode("ascii")
