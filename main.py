"""Makes everything that the assignment asks for: `python main.py`; `python main.py --help` says what it can be told.

Problem 1's figures, then for each architecture and latent size a VAE, trained and shown at three stages of its
training, then the numbers (results.json) and the gallery (README.md) in the folder of figures.
"""

import sys
from pathlib import Path

from config import EXIT_INTERRUPTED, errors_in_one_line, parse_settings
from files import prepare_folders


def main(arguments=None):
    """Run the command line `arguments`, by default those of the process."""
    settings = parse_settings(arguments)
    finished = []
    try:
        with errors_in_one_line("main.py"):
            make_everything(settings, finished)
    except KeyboardInterrupt:
        done = ", ".join(finished) or "nothing"
        print(f"\nmain.py: interrupted; finished: {done}. The same command with --resume goes on.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def make_everything(settings, finished):
    """Do the work in the assignment's order, and append to `finished` the name of each part that is done."""
    prepare_folders(settings.figures, settings.checkpoints)

    # Imported here, since it takes seconds: wrong arguments and --help are answered before.
    import evidence
    import gmm_entropy
    import mnist
    import report
    from experiment import Experiment, Laboratory, draw_stages, measure
    from train import choose_device, plot_elbo_curves

    figures, scale = Path(settings.figures), settings.scale
    environment = report.environment(choose_device(settings.device))
    dataset = mnist.load(settings.data_root, settings.offline, settings.dataset_name)
    dataset = dataset.first(scale.train_images, scale.test_images)
    print(report.describe_data(dataset))
    config = settings.train_config(len(dataset.train_images))
    experiments = [
        Experiment(architecture, dim, config) for architecture in settings.architectures for dim in settings.latent_dims
    ]

    results = report.new_results(settings, config, dataset, environment)
    results["gmm"] = gmm_entropy.run_problem_1(figures, settings.seed, scale.entropy_samples)
    finished.append("Problem 1")

    planned = experiments + (evidence.planned_experiments(settings, config) if settings.evidence else [])
    histories = {}
    with report.progress_bar(planned, len(dataset.train_images)) as bar:
        laboratory = Laboratory(dataset, environment, settings.checkpoints, settings.resume, bar)
        for experiment in experiments:
            checkpoint = laboratory.obtain(experiment)
            stages = measure(checkpoint, laboratory, scale)
            draw_stages(experiment, checkpoint, stages, laboratory, scale, figures)
            results["runs"][experiment.name] = report.run_results(checkpoint, stages)
            histories[experiment.name] = checkpoint["history"]
            finished.append(experiment.name)
        plot_elbo_curves(histories, figures / "ELBO_Curve.png", dataset.note)
        if settings.evidence:
            results["evidence"] = evidence.collect(settings, config, laboratory)
            evidence.draw_figures(settings, config, laboratory, results["evidence"]["runs"], figures)
            finished.append("evidence")

    report.write(results, figures)
    print(report.summary(results))


if __name__ == "__main__":
    main()
