"""The blocks that pages consist of, and the page itself."""

import base64
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.errors_detr import printable
from modeling_detr.pages.bars import Bars
from modeling_detr.pages.chart import Chart
from modeling_detr.pages.curves import Curves


_NUMBER = re.compile(r"[-+]?\d{1,3}(,\d{3})*(\.\d+)?%?|[-+]?\d{1,15}(\.\d+)?%?", re.ASCII)
_SCRIPTS = {"heat": "heat.js", "curves": "curves.js"}  # kinds of blocks that need a script of their own
_LONGEST_TEXT = 100  # characters of a text in a table, unless the column is for long texts


class Code(str):
    """A text that is shown in a typewriter font, such as a command."""


Fact: TypeAlias = tuple[str, object]
"""A line at the head of a page: what, and its value."""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a reader can sort by any column.

    Attributes:
        header: Names of the columns.
        rows: The cells: text, integers, or floats (shown with three decimals, NaN as a dash).
        wraps: Whether long texts are shown whole, on several lines, instead of shortened.
    """

    kind: ClassVar[str] = "table"

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    wraps: bool = False

    @property
    def is_numeric(self) -> list[bool]:
        """Whether each column holds numbers only."""
        return [
            bool(self.rows) and all(_number(row[column]) is not None for row in self.rows)
            for column in range(len(self.header))
        ]

    @property
    def is_sortable(self) -> bool:
        """Whether sorting has a point."""
        return len(self.rows) > 2

    def cell(self, value: object) -> tuple[str, str | None]:
        """The text of a cell, and the number to sort it by: empty for NaN, None for text."""
        number, text = _number(value), str(value)
        if number is None:
            is_long = len(text) > _LONGEST_TEXT and not self.wraps
            return (f"{text[: _LONGEST_TEXT - 1]}…" if is_long else text), None
        if math.isnan(number):
            return "-", ""
        if isinstance(value, float):
            text = f"{value:.3f}"
        elif isinstance(value, int):
            text = f"{value:,}"
        return text, repr(number)


def _number(value: object) -> float | None:
    """A number, also one that is text already, such as `+0.1234` and `50%`; None for other texts."""
    if isinstance(value, int | float):
        return float(value)
    text = str(value)
    return float(text.rstrip("%").replace(",", "")) if _NUMBER.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its caption.

    Attributes:
        source: The picture as a `data:` address.
        caption: The text below it, and in its place for those who cannot see it.
        width: Its width in pixels.
        height: Its height in pixels.
        tags: What a reader can choose pictures by: a question, such as "class" → the answers for this picture.
    """

    source: str
    caption: str
    width: int
    height: int
    tags: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        picture: Image.Image,
        caption: str,
        longest_side: int = 640,
        *,
        lossless: bool = False,
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> "Figure":
        """Embeds a picture.

        Args:
            picture: The picture.
            caption: See `Figure`.
            longest_side: A larger picture is reduced to this.
            lossless: Whether to keep every pixel, as lines and text need.
            tags: See `Figure`.
        """
        scale = min(1.0, longest_side / max(picture.size))
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.convert("RGB")
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=72, lossless=lossless)
        return cls(f"data:image/webp;base64,{_base64(buffer.getvalue())}", caption, *size, tags or {})

    @property
    def tags_json(self) -> str:
        """The tags for the page's script."""
        return json.dumps({printable(name): [*map(printable, values)] for name, values in self.tags.items()})


@dataclass(frozen=True, slots=True)
class Figures:
    """Pictures in rows; each can be enlarged.

    Attributes:
        figures: The pictures.
        size: `small`: four in a row of a wide window, `wide`: two, `plot`: one, with dark lines on white.
    """

    kind: ClassVar[str] = "figures"

    figures: Sequence[Figure]
    size: Literal["small", "wide", "plot"] = "small"


@dataclass(frozen=True, slots=True)
class HeatObject:
    """An object of a picture whose maps a reader can choose.

    Attributes:
        title: Its name.
        box: xyxy as shares of the picture's width and height.
        blocks: What is shown while it is chosen.
    """

    title: str
    box: tuple[float, float, float, float]
    blocks: Sequence["Block"] = ()


