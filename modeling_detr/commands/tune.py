"""Search for better values of a recipe's keys, with Optuna.

    detr tune small_dataset --data DATA --trials 20 --minutes_per_trial 10
    detr tune small_dataset --data DATA --trials 20 --keys ema_decay,batch_size
    detr tune auto --data DATA --trials 20 --minutes 10 --space ranges.yaml
    detr tune finetune --data DATA --trials 20 --jobs auto    # on all GPUs

The first argument is a recipe, as for `detr train`. The first trial is the recipe itself; each further one changes the
searched keys. Every other key can be set for all trials: `--seed 3`, `--model_config.d_model 192`. Each trial is a
`detr train` in a process of its own, and is stopped early if its evaluations are worse than the median of the others
at that point. Trials that fail are reported, and the search continues.

Stop the command at any time: started again, it continues, also with more trials. The results are `best.yaml` (a recipe
for `detr train`), `results.md`, `results.json` and `search.png`. Its score is optimistic, since the validation images
chose it: judge the recipe on test images.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_detr.atomic_output import make_folder, replace_text
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.jobs import add_jobs, check_jobs, find_places
from modeling_detr.commands.recipe_options import add_recipe_keys, recipe_keys_of
from modeling_detr.commands.results import RUNS, link_to
from modeling_detr.errors_detr import SearchError, printable
from modeling_detr.input_files import read_json
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_folder
from modeling_detr.provenance import command_line
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import (
    builtin_recipes,
    find_recipe,
    parse_arguments,
    parse_recipe,
    read_recipe_file,
)
from modeling_detr.training.run_folder import LOCK, locked
from modeling_detr.tuning.records import PRUNED, TrialRecord, best_of
from modeling_detr.tuning.search_space import SPACE, Space, read_space, search_space


if TYPE_CHECKING:
    from modeling_detr.tuning.search import Search


BASE, SETTINGS = "base.yaml", "search.json"
_DECIDED = ("minutes", "resume", "push_to_hub", "metrics_port", "metrics_host")  # keys that the command decides


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser(argv).parse_args(argv)
    check_at_least("trials", arguments.trials, 1)
    if arguments.minutes_per_trial is not None and not arguments.minutes_per_trial > 0:
        raise SearchError("--minutes_per_trial", f"got {arguments.minutes_per_trial:g}, expected a positive number")
    check_jobs(arguments.jobs)
    if importlib.util.find_spec("optuna") is None:
        raise SearchError("detr tune", "needs optuna, which is not installed", "pip install 'modeling-detr[tune]'")

    from modeling_detr.tuning.results import RESULTS
    from modeling_detr.tuning.search import JOURNAL, Search, SearchPlan

    where = find_places(arguments.jobs, "trial")
    folder = arguments.output_dir or RUNS / "tune" / Path(arguments.recipe).stem
    check_folder(folder, files=[*RESULTS, BASE, SETTINGS, JOURNAL, LOCK])
    make_folder(folder)
    with locked(folder):
        recipe, space = _prepare(arguments, folder)
        for note in space.notes:
            print(fitted(f"note      {note}", indent=10))
        keys = ", ".join(dimension.key for dimension in space.dimensions)
        print(fitted(f"search    {keys}; results in {folder}", indent=10), flush=True)
        search = Search(SearchPlan(recipe, folder / BASE, space.dimensions, folder, arguments.trials, where))
        own_minutes = read_recipe_file(find_recipe(arguments.recipe)).get("minutes")
        _run(search, command_line("detr tune", argv), own_minutes)
    return 0


def build_parser(argv: Sequence[str] = ()) -> CommandParser:
    """The parser of the command; its help and its page of the documentation come from it.

    Args:
        argv: The arguments that it will parse; see `add_recipe_keys`.
    """
    parser = CommandParser("detr tune", __doc__)
    parser.add_argument("recipe", help="a recipe, by name or path; see 'detr train --help'")
    parser.add_argument("--trials", type=int, required=True, help="number of trials, with those of earlier calls")
    parser.add_argument(
        "--minutes_per_trial", "--minutes", type=float, help="length of each trial (default: the recipe's)"
    )
    add_jobs(parser, "trials")
    parser.add_argument("--keys", help=f"only these keys, of {', '.join(SPACE)} and those of --space")
    parser.add_argument(
        "--space", type=Path, help="YAML file of ranges, which add to the built-in ones or replace them"
    )
    parser.add_argument("--output_dir", type=Path, help="folder of the search (default: runs/tune/RECIPE)")
    add_recipe_keys(parser, argv, "all of 'detr train' have the given value in all trials", without=_DECIDED)
    return parser


def _check_data(recipe: Recipe) -> None:
    """Opens the data as each trial does, so that what is wrong with it ends the search before its first trial."""
    from modeling_detr.training.setup import open_splits

    open_splits(recipe)


def _prepare(arguments: argparse.Namespace, folder: Path) -> tuple[Recipe, Space]:
    """The recipe and the space of a search; of one that continues, after checking that they are the same."""
    given = recipe_keys_of(arguments)
    call = {"recipe": arguments.recipe, "given": given, "minutes_per_trial": arguments.minutes_per_trial}
    earlier = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else None
    if earlier is not None:
        _check_same(folder, {name: earlier["call"].get(name) for name in call}, call)
    recipe = _base_recipe(arguments, given, folder, earlier is not None)
    names = None if arguments.keys is None else [name.strip() for name in arguments.keys.split(",") if name.strip()]
    written = None if arguments.space is None else read_space(arguments.space)
    space = search_space(recipe, given, names, written, str(arguments.space))
    settings = {
        "call": call,
        "recipe": dataclasses.asdict(recipe),
        "space": {one.key: dataclasses.asdict(one) for one in space.dimensions},
    }
    settings = json.loads(json.dumps(settings))  # as it is read again: lists for tuples
    if earlier is not None:
        _check_same(folder, earlier["recipe"], settings["recipe"])
        _check_same(folder, earlier["space"], settings["space"], "the range of ")
    else:
        from modeling_detr.tuning.results import recipe_text

        _check_data(recipe)
        replace_text(folder / BASE, recipe_text(recipe, {}))
        replace_text(folder / SETTINGS, json.dumps(settings, indent=1))
    return recipe, space


def _base_recipe(arguments: argparse.Namespace, given: dict[str, str], folder: Path, continues: bool) -> Recipe:
    """The recipe of the first trial, without what concerns a single run."""
    if continues and parse_arguments([arguments.recipe]).path == builtin_recipes()["auto"]:
        return dataclasses.replace(parse_recipe([str(folder / BASE)]), output_dir=None)
    texts = [arguments.recipe]
    for name, text in given.items():
        texts += [f"--{name}", text]
    if arguments.minutes_per_trial is not None:
        texts += ["--minutes", str(arguments.minutes_per_trial)]
    recipe = parse_recipe(texts)
    _ = recipe.data_source
    parsed = parse_arguments(texts)
    if parsed.path == builtin_recipes()["auto"]:
        from modeling_detr.training.auto.choosing import auto_recipe

        chosen = auto_recipe({**parsed.given, "output_dir": str(folder / "auto")})
        print(fitted("\n".join(map(printable, chosen.lines)), indent=10), flush=True)
        recipe = dataclasses.replace(chosen.recipe, minutes=arguments.minutes_per_trial)
    return dataclasses.replace(recipe, output_dir=None, resume=None, push_to_hub=None, metrics_port=None)


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any], what: str = "") -> None:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        problem = f"{what}{name} was {json.dumps(before.get(name))}, now {json.dumps(now.get(name))}"
        raise SearchError(folder, f"contains another search: {problem}", "choose another --output_dir")


def _run(search: "Search", command: str, own_minutes: float | None) -> None:
    from modeling_detr.tuning.results import metric_name, shown, summary, write_results

    plan = search.plan
    metric = metric_name(plan.recipe)

    def write() -> None:
        write_results(plan.recipe, search.records(), search.importances(), plan.folder, command, own_minutes)

    def report(record: TrialRecord) -> None:
        values = ", ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in record.values.items())
        score = "" if record.score is None else f"{metric} {record.score:.3f} after {record.minutes:.1f} minutes"
        best = best_of(search.records())
        parts = [score, "stopped early" if record.state == PRUNED else ""]
        parts += [f"FAILED; {record.failure}"] if record.failure is not None else []
        parts += (
            [f"best {best.score:.3f}, trial {best.number}"]
            if best is not None and best.number != record.number
            else []
        )
        line = f"[{record.number}/{plan.num_trials}] {values}: {'; '.join(filter(None, parts))}"
        print(fitted(printable(line), indent=2), flush=True)
        write()

    try:
        search.run(report)
    finally:
        if search.records():
            write()
    print(f"\n{fitted(summary(plan.recipe, search.records(), plan.folder))}")
    print(fitted("This score is optimistic, since it chose the recipe; test images judge it."))
    print(link_to(plan.folder))
