"""The teacher of a run: what another detector predicts in the training images, as boxes with scores.

It is a file in COCO's results format, or a model, which predicts before training; see `aids.teacher` for the loss.
K boxes of the teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torchvision.ops import box_iou

from modeling_detr.data.coco_results import match_images, read_results
from modeling_detr.data.findings import counted, first_items
from modeling_detr.data.teacher_objects import objects_of
from modeling_detr.errors_detr import PredictionError
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex
from modeling_detr.training.distributed import in_main_process
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.teacher_predictions import TeacherPredictions, predictions_of


_MAX_COMPARED = 2000  # images in which the teacher is compared with the annotations
_MIN_COMPARED = 20  # annotated boxes, below which a comparison says little
_UNLIKELY = 0.1  # of the annotated boxes found; a teacher that finds fewer has probably other ids
_IOU = 0.5
_TINY = 1e-6  # a box with a score of 0 would be taken for an annotated one


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a teacher predicts in the training images.

    Attributes:
        objects: Its boxes with the attribute `score`, in (0, 1]; labels and image indices are those of the dataset.
        notes: Sentences for the plan.
    """

    objects: AnnotationTable
    notes: tuple[str, ...]


class _Rows(NamedTuple):
    """Predictions before they are checked.

    Attributes:
        image_index: (K,) index of the image; -1: the dataset has no such image.
        label: (K,) the dataset's label; -1: the dataset has no such class.
        boxes_xyxy: (K, 4) corners in pixels.
        scores: (K,).
        image_name: The image of a row as the file names it, for messages.
        class_name: The class of a row as the file or the model names it, for messages.
        remedy: What to do if no row can be used.
    """

    image_index: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    image_name: Callable[[int], str]
    class_name: Callable[[int], str]
    remedy: str


def load_teacher(
    recipe: Recipe,
    index: DetectionIndex,
    num_queries: int,
    accelerator: Accelerator,
    *,
    resumes: bool,
    worker_init_fn: Callable[[int], None] | None = None,
) -> Teacher | None:
    """Read or predict the boxes of the recipe's teacher; None if it has none. All processes call it together.

    Args:
        recipe: The recipe.
        index: The training images.
        num_queries: Q, the most boxes of an image that the model can learn.
        accelerator: The accelerator of the run.
        resumes: Whether the run has started before, so that its predictions are kept even if the model has changed.
        worker_init_fn: Called in each loader process with its index.

    Raises:
        PredictionError: The file has another format, or none of the boxes can be used.
        ValueError: The model cannot be loaded.
        OSError: The file or model does not exist or cannot be read.
    """
    if recipe.teacher is None:
        return None
    predictions = None
    if not is_results_file(recipe.teacher):
        predictions = predictions_of(recipe, index, accelerator, resumes=resumes, worker_init_fn=worker_init_fn)
    teacher = None
    with in_main_process(accelerator) as is_main:
        if is_main:
            if predictions is None:
                rows, notes = _of_results(recipe.teacher, index)
            else:
                rows, notes = _of_model(predictions, index)
            teacher = _checked(recipe, rows, notes, index, num_queries)
    return broadcast_object_list([teacher])[0] if accelerator.num_processes > 1 else teacher


def is_results_file(teacher: str) -> bool:
    """Whether a teacher is a file of predictions; everything else is a model."""
    return Path(teacher).suffix.lower() == ".json"


def _of_results(path: str, index: DetectionIndex) -> tuple[_Rows, list[str]]:
    """Read a results file; its categories are those of the dataset, by id."""
    results = read_results(path)
    label_of = {category.id: label for label, category in enumerate(index.categories)}
    ids, inverse = np.unique(results.category_ids, return_inverse=True)
    labels = np.array([label_of.get(category_id, -1) for category_id in ids.tolist()], np.int64)[inverse]
    rows = _Rows(
        image_index=match_images(results, index),
        label=labels,
        boxes_xyxy=results.boxes_xyxy,
        scores=results.scores,
        image_name=lambda row: str(results.image_ids[row]),
        class_name=lambda row: str(results.category_ids[row]),
        remedy=(
            f"expected predictions for the images of {index.name} with its category ids "
            f"({first_items([category.id for category in index.categories], 5)})"
        ),
    )
    notes = ["only the boxes of its predictions are used, not the masks"] if results.have_masks else []
    return rows, notes


def _of_model(predictions: TeacherPredictions, index: DetectionIndex) -> tuple[_Rows, list[str]]:
    """Match the classes of a model with those of the dataset by name."""
    label_of: dict[str, int] = {}
    for label, category in enumerate(index.categories):
        label_of.setdefault(category.name, label)
    labels = np.array([label_of.get(name, -1) for name in predictions.class_names], np.int64)
    annotated = dict.fromkeys(index.categories[label].name for label in np.unique(index.annotations.label).tolist())
    missing = [name for name in annotated if name not in predictions.class_names]
    notes = [f"it does not know the classes {first_items(missing, 5)}"] if missing else []
    rows = _Rows(
        image_index=predictions.image_index,
        label=labels[predictions.label],
        boxes_xyxy=predictions.boxes_xyxy.astype(np.float64),
        scores=predictions.scores.astype(np.float64),
        image_name=str,
        class_name=lambda row: predictions.class_names[predictions.label[row]],
        remedy="use a model that was trained longer or on more similar images, or lower teacher_min_score",
    )
    return rows, notes