@dataclass(frozen=True, slots=True)
class Heat:
    """A picture with maps of objects, or of its points.

    Attributes:
        figure: The picture.
        image_size: (height, width) of the image, in whose pixels the page names points.
        maps: (objects, layers, h, w) uint8. Without `objects`: (h · w, layers, h, w), those of each cell.
        layers: Names of the maps of an object or a point.
        extent: (height, width) of the image in cells; the grid may cover more.
        objects: The objects, the first of which is shown; empty: the reader chooses a point.
        start_point: The point that is shown first, (y, x) in cells.
        start_layer: The layer that is shown first.
    """

    kind: ClassVar[str] = "heat"

    figure: Figure
    image_size: tuple[int, int]
    maps: NDArray[np.uint8]
    layers: Sequence[str]
    extent: tuple[float, float]
    objects: Sequence[HeatObject] = ()
    start_point: tuple[float, float] = (0.0, 0.0)
    start_layer: int = 0

    @property
    def data(self) -> Markup:
        """The maps, compressed, as Base64."""
        return _base64(zlib.compress(self.maps.tobytes(), 9))

    @property
    def colours(self) -> Markup:
        """256 colours, RGB as Base64: those of `visualization.draw_heat`."""
        return _inferno()


@dataclass(frozen=True, slots=True)
class Live:
    """A place that the script of a live page fills.

    Attributes:
        name: By which the script finds it.
    """

    kind: ClassVar[str] = "live"

    name: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what belongs to it.

    Attributes:
        title: The heading.
        blocks: What is below it.
        folded: Whether only the heading is shown until the reader opens it.
        note: A remark beside the heading.
    """

    kind: ClassVar[str] = "section"

    title: str
    blocks: Sequence["Block"]
    folded: bool = False
    note: str = ""


Block: TypeAlias = Text | Table | Figures | Chart | Curves | Bars | Heat | Live | Section


@dataclass(frozen=True, slots=True)
class Page:
    """A web page.

    Attributes:
        title: Its title and first heading.
        sections: What it shows.
        highlights: The few numbers that matter most: text of the number, and its name.
        facts: What the page is about: model, data, date, command; see `provenance`.
        summary: A sentence below the heading.
        live_script: The script of a live page, which may fetch data and pictures from the server of the page; empty:
            the page is complete.
    """

    title: str
    sections: Sequence[Section]
    highlights: Sequence[tuple[str, str]] = ()
    facts: Sequence[Fact] = ()
    summary: str = ""
    live_script: str = ""

    def to_html(self) -> str:
        """The page as one HTML file. Its policy lets only the scripts of this package run, and nothing load.

        A live page may load from its own server.
        """
        kinds = set[str]().union(*map(_kinds, self.sections))
        style, scripts = _file("page.css"), [_file("page.js")]
        scripts += [_file("elements.js")] if self.live_script or "curves" in kinds else []
        scripts += [_file(script) for kind, script in _SCRIPTS.items() if kind in kinds]
        scripts += [self.live_script] if self.live_script else []
        sources = "connect-src 'self'; img-src 'self' data:" if self.live_script else "img-src data:"
        policy = (
            f"default-src 'none'; {sources}; style-src {_hash(style)}; "
            f"script-src {' '.join(map(_hash, scripts))}; base-uri 'none'; form-action 'none'"
        )
        return _template().render(page=self, policy=policy, style=Markup(style), scripts=list(map(Markup, scripts)))


def _kinds(block: Block) -> set[str]:
    """The kinds of a block and of those in it."""
    inner = block.blocks if isinstance(block, Section) else ()
    return {block.kind}.union(*map(_kinds, inner))


@cache
def _template() -> Template:
    """The template of all pages; texts of data are escaped twice, as `printable` and as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
    )
    environment.tests["code"] = lambda value: isinstance(value, Code)
    return environment.get_template("page.html")


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


@cache
def _inferno() -> Markup:
    import matplotlib as mpl

    table = mpl.colormaps["inferno"](np.arange(256))[:, :3]
    return _base64((255 * table).round().astype(np.uint8).tobytes())


def _base64(data: bytes) -> Markup:
    return Markup(base64.b64encode(data).decode("ascii"))  # letters, digits, +, / and = need no escapes
