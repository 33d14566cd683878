"""Clean the boxes of any format: clip them to their image, leave out those without area, and report both.

A annotations · N images. Boxes are corners in pixels (xyxy); sizes are `(height, width)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings, counted
from modeling_detr.structures_detr import AnnotationTable, MaskColumn


_NONE: Mapping[str, Any] = {}
EDGE_TOLERANCE = 0.01  # pixels; boxes written with a few decimals may end slightly beyond the edge


@dataclass
class AnnotationRows:
    """Annotations collected one row at a time, for readers of many small files.

    Attributes:
        image_index: Index of the image of each row.
        label: Dense label of each row.
        box: Four numbers for each row.
        place: Line or object number of each row in its file, for messages.
        attributes: Attributes of each row as written, see `formats.object_attributes`.
    """

    image_index: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    box: list[tuple[float, float, float, float]] = field(default_factory=list)
    place: list[int] = field(default_factory=list)
    attributes: list[Mapping[str, Any]] = field(default_factory=list)

    def append(
        self,
        image_index: int,
        label: int,
        box: tuple[float, float, float, float],
        place: int,
        attributes: Mapping[str, Any] = _NONE,
    ) -> None:
        """Add one object."""
        self.image_index.append(image_index)
        self.label.append(label)
        self.box.append(box)
        self.place.append(place)
        self.attributes.append(attributes)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """The boxes as an array (A, 4) float64."""
        return np.array(self.box, dtype=np.float64).reshape(-1, 4)


def to_number(text: str) -> float:
    """Parse a number, with a decimal point or a decimal comma.

    Raises:
        ValueError: The text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        if text.count(",") != 1 or text.endswith(",") or "." in text:
            raise
        return float(text.replace(",", "."))


@dataclass(frozen=True)
class _Reporter:
    """Reports faulty rows; see the arguments of `clean_annotations`."""

    boxes: NDArray[np.float64]
    describe: Callable[[int], str]
    findings: Findings

    def warn(
        self,
        rows: NDArray[np.bool_],
        kind: str,
        note: str,
        action: str,
        message: Callable[[int], str],
        first_detail: Callable[[int], str] = lambda _: "",
    ) -> None:
        """Warn about the marked rows, if any; the note names the first one."""
        if not rows.any():
            return
        first = int(np.argmax(rows))
        marked: list[int] = np.flatnonzero(rows).tolist()
        self.findings.warn(
            kind,
            f"{note}; the first: {self.describe(first)}, {self.box(first)}{first_detail(first)}.",
            action,
            ((self.describe(row), message(row)) for row in marked),
        )

    def leave_out(self, rows: NDArray[np.bool_], kind: str, singular: str, plural: str) -> None:
        """Warn that the marked boxes are left out; `singular` and `plural` say why ("has no area", "have no area")."""
        is_one = rows.sum() == 1
        note = f"{counted(int(rows.sum()), 'box', 'boxes')} {singular if is_one else plural} and "
        note += f"{'is' if is_one else 'are'} left out"
        self.warn(rows, kind, note, "the box is left out", lambda row: f"{self.box(row)} {singular}")

    def box(self, row: int) -> str:
        """Format the box of a row."""
        return f"box (x0, y0, x1, y1) = ({', '.join(f'{number:.6g}' for number in self.boxes[row])})"


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
    attributes: Mapping[str, NDArray[np.float64]] = _NONE,
) -> AnnotationTable:
    """Build an `AnnotationTable`, and report what was left out or changed.

    Args:
        image_index: (A,) index of each annotation's image, in any order.
        label: (A,) dense labels.
        boxes_xyxy: (A, 4) corners in pixels as written; may be inverted, non-finite or past the edge.
        image_sizes: (N, 2) height and width of every image.
        describe: Names a row in a message ("labels/a.txt, line 3").
        findings: Reports what was left out or changed.
        area: (A,) areas as written, NaN where missing; None: the areas of the boxes.
        is_crowd: (A,) True for crowd regions; None: there are none.
        masks: (A,) masks of the rows; None: there are none.
        attributes: Name → (A,) values, see `AnnotationTable`.

    Returns:
        The table, sorted by image; the rows of an image keep their order.
    """
    heights, widths = image_sizes.reshape(-1, 2)[image_index].T.astype(np.float64)
    limits = np.stack([widths, heights, widths, heights], axis=-1).reshape(-1, 4)
    report = _Reporter(boxes_xyxy, describe, findings)
    if is_crowd is None:
        is_crowd = np.zeros(len(label), np.bool_)

    boxes, keep = _clip_boxes(boxes_xyxy, limits, report)
    repeated = repeated_boxes(image_index, label, is_crowd, boxes, keep)
    report.warn(
        repeated,
        "duplicate",
        f"{counted(int(repeated.sum()), 'exact duplicate')} of another box with the same class, kept",
        "it is kept",
        lambda row: f"{report.box(row)} is an exact duplicate of an earlier box with the same class",
    )
    area = _complete_areas(area, boxes, keep, report)

    table = AnnotationTable(image_index, label, boxes, area, is_crowd, masks, attributes).take(keep)
    if (np.diff(table.image_index) < 0).any():
        table = table.take(np.argsort(table.image_index, kind="stable"))
    return table


