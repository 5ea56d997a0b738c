"""The model: shapes and ranges, the reparameterization's moments and gradients, and what it refuses."""

import ast
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import config
from ELBO import elbo_loss, kl_diag_normal
from train import seeded
from VAE import ARCHITECTURES, MAX_LOGVAR, VAE, WIDTH, Residual

DRAWS = 40_000
STANDARD_ERRORS = 4  # that an estimate may be off

both_architectures = pytest.mark.parametrize("architecture", ARCHITECTURES)


def make(latent_dim, architecture, seed=0):
    with seeded(seed):
        return VAE(latent_dim, architecture)


@both_architectures
@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (784,)])
def test_every_shape_of_an_image_gives_the_same_result_in_that_shape(digits, architecture, shape):
    model = make(3, architecture)
    with seeded(1):
        square_recon, *square_posterior = model(digits)
    with seeded(1):
        recon_x, *posterior = model(digits.reshape(8, *shape))
    assert recon_x.shape == (8, *shape)
    assert torch.equal(recon_x.flatten(), square_recon.flatten())
    for value, square_value in zip(posterior, square_posterior, strict=True):
        assert value.shape == (8, 3)
        assert torch.equal(value, square_value)


@both_architectures
def test_no_image_gets_a_variance_whose_kl_would_drown_all_others(digits, architecture):
    model = make(2, architecture)
    model.encoder.register_forward_hook(lambda _, inputs, codes: codes + torch.tensor([0.0, 0.0, 30.0, 30.0]))
    mu, logvar = model.encode(digits)
    assert torch.equal(logvar, torch.full((8, 2), MAX_LOGVAR))
    assert kl_diag_normal(mu, logvar) < 1.1 * 2 * 8
    kl_diag_normal(mu, logvar).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.encoder.parameters())


@both_architectures
@pytest.mark.parametrize("shape", [(1, 28), (8, 3, 28, 28), (8, 28, 28, 1), (8, 783), (784,), (28, 28), (8, 1, 14, 56)])
def test_other_shapes_are_refused(architecture, shape):
    with pytest.raises(ValueError, match=r"x must be \(B, 1, 28, 28\), \(B, 28, 28\) or \(B, 784\), not "):
        make(2, architecture).encode(torch.zeros(shape))


@both_architectures
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_decoded_images_are_in_the_unit_interval(architecture, scale):
    images = make(2, architecture).decode(scale * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
    assert images.shape == (20, 1, 28, 28)
    assert images.min() >= 0
    assert images.max() <= 1


@both_architectures
def test_each_image_is_encoded_and_decoded_on_its_own(digits, architecture):
    model = make(3, architecture)
    mu, logvar = model.encode(digits)
    single_mu, single_logvar = model.encode(digits[3:4])
    torch.testing.assert_close(single_mu, mu[3:4])
    torch.testing.assert_close(single_logvar, logvar[3:4])
    torch.testing.assert_close(model.decode(mu[3:4]), model.decode(mu)[3:4])


def spread(values):
    """Standard deviation from item to item of values (B, ...), the mean over all that an item consists of."""
    return values.flatten(1).std(0).mean().item()


@both_architectures
@pytest.mark.parametrize("latent_dim", [1, 2, 16])
def test_code_reaches_the_image_and_the_image_the_code_before_any_training(digits, architecture, latent_dim):
    """Weights that shrink a signal in every layer would leave a thousandth of it, and training where z is ignored."""
    model = make(latent_dim, architecture)
    z = torch.randn(100, latent_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert 0.01 < spread(torch.logit(model.decode(z))) < 2
        for posterior in model.encode(digits):
            assert 0.003 < spread(posterior) < 2


@both_architectures
def test_untrained_convolutions_add_nothing_of_their_own_to_a_signal(architecture):
    """Where one pixel of four is a channel's, an offset of that channel is a pattern over the whole image."""
    for layer in make(2, architecture).modules():
        if isinstance(layer, nn.Conv2d):
            assert not layer(torch.zeros(1, layer.in_channels, 8, 8)).any()


@both_architectures
@pytest.mark.parametrize("shade", [0.0, 1.0], ids=["black", "white"])
def test_uniform_images_give_finite_results(architecture, shade):
    assert all(value.isfinite().all() for value in make(2, architecture)(torch.full((1, 784), shade)))


@both_architectures
@pytest.mark.parametrize("latent_dim", [1, 2, 50])
def test_any_positive_integer_is_a_latent_dim(digits, architecture, latent_dim):
    model = make(latent_dim, architecture)
    recon_x, mu, logvar = model(digits)
    assert (model.latent_dim, model.architecture) == (latent_dim, architecture)
    assert mu.shape == logvar.shape == (8, latent_dim)
    assert recon_x.shape == digits.shape


def test_default_is_a_plane_of_codes_and_the_convolutional_network():
    model = VAE()
    assert (model.latent_dim, model.architecture) == (2, "conv")


@pytest.mark.parametrize("latent_dim", [0, -1, 2.5, 2.0, "2", None, True])
def test_latent_dim_must_be_a_positive_integer(latent_dim):
    with pytest.raises(ValueError, match="latent_dim must be a positive integer, not "):
        VAE(latent_dim)


@pytest.mark.parametrize("architecture", ["resnet", "", None, "conv-resnet", "resnet-conv", "conv-mlp-conv"])
def test_unknown_architectures_are_refused(architecture):
    with pytest.raises(ValueError, match="architecture must be one of conv, mlp, not "):
        VAE(2, architecture)


@pytest.mark.parametrize(("encoder", "decoder"), [("conv", "mlp"), ("mlp", "conv")])
def test_encoder_of_one_architecture_goes_with_the_decoder_of_another(digits, encoder, decoder):
    model = make(3, f"{encoder}-{decoder}")
    assert str(model.encoder) == str(make(3, encoder).encoder)
    assert str(model.decoder) == str(make(3, decoder).decoder)
    assert model(digits)[0].shape == digits.shape


@both_architectures
def test_residual_layers_pass_their_input_on_until_they_are_trained(architecture):
    layers = [layer for layer in make(2, architecture).modules() if isinstance(layer, Residual)]
    assert len(layers) == 2
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        assert torch.equal(layer(x), x)
        last = layer.layers[-1]
        nn.init.eye_(last.weight)  # what the first of the two layers makes of x now shows
        inner = functional.linear(functional.silu(x), layer.layers[1].weight, layer.layers[1].bias)
        torch.testing.assert_close(layer(x), x + functional.silu(inner))


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (-3.0, 0.1), (0.5, 20.0)])
def test_reparameterized_draws_have_the_mean_and_the_deviation_of_the_posterior(mu, sigma):
    shape = (DRAWS, 2)
    with seeded(0):
        z = make(2, "mlp").reparameterize(torch.full(shape, mu), torch.full(shape, 2 * math.log(sigma)))
    error = z.mean(0) - mu
    assert (error.abs() < STANDARD_ERRORS * sigma / math.sqrt(DRAWS)).all()
    assert ((z.std(0) - sigma).abs() < STANDARD_ERRORS * sigma / math.sqrt(2 * DRAWS)).all()
    epsilon = (z - mu) / sigma
    assert ((epsilon**4).mean(0) - 3).abs().max() < STANDARD_ERRORS * math.sqrt(96 / DRAWS)  # a Gaussian's kurtosis
    assert abs((epsilon[:, 0] * epsilon[:, 1]).mean()) < STANDARD_ERRORS / math.sqrt(DRAWS)


