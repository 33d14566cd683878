"""Detect the box convention of a table of `datasets`, which usually does not state it, and convert boxes to corners.

There are six conventions: `xywh`, `xyxy` and `cxcywh` in pixels, and with the suffix `_normalized` relative to the
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings


# Names of a box's four numbers → their convention.
NAMED_BOXES: dict[tuple[str, ...], str] = {
    ("x", "y", "width", "height"): "xywh",
    ("x", "y", "w", "h"): "xywh",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("x0", "y0", "x1", "y1"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
}
_NORMALIZED_LIMIT = 1.5  # boxes relative to the image end at 1, or slightly past it


@dataclass(frozen=True, eq=False)
class BoxSample:
    """A sample of the boxes of a dataset, for detecting their convention.

    Attributes:
        boxes: (N, 4) as written.
        limits: (N, 2) width and height of each one's image.
        areas: (N,) areas in the table, NaN where missing.
    """

    boxes: NDArray[np.float64]
    limits: NDArray[np.float64]
    areas: NDArray[np.float64]

    @classmethod
    def concatenate(cls, samples: Sequence["BoxSample"]) -> "BoxSample":
        """Concatenate `samples`."""
        return cls(
            np.concatenate([sample.boxes for sample in samples]),
            np.concatenate([sample.limits for sample in samples]),
            np.concatenate([sample.areas for sample in samples]),
        )

    def finite(self) -> "BoxSample":
        """Select the boxes with finite coordinates."""
        rows = np.isfinite(self.boxes).all(axis=-1)
        return BoxSample(self.boxes[rows], self.limits[rows], self.areas[rows])


class _Fit(NamedTuple):
    convention: str
    misfits: int


def detect_convention(path: str | Path, sample: BoxSample, named: str | None, findings: Findings) -> str:
    """Detect the convention of all boxes: by the names of their numbers, else the one that fits most of them.

    Args:
        path: The dataset, for messages.
        sample: Some of its boxes.
        named: Convention according to the names of a box's numbers, which do not show whether they are normalised.
        findings: Gets a note on the detected convention, or a warning if it is uncertain.
    """
    sample = sample.finite()
    normalized = _are_normalized(sample.boxes)
    suffix = "_normalized" if normalized else ""
    if named is not None:
        return named + suffix
    limits = np.ones_like(sample.limits) if normalized else sample.limits
    fits = [_Fit(name, misfits(sample.boxes, limits, sample.areas, name)) for name in ("xywh", "xyxy", "cxcywh")]
    fits.sort(key=lambda fit: fit.misfits)  # stable: ties go to the first, COCO's
    best, *others = fits
    alike = [fit.convention for fit in others if fit.misfits == best.misfits]
    evidence = ", ".join(f"{fit.misfits} of {len(sample.boxes)} do not fit {fit.convention}" for fit in fits)
    if alike:
        evidence += f"; {' and '.join(alike)} would fit equally well"
    other = f"{'xyxy' if best.convention != 'xyxy' else 'xywh'}{suffix}"
    note = (
        f"{path}: boxes detected as {best.convention}, {'relative to the image' if normalized else 'in pixels'} "
        f"({evidence}); if this is wrong, set box_format, for example box_format='{other}'."
    )
    if alike or best.misfits > len(sample.boxes) / 100:
        action = f"they are read as {best.convention}{suffix}; set box_format to change this"
        findings.warn("box format", note, action, [(path, f"the convention of its boxes is uncertain ({evidence})")])
    else:
        findings.notes.append(note)
    return best.convention + suffix


def to_corners(boxes: NDArray[np.float64], sizes: NDArray[np.int64], convention: str) -> NDArray[np.float64]:
    """Convert boxes to corners in pixels.

    Args:
        boxes: (A, 4) as written.
        sizes: (A, 2) height and width of each one's image.
        convention: One of `BoxFormat`.
    """
    kind, _, normalized = convention.partition("_")
    if normalized:
        boxes = boxes * sizes[:, [1, 0, 1, 0]]
    start, end = _start_and_end(boxes, kind)
    return np.concatenate([start, end], axis=-1)


def _start_and_end(boxes: NDArray[np.float64], kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = boxes[:, :2], boxes[:, 2:]
    if kind == "xywh":
        return first, first + second
    if kind == "cxcywh":
        return first - second / 2, first + second / 2
    return first, second


def _are_normalized(boxes: NDArray[np.float64]) -> bool:
    """Whether boxes are relative to the image; integers are taken as pixels."""
    if not len(boxes) or float(np.quantile(boxes, 0.99)) > _NORMALIZED_LIMIT:
        return False
    return not bool((boxes == np.floor(boxes)).all())


def misfits(boxes: NDArray[np.float64], limits: NDArray[np.float64], areas: NDArray[np.float64], kind: str) -> int:
    """Count the boxes that would have no area, extend past the edge, or be smaller than their area in the table.

    That area may be the box's or the mask's.
    """
    start, end = _start_and_end(boxes, kind)
    slack = 0.01 * limits.max(axis=-1, keepdims=True)
    wrong = (end <= start).any(axis=-1) | (start < -slack).any(axis=-1) | (end > limits + slack).any(axis=-1)
    if (limits > 1).all():
        box_area = (end - start).prod(axis=-1)
        wrong |= np.isfinite(areas) & (areas > 1) & (box_area < 0.9 * areas)
    return int(wrong.sum())
