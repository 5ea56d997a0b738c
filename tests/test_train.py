"""Training, measuring and the learning curve: against direct computations on the same draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import make
from scipy.stats import norm, uniform
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

import train as training
from ELBO import elbo_loss, importance_weighted_log_likelihood
from mnist import choose
from train import STAGES, TrainConfig, calibrated_sigma, evaluate, seeded, train

SHORT = TrainConfig(epochs=2, batch_size=16)  # of 40 images 4 are held out: batches of 16, 16 and 4, twice


@pytest.fixture
def few(dataset):
    """Forty real digits."""
    return dataset.train.choose(40).images


# ---- Training


def test_training_finds_a_much_better_bound_for_new_digits(trained, dataset):
    assert evaluate(trained.model, dataset.test.images)["elbo"] > 50 - trained.history["loss"][0]


def test_convolutional_network_learns_on_the_accelerator_if_there_is_one(dataset):
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model, images = make(16, "conv").to(device), dataset.train.choose(100).images
    history = train(model, images, TrainConfig(epochs=6, batch_size=32))
    assert evaluate(model, images, 5, 5)["elbo"] > 50 - history["loss"][0]
    assert training.decode(model, torch.from_numpy(training.encode_means(model, images))).shape == images.shape


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_training_is_the_plain_loop_with_the_loss_of_torch_distributions(few, sigma):
    few = few.double().index_fill(-1, torch.tensor(27), 1.0)  # a white edge: the logit of its mean has to be finite
    model, plain = make().double(), make().double()
    history = train(model, few, replace(SHORT, sigma=sigma))
    images, held_out = training.split_off_calibration(few, SHORT)
    plain.mean_logits.copy_(images.mean(0).clamp(0.002, 0.998).logit())
    optimizer = torch.optim.Adam(plain.parameters(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 6, pct_start=0.15, cycle_momentum=False)
    terms = []
    with seeded(0):
        for _ in range(2):
            for batch in torch.randperm(36).split(16):
                x = images[batch]
                recon_x, mu, logvar = plain(x)
                decoder_sigma = sigma or (x - recon_x).square().mean().sqrt()
                nll = -Independent(Normal(recon_x, decoder_sigma), 3).log_prob(x).mean()
                kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
                optimizer.zero_grad()
                (nll + kl).backward()
                optimizer.step()
                schedule.step()
                terms.append([(nll + kl).item(), nll.item(), kl.item()])
    with seeded(0), torch.no_grad():
        plain.sigma.fill_(sigma or (held_out - plain(held_out)[0]).square().mean().sqrt())
    assert np.transpose([history[name] for name in ("loss", "nll", "kl")]) == pytest.approx(np.array(terms))
    assert_close(model.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("augment", [False, True])
def test_each_epoch_takes_all_images_in_a_new_order_but_those_held_out(augment, monkeypatch):
    marks = torch.arange(40) / 39
    batches, held_out = [], []
    monkeypatch.setattr("ELBO.elbo_loss", lambda x, *given: batches.append(x[:, 0, 0, 0]) or elbo_loss(x, *given))
    monkeypatch.setattr(training, "calibrated_sigma", lambda model, x: held_out.append(x[:, 0, 0, 0]) or 1.0)
    monkeypatch.setattr(training, "augment", lambda x: x + 1)  # only when asked
    train(make(), marks.view(-1, 1, 1, 1).expand(-1, 1, 28, 28), replace(SHORT, augment=augment))
    assert [len(batch) for batch in batches] == [16, 16, 4, 16, 16, 4]
    assert not torch.equal(batches[0], batches[3])
    for epoch in (batches[:3], batches[3:]):
        assert_close(torch.cat([*epoch, held_out[-1] + augment]).sort().values, marks + augment)


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (29, 2), (9_999, 999), (60_000, 1000)])
def test_held_out_images_are_a_tenth_or_1000_of_both_groups_of_writers(count, held_out):
    """MNIST's images come in turns from two groups. The others stay in their order."""
    config, places = TrainConfig(), torch.arange(count)
    others, chosen = training.split_off_calibration(places, config)
    assert len(chosen) == training.calibration_count(count, config) == held_out
    assert torch.equal(torch.cat([others, chosen]).sort().values, places)
    assert torch.equal(others.sort().values, others)
    for some in (chosen, choose(count, held_out)):
        assert (some % 2).double().mean().item() == pytest.approx(0.5, abs=2 / held_out**0.5)  # 4 standard errors


