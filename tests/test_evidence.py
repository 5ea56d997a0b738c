"""The evidence: its plan, its measure of samples, and one small collection, made, taken over and interrupted."""

import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coarsely_drawn
from PIL import Image

import config
import gmm_entropy
import main
import runs
from config import Scale, Settings, TrainConfig, parse_settings
from evidence import __main__ as command
from evidence import experiments, figures, film, pages, quality
from evidence.experiments import (
    BUDGETS,
    FIXED_SIGMAS,
    LATENT_DIMS,
    SEEDS,
    permuted,
    planned_elsewhere,
    planned_runs,
    spread,
)
from files import LOCK, InputError, read_json, writing_alone_in
from runs import Run
from train import count_iterations

ROOT = Path(__file__).parent.parent
SMALL = ("--quick", "--offline", "--epochs=1", "--architectures=mlp", "--latent-dims=2", "--data-root=nowhere")
FEW = Scale(1000, 200, 1, 0, 50, 10, 10)  # instead of `config.QUICK`
DRAWN = ("aggregate_posterior", "digits_by_latent_size", "elbo_time", "interpolation")
DRAWN += ("kl_spectrum", "latent_sizes", "networks", "sigma", "bound_gap", "outliers", "rate_distortion")
DRAWN += ("samples_as_digits", "samples_near", "traversal_from_digit")
ELSEWHERE = ("plain", "permuted", "images500")
MEASURED = {f"mlp_z2{sigma}{seed}" for sigma in ("", "_sigma1") for seed in ("", "_seed1", "_seed2")}


@pytest.fixture(scope="module", autouse=True)
def little_work():
    """Few digits, large pixels, and no Problem 1: the evidence measures nothing of it."""
    with coarsely_drawn(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "QUICK", FEW)
        patch.setattr(quality, "EPOCHS", 1)
        patch.setattr(experiments, "SHARES", (0.5,))
        patch.setattr(gmm_entropy, "solve_problem_1", lambda seed: {"seed": seed})
        yield


def small(folder, *more):
    """The command line of the smallest collection that has every part."""
    return [*SMALL, "--figures", str(folder / "figures"), "--checkpoints", str(folder / "checkpoints"), *more]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    command.main(small(folder))
    return folder


@pytest.fixture(scope="module")
def results(collection):
    return read_json(collection / "figures" / "evidence" / "results.json")


# ------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    "options", [{}, {"latent_dims": (3,)}, {"architectures": ("mlp",), "seed": 5}, {"quick": True}]
)
def test_plan_has_every_experiment_with_its_seeds_and_shares_the_main_runs(options):
    settings = Settings(**options)
    config, names = settings.train_config(60_000), {*settings.architectures}
    plan = planned_runs(settings, config)
    runs = {run for experiment in plan.values() for run in experiment}
    assert len({run.name for run in runs}) == len(runs)
    assert plan["main"] == [Run(name, dim, config) for name in settings.architectures for dim in settings.latent_dims]
    assert {*plan["main"]} <= {*plan["networks"]} <= {*plan["sizes"]}
    for experiment in ("networks", "halves", "sigma", "sizes"):
        assert {*Counter(run.group for run in plan[experiment]).values()} == {SEEDS}
        assert {run.config.seed - settings.seed for run in plan[experiment]} == {*range(SEEDS)}
        sigmas = (FIXED_SIGMAS[-1:] if settings.quick else FIXED_SIGMAS) if experiment == "sigma" else [None]
        configs = {replace(run.config, seed=config.seed) for run in plan[experiment]}
        assert configs == {replace(config, sigma=sigma) for sigma in sigmas}
    sizes = {*settings.latent_dims, *(() if settings.quick else LATENT_DIMS)}
    assert {(run.architecture, run.latent_dim) for run in plan["sizes"]} == {(n, dim) for n in names for dim in sizes}
    assert {run.architecture for run in plan["halves"]} == names | {f"{e}-{d}" for e in names for d in names - {e}}
    budgets = [(run.architecture, run.config) for run in plan["budgets"]]
    epochs = [config.epochs] if settings.quick else BUDGETS
    assert Counter(budgets) == Counter((n, replace(config, epochs=count)) for n in names for count in epochs)


