"""Makes everything that the assignment asks for: `python main.py`; `python main.py --help` says what it can be told.

Problem 1's figures; then for each network and latent size a VAE is trained, and at the beginning, the middle and the
end of its training measured and shown in four ways; last the numbers (results.json) and the gallery (README.md).
"""

import sys
from pathlib import Path

from config import EXIT_INTERRUPTED, STAGES, check, parse_settings, say, user_errors_in_one_line
from files import writing_alone_in

PROJECT = Path(__file__).resolve().parent


def main(arguments=None):
    """Run the command line `arguments`, by default those of the process."""
    settings = parse_settings(arguments)
    finished = []
    try:
        with user_errors_in_one_line("main.py"):
            refuse_kept_folders(settings)
            with writing_alone_in(settings.figures, settings.checkpoints):
                make_everything(settings, finished)
    except KeyboardInterrupt:
        done = ", ".join(finished) or "nothing"
        print(f"\nmain.py: interrupted; finished: {done}. The same command with --resume goes on.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def refuse_kept_folders(settings):
    """Raise `InputError` where the run would write over README.md beside this file, or among the evidence."""
    evidence = PROJECT / "figures" / "evidence"
    for name, folder in ("figures", settings.figures), ("checkpoints", settings.checkpoints):
        path = Path(folder).resolve()
        check(path != PROJECT and not path.is_relative_to(evidence), name, folder, "a folder that is free for it")


def make_everything(settings, finished):
    """Do the work in the assignment's order, and append to `finished` the name of each part that is done."""
    # Imported here, since it takes seconds: wrong arguments and --help are answered before.
    from joblib import delayed

    import mnist
    import report
    from gmm_entropy import run_problem_1
    from runs import Run, choose_device, side_by_side
    from train import plot_elbo_curves

    figures, scale = Path(settings.figures), settings.scale
    device = choose_device(settings.device)
    dataset = mnist.load(settings.data_root, settings.offline, settings.dataset_name)
    dataset = dataset.first(scale.train_images, scale.test_images)
    say(dataset.describe())
    config = settings.train_config(len(dataset.train_labels))
    runs = [Run(architecture, dim, config) for architecture in settings.architectures for dim in settings.latent_dims]
    results = report.new_results(settings, config, dataset, device, len(runs))

    results["gmm"] = run_problem_1(figures, settings.seed, scale.entropy_samples)
    finished.append("Problem 1")

    histories = {}
    calls = [delayed(make_run)(run, line, dataset, settings) for line, run in enumerate(runs)]
    for run, (checkpoint, stages) in zip(runs, side_by_side(calls, settings), strict=True):
        results["runs"][run.name] = report.run_results(checkpoint, stages)
        histories[run] = checkpoint["history"]
        finished.append(run.name)
    plot_elbo_curves(histories, figures / "ELBO_Curve.png", dataset.note)

    report.write(results, figures)
    say(report.summary(results))


def make_run(run, line, dataset, settings):
    """Train a VAE, its progress in that line of the terminal, measure and draw it: its checkpoint and its stages."""
    from runs import train_or_resume

    checkpoint = train_or_resume(run, dataset, settings, line)
    stages, maps = measure_stages(checkpoint, dataset, settings)
    draw_stages(run, checkpoint, stages, maps, dataset, settings)
    return checkpoint, stages


def measure_stages(checkpoint, dataset, settings):
    """Measure a VAE at the three stages of its training.

    Returns
    -------
    stages : dict
        For each stage its iteration, the model's sigma, "test" as `train.evaluate` returns it, and "tsne".
    maps : dict
        For each stage its `tsne.Embedding`.
    """
    from mnist import evenly_spaced
    from runs import choose_device, model_at
    from train import encode_means, evaluate
    from tsne import embed

    scale, test_images = settings.scale, dataset.test_images
    images, labels = (evenly_spaced(part, scale.tsne_images) for part in (test_images, dataset.test_labels))
    stages, maps = {}, {}
    for stage, iteration in checkpoint["history"]["stages"].items():
        model = model_at(checkpoint, stage).to(choose_device(settings.device))
        importance_images = scale.importance_images if stage == "end" else 0
        test = evaluate(model, test_images, importance_images, scale.importance_samples)
        maps[stage] = found = embed(encode_means(model, images), labels.numpy())
        rating = {"knn_accuracy": found.knn_accuracy, "trustworthiness": found.trustworthiness}
        stages[stage] = {"iteration": iteration, "sigma": model.sigma.item(), "test": test, "tsne": rating}
    return stages, maps


def draw_stages(run, checkpoint, stages, maps, dataset, settings):
    """Write the four figures of each stage, measured before by `measure_stages`."""
    from latent_traversal import plot_latent_traversal
    from mnist import evenly_spaced
    from runs import choose_device, model_at
    from sample_from_prior import plot_prior_samples
    from train import plot_elbo_curve
    from tsne import plot_tsne

    history, test_images = checkpoint["history"], dataset.test_images
    images, labels = (evenly_spaced(part, settings.scale.tsne_images) for part in (test_images, dataset.test_labels))
    test_elbo = {stage: measured["test"]["elbo"] for stage, measured in stages.items()}
    # At every stage as at the end, so that a dimension keeps its row.
    kl = stages["end"]["test"]["kl_per_dimension"]
    order = sorted(range(run.latent_dim), key=lambda k: -kl[k])
    for stage, iteration in history["stages"].items():
        model = model_at(checkpoint, stage).to(choose_device(settings.device))
        folder = Path(settings.figures) / run.name / stage
        when = f"{STAGES[stage]} of training (iteration {iteration:,})"
        title = dataset.noted(f"{run.architecture}, K = {run.latent_dim}, {when}")
        plot_latent_traversal(model, folder / "latent_traversal.png", test_images, title, order)
        plot_prior_samples(model, folder / "prior_samples.png", title=title)
        plot_elbo_curve(history, folder / "ELBO_Curve.png", test_elbo, iteration, title)
        plot_tsne(model, images, labels, folder / "tsne.png", title=title, embedding=maps[stage])


if __name__ == "__main__":
    main()
