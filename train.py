"""Training a VAE on the ELBO, measuring it on other images, and item 2.4's learning curve.

The decoder's sigma is calibrated: on each batch it takes its value of greatest likelihood (Rybkin et al. 2021). That
leaves the gradient as it is, since the ELBO's derivative with respect to sigma is zero there; and it sets the weight of
the reconstruction against the KL by how good the reconstruction is, instead of by a guess.
"""

import math
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import functional

import mnist
from config import STAGES, TrainConfig
from drawing import BLUE, GRAY, ORANGE, PALETTE, figure_file
from ELBO import (
    elbo_loss,
    importance_weighted_log_likelihood,
    kl_per_dimension,
    negative_log_likelihood,
    optimal_sigma,
)
from VAE import IMAGE_SHAPE

ADAM_BETAS = (0.9, 0.99)
WARM_UP = 0.15  # share of the iterations in which the learning rate rises
LEAST_MEAN = 0.002  # what a pixel that is black in all images counts as in their mean, whose logit has to be finite
CALIBRATION_IMAGES = 1000  # training images kept aside to calibrate the stored sigma; a tenth of fewer than 10,000
DISTORTION = 0.1  # greatest difference of an augmented image's linear map from the identity, in each entry
IMAGES_AT_ONCE = 1000  # in measurements, which need no gradient
LEAST_SIGMA = 1 / 255 / math.sqrt(12)  # standard deviation of rounding a pixel to a byte; less would mean nothing
ACTIVE_VARIANCE = 0.01  # variance over the data above which a posterior mean is active (Burda et al. 2016, 5.1)
CPU = torch.device("cpu")

# ---- Training


def train(model, images, config=None, on_stage=None, on_iteration=None):
    """Maximise the ELBO of `images` by Adam with a one-cycle learning rate.

    Some of the images are held out (`hold_out`), and the sigma that is stored with the weights is calibrated on them:
    images trained on have smaller errors than new ones.

    Parameters
    ----------
    model : VAE
        Trained in place, on the device it is on; its `mean_logits` and its `sigma` are set too.
    images : torch.Tensor, shape (N, 1, 28, 28)
        Training images in [0, 1].
    config : TrainConfig, optional
    on_stage : callable, optional
        Called as on_stage(name, iteration) at the three stages: "begin" after 1 % of the iterations (at least 10),
        "middle" after half, "end" after the last.
    on_iteration : callable, optional
        Called as on_iteration(loss) after each iteration, loss a float in nats per image.

    Returns
    -------
    dict
        "loss", "nll" and "kl": lists with a value for each iteration, in nats per image (loss = nll + kl is the
        negative ELBO of the batch); "stages": the iteration of each stage; "augmented": the last iteration whose images
        were augmented.

    Raises
    ------
    FloatingPointError
        If the loss is not finite, as after a far too high learning rate.
    ValueError
        If there are fewer than two images, or they have another shape or kind, or values outside [0, 1].
    """
    config = config or TrainConfig()
    device = model.sigma.device
    iterations = count_iterations(len(images), config)
    _check_images(images)
    images, calibration_images = hold_out(images.to(device))
    stages = stage_iterations(iterations)
    augmented = max(0, iterations * (config.epochs - config.plain_epochs) // config.epochs)
    history = {"loss": [], "nll": [], "kl": [], "stages": stages, "augmented": augmented}
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=ADAM_BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=iterations, pct_start=WARM_UP, cycle_momentum=False
    )
    model.mean_logits.copy_(images.mean(0).logit(LEAST_MEAN))
    with seeded(config.seed, device), torch.enable_grad():
        for iteration, batch in enumerate(shuffled_batches(len(images), config), start=1):
            x = images[batch]
            if iteration <= augmented:
                x = augment(x)
            with mixed_precision(device, config):
                recon_x, mu, logvar = model(x)
            # A NaN in recon_x still shows in the loss; sigma has to be a number.
            sigma = config.sigma or optimal_sigma(x, recon_x).detach().clamp(min=LEAST_SIGMA).nan_to_num(1.0)
            terms = elbo_loss(x, recon_x, mu, logvar, sigma, return_parts=True)
            loss, nll, kl = torch.stack(terms).tolist()  # in one transfer from the device
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss:.3g} at iteration {iteration}: lower the learning rate")
            optimizer.zero_grad()
            terms[0].backward()
            optimizer.step()
            schedule.step()
            for name, value in (("loss", loss), ("nll", nll), ("kl", kl)):
                history[name].append(value)
            if on_iteration:
                on_iteration(loss)
            for stage, at in stages.items():
                if at == iteration:
                    model.sigma.fill_(config.sigma or calibrated_sigma(model, calibration_images))
                    if on_stage:
                        on_stage(stage, iteration)
    return history


