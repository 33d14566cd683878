"""Image files that several records have: one image that is in several splits, or records that were mixed up."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.findings import Findings
from modeling_detr.data.masks import CocoMasks, segmentations
from modeling_detr.structures_detr import DetectionIndex


def merge_shared_images(index: DetectionIndex, files: Mapping[str, Path], findings: Findings) -> DetectionIndex:
    """Merge records of different splits that have the same file, id, size and objects; report those that contradict.

    A file whose objects in one split are among those in another is no contradiction: lists of a subset, or of a test
    split, leave objects out. Such records stay apart, because each split has its own objects.

    Args:
        index: The dataset; each record belongs to one split.
        files: The annotation file of each split.
        findings: Reports two records of a split with the same file, and records of different splits that contradict
            each other: then one picture has probably overwritten another.
    """
    records_of: dict[str, list[int]] = {}
    for image, record in enumerate(index.images):
        records_of.setdefault(record.path, []).append(image)
    if len(records_of) == len(index):
        return index
    split_of = {image: name for name, members in index.splits.items() for image in members.tolist()}
    same_as = np.arange(len(index))
    for path, images in records_of.items():
        if path in findings.broken_images:
            continue
        for position, image in enumerate(images):
            others = images[:position]
            contradicting = next((other for other in others if _contradict(index, split_of, other, image)), None)
            if contradicting is not None:
                _report(index, split_of, files, contradicting, image, findings)
                break
            same_as[image] = next((other for other in others if _are_identical(index, other, image)), image)
    return _merge(index, same_as)


def _objects(index: DetectionIndex, image: int) -> set[tuple[float, ...]]:
    table, rows = index.annotations, index.annotation_rows(image)
    labels = table.label[rows].tolist()
    return {(label, *box) for label, box in zip(labels, table.boxes_xyxy[rows].round(1).tolist(), strict=True)}


def _contradict(index: DetectionIndex, split_of: Mapping[int, str], one: int, other: int) -> bool:
    first, second = index.images[one], index.images[other]
    if split_of[one] == split_of[other] or (first.height, first.width) != (second.height, second.width):
        return True
    objects, others = _objects(index, one), _objects(index, other)
    return not (objects <= others or others <= objects)


def _are_identical(index: DetectionIndex, one: int, other: int) -> bool:
    table, masks = index.annotations, index.annotations.masks
    rows, others = index.annotation_rows(one), index.annotation_rows(other)
    columns = (table.label, table.boxes_xyxy, table.is_crowd, *table.attributes.values())
    if index.images[one] != index.images[other] or not all(
        np.array_equal(column[rows], column[others], equal_nan=column.dtype.kind == "f") for column in columns
    ):
        return False
    if masks is None:
        return True
    if not all(isinstance(source, CocoMasks) for source in masks.sources):  # decoding them would take too long
        return False
    size = index.images[one].height, index.images[one].width
    return segmentations(masks[rows], *size) == segmentations(masks[others], *size)


def _report(
    index: DetectionIndex,
    split_of: Mapping[int, str],
    files: Mapping[str, Path],
    one: int,
    other: int,
    findings: Findings,
) -> None:
    first, second = index.images[one], index.images[other]
    file = files[split_of[other]]
    if split_of[one] == split_of[other]:
        message = f"the images {first.id!r} and {second.id!r} are the same file, {second.path}"
    else:
        message = f"its image {second.id!r} and the image {first.id!r} in {files[split_of[one]]} are the same file, "
        message += f"{second.path}, with other objects"
    remedy = "correct the file name of one, whose picture may have been overwritten, or merge the two entries"
    findings.error("one file for several images", file, message, remedy, image=second.path)


def _merge(index: DetectionIndex, same_as: NDArray[np.int64]) -> DetectionIndex:
    """Replace each image by the one that it is the same as."""
    kept = same_as == np.arange(len(same_as))
    if kept.all():
        return index
    new_index = (np.cumsum(kept) - 1)[same_as]
    table = index.annotations.take(kept[index.annotations.image_index])
    return replace(
        index,
        images=tuple(record for record, keep in zip(index.images, kept, strict=True) if keep),
        annotations=replace(table, image_index=new_index[table.image_index]),
        splits={name: np.unique(new_index[members]) for name, members in index.splits.items()},
    )
