"""Item 2.4: what each latent dimension does, seen by moving it from -3 to +3 while the others stay at 0."""

import torch

from checkpoints import run_figure_script
from drawing import BLUE, ORANGE, draw_mosaic, draw_prior_circles, figure_file, mosaic_centres
from mnist import choose
from train import decode, encode_means, evaluate

STEPS = 11
REACH = 3  # standard deviations of the prior
PLANE_SIDE = 15  # digits
PLANE_EDGE = REACH * PLANE_SIDE / (PLANE_SIDE - 1)  # outer edge of the digits whose centres end at REACH
CODES = 500  # test images whose codes are shown in the plane


def traverse(model):
    """Move each dimension over -3..+3 while the others stay at 0, and decode: images (K, STEPS, 28, 28)."""
    values = torch.linspace(-REACH, REACH, STEPS)
    z = torch.einsum("s,jk->jsk", values, torch.eye(model.latent_dim))
    return decode(model, z.flatten(0, 1)).view(model.latent_dim, STEPS, 28, 28)


def decode_plane(model, side=PLANE_SIDE, reach=REACH):
    """Decode a grid of codes, from -reach to +reach in both dimensions (K = 2): images (side, side, 28, 28).

    They come in rows from the top: z_1 grows to the right and z_2 upwards.
    """
    values = torch.linspace(-reach, reach, side)
    z2, z1 = torch.meshgrid(values.flip(0), values, indexing="ij")
    return decode(model, torch.stack([z1.flatten(), z2.flatten()], dim=1)).view(side, side, 28, 28)


def plot_latent_traversal(model, path, images=None, title="", kl=None):
    """Write a traversal to `path`: a row for each latent dimension, its value on the axis below.

    Where K = 2, the decoded plane of codes is below it.

    Parameters
    ----------
    model : VAE
    path : path-like
        PNG file to write.
    images : torch.Tensor, shape (N, 1, 28, 28), optional
        Images whose codes the plane shows.
    title : str
    kl : sequence of K floats, optional
        Each dimension's KL from the prior in nats, as `evaluate` measures it, to stand beside its row; by default it is
        measured on `images`, if there are any.
    """
    if kl is None and images is not None:
        kl = evaluate(model, images)["kl_per_dimension"]
    labels = [f"$z_{{{k + 1}}}$" for k in range(model.latent_dim)]
    if kl is not None:
        labels = [f"{label}  {nats:.2f}" for label, nats in zip(labels, kl, strict=True)]
    heights = [0.31 * model.latent_dim] + [3.9] * (model.latent_dim == 2)  # inches
    with figure_file(path, (4.5, 1.2 + sum(heights)), title) as figure:
        axes, *plane = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
        draw_mosaic(axes, traverse(model), interpolation="nearest")
        axes.set_xticks(mosaic_centres(STEPS)[:: STEPS // 2], [f"−{REACH}", "0", f"+{REACH}"])
        axes.set_yticks(mosaic_centres(len(labels)), labels)
        axes.set_xlabel("value of one dimension; others 0" + (" (left: its KL in nats)" if kl is not None else ""))
        if plane:
            _draw_decoded_plane(*plane, model, images)


def _draw_decoded_plane(axes, model, images):
    edges = (-PLANE_EDGE, PLANE_EDGE)
    draw_mosaic(axes, decode_plane(model), extent=edges * 2)
    draw_prior_circles(axes, color=BLUE, linestyle="--", linewidth=1.5)
    if images is not None:
        codes = encode_means(model, images[choose(len(images), CODES)])
        axes.scatter(*codes.T, s=5, color=ORANGE, linewidths=0)
    axes.set(xlim=edges, ylim=edges, xlabel="$z_1$", ylabel="$z_2$")


if __name__ == "__main__":
    run_figure_script(__doc__, lambda model, data, *at: plot_latent_traversal(model, at[0], data.test.images, at[1]))