def _clip_boxes(
    written: NDArray[np.float64], limits: NDArray[np.float64], report: _Reporter
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Clip boxes (A, 4) to their images; also return which (A,) of them have an area left.

    Args:
        written: (A, 4) corners as written.
        limits: (A, 4) width, height, width, height of each row's image.
        report: Reports what is left out or clipped.
    """
    finite = _every(np.isfinite(written))
    report.leave_out(~finite, "no box", "is missing or not finite", "are missing or not finite")
    with np.errstate(invalid="ignore"):
        has_area = _every(written[:, 2:] > written[:, :2])
    report.leave_out(
        finite & ~has_area, "zero area", "has zero area or inverted corners", "have zero area or inverted corners"
    )
    boxes = np.clip(np.where(np.isfinite(written), written, 0.0), 0.0, limits)
    inside = _every(boxes[:, 2:] > boxes[:, :2])
    report.leave_out(
        finite & has_area & ~inside,
        "outside",
        "is entirely outside the image",
        "are entirely outside their images",
    )

    keep = finite & has_area & inside
    excess = np.where(keep, np.abs(np.where(keep[:, None], written, boxes) - boxes).max(-1, initial=0.0), 0.0)
    clipped = excess > EDGE_TOLERANCE
    extend = "box extends" if clipped.sum() == 1 else "boxes extend"

    def image_size(row: int) -> str:
        return f"{int(limits[row, 0])}x{int(limits[row, 1])} (width x height)"

    report.warn(
        clipped,
        "past the edge",
        f"{int(clipped.sum()):,} {extend} past the edge of the image by up to {excess.max(initial=0.0):.4g} pixels, "
        f"clipped to the image",
        "the box is clipped to the image",
        lambda row: f"{report.box(row)} extends {excess[row]:.4g} pixels past the edge of the {image_size(row)} image",
        lambda row: f", image of {image_size(row)}",
    )
    return boxes, keep


def _complete_areas(
    area: NDArray[np.float64] | None, boxes: NDArray[np.float64], keep: NDArray[np.bool_], report: _Reporter
) -> NDArray[np.float64]:
    """Replace missing and invalid areas (A,) with the areas of the boxes."""
    box_area: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    if area is None:
        return box_area
    written, missing = area, np.isnan(area)
    wrong = keep & ~missing & ~((area >= 0) & np.isfinite(area))
    have = "has" if wrong.sum() == 1 else "have"
    report.warn(
        wrong,
        "area",
        f"{counted(int(wrong.sum()), 'annotation')} {have} a negative or non-finite area, replaced by the box's area",
        "the area of the box is used",
        lambda row: f"area {written[row]} is negative or not finite",
        lambda row: f", area {written[row]}",
    )
    return np.where(missing | wrong, box_area, area)


def repeated_boxes(
    image_index: NDArray[np.int64],
    label: NDArray[np.int64],
    is_crowd: NDArray[np.bool_],
    boxes: NDArray[np.float64],
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Mark the rows (A,) that exactly duplicate an earlier one: same image, class, crowd flag and box (A, 4).

    Only rows where `among` (A,) is True are compared; None: all rows.
    """
    if among is not None and not among.all():
        repeated = np.zeros(len(label), np.bool_)
        repeated[among] = repeated_boxes(image_index[among], label[among], is_crowd[among], boxes[among])
        return repeated
    kind = 2 * label + is_crowd
    columns = [image_index.view(np.uint64), kind.view(np.uint64), *(boxes + 0.0).T.copy().view(np.uint64)]
    hashes = np.zeros(len(label), np.uint64)
    for column in columns:  # sorting one hash per row takes a tenth of the time of sorting six columns
        hashes = (hashes ^ (hashes >> np.uint64(29)) ^ column) * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(hashes, kind="stable")
    rows = np.stack(columns, axis=-1)[order]
    repeated = np.zeros(len(order), np.bool_)
    repeated[order[1:]] = (rows[1:] == rows[:-1]).all(axis=-1)
    return repeated


def _every(rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = np.logical_and.reduce(rows, axis=-1)
    return result
