"""The model: shapes and ranges, the reparameterization and its gradients, and how it starts."""

import numpy as np
import pytest
import torch
from conftest import make
from torch.testing import assert_close

from ELBO import elbo_loss
from train import seeded
from VAE import VAE, WIDTH, Residual


@pytest.fixture(params=["conv", "mlp"])
def model(request):
    return make(2, request.param)


def run(model, x):
    with seeded(0):
        return model(x)


@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (784,)])
def test_images_of_every_shape_give_one_result_in_that_shape(model, digits, shape):
    recon_x, mu, logvar = run(model, digits.reshape(8, *shape))
    assert (recon_x.shape, mu.shape, logvar.shape) == ((8, *shape), (8, 2), (8, 2))
    assert_close((recon_x.view_as(digits), mu, logvar), run(model, digits), rtol=0, atol=0)


def test_other_shapes_latent_sizes_and_names_are_refused(model):
    for shape in ((8, 3, 28, 28), (8, 783), (28, 28), (8, 1, 14, 56), (0, 1, 28, 28), (0, 784)):
        with pytest.raises(ValueError, match="x must be"):
            model(torch.zeros(shape))
    for unusable in ((0, "conv"), (2, "net")):
        with pytest.raises(ValueError, match="must be"):
            VAE(*unusable)


def test_decoded_images_are_in_the_unit_interval():
    images = make(np.int64(1)).decode(1e4 * torch.randn(20, 1))
    assert (images.shape, images.min(), images.max()) == ((20, 1, 28, 28), 0, 1)


@pytest.mark.parametrize(("last_layer", "mu", "logvar"), [(0.1, 0.1, 0.05), (-4.0, -3.8, -4.0), (1e4, 10.0, 3.0)])
def test_mean_and_log_variance_are_those_of_the_last_layer_but_bounded(model, digits, last_layer, mu, logvar):
    model.encoder.register_forward_hook(lambda *_: torch.full((8, 4), last_layer))
    codes = torch.stack(model.encode(digits))[:, 0, 0]
    assert codes.tolist() == pytest.approx([mu, logvar], abs=0.01)


def test_draw_has_the_mean_and_variance_of_its_code_and_their_gradients():
    posterior = torch.tensor([[1.0, -2.0, 3.0], [0.0, 1.0, -3.0]], requires_grad=True)
    mu, logvar = posterior
    z = run(lambda mu: make().reparameterize(mu, logvar), mu.expand(20_000, 3))
    assert_close(z.mean(0), mu, rtol=0, atol=0.05)
    assert_close(z.var(0), logvar.exp(), rtol=0.05, atol=0)
    z.square().mean(0).sum().backward()  # its expectation is the sum of mu^2 + e^logvar
    assert_close(posterior.grad, torch.stack([2 * mu, logvar.exp()]), rtol=0.05, atol=0.05)


def test_every_weight_has_a_gradient_from_end_to_end(model, digits):
    for layer in model.modules():
        if isinstance(layer, Residual):
            torch.nn.init.normal_(layer.layers[-1].weight)  # zero at first, which hides the layer before it
    elbo_loss(digits, *run(model, digits), model.sigma).backward()
    for name, weight in model.named_parameters():
        assert 0 < weight.grad.norm() < np.inf, name


@pytest.mark.parametrize("latent_dim", [1, 16])
def test_means_of_codes_start_as_far_apart_whatever_the_latent_size(model, dataset, latent_dim):
    """At 4 times torch's default for K = 1, with which the log-variances start; their bound takes 5 % of it."""
    x = dataset.train.choose(100).images
    codes = [make(latent_dim, model.architecture, seed).encode(x) for seed in range(8)]
    distance, default = (torch.stack(parts).var(1).mean().sqrt().item() for parts in zip(*codes, strict=True))
    assert distance / default * latent_dim**0.5 == pytest.approx(4 / 0.95, rel=0.15)
    assert 0.04 < distance * latent_dim**0.5 < 0.08  # in standard deviations of the prior


def test_first_reconstructions_are_the_mean_image_and_yet_depend_on_the_code(model, dataset):
    mean = dataset.train.images.mean(0).clamp(0.002, 0.998)
    model.mean_logits.copy_(mean.logit())
    images = model.decode(torch.randn(100, 2))
    assert (images - mean).square().mean().sqrt() < 0.02
    assert 0.01 < images.logit().std(0).mean() < 0.1


def test_layers_start_without_a_part_of_their_own(model):
    for layer in model.modules():
        if isinstance(layer, Residual):
            assert not layer.layers(torch.rand(5, WIDTH)).any()
        if isinstance(layer, torch.nn.Conv2d):
            assert not layer(torch.zeros(1, layer.in_channels, 8, 8)).any()
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_saved_weights_hold_all_that_decides_the_results(model, digits):
    assert (model.sigma, VAE().latent_dim, VAE().architecture) == (1, 2, "conv")
    other = make(model.latent_dim, model.architecture, seed=1)
    model.sigma.fill_(0.25)
    model.mean_logits.uniform_()
    other.load_state_dict(model.state_dict())
    assert other.sigma == 0.25
    assert_close(run(other, digits), run(model, digits), rtol=0, atol=0)