def test_weights_follow_from_the_seed_and_nothing_else_is_touched(few):
    state, models = torch.get_rng_state(), [make() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train(model, few, replace(SHORT, seed=seed))
    assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)
    assert models[2].sigma != models[1].sigma
    assert torch.equal(torch.get_rng_state(), state)


def test_looking_at_a_training_changes_nothing(few, monkeypatch):
    plain, watched, seen, losses = make(), make(), [], []
    train(plain, few, SHORT)
    monkeypatch.setattr(training, "stage_iterations", lambda _: {"begin": 1, "middle": 2, "more": 2, "end": 6})

    def on_stage(*stage):
        seen.append((*stage, len(losses), 0 < watched.sigma < 1))
        evaluate(watched, few)

    history = train(watched, few, SHORT, on_stage, lambda *iteration: losses.append(iteration))
    assert_close(plain.state_dict(), watched.state_dict(), rtol=0, atol=0)
    assert seen == [("begin", 1, 1, True), ("middle", 2, 2, True), ("more", 2, 2, True), ("end", 6, 6, True)]
    assert losses == list(enumerate(history["loss"], start=1))


def test_stages_are_one_percent_half_and_all_of_the_training():
    expected = {1: (1, 1, 1), 2: (1, 1, 2), 5: (2, 2, 5), 12: (4, 6, 12), 100: (10, 50, 100), 4690: (47, 2345, 4690)}
    for iterations, stages in expected.items():
        assert training.stage_iterations(iterations) == dict(zip(STAGES, stages, strict=True))


