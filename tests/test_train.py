"""Training, measuring and the learning curve: against direct computations on the same draws."""

import math
from copy import deepcopy
from dataclasses import asdict

import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import assert_equal_weights, make
from torch.distributions import Independent, Normal, Uniform, kl_divergence

import train as training
from config import SMALL_SET, STAGES, Settings, TrainConfig
from ELBO import elbo_loss
from runs import Run, choose_device
from train import CPU, calibrated_sigma, evaluate, plot_elbo_curve, plot_elbo_curves, seeded, train
from VAE import ARCHITECTURES

DEVICES = dict.fromkeys([CPU, choose_device("auto")])  # the accelerator too where there is one


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_loss_on_real_digits(dataset, architecture, device):
    model = make(architecture=architecture).to(device)
    history = train(model, dataset.train_images[:256], TrainConfig(epochs=16, batch_size=64))
    loss = history["loss"]
    assert loss == pytest.approx(np.add(history["nll"], history["kl"]), rel=1e-6)
    assert loss[-1] < loss[0] - 50  # nats
    assert evaluate(model, dataset.test_images[:200])["elbo"] > -loss[0]
    codes = training.encode_means(model, dataset.test_images[:20])
    assert training.decode(model, torch.from_numpy(codes)).shape == (20, 1, 28, 28)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_training_is_the_plain_loop_with_the_loss_of_torch_distributions(dataset, sigma):
    images = dataset.train_images[:40].double()  # autocast leaves double precision alone
    config = TrainConfig(epochs=2, batch_size=16, sigma=sigma)  # batches of 16, 16 and 4
    model, reference = make().double(), make().double()
    history = train(model, images, config)
    optimizer = torch.optim.Adam(reference.parameters(), betas=training.ADAM_BETAS)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    schedule = one_cycle(optimizer, config.learning_rate, 6, pct_start=training.WARM_UP, cycle_momentum=False)
    losses = []
    held_out = images[::10]
    trained_on = images[[index for index in range(40) if index % 10]]
    mean = trained_on.mean(0).clamp(training.LEAST_MEAN, 1 - training.LEAST_MEAN)
    reference.mean_logits.copy_(torch.log(mean / (1 - mean)))
    with seeded(config.seed):
        for _ in range(2):
            for batch in torch.randperm(36).split(16):
                x = trained_on[batch]
                recon_x, mu, logvar = reference(x)
                decoder_sigma = sigma or (x - recon_x).square().mean().sqrt()
                nll = -Independent(Normal(recon_x, decoder_sigma), 3).log_prob(x).mean()
                kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
                optimizer.zero_grad()
                (nll + kl).backward()
                optimizer.step()
                schedule.step()
                losses.append((nll + kl).item())
                for _ in range(list(history["stages"].values()).count(len(losses))):
                    reference.sigma.fill_(sigma or calibrated_sigma(reference, held_out))
    assert history["loss"] == pytest.approx(losses, rel=1e-9)
    for found, expected in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


UNUSABLE_IMAGES = {
    "integers": lambda images: images.round().int(),
    "0 to 255": lambda images: 255 * images,
    "a little below 0": lambda images: images - 1e-3,
    "rows of pixels": lambda images: images.flatten(1),
    "a NaN": lambda images: torch.cat([images, images[:1] * math.nan]),
    "one": lambda images: images[:1],
    "none": lambda images: images[:0],
}


@pytest.mark.parametrize("change", UNUSABLE_IMAGES.values(), ids=UNUSABLE_IMAGES)
def test_images_that_cannot_be_trained_on_are_refused_before_anything(dataset, change):
    model = make()
    with pytest.raises(ValueError, match="images"):
        train(model, change(dataset.train_images[:40]))
    assert_equal_weights(model, make())


