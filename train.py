"""Training a VAE on the ELBO, measuring it on other images, and item 2.4's learning curve.

The decoder's sigma is calibrated (Rybkin et al. 2021): on each batch it takes its most likely value, the root of
the mean squared error. What training then minimises is (D / 2) log MSE + KL + a constant, with D = 784 pixels.
So the weight of the reconstruction against the KL follows from how good the reconstruction is, instead of from a guess.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

import ELBO
from drawing import BLUE, ORANGE, PALETTE, figure_file
from mnist import choose
from VAE import IMAGE_SHAPE

STAGES = {"begin": "beginning", "middle": "middle", "end": "end"}  # name of a folder and key: word in titles
LEAST_MEAN = 0.002  # floor of the pixels of the mean image, so that their logits are finite
LEAST_SIGMA = 1 / 255 / math.sqrt(12)  # standard deviation of rounding a pixel to a byte
DISTORTION = 0.1  # largest change to an entry of the 2x2 map of an augmented image
IMAGES_AT_ONCE = 1000  # batch size of measurements
ACTIVE_VARIANCE = 0.01  # least variance of an active dimension's means over the images (Burda et al. 2016, 5.2)


@dataclass(frozen=True)
class TrainConfig:
    """How a VAE is trained. The values were chosen by the test ELBO of trial runs with K = 16."""

    epochs: int = 10  # passes over the training images: minutes on a laptop
    batch_size: int = 128  # images of a step: 64 at half the rate took longer and gained nothing
    learning_rate: float = 3e-3  # peak of the one-cycle schedule: 2e-3 was worse for the convolutional network
    warm_up: float = 0.15  # share of the iterations in which the rate rises, so that Adam's averages settle first
    beta2: float = 0.99  # of Adam: torch's 0.999 remembers squared gradients for too long in so short a training
    sigma: float | None = None  # standard deviation of the decoder, in pixel values; None: calibrated on each batch
    calibration_images: int = 1000  # images kept aside for the stored sigma, at most a tenth of all
    augment: bool = False  # turn, shear and scale images a little: helps only sets so small that they are overfitted
    seed: int = 0  # of the batches and the draws of codes


def train(model, images, config=None, on_stage=None, on_iteration=None):
    """Maximise the ELBO of images by Adam with a one-cycle learning rate.

    A random choice of the images is kept aside (`split_off_calibration`). The sigma that is stored with the weights is
    calibrated on them, because the errors of images trained on are smaller than those of new images.

    Parameters
    ----------
    model : VAE
        Trained in place, on the device it is on. Its `mean_logits` and its `sigma` are set too.
    images : torch.Tensor, shape (N, 1, 28, 28)
        Training images in [0, 1].
    config : TrainConfig, optional
    on_stage : callable, optional
        Called as on_stage(name, iteration) at three stages: "begin" after 1 % of the iterations (at least 10, but at
        most a third), "middle" after half of them, "end" after the last.
    on_iteration : callable, optional
        Called as on_iteration(iteration, loss) after each iteration; the loss is a float in nats per image.

    Returns
    -------
    dict
        "loss", "nll" and "kl": lists with a value for each iteration, in nats per image. The loss is the negative ELBO
        of the batch, nll + kl. "stages": the iteration of each stage.

    Raises
    ------
    FloatingPointError
        If the training diverges, as with a learning rate that is far too high.
    ValueError
        If there are fewer than two images, or they have another shape, or values outside [0, 1].
    """
    config = config or TrainConfig()
    device = model.sigma.device
    if len(images) < 2 or images.shape[1:] != IMAGE_SHAPE or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must be (N, 1, 28, 28), N > 1, with values in [0, 1]; found {tuple(images.shape)}")
    iterations = iterations_of(len(images), config)
    images, calibration_images = split_off_calibration(images.to(device), config)
    history = {"loss": [], "nll": [], "kl": [], "stages": stage_iterations(iterations)}

    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=iterations, pct_start=config.warm_up, cycle_momentum=False
    )
    model.mean_logits.copy_(images.mean(0).clamp(LEAST_MEAN, 1 - LEAST_MEAN).logit())

    with seeded(config.seed, device):
        for iteration, batch in enumerate(shuffled_batches(len(images), config), start=1):
            # Forward: reconstruct a batch from one draw of each image's code.
            x = images[batch]
            if config.augment:
                x = augment(x)
            recon_x, mu, logvar = model(x)

            # Loss: the negative ELBO. At the calibrated sigma its derivative in sigma is 0, so sigma needs no gradient.
            sigma = max(LEAST_SIGMA, ELBO.optimal_sigma(x, recon_x).item()) if config.sigma is None else config.sigma
            loss = ELBO.elbo_loss(x, recon_x, mu, logvar, sigma)

            # Backward: one step of Adam.
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

            # History.
            values = {"loss": loss.item(), "kl": ELBO.kl_diag_normal(mu, logvar).item()}
            values["nll"] = values["loss"] - values["kl"]
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(f"the loss of iteration {iteration} is not finite: lower the learning rate")
            for name, value in values.items():
                history[name].append(value)
            if on_iteration:
                on_iteration(iteration, values["loss"])

            # Stages: store the sigma of held-out images, and let the caller look.
            for stage, at in history["stages"].items():
                if at == iteration:
                    model.sigma.fill_(config.sigma or calibrated_sigma(model, calibration_images))
                    if on_stage:
                        on_stage(stage, iteration)
    return history


def split_off_calibration(images, config):
    """Split images (N, ...) at random into those that are trained on and those that are kept aside."""
    count = calibration_count(len(images), config)
    order = choose(len(images), len(images))
    return images[order[count:].sort().values], images[order[:count]]


def calibration_count(image_count, config):
    """Return how many of that many training images are kept aside."""
    return max(1, min(config.calibration_images, image_count // 10))


def iterations_of(image_count, config):
    """Return the number of iterations of a training with that many images."""
    return int(config.epochs) * math.ceil((image_count - calibration_count(image_count, config)) / config.batch_size)


def stage_iterations(iterations):
    """Return the iteration of each stage, {stage: iteration}, for a training of that length."""
    begin = min(max(10, round(0.01 * iterations)), math.ceil(iterations / 3))  # a very short training has stages too
    return dict(zip(STAGES, (begin, max(begin, iterations // 2), iterations), strict=True))


def shuffled_batches(count, config):
    """Yield the indices of every batch of every epoch; each epoch is a new permutation."""
    for _ in range(config.epochs):
        yield from torch.randperm(count).split(int(config.batch_size))


def augment(images):
    """Turn, shear and scale images (N, 1, 28, 28) a little about their centre, each by a random linear map."""
    maps = torch.eye(2).to(images) + images.new_empty(len(images), 2, 2).uniform_(-DISTORTION, DISTORTION)
    grid = functional.affine_grid(functional.pad(maps, (0, 1)), images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


@contextmanager
def seeded(seed, device="cpu"):
    """Seed torch's global generators for a block; after it, those of the CPU and of `device` are as they were."""
    device = torch.device(device)
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


