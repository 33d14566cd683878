"""Decide whether boxes were drawn on the upright image or on the image as stored, before its EXIF orientation.

Browsers show photos of phones upright, and so do most annotation tools; but some write the size of the stored image
beside boxes of the upright one. The size alone then says the wrong thing.

N images · A annotations. Sizes are `(height, width)`; boxes are corners in pixels (xyxy).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import EDGE_TOLERANCE
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.image_headers import header_sizes, is_turned
from modeling_detr.errors_detr import DetrError
from modeling_detr.structures_detr import ImageRecord


_MAX_EXAMINED = 1_000  # images of which the header is read in a large dataset; all if one of them is turned
_MAX_CHECKED = 20_000  # the same in `detr data check`


@dataclass(frozen=True)
class _Evidence:
    """How many boxes fit into only one of the two: proof of where they were drawn."""

    stored: int
    upright: int

    @property
    def choice(self) -> str:
        return "upright" if self.upright > self.stored else "stored"

    def __str__(self) -> str:
        if not self.stored and not self.upright:
            return "as the size says; all boxes fit both"
        only = {name: count for name, count in (("upright", self.upright), ("stored", self.stored)) if count}
        return " and ".join(
            f"{counted(count, 'box', 'boxes')} {'fits' if count == 1 else 'fit'} only the {name} image"
            for name, count in only.items()
        )


def orient(
    records: Sequence[ImageRecord],
    image_index: NDArray[np.int64],
    boxes_xyxy: NDArray[np.float64],
    boxes: str | None,
    place: str | Path,
    findings: Findings,
) -> list[ImageRecord]:
    """Return the records with the sizes and the orientation that their boxes refer to.

    Args:
        records: N images with the sizes that the dataset gives.
        image_index: (A,) image of each box.
        boxes_xyxy: (A, 4) boxes as written.
        boxes: `upright` or `stored`, as the user asks; None: of images whose size is that of the stored image, decided
            by the boxes that fit only one of the two.
        place: File or dataset, for messages.
        findings: Gets a warning for each image whose size is that of the stored image although EXIF turns it.
    """
    records = list(records)
    usable = [image for image, record in enumerate(records) if record.path not in findings.broken_images]
    if boxes == "stored":
        for image in usable:
            stored = _stored_size(records[image])
            if stored is not None:
                records[image] = replace(records[image], height=stored[0], width=stored[1], ignores_exif=True)
        return records
    examined = usable if boxes else _examined(records, usable, image_index, boxes_xyxy, findings)
    turned = _turned(records, examined)
    if turned and len(examined) < len(usable):
        turned = _turned(records, usable)
    if not turned:
        return records
    evidence = _evidence(records, turned, image_index, boxes_xyxy)
    choice = boxes or evidence.choice
    why = "as requested by boxes" if boxes else str(evidence)
    if choice == "upright":
        for image in turned:
            records[image] = replace(records[image], height=records[image].width, width=records[image].height)
    if boxes is None:
        _warn(records, turned, choice, why, place, findings)
    return records


def _warn(
    records: Sequence[ImageRecord],
    turned: Sequence[int],
    choice: str,
    why: str,
    place: str | Path,
    findings: Findings,
) -> None:
    other = "stored" if choice == "upright" else "upright"
    have = "image has" if len(turned) == 1 else "images have"
    findings.warn(
        "EXIF orientation",
        f"{place}: {counted(len(turned), have, have)} the size of the stored image, though EXIF turns it; boxes "
        f"are taken as drawn on the {choice} image ({why}); if that is wrong, set boxes to {other}; the first: "
        f"{records[turned[0]].path}.",
        f"boxes are taken as drawn on the {choice} image ({why}); if that is wrong, change it",
        (
            (records[image].path, "is annotated with the size of the stored image, though EXIF turns it")
            for image in turned
        ),
        {"boxes": other},
    )


def _examined(
    records: Sequence[ImageRecord],
    usable: Sequence[int],
    image_index: NDArray[np.int64],
    boxes_xyxy: NDArray[np.float64],
    findings: Findings,
) -> Sequence[int]:
    """Choose images to look at from the usable ones: those with boxes past their edge, and others evenly."""
    limit = _MAX_CHECKED if findings.collects else _MAX_EXAMINED
    if len(usable) <= limit:
        return usable
    past = np.unique(image_index[~_fit(boxes_xyxy, _sizes(records)[image_index])])[:limit]
    spread = np.array(usable)[np.linspace(0, len(usable) - 1, limit).astype(np.int64)]
    examined: list[int] = np.intersect1d(np.concatenate([past, spread]), usable).tolist()
    return examined


def _turned(records: Sequence[ImageRecord], images: Sequence[int]) -> list[int]:
    """Select the images with another size upright than stored whose record has that of the stored one."""
    turned = []
    for image in images:
        record = records[image]
        if record.height == record.width:
            continue
        try:
            upright, stored = header_sizes(record.path, record.reader)
        except DetrError:  # reported when the image is read
            continue
        if upright != stored and (record.height, record.width) == stored:
            turned.append(image)
    return turned


def _stored_size(record: ImageRecord) -> tuple[int, int] | None:
    """Return the size of the stored image if EXIF turns or mirrors it and the record has one of its sizes."""
    try:
        upright, stored = header_sizes(record.path, record.reader)
        if (record.height, record.width) in (upright, stored) and is_turned(record.path, record.reader):
            return stored
    except DetrError:  # reported when the image is read
        pass
    return None


def _evidence(
    records: Sequence[ImageRecord],
    turned: Sequence[int],
    image_index: NDArray[np.int64],
    boxes_xyxy: NDArray[np.float64],
) -> _Evidence:
    is_turned = np.zeros(len(records), np.bool_)
    is_turned[turned] = True
    rows = is_turned[image_index]
    stored = _sizes(records)[image_index[rows]]
    fits_stored, fits_upright = _fit(boxes_xyxy[rows], stored), _fit(boxes_xyxy[rows], stored[:, ::-1])
    return _Evidence(int((fits_stored & ~fits_upright).sum()), int((fits_upright & ~fits_stored).sum()))


def _sizes(records: Sequence[ImageRecord]) -> NDArray[np.int64]:
    return np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)


def _fit(boxes_xyxy: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether boxes (A, 4) end inside images of `sizes` (A, 2), but for rounding; NaN counts as inside."""
    slack = 1.0 + EDGE_TOLERANCE
    past: NDArray[np.bool_] = np.logical_or.reduce(boxes_xyxy[:, 2:] > sizes[:, ::-1] + slack, axis=-1)
    return ~past
