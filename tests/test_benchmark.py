"""The benchmark: its arithmetic, that the sides do the same work, and that it says what is missing."""

import sys

import pytest

from evidence.benchmark import ESTIMATORS, compared, main, take_turns
from gmm_entropy import BALANCED_WEIGHTS, COVARIANCES, GMM, MEANS, quadrature_entropy


def test_contenders_take_turns_and_the_first_turn_is_not_counted():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert take_turns(2, contenders) == {"a": [3, 5], "b": [4, 6]}
    assert calls == list("ababab")


def test_ratios_are_those_within_a_turn():
    row = compared("what", ours=[1.0, 2.0, 4.0], other=[3.0, 8.0, 4.0], show=str)
    assert row == ["what", "2.0", "4.0", "3.00 (1.00 – 4.00)"]


@pytest.mark.parametrize("name", ["scikit-learn", "torch.distributions"])
def test_libraries_estimate_the_entropy_of_the_same_mixture(name):
    gmm = GMM(BALANCED_WEIGHTS, MEANS, COVARIANCES)
    six_standard_errors = 6 * 0.92 / 100_000**0.5
    assert ESTIMATORS[name](gmm, 100_000) == pytest.approx(quadrature_entropy(gmm), abs=six_standard_errors)


def test_a_missing_library_is_named_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pythae", None)
    with pytest.raises(SystemExit, match="2"):
        main(["--data-root", str(tmp_path), "--output", str(tmp_path / "page.md")])
    assert capsys.readouterr().err.count("\n") == 1
