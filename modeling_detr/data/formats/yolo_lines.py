"""What the lines of YOLO label files are, decided for a dataset as a whole: boxes, with or without more, or polygons.

    class cx cy w h                                 a box
    class cx cy w h [confidence] [track id]         what trackers and detectors write
    class cx cy w h x y [visible] x y [visible] …   a box and keypoints
    class x y x y x y … [confidence] [track id]     a polygon, or the four corners of a rotated box

A line by itself may be several of these: seven numbers are a triangle, or a box with confidence and track id. All
lines together hardly ever are. Boxes should be relative to the image; some tools write pixels.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.dataset_format import ReadingOption
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.hf_boxes import misfits
from modeling_detr.data.masks import polygon_masks
from modeling_detr.structures_detr import MaskColumn


POLYGONS = "polygons"
LINES_OPTION = ReadingOption(
    "lines",
    "what YOLO's label lines of more than five numbers are: boxes, followed by numbers that are not used, or "
    "polygons, which become their enclosing boxes; detected by default",
    str,
    ("boxes", POLYGONS),
)

_SLACK = 0.02  # of the image, past its edge, or of a box, past its side
_PIXELS = 1.5  # larger numbers are not relative to the image
_SMALL = 0.25  # of the image, a polygon; centre and size of a box are hardly ever that close to each other
_MOST = 0.9  # of the lines that must agree
_LONG = np.dtype(
    [
        ("row", "f8"),
        ("count", "f8"),  # numbers after the class
        ("outer", "f8", 4),  # box around all points
        ("inner", "f8", 4),  # box around all points but the last
        ("before_last", "f8"),
        ("last", "f8"),
        ("is_parallelogram", "f8"),  # the first four points
        ("has_visibility", "f8"),  # every third number after the box is 0, 1 or 2
    ]
)


@dataclass(frozen=True)
class Reading:
    """How lines are read.

    Attributes:
        shape: What the lines of more than five numbers are.
        text: What all lines are, in words.
        trailing: Numbers at the end of a polygon of an even number of numbers that are not points, 0 or 2.
        takes_odd: Whether a polygon of an odd number of numbers has one at its end that is not a coordinate.
        doubt: What the lines may be instead; None: they are certain.
        score: Which of their last two numbers is a confidence; None: neither.
    """

    shape: Literal["boxes", "polygons"]
    text: str
    trailing: int = 0
    takes_odd: bool = False
    doubt: str | None = None
    score: Literal["last", "before_last"] | None = None


class Lines:
    """The lines of more than five numbers: a few numbers of each, however many points it has.

    Args:
        outlines: Whether to keep all points, for masks.
    """

    def __init__(self, outlines: bool = False) -> None:
        self._numbers = array("d")
        self._outlines = array("d") if outlines else None  # of each line, the number of its numbers, and they

    def append(self, row: int, written: Sequence[float], width: float, height: float) -> None:
        """Add a line.

        Args:
            row: Its row among all lines.
            written: Its numbers after the class.
            width: What x is divided by to make it relative to the image.
            height: What y is divided by.
        """
        count = len(written)
        if self._outlines is not None:
            self._outlines.append(count)
            self._outlines.extend(written)
        xs, ys = [x / width for x in written[: count // 2 * 2 : 2]], [y / height for y in written[1::2]]
        outer = min(xs), min(ys), max(xs), max(ys)
        inner = min(xs[:-1]), min(ys[:-1]), max(xs[:-1]), max(ys[:-1])
        self._numbers.extend(
            [
                row,
                count,
                *outer,
                *inner,
                written[-2],
                written[-1],
                count in (8, 9, 10) and _is_parallelogram(xs, ys),
                (count - 4) % 3 == 0 and {0.0, 1.0, 2.0}.issuperset(written[6::3]),
            ]
        )

    def may_be_boxes(self, count: int, has_keypoints: bool, chosen: str | None) -> NDArray[np.bool_]:
        """Whether each of `count` lines may begin with a box, by whose numbers a convention is recognised.

        Args:
            count: Number of all lines.
            has_keypoints: See `decide`.
            chosen: See `decide`.
        """
        lines = self._table()
        may_be = np.ones(count, np.bool_)
        if not has_keypoints and chosen != "boxes":
            longer = lines if chosen == POLYGONS else lines[lines["count"] > 6]
            may_be[longer["row"].astype(int)] = False
        return may_be

    def decide(self, boxes: NDArray[np.float64], has_keypoints: bool, chosen: str | None) -> Reading:
        """Decide what the lines are.

        Args:
            boxes: (A, 4) the first four numbers of all lines as boxes, corners relative to the image.
            has_keypoints: Whether the description says that keypoints follow the boxes.
            chosen: The user's choice, `boxes` or `polygons`; None: detected.
        """
        lines = self._table()
        if not len(lines):
            return Reading("boxes", "boxes")
        short = len(lines) < len(boxes)
        if has_keypoints:
            return Reading("boxes", "boxes + keypoints")
        if chosen is None and lines["count"].max() <= 6:
            detected = _boxes_with_numbers(lines, _inside(boxes[lines["row"].astype(int)]))
            if detected is not None:
                return detected
        if chosen == "boxes":
            return Reading("boxes", "boxes + further numbers")
        if chosen is None:
            detected = _boxes_with_keypoints(lines, _inside(boxes[lines["row"].astype(int)]))
            if detected is not None:
                return detected
        return _polygons(lines, with_boxes=short)

    def enclose(self, boxes_xyxy: NDArray[np.float64], reading: Reading) -> dict[int, int]:
        """Replace the boxes (A, 4) of polygons by their enclosing ones.

        Returns:
            The rows that are no polygons, with the number of numbers of their lines.
        """
        lines = self._table()
        if reading.shape == "boxes" or not len(lines):
            return {}
        rows, is_even = lines["row"].astype(int), lines["count"] % 2 == 0
        trimmed = is_even & (reading.trailing == 2)
        boxes_xyxy[rows] = np.where(trimmed[:, None], lines["inner"], lines["outer"])
        invalid = (lines["count"] - 2 * trimmed < 6) | ~(is_even | reading.takes_odd)
        counts = lines["count"].astype(int) + 1  # with the class
        return dict(zip(rows[invalid].tolist(), counts[invalid].tolist(), strict=True))

    def scores(self, count: int, reading: Reading) -> NDArray[np.float64] | None:
        """The confidence of each of `count` lines, NaN where it has none; None: no line has one."""
        lines = self._table()
        if reading.score is None:
            return None
        scores = np.full(count, np.nan)
        has_both = lines["count"] == 6 if reading.shape == "boxes" else lines["count"] % 2 == 0
        before = has_both & (reading.score == "before_last")
        scores[lines["row"].astype(int)] = np.where(before, lines["before_last"], lines["last"])
        return scores

    def masks(self, sizes: NDArray[np.int64], is_relative: bool, reading: Reading) -> MaskColumn:
        """The masks of all lines, of which only polygons have one.

        Args:
            sizes: (A, 2) height and width of each line's image.
            is_relative: Whether points are relative to the image.
            reading: What the lines are.
        """
        lines = self._table()
        if reading.shape == "boxes" or not len(lines) or self._outlines is None:
            return MaskColumn((), np.full(len(sizes), -1, np.int64), np.zeros(len(sizes), np.int64))
        numbers = np.array(self._outlines)
        counts, rows = lines["count"].astype(np.int64), lines["row"].astype(np.int64)
        starts = np.cumsum(counts + 1) - counts - 1
        points = counts - np.where(counts % 2 == 1, 1, reading.trailing)
        numbers[starts] = points
        if is_relative:
            place = np.arange(len(numbers)) - np.repeat(starts, counts + 1)
            height, width = np.repeat(sizes[rows], counts + 1, axis=0).T
            numbers *= np.where(place == 0, 1, np.where(place % 2 == 1, width, height))
        return polygon_masks(numbers, np.stack([starts, starts + 1 + points], axis=-1), sizes[rows]).spread(
            rows, len(sizes)
        )

    def _table(self) -> NDArray[np.void]:
        return np.frombuffer(self._numbers, dtype=_LONG) if self._numbers else np.zeros(0, _LONG)


def _boxes_with_numbers(lines: NDArray[np.void], inside: NDArray[np.bool_]) -> Reading | None:
    """Recognise boxes with a confidence, a track id or both; None: not these."""
    six = lines["count"] == 6
    confidence = np.where(six, lines["before_last"], lines["last"])
    if six.any():
        ids = lines["last"][six]
        if not _are_whole(ids) or not _are_unit(confidence):
            return None
        if ids.max() <= 1 and not inside.all():
            return None  # triangles that end at the edge
        return Reading("boxes", "boxes + confidence + track id", score="before_last")
    if _are_unit(confidence):
        return Reading("boxes", "boxes + confidence", score="last")
    if _are_whole(confidence):
        return Reading("boxes", "boxes + track id")
    return Reading("boxes", "boxes + a number", doubt="boxes with an angle, a confidence or a track id")


def _boxes_with_keypoints(lines: NDArray[np.void], inside: NDArray[np.bool_]) -> Reading | None:
    """Recognise boxes with keypoints, which have the same number on every line; None: these are polygons."""
    if len(np.unique(lines["count"])) > 1 or inside.mean() < _MOST:
        return None
    if lines["has_visibility"].all():
        return Reading("boxes", "boxes + keypoints")
    extent = lines["outer"][:, 2:] - lines["outer"][:, :2]
    if lines["is_parallelogram"].mean() >= _MOST or (len(lines) >= 3 and extent.max() < _SMALL):
        return None
    return Reading("boxes", "boxes + keypoints", doubt="boxes with keypoints, or polygons")


def _polygons(lines: NDArray[np.void], with_boxes: bool) -> Reading:
    text = "polygons"
    if (lines["count"] // 2 == 4).all() or ((lines["count"] == 10) & (lines["is_parallelogram"] == 1)).all():
        text = "corners of rotated boxes" if lines["is_parallelogram"].mean() >= _MOST else text
    text = f"boxes and {text}" if with_boxes else text
    odd, even = lines["last"][lines["count"] % 2 == 1], lines["last"][lines["count"] % 2 == 0]
    if len(odd) == len(lines) and _are_unit(odd):
        return Reading("polygons", f"{text} + confidence", takes_odd=True, score="last")
    if len(odd) and _are_whole(odd):
        return Reading("polygons", f"{text} + track id", takes_odd=True)
    confidence = lines["before_last"][lines["count"] % 2 == 0]
    if len(even) and _are_whole(even) and even.max() > 1 and _are_unit(confidence):
        return Reading("polygons", f"{text} + confidence + track id", trailing=2, score="before_last")
    return Reading("polygons", text)


def _inside(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes (A, 4), corners relative to the image, are inside it and have an area."""
    start, end = corners[:, :2], corners[:, 2:]
    inside: NDArray[np.bool_] = np.logical_and.reduce(
        (end > start) & (start >= -_SLACK) & (end <= 1 + _SLACK), axis=-1
    )
    return inside


