"""What runs on a device: on a stand-in for one without float64, as Apple's mps is, and on the accelerator that is here.

Such a device has no float64, and a tensor cannot leave it and become float64 in one step: there, some releases of torch
raise an error, and others return wrong numbers.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from config import TrainConfig
from ELBO import negative_log_likelihood
from evidence.film import record
from evidence.posterior import draw_codes, fit_mixture, sample_mixture
from latent_traversal import plot_latent_traversal
from sample_from_prior import plot_prior_samples
from train import decode, encode_means, evaluate, train
from tsne import plot_tsne
from VAE import VAE

CPU, MPS = torch.device("cpu"), torch.device("mps")
BETWEEN_DEVICES = {Tensor.__getitem__, torch._has_compatible_shallow_copy_type}  # take tensors on two


class OnDevice(Tensor):
    """A tensor that counts as one on the device, as does what torch computes from it."""


class StandIn(TorchFunctionMode):
    """Lets torch compute in the CPU's memory, and refuses what it could not do with a tensor on mps."""

    def __torch_function__(self, function, types, given=(), options=None):
        options = options or {}
        tensors = [value for value in tree_leaves((given, options)) if isinstance(value, Tensor)]
        moved = tensors[:1] if function == Tensor.to else tensors  # to the device of the second, if there is one
        start = MPS if any(isinstance(tensor, OnDevice) for tensor in moved) else CPU
        if function == Tensor.device.__get__:
            return start
        if not tensors and "device" not in options:
            return function(*given, **options)
        asked = {Tensor.cpu: [CPU], Tensor.to: [*given[1:], *options.values()]}.get(function, [options.get("device")])
        goal = next(filter(None, map(device_of, asked)), start)
        given, options = tree_map_only(torch.device, lambda _: CPU, (given, options))
        result = function(*given, **options)
        if function == Tensor.grad.__get__:  # torch makes gradients without the class of what they are of
            return result if start == CPU or result is None else result.as_subclass(OnDevice)
        if start != goal:
            assert not tensors or result.dtype == tensors[0].dtype, "to another device and precision in one step"
            result = result.as_subclass(OnDevice if goal == MPS else Tensor)
        elif start == MPS:
            alike = all(isinstance(tensor, OnDevice) or tensor.ndim == 0 for tensor in tensors)
            assert alike or function in BETWEEN_DEVICES, "tensors on two devices"
            assert function not in {Tensor.numpy, Tensor.__array__}, "numpy cannot read the device's memory"
        for value in tree_leaves(result):
            assert not (isinstance(value, OnDevice) and value.dtype == torch.float64), "float64 on the device"
        return result


def device_of(value):
    """Return the device that an argument names, if it names one."""
    if isinstance(value, Tensor):
        return MPS if isinstance(value, OnDevice) else CPU
    return torch.device(value) if isinstance(value, str | torch.device) else None


@pytest.fixture(params=filter(None, ["stand-in", torch.accelerator.current_accelerator(check_available=True)]), ids=str)
def model(request, monkeypatch):
    if request.param == "stand-in":
        fork = torch.random.fork_rng
        monkeypatch.setattr(torch.random, "fork_rng", lambda *_, **__: fork([]))  # mps has a generator of its own
        # Without this, `Module.to` moves the data of a parameter, and leaves its class behind.
        monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        with StandIn():
            yield VAE(2, "conv-mlp").to(MPS)
    else:
        yield VAE(2, "conv-mlp").to(request.param)


@pytest.mark.parametrize("step", [("to", "cpu", torch.float64), ("double",), ("add", torch.ones(3)), ("numpy",)])
def test_stand_in_refuses_what_mps_cannot_do(step):
    name, *arguments = step
    with StandIn(), pytest.raises(AssertionError):
        getattr(torch.ones(3).to(MPS), name)(*arguments)


def test_training_filming_and_measuring_go_on_where_the_model_is(model, dataset):
    few, config = dataset.first(60, 40), TrainConfig(epochs=2, batch_size=54, plain_epochs=1)
    losses = train(model, few.train_images, config)["loss"] + [frame.elbo for frame in record(model, few, config)]
    results = evaluate(model, few.test_images, importance_images=5, importance_samples=3)
    assert np.isfinite([*losses, *results.pop("kl_per_dimension"), *results.values()]).all()
    assert model.sigma.device != CPU


def test_codes_images_and_figures_are_those_of_the_cpu(model, dataset, drawn, tmp_path):
    images, labels, on_cpu = dataset.test_images[:40], dataset.test_labels[:40], VAE(2, "conv-mlp")
    on_cpu.load_state_dict({name: value.cpu() for name, value in model.state_dict().items()})
    codes, expected = (torch.from_numpy(encode_means(network, images)) for network in (model, on_cpu))
    torch.testing.assert_close(codes, expected, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(decode(model, codes), decode(on_cpu, codes), rtol=0.01, atol=1e-3)
    assert sample_mixture(model, fit_mixture(draw_codes(model, images)), 5).device == CPU
    assert negative_log_likelihood(images.double(), images.double(), model.sigma).dtype == torch.float64
    plot_latent_traversal(model, tmp_path / "a.png", images)
    plot_prior_samples(model, tmp_path / "a.png")
    plot_tsne(model, images, labels, tmp_path / "a.png")
