"""`python -m evidence`: everything that REPORT.md rests on, below figures/evidence/, then the numbers of the pages.

The main runs are measured just as main.py does; then come the repeated seeds, the latent sizes and the runs with
sigma = 1. Takes the options of main.py but for --sigma; with --resume it takes over what either made before.
"""

import sys
import tempfile
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
    from evidence.experiments import collect, planned_runs, remembered
    from evidence.figures import draw_figures
    from evidence.pages import fill_pages
    from files import write_json
    from main import show_stages
    from train import Run, checkpoint_path, choose_device, progress_bar, read_checkpoint, train_or_resume

    scale = settings.scale
    dataset = mnist.load(settings.data_root, settings.offline, settings.dataset_name)
    dataset = dataset.first(scale.train_images, scale.test_images)
    say(dataset.describe())
    config = settings.train_config(len(dataset.train_images))
    main_runs = [Run(name, dim, config) for name in settings.architectures for dim in settings.latent_dims]
    runs = planned_runs(settings, config)
    everything = list(dict.fromkeys([*main_runs, *runs]))  # runs may hold the main runs too
    results = report.new_results(settings, config, dataset, choose_device(settings.device))
    results["gmm"] = gmm_entropy.solve_problem_1(settings.seed)
    with progress_bar(everything, dataset) as bar:
        for run in everything:
            train_or_resume(run, dataset, settings, bar)

    with tempfile.TemporaryDirectory() as dropped:
        for run in main_runs:
            checkpoint = read_checkpoint(checkpoint_path(run, settings))

            def show(run=run, checkpoint=checkpoint):
                return show_stages(run, checkpoint, dataset, settings, Path(dropped))

            stages = remembered("stages", run, dataset, settings, show)
            results["runs"][run.name] = report.run_results(checkpoint, stages)
    results["evidence"] = collect(runs, dataset, settings)
    draw_figures(runs, results["evidence"]["runs"], dataset, settings, folder)

    write_json(folder / "results.json", results)
    if pages:
        fill_pages(pages, results)
    say(report.summary(results))


if __name__ == "__main__":
    main()