def test_augmented_images_are_the_originals_under_linear_maps_near_the_identity(dataset):
    images = dataset.train_images[:40]
    with seeded(3):
        augmented = training.augment(images)
    with seeded(3):
        changes = torch.empty(40, 2, 2).uniform_(-training.DISTORTION, training.DISTORTION).double().numpy()
    center = np.full(2, 13.5)
    for image, found, change in zip(images, augmented, changes, strict=True):
        to_source = (np.eye(2) + change)[::-1, ::-1]  # scipy counts rows before columns
        offset = center - to_source @ center
        expected = scipy.ndimage.affine_transform(image[0].numpy(), to_source, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize(("plain_epochs", "expected"), [(0, [*range(1, 7)]), (1, [1, 2, 3]), (2, []), (5, [])])
def test_images_are_augmented_in_all_epochs_but_the_last(dataset, monkeypatch, plain_epochs, expected):
    seen, calls = [], []
    monkeypatch.setattr("train.augment", lambda images: calls.append(len(seen) + 1) or images)
    config = TrainConfig(epochs=2, batch_size=12, plain_epochs=plain_epochs)  # 36 images: 6 iterations
    train(make(), dataset.train_images[:40], config, on_iteration=seen.append)
    assert calls == expected


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(1, (1, 1, 1)), (2, (1, 1, 2)), (5, (2, 2, 5)), (12, (4, 6, 12)), (100, (10, 50, 100)), (4690, (47, 2345, 4690))],
)
def test_stages_are_one_percent_half_and_all_of_the_training(iterations, expected):
    assert training.stage_iterations(iterations) == dict(zip(STAGES, expected, strict=True))


