"""The results of a search: the best recipe, a page with a table, the same as JSON, and a plot."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from modeling_detr.atomic_output import replace_text, replaced_file
from modeling_detr.benchmarks.machine import machine
from modeling_detr.markup import markdown_cell, markdown_text
from modeling_detr.provenance import provenance
from modeling_detr.training.recipe import Recipe, recipe_class
from modeling_detr.training.recipe_keys import keys_of
from modeling_detr.training.recipe_parsing import with_given
from modeling_detr.tuning.records import COMPLETE, FAILED, PRUNED, TrialRecord, best_of
from modeling_detr.tuning.trial_runs import METRICS


BEST, MARKDOWN, JSON, PLOT = "best.yaml", "results.md", "results.json", "search.png"
RESULTS = (BEST, MARKDOWN, JSON, PLOT)
_METRIC_NAMES = {"ap": "AP", "mask_ap": "mask AP", "pq": "PQ"}


def metric_name(recipe: Recipe) -> str:
    """The name of the score."""
    return _METRIC_NAMES[METRICS[recipe.task]]


def recipe_text(recipe: Recipe, values: Mapping[str, Any]) -> str:
    """A recipe with some values changed, as YAML without keys that have their default.

    Args:
        recipe: The recipe.
        values: Key → value; those of mappings are dotted.
    """
    changed = recipe_class()(**with_given(dataclasses.asdict(recipe), values))
    declared = keys_of(type(changed))
    kept = {name: value for name, value in dataclasses.asdict(changed).items() if value != declared[name].default}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def write_results(
    recipe: Recipe,
    records: Sequence[TrialRecord],
    importances: Mapping[str, float],
    folder: Path,
    command: str = "",
    own_minutes: float | None = None,
) -> None:
    """Writes the results so far.

    Args:
        recipe: The recipe that the search starts from.
        records: The trials.
        importances: Key → its importance; empty if there are too few trials.
        folder: The folder of the search.
        command: The command, for the page.
        own_minutes: The recipe's own `minutes`, which the best recipe gets in place of those of a trial.
    """
    replace_text(folder / JSON, json.dumps(_as_json(recipe, records, importances, command), indent=1) + "\n")
    replace_text(folder / MARKDOWN, _markdown(recipe, records, importances, folder, command))
    best = best_of(records)
    if best is not None:
        replace_text(folder / BEST, _best_text(recipe, best, own_minutes))
        _plot(recipe, records, folder / PLOT)


def _best_text(recipe: Recipe, best: TrialRecord, own_minutes: float | None) -> str:
    """The best recipe; the time of a trial is left to a comment, so that a run has the recipe's own length."""
    lines = [f"# Trial {best.number} of a search: {metric_name(recipe)} {best.score:.3f} on the validation images"]
    if recipe.minutes != own_minutes:
        lines.append(f"# Trials had {recipe.minutes:g} minutes each; --minutes {recipe.minutes:g} trains for as long")
    return "\n".join([*lines, recipe_text(dataclasses.replace(recipe, minutes=own_minutes), best.values)])


def _as_json(
    recipe: Recipe, records: Sequence[TrialRecord], importances: Mapping[str, float], command: str
) -> dict[str, Any]:
    best = best_of(records)
    return {
        "metric": METRICS[recipe.task],
        "minutes_per_trial": recipe.minutes,
        "facts": {**{name: str(value) for name, value in provenance(command)}, "machine": machine()},
        "best": None if best is None else best.number,
        "importances": dict(importances),
        "trials": [{**dataclasses.asdict(record), "folder": str(record.folder)} for record in records],
    }


def _markdown(
    recipe: Recipe,
    records: Sequence[TrialRecord],
    importances: Mapping[str, float],
    folder: Path,
    command: str,
) -> str:
    facts = [*((name, str(value)) for name, value in provenance(command)), ("machine", machine())]
    parts = ["# Search", "\n".join(f"- {name}: {markdown_text(value)}" for name, value in facts)]
    parts += [summary(recipe, records, folder), _CAVEAT, "## Trials", _table(recipe, records)]
    if importances:
        rows = [[markdown_cell(key), f"{share:.0%}"] for key, share in importances.items()]
        parts += ["## Importance of the keys", _rows(["key", "share"], rows)]
        parts.append(
            "Estimated from the trials that were trained to the end, by PED-ANOVA: how much a key decides whether a "
            "trial is among the good ones. With few trials, this is uncertain."
        )
    failed = [record for record in records if record.state == FAILED]
    if failed:
        parts.append("## Failed trials")
        parts.append("\n".join(f"- {record.number}: {markdown_text(str(record.failure))}" for record in failed))
    return "\n\n".join(parts) + "\n"


_CAVEAT = (
    "The best of many trials is also the luckiest: its score, on the validation images that chose it, is optimistic. "
    "Judge the recipe on images that the search has not seen, with `detr evaluate RUN DATA --split test`, and by "
    "several seeds if the difference is small."
)


def summary(recipe: Recipe, records: Sequence[TrialRecord], folder: Path) -> str:
    """The best trial against the recipe itself, and how to train it."""
    best, base = best_of(records), next(iter(records), None)
    if best is None or base is None:
        return "No trial has been trained to the end yet."
    metric = metric_name(recipe)
    text = f"The best is trial {best.number}, with {metric} {best.score:.3f}"
    if best is base:
        text += ": the recipe itself"
    elif base.score is None:
        text += f"; the recipe itself (trial 1) {base.state}"
    else:
        text += f"; the recipe itself (trial 1) reached {base.score:.3f}"
    return f"{text}. To train it: `detr train {folder / BEST} --output_dir RUN`."


def _table(recipe: Recipe, records: Sequence[TrialRecord]) -> str:
    keys = [*dict.fromkeys(key for record in records for key in record.values)]
    best = best_of(records)
    header = ["trial", metric_name(recipe), *(markdown_cell(key) for key in keys), "minutes", "outcome"]
    rows = []
    for record in records:
        score = "-" if record.score is None else f"{record.score:.3f}"
        values = ["-" if key not in record.values else markdown_cell(shown(record.values[key])) for key in keys]
        outcome = "best" if record is best else _OUTCOMES.get(record.state, record.state)
        rows.append([str(record.number), score, *values, f"{record.minutes:.1f}", outcome])
    return _rows(header, rows)


_OUTCOMES = {COMPLETE: "", PRUNED: "stopped early"}


def shown(value: object) -> str:
    """A value of a key in a table: numbers with four digits, a size as 384x640."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "x".join(map(str, value.values()))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plot(recipe: Recipe, records: Sequence[TrialRecord], path: Path) -> None:
    """Draws the score of each trial, and the best so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for state, label, marker in ((COMPLETE, "trained to the end", "o"), (PRUNED, "stopped early", "x")):
        points = [(one.number, one.score) for one in records if one.state == state and one.score is not None]
        if points:
            axes.plot([number for number, _ in points], [score for _, score in points], marker, label=label)
    so_far = [(count, best_of(records[:count])) for count in range(1, len(records) + 1)]
    known = [(count, best.score) for count, best in so_far if best is not None and best.score is not None]
    axes.step([number for number, _ in known], [score for _, score in known], where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(metric_name(recipe))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
