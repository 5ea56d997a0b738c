"""The model: shapes and ranges, the reparameterization and its gradients, and what it refuses."""

import numpy as np
import pytest
import torch
from conftest import make
from torch import nn

from ELBO import elbo_loss, kl_diag_normal
from train import seeded
from VAE import ARCHITECTURES, VAE, WIDTH, Residual

both_architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def run(model, x, seed=0):
    with seeded(seed):
        return model(x)


def random_tensor(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# ---- Images and codes


@both_architectures
@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (784,)])
def test_every_shape_of_an_image_gives_the_same_result_in_that_shape(digits, architecture, shape):
    model = make(3, architecture)
    recon_x, mu, logvar = run(model, digits.reshape(8, *shape))
    assert recon_x.shape == (8, *shape)
    for value, expected in zip((recon_x.view_as(digits), mu, logvar), run(model, digits), strict=True):
        assert torch.equal(value, expected)


@both_architectures
@pytest.mark.parametrize("shape", [(8, 3, 28, 28), (8, 783), (28, 28), (8, 1, 14, 56), (0, 1, 28, 28), (0, 784)])
def test_other_shapes_and_an_empty_batch_are_refused(architecture, shape):
    with pytest.raises(ValueError, match=r"x must be \(B, 1, 28, 28\), \(B, 28, 28\) or \(B, 784\) with B > 0, not "):
        make(2, architecture)(torch.zeros(shape))


@both_architectures
def test_each_image_is_encoded_and_decoded_on_its_own(digits, architecture):
    model = make(3, architecture)
    posterior = model.encode(digits)
    for alone, together in zip(model.encode(digits[3:4]), posterior, strict=True):
        torch.testing.assert_close(alone, together[3:4])
    torch.testing.assert_close(model.decode(posterior[0][3:4]), model.decode(posterior[0])[3:4])


@both_architectures
def test_decoded_images_are_in_the_unit_interval(architecture):
    images = make(2, architecture).decode(1000 * random_tensor(20, 2))
    assert images.shape == (20, 1, 28, 28)
    assert ((images >= 0) & (images <= 1)).all()


@both_architectures
def test_no_image_gets_a_variance_whose_kl_would_drown_all_others(digits, architecture):
    model = make(2, architecture)
    model.encoder.register_forward_hook(lambda _, inputs, codes: codes + torch.tensor([0.0, 0.0, 30.0, 30.0]))
    kl = kl_diag_normal(*model.encode(digits))
    kl.backward()
    assert kl.item() == pytest.approx(2 * 8, rel=0.1)
    assert all(parameter.grad.isfinite().all() for parameter in model.encoder.parameters())


def test_draw_is_mu_plus_sigma_times_what_torch_draws_and_so_are_its_gradients():
    posterior = random_tensor(2, 6, 3).double().requires_grad_()
    with seeded(0):
        z = make(3, "mlp").reparameterize(*posterior)
    with seeded(0):
        sigma_epsilon = (posterior[1].exp().sqrt() * torch.randn_like(posterior[0])).detach()
    torch.testing.assert_close(z, posterior[0] + sigma_epsilon, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(z.sum(), posterior)
    torch.testing.assert_close(slope, torch.stack([torch.ones(6, 3), 0.5 * sigma_epsilon]))


# ---- Networks


@pytest.mark.parametrize("latent_dim", [1, np.int64(2), 50])
@pytest.mark.parametrize("architecture", ["conv", "mlp", "conv-mlp", "mlp-conv"])
def test_any_encoder_goes_with_any_decoder_and_latent_size(architecture, latent_dim):
    """On images without any contrast, too."""
    model, names = make(latent_dim, architecture), architecture.split("-")
    assert (model.latent_dim, model.architecture) == (latent_dim, architecture)
    assert str(model.encoder) == str(make(latent_dim, names[0]).encoder)
    assert str(model.decoder) == str(make(latent_dim, names[-1]).decoder)
    recon_x, mu, logvar = model(torch.tensor([[0.0], [1.0]]).expand(2, 784))
    assert mu.shape == logvar.shape == (2, latent_dim)
    assert all(value.isfinite().all() for value in (recon_x, mu, logvar))


@pytest.mark.parametrize("latent_dim", [0, -1, 2.5, 2.0, "2", None, True])
def test_latent_dim_must_be_a_positive_integer(latent_dim):
    with pytest.raises(ValueError, match="latent_dim must be a positive integer, not "):
        VAE(latent_dim)


@pytest.mark.parametrize("name", ["net", None, "conv-net", "net-conv", "conv-mlp-conv", "conv-", "conv-mlp-", "-conv"])
def test_unknown_architectures_are_refused(name):
    with pytest.raises(ValueError, match="architecture must be one of conv, mlp, not "):
        VAE(2, name)


def spread(values):
    """Standard deviation from item to item of values (B, ...), the mean over all that an item consists of."""
    return values.flatten(1).std(0).mean().item()


@both_architectures
@pytest.mark.parametrize("latent_dim", [1, 2, 16])
def test_code_reaches_the_image_and_the_image_the_code_before_any_training(digits, architecture, latent_dim):
    """Weights that shrink a signal in every layer would leave a thousandth of it, and training where z is ignored."""
    model = make(latent_dim, architecture)
    with torch.no_grad():
        assert 0.01 < spread(torch.logit(model.decode(random_tensor(100, latent_dim)))) < 2
        for posterior in model.encode(digits):
            assert 0.003 < spread(posterior) < 2


def test_untrained_convolutions_add_nothing_of_their_own_to_a_signal():
    """Where one pixel of four is a channel's, an offset of that channel is a pattern over the whole image."""
    for layer in make(2, "conv").modules():
        if isinstance(layer, nn.Conv2d):
            assert not layer(torch.zeros(1, layer.in_channels, 8, 8)).any()


@torch.no_grad()
def test_residual_layers_add_nothing_to_their_input_until_they_are_trained():
    layers = [layer for layer in make(2, "mlp").modules() if isinstance(layer, Residual)]
    assert len(layers) == 2
    x = random_tensor(5, WIDTH)
    for layer in layers:
        assert torch.equal(layer(x), x)


@both_architectures
@pytest.mark.parametrize("batch", [1, 8])
def test_every_parameter_learns(digits, architecture, batch):
    """In two steps: a weight behind one that is zero at first, as in a residual block, moves in the second."""
    model = make(2, architecture)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(2):
        model.zero_grad()
        recon_x, mu, logvar = run(model, digits[:batch], seed=step)
        elbo_loss(digits[:batch], recon_x, mu, logvar, model.sigma).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 / (1 + step) * parameter.grad.sign()  # a smaller one cannot undo the first
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


# ---- Precision and buffers


@both_architectures
def test_results_have_the_precision_of_the_images_even_where_networks_compute_in_half(digits, architecture):
    model = make(2, architecture)
    single = run(model, digits)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(model, digits)
        assert model.encoder(digits).dtype == torch.bfloat16
    double = run(model.double(), digits.double())
    for value, exact in zip((*mixed, double[1].float()), (*single, single[1]), strict=True):
        torch.testing.assert_close(value, exact, rtol=0.05, atol=0.01)  # dtypes too
    assert {value.dtype for value in double} == {torch.float64}


def test_sigma_is_saved_with_the_weights_and_is_not_trained():
    model, other = make(2, "mlp"), make(2, "mlp", seed=1)
    assert model.sigma == 1
    assert "sigma" not in dict(model.named_parameters())
    model.sigma.fill_(0.25)
    other.load_state_dict(model.state_dict())
    assert other.sigma == 0.25
