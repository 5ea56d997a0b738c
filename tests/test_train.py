"""Training, measuring and checkpoints: against direct computations on the same draws, and with files really damaged."""

import io
import json
import math
import os
import pickle
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import matplotlib
import mlxtend
import numpy as np
import pytest
import scipy.ndimage
import sklearn
import torch
import torchvision
from torch import nn
from torch.distributions import Independent, Normal, Uniform, kl_divergence
from tqdm import tqdm

from config import STAGES, Settings, TrainConfig
from ELBO import elbo_loss, optimal_sigma
from files import InputError
from train import (
    ADAM_BETAS,
    DIVERGED,
    LEAST_SIGMA,
    VARIATION,
    Run,
    calibrated_sigma,
    checkpoint_path,
    choose_device,
    count_iterations,
    draw_checkpoint,
    environment,
    evaluate,
    has_native_bfloat16,
    hold_out,
    load_checkpoint,
    made_from,
    mixed_precision,
    new_model,
    plot_elbo_curve,
    plot_elbo_curves,
    progress_bar,
    read_checkpoint,
    save_checkpoint,
    seeded,
    shuffled_batches,
    stage_iterations,
    standard_error,
    train,
    train_or_resume,
    vary,
)
from VAE import ARCHITECTURES, VAE

STANDARD_ERRORS = 4  # that an estimate may be off


def make(latent_dim=2, architecture="mlp", seed=0):
    with seeded(seed):
        return VAE(latent_dim, architecture)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal_weights(some, others):
    return all(torch.equal(some[name], others[name]) for name in some.keys() | others.keys())


# --------------------------------------------------------------------------------------------------------- training


def test_history_has_every_iteration_and_its_loss_is_the_sum_of_its_parts(trained):
    history = trained.history
    assert len(history["loss"]) == len(history["nll"]) == len(history["kl"]) == 6 * 8
    parts = [nll + kl for nll, kl in zip(history["nll"], history["kl"], strict=True)]
    assert history["loss"] == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_loss_on_real_digits(dataset, architecture):
    model = make(architecture=architecture)
    images = dataset.train_images[:256]
    loss = train(model, images, TrainConfig(epochs=4, batch_size=64))["loss"]
    assert loss[-1] < loss[0] - 150  # nats
    held_out = evaluate(model, dataset.test_images[:200])
    assert held_out["elbo"] > -loss[0] + 150


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_training_is_the_plain_loop_with_the_loss_of_torch_distributions(dataset, sigma):
    images = dataset.train_images[:40].double()  # autocast leaves double precision alone
    config = TrainConfig(epochs=2, batch_size=16, sigma=sigma)  # batches of 16, 16 and 4
    model, reference = make().double(), make().double()
    history = train(model, images, config)
    optimizer = torch.optim.Adam(reference.parameters(), betas=ADAM_BETAS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=6, cycle_momentum=False)
    losses = []
    held_out = images[::10]
    trained_on = images[[index for index in range(40) if index % 10]]
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


def test_epochs_are_permutations_and_differ():
    config = TrainConfig(epochs=2, batch_size=30)
    batches = list(shuffled_batches(100, config))
    assert [len(batch) for batch in batches] == 2 * [30, 30, 30, 10]
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))
    assert not torch.equal(first, second)


def test_varied_images_are_the_originals_under_linear_maps_near_the_identity(dataset):
    images = dataset.train_images[:40]
    with seeded(3):
        varied = vary(images)
    with seeded(3):
        changes = torch.empty(40, 2, 2).uniform_(-VARIATION, VARIATION).double().numpy()
    center = np.full(2, 13.5)
    for image, found, change in zip(images, varied, changes, strict=True):
        to_source = (np.eye(2) + change)[::-1, ::-1]  # scipy counts rows before columns
        offset = center - to_source @ center
        expected = scipy.ndimage.affine_transform(image[0].numpy(), to_source, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert 0.9 * VARIATION < np.abs(changes).max() <= VARIATION
    assert 0.02 < (varied - images).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("varied", "expected"), [(0.0, []), (0.5, [1, 2, 3]), (0.9, [1, 2, 3, 4, 5]), (1.0, [*range(1, 7)])]
)
def test_images_are_varied_in_the_first_share_of_the_iterations(dataset, monkeypatch, varied, expected):
    seen, calls = [], []
    monkeypatch.setattr("train.vary", lambda images: calls.append(len(seen) + 1) or images)
    config = TrainConfig(epochs=2, batch_size=12, varied=varied)  # 36 images: 6 iterations
    train(make(), dataset.train_images[:40], config, on_iteration=seen.append)
    assert calls == expected


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (1, (1, 1, 1)),
        (2, (1, 1, 2)),
        (3, (1, 1, 3)),
        (5, (2, 2, 5)),
        (12, (4, 6, 12)),
        (100, (10, 50, 100)),
        (4690, (47, 2345, 4690)),
    ],
)
def test_stages_are_one_percent_half_and_all_of_the_training(iterations, expected):
    assert stage_iterations(iterations) == dict(zip(STAGES, expected, strict=True))


