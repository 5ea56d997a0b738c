"""Weights on disk: kept bit by bit, taken over where a training would make the same, refused where they are damaged."""

import io
import pickle
import runpy
import shutil
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make
from PIL import Image
from test_mnist import write_set

import checkpoints
import mnist
from checkpoints import model_at, read_checkpoint, run_figure_script, train_or_resume
from files import InputError
from train import STAGES, TrainConfig, train

CONFIG = TrainConfig(epochs=2, batch_size=16, seed=5)


@pytest.fixture(scope="module")
def few(dataset):
    """Forty digits to train on and twenty to test on."""
    return mnist.Dataset("MNIST", "disk", dataset.train.choose(40), dataset.test.choose(20))


@pytest.fixture(scope="module")
def path(few, tmp_path_factory):
    """A checkpoint of a short training, in a new folder."""
    path = tmp_path_factory.mktemp("runs") / "new" / "mlp_z2.pt"
    train_or_resume(path, "mlp", 2, few, CONFIG)
    return path


def assert_same_weights(model, weights):
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


def test_checkpoint_holds_the_training_of_its_seed_bit_by_bit(path, few):
    model, weights, checkpoint = make(seed=5), {}, read_checkpoint(path)
    history = train(model, few.train.images, CONFIG, lambda stage, _: weights.update({stage: deepcopy(model)}))
    assert checkpoint["history"] == history
    assert checkpoint["train_seconds"] > 0
    assert checkpoint["stages"].keys() == STAGES.keys()
    for stage in STAGES:
        assert_same_weights(model_at(checkpoint, stage), weights[stage].state_dict())


def test_training_is_taken_over_only_with_the_same_code_settings_and_data(few, tmp_path, monkeypatch):
    settings = {"latent_dim": 2, "dataset": few, "config": CONFIG}

    def made_at(resume=True):
        train_or_resume(tmp_path / "a.pt", "mlp", **settings, resume=resume)
        return (tmp_path / "a.pt").stat().st_mtime_ns

    code = [Path(shutil.copy(file, tmp_path)) for file in checkpoints.CODE]
    monkeypatch.setattr(checkpoints, "CODE", code)
    assert {file.stem for file in code} == {"ELBO", "VAE", "train", "mnist", "checkpoints"}
    times = [made_at(), made_at(resume=False)]
    for change in ({"latent_dim": 1}, {"dataset": few._replace(train=few.test)}, {"config": replace(CONFIG, seed=1)}):
        settings |= change
        times.append(made_at())
    for file in code:
        file.write_text("edited")
        times.append(made_at())
    monkeypatch.setattr(torch, "__version__", "another")
    times.append(made_at())
    assert len(set(times)) == len(times)
    assert made_at() == times[-1]


class Intruder:
    """An object whose unpickling makes a folder."""

    def __reduce__(self):
        return Path.mkdir, (Path("trace"),)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"made_from": Intruder()}, "a.pt")
    with pytest.raises(InputError, match=r"^a\.pt: not a checkpoint") as raised:
        read_checkpoint("a.pt")
    assert isinstance(raised.value.__cause__, pickle.UnpicklingError)  # nothing else has kept the code from running
    assert not Path("trace").exists()
    torch.load("a.pt", weights_only=False)
    assert Path("trace").exists()


torch.save(make().state_dict(), whole := io.BytesIO())
UNUSABLE = {
    "text": b"These are not weights.\n",
    "cut": whole.getvalue()[:-9],
    "bare pickle": pickle.dumps({"architecture": "mlp"}, protocol=2),
    "weights alone": whole.getvalue(),
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
def test_file_that_is_no_checkpoint_is_named_in_one_line_and_stays(tmp_path, few, content):
    file = tmp_path / "a.pt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"\A{file}: not a checkpoint made by main\.py\Z"):
        train_or_resume(file, "mlp", 2, few, CONFIG, resume=True)
    assert file.read_bytes() == content


def test_weights_of_another_version_are_refused_where_they_are_used_and_trained_anew_with_resume(few, path, tmp_path):
    file, checkpoint = tmp_path / "a.pt", read_checkpoint(path)
    torch.save(checkpoint | {"stages": {"end": make(3).state_dict()}, "made_from": "another version"}, file)
    with pytest.raises(InputError, match=r"\Athe weights do not fit"):
        model_at(read_checkpoint(file))
    assert train_or_resume(file, "mlp", 2, few, CONFIG, resume=True)["history"] == checkpoint["history"]


@pytest.mark.parametrize("script", ["latent_traversal.py", "sample_from_prior.py", "tsne.py"])
def test_figure_script_draws_a_checkpoint_and_says_on_which_data(script, path, few, tmp_path, monkeypatch, capsys):
    write_set(tmp_path, few.train, few.test)
    arguments = [script, str(path), "--output", str(tmp_path / "new" / "a.png"), "--data-root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(Path(checkpoints.__file__).with_name(script)), run_name="__main__")
    assert capsys.readouterr().out == f"{few.describe()}\n"
    Image.open(tmp_path / "new" / "a.png", formats=["PNG"]).verify()


@pytest.mark.parametrize("stage", STAGES)
def test_figure_script_shows_the_stage_and_says_so(stage, path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "argv", ["figure.py", str(path), "--output", "a.png", "--stage", stage])
    run_figure_script("A figure.", lambda *arguments: shown.extend(arguments))
    model, _, output, title = shown
    assert_same_weights(model, read_checkpoint(path)["stages"][stage])
    assert title == f"fully connected, K = 2, {STAGES[stage]} of training\nMNIST subset, 5,000 images"
    assert output == "a.png"


def test_figure_script_without_a_checkpoint_ends_with_status_2_and_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["figure.py", "missing.pt", "--output", "a.png"])
    with pytest.raises(SystemExit, match="2"):
        run_figure_script("A figure.", None)
    assert capsys.readouterr() == ("", "figure.py: error: missing.pt: No such file or directory\n")