def test_augmented_images_are_the_originals_under_linear_maps_near_the_identity(few):
    with seeded(3):
        augmented = training.augment(few)
    changes = torch.empty(40, 2, 2).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(3)).numpy()
    center = np.full(2, 13.5)
    for image, found, change in zip(few, augmented, changes, strict=True):
        to_source = (np.eye(2) + change)[::-1, ::-1]  # scipy counts rows before columns
        offset = center - to_source @ center
        expected = scipy.ndimage.affine_transform(image[0], to_source, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize("sigma", [None, 1.0])
def test_far_too_high_learning_rate_is_a_clear_error_and_so_is_measuring_its_result(few, sigma):
    model = make()
    config = replace(SHORT, learning_rate=1e30, sigma=sigma)
    for act in (lambda: train(model, few, config), lambda: evaluate(model, few)):
        with pytest.raises(FloatingPointError, match="lower the learning rate"):
            act()


def test_images_that_cannot_be_trained_on_are_refused_before_anything(few):
    model = make()
    for images in (255 * few, few - 1e-3, few.flatten(1), few.where(few < 1, math.nan), few[:1], few[:0]):
        with pytest.raises(ValueError, match="images"):
            train(model, images)
    assert_close(model.state_dict(), make().state_dict(), rtol=0, atol=0)


# ---- Measuring


def test_evaluation_is_that_of_torch_distributions_on_the_same_draws(trained, dataset):
    model, x, chosen = trained.model, dataset.train.images[:1100], choose(1100, 20)
    with seeded(0), torch.no_grad():
        portions = [model(part) for part in x.split(1000)]
        bound = importance_weighted_log_likelihood(model, x[chosen], 200)
    recon_x, mu, logvar = (torch.cat(values).double() for values in zip(*portions, strict=True))
    nll = -Independent(Normal(recon_x, model.sigma.double()), 3).log_prob(x.double())
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0))
    elbo = -nll - kl.sum(1)
    means = {"elbo": elbo, "nll": nll, "kl": kl.sum(1), "mse": (x - recon_x).square()}
    means |= {"iw_log_likelihood": bound, "iw_elbo": elbo[chosen]}
    errors = {"elbo_standard_error": elbo, "iw_gap_standard_error": bound - elbo[chosen]}
    expected = {name: values.mean().item() for name, values in means.items()} | {"active_units": 2}
    expected |= {name: values.std().item() / len(values) ** 0.5 for name, values in errors.items()}
    found = evaluate(model, x, importance_images=20)
    assert found.pop("kl_per_dimension") == pytest.approx(kl.mean(0).tolist(), rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["iw_elbo"] < found["iw_log_likelihood"]
    other = evaluate(model, x, seed=1)
    assert (other["elbo"] == found["elbo"], "iw_elbo" in other) == (False, False)
    np.testing.assert_allclose(training.encode_means(model, x), mu, rtol=1e-4)
    assert_close(training.decode(model, mu.float()), model.decode(mu.float()).detach())


def test_calibrated_sigma_is_the_root_of_the_mean_squared_error_but_at_least_that_of_rounding(trained, dataset):
    images = dataset.test.images.repeat(2, 1, 1, 1)[:1100]
    with seeded(0), torch.no_grad():
        squares = torch.cat([(x - trained.model(x)[0]).square() for x in images.split(1000)])
    assert calibrated_sigma(trained.model, images) == pytest.approx(squares.mean().sqrt().item())
    black = make()
    black.mean_logits.fill_(-1000)
    assert calibrated_sigma(black, torch.zeros(5, 784)) == pytest.approx(uniform(0, 1 / 255).std())


def test_unit_is_active_where_its_mean_varies_by_more_than_a_hundredth(few):
    """Burda et al. 2016, section 5.2: 0.0095 is not enough, 0.0105 is, and a constant says nothing of the image."""
    model = make(3)
    spread = model.encode(few)[0].std(0)
    model.encoder[-1].weight.data[:3] *= (torch.tensor([0.0095, 0.0105, 0.0]).sqrt() / spread).unsqueeze(1)
    model.encoder[-1].bias.data[2] = 5
    assert evaluate(model, few)["active_units"] == 1


def test_mean_image_has_the_density_of_a_gaussian_around_it(dataset):
    train_images, test_images = dataset.train.images[:300], dataset.test.images
    mean = train_images.numpy().mean(0)
    exact = norm.logpdf(test_images, mean, (train_images.numpy() - mean).std())
    assert training.mean_image_elbo(train_images, test_images) == pytest.approx(784 * exact.mean(), rel=1e-5)


# ---- Learning curve


@pytest.mark.parametrize(("length", "reach"), [(5, 0), (250, 2), (1000, 10)])
def test_smoothed_is_the_mean_of_two_percent_of_the_values(length, reach):
    values = np.random.default_rng(0).standard_normal(length)
    expected = [values[max(0, place - reach) : place + reach + 1].mean() for place in range(length)]
    assert training.smoothed(values) == pytest.approx(expected)


def test_curve_shows_bound_and_kl_up_to_an_iteration_and_the_test_bounds(trained, drawn, tmp_path):
    training.plot_elbo_curve(trained.history, tmp_path / "a.png", {1: -1000.0, 24: 30.0}, until=24)
    top, bottom = drawn[0].axes
    for axes, values in ((top, -np.array(trained.history["loss"])), (bottom, np.array(trained.history["kl"]))):
        for line, expected in zip(axes.lines[:2], (values[:24], training.smoothed(values[:24])), strict=True):
            assert np.array_equal(line.get_data(), [range(1, 25), expected])
    assert top.lines[2].get_xydata().tolist() == [[1, -1000], [24, 30]]
    assert top.get_ylim()[0] < -1000


def test_curves_of_all_runs_fill_one_figure_but_for_their_first_percent(drawn, tmp_path):
    losses = {"a": [1e6, 1e6, *range(198)], "b": [-500.0]}
    training.plot_elbo_curves({label: {"loss": loss} for label, loss in losses.items()}, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    a, b = (training.smoothed(-np.array(loss)) for loss in losses.values())
    shown = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert (shown["a"], shown["b"]) == (a.tolist(), b.tolist())
    margin = 0.05 * (500 - a[2:].min()) + 1
    assert axes.get_ylim() == pytest.approx((a[2:].min() - margin, 500 + margin))
