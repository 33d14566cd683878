"""Teacher: the boxes that another detector predicts for the training images, as a second set of targets.

Shapes: B images · Q queries · C classes · K boxes of the teacher in one image · T those of the batch · M matched pairs
of the batch, Σ min(K, Q) · L decoder layers that the heads read.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_detr.boxes_detr import box_distances
from modeling_detr.modeling_detr import DetrObjectDetectionOutput
from modeling_detr.structures_detr import DetectionLabels
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid


class Teacher(TrainingAid):
    """A second set loss on the learned queries, whose targets are the boxes of a teacher, each weighted by its score.

    They have an assignment of their own, so an object that is annotated and predicted by the teacher is not two
    targets of one assignment; usually both assignments choose the same query for it. Queries without a box of the
    teacher are "no object", as in the loss of the annotated boxes. An image without boxes of the teacher has no such
    loss, because the teacher may not have seen it.

    Box terms are divided by the number of the teacher's boxes in the optimizer step, and the class term by the class
    weights of the step, like that of the ground truth; so neither depends on how the step is split, and the number of
    annotated boxes, which may be small, does not matter.

    Paper: Huang et al., "Teach-DETR: Better Training DETR with Teachers" (arXiv 2211.11953), sec. 3. Differs from it:
    the loss is DETR's, with softmax; it is computed for a single teacher.

    Args:
        eos_coefficient: Class weight of "no object"; a box of the teacher weighs as much as its score.
        weight: Weight of this loss, relative to that of the annotated boxes.
    """

    suffix = "teacher"

    def __init__(self, eos_coefficient: float, weight: float = 1.0) -> None:
        super().__init__()
        self.eos_coefficient = eos_coefficient
        self.weight = weight

    def has_targets(self, labels: Sequence[DetectionLabels]) -> bool:
        """Whether an image of the batch has a box of the teacher."""
        return any(len(label.get("teacher_labels", ())) for label in labels)

    def loss_weights(self, set_loss_weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights of the set loss, times that of this loss."""
        return {name: self.weight * value for name, value in super().loss_weights(set_loss_weights).items()}

    def losses(self, batch: AidedBatch) -> dict[str, Tensor]:
        """Return `loss_ce_teacher`, `loss_bbox_teacher` and `loss_giou_teacher`, summed over the decoder layers."""
        logits, pred_boxes = _all_layers(batch.output)  # (L, B, Q, C + 1), (L, B, Q, 4)
        device, num_queries = logits.device, logits.shape[2]
        targets = [_as_labels(label) for label in batch.labels]
        counts = [len(target["class_labels"]) for target in targets]
        classes = torch.cat([target["class_labels"] for target in targets]).to(device, non_blocking=True)  # (T,)
        boxes = torch.cat([target["boxes"] for target in targets]).to(device, pred_boxes.dtype)  # (T, 4)
        scores = torch.cat([label["teacher_scores"] for label in batch.labels]).to(device, logits.dtype)  # (T,)
        has_boxes = (torch.tensor(counts) > 0).to(device, logits.dtype, non_blocking=True)  # (B,)

        with torch.autocast(device.type, enabled=False):
            log_probabilities = logits.log_softmax(-1)
            assignments = batch.detector.criterion.matcher.match_layers(log_probabilities, pred_boxes, targets)
            queries, matched = assignments.indices(device)  # (L, M) each
            weights = scores[matched]  # (L, M)
            matched_boxes = pred_boxes.flatten(1, 2).take_along_dim(queries[..., None], dim=1)  # (L, M, 4)
            l1, giou_loss = box_distances(matched_boxes, boxes[matched])  # (L, M)

            no_object = logits.shape[-1] - 1
            target_classes = queries.new_full((len(logits), logits.shape[1] * num_queries), no_object)
            target_classes.scatter_(1, queries, classes[matched])  # (L, B·Q)
            class_weights = (self.eos_coefficient * has_boxes).repeat_interleave(num_queries).repeat(len(logits), 1)
            class_weights.scatter_(1, queries, weights)  # (L, B·Q)
            class_loss = F.nll_loss(log_probabilities.flatten(0, 2), target_classes.flatten(), reduction="none")
        return {
            "loss_ce_teacher": (class_loss * class_weights.flatten()).sum() / batch.class_weight_sum,
            "loss_bbox_teacher": (l1 * weights).sum() / batch.num_teacher_boxes,
            "loss_giou_teacher": (giou_loss * weights).sum() / batch.num_teacher_boxes,
        }


def _all_layers(output: DetrObjectDetectionOutput) -> tuple[Tensor, Tensor]:
    """Return the predictions of all layers that the heads read: (L, B, Q, C + 1) logits and (L, B, Q, 4) boxes."""
    earlier = output.auxiliary_outputs or []
    logits = torch.stack([*(layer["logits"] for layer in earlier), output.logits])
    return logits, torch.stack([*(layer["pred_boxes"] for layer in earlier), output.pred_boxes])


def _as_labels(label: DetectionLabels) -> DetectionLabels:
    """Return the teacher's boxes of an image in the form of annotated ones."""
    return {"class_labels": label["teacher_labels"], "boxes": label["teacher_boxes"]}
