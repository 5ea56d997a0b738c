"""The codes of images, the mixture fitted to them, and its samples."""

import math

import numpy as np
import pytest
import torch
from conftest import make

from evidence.posterior import draw_codes, fit_mixture, sample_mixture
from gmm_entropy import GMM
from train import decode


def test_codes_are_draws_from_the_posterior_of_each_image_in_order(trained, dataset):
    count, images = 1500, dataset.test.choose(2).images  # in three portions
    with torch.no_grad():
        mu, logvar = (value.double().numpy() for value in trained.model.encode(images))
    codes = draw_codes(trained.model, images.repeat_interleave(count, dim=0), seed=1).reshape(2, count, -1)
    sigma = np.exp(logvar / 2)
    assert (abs(codes.mean(1) - mu) < 4 * sigma / math.sqrt(count)).all()
    assert (abs(codes.std(1) - sigma) < 4 * sigma / math.sqrt(2 * count)).all()
    assert len(np.unique(codes[..., 0])) > 0.99 * 2 * count  # no portion repeats another's draws


def test_fitted_mixture_has_the_moments_of_separate_groups_of_codes():
    rng = np.random.default_rng(0)
    groups = rng.normal(-4, 0.5, (220, 2)), rng.normal(4, 1.0, (79, 2))
    mixture = fit_mixture(np.concatenate(groups), components=2)
    for k, group in zip(np.argsort(mixture.means[:, 0]), groups, strict=True):
        assert mixture.weights[k] == pytest.approx(len(group) / 299, abs=1e-3)
        assert mixture.means[k] == pytest.approx(group.mean(0), abs=1e-3)
        assert mixture.covariances[k] == pytest.approx(np.cov(group.T, bias=True), abs=1e-3)


def test_mixture_samples_are_decoded_codes_of_the_mixture():
    model, ends = make(latent_dim=3), np.array([3 * [-2.0], 3 * [2.0]])
    mixture = GMM([0.5, 0.5], ends, [1e-12 * np.eye(3)] * 2)
    decoded = decode(model, torch.from_numpy(ends).float())
    samples = sample_mixture(model, mixture, 20)
    differences = (samples[:, None] - decoded).abs().amax((2, 3, 4))  # of each sample from each end
    assert {*differences.argmin(1).tolist()} == {0, 1}
    assert differences.amin(1).max() < 1e-4
