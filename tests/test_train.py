"""Training, measuring and checkpoints: against direct computations on the same draws, and with files really damaged."""

import math
import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from config import STAGES, TrainConfig
from ELBO import elbo_loss, optimal_sigma
from files import InputError
from train import (
    ADAM_BETAS,
    LEAST_SIGMA,
    calibrated_sigma,
    count_iterations,
    evaluate,
    hold_out,
    load_checkpoint,
    save_checkpoint,
    seeded,
    shuffled_batches,
    stage_iterations,
    standard_error,
    train,
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
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=6, cycle_momentum=False)
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


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(1, (1, 1, 1)), (2, (1, 1, 2)), (3, (1, 1, 3)), (5, (2, 2, 5)), (100, (10, 50, 100)), (4690, (47, 2345, 4690))],
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
    images = torch.full((64, 1, 28, 28), shade)
    history = train(model, images, TrainConfig(epochs=10, batch_size=16))
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
