"""`python -m evidence`: everything that REPORT.md rests on, below figures/evidence/, then the numbers of the pages.

The main runs are measured just as main.py does; experiments.py lists what else is. Takes the options of main.py but for
--sigma; with --resume it takes over what either made before. On full MNIST its checkpoints take some 1.4 GB.
"""

import sys
from pathlib import Path

from config import EXIT_INTERRUPTED, Settings, check, parse_settings, say, user_errors_in_one_line
from files import writing_alone_in

PROJECT = Path(__file__).resolve().parent.parent


def main(arguments=None):
    """Run the command line `arguments`, by default those of the process."""
    description = "Make what goes beyond the assignment, below FIGURES/evidence, and the numbers of REPORT.md."
    settings = parse_settings(arguments, "python -m evidence", description)
    figures = Path(settings.figures)
    folder = figures / "evidence"
    ours = figures.resolve() == PROJECT / "figures"
    try:
        with user_errors_in_one_line("python -m evidence"):
            check(settings.sigma is None, "sigma", settings.sigma, "none: the experiments set it themselves")
            whole = not settings.quick and {*Settings().latent_dims} <= {*settings.latent_dims}
            whole = whole and {*Settings().architectures} <= {*settings.architectures}
            check(whole or not ours, "figures", settings.figures, "another folder for a trial or a part of the runs")
            with writing_alone_in(folder, settings.checkpoints):
                make_everything(settings, folder, pages=PROJECT if ours else None)
    except KeyboardInterrupt:
        print("\npython -m evidence: interrupted. The same command with --resume goes on.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def make_everything(settings, folder, pages):
    """Write results.json and the figures to `folder`, and the numbers to the pages in the folder `pages`, if any."""
    # Imported here, since it takes seconds: wrong arguments and --help are answered before.
    import mnist
    import report
    from evidence import experiments
    from evidence.figures import draw_figures
    from evidence.pages import write_pages
    from files import write_json
    from gmm_entropy import solve_problem_1
    from runs import choose_device

    dataset = mnist.load(settings.data_root, settings.offline, settings.dataset_name)
    dataset = dataset.first(settings.scale.train_images, settings.scale.test_images)
    say(dataset.describe())
    experiments.check_classes(dataset)
    config = settings.train_config(len(dataset.train_labels))
    plan = experiments.planned_runs(settings, config)
    results = report.new_results(settings, config, dataset, choose_device(settings.device), len(plan["sizes"]))
    results["gmm"] = solve_problem_1(settings.seed)
    results["evidence"] = experiments.collect(plan, dataset, settings)
    results["evidence"]["elsewhere"] = experiments.train_elsewhere(plan, dataset, settings)
    results["runs"] = experiments.measure_main_runs(plan["main"], dataset, settings)
    write_json(folder / "results.json", results)

    draw_figures(plan, results["evidence"], dataset, settings, folder)
    experiments.show_plane(plan["main"], dataset, settings, folder)
    if pages:
        write_pages(pages, results)
    say(report.summary(results))


if __name__ == "__main__":
    main()
