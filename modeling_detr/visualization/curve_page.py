"""Training curves as a block of a web page; see `pages.Curves`."""

from collections.abc import Iterable, Mapping
from typing import Any

from modeling_detr.pages import CurvePanel, Curves, CurveTable
from modeling_detr.visualization.curve_series import (
    DEFAULT_SMOOTHING,
    Axis,
    Table,
    chosen_axis,
    common_axes,
    is_smoothed,
    other_losses,
    panels,
    read_curves,
)


def curve_block(
    runs: Mapping[str, Iterable[Mapping[str, Any]]], axis: Axis | None = None, smoothing: float = DEFAULT_SMOOTHING
) -> Curves:
    """The curves of runs as a block of a page, with all that `draw_curves` shows and the other loss terms.

    Args:
        runs: Name of each run → the entries of its `log.jsonl`; a run without any has no lines.
        axis: The axis to begin with; see `curve_series.chosen_axis`.
        smoothing: The smoothing to begin with, from 0 to less than 1.

    Raises:
        CurveError: The runs cannot be drawn over `axis`, or have no axis in common.
    """
    curves = {name: read_curves(entries) for name, entries in runs.items()}
    begun = {name: run for name, run in curves.items() if run.axes}
    shown = [CurvePanel(title, keys) for title, keys in panels(curves.values()).items()]
    shown += [CurvePanel(name, (name,), folded=True) for name in other_losses(curves.values())]
    return Curves(
        panels=shown,
        runs={name: [_table(run.training, run.training.y), _table(run.epochs, ())] for name, run in curves.items()},
        axes=common_axes(begun),
        axis=chosen_axis(begun, axis),
        smoothing=smoothing,
    )


def _table(table: Table, names: Iterable[str]) -> CurveTable:
    return CurveTable({str(axis): places for axis, places in table.x.items()}, table.y, [*filter(is_smoothed, names)])
