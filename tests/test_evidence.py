"""The evidence: its plan, its measure of samples, and one small collection, made, taken over and interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coarsely_drawn
from PIL import Image

import evidence.__main__
import evidence.experiments
import evidence.pages
import main
import train
from config import Settings, TrainConfig
from evidence.experiments import (
    BUDGETS,
    FIXED_SIGMA,
    LATENT_DIMS,
    SEEDS,
    describe,
    describe_network,
    planned_runs,
    variant,
)
from evidence.quality import SampleJudge
from files import LOCK, writing_alone_in
from train import Run

ROOT = Path(__file__).parent.parent
SMALL = (
    "--quick",
    "--offline",
    "--epochs",
    "1",
    "--architectures",
    "mlp",
    "--latent-dims",
    "2",
    "--data-root",
    "nowhere",
)
DRAWN = (
    "aggregate_posterior.png",
    "digits_by_latent_size.png",
    "elbo_time.png",
    "interpolation.png",
    "kl_spectrum.png",
    "latent_sizes.png",
    "networks.png",
    "sigma.png",
)
MEASURED = {"mlp_z2", "mlp_z2_seed1", "mlp_z2_seed2", "mlp_z2_sigma1", "mlp_z2_sigma1_seed1", "mlp_z2_sigma1_seed2"}
RUNS = MEASURED | {"mlp_z2_float32", "mlp_z2_packaged"}


def collect(folder, *more):
    """Run `python -m evidence` in this process on the smallest set that has every part."""
    places = ("--figures", str(folder / "figures"), "--checkpoints", str(folder / "checkpoints"))
    with coarsely_drawn():
        evidence.__main__.main([*SMALL, *places, *more])


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    collect(folder)
    return folder


@pytest.fixture(scope="module")
def results(collection):
    return json.loads((collection / "figures" / "evidence" / "results.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    "options", [{}, {"latent_dims": (3,)}, {"architectures": ("mlp",), "seed": 5}, {"quick": True}]
)
def test_plan_has_every_experiment_with_its_seeds_and_shares_the_main_runs(options):
    settings = Settings(**options)
    config = settings.train_config(60_000)
    plan = planned_runs(settings, config)
    runs = {run for experiment in plan.values() for run in experiment}
    assert len({run.name for run in runs}) == len(runs)
    main_runs = [Run(name, dim, config) for name in settings.architectures for dim in settings.latent_dims]
    assert plan["main"] == main_runs
    assert set(main_runs) <= set(plan["networks"]) <= set(plan["sizes"])
    for name, experiment in plan.items():
        if name not in ("main", "budgets"):
            seeds = Counter((run.architecture, run.latent_dim, run.config.sigma) for run in experiment)
            assert set(seeds.values()) == {SEEDS}
            assert {run.config.seed for run in experiment} <= {settings.seed + index for index in range(SEEDS)}
            assert {run.config.epochs for run in experiment} <= {config.epochs}
    names = set(settings.architectures)
    assert {run.latent_dim for run in plan["sizes"]} == {
        *settings.latent_dims,
        *(() if settings.quick else LATENT_DIMS),
    }
    assert {run.architecture for run in plan["halves"]} == names | {f"{e}-{d}" for e in names for d in names - {e}}
    assert {run.config.sigma for run in plan["sigma"]} == {FIXED_SIGMA}
    budgets = [(run.architecture, run.config.epochs) for run in plan["budgets"]]
    assert len(set(budgets)) == len(budgets) == len(names) * (1 if settings.quick else len(BUDGETS))
    assert {replace(run.config, epochs=config.epochs) for run in plan["budgets"]} <= {config}


def test_variant_is_named_after_sigma_epochs_and_seed_and_the_plain_run_has_none():
    plain = TrainConfig(seed=7)
    assert variant(plain, plain) == ""
    assert variant(replace(plain, seed=9), plain) == "seed9"
    assert variant(replace(plain, sigma=1.0), plain) == "sigma1"
    assert variant(replace(plain, sigma=1.0, seed=8, epochs=2), plain) == "sigma1_epochs2_seed8"


def test_group_of_a_run_is_its_name_without_the_seed():
    config = TrainConfig(seed=12)
    assert describe(Run("mlp", 2, config, "sigma1_seed12"))["group"] == "mlp_z2_sigma1"
    assert describe(Run("conv-mlp", 16, config))["group"] == "conv-mlp_z16"


def test_network_is_described_by_its_parameters_and_multiply_adds():
    layers = train.new_model(Run("mlp", 2, train.TrainConfig())).modules()
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    described = describe_network("mlp", 2)
    assert described["parameters"] == sum(layer.weight.numel() + layer.bias.numel() for layer in linear)
    assert described["multiply_adds"] == described["linear_weights"] == sum(layer.weight.numel() for layer in linear)


# ---------------------------------------------------------------------------------------------------------- quality


def test_real_digits_are_rated_as_real_and_negatives_as_none(dataset):
    judge = SampleJudge(dataset)
    real = judge.rate(dataset.train_images[:1000])
    assert real.density == pytest.approx(1, abs=0.3)
    assert real.coverage > 0.85
    assert max(judge.rate(1 - dataset.train_images[:1000])) < 0.01  # black on white
    assert judge.rate(dataset.test_images[:1].expand(1000, -1, -1, -1)).coverage < 0.2  # one digit, repeated


# ------------------------------------------------------------------------------------------------------- collection


def test_collection_is_written_below_figures_evidence_alone(collection):
    figures = collection / "figures"
    written = {path.relative_to(figures).as_posix() for path in figures.rglob("*") if path.is_file()}
    assert written == {f"evidence/{name}" for name in (*DRAWN, "film.gif", "results.json", LOCK)}
    for name in DRAWN:
        assert np.asarray(Image.open(figures / "evidence" / name).convert("L")).std() > 5, f"{name} is blank"
    assert {path.stem for path in (collection / "checkpoints").glob("*.pt")} == RUNS


def test_collection_has_the_numbers_of_the_main_runs_and_of_every_seed_and_rule(results):
    assert list(results["runs"]) == ["mlp_z2"]
    assert results["runs"]["mlp_z2"]["stages"].keys() == {"begin", "middle", "end"}
    for gmm in results["gmm"].values():
        assert gmm["lower_bound"] < gmm["quadrature"] < gmm["upper_bound"]
    runs = results["evidence"]["runs"]
    assert sorted((run["seed"], str(run["sigma_rule"])) for run in runs) == [
        (seed, rule) for seed in range(SEEDS) for rule in (str(FIXED_SIGMA), "calibrated")
    ]
    for run in runs:
        assert (run["sigma"] == FIXED_SIGMA) == (run["sigma_rule"] == FIXED_SIGMA)
        assert run["elbo_with_fitted_sigma"] > run["elbo"] - 1
        assert 0.2 < run["code_knn_accuracy"] <= 1  # ten classes
    assert runs[0]["elbo"] == results["runs"]["mlp_z2"]["test"]["elbo"]  # one run, measured twice
    assert len({run["elbo"] for run in runs}) == len(runs)
    elsewhere = {name: runs["mlp_z2"]["elbo"] for name, runs in results["evidence"]["elsewhere"].items()}
    assert elsewhere["packaged"] == runs[0]["elbo"]  # the collection's own digits are those
    assert elsewhere["float32"] == pytest.approx(runs[0]["elbo"], abs=10)
    check = results["evidence"]["prior_check"]["2"]
    assert abs(check["held_out"]) < 0.1 + 4 * check["held_out_standard_error"]
    assert all(len(make(results).splitlines()) > 2 for make in evidence.pages.TABLES.values())


def test_resume_takes_over_every_run_and_measurement_and_fills_the_pages(collection, results, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise AssertionError("made anew")

    for module, name in ((train, "train"), (main, "show_stages"), (evidence.experiments, "measure")):
        monkeypatch.setattr(module, name, fail)
    (tmp_path / "README.md").write_text("ELBO **0.00<!-- runs.mlp_z2.test.elbo -->** nats", encoding="utf-8")
    (tmp_path / "REPORT.md").write_text("<!-- table: gap -->\nold\n<!-- end -->", encoding="utf-8")
    places = {"figures": str(collection / "figures"), "checkpoints": str(collection / "checkpoints")}
    small = {"quick": True, "epochs": 1, "architectures": ("mlp",), "latent_dims": (2,), "offline": True}
    settings = Settings(resume=True, data_root="nowhere", **small, **places)
    with coarsely_drawn():
        evidence.__main__.make_everything(settings, collection / "figures" / "evidence", pages=tmp_path)
    again = json.loads((collection / "figures" / "evidence" / "results.json").read_text(encoding="utf-8"))
    assert again == results  # the durations too
    (quoted,) = re.findall(r"\*\*(.+)<!--", (tmp_path / "README.md").read_text(encoding="utf-8"))
    assert float(quoted) == pytest.approx(results["runs"]["mlp_z2"]["test"]["elbo"], abs=0.005)
    assert evidence.pages.TABLES["gap"](results) in (tmp_path / "REPORT.md").read_text(encoding="utf-8")


def test_measurement_of_another_training_is_not_taken_over(collection, dataset):
    small = dataset.first(1000, 500)
    settings = Settings(checkpoints=str(collection / "checkpoints"), resume=True, device="cpu", epochs=1)
    path = Path(settings.checkpoints) / "mlp_z2.measured.json"
    kept = path.read_bytes()
    config = settings.train_config(1000)
    for other, expected in ((config, False), (replace(config, learning_rate=1.0), True)):
        found = evidence.experiments.remembered("measured", Run("mlp", 2, other), small, settings, lambda: {"new": 1})
        assert (found == {"new": 1}) == expected
    path.write_bytes(kept)


# ----------------------------------------------------------------------------------------------------- command line


def run(*arguments, encoding="utf-8"):
    """Run `python -m evidence` as a user does, from the project's folder: (exit status, standard output, error)."""
    command = [sys.executable, "-m", "evidence", *arguments]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding=encoding, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigma", "0.5"], ["sigma", "0.5"]),
        (["--epochs", "0"], ["epochs", "0", "at least 1"]),
        (["--figures", __file__], [__file__]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, words):
    status, out, err = run(*arguments)
    (line,) = err.splitlines()
    assert (status, out) == (2, "")
    assert line.startswith("python -m evidence: error: ")
    assert all(word in line for word in words)


