"""The results of a study: what each run reached and when, and means over the seeds.

Times are those of training with its evaluations, without the start of the process and what precedes the first step.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modeling_detr.benchmarks.machine import machine
from modeling_detr.benchmarks.study import START, PlannedRun, Study
from modeling_detr.benchmarks.study_runs import SCORED, is_finished
from modeling_detr.input_files import read_json
from modeling_detr.markup import markdown_cell, markdown_text
from modeling_detr.provenance import provenance
from modeling_detr.training.checkpointing import STATE
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.run_folder import LOG, checkpoint_folders


@dataclass(frozen=True)
class CurvePoint:
    """An evaluation of a run.

    Attributes:
        step: Optimizer steps taken.
        images: Images seen, repetitions included.
        minutes: Time taken.
        ap: AP of boxes.
        ap50: AP50 of boxes.
    """

    step: int
    images: int
    minutes: float
    ap: float
    ap50: float


@dataclass(frozen=True)
class RunResult:
    """What a run reached.

    Attributes:
        variant: The variant.
        seed: The seed.
        train_images: Number of training images that the study asks for; None: all.
        num_images: Number of training images.
        steps: Optimizer steps.
        seconds: Duration of training and evaluations.
        ap: AP of the last evaluation.
        ap50: AP50 of the last evaluation.
        best_ap50: The highest AP50 of an evaluation.
        per_class: Class name → its AP and AP50 in the last evaluation.
        duplicates: By how many points the exported model's AP50 would rise without duplicate detections.
        curve: All evaluations.
    """

    variant: str
    seed: int
    train_images: int | None
    num_images: int
    steps: int
    seconds: float
    ap: float
    ap50: float
    best_ap50: float
    per_class: Mapping[str, Mapping[str, float | None]]
    duplicates: float | None
    curve: tuple[CurvePoint, ...]

    def minutes_to(self, ap50: float) -> float | None:
        """The minutes until an evaluation first had this AP50; None if none did."""
        return next((point.minutes for point in self.curve if point.ap50 >= ap50), None)


def read_results(runs: Sequence[PlannedRun]) -> list[RunResult]:
    """The results of the finished runs, without those of first stages."""
    return [_read_result(run) for run in runs if run.variant != START and is_finished(run)]


def _read_result(run: PlannedRun) -> RunResult:
    evaluations = [entry for entry in read_log(run.folder / LOG) if entry["kind"] == "epoch" and "ap50" in entry]
    state = read_json(checkpoint_folders(run.folder)[-1] / STATE)["state"]
    num_images, step_size = int(state["num_images"]), int(state["step_size"])
    steps_per_epoch = math.ceil(num_images / step_size)
    curve = tuple(
        CurvePoint(
            step=entry["step"],
            images=entry["step"] // steps_per_epoch * num_images + entry["step"] % steps_per_epoch * step_size,
            minutes=entry["seconds"] / 60,
            ap=entry["ap"] or 0.0,  # null: no ground truth
            ap50=entry["ap50"] or 0.0,
        )
        for entry in evaluations
    )
    errors = read_json(run.folder / SCORED / "evaluation.json").get("errors", {})
    duplicates = errors.get("points", {}).get("duplicate")
    return RunResult(
        variant=run.variant,
        seed=run.seed,
        train_images=run.train_images,
        num_images=num_images,
        steps=curve[-1].step,
        seconds=60 * curve[-1].minutes,
        ap=curve[-1].ap,
        ap50=curve[-1].ap50,
        best_ap50=max(point.ap50 for point in curve),
        per_class={
            name: {"ap": values["ap"], "ap50": values["ap50"]}
            for name, values in evaluations[-1].get("per_class", {}).items()
        },
        duplicates=duplicates,
        curve=curve,
    )


# Tables


def results_json(study: Study, results: Sequence[RunResult], failures: Sequence[str], command: str) -> dict[str, Any]:
    """Everything as plain values for JSON."""
    facts = [(name, str(value)) for name, value in provenance(command)]
    return {
        "study": dataclasses.asdict(study),
        "facts": {**dict(facts), "machine": machine()},
        "failures": list(failures),
        "runs": [dataclasses.asdict(result) for result in results],
    }


def results_markdown(study: Study, results: Sequence[RunResult], failures: Sequence[str], command: str) -> str:
    """A page with a table for each number of training images."""
    seeds = ", ".join(map(str, study.seeds))
    parts = [
        f"# {markdown_text(study.name)}",
        "\n".join(f"- {name}: {markdown_text(str(value))}" for name, value in provenance(command)),
        f"- machine: {markdown_text(machine())}\n- seeds: {seeds}",
    ]
    parts = [parts[0], "\n".join(parts[1:])]
    for images in study.train_images:
        of_images = [result for result in results if result.train_images == images]
        if of_images:
            count = of_images[0].num_images
            parts += [f"## {count:,} training images", _table(study, of_images)]
    parts.append(
        "Mean ± standard deviation over the seeds; a single run has no deviation. AP and AP50 are those of the last "
        "evaluation. Minutes are those of training and its evaluations. 'to AP50 .5' is the time of the first "
        f"evaluation with at least that; 'to the best of {markdown_text(study.reference)}' that of the first with the "
        f"AP50 that {markdown_text(study.reference)} reached at best with the same seed, and in brackets its share of "
        "the time that it took there. 'k of n': so many runs reached it. Duplicates: points by which AP50 of the "
        "exported model, the best one, would rise without second detections of an object."
    )
    if failures:
        parts += ["## Failed runs", "\n".join(f"- {markdown_text(failure)}" for failure in failures)]
    return "\n\n".join(parts) + "\n"


def _table(study: Study, results: Sequence[RunResult]) -> str:
    reference = {result.seed: result for result in results if result.variant == study.reference}
    header = ["variant", "runs", "AP", "AP50", "minutes", "images seen"]
    header += [f"to AP50 {threshold:g}".replace("0.", ".") for threshold in study.thresholds]
    header += [f"to the best of {study.reference}", "duplicates"]
    rows = []
    for variant in study.variants:
        runs = [result for result in results if result.variant == variant]
        if not runs:
            continue
        row = [variant, str(len(runs))]
        row += [spread([run.ap for run in runs], 3), spread([run.ap50 for run in runs], 3)]
        row += [spread([run.seconds / 60 for run in runs], 1), f"{statistics.mean(_seen(runs)):,.0f}"]
        row += [_times(runs, [threshold] * len(runs)) for threshold in study.thresholds]
        row.append(_to_reference(runs, reference))
        points = [run.duplicates for run in runs if run.duplicates is not None]
        row.append(spread(points, 1) if points else "-")
        rows.append(row)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [[markdown_cell(cell) for cell in lines[0]], lines[1], *cells]
    )


def _seen(runs: Iterable[RunResult]) -> list[int]:
    return [run.curve[-1].images for run in runs]


def spread(values: Sequence[float], digits: int) -> str:
    """The mean of values, with their standard deviation if there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _times(runs: Sequence[RunResult], levels: Sequence[float]) -> str:
    """The minutes to a level of each run, or how many reached theirs."""
    times = [run.minutes_to(level) for run, level in zip(runs, levels, strict=True)]
    reached = [time for time in times if time is not None]
    return spread(reached, 1) if len(reached) == len(times) else f"{len(reached)} of {len(times)}"


