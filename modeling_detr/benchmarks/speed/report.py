"""The results of a run as a table, and as values for JSON."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from modeling_detr.benchmarks.machine import cpu_flags, machine
from modeling_detr.benchmarks.speed.growth import GrowthCurve, by_work, growth_curves, growth_of
from modeling_detr.benchmarks.speed.measurement import (
    MEMORY,
    ORIGINAL,
    OURS,
    TIME,
    Measurement,
    Quantity,
    SectionResult,
)
from modeling_detr.benchmarks.speed.sections import SECTIONS
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.markup import markdown_cell, markdown_text
from modeling_detr.pages import Fact
from modeling_detr.provenance import provenance


_VERSIONS = ("torchvision", "timm", "numpy", "scipy", "pillow", "pycocotools")

LEGEND = (
    "Median over the rounds; all contenders are measured in turn in each round, after their results have been "
    "compared. 'n x' is how many times better modeling_detr is, the median of the ratios within a round. 'least' is "
    "the fastest round, or the lowest rate or share; 'spread' the range of all rounds as a share of the median. "
    "'difference' is the largest difference of the results from modeling_detr's, relative to the largest value."
)


def facts(settings: SpeedSettings, command: str) -> list[Fact]:
    """What the figures depend on: date, versions, machine and settings."""
    flags = ", ".join(cpu_flags()) or "not known"
    on_cpu = settings.device.type == "cpu"
    device = "CPU" if on_cpu else f"{settings.device}, TF32 {'on' if _uses_tf32() else 'off'}"
    original = "not measured; pass --original with a checkout"
    if settings.original is not None:
        original = f"{settings.original.path.name} {settings.original.commit[:12]}".strip()
    return [
        *provenance(command),
        ("libraries", ", ".join(f"{name} {_version(name)}" for name in _VERSIONS)),
        ("machine", machine()),
        ("instructions", flags),
        ("device", f"{device}, {settings.threads} {'thread' if settings.threads == 1 else 'threads'}"),
        ("clock", settings.stopwatch.name),
        ("original", original),
    ]


def _uses_tf32() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def results_json(results: Sequence[SectionResult], settings: SpeedSettings, command: str) -> dict[str, Any]:
    """Everything as plain values for JSON."""
    return {
        "facts": {name: str(value) for name, value in facts(settings, command)},
        "python": platform.python_version(),
        "quick": settings.quick,
        "sections": [result.as_dict() for result in results],
        "growth": [curve.as_dict() for curve in growth_curves(results)],
    }


def results_markdown(results: Sequence[SectionResult], settings: SpeedSettings, command: str) -> str:
    """A page with a summary, and a table of all figures for each section."""
    lines = "\n".join(f"- {name}: {markdown_text(str(value))}" for name, value in facts(settings, command))
    parts = ["# Speed", lines, "## Summary", summary_table(results)]
    absent = [(result.name, reason) for result in results for reason in (result.refused, *result.skipped) if reason]
    if absent:
        parts += ["## Not measured", "\n".join(f"- {name}: {markdown_text(reason)}" for name, reason in absent)]
    for result in results:
        if result.measurements:
            parts.append(f"## {_heading(result.name)}")
            parts += growth_tables(growth_curves([result]))
            parts.append(_details(result.measurements))
            parts.append("\n".join(f"- {markdown_text(note)}" for note in result.notes))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def summary_table(results: Sequence[SectionResult]) -> str:
    """A row for each piece of work: the medians, and how far ahead this package is."""
    others = [name for name in _contenders(results) if name != OURS]
    rows = [["section", "work", OURS, *others]]
    for result in results:
        for measurement in result.measurements:
            if measurement.growth is None:  # those of a series have a table of their own
                cells = [_median(measurement, name) for name in [OURS, *others]]
                rows.append([result.name, measurement.work, *cells])
    return _table(rows, aligned_left=2)


def growth_tables(curves: Sequence[GrowthCurve]) -> list[str]:
    """A row for each piece of work that grows: cost at the smallest and the largest size, and exponents.

    After it, why these exponents are expected. No tables if nothing grows.
    """
    if not curves:
        return []
    rows = [["work", "what grows", "sizes", "time", "exponent", "memory", "exponent", "expected at most"]]
    reasons: dict[str, None] = {}
    for group in by_work(curves):
        cells = {curve.quantity: [_costs(curve), _exponent(curve)] for curve in group}
        expected = "time " + ", memory ".join(f"{curve.expected:g}" for curve in group)
        costs = [*cells.get(TIME, ["-", "-"]), *cells.get(MEMORY, ["-", "-"])]
        sizes = " · ".join(f"{size:,}" for size in group[0].sizes)
        rows.append([group[0].work, group[0].axis, sizes, *costs, expected])
        reasons.setdefault(f"{group[0].work}, {group[0].axis}: {growth_of(group[0].points[0]).reason}")
    return [_table(rows, aligned_left=3), "\n".join(f"- {markdown_text(reason)}" for reason in reasons)]


def _costs(curve: GrowthCurve) -> str:
    first, last = (_quantity_value(curve.quantity, curve.costs[place]) for place in (0, -1))
    return f"{first} to {last} {curve.quantity.unit}"


def _exponent(curve: GrowthCurve) -> str:
    if math.isnan(curve.exponent):
        return "-"
    return f"{curve.exponent:.2f}{' (more than expected)' if curve.exceeds else ''}"


def _contenders(results: Sequence[SectionResult]) -> list[str]:
    """All contenders, the original last."""
    measurements = [measurement for result in results for measurement in result.measurements]
    names = dict.fromkeys(name for measurement in measurements for name in measurement.samples)
    return sorted(names, key=lambda name: name == ORIGINAL)


def _median(measurement: Measurement, contender: str) -> str:
    """The median, with how far ahead this package is."""
    if contender not in measurement.samples:
        return "-"
    text = f"{_value(measurement, measurement.median(contender))} {measurement.quantity.unit}"
    ratio = None if contender == OURS else measurement.ratio(contender)
    return text if ratio is None else f"{text} ({ratio:.2f} x)"


def _heading(section: str) -> str:
    summary = SECTIONS[section].summary
    return summary[0].upper() + summary[1:]


def _details(measurements: Sequence[Measurement]) -> str:
    rows = [["work", "contender", "median", "least", "spread", "rounds", "ahead", "difference"]]
    for measurement in measurements:
        for name, values in measurement.samples.items():
            ratio = None if name == OURS else measurement.ratio(name)
            difference = measurement.differences.get(name)
            rows.append(
                [
                    measurement.work,
                    name,
                    f"{_value(measurement, measurement.median(name))} {measurement.quantity.unit}",
                    _value(measurement, measurement.minimum(name)),
                    f"{100 * measurement.spread(name):.0f} %",
                    str(len(values)),
                    "" if ratio is None else f"{ratio:.2f} x",
                    "" if difference is None else f"{difference:.1g}",
                ]
            )
    return _table(rows, aligned_left=2)


def _value(measurement: Measurement, value: float) -> str:
    return _quantity_value(measurement.quantity, value)


def _quantity_value(quantity: Quantity, value: float) -> str:
    """A value in the unit of its quantity, with three digits."""
    scaled = value * quantity.factor
    digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:,.{digits}f}"


def _table(rows: Sequence[Sequence[str]], aligned_left: int) -> str:
    rule = ["---"] * aligned_left + ["---:"] * (len(rows[0]) - aligned_left)
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
