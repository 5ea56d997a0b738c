"""The benchmark: contenders do the same work in turns, and each has its line."""

import pytest
from test_mnist import write_set

from evidence import benchmark
from gmm_entropy import BALANCED_WEIGHTS, COVARIANCES, GMM, MEANS, quadrature_entropy
from train import seeded


def test_contenders_take_turns_and_the_first_turn_is_not_counted(monkeypatch):
    monkeypatch.setattr(benchmark, "TURNS", 2)
    ticks, calls = iter(range(100)), []
    monkeypatch.setattr(benchmark.time, "process_time", lambda: next(ticks) ** 2)
    seconds = benchmark.take_turns({name: lambda name=name: calls.append(name) for name in "ab"})
    assert calls == list("ababab")
    assert seconds == {"a": [9, 17], "b": [13, 21]}  # differences of squares: 5^2 - 4^2, ...


@pytest.mark.parametrize("estimate", [benchmark.sklearn_entropy, benchmark.torch_entropy])
def test_libraries_estimate_the_entropy_of_the_same_mixture(estimate):
    gmm = GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES)
    with seeded(0):
        assert estimate(gmm, 50_000) == pytest.approx(quadrature_entropy(gmm), abs=0.025)  # six standard errors


def test_table_has_a_line_for_each_contender_on_mnist_files(dataset, tmp_path, monkeypatch, capsys):
    for name, value in (("TURNS", 1), ("SAMPLES", 1000), ("IMAGES", 256)):
        monkeypatch.setattr(benchmark, name, value)
    write_set(tmp_path, dataset.train.choose(300), dataset.test.choose(30))
    benchmark.main(["--data-root", str(tmp_path)])
    starts = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    training = ["256 images", "train.train", "DataLoader, as in tutorials"]
    assert starts == ["1,000 samples", "mc_entropy", "scikit-learn", "torch.distributions", *training]