def test_trainings_elsewhere_are_equally_long_and_know_nothing_of_neighbours(dataset):
    settings = Settings(architectures=("mlp",), latent_dims=(2,), epochs=30)
    config = settings.train_config(len(dataset.train_labels))
    planned = planned_elsewhere(planned_runs(settings, config), dataset, settings)
    (float32, _), (packaged, _), *others = planned
    assert (float32.config, packaged.config) == (replace(config, float32=True), config)
    assert len(others) == 3 * SEEDS
    half = count_iterations(len(dataset.train_labels), config) / 2
    for run, data in others:
        assert run.config.plain_epochs == run.config.epochs
        assert count_iterations(len(data.train_labels), run.config) == pytest.approx(half, rel=0.05)
    assert {len(data.train_labels) for _, data in others} == {2000, 4000}


def test_permuted_images_hold_the_same_pixels_each_moved_to_one_place(dataset):
    few = spread(dataset, 50)
    moved = permuted(few)
    assert torch.equal(few.train_pixels, dataset.train_pixels[:: len(dataset.train_pixels) // 50])
    assert moved.fingerprint != few.fingerprint != dataset.fingerprint
    columns = [part.flatten(1).T.tolist() for part in (few.test_pixels, moved.test_pixels)]
    assert columns[0] != columns[1]
    assert sorted(columns[0]) == sorted(columns[1])
    assert torch.equal(moved.train_pixels.flatten(1).sum(1), few.train_pixels.flatten(1).sum(1))


def test_network_is_described_by_its_parameters_and_multiply_adds():
    layers = runs.new_model(Run("mlp", 2, TrainConfig())).modules()
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    described = experiments.describe_network("mlp", 2)
    assert described["parameters"] == sum(layer.weight.numel() + layer.bias.numel() for layer in linear)
    assert described["multiply_adds"] == described["linear_weights"] == sum(layer.weight.numel() for layer in linear)


# ------------------------------------------------------------------------------------------------------- collection


def test_collection_is_written_below_figures_evidence_alone(collection):
    written = {path.relative_to(collection).as_posix() for path in (collection / "figures").rglob("*.*")}
    pictures = {f"{name}.png" for name in DRAWN} | {"film.gif"}
    assert written == {f"figures/evidence/{name}" for name in pictures | {"plane.html", "results.json", LOCK}}
    for name in pictures:
        with Image.open(collection / "figures" / "evidence" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, f"{name} is blank"
    made = {path.stem for path in (collection / "checkpoints").glob("*.pt")}
    seeds = [f"mlp_z2_{data}{seed}" for data in ELSEWHERE for seed in ("", "_seed1", "_seed2")]
    assert made == MEASURED | {"mlp_z2_float32", "mlp_z2_packaged", *seeds}


def test_collection_has_the_numbers_of_the_main_runs_and_of_every_seed_and_rule(results):
    (main_run,), runs = results["runs"].values(), results["evidence"]["runs"]
    assert results["gmm"] == {"seed": 0}
    assert {run["name"] for run in runs} == MEASURED
    for run in runs:
        assert (run["sigma"] == 1) == (run["sigma_rule"] == 1) == ("sigma1" in run["name"])
        assert run["elbo_with_fitted_sigma"] > run["elbo"] - 1
        assert 0.2 < run["code_knn_accuracy"] <= 1  # ten classes
        assert len(run["recognised_by_density"]) == 4
    assert runs[0]["elbo"] == main_run["test"]["elbo"]  # one run, measured twice
    assert len({run["elbo"] for run in runs}) == len(runs)
    elsewhere = {trained["name"]: trained["elbo"] for trained in results["evidence"]["elsewhere"]}
    assert elsewhere["mlp_z2_packaged"] == runs[0]["elbo"]  # the collection's own digits are those
    assert elsewhere["mlp_z2_float32"] == pytest.approx(runs[0]["elbo"], abs=10)
    assert (elsewhere["mlp_z2_float32"] != runs[0]["elbo"]) == results["environment"]["bfloat16"]
    check = results["evidence"]["checks"]["mlp_z2"]
    assert check["test_codes"] == pytest.approx(check["known"], abs=0.5)
    assert {*results["evidence"]["images_per_second"]} == {"conv", "mlp", "conv in float32", "mlp in float32"}


def test_resume_takes_over_what_was_made_and_writes_numbers_before_figures(collection, results, monkeypatch, tmp_path):
    def draw_after_the_numbers(*arguments):
        assert read_json(folder / "results.json") == results  # the durations too
        draw_figures(*arguments)

    folder, draw_figures, filled = collection / "figures" / "evidence", figures.draw_figures, []
    for module, name in ((runs, "train"), (film, "train"), (main, "measure_stages"), (experiments, "measure_bounds")):
        monkeypatch.setattr(module, name, None)  # a call would fail
    monkeypatch.setattr(figures, "draw_figures", draw_after_the_numbers)
    monkeypatch.setattr(pages, "write_pages", lambda *arguments: filled.append(arguments))
    pictures = {path: path.read_bytes() for path in folder.glob("*.[pg]*")}
    (folder / "results.json").unlink()
    command.make_everything(parse_settings(small(collection, "--resume")), folder, pages=tmp_path)
    assert pictures == {path: path.read_bytes() for path in pictures}
    assert [(where, numbers["evidence"]) for where, numbers in filled] == [(tmp_path, results["evidence"])]


def test_measurement_is_taken_over_from_the_same_training_alone(tmp_path, dataset):
    def remembered(learning_rate, resume, measured):
        run = Run("mlp", 2, TrainConfig(learning_rate=learning_rate))
        settings = Settings(checkpoints=str(tmp_path), resume=resume, device="cpu")
        return experiments.remembered("measured", run, dataset, settings, lambda: {"number": measured})["number"]

    cases = [(0.1, True, 1, 1), (0.1, True, 2, 1), (0.2, True, 3, 3), (0.2, False, 4, 4), (0.2, True, 5, 4)]
    for learning_rate, resume, measured, expected in cases:
        assert remembered(learning_rate, resume, measured) == expected
    (tmp_path / "mlp_z2.measured.json").write_text("[]")
    with pytest.raises(InputError, match="measured"):
        remembered(0.2, True, 6)


# ----------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigma", "0.5"], "sigma: found 0.5, "),
        (["--epochs", "0"], "epochs: found 0, "),
        (["--figures", __file__], __file__),
        (["--figures", "busy"], "busy/evidence: found another run writing to it"),
        (["--quick"], "figures: found 'figures', "),
        (["--latent-dims", "2", "--figures", "busy/../figures"], "figures: found 'busy/../figures', "),
        (["--seed", str(2**31)], f"seed: found {2**31}, expected at most {2**31 - 2}, "),
        (["--data-root", "foreign", "--dataset-name", "letters"], "letters: found ["),
    ],
)
def test_what_cannot_be_used_is_refused_before_training(arguments, words, foreign_data, tmp_path, monkeypatch, capsys):
    assert command.PROJECT == ROOT
    monkeypatch.setattr(command, "PROJECT", tmp_path)  # nothing of the real one is put at risk
    monkeypatch.chdir(tmp_path)
    Path("foreign").symlink_to(foreign_data)
    with writing_alone_in("busy/evidence"), pytest.raises(SystemExit) as ended:
        command.main([*arguments, "--offline"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"python -m evidence: error: {words}")
    assert not [*tmp_path.rglob("*.pt")]


def test_interrupted_collection_says_how_to_go_on_and_keeps_what_it_made(tmp_path, capsys, monkeypatch):
    save = runs.save_checkpoint

    def save_and_interrupt(*arguments, **options):
        save(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(runs, "save_checkpoint", save_and_interrupt)
    with pytest.raises(SystemExit) as ended:
        command.main(small(tmp_path))
    assert ended.value.code == 130
    bars, last = capsys.readouterr().err.rsplit("\n", 2)[:2]
    assert last.startswith("python -m evidence: interrupted. ")
    assert "\n\rmlp_z2:" in bars  # the run's bar is on the line below that of all runs
    assert [path.name for path in (tmp_path / "checkpoints").glob("[!.]*")] == ["mlp_z2.pt"]


def test_pages_are_filled_from_the_projects_own_figures_and_no_others(tmp_path, monkeypatch):
    filled = []
    monkeypatch.setattr(command, "PROJECT", tmp_path)
    monkeypatch.setattr(command, "make_everything", lambda *_, pages: filled.append(pages))
    monkeypatch.chdir(tmp_path)
    for folder in ("figures", "below/../figures", "other"):
        command.main(["--figures", folder])
    assert filled == [tmp_path, tmp_path, None]
