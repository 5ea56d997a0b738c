"""Trained weights on disk, and the command line that the figure scripts share."""

import argparse
import hashlib
import io
import time
from pathlib import Path

import torch
from tqdm import tqdm

import mnist
from drawing import run_title
from files import InputError, errors_in_one_line, say, whole_file
from train import STAGES, iterations_of, seeded, train
from VAE import VAE

CODE = [Path(__file__).with_name(name) for name in ("ELBO.py", "VAE.py", "train.py")]  # what weights follow from


def train_or_resume(path, architecture, latent_dim, dataset, config, device="cpu", resume=False, line=0):
    """Train a VAE and keep it at `path`, or take over what is there.

    Parameters
    ----------
    path : path-like
    architecture, latent_dim
        Of the `VAE`; its first weights are drawn with the seed of the config.
    dataset : mnist.Dataset
    config : TrainConfig
    device : torch.device or str
    resume : bool
        Take over a checkpoint that was made with the same code, settings, data, torch and device.
    line : int
        Line of the terminal, below the cursor, that shows the progress.

    Returns
    -------
    dict
        As `read_checkpoint` returns it, with "history" as of `train`, "train_seconds" (of the processor, which hardly
        depend on what else runs) and "made_from".
    """
    code_and_data = b"".join(file.read_bytes() for file in CODE) + dataset.train.pixels.numpy().tobytes()
    made_from = f"{architecture}, K = {latent_dim}, {config}, torch {torch.__version__}, {device}, code and data "
    made_from += hashlib.md5(code_and_data, usedforsecurity=False).hexdigest()
    if resume and Path(path).exists():
        checkpoint = read_checkpoint(path)
        if checkpoint.get("made_from") == made_from:
            return checkpoint

    model, stages = new_model(architecture, latent_dim, config.seed).to(device), {}
    total = iterations_of(len(dataset.train.labels), config)
    started = time.process_time()
    with tqdm(desc=Path(path).stem, total=total, position=line, ascii=True, disable=None) as bar:

        def on_stage(stage, iteration):
            stages[stage] = {name: value.cpu().clone() for name, value in model.state_dict().items()}

        def on_iteration(iteration, loss):
            bar.set_postfix_str(f"ELBO {-loss:.0f}", refresh=False)
            bar.update()

        history = train(model, dataset.train.images, config, on_stage, on_iteration)
    seconds = time.process_time() - started
    save_checkpoint(path, model, stages, history=history, train_seconds=seconds, made_from=made_from)
    return read_checkpoint(path)


def new_model(architecture, latent_dim, seed):
    """Return the untrained `VAE` whose first weights are drawn with that seed."""
    with seeded(seed):
        return VAE(latent_dim, architecture)


def save_checkpoint(path, model, stages, **more):
    """Write the weights of a model at each stage, {stage: state_dict}, and whatever else is to be kept with them."""
    buffer = io.BytesIO()  # torch.save to a file hides a full disk's OSError behind a RuntimeError
    shape = {"latent_dim": model.latent_dim, "architecture": model.architecture}
    torch.save({**shape, "stages": stages, **more}, buffer)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_checkpoint(path):
    """Return what `save_checkpoint` wrote to `path`, as a dict; `InputError` if that is not what the file holds."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # no code in the file is ever run
        model_at(checkpoint)
    except Exception as error:  # damaged files fail in more ways than pickle has classes for
        reason = getattr(error, "strerror", None) or "not a checkpoint made by main.py"
        raise InputError(f"{path}: {reason}") from error
    return checkpoint


def model_at(checkpoint, stage="end"):
    """Return the `VAE` of a checkpoint, on the CPU, as it was at a stage."""
    model = VAE(checkpoint["latent_dim"], checkpoint["architecture"])
    model.load_state_dict(checkpoint["stages"][stage])
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
