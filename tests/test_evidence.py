"""The evidence: its measure of samples, its plan, and one small collection whole."""

import json

import pytest

from config import Settings
from evidence import SEEDS, SampleJudge, planned_experiments
from main import main
from report import EVIDENCE_TABLES


def test_real_digits_are_rated_as_real_and_negatives_as_none(dataset):
    judge = SampleJudge(dataset)
    real = judge.rate(dataset.train_images[:1000])
    assert real.density == pytest.approx(1, abs=0.3)
    assert real.coverage > 0.85
    assert max(judge.rate(1 - dataset.train_images[:1000])) < 0.01  # black on white
    assert judge.rate(dataset.test_images[:1].expand(1000, -1, -1, -1)).coverage < 0.2  # one digit, repeated


def test_plan_names_every_experiment_once_and_shares_the_main_runs():
    settings = Settings()
    names = [plan.name for plan in planned_experiments(settings, settings.train_config(60_000))]
    assert len(names) == len(set(names))
    assert {"conv_z2", "conv_z16", "mlp_z2", "mlp_z16", "mlp_z64_seed2", "mlp_z16_sigma1"} <= set(names)


def test_evidence_is_collected_tabulated_and_drawn(tmp_path):
    places = ("--figures", str(tmp_path / "figures"), "--checkpoints", str(tmp_path / "checkpoints"))
    small = ("--quick", "--epochs", "2", "--architectures", "mlp", "--latent-dims", "2", "--data-root", "nowhere")
    main([*small, *places, "--offline", "--evidence"])
    results = json.loads((tmp_path / "figures" / "results.json").read_text())
    runs = results["evidence"]["runs"]
    assert sorted((run["seed"], str(run["sigma_rule"])) for run in runs) == [
        (seed, rule) for seed in range(SEEDS) for rule in ("1.0", "calibrated")
    ]
    for run in runs:
        fixed = run["sigma_rule"] == 1.0
        assert (run["sigma"] == 1) == fixed
        assert run["elbo_with_fitted_sigma"] > run["elbo"] - 1
    for name in ("latent_sweep.png", "samples_mlp.png", "sigma_mlp.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
    assert all(len(table(results).splitlines()) > 2 for table in EVIDENCE_TABLES.values())
