"""The pictures of a study: AP50 over time and over images seen, and over the number of training images."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modeling_detr.atomic_output import replaced_file
from modeling_detr.benchmarks.convergence import CurvePoint, RunResult, mean_curve
from modeling_detr.benchmarks.study import Study


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_AXES: dict[str, Callable[[CurvePoint], float]] = {
    "minutes": lambda point: point.minutes,
    "images seen": lambda point: point.images,
}


def plot_convergence(study: Study, results: Sequence[RunResult], path: Path) -> Path:
    """Draws AP50 over time and over images seen, one row for each number of training images.

    Lines are means over the seeds, bands reach from the lowest to the highest.
    """
    from matplotlib.figure import Figure

    counts = _counts(study, results)
    figure = Figure(figsize=(10, 3.6 * len(counts) + 0.4), layout="constrained")
    for row, images in zip(figure.subplots(len(counts), 2, squeeze=False), counts, strict=True):
        of_images = [result for result in results if result.train_images == images]
        for axes, (name, x) in zip(row, _AXES.items(), strict=True):
            axes.set_title(f"{of_images[0].num_images:,} training images", fontsize=10)
            _prepare(axes, name)
            _plot_curves(axes, study, of_images, x)
            axes.set_xlim(left=0)
    return _save(figure, study, path)


def plot_learning_curves(study: Study, results: Sequence[RunResult], path: Path) -> Path | None:
    """Draws AP50 over the number of training images, if there are several; lines and bands as above."""
    from matplotlib.figure import Figure

    if len(_counts(study, results)) < 2:
        return None
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    _prepare(axes, "training images")
    _plot_learning_curves(axes, study, results)
    return _save(figure, study, path)


def _counts(study: Study, results: Sequence[RunResult]) -> list[int | None]:
    """The numbers of training images that have results, as in the study."""
    return [images for images in study.train_images if any(result.train_images == images for result in results)]


def _save(figure: "Figure", study: Study, path: Path) -> Path:
    lines = [figure.axes[0].plot([], [], color=f"C{number % 10}")[0] for number in range(len(study.variants))]
    figure.legend(lines, [*study.variants], loc="outside lower center", ncols=min(4, len(lines)), fontsize=9)
    with replaced_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path


def _prepare(axes: "Axes", name: str) -> None:
    axes.set_xlabel(name)
    axes.set_ylabel("AP50")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)


def _plot_curves(axes: "Axes", study: Study, results: Sequence[RunResult], x: Callable[[CurvePoint], float]) -> None:
    for number, variant in enumerate(study.variants):
        runs = [result for result in results if result.variant == variant]
        if runs:
            grid, mean, lowest, highest = mean_curve(runs, x)
            axes.plot(grid, mean, marker=".", color=f"C{number % 10}")
            axes.fill_between(grid, lowest, highest, alpha=0.2, color=f"C{number % 10}", linewidth=0)


def _plot_learning_curves(axes: "Axes", study: Study, results: Sequence[RunResult]) -> None:
    axes.set_xscale("log")
    for number, variant in enumerate(study.variants):
        runs = [result for result in results if result.variant == variant]
        counts = sorted({run.num_images for run in runs})
        values = [[run.ap50 for run in runs if run.num_images == count] for count in counts]
        if counts:
            axes.plot(counts, [*map(statistics.mean, values)], marker=".", color=f"C{number % 10}")
            lowest, highest = [*map(min, values)], [*map(max, values)]
            axes.fill_between(counts, lowest, highest, alpha=0.2, color=f"C{number % 10}", linewidth=0)
    ticks = sorted({run.num_images for run in results})
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
    axes.minorticks_off()
