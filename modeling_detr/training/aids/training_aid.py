"""The base class of training aids: modules beside the detector that add queries and loss terms during training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling_detr.loss_detr import HungarianMatcher
from modeling_detr.modeling_detr import DetrForObjectDetection, DetrObjectDetectionOutput, ExtraQueries
from modeling_detr.structures_detr import DetectionLabels


@dataclass(frozen=True)
class AidedBatch:
    """A batch after the detector's forward pass, from which an aid computes its losses.

    Shapes: B images · E extra queries of the aid · D width · L decoder layers that the heads read.

    Attributes:
        detector: The detector without mask head: `predict` applies its heads to any states.
        output: The detector's output.
        pixel_mask: (B, H, W), 1 = image; None if nothing is padded.
        labels: One dict per image.
        num_boxes: Number of boxes in the whole optimizer step, the divisor of the losses.
        extra_states: (L, B, E, D) decoder states of the queries that the aid added; None if it added none.
        class_weight_sum: Class weights of all queries in the whole step, the divisor of the detector's class loss.
        num_teacher_boxes: Number of the teacher's boxes in the whole step, at least 1.
    """

    detector: DetrForObjectDetection
    output: DetrObjectDetectionOutput
    pixel_mask: Tensor | None
    labels: Sequence[DetectionLabels]
    num_boxes: float | Tensor
    extra_states: Tensor | None
    class_weight_sum: float | Tensor = 1.0
    num_teacher_boxes: float | Tensor = 1.0


class TrainingAid(nn.Module):
    """Extra supervision of a detector while it trains; the exported model does not contain it.

    A subclass adds loss terms (`losses`), and possibly queries to the decoder (`extra_queries`); or it changes which
    learned queries are matched (`matcher`).

    Attributes:
        suffix: Suffix of the names of its loss terms, as in `loss_ce_SUFFIX`.
    """

    suffix: ClassVar[str]

    def has_targets(self, labels: Sequence[DetectionLabels]) -> bool:
        """Whether a batch has anything to learn from; if not, the aid is not used for it.

        A loss must not depend on this: an image without targets contributes nothing to it in any batch.
        """
        return any(len(label["class_labels"]) for label in labels)

    def extra_queries(self, labels: Sequence[DetectionLabels], num_queries: int) -> ExtraQueries | None:  # noqa: ARG002
        """Return queries to add to the decoder, or None.

        Args:
            labels: One dict per image, for which `has_targets` is true.
            num_queries: Q, the number of learned queries, which must not attend to the extra ones.
        """
        return None

    def matcher(self, matcher: HungarianMatcher) -> HungarianMatcher:
        """Return what matches the learned queries while the detector trains; by default `matcher`, the detector's."""
        return matcher

    def losses(self, batch: AidedBatch) -> dict[str, Tensor]:
        """Return the unweighted loss terms of a batch; their names are the keys of `loss_weights`."""
        raise NotImplementedError

    def note(self, counts: NDArray[np.int64]) -> str | None:  # noqa: ARG002
        """Return a note for the plan on I images with `counts` (I,) objects, or None."""
        return None

    def loss_weights(self, set_loss_weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weight of each loss term; by default one term per term of the set loss, with the same weight.

        Args:
            set_loss_weights: `loss_ce`, `loss_bbox` and `loss_giou` with their weights.
        """
        return {f"{name}_{self.suffix}": weight for name, weight in set_loss_weights.items()}
