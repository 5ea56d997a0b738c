"""The evidence: its runs, its answers, its figures, and one small collection, made and taken over."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from sklearn.decomposition import PCA

import VAE
from evidence import __main__ as command
from evidence import latent_sizes, networks, training
from evidence.training import Run, over_seeds, permuted, remembered
from files import InputError
from mnist import Dataset
from train import TrainConfig

DIMS = (2, 16)
MAIN = {f"{network}_z{dim}" for network in ("conv", "mlp") for dim in DIMS}  # main.py's runs
PICTURES = {"latent_sizes", "digits_by_latent_size", "networks", "sigma", "interpolation", "traversal_from_digit"}


# ---- Runs


def test_run_has_the_name_and_the_settings_of_what_sets_it_apart_from_the_main_runs():
    runs = Run("conv", 16), Run("mlp", 16, 2, "permuted"), Run("mlp", 16, 0, "sigma0.5")
    assert [run.name for run in runs] == ["conv_z16", "mlp_z16_permuted_seed2", "mlp_z16_sigma0.5"]
    assert [run.config for run in runs] == [TrainConfig(), TrainConfig(seed=2), TrainConfig(sigma=0.5)]


def test_questions_have_every_kind_of_run_with_every_seed():
    more = {"conv_z16_permuted", "mlp_z16_permuted", "mlp_wide_z16"}, {"mlp_z16", "mlp_z16_sigma1", "mlp_z16_sigma0.5"}
    for question, groups in zip(command.QUESTIONS.values(), (MAIN, MAIN | more[0], more[1]), strict=True):
        names = [run.name for run in question.plan(["conv", "mlp"], DIMS, 2)]
        assert sorted(names) == sorted(groups | {f"{group}_seed1" for group in groups})


def test_permuted_images_hold_the_same_pixels_each_moved_to_one_place(dataset):
    moved, order = permuted(dataset), torch.randperm(784, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moved.train.pixels.flatten(1), dataset.train.pixels.flatten(1)[:, order])
    assert torch.equal(moved.test.pixels.flatten(1), dataset.test.pixels.flatten(1)[:, order])


def test_wide_network_comes_with_any_import_and_has_the_arithmetic_of_the_convolutional_one(monkeypatch):
    monkeypatch.delitem(VAE.ARCHITECTURES, "mlp_wide")
    for name in [name for name in sys.modules if name.startswith("evidence")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("evidence.judge")  # as a worker process does
    counts = {name: networks.size_of(VAE.VAE(16, name))["multiply_adds"] for name in ("conv", "mlp", "mlp_wide")}
    assert counts["mlp_wide"] == pytest.approx(counts["conv"], rel=0.005)
    layers = VAE.VAE(16, "mlp").modules()
    assert counts["mlp"] == sum(layer.weight.numel() for layer in layers if isinstance(layer, torch.nn.Linear))


def test_measurement_is_taken_over_only_if_it_was_made_from_the_same_by_the_same_code(tmp_path, monkeypatch):
    code, path = tmp_path / "code.py", tmp_path / "kept.json"
    monkeypatch.setattr(training, "MEASURING", [code])
    cases = [("old", "a", True, 1), ("old", "a", True, 1), ("old", "a", False, 3), ("old", "b", True, 4)]
    for number, (text, made_from, resume, expected) in enumerate([*cases, ("new", "b", True, 5)], start=1):
        code.write_text(text)
        assert remembered(path, made_from, resume, lambda number=number: number) == expected


# ---- Answers and figures


@pytest.fixture
def runs(monkeypatch):
    """Runs of three networks with three seeds; "conv" leads by 10 K nats with every seed, and "third" by 5."""
    monkeypatch.setitem(VAE.ARCHITECTURES, "third", VAE.ARCHITECTURES["mlp"])
    rng, runs = np.random.default_rng(0), []
    for run in networks.plan(["conv", "mlp", "third"], DIMS, 3):
        lead = {"conv": 10 * run.latent_dim, "third": 5}.get(run.architecture, 0)
        numbers = {f"{source}_{key}": rng.random() for source in latent_sizes.SOURCES for key in latent_sizes.MEASURES}
        numbers |= {"elbo": run.seed**2 + lead, "dimensions_in_use": run.latent_dim, "kl_per_dimension": [1.0]}
        runs.append({"name": run.name, **run._asdict(), "sigma_rule": "calibrated", **numbers})
    return runs


def test_lead_has_the_standard_error_of_the_difference_of_runs_with_one_seed(runs):
    groups = networks.answer(runs, None)["groups"]
    assert groups["conv_z2"]["elbo"] == pytest.approx({"mean": 20 + 5 / 3, "standard_error": (13 / 9) ** 0.5})
    assert groups["conv_z16"]["lead"] == {"mean": 160, "standard_error": 0}
    assert groups["third_z16_permuted"]["lead"] == {"mean": 5, "standard_error": 0}
    assert {"seed", "name", "kl_per_dimension"}.isdisjoint(groups["conv_z2"])


def test_principal_components_have_the_error_of_their_reconstructions(runs, dataset):
    error = latent_sizes.answer(runs, dataset)["pca_mse"]["2"]
    train, test = (part.images.flatten(1).numpy() for part in (dataset.train, dataset.test))
    pca = PCA(2, svd_solver="full").fit(train)
    assert error == pytest.approx(np.square(test - pca.inverse_transform(pca.transform(test))).mean(), rel=1e-3)


def test_figures_show_every_network_at_its_means_in_legible_letters(runs, drawn, tmp_path):
    answer = networks.answer(runs, None)
    networks.draw({"networks": answer}, None, None, tmp_path)
    plain = over_seeds([run for run in runs if not run["variant"] and run["architecture"] != networks.WIDE])
    latent_sizes.plot_numbers(plain.values(), {"recognised": 0.9, "frechet_distance": 1.0}, tmp_path / "sizes.png")
    (leads, elbos), (elbo, _, recognised, _) = (figure.axes for figure in drawn)
    for axes, key in ((leads, "lead"), (elbo, "elbo")):
        for network in ("conv", "mlp", "third"):
            means = [answer["groups"][f"{network}_z{dim}"][key]["mean"] for dim in DIMS]
            assert any(np.array_equal(line.get_ydata(), means) for line in axes.lines)
    assert (len(elbos.containers), len(recognised.containers)) == (7, 6)
    for figure in drawn:
        assert figure.get_figwidth() <= 9
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 10


# ---- The whole command


@pytest.fixture(scope="module")
def collection(dataset, tmp_path_factory):
    """The options of a small collection, made from few digits that pass for MNIST."""
    folder = tmp_path_factory.mktemp("collection")
    few = Dataset("MNIST", "disk", dataset.train.choose(60), dataset.test.choose(100))
    data = {"name": "MNIST", "train_count": 60_000, "test_count": 10_000}
    main_results = {"dataset": data, "config": asdict(TrainConfig()), "runs": {name: {} for name in MAIN}}
    (folder / "results.json").write_text(json.dumps(main_results))
    options = f"--figures {folder}/evidence --checkpoints {folder}/kept --seeds 1 --latent-dims 16 2".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.mnist, "load", lambda root: few)
        patch.setattr(Dataset, "note", "")
        patch.setattr(joblib, "cpu_count", lambda **_: 1)
        patch.setitem(VAE.ARCHITECTURES, "mlp_wide", VAE.ARCHITECTURES["mlp"])  # quicker
        for module in (command.film, command.plane):  # which have tests of their own
            patch.setattr(module, "make", lambda *_: None)
        command.main(command.parse_arguments(options))
        yield options


def test_collection_has_every_figure_and_the_answers_to_every_question(collection):
    pictures = {path.stem: np.asarray(Image.open(path).convert("L")) for path in Path(collection[1]).glob("*.png")}
    assert pictures.keys() == PICTURES
    assert all(picture.std() > 5 for picture in pictures.values())
    results = json.loads((Path(collection[1]) / "results.json").read_text())
    runs = {run["name"]: run for run in results["runs"]}
    assert len(runs) == len(results["runs"]) == 9
    for question in command.QUESTIONS:
        for name, group in results[question]["groups"].items():
            assert group["elbo"] == {"mean": runs[name]["elbo"], "standard_error": None}
    for run in runs.values():
        calibrated = "sigma" not in run["variant"]
        assert run["sigma_rule"] == ("calibrated" if calibrated else run["sigma"])
        assert (run["elbo_with_fitted_sigma"] > run["elbo"] + 100) == (not calibrated)
        assert ("prior_recognised" in run) == (run["variant"] != "permuted")
    assert results["latent_sizes"]["pca_knn_accuracy"].keys() == {"2", "16"}


def test_resume_takes_over_all_trainings_and_measurements(collection, monkeypatch):
    path = Path(collection[1]) / "results.json"
    before = path.read_text()
    monkeypatch.setattr("checkpoints.train", None)  # a call fails
    monkeypatch.setattr(training, "measure", pytest.fail)
    command.main(command.parse_arguments([*collection, "--resume"]))
    assert path.read_text() == before


@pytest.mark.parametrize("case", ["no results", "other settings", "other data", "fewer runs", "packaged digits"])
def test_what_is_impossible_is_refused_before_the_training(case, collection, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "measure_all", pytest.fail)
    results = json.loads(Path(collection[1]).with_name("results.json").read_text())
    if case == "packaged digits":
        monkeypatch.setattr(Dataset, "note", "MNIST subset")
    results["config"]["epochs"] += case == "other settings"
    results["dataset"]["test_count"] += case == "other data"
    results["runs"].pop("mlp_z16" if case == "fewer runs" else None, None)
    if case != "no results":
        (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"MNIST|run main\.py"):
        command.main(command.parse_arguments(["--figures", str(tmp_path / "evidence")]))


def test_latent_sizes_that_figures_need_are_asked_for(capsys):
    with pytest.raises(SystemExit):
        command.parse_arguments(["--latent-dims", "2", "8"])
    assert "lacks [16]" in capsys.readouterr().err