def _to_reference(runs: Sequence[RunResult], reference: Mapping[int, RunResult]) -> str:
    """The minutes to what the reference reached at best with the same seed, and their share of its own."""
    pairs = [(run, reference[run.seed]) for run in runs if run.seed in reference]
    if not pairs or any(other.best_ap50 <= 0 for _, other in pairs):  # it has learned nothing
        return "-"
    levels = [other.best_ap50 for _, other in pairs]
    text = _times([run for run, _ in pairs], levels)
    shares = [_share(run, other) for run, other in pairs]
    known = [share for share in shares if share is not None]
    return f"{text} ({statistics.mean(known):.2f} x)" if len(known) == len(pairs) else text


def _share(run: RunResult, reference: RunResult) -> float | None:
    mine, theirs = (result.minutes_to(reference.best_ap50) for result in (run, reference))
    return mine / theirs if mine is not None and theirs else None


# For plots


def mean_curve(
    runs: Sequence[RunResult], x: Callable[[CurvePoint], float]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Values of x, and the mean, the lowest and the highest AP50 of several runs there.

    Between evaluations AP50 is interpolated; only where all runs have values.

    Args:
        runs: The runs.
        x: The coordinate of a point.
    """
    import numpy as np

    curves = [([x(point) for point in run.curve], [point.ap50 for point in run.curve]) for run in runs]
    first, last = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    grid = sorted({value for xs, _ in curves for value in xs if first <= value <= last})
    if not grid:
        return [], [], [], []
    values = np.array([np.interp(grid, xs, ys) for xs, ys in curves])
    return grid, values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist()
