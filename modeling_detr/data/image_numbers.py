"""Ids of images in COCO files and in saved predictions, for datasets whose own ids are not valid there.

They are given when the dataset is opened, so that its conversion to COCO agrees with predictions for a split.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modeling_detr.structures_detr import ImageRecord


def have_coco_ids(records: Sequence[ImageRecord], splits: Iterable[NDArray[np.int64]]) -> bool:
    """Whether all images have integer ids that are unique within each split."""
    ids = [record.coco_id for record in records]
    if not all(isinstance(image_id, int) for image_id in ids):
        return False
    return all(len({ids[image] for image in members.tolist()}) == len(members) for members in splits)


def number_images(
    records: Sequence[ImageRecord], splits: Iterable[NDArray[np.int64]], *, always: bool = False
) -> tuple[ImageRecord, ...]:
    """Number the images from 1, unless they have integer ids that are unique within each split.

    Args:
        records: All images of a dataset.
        splits: Indices in `records` of each split's images.
        always: Number them in any case.
    """
    if not always and have_coco_ids(records, splits):
        return tuple(records)
    return tuple(replace(record, number=number) for number, record in enumerate(records, start=1))