def _checked(recipe: Recipe, rows: _Rows, notes: Sequence[str], index: DetectionIndex, num_queries: int) -> Teacher:
    """Drop the rows that cannot be used; an error if none is left."""
    where = str(recipe.teacher)
    _check_scores(where, rows.scores)
    sizes = index.image_sizes[:, ::-1].astype(np.float64)  # width and height
    limits = np.tile(sizes[rows.image_index], 2)  # of any image where there is none
    with np.errstate(invalid="ignore"):
        boxes = np.clip(rows.boxes_xyxy, 0, limits)
        is_low = ~(rows.scores >= max(recipe.teacher_min_score, _TINY))
    finite = np.isfinite(rows.boxes_xyxy).all(1) & ~np.isnan(rows.scores)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    reasons = (  # in this order: a row counts for the first that applies
        (~finite, "have NaN or infinite values", None),
        (is_low, f"have a score of 0, or below teacher_min_score {recipe.teacher_min_score:g}", None),
        (rows.image_index < 0, "are of images that are not trained on", rows.image_name),
        (rows.label < 0, "are of classes that the dataset does not have", rows.class_name),
        (~has_area, "have no area in their image", None),
    )
    used = np.ones(len(rows.scores), np.bool_)
    dropped = []
    for is_wrong, reason, name in reasons:
        wrong = np.flatnonzero(used & is_wrong)
        used &= ~is_wrong
        if len(wrong):
            names = {} if name is None else dict.fromkeys(name(row) for row in wrong[:1000].tolist())
            such_as = f" ({first_items([*names], 3)})" if names else ""
            dropped.append(f"{len(wrong):,} {reason}{such_as}")
    if not used.any():
        raise PredictionError(
            where,
            f"none of its {counted(len(used), 'prediction')} can be used{': ' if dropped else ''}{'; '.join(dropped)}",
            rows.remedy,
        )
    chosen = _best_of_each_image(np.flatnonzero(used), rows, num_queries)
    if surplus := int(used.sum()) - len(chosen):
        dropped.append(
            f"{surplus:,} are more than the {num_queries} best of their image, as many as there are queries"
        )
    sides = boxes[chosen, 2:] - boxes[chosen, :2]
    objects = AnnotationTable(
        image_index=rows.image_index[chosen],
        label=rows.label[chosen],
        boxes_xyxy=boxes[chosen],
        area=sides.prod(1),
        is_crowd=np.zeros(len(chosen), np.bool_),
        attributes={"score": np.minimum(rows.scores[chosen], 1.0)},
    )
    sentences = [_summary(objects, index), *_agreement(objects, index), *_beyond_edges(rows, limits, used), *notes]
    if dropped:
        sentences.append(f"dropped predictions: {'; '.join(dropped)}")
    return Teacher(objects, tuple(f"teacher {where}: {sentence}" for sentence in sentences))


def _check_scores(where: str, scores: NDArray[np.float64]) -> None:
    wrong = np.flatnonzero((scores < 0) | (scores > 1 + 1e-3))
    if len(wrong):
        raise PredictionError(
            where,
            f"{counted(len(wrong), 'score')} outside 0 to 1, first {scores[wrong[0]]:g} in row {wrong[0] + 1:,}",
            "write scores as probabilities",
        )


def _best_of_each_image(chosen: NDArray[np.int64], rows: _Rows, most: int) -> NDArray[np.int64]:
    """Return the rows with the highest scores of each image, at most `most`, ordered by image."""
    order = chosen[np.lexsort((-rows.scores[chosen], rows.image_index[chosen]))]
    images = rows.image_index[order]
    rank = np.arange(len(images)) - np.searchsorted(images, images)
    return order[rank < most]


def _summary(objects: AnnotationTable, index: DetectionIndex) -> str:
    num_images = len(np.unique(objects.image_index))
    return (
        f"{counted(len(objects), 'box', 'boxes')} in {num_images:,} of {counted(len(index), 'image')}, mean score "
        f"{objects.attributes['score'].mean():.2f}"
    )


def _beyond_edges(rows: _Rows, limits: NDArray[np.float64], used: NDArray[np.bool_]) -> list[str]:
    """Warn if many boxes reach far beyond their image, as they do if a bbox is read that has corners, not a size."""
    beyond = (rows.boxes_xyxy[used] > 1.05 * limits[used]).any(1)
    if beyond.mean() < 0.2:
        return []
    return [f"WARNING: {beyond.mean():.0%} of its boxes reach beyond their image; is its bbox [x, y, width, height]?"]


def _agreement(objects: AnnotationTable, index: DetectionIndex) -> list[str]:
    """Say how many of the annotated boxes the teacher finds, in images for which it has predictions."""
    images = np.unique(objects.image_index)
    if len(images) > _MAX_COMPARED:
        images = images[np.linspace(0, len(images) - 1, _MAX_COMPARED).astype(np.int64)]
    num_found = num_boxes = 0
    for image in images.tolist():
        truth = index.annotations.take(index.annotation_rows(image))
        truth = truth.take(~truth.is_crowd)
        predicted = objects_of(objects, image)
        overlap = box_iou(torch.from_numpy(truth.boxes_xyxy), torch.from_numpy(predicted.boxes_xyxy)).numpy()
        same_class = truth.label[:, None] == predicted.label[None]
        num_found += int(((overlap >= _IOU) & same_class).any(1).sum())
        num_boxes += len(truth)
    if num_boxes == 0:
        return []
    share = num_found / num_boxes
    note = f"it finds {share:.0%} of the {num_boxes:,} boxes annotated there (IoU {_IOU:g}, same class)"
    if share >= _UNLIKELY or num_boxes < _MIN_COMPARED:
        return [note]
    return [f"WARNING: {note}; are image_id and category_id those of the dataset, and its bbox [x, y, width, height]?"]
