"""The judge of samples: what it recognises, what it measures in its features, and the ceiling of each."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from evidence import quality
from evidence.quality import (
    Neighbourhoods,
    SampleJudge,
    blurred,
    expected_coverage,
    frechet_distance,
    mixed,
    references,
)


@pytest.fixture(scope="module")
def judge(dataset):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "EPOCHS", 5)
        return SampleJudge(dataset)


def test_real_digits_are_recognised_and_rated_as_real_and_others_are_not(judge, dataset):
    real = judge.rate(judge.others)
    assert judge.accuracy > 0.95
    assert real.recognised == judge.recognised(judge.others).mean() > 0.7
    assert real.density == pytest.approx(1, abs=0.3)
    assert real.coverage > 0.85
    assert sum(real.classes) == pytest.approx(1)
    assert real.class_entropy == pytest.approx(np.log(10), abs=0.1)
    negatives = judge.rate(1 - judge.others)  # black on white
    assert max(negatives.density, negatives.coverage) < 0.05
    assert negatives.frechet > 10 * real.frechet
    repeated = judge.rate(judge.others[:1].expand(500, -1, -1, -1))
    assert (repeated.coverage < 0.2, repeated.class_entropy) == (True, 0)


def test_references_show_the_ceiling_and_that_features_see_blur_and_averages(judge, dataset):
    rated = references(judge, dataset, judge.others[:200])
    found = {(one["images"], one["blur"]): one for one in rated}
    ceiling = found["test digits", 0]
    assert found["averages of two digits", 0]["recognised"] < 0.3 * ceiling["recognised"]
    assert found["test digits", 1.5]["coverage"] < 0.5 * ceiling["coverage"]
    assert found["test digits", 1.5]["pixel_coverage"] > found["test digits", 1.5]["coverage"]


def test_coverage_of_points_from_the_same_distribution_is_the_expected_one():
    rng = np.random.default_rng(0)
    covered = [Neighbourhoods(rng.normal(size=(60, 2))).rate(rng.normal(size=(40, 2)))[1] for _ in range(200)]
    assert np.mean(covered) == pytest.approx(expected_coverage(60, 40), abs=0.01)
    assert expected_coverage(10**6, 10**6) == pytest.approx(1 - 0.5**5, abs=1e-4)


def test_frechet_distance_is_its_formula():
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(300, 4)), 1 + 2 * rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    (mean, covariance), (other_mean, other) = ((x.mean(0), np.cov(x.T)) for x in (points, others))
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other - 2 * sqrtm(covariance @ other).real)
    assert frechet_distance(points, others) == pytest.approx(expected)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-8)


def test_mixed_images_have_half_a_label_of_each_part():
    x, y = torch.arange(16.0).view(-1, 1, 1, 1).expand(-1, 1, 28, 28), torch.eye(16)
    images, labels = mixed(x, y)
    assert torch.equal(images[4:], x[4:])
    assert torch.equal((images.mean((1, 2, 3))), (labels * torch.arange(16.0)).sum(1))
    assert labels.sum(1).eq(1).all()


def test_blur_keeps_the_sum_and_lowers_the_peak():
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 14, 14] = 1.0
    for sigma in (0.5, 1.5):
        assert blurred(image, sigma).sum().item() == pytest.approx(1, abs=1e-5)
        assert blurred(image, sigma).max() == pytest.approx(1 / (2 * np.pi * sigma**2), rel=0.12)
