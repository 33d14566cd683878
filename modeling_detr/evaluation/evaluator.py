"""The interface of evaluators: what they score, what they compute, and how they save predictions.

Each evaluator is one file in `evaluators/`. The table `evaluators.EVALUATORS` lists them; a plug-in may add its own.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from modeling_detr.evaluation.metrics import Metrics
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


@runtime_checkable
class SavesPredictions(Protocol):
    """An evaluator that can also save the predictions that it scores, as `detr evaluate` does."""

    def start_saving(self, folder: Path) -> None:
        """Prepares to save predictions to `folder`. Called before the first `update`.

        Raises:
            OutputError: `folder` cannot be written to.
        """

    def save(self, category_ids: Collection[int]) -> list[Path]:
        """Writes the predictions after `gather`, in the main process only.

        Args:
            category_ids: Categories of the dataset; predictions of classes that only the model has are left out.

        Returns:
            The files that were written.
        """


class EvaluatorEntry(NamedTuple):
    """An entry of `EVALUATORS`: what builds the evaluator for a dataset, and the tasks that use it by default."""

    build: Callable[[DetectionIndex], Evaluator]
    tasks: tuple[Task, ...]
