"""The curves of a run: from the entries of its log to series over steps, images, minutes or epochs.

To add a panel, add a line to `PANELS`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from modeling_detr.errors_detr import CurveError


Axis: TypeAlias = Literal["steps", "images", "minutes", "epochs"]
Numbers: TypeAlias = Sequence[float | None]

PANELS = {
    "loss (dashed: evaluation)": ("loss", "eval_loss"),
    "class loss": ("loss_ce",),
    "box loss (L1)": ("loss_bbox",),
    "box loss (generalised IoU)": ("loss_giou",),
    "mask loss (focal)": ("loss_mask",),
    "mask loss (dice)": ("loss_dice",),
    "class error, %": ("class_error",),
    "AP (solid), AP50 (dashed)": ("ap", "ap50"),
    "mask AP (solid), AP50 (dashed)": ("mask_ap", "mask_ap50"),
    "PQ (solid), of things (dashed)": ("pq", "pq_things"),
    "learning rate (dashed: backbone)": ("learning_rate", "backbone_learning_rate"),
    "gradient norm": ("grad_norm",),
    "waiting for data, % of the time": ("loader_wait",),
    "images per second": ("images_per_second",),
}
"""Title of each panel → the logged values in it, the first drawn solid and the second dashed. A panel without any
logged value is left out."""
AXES: dict[Axis, tuple[str, float]] = {
    "steps": ("step", 1.0),
    "images": ("images", 1.0),
    "minutes": ("seconds", 1 / 60),
    "epochs": ("epoch", 1.0),
}
"""What curves can be drawn over → the name in the log, and the factor that turns it into the unit."""

DEFAULT_SMOOTHING = 0.6
MAX_POINTS = 2_000  # of a series; more are joined into means, as a chart is less than this many pixels wide

_KINDS = ("step", "epoch")  # in the order in which they are logged after the same step
_PERCENT = ("loader_wait",)  # logged as shares
_EXACT = ("learning_rate", "backbone_learning_rate")  # known for each step, so there is nothing to smooth


@dataclass(frozen=True)
class Table:
    """Values that were logged together.

    Attributes:
        x: Each axis on which the rows have a place → the places, ascending.
        y: Name of each value → one number per row; None if it was not logged or not finite.
    """

    x: Mapping[Axis, Sequence[float]]
    y: Mapping[str, Numbers]


@dataclass(frozen=True)
class RunCurves:
    """The curves of a run.

    Attributes:
        training: What is logged every few steps.
        epochs: What is logged once per epoch: metrics, and, of what `training` does not have, the means of the epoch.
    """

    training: Table
    epochs: Table

    @property
    def tables(self) -> tuple[Table, Table]:
        """Both tables; a value is in one of them."""
        return self.training, self.epochs

    @property
    def axes(self) -> list[Axis]:
        """The axes on which all rows have places."""
        filled = [table for table in self.tables if table.y]
        return [axis for axis in AXES if filled and all(axis in table.x for table in filled)]


def read_curves(entries: Iterable[Mapping[str, Any]], max_points: int = MAX_POINTS) -> RunCurves:
    """Collect the curves of a run from the entries of its log.

    Of steps that were logged twice, since the run continued from an earlier checkpoint, the last entries count. Where
    older logs have no images or minutes for an entry, these are interpolated between the ones that have.

    Args:
        entries: See `metric_logger.read_log` and `read_original_log`.
        max_points: Longer tables are reduced to at most this many rows, each the mean of consecutive ones.
    """
    kept = _without_repeats(entries)
    tables, seen = [], set[str]()
    for kind in _KINDS:
        rows = [entry for entry in kept if entry["kind"] == kind]
        names = dict.fromkeys(name for row in rows for name in row if _is_plotted(name) and name not in seen)
        y = {name: [_number(row.get(name), 100.0 if name in _PERCENT else 1.0) for row in rows] for name in names}
        y = {name: values for name, values in y.items() if any(value is not None for value in values)}
        seen |= y.keys()
        tables.append(_reduced(Table(_places(rows, kept), y), max_points))
    return RunCurves(*tables)


def panels(runs: Iterable[RunCurves]) -> dict[str, tuple[str, ...]]:
    """The panels of `PANELS` that have a line in any of the runs."""
    names = {name for run in runs for table in run.tables for name in table.y}
    return {title: keys for title, keys in PANELS.items() if names & {*keys}}


def other_losses(runs: Iterable[RunCurves]) -> list[str]:
    """The names of the loss terms without a panel: those of the earlier decoder layers and of the training aids."""
    names = {name for run in runs for table in run.tables for name in table.y}
    return sorted(names - {key for keys in PANELS.values() for key in keys})


def common_axes(runs: Mapping[str, RunCurves]) -> list[Axis]:
    """The axes on which all runs have places."""
    return [axis for axis in AXES if all(axis in run.axes for run in runs.values())]


def chosen_axis(runs: Mapping[str, RunCurves], axis: Axis | None = None) -> Axis:
    """The axis to draw over: `axis`, or by default steps, or epochs if a log has no steps.

    Raises:
        CurveError: A run has no places on it.
    """
    common = common_axes(runs)
    axis = axis or (common[0] if common else "epochs")  # all that the original's log has
    for name, run in runs.items():
        if axis == "epochs" and axis not in run.axes:
            raise _no_axis(name, "no finished epoch yet", run)
        if axis not in run.axes:
            raise _no_axis(name, f"its log does not count {axis}", run)
    return axis


def _no_axis(name: str, problem: str, run: RunCurves) -> CurveError:
    if not run.axes:
        return CurveError(name, problem, "leave it out")
    return CurveError(name, problem, "choose another axis", {"axis": run.axes[0]})


def is_smoothed(name: str) -> bool:
    """Whether a value of the training table is shown smoothed."""
    return name not in _EXACT


def smoothed(values: Numbers, weight: float) -> list[float | None]:
    """The exponential moving average of values, as TensorBoard smooths: `weight` of the past, without a bias to 0.

    Args:
        values: The values; those that are None stay so.
        weight: From 0 (no smoothing) to less than 1.
    """
    average, remaining, result = 0.0, 1.0, list[float | None]()
    for value in values:
        if value is None:
            result.append(None)
            continue
        average = weight * average + (1 - weight) * value
        remaining *= weight
        result.append(average / (1 - remaining))
    return result


# From entries to tables


def _is_plotted(name: str) -> bool:
    return name.startswith("loss") or any(name in keys for keys in PANELS.values())


def _number(value: Any, factor: float = 1.0) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return factor * value if is_number else None


def _without_repeats(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of steps and epochs in order; one replaces those that were logged after the same or later steps."""
    kept: list[Mapping[str, Any]] = []
    for entry in entries:
        if entry.get("kind") not in _KINDS or _position(entry) is None:
            continue
        while kept and _rank(kept[-1]) >= _rank(entry):
            kept.pop()
        kept.append(entry)
    return kept


