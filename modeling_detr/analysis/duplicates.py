"""What duplicate detections cost: by how much AP50 rises if they are removed.

A duplicate is a false positive that overlaps an object of its class with an IoU of at least .5, so that a detection
with a higher score already has that object. The rise is the ΔAP of the duplicate error of TIDE
(https://arxiv.org/abs/2008.08115, sec. 2.2). Differs from TIDE's code, for which it is a class error if the detection
also overlaps an object of another class by .5: the other detection of its own object is there all the same.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modeling_detr.evaluation.metrics import Metrics, MetricTable


if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval


MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class DuplicateCost(Metrics):
    """The duplicates among the detections of a dataset.

    Attributes:
        detections: Number of detections.
        duplicates: How many of them are duplicates.
        ap50: AP50 of all detections, in [0, 1]; NaN without ground truth.
        ap50_without: AP50 without the duplicates.
    """

    key: ClassVar[str] = "duplicates"

    detections: int
    duplicates: int
    ap50: float
    ap50_without: float

    @property
    def points(self) -> float:
        """By how many points (hundredths) AP50 rises without the duplicates."""
        return 100 * (self.ap50_without - self.ap50)

    def tables(self) -> tuple[MetricTable]:
        """AP50 with and without the duplicates, and how many there are."""
        rows = [
            ("AP50", self.ap50),
            ("AP50 without duplicates", self.ap50_without),
            ("duplicates", self.duplicates),
            ("detections", self.detections),
        ]
        return (MetricTable("Duplicates", ("metric", "value"), rows),)

    def as_dict(self) -> dict[str, object]:
        """All fields, and `points`; NaN as None."""
        points = None if np.isnan(self.points) else self.points
        return {**super(DuplicateCost, self).as_dict(), "points": points}


def duplicate_cost(coco_eval: "COCOeval") -> DuplicateCost:
    """Finds the duplicates, and scores the detections with and without them.

    Args:
        coco_eval: pycocotools' evaluation of boxes or masks, such as `CocoEvaluator.coco_eval()`; it is run with the
            IoU threshold .5, objects of all sizes, and its last limit of detections.
    """
    ap50 = _ap50(coco_eval)
    duplicates = {detection for entry in coco_eval.evalImgs if entry for detection in _duplicates(coco_eval, entry)}
    detections = list(coco_eval.cocoDt.anns.values())
    ap50_without = ap50
    if duplicates:
        rest = [detection for detection in detections if detection["id"] not in duplicates]
        ap50_without = _ap50(_with_detections(coco_eval, rest))
    return DuplicateCost(len(detections), len(duplicates), ap50, ap50_without)


def _duplicates(coco_eval: Any, entry: dict[str, Any]) -> Iterator[int]:
    """Yields the ids of the duplicates of one class in one image."""
    ious = coco_eval.ious[entry["image_id"], entry["category_id"]]
    if not len(ious):
        return
    is_object = [not truth["iscrowd"] for truth in coco_eval._gts[entry["image_id"], entry["category_id"]]]
    overlaps = np.asarray(ious)[:, is_object].max(1, initial=0.0)  # detections are in the order of `entry`
    for detection, match, ignored, overlap in zip(
        entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], overlaps, strict=True
    ):
        if not match and not ignored and overlap >= MIN_IOU:
            yield detection


def _ap50(coco_eval: Any) -> float:
    """Runs an evaluation at IoU .5; its mean over the classes with ground truth, NaN if there are none."""
    params = coco_eval.params
    params.iouThrs = np.array([MIN_IOU])
    params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], ["all"], params.maxDets[-1:]
    if not params.imgIds:
        coco_eval.evalImgs = []
        return float("nan")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco_eval.evaluate()
        coco_eval.accumulate()
    precision = coco_eval.eval["precision"]
    precision = precision[precision > -1]
    return float(precision.mean()) if precision.size else float("nan")


def _with_detections(coco_eval: Any, detections: list[dict[str, Any]]) -> Any:
    """The same evaluation of other detections, not run yet."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    chosen = COCO()
    chosen.dataset = {**coco_eval.cocoDt.dataset, "annotations": detections}
    with contextlib.redirect_stdout(io.StringIO()):
        chosen.createIndex()
        other = COCOeval(coco_eval.cocoGt, chosen, coco_eval.params.iouType)
    other.params = coco_eval.params
    return other
