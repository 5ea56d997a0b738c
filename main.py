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

    import gmm_entropy
    import mnist
    import report
    from train import Run, choose_device, plot_elbo_curves, side_by_side

    figures, scale = Path(settings.figures), settings.scale
    device = choose_device(settings.device)
    dataset = mnist.load(settings.data_root, settings.offline, settings.dataset_name)
    dataset = dataset.first(scale.train_images, scale.test_images)
    say(dataset.describe())
    config = settings.train_config(len(dataset.train_images))
    runs = [Run(architecture, dim, config) for architecture in settings.architectures for dim in settings.latent_dims]
    results = report.new_results(settings, config, dataset, device)

    results["gmm"] = gmm_entropy.run_problem_1(figures, settings.seed, scale.entropy_samples)
    finished.append("Problem 1")

    histories = {}
    calls = [delayed(make_run)(run, line, dataset, settings) for line, run in enumerate(runs)]
    for run, (results["runs"][run.name], histories[run]) in zip(runs, side_by_side(calls, settings), strict=True):
        finished.append(run.name)
    plot_elbo_curves(histories, figures / "ELBO_Curve.png", dataset.note)

    report.write(results, figures)
    say(report.summary(results))


def make_run(run, line, dataset, settings):
    """Train a VAE, its progress in that line of the terminal, and show its stages: its results, and its history."""
    from report import run_results
    from train import progress_bar, train_or_resume

    with progress_bar(run, dataset, line) as bar:
        checkpoint = train_or_resume(run, dataset, settings, bar)
    stages = show_stages(run, checkpoint, dataset, settings, Path(settings.figures))
    return run_results(checkpoint, stages), checkpoint["history"]


def show_stages(run, checkpoint, dataset, settings, figures):
    """Measure a VAE at the three stages of its training, and write the four figures of each below `figures`.

    Returns
    -------
    dict
        For each stage its iteration, the model's sigma, "test" as `train.evaluate` returns it, and "tsne".
    """
    from latent_traversal import dimension_kl, plot_latent_traversal
    from mnist import evenly_spaced
    from sample_from_prior import plot_prior_samples
    from train import choose_device, evaluate, model_at, plot_elbo_curve
    from tsne import plot_tsne

    scale, history = settings.scale, checkpoint["history"]
    images, labels = (evenly_spaced(part, scale.tsne_images) for part in (dataset.test_images, dataset.test_labels))
    models = {stage: model_at(checkpoint, stage).to(choose_device(settings.device)) for stage in STAGES}
    # At every stage as at the end, so that a dimension keeps its row.
    order = dimension_kl(models["end"], dataset.test_images).argsort(descending=True).tolist()
    stages, test_elbo = {}, {}
    for stage, model in models.items():
        iteration = history["stages"][stage]
        importance_images = scale.importance_images if stage == "end" else 0
        test = evaluate(model, dataset.test_images, importance_images, scale.importance_samples)
        test_elbo[stage] = test["elbo"]

        folder = figures / run.name / stage
        when = f"{STAGES[stage]} of training (iteration {iteration:,})"
        title = dataset.noted(f"{run.architecture}, z = {run.latent_dim}, {when}")
        plot_latent_traversal(model, folder / "latent_traversal.png", dataset.test_images, title, order)
        plot_prior_samples(model, folder / "prior_samples.png", title=title)
        plot_elbo_curve(history, folder / "ELBO_Curve.png", test_elbo, iteration, title)
        embedding = plot_tsne(model, images, labels, folder / "tsne.png", title=title)

        rating = {"knn_accuracy": embedding.knn_accuracy, "trustworthiness": embedding.trustworthiness}
        stages[stage] = {"iteration": iteration, "sigma": model.sigma.item(), "test": test, "tsne": rating}
    return stages


if __name__ == "__main__":
    main()