@pytest.mark.parametrize("iterations", range(1, 60))
def test_stages_are_in_order_at_any_length(iterations):
    begin, middle, end = stage_iterations(iterations).values()
    assert 1 <= begin <= middle <= end == iterations


@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 24])
def test_on_stage_is_called_at_its_iteration_with_sigma_set(dataset, iterations):
    model = make()
    seen, losses = [], []

    def on_stage(name, iteration):
        seen.append((name, iteration, len(losses), model.sigma.item()))

    history = train(
        model, dataset.train_images[:16], TrainConfig(epochs=iterations, batch_size=16), on_stage, losses.append
    )
    assert [call[:3] for call in seen] == [(name, at, at) for name, at in stage_iterations(iterations).items()]
    assert history["stages"] == stage_iterations(iterations)
    assert all(0 < sigma < 1 for *_, sigma in seen)
    assert losses == history["loss"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_seed_gives_the_same_weights_and_another_seed_others(dataset, architecture):
    def train_again(seed):
        model = make(architecture=architecture)
        train(model, dataset.train_images[:128], TrainConfig(epochs=3, batch_size=50, seed=seed))
        torch.randn(7)  # of no influence on the next
        return weights(model)

    first = train_again(seed=1)
    assert equal_weights(first, train_again(seed=1))
    assert not equal_weights(first, train_again(seed=2))


def test_global_random_state_is_left_as_it_was(trained, dataset):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(make(), dataset.train_images[:32], TrainConfig(epochs=1, batch_size=16))
    evaluate(trained.model, dataset.test_images[:32], 4, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_sigma_stays_fixed_and_stands_in_the_loss(dataset):
    model = make()
    history = train(model, dataset.train_images[:64], TrainConfig(epochs=3, batch_size=32, sigma=1.0))
    assert model.sigma == 1
    assert 784 * 0.5 * math.log(2 * math.pi) < history["nll"][-1] < 784 * 0.5 * (math.log(2 * math.pi) + 0.5)


def test_calibrated_sigma_is_the_root_mean_squared_error_of_all_portions(trained, dataset):
    images = dataset.train_images[:1500]  # in portions of 1000 and 500
    with seeded(5):
        sigma = calibrated_sigma(trained.model, images)
    with seeded(5), torch.no_grad():
        errors = torch.cat([x - trained.model(x)[0] for x in images.split(1000)])
    assert sigma == pytest.approx(errors.double().square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (3, 1), (29, 2), (64, 6), (4000, 400), (9_999, 999), (12_345, 1000), (60_000, 1000)]
)
def test_held_out_images_are_a_tenth_or_1000_and_evenly_spaced(count, held_out):
    trained_on, chosen = hold_out(torch.arange(count))
    assert len(chosen) == held_out
    assert sorted([*trained_on.tolist(), *chosen.tolist()]) == list(range(count))
    gaps = chosen.diff()
    assert held_out == 1 or gaps.max() - gaps.min() <= 1
    assert count - chosen[-1] <= math.ceil(count / held_out)  # up to the end


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_cannot_be_trained_on(dataset, count):
    with pytest.raises(ValueError, match=f"found {count} training images, expected at least 2"):
        train(make(), dataset.train_images[:count])


def test_held_out_images_change_the_stored_sigma_and_no_weight(dataset):
    def train_with(held_out_images):
        images = dataset.train_images[:100].clone()
        images[::10] = held_out_images
        model = make()
        history = train(model, images, TrainConfig(epochs=3, batch_size=32))
        return history, weights(model)

    (history, some), (other_history, others) = map(train_with, (dataset.train_images[200:210], 0.5))
    assert some.pop("sigma") != others.pop("sigma")
    assert equal_weights(some, others)
    assert history == other_history


def test_stored_sigma_is_that_of_the_held_out_images(trained):
    _, held_out = hold_out(trained.images)
    with seeded(0), torch.no_grad():
        draws = torch.stack([optimal_sigma(held_out, trained.model(held_out)[0]) for _ in range(100)])
    assert abs(trained.model.sigma - draws.mean()) < STANDARD_ERRORS * draws.std()
    assert draws.std() < 0.01 * draws.mean()


@pytest.mark.parametrize(("images", "batch_size", "iterations"), [(5, 128, 2), (2, 1, 2), (72, 64, 4), (4, 1, 6)])
def test_batches_may_be_larger_than_the_set_or_of_one_image(dataset, images, batch_size, iterations):
    config = TrainConfig(epochs=2, batch_size=batch_size)
    loss = train(make(), dataset.train_images[:images], config)["loss"]
    assert len(loss) == count_iterations(images, config) == iterations
    assert all(map(math.isfinite, loss))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shade", [0.0, 1.0], ids=["black", "white"])
def test_training_on_uniform_images_stays_finite(architecture, shade):
    model = make(architecture=architecture)
    images = torch.full((32, 1, 28, 28), shade)
    history = train(model, images, TrainConfig(epochs=10, batch_size=8))
    assert all(map(math.isfinite, history["loss"]))
    assert history["loss"][-1] < history["loss"][0]
    assert model.sigma.item() == pytest.approx(LEAST_SIGMA)  # not below, where the density has no limit
    assert math.isfinite(evaluate(model, images, 4, 4)["elbo"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("sigma", [None, 1.0])
@pytest.mark.parametrize("learning_rate", [1e3, 1e6, 1e30])
def test_far_too_high_learning_rate_is_a_clear_error(dataset, architecture, sigma, learning_rate):
    config = TrainConfig(epochs=5, batch_size=64, learning_rate=learning_rate, sigma=sigma)
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf|\d\S*e\+\d\d) at iteration \d+: lower the learning rate"
    ):
        train(make(architecture=architecture), dataset.train_images[:256], config)


# -------------------------------------------------------------------------------------------------------- measuring


def test_evaluation_is_that_of_torch_distributions_on_the_same_draws(trained, dataset):
    images = dataset.train_images[1000:2300]  # in portions of 1000 and 300
    with seeded(7), torch.no_grad():
        portions = [trained.model(x) for x in images.split(1000)]
    recon_x, mu, logvar = (torch.cat(values).double() for values in zip(*portions, strict=True))
    x, sigma = images.double(), trained.model.sigma.double()
    nll = -Independent(Normal(recon_x, sigma), 3).log_prob(x)
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    elbo = -nll - kl.sum(1)
    found = evaluate(trained.model, images, seed=7)
    assert found["elbo"] == pytest.approx(elbo.mean().item(), rel=1e-6)
    assert found["elbo_standard_error"] == pytest.approx((elbo.var() / 1300).sqrt().item(), rel=1e-5)
    assert found["nll"] == pytest.approx(nll.mean().item(), rel=1e-6)
    assert found["kl"] == pytest.approx(kl.sum(1).mean().item(), rel=1e-6)
    assert found["kl_per_dimension"] == pytest.approx(kl.mean(0).tolist(), rel=1e-6)
    assert found["reconstruction_mse"] == pytest.approx((x - recon_x).square().mean().item(), rel=1e-6)
    assert "iw_log_likelihood" not in found


def test_least_sigma_is_that_of_rounding_a_pixel_to_a_byte():
    assert pytest.approx(Uniform(0.0, 1 / 255).stddev.item()) == LEAST_SIGMA


def with_constant_codes(mean, variance=1.0):
    """A model of one latent dimension whose codes do not depend on the image."""
    model = make(1)
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.copy_(torch.tensor([mean, math.log(variance)]))
    return model


def test_training_goes_on_up_to_a_kl_of_10_to_the_12_nats(dataset):
    config = TrainConfig(epochs=1, batch_size=16, learning_rate=1e-9, sigma=1e3)
    images = dataset.train_images[:16]
    assert train(with_constant_codes(math.sqrt(2 * 0.9 * DIVERGED)), images, config)["kl"][0] == pytest.approx(
        0.9e12, rel=0.05
    )
    with pytest.raises(FloatingPointError, match="iteration 1: lower the learning rate"):
        train(with_constant_codes(math.sqrt(2 * 1.1 * DIVERGED)), images, config)


def test_bound_of_held_out_images_that_is_not_finite_is_a_clear_error(dataset):
    with pytest.raises(FloatingPointError, match="the ELBO of held-out images is nan: lower the learning rate"):
        evaluate(with_constant_codes(math.nan), dataset.test_images[:20])


def test_evaluation_leaves_out_the_importance_weighted_bound_and_draws_with_seed_0_unless_told(trained, dataset):
    images = dataset.test_images[:20]
    assert evaluate(trained.model, images) == evaluate(trained.model, images, importance_images=0, seed=0)
    assert evaluate(trained.model, images, 2)["iw_samples"] == 100


@pytest.mark.parametrize(("variance", "active"), [(0.0095, 0), (0.0105, 1)])
def test_unit_is_active_from_a_variance_of_a_hundredth(dataset, variance, active):
    """Burda et al. 2016, section 5.1."""
    model, images = make(1), dataset.test_images[:100]
    with torch.no_grad():
        means = model.encode(images)[0]
        model.encoder[-1].weight[0] *= math.sqrt(variance) / means.std()
    assert evaluate(model, images)["active_units"] == active


def test_standard_error_is_the_spread_of_repeated_means():
    values = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert standard_error(values[0]) == pytest.approx(values[0].std().item() / math.sqrt(50))
    typical = sum(map(standard_error, values)) / 2000
    assert typical == pytest.approx(values.mean(1).std().item(), rel=STANDARD_ERRORS / math.sqrt(2 * 2000))


@pytest.mark.parametrize("dead", [(), (1,), (0, 2), (0, 1, 2)])
def test_active_units_are_those_whose_mean_depends_on_the_image(dataset, dead):
    model = make(3)
    mean_weights, mean_biases = model.encoder[-1].weight[:3], model.encoder[-1].bias[:3]
    with torch.no_grad():
        mean_weights.mul_(100)
        mean_weights[list(dead)] = 0
        mean_biases[list(dead)] = 5  # a constant says nothing of the image
    assert evaluate(model, dataset.test_images[:100])["active_units"] == 3 - len(dead)


def test_importance_weighted_bound_is_tighter_than_the_elbo_of_the_same_images(trained, dataset):
    images = dataset.test_images[:100]
    found = evaluate(trained.model, images, importance_images=100, importance_samples=50)
    assert found["iw_log_likelihood"] > found["elbo"]
    assert (found["iw_images"], found["iw_samples"]) == (100, 50)
    fewer = evaluate(trained.model, images, importance_images=20, importance_samples=50)
    assert fewer["iw_images"] == 20
    with seeded(0), torch.no_grad():
        recon_x, mu, logvar = trained.model(images)
        same_images = -elbo_loss(images, recon_x, mu, logvar, trained.model.sigma, reduction="none")[::5]
    assert fewer["iw_elbo"] == pytest.approx(same_images.mean().item(), rel=1e-6)
    assert fewer["iw_standard_error"] > found["iw_standard_error"]


def test_evaluation_is_repeatable_and_does_not_change_the_model(trained, dataset):
    before = weights(trained.model)
    first, second = (evaluate(trained.model, dataset.test_images[:50], 5, 5) for _ in range(2))
    assert first == second
    assert equal_weights(weights(trained.model), before)
    assert evaluate(trained.model, dataset.test_images[:50], seed=1)["elbo"] != first["elbo"]


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """A file with the weights of three models, one for each stage."""
    path = tmp_path / "mlp_z2.pt"
    stages = {stage: make(seed=number).state_dict() for number, stage in enumerate(STAGES)}
    save_checkpoint(path, make(), stages, history={"loss": [1.0]})
    return path


def test_weights_come_back_bit_by_bit_for_every_stage(checkpoint):
    for number, stage in enumerate(STAGES):
        model = load_checkpoint(checkpoint, stage)
        assert (model.latent_dim, model.architecture) == (2, "mlp")
        assert equal_weights(weights(model), weights(make(seed=number)))
    assert equal_weights(weights(load_checkpoint(checkpoint)), weights(make(seed=2)))


def test_checkpoint_of_a_training_has_the_model_of_each_stage(dataset, tmp_path):
    model, stages = make(), {}
    config = TrainConfig(epochs=3, batch_size=16)
    train(model, dataset.train_images[:16], config, lambda stage, _: stages.update({stage: weights(model)}))
    save_checkpoint(tmp_path / "a.pt", model, stages)
    for stage in STAGES:
        assert equal_weights(weights(load_checkpoint(tmp_path / "a.pt", stage)), stages[stage])
    assert not equal_weights(stages["middle"], stages["end"])


def write_bytes(content, path):
    path.write_bytes(content)


def write_other_architecture(path):
    save_checkpoint(path, make(), {"end": make(architecture="conv").state_dict()})


def write_other_latent_dim(path):
    save_checkpoint(path, make(), {"end": make(3).state_dict()})


def save(content, path):
    torch.save(content, path)


UNUSABLE = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "empty": partial(write_bytes, b""),
    "text": partial(write_bytes, b"These are not weights.\n"),
    "text that is a pickle's opcode": partial(write_bytes, b"(a tuple that nobody began"),
    "number that is cut short": partial(write_bytes, b"G123"),
    "image": partial(write_bytes, b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "bare pickle": lambda path: path.write_bytes(pickle.dumps({"latent_dim": 2})),
    "list": partial(save, [1, 2, 3]),
    "number": partial(save, 5),
    "weights alone": lambda path: torch.save(make().state_dict(), path),
    "no stages": partial(save, {"latent_dim": 2, "architecture": "mlp"}),
    "stages that are none": partial(save, {"latent_dim": 2, "architecture": "mlp", "stages": None}),
    "weights that are none": partial(save, {"latent_dim": 2, "architecture": "mlp", "stages": {"end": {1: 2}}}),
    "unknown architecture": partial(save, {"latent_dim": 2, "architecture": "resnet", "stages": {"end": {}}}),
    "another architecture's weights": write_other_architecture,
    "another latent size's weights": write_other_latent_dim,
}


@pytest.mark.parametrize("write", UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_checkpoint_is_an_error_of_one_line_that_names_the_file(tmp_path, write):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(InputError) as raised:
        load_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_checkpoint_is_an_error_that_names_the_file(checkpoint, kept):
    os.truncate(checkpoint, int(kept * checkpoint.stat().st_size))
    with pytest.raises(InputError, match=r"mlp_z2\.pt: .*, expected a checkpoint made by main\.py$"):
        load_checkpoint(checkpoint)


def test_unknown_stage_is_an_error_that_names_file_and_stage(checkpoint):
    with pytest.raises(InputError, match=r"mlp_z2\.pt: found no weights for its architecture at stage 'late'"):
        load_checkpoint(checkpoint, "late")


class Intruder:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_checkpoint_is_never_run(tmp_path, write):
    path, evidence = tmp_path / "weights.pt", tmp_path / "evidence"
    end = make().state_dict()
    write({"latent_dim": 2, "architecture": "mlp", "stages": {"end": end}, "more": Intruder(evidence)}, path)
    with pytest.raises(InputError, match="found something else"):
        load_checkpoint(path)
    assert not evidence.exists()


# ------------------------------------------------------------------------------------------------------------- runs


SMALL = TrainConfig(epochs=2, batch_size=16)


@pytest.fixture
def few(dataset):
    """Forty digits to train on, four of them held out: 6 iterations of `SMALL`."""
    return dataset.first(40, 20)


@pytest.fixture
def settings(tmp_path):
    return Settings(checkpoints=str(tmp_path / "checkpoints"), device="cpu")


@pytest.fixture
def perform(few, settings):
    """A function that trains or takes over a run: its checkpoint and the bar afterwards."""

    def perform(run, data=few, **changes):
        bar = tqdm(total=count_iterations(len(data.train_images), run.config), file=io.StringIO())
        return train_or_resume(run, data, replace(settings, **changes), bar), bar

    return perform


def test_run_is_named_after_all_that_sets_it_apart():
    assert Run("conv", 16, SMALL).name == "conv_z16"
    assert Run("mlp", 2, SMALL, "sigma1_seed2").name == "mlp_z2_sigma1_seed2"


def test_equal_runs_are_one():
    runs = [Run("mlp", dim, replace(SMALL, seed=seed)) for dim in (2, 3) for seed in (0, 1)] * 2
    assert len(set(runs)) == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_first_weights_are_drawn_with_the_seed_of_the_run(seed):
    assert equal_weights(weights(new_model(Run("mlp", 3, replace(SMALL, seed=seed)))), weights(make(3, seed=seed)))
    assert not equal_weights(weights(make(3, seed=seed)), weights(make(3, seed=2)))


def test_bar_counts_the_iterations_of_its_run_in_its_own_line(few):
    with progress_bar(Run("conv", 2, replace(SMALL, epochs=5)), few, line=2) as bar:
        assert bar.total == 5 * 3
        assert abs(bar.pos) == 2


def test_run_is_trained_and_kept_whole(perform, settings, few):
    run = Run("mlp", 2, SMALL, "variant")
    started = time.perf_counter()
    checkpoint, bar = perform(run)
    elapsed = time.perf_counter() - started
    model, stages = make(), {}
    history = train(model, few.train_images, SMALL, lambda stage, _: stages.update({stage: weights(model)}))
    assert checkpoint["history"] == history
    assert 0 < checkpoint["train_seconds"] < elapsed
    assert checkpoint["stages"].keys() == stages.keys() == STAGES.keys()
    for stage in STAGES:
        assert equal_weights(checkpoint["stages"][stage], stages[stage])
    assert not equal_weights(stages["begin"], stages["end"])
    path = Path(settings.checkpoints) / "mlp_z2_variant.pt"
    assert checkpoint_path(run, settings) == path
    assert read_checkpoint(path).keys() == checkpoint.keys()
    assert equal_weights(weights(load_checkpoint(path, "middle")), stages["middle"])
    assert bar.n == bar.total == len(history["loss"])
    assert bar.desc.startswith(run.name)
    assert bar.postfix == f"ELBO {-history['loss'][-1]:.0f}"


def test_resume_takes_a_run_over_and_without_it_the_run_is_trained_anew(perform, settings, capsys):
    run = Run("mlp", 2, SMALL)
    first, _ = perform(run, resume=True)  # where there is nothing to take over
    content = checkpoint_path(run, settings).read_bytes()
    again, bar = perform(run, resume=True)
    assert checkpoint_path(run, settings).read_bytes() == content
    assert again["train_seconds"] == first["train_seconds"]
    assert bar.n == bar.total
    anew, _ = perform(run)
    assert anew["train_seconds"] != first["train_seconds"]
    assert capsys.readouterr().err == ""


def test_run_with_another_setting_is_trained_anew_and_says_so(perform, settings, capsys):
    run = Run("mlp", 2, SMALL)
    perform(run)
    other = replace(run, config=replace(SMALL, learning_rate=1e-4))
    checkpoint, bar = perform(other, resume=True)
    assert checkpoint["made_from"]["config"]["learning_rate"] == 1e-4
    assert checkpoint["history"]["loss"] == perform(other)[0]["history"]["loss"]
    assert bar.n == bar.total
    err = capsys.readouterr().err
    assert f"{checkpoint_path(run, settings)}: made with other settings, data or versions; trained anew" in err


def test_checkpoint_that_cannot_be_taken_over_is_named(perform, settings):
    run = Run("mlp", 2, SMALL)
    perform(run)
    path = checkpoint_path(run, settings)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=f"^{path}: "):
        perform(run, resume=True)


def test_diverging_run_is_named_and_leaves_no_checkpoint(perform, settings):
    run = Run("mlp", 2, replace(SMALL, learning_rate=1e30))
    with pytest.raises(InputError, match=r"^mlp_z2: the loss is .*: lower the learning rate$"):
        perform(run)
    assert not checkpoint_path(run, settings).exists()


CPU = torch.device("cpu")


def test_origin_is_the_same_every_time_and_survives_json_and_checkpoints(few, tmp_path):
    origin = made_from(Run("mlp", 2, SMALL), few, CPU)
    assert origin == made_from(Run("mlp", 2, SMALL), few, CPU)
    assert json.loads(json.dumps(origin)) == origin
    save_checkpoint(tmp_path / "a.pt", make(), {}, made_from=origin)
    assert read_checkpoint(tmp_path / "a.pt")["made_from"] == origin


def test_origin_tells_apart_all_that_weights_follow_from(few, dataset, monkeypatch):
    run = Run("mlp", 2, SMALL)
    origins = [made_from(run, few, CPU)]
    others = [
        Run("conv", 2, SMALL),
        Run("mlp", 3, SMALL),
        Run("mlp", 2, SMALL, "variant"),
        *(
            Run("mlp", 2, replace(SMALL, **{name: value}))
            for name, value in {"epochs": 3, "batch_size": 8, "learning_rate": 1.0, "seed": 1, "sigma": 1.0}.items()
        ),
    ]
    origins += [made_from(other, few, CPU) for other in others]
    origins += [made_from(run, dataset.first(41, 20), CPU), made_from(run, few, torch.device("meta"))]
    bfloat16 = has_native_bfloat16(CPU)
    for target, value in {
        "train.version": lambda package: "0",
        "torch.get_num_threads": lambda: 99,
        "torch.cpu.get_capabilities": lambda: {"avx512_bf16": not bfloat16},
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            origins.append(made_from(run, few, CPU))
    with monkeypatch.context() as patch:
        _, decoder = ARCHITECTURES["mlp"]
        patch.setitem(ARCHITECTURES, "mlp", (lambda latent_dim: nn.Linear(784, 2 * latent_dim), decoder))
        origins.append(made_from(run, few, CPU))
    texts = [json.dumps(origin, sort_keys=True) for origin in origins]
    assert len(set(texts)) == len(texts) == 1 + 8 + 2 + 3 + 1


# ---------------------------------------------------------------------------------------------------------- devices


def test_environment_is_that_of_the_imported_packages():
    described = environment(CPU)
    for package in (matplotlib, mlxtend, np, scipy, torch, torchvision):
        assert described[package.__name__] == package.__version__.partition("+")[0]
    assert described["scikit-learn"] == sklearn.__version__
    assert sys.version.startswith(described["python"])
    assert (described["device"], described["threads"]) == ("cpu", torch.get_num_threads())
    assert described["bfloat16"] == has_native_bfloat16(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_used_where_it_is_native_and_only_there(native, monkeypatch):
    asked = []

    def is_bf16_supported(including_emulation=True):
        asked.append(including_emulation)
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert has_native_bfloat16(torch.device("cuda")) == native
    assert asked == [False]  # an emulation is slower than float32
    assert has_native_bfloat16(CPU) == native
    assert not has_native_bfloat16(torch.device("mps"))
    with mixed_precision(CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native else torch.float32)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # a processor without the name
    assert not has_native_bfloat16(CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert not has_native_bfloat16(CPU)


@pytest.mark.parametrize("accelerator", [None, torch.device("cuda")])
def test_auto_is_an_accelerator_that_is_there_or_the_cpu(accelerator, monkeypatch):
    def current_accelerator(check_available=False):
        return accelerator if check_available else torch.device("mps")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    assert choose_device("auto") == (accelerator or CPU)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["abacus", "", "cpu:x", "meta"])
def test_device_that_cannot_compute_is_named(name):
    with pytest.raises(InputError, match=f"^device: found '{name}', expected "):
        choose_device(name)


# ------------------------------------------------------------------------------------------------- figure of a model


def draw(monkeypatch, *arguments, with_data=True):
    """Run the command line of a figure's script: the arguments its function was called with."""
    calls = []
    monkeypatch.setattr(sys, "argv", ["/somewhere/figure.py", *map(str, arguments)])
    draw_checkpoint("A figure.", lambda *given, **named: calls.append((given, named)), with_data)
    (call,) = calls
    return call


@pytest.mark.parametrize("with_data", [True, False])
def test_figure_is_asked_for_with_the_model_of_the_stage(checkpoint, tmp_path, monkeypatch, with_data):
    for number, stage in enumerate(STAGES):
        options = ["--data-root", tmp_path] if with_data else []
        (model, *data), named = draw(
            monkeypatch, checkpoint, "--output", "a.png", "--stage", stage, *options, with_data=with_data
        )
        assert equal_weights(weights(model), weights(make(seed=number)))
        assert named["path"] == "a.png"
        assert named["title"].splitlines()[0] == f"{checkpoint}, {STAGES[stage]} of training"
        assert named["title"].splitlines()[1:] == (["MNIST subset, 5,000 images"] if with_data else [])
        assert [len(dataset.train_images) for dataset in data] == ([4000] if with_data else [])
    (model, *_), _ = draw(monkeypatch, checkpoint, "--output", "a.png", *options, with_data=with_data)
    assert equal_weights(weights(model), weights(make(seed=2)))  # the end's


@pytest.mark.parametrize("arguments", [["missing.pt", "--output", "a.png"], ["weights.pt"]])
def test_figure_that_cannot_be_drawn_is_one_line(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        draw(monkeypatch, *arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("figure.py: error: ")


# --------------------------------------------------------------------------------------------------- learning curve


def line(axes, label):
    """The data of the line of that label, as arrays of x and y."""
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found.get_data()


def faint_lines(axes):
    return [np.asarray(line.get_ydata()) for line in axes.lines if line.get_alpha() == 0.25]


def test_curve_shows_elbo_and_its_parts_at_every_iteration(history, drawn, tmp_path):
    test_elbo = {"begin": -60.0, "middle": 380.0, "end": 520.0}
    plot_elbo_curve(history, tmp_path / "a.png", test_elbo)
    names = {"ELBO (nats per image)": "loss", "−NLL (nats per image)": "nll", "−KL (nats per image)": "kl"}
    assert [axes.get_ylabel() for axes in drawn[0].axes] == list(names)
    for axes, name in zip(drawn[0].axes, names.values(), strict=True):
        assert np.array_equal(faint_lines(axes), [-np.array(history[name])])
    iterations, values = line(drawn[0].axes[0], "test set")
    assert (list(iterations), list(values)) == ([10, 150, 300], [-60, 380, 520])


def test_running_mean_is_over_a_tenth_of_the_iterations_on_either_side(history, drawn, tmp_path):
    plot_elbo_curve(history, tmp_path / "a.png")
    elbo = -np.array(history["loss"])
    iterations, smooth = line(drawn[0].axes[0], "training batches, running mean")
    assert np.array_equal(iterations, np.arange(1, 301))
    near = [abs(iterations - i) <= 0.1 * i + 1e-9 for i in iterations]
    assert smooth == pytest.approx([elbo[window].mean() for window in near])


def test_stages_draw_up_to_their_iteration_and_no_further(history, drawn, tmp_path):
    test_elbo = {"begin": -60.0, "middle": 380.0, "end": 520.0}
    for stage, until in history["stages"].items():
        plot_elbo_curve(history, tmp_path / f"{stage}.png", test_elbo, until)
    for number, (figure, until) in enumerate(zip(drawn, history["stages"].values(), strict=True), start=1):
        assert [len(values) for axes in figure.axes for values in faint_lines(axes)] == [until] * 3
        assert [axes.get_xlim() for axes in figure.axes] == [pytest.approx((1, 1.2 * until))] * 3
        assert len(line(figure.axes[0], "test set")[0]) == number


def test_axes_leave_out_the_depth_of_the_first_iterations_only(history, drawn, tmp_path):
    test_elbo = {"begin": -60.0, "middle": 380.0, "end": 720.0}
    plot_elbo_curve(history, tmp_path / "a.png", test_elbo)
    elbo = -np.array(history["loss"])
    low, high = drawn[0].axes[0].get_ylim()
    assert elbo[:2].max() < low < elbo[10:].min()
    assert high > max(elbo.max(), 720)  # what was measured on the test set is seen too
    assert drawn[0].axes[2].get_ylim()[1] > 0


def test_runs_are_told_apart_by_the_colour_of_the_network_and_the_style_of_the_size(history, drawn, tmp_path):
    names = ("conv", "mlp"), (2, 16, 32)
    runs = [Run(architecture, dim, TrainConfig()) for architecture in names[0] for dim in names[1]]
    histories = {run: {"loss": [loss - 50 * k for loss in history["loss"]]} for k, run in enumerate(runs)}
    plot_elbo_curves(histories, tmp_path / "a.png")
    plot_elbo_curve(history, tmp_path / "b.png")
    (axes,) = drawn[0].axes
    smooth = line(drawn[1].axes[0], "training batches, running mean")[1]
    for k, run in enumerate(runs):
        assert line(axes, run.name)[1] == pytest.approx(smooth + 50 * k)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [run.name for run in runs]
    styles = dict(zip(runs, axes.lines, strict=True))
    for run, other in combinations(runs, 2):
        assert (styles[run].get_color() == styles[other].get_color()) == (run.architecture == other.architecture)
        assert (styles[run].get_linestyle() == styles[other].get_linestyle()) == (run.latent_dim == other.latent_dim)
    assert axes.lines[0].get_linewidth() > axes.lines[-1].get_linewidth()  # so that neither hides the other


@pytest.mark.parametrize("length", [1, 6, 100])
def test_axes_hold_the_whole_curve_but_for_its_first_iterations_with_a_margin(length, drawn, tmp_path):
    nll = [-float(value**2) for value in range(length)]
    curve = {"loss": nll, "nll": nll, "kl": [0.0] * length, "stages": {}}
    plot_elbo_curve(curve, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == pytest.approx((1, 1.2 * length))
    first, last = (length // 10) ** 2, (length - 1) ** 2  # of what must be seen
    margin = 0.05 * (last - first) or 1.0
    assert axes.get_ylim() == pytest.approx((first - margin, last + margin))
    assert axes.get_xlabel() == "iteration"
    assert axes.xaxis.get_gridlines()[0].get_visible()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training batches, running mean"]


def test_stages_that_coincide_are_drawn_once_they_are_measured(history, drawn, tmp_path):
    short = {**history, "stages": {"begin": 150, "middle": 150, "end": 300}}
    plot_elbo_curve(short, tmp_path / "a.png", {"begin": 380.0}, until=150)
    iterations, values = line(drawn[0].axes[0], "test set")
    assert (list(iterations), list(values)) == ([150], [380])


@pytest.mark.parametrize("iterations", [1, 2])
def test_shortest_trainings_have_curves(iterations, tmp_path):
    values = [300.0, 200.0][:iterations]
    short = {"loss": values, "nll": values, "kl": [0.0] * iterations, "stages": {"begin": 1, "middle": 1}}
    plot_elbo_curve(short, tmp_path / "a.png", {"begin": -310.0, "middle": -310.0})
    plot_elbo_curves({Run("conv", 2, TrainConfig()): short}, tmp_path / "b.png")
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "b.png").exists()


# --------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1, 2.5, True, None, "3", math.nan]),
        ("batch_size", [0, -1, 2.5, True, None, math.inf]),
        ("learning_rate", [0, -1e-3, math.nan, math.inf, None, "1e-3"]),
        ("seed", [-1, 0.5, True, None, 2**40]),
        ("sigma", [0, 0.0, -1.0, math.nan, math.inf, "1"]),
    ],
)
def test_settings_that_cannot_be_used_are_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name.replace('_', '-')}: found .*, expected "):
            TrainConfig(**{name: value})
