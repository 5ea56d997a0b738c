"""Item 2.4: what each latent dimension does, seen by moving it from -3 to +3 while the others stay at 0."""

import numpy as np
import torch

from drawing import BLUE, ORANGE, draw_mosaic, draw_prior_circles, figure_file, mosaic_centres
from ELBO import kl_per_dimension
from mnist import evenly_spaced
from runs import draw_checkpoint
from train import decode, encode_means

STEPS = 11
REACH = 3.0  # standard deviations of the prior
PLANE_SIDE = 20  # digits
PLANE_EDGE = REACH * PLANE_SIDE / (PLANE_SIDE - 1)  # of the outermost digits, whose centres are at the reach
IMAGES = 2000  # whose codes are shown, and over which a dimension's KL is averaged


def traverse(model):
    """Decode the codes that are 0 but for one dimension, moved over -3..+3: images of shape (K, steps, 28, 28)."""
    values = torch.linspace(-REACH, REACH, STEPS)
    z = torch.einsum("s,jk->jsk", values, torch.eye(model.latent_dim))
    return decode(model, z.flatten(0, 1)).view(model.latent_dim, STEPS, 28, 28)


@torch.no_grad()
def dimension_kl(model, images):
    """Return each dimension's KL from the prior in nats, (K,), averaged over images (N, 1, 28, 28)."""
    mu, logvar = model.encode(evenly_spaced(images, IMAGES).to(model.sigma.device))
    return kl_per_dimension(mu, logvar).mean(0).cpu()


def decode_plane(model, side=PLANE_SIDE):
    """Decode a grid of codes over -3..+3 in both of two dimensions: images (side, side, 28, 28).

    They come in rows from the top: z_1 grows to the right and z_2 upwards.
    """
    values = torch.linspace(-REACH, REACH, side)
    z2, z1 = torch.meshgrid(values.flip(0), values, indexing="ij")
    return decode(model, torch.stack([z1.flatten(), z2.flatten()], dim=1)).view(side, side, 28, 28)


def plot_latent_traversal(model, path, images=None, title="", order=None):
    """Write a traversal to `path`: a row for each latent dimension, its value on the axis below.

    Where K = 2, the plane of codes is below it.

    Parameters
    ----------
    model : VAE
    path : path-like
        PNG file to write.
    images : torch.Tensor, shape (N, 1, 28, 28), optional
        If given, rows are labelled with and ordered by their dimension's KL over these images, the largest on top,
        and the plane shows their codes.
    title : str
    order : sequence of int, optional
        The dimensions from top to bottom, such as those of the training's end, so that each keeps its row.
    """
    dimensions = range(model.latent_dim)
    labels = [f"$z_{{{k + 1}}}$" for k in dimensions]
    heading = "one row per latent dimension"
    if images is not None:
        heading += ", with its KL from the prior"
        kl = dimension_kl(model, images)
        labels = [f"{label}  {nats:.2f} nats" for label, nats in zip(labels, kl.tolist(), strict=True)]
        heading += ", in the order of the end" if order else ""
        order = order or kl.argsort(descending=True).tolist()
    heights = [0.58 * model.latent_dim]  # inches
    if model.latent_dim == 2:
        heights.append(7.3)
    with figure_file(path, (8, 1.6 + sum(heights)), title) as figure:
        figure.get_layout_engine().set(w_pad=0.2)  # inches; the layout takes the labels' mathematics for narrower
        axes, *plane = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
        _draw_traversal(axes, traverse(model), list(order or dimensions), labels)
        axes.set_title(heading, fontsize="medium")
        if plane:
            _draw_decoded_plane(*plane, model, images)


def _draw_traversal(axes, rows, order, labels):
    draw_mosaic(axes, rows[order], interpolation="nearest")
    axes.set_xticks(
        mosaic_centres(STEPS), [f"{value:+.1f}" for value in np.linspace(-REACH, REACH, STEPS).round(6) + 0.0]
    )
    axes.set_yticks(mosaic_centres(len(order)), [labels[k] for k in order])
    axes.set_xlabel("value of that dimension, the others at 0 (standard deviations of the prior)")


def _draw_decoded_plane(axes, model, images):
    edges = (-PLANE_EDGE, PLANE_EDGE)
    draw_mosaic(axes, decode_plane(model), extent=edges * 2)
    draw_prior_circles(axes, color=BLUE, linestyle="--", linewidth=1.5)
    title = "digits decoded over the plane; the prior's 1, 2 and 3 standard deviations (blue)"
    if images is not None:
        codes = encode_means(model, evenly_spaced(images, IMAGES))
        axes.scatter(*codes.T, s=5, color=ORANGE, linewidths=0)
        outside = np.count_nonzero((np.abs(codes) > PLANE_EDGE).any(axis=1))
        title += f"\nand the codes of {len(codes):,} test images (orange; {outside:,} of them outside)"
    axes.set(xlim=edges, ylim=edges, xlabel="$z_1$", ylabel="$z_2$")
    axes.set_title(title, fontsize="medium")


if __name__ == "__main__":
    draw_checkpoint(__doc__, lambda model, data, **at: plot_latent_traversal(model, images=data.test_images, **at))
