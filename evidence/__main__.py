"""Train and measure what REPORT.md needs beyond main.py: `python -m evidence`.

First run main.py on full MNIST. This reads its results.json, and --resume reuses its four trainings.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import mnist
from checkpoints import model_at, read_checkpoint
from evidence import film, latent_sizes, networks, pictures, plane, sigma
from evidence.judge import make_judge
from evidence.training import LATENT_DIM, measure_all, remembered
from files import InputError, errors_in_one_line, say, write_text
from main import number
from train import TrainConfig

QUESTIONS = {"latent_sizes": latent_sizes, "networks": networks, "sigma": sigma}
NEEDED = {2, LATENT_DIM}  # latent sizes


def parse_arguments(arguments=None):
    """Return the settings of a command line, by default that of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--data-root", default="data", type=Path, help="folder of MNIST, which is downloaded if there is none")
    option("--checkpoints", default="checkpoints", type=Path, help="folder for weights and measurements")
    option("--figures", default="figures/evidence", type=Path, help="folder to write to, inside main.py's figures")
    option("--seeds", default=3, type=number(int, 1), help="trainings of each kind, with seeds 0, 1, ...")
    option("--latent-dims", default=[1, 2, 4, 8, 16, 32, 64], type=number(int, 1), nargs="+", help="latent dimensions")
    option("--resume", action="store_true", help="skip what the same code has trained and measured")
    args = parser.parse_args(arguments)
    if missing := NEEDED - {*args.latent_dims}:
        parser.error(f"--latent-dims lacks {sorted(missing)}, which figures need")
    return args


def main(args):
    """Train and measure the runs of all questions, and write the answers and the figures."""
    main_results = read_main_results(args.figures.resolve().parent / "results.json")
    dataset = mnist.load(args.data_root)
    say(dataset.describe())
    if dataset.note:
        raise InputError(f"the evidence needs full MNIST, not {dataset.note}")
    args.figures.mkdir(parents=True, exist_ok=True)  # if it cannot be made, say so before the trainings

    torch.set_num_threads(1)  # so that torch's sums do not depend on how many processors there are
    trained = dict.fromkeys(name.rpartition("_z")[0] for name in main_results["runs"])
    dims = sorted({*args.latent_dims})
    plans = {name: question.plan(trained, dims, args.seeds) for name, question in QUESTIONS.items()}
    judge = make_judge(args.checkpoints / "judge.json", dataset, args.resume)
    runs = list(dict.fromkeys(run for plan in plans.values() for run in plan))
    measured = measure_all(runs, dataset, judge, args.checkpoints, args.resume)

    results = {"main": main_results, "seeds": args.seeds, "judge": judge.describe(dataset.test)}
    for name, question in QUESTIONS.items():
        results[name] = question.answer([measured[run.name] for run in plans[name]], dataset)
    results["runs"] = list(measured.values())
    write_text(args.figures / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")

    def load(run):
        return model_at(read_checkpoint(args.checkpoints / f"{run.name}.pt"))

    for question in (*QUESTIONS.values(), pictures):
        question.draw(results, load, dataset, args.figures)
    shown = read_checkpoint(args.checkpoints / "conv_z2.pt")
    plane.make(shown, dataset, args.figures)
    filmed = args.resume and (args.figures / "film.gif").exists()
    remembered(args.checkpoints / "film.json", shown["made_from"], filmed, lambda: film.make(dataset, args.figures))


def read_main_results(path):
    """Return the results.json of main.py; `InputError` unless it is of full MNIST and main.py's own settings."""
    if not path.exists():
        raise InputError(f"{path} is missing: run main.py first")
    results = json.loads(path.read_text(encoding="utf-8"))
    data, own = results["dataset"], {f"{network}_z{dim}" for network in ("conv", "mlp") for dim in NEEDED}
    full = (data["name"], data["train_count"], data["test_count"]) == ("MNIST", 60_000, 10_000)
    if not full or results["config"] != asdict(TrainConfig()) or not own <= {*results["runs"]}:
        raise InputError(f"{path} is not of main.py's own settings on full MNIST: run main.py first")
    return results


if __name__ == "__main__":
    sys.argv[0] = "python -m evidence"
    with errors_in_one_line():
        main(parse_arguments())
