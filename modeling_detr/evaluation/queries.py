"""What a model's queries do over a dataset, whatever they score: whether they find anything, whether they differ.

Shapes: B images of a batch · Q queries · N true objects of one image · C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modeling_detr.structures_detr import DetectionIndex


if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """How the queries of a model behave.

    Attributes:
        objects: True objects of an image, on average; crowd regions aside.
        object_queries: Queries of an image that are surer of a class than of "no object", on average.
        spread: How much the predicted boxes of an image differ from each other, in units of how much its true boxes
            do: about 1 if queries cover the objects, 0 if all predict one box. Only images with several true boxes
            can tell; None if there are none.
    """

    objects: float
    object_queries: float
    spread: float | None


class QueryStatistics:
    """Collects what queries predict: `update` for each batch, `gather`, `compute`.

    Args:
        index: The dataset.
    """

    def __init__(self, index: DetectionIndex) -> None:
        self.index = index
        # images, true objects, object queries, deviation of predicted boxes, of true boxes; the device's stay there
        self._sums: list[float | Tensor] = [0.0] * 5

    def update(self, positions: Sequence[int], logits: Tensor, pred_boxes: Tensor) -> None:
        """Takes in what a model predicts for a batch.

        Args:
            positions: Which image of the dataset each is.
            logits: (B, Q, C + 1), the last for "no object".
            pred_boxes: (B, Q, 4) cxcywh, relative to the image.
        """
        true_deviations, num_objects = [], 0
        for position in positions:
            image, annotations = self.index.images[position], self.index.annotations
            rows = self.index.annotation_rows(position)
            corners = annotations.boxes_xyxy[rows][~annotations.is_crowd[rows]]
            corners = corners / [image.width, image.height, image.width, image.height]
            boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
            num_objects += len(boxes)
            true_deviations.append(float(boxes.std(0).mean()) if len(boxes) > 1 else 0.0)
        differ = torch.tensor([deviation > 0 for deviation in true_deviations], device=pred_boxes.device)
        deviations = pred_boxes.float().std(1, correction=0).mean(-1)  # (B,)
        new: list[float | Tensor] = [
            float(len(positions)),
            float(num_objects),
            (logits.argmax(-1) != logits.shape[-1] - 1).sum(),
            (deviations * differ).sum(),
            sum(true_deviations),
        ]
        self._sums = [old + more for old, more in zip(self._sums, new, strict=True)]

    def gather(self, accelerator: "Accelerator") -> None:
        """Adds up what all processes have collected; afterwards each has it all. Every process must call it."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        gathered: list[list[float]] = gather_object([[float(total) for total in self._sums]])
        self._sums = [sum(totals) for totals in zip(*gathered, strict=True)]

    def compute(self) -> QueryFigures:
        """The figures for what has been collected."""
        images, objects, object_queries, deviation, true_deviation = (float(total) for total in self._sums)
        return QueryFigures(
            objects=objects / max(images, 1.0),
            object_queries=object_queries / max(images, 1.0),
            spread=deviation / true_deviation if true_deviation > 0 else None,
        )
