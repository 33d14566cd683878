"""Decide whether boxes were drawn on the upright image or on the image as stored, before its EXIF orientation.

Browsers show photos of phones upright, and so do most annotation tools; but some write the size of the stored image
beside boxes of the upright one. The size alone then says the wrong thing.

N images · A annotations. Sizes are `(height, width)`; boxes are corners in pixels (xyxy).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import EDGE_TOLERANCE
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.image_headers import may_be_turned, stored_size
from modeling_detr.data.remote.placeholders import reader_of
from modeling_detr.errors_detr import DetrError, StoreError
from modeling_detr.structures_detr import ImageRecord


_MAX_EXAMINED = 10_000  # images of which the header is read in a large dataset; all if one of them is turned
_MAX_CHECKED = 500_000  # the same in `detr data check`
_MAX_REMOTE = 64  # the same of images that are not on this machine


@dataclass(frozen=True)
class _Evidence:
    """What says where boxes were drawn.

    Attributes:
        stored: How many boxes fit only the stored images: proof.
        upright: How many fit only the upright ones.
        have_stored_size: Whether images have the size of the stored one; the rest does not show it.
    """

    stored: int
    upright: int
    have_stored_size: bool

    @property
    def choice(self) -> str:
        if self.upright != self.stored:
            return "upright" if self.upright > self.stored else "stored"
        return "stored" if self.have_stored_size else "upright"

    def __str__(self) -> str:
        if not self.stored and not self.upright:
            return f"{'as the size says' if self.have_stored_size else 'the default'}; no box shows which"
        only = {name: count for name, count in (("upright", self.upright), ("stored", self.stored)) if count}
        return " and ".join(
            f"{counted(count, 'box', 'boxes')} {'fits' if count == 1 else 'fit'} only the {name} image"
            for name, count in only.items()
        )


@dataclass(frozen=True)
class _Turned:
    """An image that EXIF turns or mirrors, and whose size does not say whether it was annotated as turned.

    Attributes:
        stored: Height and width of the stored image.
        upright: Height and width of the upright one.
        has_stored_size: Whether the dataset gives the size of the stored one, which differs.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    has_stored_size: bool

    def as_drawn_on(self, choice: str, record: ImageRecord) -> ImageRecord:
        height, width = self.stored if choice == "stored" else self.upright
        return replace(record, height=height, width=width, ignores_exif=choice == "stored")


def orient(
    records: Sequence[ImageRecord],
    image_index: NDArray[np.int64],
    boxes_xyxy: NDArray[np.float64],
    boxes: str | None,
    place: str | Path,
    findings: Findings,
    measured: Collection[int] = (),
) -> list[ImageRecord]:
    """Return the records with the sizes and the orientation that their boxes refer to.

    Args:
        records: N images with the sizes that the dataset gives.
        image_index: (A,) image of each box.
        boxes_xyxy: (A, 4) boxes as written. Boxes relative to the image say nothing: leave them out.
        boxes: `upright` or `stored`, as the user asks; None: decided by the boxes that fit only one of the two, by the
            sizes, or else `upright`.
        place: File or dataset, for messages.
        findings: Gets a warning for each image that EXIF turns or mirrors, unless its size shows that it was annotated
            upright.
        measured: Images of which the dataset gives no size: it is that of the upright file, and shows nothing.
    """
    records = list(records)
    usable = [image for image, record in enumerate(records) if record.path not in findings.broken_images]
    examined = usable if boxes else _examined(records, usable, image_index, boxes_xyxy, findings)
    turned = _turned(records, examined, measured, boxes is not None)
    if turned and len(examined) < len(usable):  # look at all
        turned = _turned(records, usable, measured, boxes is not None)
    if not turned:
        if len(examined) < len(usable):
            fact = f"{place}: EXIF turns none of the {len(examined):,} of {len(usable):,} images that were examined."
            (findings.facts if findings.collects else findings.notes).append(fact)
        return records
    evidence = _evidence(turned, image_index, boxes_xyxy)
    choice = boxes or evidence.choice
    for image, sizes in turned.items():
        records[image] = sizes.as_drawn_on(choice, records[image])
    if boxes is None:
        _warn(records, turned, choice, evidence, place, findings)
    return records


