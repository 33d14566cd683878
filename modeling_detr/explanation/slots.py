"""What each query slot of a model predicts over many images: the paper's figure 7 and its numbers.

A slot is one of the model's object queries. Shapes: I images · Q slots.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_detr.explanation.recording import detector_of
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, RawImage, to_rgb
from modeling_detr.prediction import OBJECT_THRESHOLD
from modeling_detr.segmentation_detr import Detector


@dataclass(frozen=True)
class SlotStatistics:
    """Numbers of each slot.

    Attributes:
        num_detections: (Q,) int64, boxes with a score of at least the threshold; 0: the slot never fires.
        top_label: (Q,) int64, the most frequent class among them; -1: there are none.
        top_label_share: (Q,), its share of them; NaN: there are none.
        mean_box: (Q, 4) cxcywh, the mean of all boxes, whatever their scores.
        place_specialisation: (Q,), 1 - variance of the centres of the slot's boxes / that of the boxes of all slots.
            1: always at one place, 0: as far apart as all boxes, below 0: farther. The mean over slots is the share of
            the variance that the slot explains (the correlation ratio η²).
        size_specialisation: (Q,), the same of width and height.
    """

    num_detections: Tensor
    top_label: Tensor
    top_label_share: Tensor
    mean_box: Tensor
    place_specialisation: Tensor
    size_specialisation: Tensor


@dataclass(frozen=True)
class Slots:
    """All predictions of all slots, "no object" included, on the CPU.

    Attributes:
        boxes: (I, Q, 4) cxcywh as shares of the image's width and height.
        scores: (I, Q), the probability of the most probable class.
        labels: (I, Q) int64, that class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def statistics(self, threshold: float = OBJECT_THRESHOLD) -> SlotStatistics:
        """How much each slot detects, and how specialised it is.

        Args:
            threshold: Lowest score of a detection.
        """
        fires = self.scores >= threshold
        num_detections = fires.sum(0)
        of_class = torch.zeros(self.boxes.shape[1], int(self.labels.max()) + 1, dtype=torch.long)
        of_class.scatter_add_(1, self.labels.T, fires.T.long())
        top = of_class.max(1)
        boxes = self.boxes.double()
        return SlotStatistics(
            num_detections=num_detections,
            top_label=torch.where(num_detections > 0, top.indices, -1),
            top_label_share=top.values / num_detections,
            mean_box=boxes.mean(0).float(),
            place_specialisation=_specialisation(boxes[..., :2]),
            size_specialisation=_specialisation(boxes[..., 2:]),
        )


@torch.inference_mode()
def collect_slots(model: Detector, processor: DetrTorchvisionImageProcessor, images: Iterable[RawImage]) -> Slots:
    """Runs a model on images, one at a time, and keeps what each of its slots predicts.

    Paper: fig. 7, which `visualization.draw_slots` draws. Memory: 28 bytes per image and slot.

    Args:
        model: A model in evaluation mode. Of a model with masks, its detector is used.
        processor: The model's image processor.
        images: At least one image of any kind, see `to_rgb`.

    Raises:
        ValueError: There are no images, or the model is in training mode.
    """
    if model.training:
        raise ValueError("model: it is in training mode, where dropout is on; call model.eval() first.")
    predictions = []
    for image in images:
        inputs = processor(to_rgb(image), device=model.device)
        outputs, _ = detector_of(model).detect(inputs["pixel_values"], inputs.get("pixel_mask"))
        scores, labels = outputs.logits[0].float().softmax(-1)[:, :-1].max(-1)
        predictions.append((outputs.pred_boxes[0].float().cpu(), scores.cpu(), labels.cpu()))
    if not predictions:
        raise ValueError("images: got none, expected at least one.")
    return Slots(*(torch.stack(kind) for kind in zip(*predictions, strict=True)))


def _specialisation(values: Tensor) -> Tensor:
    """1 - the variance within each slot / that of all, for values (I, Q, 2): (Q,)."""
    within = values.var(0, correction=0).sum(-1)
    overall = values.flatten(0, 1).var(0, correction=0).sum(-1)
    return (1 - within / overall).float() if overall > 0 else torch.ones_like(within).float()