def _are_whole(numbers: NDArray[np.float64]) -> bool:
    return bool(((numbers >= 0) & (numbers == np.floor(numbers))).all())


def _are_unit(numbers: NDArray[np.float64]) -> bool:
    return bool(((numbers >= 0) & (numbers <= 1)).all())


def _is_parallelogram(xs: Sequence[float], ys: Sequence[float]) -> bool:
    """Whether the first four points are a parallelogram, which a rotated box remains in relative numbers."""
    off = [(abs(a - b + c - d), max(a, b, c, d) - min(a, b, c, d)) for a, b, c, d in (xs[:4], ys[:4])]
    return all(error <= 0.02 * extent + 1e-5 for error, extent in off)


def report_reading(source: Path, reading: Reading, findings: Findings, *, with_masks: bool = False) -> None:
    """Say what the lines are, or that they may be something else; `with_masks`: their polygons are used."""
    if reading.doubt is not None:
        findings.error(
            "lines",
            source,
            f"its label lines may be {reading.doubt}",
            "look at one and say what they are: boxes, followed by numbers that are not used, or polygons",
            {"lines": reading.shape},
        )
    findings.facts.append(f"lines: {reading.text}")
    if reading.text != "boxes" and not (with_masks and reading.shape == "polygons"):
        findings.notes.append(
            f"{source}: label lines are {reading.text}; only boxes are used. If that is wrong, set lines."
        )


