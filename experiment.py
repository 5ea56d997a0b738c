"""One VAE from start to finish: trained, or taken over from an earlier call; measured; drawn at its three stages."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from config import STAGES, TrainConfig
from files import InputError, read_json, write_json
from latent_traversal import plot_latent_traversal
from mnist import evenly_spaced
from sample_from_prior import plot_prior_samples
from train import evaluate, model_at, plot_elbo_curve, read_checkpoint, save_checkpoint, seeded, train
from tsne import plot_tsne
from VAE import VAE


@dataclass(frozen=True)
class Experiment:
    """A network, a latent size and how to train it; `variant` tells apart those that differ in nothing else."""

    architecture: str
    latent_dim: int
    config: TrainConfig
    variant: str = ""

    @property
    def name(self):
        """What its folder of figures and its file of weights are called."""
        return f"{self.architecture}_z{self.latent_dim}" + (f"_{self.variant}" if self.variant else "")


class Laboratory:
    """Where experiments are carried out, all on the same data and device.

    Parameters
    ----------
    dataset : mnist.Dataset
    environment : dict
        As `report.environment` describes it; its "device" is the one to train on.
    folder : path-like
        Where checkpoints are kept.
    resume : bool
        Whether to take over checkpoints that an earlier call left there.
    bar : tqdm.tqdm
        Advanced by one for each iteration.
    """

    def __init__(self, dataset, environment, folder, resume, bar):
        self.dataset = dataset
        self.environment = environment
        self.folder = Path(folder)
        self.resume = resume
        self.bar = bar
        self.done = set()

    def obtain(self, experiment):
        """Return the checkpoint of an experiment, made now unless there is one of equal settings, data and versions.

        A dict as `train.read_checkpoint` returns it, with "history", "train_seconds", and "made_from", on which all
        the rest depends.
        """
        path = self.folder / f"{experiment.name}.pt"
        if experiment in self.done:
            return read_checkpoint(path)
        made_from = self._made_from(experiment)
        self.bar.set_description(experiment.name)
        self.done.add(experiment)
        if self.resume and path.exists():
            found = read_checkpoint(path)
            if found.get("made_from") == made_from:
                self.bar.update(len(found["history"]["loss"]))
                return found
            self.bar.write(f"{path}: made with other settings, data or versions; trained anew")
        save_checkpoint(path, made_from=made_from, **self._train(experiment))
        return read_checkpoint(path)

    def remembered(self, experiment, measurement):
        """Return what `measurement()`, a dict fit for JSON, gives for an experiment, now or in an earlier call."""
        path = self.folder / f"{experiment.name}.json"
        made_from = self._made_from(experiment)
        if self.resume and path.exists():
            found = read_json(path)
            if found.get("made_from") == made_from:
                return found["results"]
        results = measurement()
        write_json(path, {"made_from": made_from, "results": results})
        return results

    def _made_from(self, experiment):
        with seeded(0):
            networks = str(VAE(experiment.latent_dim, experiment.architecture))  # tells an edited network apart
        origin = {"networks": networks, "data": self.dataset.fingerprint, "environment": self.environment}
        return {**asdict(experiment), **origin}

    def model(self, checkpoint, stage="end"):
        """Return the model of a checkpoint at a stage, on this laboratory's device."""
        return model_at(checkpoint, stage).to(self.environment["device"])

    def _train(self, experiment):
        with seeded(experiment.config.seed):
            model = VAE(experiment.latent_dim, experiment.architecture).to(self.environment["device"])
        stages = {}

        def keep(stage, iteration):
            stages[stage] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

        def show(loss):
            self.bar.set_postfix_str(f"ELBO {-loss:.0f}", refresh=False)
            self.bar.update()

        started = time.perf_counter()
        try:
            history = train(model, self.dataset.train_images, experiment.config, keep, show)
        except FloatingPointError as error:
            raise InputError(f"{experiment.name}: {error}") from error
        return {"model": model, "stages": stages, "history": history, "train_seconds": time.perf_counter() - started}


def measure(checkpoint, laboratory, scale):
    """Measure a checkpoint on the test images.

    Returns
    -------
    dict
        For each stage its iteration, the model's sigma, and under "test" what `train.evaluate` returns.
    """
    stages = {}
    for stage in STAGES:
        model = laboratory.model(checkpoint, stage)
        importance_images = scale.importance_images if stage == "end" else 0
        test = evaluate(model, laboratory.dataset.test_images, importance_images, scale.importance_samples)
        stages[stage] = {"iteration": checkpoint["history"]["stages"][stage], "sigma": model.sigma.item(), "test": test}
    return stages


def draw_stages(experiment, checkpoint, stages, laboratory, scale, folder):
    """Write the twelve stage figures of an experiment below `folder`, and add to `stages` the numbers of the maps."""
    dataset = laboratory.dataset
    history = checkpoint["history"]
    test_elbo = {stage: numbers["test"]["elbo"] for stage, numbers in stages.items()}
    images, labels = (evenly_spaced(part, scale.tsne_images) for part in (dataset.test_images, dataset.test_labels))
    for stage, numbers in stages.items():
        laboratory.bar.set_description(f"figures of {experiment.name}, {stage}")
        model = laboratory.model(checkpoint, stage)
        at = numbers["iteration"]
        when = f"{STAGES[stage]} of training (iteration {at:,})"
        title = f"{experiment.architecture}, z = {experiment.latent_dim}, {when}"
        title += f"\n{dataset.note}" if dataset.note else ""
        place = Path(folder) / experiment.name / stage
        plot_latent_traversal(model, place / "latent_traversal.png", dataset.test_images, title)
        plot_prior_samples(model, place / "prior_samples.png", title=title)
        plot_elbo_curve(history, place / "ELBO_Curve.png", test_elbo, at, title)
        embedding = plot_tsne(model, images, labels, place / "tsne.png", title=title)
        numbers["tsne"] = {"knn_accuracy": embedding.knn_accuracy, "trustworthiness": embedding.trustworthiness}
