"""The evaluators that exist, in one table: how each is built, and which tasks it belongs to.

To add a metric, write an `Evaluator` in a file of its own and add one line to `EVALUATORS`; a plug-in does the same:

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


# What `evaluate` can hand to an evaluator for each batch:
#   "boxes"     list[DetectionResult], one an image: every query's best class and box
#   "masks"     list[InstanceResult]: with the mask of every query, which costs time and memory
#   "segments"  list[PanopticResult]: needs the masks of a few queries only
#   "outputs"   the model's output for the whole batch, on its device
PredictionKind = Literal["boxes", "masks", "segments", "outputs"]


class Evaluator(Protocol):
    """Collects the predictions of one kind and scores them: `update` for each batch, `gather`, `compute`."""

    @property
    def needs(self) -> PredictionKind:
        """The kind of predictions that `update` takes."""

    def update(self, image_indices: Sequence[int], predictions: Any, /) -> None:
        """Adds the predictions of a batch.

        Args:
            image_indices: The index of each image in `DetectionIndex.images`.
            predictions: Of the kind that `needs` names, hence no one type.
        """

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges what all processes have collected into every process, which all must call it."""

    def compute(self) -> Metrics:
        """Computes the metrics of all predictions so far."""


class EvaluatorEntry(NamedTuple):
    """A row of `EVALUATORS`: what builds the evaluator of a dataset, and the tasks that use it by default."""

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
        task: `detection` (boxes), `instance` (and masks) or `panoptic` (and panoptic segments).
        skip: Names in `EVALUATORS` to leave out.

    Raises:
        DatasetError: The dataset has no masks, but the task needs them.
        ValueError: A name in `skip` is unknown.
    """
    for name in skip:
        if name not in EVALUATORS:
            raise ValueError(f"skip: unknown evaluator '{name}'; {did_you_mean(name, EVALUATORS)}")
    return [entry.build(index) for name, entry in EVALUATORS.items() if task in entry.tasks and name not in skip]
