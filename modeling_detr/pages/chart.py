"""Lines in a chart, drawn as SVG so that they are sharp and have the colours of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


_LEFT, _TOP, _WIDTH, _HEIGHT = 34, 8, 276, 150  # the area of the lines, of 320 x 196


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows.
        values: From left to right at equal distances, at least two, each from 0 to 1.
        quiet: Whether it is only there for comparison: thin and grey.
    """

    name: str
    values: Sequence[float]
    quiet: bool = False

    @property
    def points(self) -> str:
        """Its points in the SVG."""
        step = _WIDTH / (len(self.values) - 1)
        return " ".join(
            f"{_LEFT + step * index:.1f},{_TOP + _HEIGHT * (1 - value):.1f}" for index, value in enumerate(self.values)
        )


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over the range from 0 to 1, and their legend; up to four have colours of their own.

    Attributes:
        title: What it shows.
        x_label: What the lines run over.
        lines: The lines. Those of the same name have one entry in the legend.
    """

    kind: ClassVar[str] = "chart"

    title: str
    x_label: str
    lines: Sequence[Line]

    @property
    def legend(self) -> dict[str, str]:
        """Name of each line → its class in the style sheet."""
        loud = dict.fromkeys(line.name for line in self.lines if not line.quiet)
        return {line.name: "quiet" for line in self.lines if line.quiet} | {
            name: f"line-{number % 4}" for number, name in enumerate(loud)
        }

    @property
    def grid(self) -> list[tuple[float, str]]:
        """Height of each horizontal line in the SVG, and its text."""
        return [(_TOP + _HEIGHT * (1 - value), f"{value:g}") for value in (0, 0.5, 1)]
