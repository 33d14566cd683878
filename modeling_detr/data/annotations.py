"""What every reader does with the boxes it found: clip them, leave out those without area, and say so.

A annotations · N images. Boxes are corners in pixels (xyxy); sizes are `(height, width)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings
from modeling_detr.structures_detr import AnnotationTable, MaskColumn


# Boxes written with a few decimals end a hair beyond the edge; only more than this is worth a note.
EDGE_TOLERANCE = 0.01  # pixels


@dataclass
class AnnotationRows:
    """Annotations as a reader of many small files collects them, one row at a time.

    Attributes:
        image_index: Position of the image of each row.
        label: Dense label, or whatever the reader turns into one later.
        box: Four numbers a row.
        place: Where in its file the row stood (a line number, the number of the object), for messages.
    """

    image_index: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    box: list[tuple[float, float, float, float]] = field(default_factory=list)
    place: list[int] = field(default_factory=list)

    def append(self, image_index: int, label: int, box: tuple[float, float, float, float], place: int) -> None:
        """Adds one object."""
        self.image_index.append(image_index)
        self.label.append(label)
        self.box.append(box)
        self.place.append(place)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The boxes as an array (A, 4) float64."""
        return np.array(self.box, dtype=np.float64).reshape(-1, 4)


def to_number(text: str) -> float:
    """The number that a text writes, also with a decimal comma.

    Raises:
        ValueError: It is none.
    """
    try:
        return float(text)
    except ValueError:
        if text.count(",") != 1 or text.endswith(",") or "." in text:
            raise
        return float(text.replace(",", "."))


def clean_annotations(
    *,
    image_index: NDArray[np.int64],
    label: NDArray[np.int64],
    boxes_xyxy: NDArray[np.float64],
    image_sizes: NDArray[np.int64],
    describe: Callable[[int], str],
    findings: Findings,
    area: NDArray[np.float64] | None = None,
    is_crowd: NDArray[np.bool_] | None = None,
    masks: MaskColumn | None = None,
) -> AnnotationTable:
    """Turns what a file says into an `AnnotationTable`, and tells what was left out or changed.

    Args:
        image_index: (A,) position of each annotation's image, in any order.
        label: (A,) dense labels.
        boxes_xyxy: (A, 4) corners in pixels as written; may be inverted, non-finite or past the edge.
        image_sizes: (N, 2) height and width of every image.
        describe: Names the row of that number in a message ("labels/a.txt: line 3").
        findings: Takes what was left out or changed.
        area: (A,) the file's own areas; not a number where it gives none. None: the boxes' areas.
        is_crowd: (A,) which rows are crowd regions. None: no row is.
        masks: (A,) the masks of the rows. None: there are none.

    Returns:
        The table, ordered by image (the file's order within an image).
    """
    heights, widths = image_sizes.reshape(-1, 2)[image_index].T.astype(np.float64)
    limits = np.stack([widths, heights, widths, heights], axis=-1).reshape(-1, 4)

    def leave_out(rows: NDArray[np.bool_], kind: str, what: str) -> None:
        if rows.any():
            first = int(np.argmax(rows))
            findings.warn(
                kind,
                f"{_count(rows, what)} left out; the first: {describe(first)}, {_box(boxes_xyxy[first])}.",
                "the box is left out",
                ((describe(row), f"{_box(boxes_xyxy[row])} is {what}") for row in _numbers(rows)),
            )

    finite = _every(np.isfinite(boxes_xyxy))
    leave_out(~finite, "no box", "with numbers that are not finite or without a box at all")
    with np.errstate(invalid="ignore"):
        has_area = _every(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2])
    leave_out(finite & ~has_area, "zero area", "of zero area or with corners the wrong way round")
    boxes = np.clip(np.where(np.isfinite(boxes_xyxy), boxes_xyxy, 0.0), 0.0, limits)
    inside = _every(boxes[:, 2:] > boxes[:, :2])
    leave_out(finite & has_area & ~inside, "outside", "wholly outside the image")

    keep = finite & has_area & inside
    excess = np.where(keep, np.abs(np.where(keep[:, None], boxes_xyxy, boxes) - boxes).max(-1, initial=0.0), 0.0)
    clipped = excess > EDGE_TOLERANCE
    if clipped.any():
        first = int(np.argmax(clipped))
        findings.warn(
            "past the edge",
            f"{_count(clipped, f'past the edge of the image, by up to {excess.max():.4g} pixels,')} clipped to it; "
            f"the first: {describe(first)}, {_box(boxes_xyxy[first])}, image of {int(widths[first])}x"
            f"{int(heights[first])} (width x height).",
            "the box is clipped to the image",
            (
                (
                    describe(row),
                    f"{_box(boxes_xyxy[row])} ends {excess[row]:.4g} pixels past the edge of the image of "
                    f"{int(widths[row])}x{int(heights[row])} (width x height)",
                )
                for row in _numbers(clipped)
            ),
        )

    twice = keep & _repeated(image_index, label, boxes_xyxy)
    if twice.any():
        first = int(np.argmax(twice))
        findings.warn(
            "duplicate",
            f"{int(twice.sum())} boxes stand in their image once more, with class and all; they are kept; the first: "
            f"{describe(first)}, {_box(boxes_xyxy[first])}.",
            "it is kept",
            (
                (describe(row), f"{_box(boxes_xyxy[row])} stands there before, with the same class")
                for row in _numbers(twice)
            ),
        )

    own_area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    if area is None:
        area = own_area
    else:
        absent, wrong = np.isnan(area), keep & ~np.isnan(area) & ~((area >= 0) & np.isfinite(area))
        if wrong.any():
            first = int(np.argmax(wrong))
            are = "has" if wrong.sum() == 1 else "have"
            written = area
            findings.warn(
                "area",
                f"{int(wrong.sum())} of the annotations {are} an area that is negative or not finite, the box's is "
                f"taken; the first: {describe(first)}, area {area[first]}.",
                "the area of the box is taken",
                ((describe(row), f"has the area {written[row]}") for row in _numbers(wrong)),
            )
        area = np.where(absent | wrong, own_area, area)
    if is_crowd is None:
        is_crowd = np.zeros(len(label), np.bool_)

    table = AnnotationTable(image_index, label, boxes, area, is_crowd, masks).take(keep)
    if (np.diff(table.image_index) < 0).any():
        table = table.take(np.argsort(table.image_index, kind="stable"))
    return table


def _repeated(
    image_index: NDArray[np.int64], label: NDArray[np.int64], boxes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which rows are exactly like one before them."""
    columns = [image_index.view(np.uint64), label.view(np.uint64), *(boxes + 0.0).T.copy().view(np.uint64)]
    mixed = np.zeros(len(label), np.uint64)
    for column in columns:  # sorting one number a row takes a tenth of sorting six columns
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ column) * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(mixed, kind="stable")
    rows = np.stack(columns, axis=-1)[order]
    same = np.zeros(len(order), np.bool_)
    same[order[1:]] = (rows[1:] == rows[:-1]).all(axis=-1)
    return same


def _every(rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.logical_and.reduce(rows, axis=-1)
    return result


def _count(rows: NDArray[np.bool_], what: str) -> str:
    number = int(rows.sum())
    return f"{number} box {what} is" if number == 1 else f"{number} boxes {what} are"


def _box(box: NDArray[np.float64]) -> str:
    return f"box (x0, y0, x1, y1) = ({', '.join(f'{number:.6g}' for number in box)})"


def _numbers(rows: NDArray[np.bool_]) -> list[int]:
    found: list[int] = np.flatnonzero(rows).tolist()
    return found