# ---- Measuring


@torch.no_grad()
def calibrated_sigma(model, images):
    """Return the decoder's standard deviation of greatest likelihood for `images`, a float in pixel values.

    The random numbers of the training are left as they are, so that looking at it does not change it.
    """
    with seeded(0, images.device):
        squares = [len(x) * ELBO.optimal_sigma(x, model(x)[0]).square() for x in images.split(IMAGES_AT_ONCE)]
    return max(LEAST_SIGMA, math.sqrt(sum(squares) / len(images)))


@torch.no_grad()
def evaluate(model, images, importance_images=0, importance_samples=200, seed=0):
    """Measure the bound and its parts on images, with the model's stored sigma.

    Parameters
    ----------
    model : VAE
    images : torch.Tensor, shape (N, 1, 28, 28)
    importance_images, importance_samples : int
        For the importance-weighted bound: how many images, chosen at random, and draws for each; 0 leaves it out.
    seed : int
        Of the draws z ~ q(z|x), one for each image.

    Returns
    -------
    dict
        elbo, elbo_standard_error, nll, kl (nats per image), mse (per pixel), active_units, kl_per_dimension (nats, a
        list of K). With importance images also iw_log_likelihood, the ELBO of the same images (iw_elbo), and the
        standard error of the difference of these two (iw_gap_standard_error).

    Raises
    ------
    FloatingPointError
        If the ELBO is not finite, as after a training that diverged.
    """
    device, parts = model.sigma.device, []
    with seeded(seed, device):
        for x in images.split(IMAGES_AT_ONCE):
            x = x.to(device)
            recon_x, mu, logvar = model(x)
            nll = ELBO.negative_log_likelihood(x, recon_x, model.sigma, reduction="none")
            parts.append((nll, ELBO.kl_per_dimension(mu, logvar), (x - recon_x).square().flatten(1).mean(1), mu))
        nll, kl, square, mu = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
        elbo = -nll - kl.sum(1)
        if not elbo.isfinite().all():
            raise FloatingPointError(f"the ELBO of some image is {elbo.mean():.3g}: lower the learning rate")
        means = {"elbo": elbo, "nll": nll, "kl": kl.sum(1), "mse": square}
        results = {name: values.mean().item() for name, values in means.items()}
        results["elbo_standard_error"] = standard_error(elbo)
        results |= {"active_units": int((mu.var(0) > ACTIVE_VARIANCE).sum()), "kl_per_dimension": kl.mean(0).tolist()}
        if importance_images:
            chosen = choose(len(images), importance_images)
            bound = ELBO.importance_weighted_log_likelihood(model, images[chosen].to(device), importance_samples).cpu()
            results |= {"iw_log_likelihood": bound.mean().item(), "iw_elbo": elbo[chosen].mean().item()}
            results["iw_gap_standard_error"] = standard_error(bound - elbo[chosen])
    return results


