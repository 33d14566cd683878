"""Statistics of a model's queries, apart from their accuracy: how many find an object, and how much they differ.

Shapes: B images of a batch · Q queries · N true objects of one image · C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from modeling_detr.evaluation.metrics import Metrics, MetricTable
from modeling_detr.post_processing_detr import DetectionOutput
from modeling_detr.structures_detr import DetectionIndex


if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class QueryMetrics(Metrics):
    """Statistics of a model's queries, for the JSON report and the log.

    Attributes:
        objects: Average number of true objects per image, without crowd regions.
        object_queries: Average number of queries per image whose best class is not "no object".
        spread: How much the predicted boxes of an image differ from each other, relative to its true boxes: about 1 if
            the queries cover the objects, 0 if all predict the same box. Measured on images with at least two true
            boxes; None if there are none.
    """

    key: ClassVar[str] = "queries"

    objects: float
    object_queries: float
    spread: float | None

    def tables(self) -> tuple[MetricTable, ...]:
        """No tables: these numbers explain a bad score, but are not scores themselves."""
        return ()

    def log_values(self) -> dict[str, object]:
        """`object_queries` and `query_spread`."""
        return {"object_queries": self.object_queries, "query_spread": self.spread}


class QueryEvaluator:
    """Collects what the queries predict: call `update` for each batch, then `gather`, then `compute`.

    Args:
        index: The dataset.
    """

    needs: Literal["outputs"] = "outputs"

    def __init__(self, index: DetectionIndex) -> None:
        self.index = index
        # images, true objects, object queries, deviation of predicted and of true boxes; tensors stay on the device
        self._sums: list[float | Tensor] = [0.0] * 5

    def update(self, image_indices: Sequence[int], outputs: DetectionOutput) -> None:
        """Adds the outputs for a batch.

        Args:
            image_indices: The index of each image in `index.images`.
            outputs: `logits` (B, Q, C + 1), the last one for "no object", and `pred_boxes` (B, Q, 4) cxcywh, relative
                to the image.
        """
        logits, pred_boxes = outputs.logits, outputs.pred_boxes
        true_boxes = [self._true_boxes(image_index) for image_index in image_indices]
        true_deviations = [float(boxes.std(0).mean()) if len(boxes) > 1 else 0.0 for boxes in true_boxes]
        measured = torch.tensor([deviation > 0 for deviation in true_deviations], device=pred_boxes.device)
        deviations = pred_boxes.float().std(1, correction=0).mean(-1)  # (B,)
        batch_sums: list[float | Tensor] = [
            float(len(image_indices)),
            float(sum(map(len, true_boxes))),
            (logits.argmax(-1) != logits.shape[-1] - 1).sum(),
            (deviations * measured).sum(),
            sum(true_deviations),
        ]
        self._sums = [total + batch_sum for total, batch_sum in zip(self._sums, batch_sums, strict=True)]

    def _true_boxes(self, image_index: int) -> np.ndarray:
        """The true boxes (N, 4) cxcywh of an image, relative to it, without crowd regions."""
        image, annotations = self.index.images[image_index], self.index.annotations
        rows = self.index.annotation_rows(image_index)
        corners = annotations.boxes_xyxy[rows][~annotations.is_crowd[rows]]
        corners = corners / [image.width, image.height, image.width, image.height]
        return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the sums of all processes into each of them. All processes call it together."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        gathered: list[list[float]] = gather_object([[float(total) for total in self._sums]])
        self._sums = [sum(totals) for totals in zip(*gathered, strict=True)]

    def compute(self) -> QueryMetrics:
        """Computes the averages over all images so far."""
        images, objects, object_queries, deviation, true_deviation = (float(total) for total in self._sums)
        return QueryMetrics(
            objects=objects / max(images, 1.0),
            object_queries=object_queries / max(images, 1.0),
            spread=deviation / true_deviation if true_deviation > 0 else None,
        )
