"""The objects that a teacher predicts in an image, on their way from the dataset to the loss.

In a sample they are further rows beside the annotated objects, so that every transform moves, clips and drops them in
the same way; `teacher_scores` tells them apart. In the labels of a batch they have fields of their own.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from modeling_detr.structures_detr import AnnotationTable, DetectionLabels, DetectionTarget


ANNOTATED = 0.0  # the score of a row that is an annotated object; those of a teacher are higher


def objects_of(teacher: AnnotationTable, image_index: int) -> AnnotationTable:
    """Select the objects of a teacher in an image."""
    start, stop = np.searchsorted(teacher.image_index, [image_index, image_index + 1])
    return teacher.take(slice(int(start), int(stop)))


def add_teacher_objects(target: DetectionTarget, objects: AnnotationTable) -> DetectionTarget:
    """Append the objects of a teacher to the rows of a target; their masks are empty.

    Args:
        target: The annotated objects of an image.
        objects: Those of the teacher, with the attribute `score` above 0.
    """
    count = len(objects)
    boxes = torch.from_numpy(objects.boxes_xyxy.astype(np.float32))
    scores = torch.from_numpy(objects.attributes["score"].astype(np.float32))
    joined: dict[str, Any] = {
        **target,
        "boxes": tv_tensors.wrap(torch.cat([target["boxes"].as_subclass(Tensor), boxes]), like=target["boxes"]),
        "class_labels": torch.cat([target["class_labels"], torch.from_numpy(objects.label)]),
        "area": torch.cat([target["area"], torch.from_numpy(objects.area.astype(np.float32))]),
        "teacher_scores": torch.cat([torch.full((len(target["class_labels"]),), ANNOTATED), scores]),
    }
    if "masks" in target:
        masks = target["masks"].as_subclass(Tensor)
        joined["masks"] = tv_tensors.Mask(torch.cat([masks, masks.new_zeros(count, *masks.shape[1:])]))
    return cast(DetectionTarget, joined)


def separate_teacher_objects(labels: DetectionLabels, scores: Tensor) -> DetectionLabels:
    """Move the rows of a teacher to `teacher_labels`, `teacher_boxes` and `teacher_scores`.

    Args:
        labels: All objects of an image.
        scores: (N,) `teacher_scores` of its rows.
    """
    of_teacher = scores > ANNOTATED
    separated = cast(DetectionLabels, {**labels})
    for name in ("class_labels", "boxes", "area", "masks"):
        if name in labels:
            separated[name] = labels[name][~of_teacher]
    separated["teacher_labels"] = labels["class_labels"][of_teacher]
    separated["teacher_boxes"] = labels["boxes"][of_teacher]
    separated["teacher_scores"] = scores[of_teacher]
    return separated
