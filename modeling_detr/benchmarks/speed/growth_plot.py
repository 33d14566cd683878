"""The picture of growth: a panel for each series of work, time and memory over size."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_detr.atomic_output import replaced_file
from modeling_detr.benchmarks.speed.growth import GrowthCurve, by_work
from modeling_detr.benchmarks.speed.measurement import TIME


if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 5


def plot_growth(curves: Sequence[GrowthCurve], path: Path) -> Path | None:
    """Draws each curve relative to its value at the largest size, with the slope expected; None if there is none."""
    from matplotlib.figure import Figure

    groups = by_work(curves)
    if not groups:
        return None
    rows = math.ceil(len(groups) / _COLUMNS)
    figure = Figure(figsize=(2.8 * _COLUMNS, 0.5 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, group in zip(panels, groups, strict=False):
        _draw(axes, group)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9)
    with replaced_file(path) as partial:
        figure.savefig(partial, dpi=80, format="png")
    return path


def _draw(axes: "Axes", group: Sequence[GrowthCurve]) -> None:
    for curve in group:
        is_time = curve.quantity == TIME
        name, colour = ("time", "C0") if is_time else ("peak memory", "C1")
        largest, cost = curve.sizes[-1], curve.costs[-1]
        if cost <= 0:
            continue
        shares = [value / cost if value > 0 else math.nan for value in curve.costs]
        expected = [(size / largest) ** curve.expected for size in curve.sizes]
        axes.plot(curve.sizes, expected, ":", color=colour, linewidth=1, label=f"{name}, most that is expected")
        axes.plot(curve.sizes, shares, "o-", color=colour, markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(group[0].work, fontsize=9)
    axes.set_xlabel(group[0].axis, fontsize=8)
    axes.minorticks_off()
    sizes = group[0].sizes
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.tick_params(labelsize=7)
