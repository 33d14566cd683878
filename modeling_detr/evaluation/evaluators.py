"""The table of evaluators: how each is built, and which tasks use it by default.

To add a metric, write an `Evaluator` in a new file and add a line to `EVALUATORS`. A plug-in does the same:

    EVALUATORS["calibration"] = EvaluatorEntry(CalibrationEvaluator, ("detection",))

Its metrics then appear in `evaluation.json`, `.md` and `.html`, in the training log and on the model card.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from modeling_detr.errors_detr import did_you_mean
from modeling_detr.evaluation.coco import CocoEvaluator
from modeling_detr.evaluation.metrics import Metrics
from modeling_detr.evaluation.panoptic import PanopticEvaluator
from modeling_detr.evaluation.queries import QueryEvaluator
from modeling_detr.structures_detr import DetectionIndex, Task


if TYPE_CHECKING:
    from accelerate import Accelerator


# The kinds of predictions that `evaluate` can pass to an evaluator for each batch:
#   "boxes"     list[DetectionResult], one per image: the best class and the box of every query
#   "masks"     list[InstanceResult]: the same with the mask of every query, which costs time and memory
#   "segments"  list[PanopticResult]: needs the masks of a few queries only
#   "outputs"   the model's output for the whole batch, on its device
PredictionKind = Literal["boxes", "masks", "segments", "outputs"]


class Evaluator(Protocol):
    """Scores predictions of one kind: call `update` for each batch, then `gather`, then `compute`."""

    @property
    def needs(self) -> PredictionKind:
        """The kind of predictions that `update` takes."""

    def update(self, image_indices: Sequence[int], predictions: Any, /) -> None:
        """Adds the predictions of a batch.

        Args:
            image_indices: The index of each image in `DetectionIndex.images`.
            predictions: The predictions; their type depends on `needs`.
        """

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the results of all processes into each of them. All processes call it together."""

    def compute(self) -> Metrics:
        """Computes the metrics of all predictions so far."""


class EvaluatorEntry(NamedTuple):
    """An entry of `EVALUATORS`: what builds the evaluator for a dataset, and the tasks that use it by default."""

    build: Callable[[DetectionIndex], Evaluator]
    tasks: tuple[Task, ...]


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
