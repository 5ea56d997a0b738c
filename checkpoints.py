"""Trained weights on disk, and the command line that the figure scripts share."""

import argparse
import io
import time
from pathlib import Path

import joblib
import torch
from tqdm import tqdm

import mnist
from drawing import run_title
from files import InputError, errors_in_one_line, say, whole_file
from train import STAGES, iterations_of, seeded, train
from VAE import VAE

CODE = [Path(__file__).with_name(f"{name}.py") for name in ("ELBO", "VAE", "train", "mnist", "checkpoints")]


def train_or_resume(path, architecture, latent_dim, dataset, config, device="cpu", resume=False, line=0):
    """Train a VAE and keep it at `path`, or load it if it is there already.

    Parameters
    ----------
    path : path-like
    architecture, latent_dim
        Of the `VAE`; its first weights are drawn with the seed of the config.
    dataset : mnist.Dataset
    config : TrainConfig
    device : torch.device or str
    resume : bool
        Load a checkpoint that was made with the same code (the files in `CODE`), settings, data, torch and device.
    line : int
        Row of the progress bar, counted downwards from the cursor.

    Returns
    -------
    dict
        The checkpoint: "architecture", "latent_dim", "stages" {stage: state_dict}, "history" from `train`,
        "train_seconds" (of the processor, so other programs hardly change them) and "made_from".
    """
    code_and_data = joblib.hash([*(file.read_bytes() for file in CODE), dataset.train.pixels.numpy()])
    made_from = f"{architecture}, K = {latent_dim}, {config}, torch {torch.__version__}, {device}, {code_and_data}"
    if resume and Path(path).exists():
        checkpoint = read_checkpoint(path)
        if checkpoint["made_from"] == made_from:
            return checkpoint

    model, stages = new_model(architecture, latent_dim, config.seed).to(device), {}

    def on_stage(stage, _):
        stages[stage] = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    def on_iteration(_, loss):
        bar.set_postfix_str(f"ELBO {-loss:.0f}", refresh=False)
        bar.update()

    total, started = iterations_of(len(dataset.train.labels), config), time.process_time()
    with tqdm(desc=Path(path).stem, total=total, position=line, ascii=True, disable=None) as bar:
        history = train(model, dataset.train.images, config, on_stage, on_iteration)
    checkpoint = {"architecture": architecture, "latent_dim": latent_dim, "stages": stages, "history": history}
    checkpoint |= {"train_seconds": time.process_time() - started, "made_from": made_from}
    torch.save(checkpoint, buffer := io.BytesIO())  # to a file it would hide a full disk's OSError
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return checkpoint


def new_model(architecture, latent_dim, seed):
    """Return the untrained `VAE` whose first weights are drawn with that seed."""
    with seeded(seed):
        return VAE(latent_dim, architecture)


def read_checkpoint(path):
    """Read a checkpoint; a missing or damaged file is an `InputError`."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # no code in the file is ever run
        if "made_from" not in checkpoint:
            raise KeyError("made_from")
    except Exception as error:  # a damaged file can raise almost any exception
        reason = getattr(error, "strerror", None) or "not a checkpoint made by main.py"
        raise InputError(f"{path}: {reason}") from error
    return checkpoint


def model_at(checkpoint, stage="end"):
    """Return the `VAE` of a checkpoint, on the CPU, as it was at a stage; `InputError` if its code was another."""
    try:
        model = VAE(checkpoint["latent_dim"], checkpoint["architecture"])
        model.load_state_dict(checkpoint["stages"][stage])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError("the weights do not fit the VAE of this version: train again") from error
    return model.eval()


def run_figure_script(description, plot):
    """Run `python SCRIPT CHECKPOINT --output FILE`, which calls plot(model, dataset, path, title)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", help="weights trained by main.py, such as checkpoints/conv_z16.pt")
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument("--stage", default="end", choices=STAGES, help="stage of the training")
    parser.add_argument("--dataset", default="MNIST", choices=mnist.NAMES, help="data set of the test images")
    parser.add_argument("--data-root", default="data", help="folder that holds the data set")
    args = parser.parse_args()
    with errors_in_one_line():
        checkpoint = read_checkpoint(args.checkpoint)
        dataset = mnist.load(args.data_root, offline=True, name=args.dataset)
        say(dataset.describe())
        title = run_title(checkpoint["architecture"], checkpoint["latent_dim"], STAGES[args.stage], dataset.note)
        plot(model_at(checkpoint, args.stage), dataset, args.output, title)
