"""The judge of samples: what it recognises, how far from digits it finds images, and that it is kept."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from evidence import judge as module
from evidence.judge import CONFIDENCE, frechet_distance, make_judge


def test_other_digits_are_rated_as_real_and_averages_and_negatives_are_not(dataset, monkeypatch, tmp_path):
    make_judge(tmp_path / "judge.json", dataset, resume=False)
    monkeypatch.setattr(module, "train_classifier", None)  # a call fails
    judge = make_judge(tmp_path / "judge.json", dataset, resume=True)
    found = judge.describe(dataset.test)
    real, averages, negatives = found["test_digits"], found["averages_of_two_digits"], judge.rate(1 - judge.others)
    assert found["accuracy"] > 0.85
    assert len(judge.reference) == len(judge.others) == found["samples"] == 500
    probabilities = judge.classifier(judge.others).softmax(1).amax(1)
    assert real["recognised"] == pytest.approx((probabilities >= CONFIDENCE).double().mean().item())
    assert averages["recognised"] < real["recognised"] - 0.2
    assert 2 * real["frechet_distance"] < averages["frechet_distance"] < negatives["frechet_distance"]
    with pytest.raises(TypeError):  # trained anew for other digits
        make_judge(tmp_path / "judge.json", dataset._replace(train=dataset.train.choose(100)), resume=True)


def test_frechet_distance_is_the_root_of_its_formula():
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(300, 4)), 1 + 2 * rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    (mean, covariance), (other_mean, other) = ((x.mean(0), np.cov(x.T)) for x in (points, others))
    square = ((mean - other_mean) ** 2).sum() + np.trace(covariance + other - 2 * sqrtm(covariance @ other).real)
    assert frechet_distance(points, others) == pytest.approx(np.sqrt(square))
    assert frechet_distance(points, 3 + points) == pytest.approx(6)  # 3 in each of four dimensions
