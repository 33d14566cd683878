"""The picture of a run: how many times better this package is at each piece of work."""

from collections.abc import Sequence
from pathlib import Path

from modeling_detr.atomic_output import replaced_file
from modeling_detr.benchmarks.speed.measurement import OURS, SectionResult


def ratios_of(results: Sequence[SectionResult]) -> list[tuple[str, dict[str, float]]]:
    """What the bars show: work → contender → ratio, of all work that was measured for another contender."""
    rows = []
    for result in results:
        for measurement in result.measurements:
            ratios = {name: measurement.ratio(name) for name in measurement.samples if name != OURS}
            known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
            if known:
                rows.append((f"{result.name}: {measurement.work}", known))
    return rows


def plot_speed(results: Sequence[SectionResult], path: Path) -> Path | None:
    """Draws a bar for each other contender and piece of work; None if there is nothing to compare."""
    from matplotlib.figure import Figure

    rows = ratios_of(results)
    if not rows:
        return None
    contenders = [*dict.fromkeys(name for _, ratios in rows for name in ratios)]
    height = 0.8 / len(contenders)
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(contenders):
        positions = [row + number * height for row, (_, ratios) in enumerate(rows) if name in ratios]
        values = [ratios[name] for _, ratios in rows if name in ratios]
        bars = axes.barh(positions, values, height, label=name, color=f"C{number % 10}")
        axes.bar_label(bars, fmt="%.2f x", padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(rows))], [work for work, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xscale("log")
    axes.set_xlabel(f"times better that {OURS} is than …")
    axes.legend(loc="lower right", fontsize=9)
    with replaced_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path
