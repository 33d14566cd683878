"""The evaluators, one file each. A new one is a file with an `Evaluator`, and a line in `EVALUATORS`.

A plug-in adds its own:

    EVALUATORS["calibration"] = EvaluatorEntry(CalibrationEvaluator, ("detection",))

Its metrics then appear in `evaluation.json`, `.md` and `.html`, in the training log and on the model card.
"""

from collections.abc import Collection
from functools import partial

from modeling_detr.errors_detr import did_you_mean
from modeling_detr.evaluation.evaluator import Evaluator, EvaluatorEntry
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.evaluators.panoptic import PanopticEvaluator
from modeling_detr.evaluation.evaluators.queries import QueryEvaluator
from modeling_detr.structures_detr import DetectionIndex, Task


EVALUATORS: dict[str, EvaluatorEntry] = {
    "boxes": EvaluatorEntry(CocoEvaluator, ("detection", "instance", "panoptic")),
    "masks": EvaluatorEntry(partial(CocoEvaluator, masks=True), ("instance", "panoptic")),
    "panoptic": EvaluatorEntry(PanopticEvaluator, ("panoptic",)),
    "queries": EvaluatorEntry(QueryEvaluator, ("detection", "instance", "panoptic")),
}


def default_evaluators(index: DetectionIndex, task: Task, *, skip: Collection[str] = ()) -> list[Evaluator]:
    """Builds the evaluators of a task, in the order of `EVALUATORS`.

    Args:
        index: The dataset; for the tasks `instance` and `panoptic` it must have masks.
        task: `detection` scores boxes, `instance` also masks, `panoptic` also panoptic segments.
        skip: Names in `EVALUATORS` to leave out.

    Raises:
        DatasetError: The dataset has no masks, but the task needs them.
        ValueError: A name in `skip` is unknown.
    """
    for name in skip:
        if name not in EVALUATORS:
            raise ValueError(f"skip: unknown evaluator '{name}'; {did_you_mean(name, EVALUATORS)}")
    return [entry.build(index) for name, entry in EVALUATORS.items() if task in entry.tasks and name not in skip]