def test_draw_is_mu_plus_sigma_times_what_torch_draws():
    model = make(3, "mlp")
    mu, logvar = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with seeded(0):
        z = model.reparameterize(mu, logvar)
    with seeded(0):
        epsilon = torch.randn_like(mu)
    torch.testing.assert_close(z, mu + logvar.exp().sqrt() * epsilon, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_draw_is_one_for_mu_and_half_sigma_epsilon_for_logvar():
    with seeded(0):
        mu, logvar = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        z = make(3, "mlp").reparameterize(mu, logvar)
    z.sum().backward()
    sigma_epsilon = (z - mu).detach()
    assert torch.equal(mu.grad, torch.ones_like(mu))
    torch.testing.assert_close(logvar.grad, 0.5 * sigma_epsilon)


@both_architectures
@pytest.mark.parametrize("batch", [1, 8])
def test_every_parameter_learns(digits, architecture, batch):
    """In two steps: a weight behind one that is zero at first, as in a residual block, moves in the second."""
    model = make(2, architecture)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(2):
        model.zero_grad()
        with seeded(step):
            recon_x, mu, logvar = model(digits[:batch])
        elbo_loss(digits[:batch], recon_x, mu, logvar, model.sigma).backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                parameter -= 1e-3 / (1 + step) * parameter.grad.sign()  # a smaller one cannot undo the first
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


@both_architectures
def test_model_works_in_double_precision(digits, architecture):
    single, double = make(2, architecture), make(2, architecture).double()
    recon_x, mu, logvar = double(digits.double())
    assert {recon_x.dtype, mu.dtype, logvar.dtype, double.sigma.dtype} == {torch.float64}
    torch.testing.assert_close(mu.float(), single.encode(digits)[0], rtol=1e-4, atol=1e-5)


@both_architectures
def test_only_the_networks_compute_in_half_precision(digits, architecture):
    """Under autocast: what the bound is computed from keeps the images' precision, and about its value."""
    model = make(2, architecture)
    with seeded(0):
        exact = model(digits)
    with seeded(0), torch.autocast("cpu", torch.bfloat16):
        found = model(digits)
        assert model.encoder(digits).dtype == torch.bfloat16
    for value, expected in zip(found, exact, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0.05, atol=0.01)


def test_sigma_is_saved_with_the_weights_and_is_not_trained():
    model, other = make(2, "mlp"), make(2, "mlp", seed=1)
    assert model.sigma == 1
    assert "sigma" not in dict(model.named_parameters())
    model.sigma.fill_(0.25)
    other.load_state_dict(model.state_dict())
    assert other.sigma == 0.25


@pytest.mark.parametrize("latent_dim", [2, 16])
def test_architectures_are_of_comparable_size(latent_dim):
    sizes = [sum(p.numel() for p in make(latent_dim, name).parameters()) for name in ARCHITECTURES]
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("name", ["VAE", "ELBO"])
def test_model_and_bound_import_only_torch_and_print_nothing(name, capfd):
    path = Path(__file__).parent.parent / f"{name}.py"
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in imported} <= {"torch", "math"}
    spec = importlib.util.spec_from_file_location(f"another_{name}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert capfd.readouterr() == ("", "")


def test_every_architecture_can_be_named_on_the_command_line():
    assert tuple(ARCHITECTURES) == config.ARCHITECTURES