def _position(entry: Mapping[str, Any]) -> float | None:
    """The step of an entry, or in the original's log, which has no steps, its epoch."""
    return _number(entry.get("step", entry.get("epoch")))


def _rank(entry: Mapping[str, Any]) -> tuple[float, int]:
    return _position(entry) or 0.0, _KINDS.index(entry["kind"])


def _places(rows: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> dict[Axis, Sequence[float]]:
    """The places of rows on each axis that has them."""
    places: dict[Axis, Sequence[float]] = {}
    for axis, (name, factor) in AXES.items():
        # the epoch of a step is the one it is in, so that only finished epochs are places
        known = [row for row in entries if axis != "epochs" or row["kind"] == "epoch"]
        marks = [(_position(row), _number(row.get(name), factor)) for row in known]
        found = [(at, mark) for at, mark in marks if at is not None and mark is not None]
        if rows and found:
            own = [_number(row.get(name), factor) if axis != "epochs" else None for row in rows]
            between = _interpolated([_position(row) or 0.0 for row in rows], found)
            places[axis] = [place if place is not None else other for place, other in zip(own, between, strict=True)]
    return places


def _interpolated(positions: Sequence[float], marks: Sequence[tuple[float, float]]) -> list[float]:
    """The values at positions on the line through marks, which starts at (0, 0) and continues after the last one."""
    at, values = (np.array(side) for side in zip((0.0, 0.0), *marks, strict=True))
    where = np.asarray(positions)
    result = np.interp(where, at, values)
    earlier = max(int(np.searchsorted(at, at[-1])) - 1, 0)  # the last mark before the position of the last one
    if at[-1] > at[earlier]:
        slope = (values[-1] - values[earlier]) / (at[-1] - at[earlier])
        result = np.where(where > at[-1], values[-1] + slope * (where - at[-1]), result)
    return [float(value) for value in result]


def _reduced(table: Table, max_points: int) -> Table:
    """A table with at most `max_points` rows: means of consecutive ones, at the place of the last of them."""
    num_rows = max(map(len, table.y.values()), default=0)
    size = math.ceil(num_rows / max_points)
    if size <= 1:
        return table
    starts = range(0, num_rows, size)
    x = {axis: [places[min(start + size, num_rows) - 1] for start in starts] for axis, places in table.x.items()}
    y = {name: [_mean(values[start : start + size]) for start in starts] for name, values in table.y.items()}
    return Table(x, y)


def _mean(values: Numbers) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
