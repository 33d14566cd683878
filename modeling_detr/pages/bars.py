"""Horizontal bars with a remark each, drawn as SVG so that they have the colours of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


_WIDTH = 240  # of the longest bar, in the SVG's units


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar.

    Attributes:
        name: What it shows.
        value: Its length; NaN and negative values have none.
        text: The value as shown.
        note: A sentence beside it.
    """

    name: str
    value: float
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars below each other, the longest as wide as there is room.

    Attributes:
        title: What the bars are, for those who cannot see them.
        bars: The bars.
    """

    kind: ClassVar[str] = "bars"

    title: str
    bars: Sequence[Bar]

    @property
    def width(self) -> int:
        """Width of the SVG of each bar."""
        return _WIDTH

    def length(self, bar: Bar) -> float:
        """Length of a bar in its SVG."""
        longest = max((one.value for one in self.bars if not math.isnan(one.value)), default=0.0)
        if math.isnan(bar.value) or longest <= 0:
            return 0.0
        return round(_WIDTH * max(0.0, bar.value) / longest, 1)
