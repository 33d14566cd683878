"""Matching and loss of all decoder layers, forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import DetrConfig as StockConfig

from modeling_detr.benchmarks.speed.agreement import Outputs, check_agreement
from modeling_detr.benchmarks.speed.contenders import coco_config, original_loss, stock_loss
from modeling_detr.benchmarks.speed.generated_images import random_predictions
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, STOCK, TIME, Measurement
from modeling_detr.benchmarks.speed.original_checkout import NUM_LABELS
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.loss_detr import HungarianMatcher, SetCriterion
from modeling_detr.structures_detr import DetectionLabels


class LossCase(NamedTuple):
    """The size of a batch; each image has the same number of objects."""

    images: int
    boxes: int
    queries: int = 100


CASES = (LossCase(2, 7), LossCase(8, 7), LossCase(8, 60), LossCase(16, 60), LossCase(16, 60, 300))
NUM_LAYERS = 6
NOTES = (
    "Stock has these lines of the original's, with its own checks; on predictions of the same model it gives the same "
    "loss on one process.",
)
_TOLERANCE = 1e-4

# (L, B, Q, C + 1) logits, (L, B, Q, 4) boxes, labels → loss
_Loss = Callable[[Tensor, Tensor, Sequence[DetectionLabels]], Tensor]


def measure(settings: SpeedSettings, cases: Sequence[LossCase] = CASES) -> Iterator[Measurement]:
    """Measures the loss of six decoder layers."""
    losses = _losses(settings)
    for case in cases:
        work = f"batch {case.images} x {case.boxes} boxes, {case.queries} queries"
        logits, boxes, labels = random_predictions(
            NUM_LAYERS, case.images, case.queries, case.boxes, NUM_LABELS, settings.device
        )
        works = {name: _Work(loss, logits, boxes, labels) for name, loss in losses.items()}
        differences = check_agreement(work, {name: item() for name, item in works.items()}, _TOLERANCE)
        yield Measurement(work, TIME, settings.time(works, warm_up=False), differences)


class _Work:
    """Forward and backward of a loss; returns it and its gradients."""

    def __init__(self, loss: _Loss, logits: Tensor, boxes: Tensor, labels: Sequence[DetectionLabels]) -> None:
        self.loss, self.labels = loss, labels
        self.logits, self.boxes = (tensor.clone().requires_grad_() for tensor in (logits, boxes))

    def __call__(self) -> Outputs:
        self.logits.grad = self.boxes.grad = None
        loss = self.loss(self.logits, self.boxes, self.labels)
        loss.backward()
        gradients: dict[str, Any] = {"gradient of logits": self.logits.grad, "gradient of boxes": self.boxes.grad}
        return {"loss": loss.detach(), **gradients}


def _losses(settings: SpeedSettings) -> dict[str, _Loss]:
    criterion = SetCriterion(HungarianMatcher())
    keys: dict[str, Any] = {"num_labels": NUM_LABELS, "auxiliary_loss": True, "decoder_layers": NUM_LAYERS}
    stock_config = StockConfig(**keys)
    losses: dict[str, _Loss] = {
        OURS: lambda logits, boxes, labels: criterion(logits, boxes, labels).loss,
        STOCK: lambda logits, boxes, labels: stock_loss(logits, boxes, labels, stock_config),
    }
    if settings.original is not None:
        small = coco_config(backbone="resnet18", encoder_layers=1, decoder_layers=NUM_LAYERS)
        _, original = settings.original.build(small, str(settings.device))
        losses[ORIGINAL] = lambda logits, boxes, labels: _original_loss(original, logits, boxes, labels)
    return losses


def _original_loss(criterion: Any, logits: Tensor, boxes: Tensor, labels: Sequence[DetectionLabels]) -> Tensor:
    layers = [
        {"pred_logits": scores, "pred_boxes": values}
        for scores, values in zip(logits.unbind(), boxes.unbind(), strict=True)
    ]
    targets = [{"labels": label["class_labels"], "boxes": label["boxes"]} for label in labels]
    return original_loss(criterion, {**layers[-1], "aux_outputs": layers[:-1]}, targets)