def _check_images(images):
    """Raise `ValueError` unless images are floats (N, 1, 28, 28) in [0, 1]; a NaN is not."""
    least, most = images.min().item(), images.max().item()
    if images.shape[1:] != IMAGE_SHAPE or not images.is_floating_point() or not (least >= 0 and most <= 1):
        found = f"{images.dtype} of shape {tuple(images.shape)} from {least} to {most}"
        raise ValueError(f"images must be floats of shape (N, 1, 28, 28) from 0 to 1, not {found}")


def hold_out(images):
    """Split images (N, ...) into those that are trained on and, evenly spaced among them, those that are held out.

    Raises `ValueError` if there are fewer than two.
    """
    chosen = mnist.evenly_chosen(len(images), held_out_count(len(images)))
    return images[~chosen], images[chosen]


def held_out_count(image_count):
    """How many of that many training images are held out."""
    if image_count < 2:
        raise ValueError(f"found {image_count} training images, expected at least 2: one to train on, one held out")
    return max(1, min(CALIBRATION_IMAGES, image_count // 10))


def count_iterations(image_count, config):
    """How many iterations a training takes with that many images, those held out included."""
    return config.epochs * math.ceil((image_count - held_out_count(image_count)) / config.batch_size)


def stage_iterations(iterations):
    """After which iteration each stage of a training of that length is reached."""
    begin = min(max(10, round(0.01 * iterations)), math.ceil(iterations / 3))  # a very short training has stages too
    return dict(zip(STAGES, (begin, max(begin, iterations // 2), iterations), strict=True))


def shuffled_batches(count, config):
    """Yield the indices of every batch of every epoch; each epoch is a new permutation."""
    for _ in range(config.epochs):
        yield from torch.randperm(count).split(config.batch_size)


def augment(images):
    """Turn, shear and scale images (N, 1, 28, 28) a little about their centre, each by its own random linear map."""
    maps = torch.eye(2).to(images) + images.new_empty(len(images), 2, 2).uniform_(-DISTORTION, DISTORTION)
    grid = functional.affine_grid(functional.pad(maps, (0, 1)), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@contextmanager
def seeded(seed, device=CPU):
    """Seed torch's global generators for a block, and leave those of the CPU and of `device` as they were before."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def mixed_precision(device, config):
    """Compute matrix products in bfloat16 where the processor does so natively, otherwise in float32 as usual."""
    enabled = has_native_bfloat16(device) and not config.float32
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_native_bfloat16(device):
    """Tell whether a device has bfloat16 arithmetic: a property, not a timing, so that every run decides alike."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities().get("avx512_bf16", False)
    return False


# ---- Measuring


@torch.no_grad()
def calibrated_sigma(model, images):
    """Return the decoder's standard deviation of greatest likelihood for `images`, a float in pixel values.

    The images are on the model's device; one code for each is drawn from torch's global generator. Raises
    `FloatingPointError` if a reconstruction is not finite.
    """
    squares = [len(x) * optimal_sigma(x, model(x)[0]).square() for x in images.split(IMAGES_AT_ONCE)]
    sigma = math.sqrt(sum(squares) / len(images))
    if not math.isfinite(sigma):
        raise FloatingPointError(f"sigma is {sigma} on the calibration images: lower the learning rate")
    return max(LEAST_SIGMA, sigma)


@torch.no_grad()
def evaluate(model, images, importance_images=0, importance_samples=100, seed=0):
    """Measure the bound and its parts on images, with the model's stored sigma.

    Parameters
    ----------
    model : VAE
    images : torch.Tensor, shape (N, 1, 28, 28)
    importance_images, importance_samples : int
        Images, evenly spaced among `images`, and draws for each, for the importance-weighted bound; 0 leaves it out.
    seed : int
        Of the draws z ~ q(z|x), one for each image.

    Returns
    -------
    dict
        elbo, elbo_standard_error, nll, kl (nats per image), reconstruction_mse (per pixel), active_units,
        kl_per_dimension (nats, a list of K), and iw_log_likelihood with iw_standard_error, iw_images, iw_samples,
        iw_elbo, the ELBO of the same images, and iw_gap_standard_error, that of the difference, image by image.

    Raises
    ------
    FloatingPointError
        If an image's bound is not finite, as after a training that diverged.
    ValueError
        If there are no images.
    """
    device, sigma = model.sigma.device, model.sigma.item()
    nll, kl, squared_error, mus = [], [], [], []
    with seeded(seed, device):
        for x in images.split(IMAGES_AT_ONCE):
            outputs = model(x.to(device))
            # In double precision, since the bound is the small difference of large numbers; on the CPU, since not every
            # accelerator has it, and in two steps, since such a one cannot convert on the way.
            x, recon_x, mu, logvar = (value.cpu().double() for value in (x, *outputs))
            nll.append(negative_log_likelihood(x, recon_x, sigma, reduction="none"))
            kl.append(kl_per_dimension(mu, logvar))
            squared_error.append((x - recon_x).square().flatten(1).mean(1))
            mus.append(mu)
        nll, kl, squared_error, mus = map(torch.cat, (nll, kl, squared_error, mus))
        elbo = -nll - kl.sum(1)
        if not elbo.isfinite().all():
            raise FloatingPointError(f"the ELBO of test images is {elbo.mean().item()}: lower the learning rate")
        results = {
            "elbo": elbo.mean().item(),
            "elbo_standard_error": standard_error(elbo),
            "nll": nll.mean().item(),
            "kl": kl.sum(1).mean().item(),
            "reconstruction_mse": squared_error.mean().item(),
            "active_units": int((mus.var(0) > ACTIVE_VARIANCE).sum()),
            "kl_per_dimension": kl.mean(0).tolist(),
        }
        if importance_images:
            x = mnist.evenly_spaced(images, importance_images).to(device)
            bound = importance_weighted_log_likelihood(model, x, importance_samples).cpu().double()
            own = mnist.evenly_spaced(elbo, importance_images)
            results |= {
                "iw_log_likelihood": bound.mean().item(),
                "iw_standard_error": standard_error(bound),
                "iw_elbo": own.mean().item(),
                "iw_gap_standard_error": standard_error(bound - own),
                "iw_images": len(x),
                "iw_samples": importance_samples,
            }
    return results


def standard_error(values):
    """Return the standard error of the mean of a tensor's values, as a float."""
    return values.std().item() / math.sqrt(len(values))


@torch.no_grad()
def encode_means(model, images):
    """Return the posterior means of images (N, 1, 28, 28) as a numpy array (N, K)."""
    means = [model.encode(x.to(model.sigma.device))[0].cpu() for x in images.split(IMAGES_AT_ONCE)]
    return torch.cat(means).numpy()


@torch.no_grad()
def decode(model, z):
    """Decode codes (N, K) in portions: images (N, 1, 28, 28) on the CPU."""
    return torch.cat([model.decode(part.to(model.sigma.device)).cpu() for part in z.split(IMAGES_AT_ONCE)])


# ---- Item 2.4: the learning curve

UNSCALED = 10  # first iterations whose depth the axes leave out
LINE_STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 3)), (0, (8, 2, 2, 2)))


def plot_elbo_curve(history, path, test_elbo=None, until=None, title=""):
    """Write item 2.4's learning curve to `path`: the ELBO of every iteration, beside it its two parts.

    Parameters
    ----------
    history : dict
        As `train` returns it.
    path : path-like
        PNG file to write.
    test_elbo : dict, optional
        {stage: test ELBO in nats per image}, drawn at the stages' iterations.
    until : int, optional
        The last iteration to draw; the axes fit what is drawn.
    title : str
    """
    until = until or len(history["loss"])
    curves = {name: [-value for value in history[name][:until]] for name in ("loss", "nll", "kl")}
    reached = {stage: at for stage, at in history["stages"].items() if stage in (test_elbo or ()) and at <= until}
    at_stages = [test_elbo[stage] for stage in reached]
    shown_too = {"loss": at_stages, "nll": [], "kl": [0.0]}
    with figure_file(path, (9, 4.5), title) as figure:
        panels = figure.subplot_mosaic([["loss", "nll"], ["loss", "kl"]])
        for (name, values), label in zip(curves.items(), ("ELBO", "−NLL", "−KL"), strict=True):
            iterations = range(1, until + 1)
            panels[name].plot(iterations, values, color=BLUE, alpha=0.25, linewidth=0.8)
            panels[name].plot(iterations, _smoothed(values), color=BLUE, label="training batches, running mean")
            if 0 < history.get("augmented", 0) < until:
                panels[name].axvline(history["augmented"], color=GRAY, linestyle="--", label="augmentation ends")
            _set_curve_axes(panels[name], [values, shown_too[name]], f"{label} (nats per image)")
        if reached:
            iterations = reached.values()
            panels["loss"].plot(iterations, at_stages, "o", color=ORANGE, markeredgecolor="black", label="test set")
        panels["loss"].legend(loc="upper left")


def plot_elbo_curves(histories, path, title=""):
    """Write the running mean of each run's ELBO, {`Run`: history}, into one figure at `path`.

    A colour for each network, and a line style for each latent size.
    """
    elbos = {run: [-loss for loss in history["loss"]] for run, history in histories.items()}
    networks = list(dict.fromkeys(run.architecture for run in histories))
    sizes = list(dict.fromkeys(run.latent_dim for run in histories))
    with figure_file(path, (9, 5)) as figure:
        axes = figure.subplots()
        axes.set_title(title, parse_math=False)
        for run, elbo in elbos.items():
            network, size = networks.index(run.architecture), sizes.index(run.latent_dim)
            axes.plot(
                range(1, len(elbo) + 1),
                _smoothed(elbo),
                color=PALETTE[network],
                linestyle=LINE_STYLES[size % len(LINE_STYLES)],
                linewidth=3 / (1 + network),  # the one on top is narrower, and hides none below it
                label=run.name,
            )
        _set_curve_axes(axes, elbos.values(), "ELBO of the training batches, running mean (nats per image)")
        axes.legend(loc="upper left")


def _smoothed(values):
    """Average each value over the iterations within 10 % of its own, an even window on a logarithmic axis."""
    sums = np.cumsum([0.0, *values])
    iterations = np.arange(1, len(values) + 1)
    first = np.ceil(0.9 * iterations).astype(int)
    last = np.minimum((1.1 * iterations).astype(int), len(values))
    return (sums[last] - sums[first - 1]) / (last - first + 1)


def _set_curve_axes(axes, curves, label):
    """Scale the axes to whole curves, save for the first iterations, whose depth can flatten all the rest."""
    longest = max(map(len, curves))
    shown = [value for curve in curves for value in curve[min(UNSCALED, len(curve) // 10) :]]
    margin = 0.05 * (max(shown) - min(shown)) or 1.0  # nats, around a training of one iteration
    axes.set(xscale="log", xlim=(1, 1.2 * longest), ylim=(min(shown) - margin, max(shown) + margin))
    axes.set(xlabel="iteration", ylabel=label)
    axes.grid(alpha=0.3)
