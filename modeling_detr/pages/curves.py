"""Training curves that a reader can explore: hover for values, switch runs off, smooth, choose the axis."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from modeling_detr.errors_detr import printable


Numbers: TypeAlias = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class CurveTable:
    """Values that were logged together.

    Attributes:
        x: Name of each axis → the place of each row, ascending.
        y: Name of each value → a number per row, or None.
        smoothed: The names of the values that the reader can smooth.
    """

    x: Mapping[str, Sequence[float]]
    y: Mapping[str, Numbers]
    smoothed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """A chart of one or two values.

    Attributes:
        title: Its title.
        names: The values in it, the first drawn solid and the second dashed.
        folded: Whether it is below a heading that the reader has to open.
    """

    title: str
    names: Sequence[str]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Curves:
    """Panels with the curves of one or more runs.

    Attributes:
        panels: The panels.
        runs: Name of each run → its tables; a value is in one of them.
        axes: What the reader can choose to draw the curves over.
        axis: The one to begin with.
        smoothing: The smoothing to begin with, from 0 (none) to less than 1.
    """

    kind: ClassVar[str] = "curves"

    panels: Sequence[CurvePanel]
    runs: Mapping[str, Sequence[CurveTable]]
    axes: Sequence[str]
    axis: str
    smoothing: float = 0.0

    @property
    def data(self) -> str:
        """All of it as JSON, for `curves.js`."""
        return json.dumps(self.values(), separators=(",", ":"))

    def values(self) -> dict[str, object]:
        """All of it as plain values, with six digits per number."""
        return {
            "axes": list(self.axes),
            "axis": self.axis,
            "smoothing": self.smoothing,
            "panels": [
                {"title": printable(panel.title), "names": list(panel.names), "folded": panel.folded}
                for panel in self.panels
            ],
            "runs": [
                {"name": printable(name), "tables": [_plain_table(table) for table in tables]}
                for name, tables in self.runs.items()
            ],
        }


def _plain_table(table: CurveTable) -> dict[str, object]:
    return {
        "x": {axis: _shortened(places) for axis, places in table.x.items()},
        "y": {name: _shortened(numbers) for name, numbers in table.y.items()},
        "smoothed": list(table.smoothed),
    }


def _shortened(numbers: Numbers) -> list[float | int | None]:
    """Numbers with six digits, or more in integers."""
    return [
        number if number is None else int(number) if number == int(number) else float(f"{number:.6g}")
        for number in numbers
    ]