@pytest.mark.parametrize("figures", ["figures", "tests/../figures"])
def test_trial_is_refused_among_the_projects_own_figures(figures, tmp_path, monkeypatch, capsys):
    assert evidence.__main__.PROJECT == ROOT
    monkeypatch.setattr(evidence.__main__, "PROJECT", tmp_path)  # nothing of the real one is put at risk
    monkeypatch.setattr(evidence.__main__, "make_everything", lambda *_, **__: None)
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        evidence.__main__.main(["--quick", "--figures", figures])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m evidence: error: figures: found '{figures}', ")
    assert not (tmp_path / "figures").exists()


def test_help_is_complete_on_a_terminal_of_any_encoding():
    status, out, _ = run("--help", encoding="ascii")
    assert status == 0
    for name in Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in out


def test_second_collection_is_refused_while_one_is_made(tmp_path, capsys):
    with writing_alone_in(tmp_path / "figures" / "evidence"), pytest.raises(SystemExit) as ended:
        collect(tmp_path)
    assert ended.value.code == 2
    assert f"{tmp_path / 'figures' / 'evidence'}: found another run writing to it" in capsys.readouterr().err


def test_interrupted_collection_says_how_to_go_on_and_keeps_what_it_made(tmp_path, capsys, monkeypatch):
    save = train.save_checkpoint

    def save_and_interrupt(*arguments, **options):
        save(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "save_checkpoint", save_and_interrupt)
    with pytest.raises(SystemExit) as ended:
        collect(tmp_path)
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m evidence: interrupted. ")
    assert [path.name for path in (tmp_path / "checkpoints").glob("[!.]*")] == ["mlp_z2.pt"]


def test_pages_are_filled_from_the_projects_own_figures_and_no_others(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(evidence.__main__, "PROJECT", tmp_path)
    monkeypatch.setattr(evidence.__main__, "make_everything", lambda *_, pages: calls.append(pages))
    for figures in (tmp_path / "figures", tmp_path / "below" / ".." / "figures", tmp_path / "other"):
        evidence.__main__.main(["--figures", str(figures), "--checkpoints", str(tmp_path / "checkpoints")])
    assert calls == [tmp_path, tmp_path, None]
