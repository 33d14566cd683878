"""Predictions as a dataset in any format that can be written: labels to correct in an annotation tool."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.convert import Conversion, convert_dataset
from modeling_detr.data.findings import Findings
from modeling_detr.data.masks import read_segmentations
from modeling_detr.errors_detr import OutputExistsError
from modeling_detr.evaluation.metrics import unique_names
from modeling_detr.output_errors import check_folder
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import Entry
from modeling_detr.structures_detr import UNSPLIT, AnnotationTable, Category, DetectionIndex, ImageRecord


def check_target(folder: Path, results: Path) -> None:
    """Checks that the dataset can be written as a new folder, which the results are not in.

    Raises:
        OutputExistsError: It exists, or contains the results.
        OutputError: It cannot be written.
    """
    if os.path.lexists(folder):
        raise OutputExistsError(folder, "already exists", "choose another folder or remove it")
    if results.resolve().is_relative_to(folder.resolve()):
        raise OutputExistsError(folder, "is the folder of the results, or contains it", "choose another folder")
    check_folder(folder)


def write_as_dataset(
    entries: Iterator[Entry], images: Sequence[InputImage], class_names: Sequence[str], target: Path, to: str
) -> Conversion:
    """Writes the images with what was predicted, as `detr data convert` writes a dataset.

    Scores and masks are written where the format can hold them.

    Args:
        entries: The entries of the run's images that could be read, in their order.
        images: The images.
        class_names: The model's classes.
        target: The new folder.
        to: A format that `convert_dataset` writes.

    Raises:
        OutputExistsError: `target` exists.
        OutputError: `target` cannot be written.
        DatasetError: The format cannot be written.
    """
    image_of = {image.source: image for image in images}
    records: list[ImageRecord] = []
    numbers: list[NDArray[np.float64]] = []  # of each image: its objects' image, label, score and box
    segmentations: list[dict[str, Any]] = []
    for entry in entries:
        detections = entry["detections"]
        rows = [[len(records), one["label"], one["score"], *one["box_xyxy"]] for one in detections]
        numbers.append(np.array(rows, np.float64).reshape(-1, 7))
        segmentations += [{"segmentation": one["segmentation"]} for one in detections if "segmentation" in one]
        records.append(_record(image_of[entry["image"]], entry, len(records) + 1))
    found = np.concatenate(numbers) if numbers else np.empty((0, 7))
    of_image, labels = found[:, :2].astype(np.int64).T
    scores, boxes = found[:, 2], found[:, 3:]
    sizes = np.array([(record.height, record.width) for record in records], np.int64).reshape(-1, 2)[of_image]
    boxes = np.clip(boxes, 0, sizes[:, [1, 0, 1, 0]])
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(-1)
    kept = np.flatnonzero(has_area)
    masks = None
    if segmentations:
        of_kept = [segmentations[row] for row in kept.tolist()]
        masks, _ = read_segmentations(of_kept, sizes[kept], lambda row: f"object {row}", Findings(), optional=True)
    table = AnnotationTable(
        of_image[kept],
        labels[kept],
        boxes[kept],
        (boxes[:, 2:] - boxes[:, :2]).prod(-1)[kept],
        np.zeros(len(kept), np.bool_),
        masks,
        {"score": scores[kept]},
    )
    categories = tuple(Category(label, name) for label, name in enumerate(unique_names(class_names), start=1))
    splits = {UNSPLIT: np.arange(len(records))}
    return convert_dataset(DetectionIndex("predictions", tuple(records), categories, table, splits), target, to)


def _record(image: InputImage, entry: Entry, number: int) -> ImageRecord:
    if image.record is not None:
        return replace(image.record, id=number, number=None)
    return ImageRecord(number, image.source, entry["height"], entry["width"], image.opener)
