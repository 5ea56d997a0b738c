"""`python -m evidence`: everything that REPORT.md rests on, below figures/evidence/, then the numbers of the pages.

The main runs are measured just as main.py does; experiments.py lists what else is. Takes the options of main.py but for
--sigma; with --resume it takes over what either made before.
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
    import gmm_entropy
    import mnist
    import report
    from evidence.experiments import collect, planned_runs, show_training, train_elsewhere
    from evidence.figures import draw_figures
    from evidence.pages import fill_pages
    from files import write_json
    from train import choose_device

    dataset = mnist.load(settings.data_root, settings.offline, settings.dataset_name)
    dataset = dataset.first(settings.scale.train_images, settings.scale.test_images)
    say(dataset.describe())
    config = settings.train_config(len(dataset.train_images))
    results = report.new_results(settings, config, dataset, choose_device(settings.device))
    results["gmm"] = gmm_entropy.solve_problem_1(settings.seed)
    plan = planned_runs(settings, config)
    results["evidence"] = collect(plan, dataset, settings)
    results["evidence"]["elsewhere"] = train_elsewhere(plan, dataset, settings)
    results["runs"] = show_training(plan["main"], dataset, settings, folder)
    draw_figures(plan, results["evidence"], dataset, settings, folder)

    write_json(folder / "results.json", results)
    if pages:
        fill_pages(pages, results)
    say(report.summary(results))


if __name__ == "__main__":
    main()