@pytest.mark.parametrize(("count", "batch_size", "iterations"), [(5, 128, 2), (72, 64, 4), (4, 1, 6)])
def test_iterations_and_stages_are_told_in_time_whatever_the_batches(dataset, count, batch_size, iterations):
    model, seen, losses = make(), [], []

    def on_stage(*stage):
        seen.append((*stage, len(losses), 0 < model.sigma < 1))

    config = TrainConfig(epochs=2, batch_size=batch_size)
    history = train(model, dataset.train_images[:count], config, on_stage, losses.append)
    assert len(losses) == training.count_iterations(count, config) == iterations
    assert losses == history["loss"]
    assert history["stages"] == training.stage_iterations(iterations)
    assert seen == [(stage, at, at, True) for stage, at in history["stages"].items()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_follow_from_the_seed_and_nothing_else_is_touched(dataset, architecture):
    def trained_with(seed):
        model = make(architecture=architecture)
        state = torch.get_rng_state()
        train(model, dataset.train_images[:64], TrainConfig(epochs=2, batch_size=50, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        torch.randn(7)  # of no influence on the next
        return model

    first = trained_with(seed=1)
    with torch.no_grad():  # as in a script that only measures otherwise
        assert_equal_weights(first, trained_with(seed=1))
    with pytest.raises(AssertionError):
        assert_equal_weights(first, trained_with(seed=2))


@pytest.mark.parametrize(("device", "devices"), [("cpu", []), ("cuda:1", ["cuda:1"]), ("mps", ["mps"])])
def test_seeding_restores_the_state_of_its_own_device_and_wakes_no_other(monkeypatch, device, devices):
    forked, restored = [], torch.get_rng_state()
    fork_rng = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda *some, **kind: forked.append((*some, kind)) or fork_rng([]))
    with seeded(3, torch.device(device)):
        drawn = torch.randn(5)
    assert forked == [([*map(torch.device, devices)], {"device_type": device.partition(":")[0]})]
    assert torch.equal(drawn, torch.randn(5, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), restored)


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (29, 2), (9_999, 999), (12_345, 1000), (60_000, 1000)])
def test_held_out_images_are_a_tenth_or_1000_from_all_over_the_set(count, held_out):
    trained_on, chosen = training.hold_out(torch.arange(count))
    assert len(chosen) == held_out
    assert sorted([*trained_on.tolist(), *chosen.tolist()]) == list(range(count))
    assert count - chosen[-1] <= math.ceil(count / held_out)  # up to the end


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shade", [0.0, 1.0], ids=["black", "white"])
def test_training_on_uniform_images_ends_with_the_sigma_of_rounding_to_a_byte(architecture, shade):
    """Not below, where the density has no limit."""
    model = make(architecture=architecture)
    images = torch.full((32, 1, 28, 28), shade)
    history = train(model, images, TrainConfig(epochs=10, batch_size=8))
    assert all(map(math.isfinite, history["loss"]))
    assert history["loss"][-1] < history["loss"][0]
    assert model.sigma == pytest.approx(Uniform(0.0, 1 / 255).stddev)
    assert math.isfinite(evaluate(model, images, 4, 4)["elbo"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("sigma", [None, 1.0])
def test_far_too_high_learning_rate_is_a_clear_error(dataset, architecture, sigma):
    config = TrainConfig(epochs=5, batch_size=64, learning_rate=1e30, sigma=sigma)
    with pytest.raises(FloatingPointError, match=r"the loss is \S+ at iteration \d+: lower the learning rate"):
        train(make(architecture=architecture), dataset.train_images[:256], config)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_where_it_is_native_unless_told_otherwise(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert training.has_native_bfloat16(torch.device("cuda")) == native
    assert not training.has_native_bfloat16(torch.device("mps"))
    for config in (TrainConfig(), TrainConfig(float32=True)):
        with training.mixed_precision(CPU, config):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if native and not config.float32 else torch.float32)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert not training.has_native_bfloat16(CPU)


# -------------------------------------------------------------------------------------------------------- measuring


def test_evaluation_is_that_of_torch_distributions_on_the_same_draws(trained, dataset):
    images = dataset.train_images[1000:2300]  # in portions of 1000 and 300
    with seeded(7), torch.no_grad():
        portions = [trained.model(x) for x in images.split(1000)]
    recon_x, mu, logvar = (torch.cat(values).double() for values in zip(*portions, strict=True))
    x, sigma = images.double(), trained.model.sigma.double()
    nll = -Independent(Normal(recon_x, sigma), 3).log_prob(x)
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    np.testing.assert_allclose(training.encode_means(trained.model, images), mu, rtol=1e-4)
    with seeded(7):
        assert calibrated_sigma(trained.model, images) == pytest.approx((x - recon_x).square().mean().sqrt().item())
    elbo = -nll - kl.sum(1)
    found = evaluate(trained.model, images, seed=7)
    assert found.pop("kl_per_dimension") == pytest.approx(kl.mean(0).tolist(), rel=1e-5)
    expected = {
        "elbo": elbo.mean().item(),
        "elbo_standard_error": (elbo.var() / 1300).sqrt().item(),
        "nll": nll.mean().item(),
        "kl": kl.sum(1).mean().item(),
        "reconstruction_mse": (x - recon_x).square().mean().item(),
        "active_units": 2,
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_measurements_that_are_not_finite_or_have_no_images_are_clear_errors(dataset):
    model = make()
    for measure in (evaluate, training.encode_means):
        with pytest.raises(ValueError, match=r"\(0, 1, 28, 28\)"):
            measure(model, dataset.test_images[:0])
    torch.nn.init.constant_(model.encoder[-1].bias, math.nan)
    for measure in (evaluate, calibrated_sigma):
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            measure(model, dataset.test_images[:20])


def test_unit_is_active_where_its_mean_varies_by_more_than_a_hundredth(dataset):
    """Burda et al. 2016, section 5.1: 0.0095 is not enough, 0.0105 is, and a constant says nothing of the image."""
    model, images = make(3), dataset.test_images[:100]
    with torch.no_grad():
        spread = model.encode(images)[0].std(0)
        model.encoder[-1].weight[:3] *= (torch.tensor([0.0095, 0.0105, 0.0]).sqrt() / spread).unsqueeze(1)
        model.encoder[-1].bias[2] = 5
    assert evaluate(model, images)["active_units"] == 1


def test_importance_weighted_bound_is_tighter_than_the_elbo_of_the_same_images(trained, dataset):
    images = dataset.test_images[:100]
    found = evaluate(trained.model, images, importance_images=20)
    assert (found["iw_images"], found["iw_samples"]) == (20, 100)
    with seeded(0), torch.no_grad():
        recon_x, mu, logvar = trained.model(images)
        same_images = -elbo_loss(images, recon_x, mu, logvar, trained.model.sigma, reduction="none")[::5]
    assert found["iw_elbo"] == pytest.approx(same_images.mean().item(), rel=1e-5)
    assert found["iw_elbo"] < found["iw_log_likelihood"] < found["iw_elbo"] + 20
    assert 0 < found["iw_standard_error"] < 2 * found["elbo_standard_error"] * math.sqrt(100 / 20)


def test_evaluation_is_repeatable_and_leaves_no_trace(trained, dataset):
    model, state = deepcopy(trained.model), torch.get_rng_state()
    first, second, other = (evaluate(model, dataset.test_images[:50], 5, 5, *seed) for seed in ([], [0], [1]))
    assert first == second
    assert first["elbo"] != other["elbo"]
    assert_equal_weights(model, trained.model)
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------------- learning curve


def find_line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


@pytest.mark.parametrize(("until", "measured", "shown"), [(300, 3, 3), (150, 3, 2), (150, 1, 1)])
def test_curve_shows_what_was_reached_and_measured(history, drawn, tmp_path, until, measured, shown):
    points = [("begin", 10, -60.0), ("middle", 150, 380.0), ("end", 300, 720.0)]
    plot_elbo_curve(history, tmp_path / "a.png", {stage: elbo for stage, _, elbo in points[:measured]}, until)
    for axes, name in zip(drawn[0].axes, ("loss", "nll", "kl"), strict=True):
        values = -np.array(history[name][:until])
        assert np.array_equal(axes.lines[0].get_ydata(), values)
        iterations, smooth = find_line(axes, "training batches, running mean").get_data()
        assert np.array_equal(iterations, np.arange(1, until + 1))
        near = [abs(iterations - i) <= 0.1 * i + 1e-9 for i in iterations]
        assert smooth == pytest.approx([values[window].mean() for window in near])
    found = find_line(drawn[0].axes[0], "test set").get_xydata()
    assert np.array_equal(found, [point[1:] for point in points[:shown]])
    assert drawn[0].axes[0].get_ylim()[1] > points[shown - 1][2]
    assert drawn[0].axes[2].get_ylim()[1] > 0  # the most that the KL's part can be


def test_curves_of_runs_are_told_apart_by_colour_and_style(history, drawn, tmp_path):
    runs = [Run(architecture, dim, TrainConfig()) for architecture in ("conv", "mlp") for dim in (2, 16, 32)]
    plot_elbo_curves(dict.fromkeys(runs, history), tmp_path / "a.png")
    plot_elbo_curve(history, tmp_path / "b.png")
    (axes,), smooth = drawn[0].axes, drawn[1].axes[0].lines[1].get_ydata()
    for run in runs:
        assert np.array_equal(find_line(axes, run.name).get_ydata(), smooth)
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(runs)


@pytest.mark.parametrize("length", [1, 6, 100])
def test_axes_hold_the_whole_curve_but_for_its_first_tenth(length, drawn, tmp_path):
    nll = [-float(value**2) for value in range(length)]
    plot_elbo_curve({"loss": nll, "nll": nll, "kl": [0.0] * length, "stages": {}}, tmp_path / "a.png")
    low, high = drawn[0].axes[0].get_ylim()
    first, last = (length // 10) ** 2, (length - 1) ** 2
    margin = 0.1 * (last - first) or 1.0
    assert first - margin <= low < first
    assert last < high <= last + margin
    assert length < drawn[0].axes[0].get_xlim()[1] < 1.5 * length


# --------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1, 2.5, True, None, "3", math.nan]),
        ("batch_size", [0, -1, 2.5, True, None, math.inf]),
        ("learning_rate", [0, -1e-3, math.nan, math.inf, None, "1e-3"]),
        ("seed", [-1, 0.5, True, None, 2**40]),
        ("sigma", [0, 0.0, -1.0, math.nan, math.inf, "1"]),
        ("plain_epochs", [-1, 0.5, True, None]),
    ],
)
def test_settings_that_cannot_be_used_are_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name.replace('_', '-')}: found .*, expected "):
            TrainConfig(**{name: value})


def test_small_set_is_trained_for_longer_unless_told_otherwise():
    assert Settings().train_config(SMALL_SET - 1) == TrainConfig(epochs=60)
    assert Settings().train_config(SMALL_SET) == TrainConfig() == TrainConfig(epochs=10)
    config = TrainConfig(epochs=3, plain_epochs=1, seed=7, learning_rate=0.1)
    for count in (10, SMALL_SET):
        assert Settings(**asdict(config)).train_config(count) == config
