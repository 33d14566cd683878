"""Training curves: losses, class error and AP over the epochs.

To add a panel, add a line to `PANELS`.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from modeling_detr.atomic_output import replaced_file
from modeling_detr.visualization.text import drawable, font_file


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
}
"""Title of each panel → the logged values in it, the first drawn solid and the second dashed. A panel without any
logged value is left out."""


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Plots losses, class error and AP over the epochs, with one colour per run.

    Args:
        runs: See `draw_curves`.
        path: The picture to write; its suffix is the format (png, svg, pdf …).

    Returns:
        `path`.

    Raises:
        ValueError: See `draw_curves`.
        OutputError: The picture cannot be written.
    """
    figure = _figure(runs)
    with replaced_file(path) as partial:
        _save(figure, partial, path.suffix.removeprefix(".").lower() or None)
    return path


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Image.Image:
    """Draws the plot of `plot_curves` as a picture.

    Args:
        runs: Name of each run → the entries of its `log.jsonl`; those of kind `"epoch"` are plotted.

    Raises:
        ValueError: There are no runs, or a run has not finished an epoch.
    """
    buffer = io.BytesIO()
    _save(_figure(runs), buffer, "png")
    return Image.open(buffer)


def _figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    from matplotlib.figure import Figure  # unlike pyplot, needs no display and keeps no figure open

    epochs = {name: [entry for entry in entries if entry.get("kind") == "epoch"] for name, entries in runs.items()}
    unfinished = [name for name, entries in epochs.items() if not entries]
    if unfinished or not epochs:
        problem = f"no finished epoch in {', '.join(unfinished)}" if unfinished else "no runs"
        raise ValueError(f"nothing to plot: {problem}; expected at least one epoch per run.")
    logged = {key for entries in epochs.values() for entry in entries for key in entry}
    panels = {title: keys for title, keys in PANELS.items() if logged & set(keys)}
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows + 0.5), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        _plot_panel(axes, title, keys, list(epochs.values()))
    for unused in figure.axes[len(panels) :]:
        unused.remove()
    _add_legend(figure, list(epochs))
    return figure


def _save(figure: "Figure", target: Path | io.BytesIO, suffix: str | None) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # a character in the name of a run
        figure.savefig(target, dpi=120, format=suffix)


def _plot_panel(axes: "Axes", title: str, keys: Sequence[str], runs: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Plots the values `keys` of each run over the epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    for run_index, entries in enumerate(runs):
        for key, style in zip(keys, ("-", "--"), strict=False):
            points = [(entry["epoch"], entry[key]) for entry in entries if entry.get(key) is not None]
            if points:
                marker = "." if len(points) < 40 else ""
                axes.plot(*zip(*points, strict=True), style, marker=marker, color=_run_colour(run_index))


def _add_legend(figure: "Figure", names: Sequence[str]) -> None:
    """Adds a legend with the colour and name of each run."""
    from matplotlib.font_manager import FontProperties

    lines = [figure.axes[0].plot([], [], color=_run_colour(run_index))[0] for run_index in range(len(names))]
    numbers = [str(run_index) for run_index in range(len(names))]
    legend = figure.legend(lines, numbers, loc="outside lower center", ncols=min(4, len(names)), fontsize=9)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # as a label, a name with $ would be a formula, and one that starts with _ would be hidden
        font = FontProperties(fname=font_file(drawable(name)), size=9)
        text.set(parse_math=False, text=drawable(name), fontproperties=font)


def _run_colour(run_index: int) -> str:
    """One of Matplotlib's ten default colours."""
    return f"C{run_index % 10}"