def _warn(
    records: Sequence[ImageRecord],
    turned: Mapping[int, _Turned],
    choice: str,
    evidence: _Evidence,
    place: str | Path,
    findings: Findings,
) -> None:
    other = "stored" if choice == "upright" else "upright"
    action = f"boxes are taken as drawn on the {choice} image ({evidence}); if that is wrong,"
    if evidence.have_stored_size:
        count, fact = (
            sum(sizes.has_stored_size for sizes in turned.values()),
            "the size of the stored image, though EXIF turns it",
        )
        what = f"{counted(count, 'image has', 'images have')} {fact}"
    else:
        what = f"{counted(len(turned), 'image is', 'images are')} turned or mirrored by EXIF, which no size shows"
    first = records[next(iter(turned))].path
    findings.warn(
        "EXIF orientation",
        f"{place}: {what}; {action} set boxes to {other}; the first: {first}.",
        f"{action} change it",
        (
            (
                records[image].path,
                "is annotated with the size of the stored image, though EXIF turns it"
                if sizes.has_stored_size
                else "is turned or mirrored by EXIF, which its size does not show",
            )
            for image, sizes in turned.items()
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
    if not findings.collects and records and reader_of(records[0].path) is not None:
        limit = _MAX_REMOTE
    if len(usable) <= limit:
        return usable
    past = np.unique(image_index[~_fit(boxes_xyxy, _sizes(records)[image_index])])[:limit]
    spread = np.array(usable)[np.linspace(0, len(usable) - 1, limit).astype(np.int64)]
    examined: list[int] = np.intersect1d(np.concatenate([past, spread]), usable).tolist()
    return examined


def _turned(
    records: Sequence[ImageRecord], images: Sequence[int], measured: Collection[int], any_size: bool
) -> dict[int, _Turned]:
    """Select the images that EXIF turns or mirrors; without `any_size`, those whose size does not show that they were
    annotated upright."""
    turned = {}
    for image in images:
        record = records[image]
        try:
            if not may_be_turned(record.path, record.reader):
                continue
            stored, orientation = stored_size(record.path, record.reader)
        except StoreError:  # every other image would take as long
            raise
        except DetrError:  # reported when the image is read
            continue
        written = record.height, record.width
        upright = stored[::-1] if orientation >= 5 else stored
        if orientation == 1 or written not in (stored, upright):
            continue
        if any_size or written == stored or image in measured:
            has_stored_size = stored != upright and image not in measured
            turned[image] = _Turned(stored, upright, has_stored_size)
    return turned


def _evidence(
    turned: Mapping[int, _Turned], image_index: NDArray[np.int64], boxes_xyxy: NDArray[np.float64]
) -> _Evidence:
    rows = np.flatnonzero(np.isin(image_index, list(turned)))
    stored = np.array([turned[image].stored for image in image_index[rows].tolist()]).reshape(-1, 2)
    upright = np.array([turned[image].upright for image in image_index[rows].tolist()]).reshape(-1, 2)
    fits_stored, fits_upright = _fit(boxes_xyxy[rows], stored), _fit(boxes_xyxy[rows], upright)
    return _Evidence(
        int((fits_stored & ~fits_upright).sum()),
        int((fits_upright & ~fits_stored).sum()),
        any(sizes.has_stored_size for sizes in turned.values()),
    )


def _sizes(records: Sequence[ImageRecord]) -> NDArray[np.int64]:
    return np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)


def _fit(boxes_xyxy: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether boxes (A, 4) end inside images of `sizes` (A, 2), but for rounding; NaN counts as inside."""
    slack = 1.0 + EDGE_TOLERANCE
    past: NDArray[np.bool_] = np.logical_or.reduce(boxes_xyxy[:, 2:] > sizes[:, ::-1] + slack, axis=-1)
    return ~past