def mean_image_elbo(train_images, test_images):
    """Return the mean test log-density, in nats, of a model that always gives the mean training image.

    Its sigma is calibrated on the training images. It has no code, so this is its ELBO too: what a VAE must surpass.
    """
    mean = train_images.mean(0, keepdim=True)
    sigma = ELBO.optimal_sigma(train_images, mean.expand_as(train_images))
    return -ELBO.negative_log_likelihood(test_images, mean.expand_as(test_images), sigma).item()


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


def plot_elbo_curve(history, path, test_elbo=None, until=None, title=""):
    """Write item 2.4's learning curve to `path`: the ELBO of every iteration, and below it the KL.

    Parameters
    ----------
    history : dict
        As `train` returns it.
    path : path-like
        PNG file to write.
    test_elbo : dict, optional
        {iteration: test ELBO in nats per image}, drawn as dots.
    until : int, optional
        The last iteration to draw.
    title : str
    """
    elbo, kl = -np.array(history["loss"][:until]), np.array(history["kl"][:until])
    iterations = np.arange(1, len(elbo) + 1)
    with figure_file(path, (4.5, 4.2), title) as figure:
        top, bottom = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for axes, values in ((top, elbo), (bottom, kl)):
            axes.plot(iterations, values, color=BLUE, alpha=0.3, linewidth=0.8)
            axes.plot(iterations, smoothed(values), color=BLUE, label="training batches")
            axes.grid(alpha=0.3)
        if test_elbo:
            top.plot(*zip(*test_elbo.items(), strict=True), "o", color=ORANGE, markeredgecolor="black", label="test")
        _leave_out_the_start(top, [elbo], (test_elbo or {}).values())
        top.set(ylabel="ELBO (nats)")
        top.legend(loc="lower right")
        bottom.set(ylabel="KL (nats)", xlabel="iteration", ylim=(0, None))


def plot_elbo_curves(histories, path, note=""):
    """Write the ELBO of several runs, {label: history}, raw and smoothed, into one figure at `path`."""
    elbos = {label: -np.array(history["loss"]) for label, history in histories.items()}
    with figure_file(path, (7, 4.5), f"Learning curves of all runs\n{note}".strip()) as figure:
        axes, colors = figure.subplots(), {}  # a colour for each network
        for number, (label, elbo) in enumerate(elbos.items()):
            color = colors.setdefault(label.partition(",")[0], PALETTE[len(colors)])
            iterations = np.arange(1, len(elbo) + 1)
            axes.plot(iterations, elbo, color=color, alpha=0.2, linewidth=0.6)
            axes.plot(iterations, smoothed(elbo), color=color, dashes=(4, number), label=label)  # equal curves show
        _leave_out_the_start(axes, elbos.values())
        axes.set(xlabel="iteration", ylabel="ELBO of training batches (nats per image)")
        axes.grid(alpha=0.3)
        axes.legend()


def smoothed(values):
    """Return the mean of each value and its neighbours, 1 % of the values to either side."""
    window = np.ones(2 * (len(values) // 100) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _leave_out_the_start(axes, curves, points=()):
    """Fit the vertical axis without the first 1 % of the iterations, which are so low that the rest would look flat."""
    shown = [value for curve in curves for value in smoothed(curve)[len(curve) // 100 :]] + list(points)
    margin = 0.05 * (max(shown) - min(shown)) + 1
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
