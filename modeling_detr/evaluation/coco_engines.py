"""What computes COCO's precision and recall: hotcoco, or pycocotools, which has the same result many times slower.

pycocotools is the reference: the tests compare every number of the other engines with its own, bit for bit. A new
engine is a function and a line in `ENGINES`.

Shapes: N objects or detections · T IoU thresholds · R recall thresholds · C scored classes · A object sizes (all,
small, medium, large) · M limits on the number of detections.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modeling_detr.errors_detr import did_you_mean


class ScoredObjects(NamedTuple):
    """Annotated objects or detections; rows of all fields belong together.

    image_ids: (N,) int64. labels: (N,) int64. boxes_xywh: (N, 4) float64 in pixels. areas: (N,) float64, in square
    pixels. is_crowd: (N,) bool. scores: (N,) float64; zeros for annotated objects. masks: N compressed RLEs; None to
    score boxes.
    """

    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    scores: NDArray[np.float64]
    masks: list[Any] | None

    def take(self, rows: NDArray[np.int64]) -> "ScoredObjects":
        """Selects rows."""
        return ScoredObjects(
            image_ids=self.image_ids[rows],
            labels=self.labels[rows],
            boxes_xywh=self.boxes_xywh[rows],
            areas=self.areas[rows],
            is_crowd=self.is_crowd[rows],
            scores=self.scores[rows],
            masks=None if self.masks is None else [self.masks[row] for row in rows],
        )


class CocoScoring(NamedTuple):
    """What is scored.

    images: a dict per image with `id`, `height` and `width`; ids decide the order of detections with equal scores.
    categories: a dict per class with `id`, its label, and `name`. scored_labels: the labels of the C classes that
    count. max_detections: the M limits per image and class.
    """

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    truth: ScoredObjects
    detections: ScoredObjects
    scored_labels: list[int]
    max_detections: Sequence[int]

    @property
    def iou_type(self) -> Literal["bbox", "segm"]:
        """COCO's name for the IoU of boxes or masks."""
        return "bbox" if self.truth.masks is None else "segm"

    def of_classes(self, labels: Sequence[int]) -> "CocoScoring":
        """The part that decides about some classes: their objects and detections, and the images that have any."""
        truth, detections = (
            objects.take(np.flatnonzero(np.isin(objects.labels, labels))) for objects in (self.truth, self.detections)
        )
        used = {*truth.image_ids.tolist(), *detections.image_ids.tolist()}
        return self._replace(
            images=[image for image in self.images if image["id"] in used],
            categories=[category for category in self.categories if category["id"] in {*labels}],
            truth=truth,
            detections=detections,
            scored_labels=[*labels],
        )


class PrecisionAndRecall(NamedTuple):
    """Precision (T, R, C, A, M) and recall (T, C, A, M); -1 without annotated objects."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def pycocotools_evaluation(scoring: CocoScoring) -> Any:
    """The `COCOeval` of pycocotools, not run yet."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _pycocotools_dataset(scoring, scoring.truth),
            _pycocotools_dataset(scoring, scoring.detections),
            iouType=scoring.iou_type,
        )
    evaluation.params.maxDets = list(scoring.max_detections)
    evaluation.params.catIds = scoring.scored_labels
    return evaluation


def _pycocotools_dataset(scoring: CocoScoring, objects: ScoredObjects) -> Any:
    """pycocotools treats a match with an annotation whose id is 0 as no match, so ids start at 1."""
    from pycocotools.coco import COCO

    columns = zip(
        objects.image_ids.tolist(),
        objects.labels.tolist(),
        objects.boxes_xywh.tolist(),
        objects.areas.tolist(),
        objects.is_crowd.astype(int).tolist(),
        objects.scores.tolist(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "score")
    rows = [{"id": row_id, **dict(zip(keys, row, strict=True))} for row_id, row in enumerate(columns, start=1)]
    for row, mask in zip(rows, objects.masks or [], strict=objects.masks is not None):
        row["segmentation"] = mask
    dataset = COCO()
    dataset.dataset = {"images": scoring.images, "categories": scoring.categories, "annotations": rows}
    dataset.createIndex()
    return dataset


def _score_with_pycocotools(scoring: CocoScoring) -> PrecisionAndRecall:
    evaluation = pycocotools_evaluation(scoring)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionAndRecall(evaluation.eval["precision"], evaluation.eval["recall"])


def hotcoco_evaluation(scoring: CocoScoring) -> Any:
    """The `COCOeval` of hotcoco, not run yet; the ids of objects and detections are their rows, from 1."""
    from hotcoco import COCO, COCOeval

    truth, found = scoring.truth, scoring.detections
    dataset = COCO.from_arrays(
        scoring.images,
        [{**category, "name": str(category["id"])} for category in scoring.categories],  # names need not be UTF-8
        truth.image_ids,
        truth.labels,
        truth.boxes_xywh,
        ids=np.arange(1, len(truth.labels) + 1),
        area=truth.areas,
        iscrowd=truth.is_crowd,
        segmentation=truth.masks,
    )
    if found.masks is None:
        # COCO's table of results: image, x, y, width, height, score, class
        results = dataset.load_res(np.column_stack([found.image_ids, found.boxes_xywh, found.scores, found.labels]))
    else:
        columns = (found.image_ids.tolist(), found.labels.tolist(), found.scores.tolist(), found.masks)
        keys = ("image_id", "category_id", "score", "segmentation")  # without `bbox`, the area is that of the mask
        results = dataset.load_res([dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)])
    evaluation: Any = COCOeval(dataset, results, scoring.iou_type)
    evaluation.params.max_dets = list(scoring.max_detections)
    evaluation.params.cat_ids = scoring.scored_labels
    return evaluation


def _score_with_hotcoco(scoring: CocoScoring) -> PrecisionAndRecall:
    evaluation = hotcoco_evaluation(scoring)
    evaluation.evaluate()
    evaluation.accumulate()
    return PrecisionAndRecall(evaluation.eval["precision"], evaluation.eval["recall"])


# An engine has the name of the package that it needs; the first that is installed is the default.
ENGINES: dict[str, Callable[[CocoScoring], PrecisionAndRecall]] = {
    "hotcoco": _score_with_hotcoco,
    "pycocotools": _score_with_pycocotools,
}


def choose_engine(name: str | None = None) -> str:
    """The engine of this name, or the fastest that is installed.

    Raises:
        ValueError: There is no such engine.
        ImportError: Its package is not installed.
    """
    if name is None:
        return next(engine for engine in ENGINES if importlib.util.find_spec(engine) is not None)
    if name not in ENGINES:
        raise ValueError(f"engine: got '{name}'; {did_you_mean(name, ENGINES)}")
    if importlib.util.find_spec(name) is None:
        raise ImportError(f"engine: '{name}' is not installed; pip install {name}, or leave engine out.")
    return name


def engine_and_version(name: str) -> str:
    """Such as "pycocotools 2.0.11", for reports."""
    return f"{name} {importlib.metadata.version(name)}"