# Conventions of boxes


def check_convention(
    source: Path,
    written: NDArray[np.float64],
    sizes: NDArray[np.int64],
    kind: str,
    may_be_boxes: NDArray[np.bool_],
    findings: Findings,
) -> tuple[NDArray[np.float64], str]:
    """Report boxes that are in pixels, or corners, where they should be centre and size relative to the image.

    Args:
        source: The dataset's description, for messages.
        written: (A, 4) the boxes.
        sizes: (A, 2) height and width of each one's image.
        kind: Convention of the boxes, as in `BoxFormat` without its suffix.
        may_be_boxes: (A,) which of them are boxes; the others are parts of polygons.
        findings: Reports them.

    Returns:
        The boxes relative to the image, and their convention, after what the report suggests.
    """
    if not len(written):
        return written, kind
    largest = written.max(axis=-1)
    in_pixels = np.count_nonzero(largest > _PIXELS) > len(written) / 2
    limits = sizes[:, ::-1].astype(np.float64) if in_pixels else np.ones((len(written), 2))
    areas = np.full(len(written), np.nan)
    count = int(may_be_boxes.sum())
    wrong = {
        name: misfits(written[may_be_boxes], limits[may_be_boxes], areas[may_be_boxes], name)
        for name in (kind, "xyxy", "xywh")
    }
    best = min(wrong, key=wrong.__getitem__)
    if not in_pixels and (wrong[kind] <= count / 3 or best == kind or wrong[best] > (1 - _MOST) * count):
        return written, kind
    suggested = best if in_pixels else f"{best}_normalized"
    found = f"in pixels (the largest number is {largest.max():.6g})" if in_pixels else f"{best}, not centre and size"
    findings.error(
        "pixels" if in_pixels else "corners",
        source,
        f"the boxes in the label files look like they are {found}; expected centre x, centre y, width, height, "
        f"relative to the image",
        f"if so, read them as {suggested}",
        {"box_format": suggested},
    )
    return (written / np.tile(limits, 2) if in_pixels else written), best
