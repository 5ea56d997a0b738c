"""Run everything the assignment asks for: `python main.py`.

Problem 1 comes first. Then, for each network and latent size, a VAE is trained; at the beginning, the middle and the
end of its training it is measured and drawn in four ways. Finally it writes the joint learning curve, the
numbers (results.json) and the gallery (README.md).
"""

import argparse
import os
import signal
import threading
import time
from itertools import product
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # a notebook sets one that may not be installed here

import joblib
import torch
from tqdm import tqdm

import mnist
import report
import train
from checkpoints import model_at, new_model, train_or_resume
from drawing import run_title
from files import errors_in_one_line, say
from gmm_entropy import run_problem_1
from latent_traversal import plot_latent_traversal
from sample_from_prior import plot_prior_samples
from tsne import TSNE_IMAGES, knn_accuracy, plot_tsne
from VAE import ARCHITECTURES

SMALL_SET = 20_000  # a VAE overfits fewer training images: they are augmented, and trained on for longer
IMPORTANCE_IMAGES = 500  # test images of the importance-weighted bound


def parse_arguments(arguments=None):
    """Parse a command line, by default that of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--dataset", default="MNIST", choices=mnist.NAMES, help="data set of Problem 2")
    option("--data-root", default="data", type=Path, help="folder of the data set, downloaded if there is none")
    option("--figures", default="figures", type=Path, help="folder for the figures, results.json and README.md")
    option("--checkpoints", default="checkpoints", type=Path, help="folder for trained weights")
    option("--epochs", type=number(int, 1), help=f"passes over images; None: 10, 60 below {SMALL_SET}, 5 if --quick")
    option("--batch-size", default=train.TrainConfig.batch_size, type=number(int, 1), help="images per step")
    option("--learning-rate", default=train.TrainConfig.learning_rate, type=number(float, 1e-9), help="its peak")
    option("--latent-dims", default=[2, 16], type=number(int, 1), nargs="+", help="numbers of latent dimensions")
    option("--architectures", default=["conv", "mlp"], choices=ARCHITECTURES, nargs="+", help="networks")
    option("--seed", default=0, type=number(int, 0, 2**32 - 1), help="of samples, first weights, batches and maps")
    option("--device", default="auto", type=device, help="cpu, cuda, mps, ...; auto: an accelerator if there is one")
    option("--offline", action="store_true", help="do not download anything")
    option("--quick", action="store_true", help="a trial of everything on 1,000 images, in about a minute")
    option("--resume", action="store_true", help="skip trainings finished before with the same code, settings, data")
    return parser.parse_args(arguments)


def number(kind, least, most=float("inf")):
    """Return a function that reads a number of that kind, from `least` to `most`, for argparse."""

    def number(text):
        if not least <= kind(text) <= most:  # so that NaN is refused
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return kind(text)

    return number


def device(text):
    """Return the torch device of that name, for argparse."""
    if text == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.zeros(1, device=text).item()  # which "meta" refuses
        return torch.device(text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not available here") from error


def main(args):
    """Do the work in the order of the assignment."""
    report.check_folder(args.figures)
    dataset = mnist.load(args.data_root, args.offline, args.dataset)
    if args.quick:
        dataset = dataset._replace(train=dataset.train.choose(1000), test=dataset.test.choose(200))
    say(dataset.describe())
    small = len(dataset.train.labels) < SMALL_SET
    epochs = args.epochs or (5 if args.quick else 60 if small else 10)
    config = train.TrainConfig(epochs, args.batch_size, args.learning_rate, augment=small, seed=args.seed)

    say("Problem 1: the entropy of a Gaussian mixture")
    gmm = run_problem_1(args.figures, args.seed, 20_000 if args.quick else 1_000_000)

    say("Problem 2: variational autoencoders")
    names = list(dict.fromkeys(product(args.architectures, args.latent_dims)))
    side_by_side = processes(len(names) if args.device.type == "cpu" else 1)
    calls = (joblib.delayed(make_run)(*name, dataset, config, args, line) for line, name in enumerate(names))
    runs, histories = {}, {}
    for (architecture, latent_dim), (run, history) in zip(names, side_by_side(calls), strict=True):
        title = run_title(architecture, latent_dim)
        runs[f"{architecture}_z{latent_dim}"], histories[title] = run, history
        say(f"{title}: test ELBO {run['test']['elbo']:.1f} nats, {run['train_seconds']:.0f} CPU seconds of training")
    train.plot_elbo_curves(histories, args.figures / "ELBO_Curve.png", dataset.note)

    digits = dataset.test.choose(TSNE_IMAGES)
    controls = {"mean_image_elbo": train.mean_image_elbo(dataset.train.images, dataset.test.images)}
    controls["pixels_knn_accuracy"] = knn_accuracy(digits.images.flatten(1), digits.labels)
    results = report.settings(args, dataset, config) | {"gmm": gmm, "controls": controls, "runs": runs}
    report.write(results, args.figures)


def make_run(architecture, latent_dim, dataset, config, args, line):
    """Train or load a VAE, measure and draw it at three stages, and return its results and its history."""
    torch.set_num_threads(1)  # where the processors are busy, two threads are several times slower than one
    path = args.checkpoints / f"{architecture}_z{latent_dim}.pt"
    checkpoint = train_or_resume(path, architecture, latent_dim, dataset, config, args.device, args.resume, line)
    history, digits = checkpoint["history"], dataset.test.choose(TSNE_IMAGES)

    stages, test_elbo = {}, {}
    for stage, iteration in history["stages"].items():
        model = model_at(checkpoint, stage).to(args.device)
        test = train.evaluate(model, dataset.test.images, IMPORTANCE_IMAGES if stage == "end" else 0)
        test_elbo[iteration] = test["elbo"]
        folder = args.figures / path.stem / stage
        title = run_title(architecture, latent_dim, train.STAGES[stage], dataset.note)
        plot_latent_traversal(model, folder / "latent_traversal.png", digits.images, title, test["kl_per_dimension"])
        plot_prior_samples(model, folder / "prior_samples.png", args.seed, title)
        tsne = plot_tsne(model, digits.images, digits.labels, folder / "tsne.png", args.seed, title)
        train.plot_elbo_curve(history, folder / "ELBO_Curve.png", test_elbo, iteration, title)
        stages[stage] = {"iteration": iteration, "sigma": model.sigma.item(), "test": test, "tsne": tsne}

    untrained = train.encode_means(new_model(architecture, latent_dim, config.seed), digits.images)
    run = {name: stages["end"][name] for name in ("sigma", "test", "tsne")}
    run |= {"iterations": len(history["loss"]), "train_seconds": checkpoint["train_seconds"], "stages": stages}
    run["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    run["untrained_knn_accuracy"] = knn_accuracy(untrained, digits.labels)
    return run, history


def processes(most):
    """Return a `joblib.Parallel` of at most so many processes, and one per processor; its results come in order."""
    jobs = min(most, joblib.cpu_count(only_physical_cores=True))
    return joblib.Parallel(jobs, return_as="generator", initializer=begin_worker, initargs=[os.getpid()])


def begin_worker(parent):
    """Set up a worker: it ignores Ctrl-C, and it ends when the parent has ended, for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore, which Python would report as leaked

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    with errors_in_one_line():
        main(parse_arguments())
