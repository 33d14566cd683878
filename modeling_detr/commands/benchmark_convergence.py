"""Train the variants of a study with several seeds, and compare them.

    detr benchmark convergence shapes
    detr benchmark convergence bccd --data BCCD --minutes 40 --variants plain,aided
    detr benchmark convergence my_study.yaml --seeds 7,8,9 --output_dir runs/study

A study is a YAML file or the name of a built-in one. Keys of its recipe can be set for all variants: `--data FOLDER`,
`--minutes 10`, `--model_config.num_queries 50`. Each run is a `detr train` in a process of its own, followed by a
`detr evaluate`. Stop the command at any time: started again, it keeps the runs that are finished, and continues the
others from their last checkpoint.

The results are `results.json` (every run and its curve), `results.md` (a table), `curves.png` and, with several
numbers of training images, `learning_curves.png`. The exit code is 1 if a run failed.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from modeling_detr.atomic_output import make_folder, replace_text
from modeling_detr.benchmarks.convergence import read_results, results_json, results_markdown
from modeling_detr.benchmarks.convergence_plot import plot_convergence, plot_learning_curves
from modeling_detr.benchmarks.study import (
    START,
    PlannedRun,
    Study,
    builtin_studies,
    parse_images,
    parse_seeds,
    parse_thresholds,
    plan_runs,
    read_study,
    with_keys,
    with_variants,
)
from modeling_detr.benchmarks.study_runs import check_arguments, is_finished, run_study
from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.commands.jobs import add_jobs, check_jobs, find_places
from modeling_detr.commands.recipe_options import add_recipe_keys, recipe_keys_of
from modeling_detr.commands.results import RUNS, link_to
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import printable
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_folder
from modeling_detr.provenance import command_line


RESULTS = ("results.json", "results.md", "curves.png", "learning_curves.png")


def add_convergence(commands: "argparse._SubParsersAction[CommandParser]", argv: Sequence[str]) -> None:
    """Add the sub-command; `argv` may have keys of mappings, such as `--model_config.num_queries`."""
    parser = commands.add_parser(
        "convergence", help="train variants of a recipe with several seeds, and compare them", description=__doc__
    )
    studies = ", ".join(builtin_studies())
    parser.add_argument("study", help=f"a YAML file, or a built-in study: {studies}")
    parser.add_argument("--seeds", help="how many seeds, from 0, or a list such as 7,8,9 or 7, (default: the study's)")
    parser.add_argument("--variants", help="only these variants, such as plain,aided; the first is the reference")
    parser.add_argument("--train_images", help="numbers of training images, such as 25,50,all (default: the study's)")
    parser.add_argument("--thresholds", help="AP50 to report the time to, such as 0.5,0.7 (default: the study's)")
    add_jobs(parser, "runs")
    parser.add_argument("--output_dir", type=Path, help="folder for the results (default: runs/benchmarks/STUDY)")
    add_recipe_keys(parser, argv, "see 'detr train --help'; --minutes N limits each run")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_jobs(arguments.jobs)
    study = _study(arguments)
    folder = arguments.output_dir or RUNS / "benchmarks" / study.name
    runs = plan_runs(study, folder)
    check_folder(folder, files=RESULTS)
    check_arguments(runs)
    make_folder(folder)
    done = sum(map(is_finished, runs))
    print(
        fitted(
            f"{study.name}: {counted(len(runs), 'run')} ({', '.join(study.variants)}; seeds "
            f"{', '.join(map(str, study.seeds))}), {done} finished; results in {folder}"
        ),
        flush=True,
    )
    command = command_line("detr benchmark", arguments.argv)
    failures: dict[Path, str] = {}

    # Train what is missing; the results so far are there after each run.
    def report(run: PlannedRun, failure: str | None) -> None:
        nonlocal done
        done += failure is None
        if failure is not None:
            failures[run.folder] = f"{run}: {failure}"
        print(fitted(printable(f"[{done}/{len(runs)}] {run}: {_outcome(run, failure)}"), indent=2), flush=True)
        if failure is None and run.variant != START:
            _write(study, runs, [*failures.values()], folder, command)

    sentences = run_study(runs, find_places(arguments.jobs, "run"), report)

    # The results.
    _write(study, runs, sentences, folder, command)
    if (folder / "results.md").is_file():
        print(f"\n{(folder / 'results.md').read_text(encoding='utf-8')}")
        print(link_to(folder))
    return 1 if sentences else 0


def _study(arguments: argparse.Namespace) -> Study:
    """The study with the changes of the command line."""
    study = read_study(arguments.study)
    if arguments.variants is not None:
        study = with_variants(study, [name.strip() for name in arguments.variants.split(",")])
    if arguments.seeds is not None:
        study = dataclasses.replace(study, seeds=parse_seeds(arguments.seeds))
    if arguments.train_images is not None:
        study = dataclasses.replace(study, train_images=parse_images(arguments.train_images))
    if arguments.thresholds is not None:
        study = dataclasses.replace(study, thresholds=parse_thresholds(arguments.thresholds))
    return with_keys(study, recipe_keys_of(arguments))


def _outcome(run: PlannedRun, failure: str | None) -> str:
    if failure is not None:
        return f"FAILED; {failure}"
    (result,) = read_results([dataclasses.replace(run, variant="")])  # a first stage has a result, too
    return f"AP50 {result.ap50:.3f}, AP {result.ap:.3f} after {result.seconds / 60:.1f} minutes"


def _write(study: Study, runs: Sequence[PlannedRun], failures: Sequence[str], folder: Path, command: str) -> None:
    """Writes the results of the runs that are finished."""
    results = read_results(runs)
    text = json.dumps(results_json(study, results, failures, command), indent=1, ensure_ascii=False)
    replace_text(folder / "results.json", f"{text}\n")
    replace_text(folder / "results.md", results_markdown(study, results, failures, command))
    if results:
        plot_convergence(study, results, folder / "curves.png")
        plot_learning_curves(study, results, folder / "learning_curves.png")
