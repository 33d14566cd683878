"""Training curves as a picture: losses, learning rates, gradient norm, AP and speed; see `curve_series`."""

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from modeling_detr.atomic_output import replaced_file
from modeling_detr.visualization.curve_series import (
    DEFAULT_SMOOTHING,
    Axis,
    RunCurves,
    chosen_axis,
    is_smoothed,
    panels,
    read_curves,
    smoothed,
)
from modeling_detr.visualization.text import drawable, font_file


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LEGEND_COLUMNS = 4
_FEW = 40  # points of a line up to which each has a marker


def plot_curves(
    runs: Mapping[str, Iterable[Mapping[str, Any]]],
    path: Path,
    axis: Axis | None = None,
    smoothing: float = DEFAULT_SMOOTHING,
) -> Path:
    """Plots losses, learning rates, gradient norm, AP and speed, with one colour per run.

    Args:
        runs: See `draw_curves`.
        path: The picture to write; its suffix is the format (png, svg, pdf …).
        axis: See `draw_curves`.
        smoothing: See `draw_curves`.

    Returns:
        `path`.

    Raises:
        ValueError: See `draw_curves`.
        OutputError: The picture cannot be written.
    """
    figure = _figure(runs, axis, smoothing)
    with replaced_file(path) as partial:
        _save(figure, partial, path.suffix.removeprefix(".").lower() or None)
    return path


def draw_curves(
    runs: Mapping[str, Iterable[Mapping[str, Any]]],
    axis: Axis | None = None,
    smoothing: float = DEFAULT_SMOOTHING,
) -> Image.Image:
    """Draws the plot of `plot_curves` as a picture.

    Args:
        runs: Name of each run → the entries of its `log.jsonl`.
        axis: What the curves are drawn over; see `curve_series.chosen_axis`.
        smoothing: Smoothing of what is logged every few steps, from 0 (none) to less than 1; the values themselves are
            drawn behind it in a paler colour.

    Raises:
        ValueError: There are no runs, or a run has no entries of steps or epochs.
        CurveError: The runs cannot be drawn over `axis`.
    """
    buffer = io.BytesIO()
    _save(_figure(runs, axis, smoothing), buffer, "png")
    return Image.open(buffer)


def _figure(runs: Mapping[str, Iterable[Mapping[str, Any]]], axis: Axis | None, smoothing: float) -> "Figure":
    from matplotlib.figure import Figure  # unlike pyplot, needs no display and keeps no figure open

    curves = {name: read_curves(entries) for name, entries in runs.items()}
    empty = [name for name, run in curves.items() if not any(table.y for table in run.tables)]
    if empty or not curves:
        problem = f"no steps or epochs in {', '.join(empty)}" if empty else "no runs"
        raise ValueError(f"nothing to plot: {problem}; expected at least one log entry per run.")
    axis = chosen_axis(curves, axis)
    shown = panels(curves.values())
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    legend_height = 0.3 + 0.2 * math.ceil(len(curves) / _LEGEND_COLUMNS)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows + legend_height))
    last = max(places[-1] for run in curves.values() for table in run.tables if (places := table.x.get(axis)))
    for axes, (title, keys) in zip(figure.subplots(rows, columns, squeeze=False).flat, shown.items(), strict=False):
        _plot_panel(axes, title, keys, [*curves.values()], axis, smoothing)
        axes.set_xlim(-0.03 * last, 1.03 * last or 1.0)  # the same for all, so that they can be compared
    for unused in figure.axes[len(shown) :]:
        unused.remove()
    _add_legend(figure, list(curves))
    _set_margins(figure, rows, columns, legend_height)
    return figure


def _set_margins(figure: "Figure", rows: int, columns: int, legend_height: float) -> None:
    """Leaves room for labels. Matplotlib's layout engines would measure them all, which doubles the time of a plot."""
    width, height = figure.get_size_inches()
    left, right, top, bottom = 0.75, 0.15, 0.35, 0.5  # inches around each panel
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=(legend_height + bottom) / height,
        top=1 - top / height,
        wspace=(left + right) / (width / columns - left - right),
        hspace=(top + bottom) / ((height - legend_height) / rows - top - bottom),
    )


def _save(figure: "Figure", target: Path | io.BytesIO, suffix: str | None) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # a character in the name of a run
        figure.savefig(target, dpi=120, format=suffix)


def _plot_panel(
    axes: "Axes", title: str, keys: Sequence[str], runs: Sequence[RunCurves], axis: Axis, smoothing: float
) -> None:
    """Plots the values `keys` of each run over an axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10)
    axes.set_xlabel(axis.removesuffix("s") if axis in ("steps", "epochs") else axis)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=axis != "minutes", min_n_ticks=1))
    axes.grid(alpha=0.3)
    for run_index, run in enumerate(runs):
        for key, style in zip(keys, ("-", "--"), strict=False):
            table = run.training if key in run.training.y else run.epochs
            if key not in table.y:
                continue
            values = table.y[key]
            look = {"linestyle": style, "color": _run_colour(run_index)}
            if table is run.training and smoothing > 0 and is_smoothed(key) and len(values) > 2:
                _plot_line(axes, table.x[axis], values, {**look, "alpha": 0.3, "linewidth": 0.8})
                _plot_line(axes, table.x[axis], smoothed(values, smoothing), look)
            else:
                _plot_line(axes, table.x[axis], values, look)


def _plot_line(axes: "Axes", x: Sequence[float], values: Sequence[float | None], look: Mapping[str, Any]) -> None:
    points = [(place, value) for place, value in zip(x, values, strict=True) if value is not None]
    axes.plot(*zip(*points, strict=True), marker="." if len(points) < _FEW else "", **look)


def _add_legend(figure: "Figure", names: Sequence[str]) -> None:
    """Adds a legend with the colour and name of each run."""
    from matplotlib.font_manager import FontProperties

    lines = [figure.axes[0].plot([], [], color=_run_colour(run_index))[0] for run_index in range(len(names))]
    numbers = [str(run_index) for run_index in range(len(names))]
    legend = figure.legend(lines, numbers, loc="lower center", ncols=min(_LEGEND_COLUMNS, len(names)), fontsize=9)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # as a label, a name with $ would be a formula, and one that starts with _ would be hidden
        font = FontProperties(fname=font_file(drawable(name)), size=9)
        text.set(parse_math=False, text=drawable(name), fontproperties=font)


def _run_colour(run_index: int) -> str:
    """One of Matplotlib's ten default colours."""
    return f"C{run_index % 10}"
