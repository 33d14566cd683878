"""Encoder supervision: every encoder token predicts a class and a box.

Shapes: B images · S encoder tokens, the cells of the feature map · D width · C classes · N targets of an image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_detr.boxes_detr import box_distances
from modeling_detr.structures_detr import DetectionLabels
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid


_BOXES_PER_CHUNK = 500  # of an image; with 1,000 tokens a chunk takes about 20 MB


class EncoderSupervision(TrainingAid):
    """Predicts from every encoder token, through the decoder's last norm and the detector's own heads.

    A token is positive if its distance from a box's centre (the larger of |dx| and |dy|, in half-sides of the box) is
    at most `radius`, or if it is the token nearest to the centre; among several boxes it belongs to the nearest. All
    other tokens are "no object". The loss terms are those of the set loss, divided by the
    image's number of positive tokens. This includes the class term, which is a sum over all tokens: divided by the
    class weights it would be several times smaller, and the decoder would start to learn several times later
    (measured). Images are weighted by their share of the step's objects, so the sum does not depend on how a step is
    split over processes.

    Without this aid, the decoder has to learn where to look before the encoder provides useful features: on small
    datasets the original's recipe stays at AP 0 for hours.

    Args:
        eos_coefficient: Class weight of "no object" among the tokens.
        radius: Maximum distance of a token from the centre of its box, in half-sides.
    """

    suffix = "encoder"

    def __init__(self, eos_coefficient: float, radius: float = 0.4) -> None:
        super().__init__()
        self.eos_coefficient = eos_coefficient
        self.radius = radius

    def losses(self, batch: AidedBatch) -> dict[str, Tensor]:
        """Return `loss_ce_encoder`, `loss_bbox_encoder` and `loss_giou_encoder`."""
        detector, output, labels = batch.detector, batch.output, batch.labels
        memory, feature_mask = output.encoder_last_hidden_state, output.feature_mask
        logits, boxes = detector.predict(detector.model.decoder.layernorm(memory))  # (B, S, C + 1), (B, S, 4)
        real = feature_mask.flatten(1)  # (B, S)
        owner = self.owners(token_centres(feature_mask, batch.pixel_mask), real, labels)  # (B, S), -1 = no object
        counts = torch.tensor([len(label["class_labels"]) for label in labels])
        first_target = (counts.cumsum(0) - counts).to(owner.device)  # (B,) row of each image's first target
        image_share = counts.to(owner.device, logits.dtype) / batch.num_boxes  # (B,)

        positive = owner >= 0  # (B, S)
        target = torch.where(positive, owner + first_target[:, None], 0)  # (B, S) rows of the batch's targets
        no_object = logits.shape[-1] - 1
        all_classes = torch.cat([label["class_labels"] for label in labels])
        all_boxes = torch.cat([label["boxes"] for label in labels]).to(boxes.dtype)
        classes = torch.where(positive, all_classes[target], no_object)
        class_weights = logits.new_ones(no_object + 1)
        class_weights[no_object].fill_(self.eos_coefficient)
        class_loss = F.cross_entropy(logits.transpose(1, 2), classes, class_weights, reduction="none")  # (B, S)
        l1, giou_loss = box_distances(boxes, all_boxes[target])  # (B, S)

        token_share = image_share / positive.sum(1).clamp(min=1)  # (B,)
        return {
            "loss_ce_encoder": ((class_loss * real).sum(1) * token_share).sum(),
            "loss_bbox_encoder": ((l1 * positive).sum(1) * token_share).sum(),
            "loss_giou_encoder": ((giou_loss * positive).sum(1) * token_share).sum(),
        }

    def owners(self, centres: Tensor, real: Tensor, labels: Sequence[DetectionLabels]) -> Tensor:
        """Assign tokens to targets.

        Args:
            centres: (B, S, 2) centres of the tokens.
            real: (B, S) bool, False for padding.
            labels: One dict per image.

        Returns:
            (B, S) index of the target of each token, -1 for none.
        """
        owners = torch.full(real.shape, -1, dtype=torch.int64, device=centres.device)
        for image, label in enumerate(labels):
            best = centres.new_full(real.shape[1:], torch.inf)  # (S,) rank of the owner so far
            boxes = label["boxes"].to(centres.dtype)  # (N, 4)
            for first in range(0, len(boxes), _BOXES_PER_CHUNK):
                chunk_best, chunk_owner = self._ranks(
                    centres[image], real[image], boxes[first : first + _BOXES_PER_CHUNK]
                ).min(0)
                owners[image] = torch.where(chunk_best < best, first + chunk_owner, owners[image])
                best = torch.minimum(chunk_best, best)
        return owners

    def _ranks(self, centres: Tensor, real: Tensor, boxes: Tensor) -> Tensor:
        """Rank the boxes (n, 4) of an image as owners of its tokens: (n, S), the lowest first, infinite for none."""
        offset = centres - boxes[:, None, :2]  # (n, S, 2)
        half_sides = (boxes[:, None, 2:] / 2).clamp(min=1e-6)
        distance = (offset / half_sides).abs().amax(-1)  # (n, S)
        distance = distance.masked_fill(~real, torch.inf)
        nearest_token = offset.square().sum(-1).masked_fill(~real, torch.inf).argmin(1)  # (n,)
        rank = torch.where(distance <= self.radius, distance, torch.inf)
        rank[torch.arange(len(boxes), device=rank.device), nearest_token] = -1.0  # every box gets a token
        return rank


def token_centres(feature_mask: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Return the centres of the encoder tokens, (B, S, 2) as (x, y) relative to each unpadded image.

    Args:
        feature_mask: (B, h, w) bool, True = image.
        pixel_mask: (B, H, W), 1 = image; None if nothing is padded.
    """
    _, height, width = feature_mask.shape
    y, x = torch.meshgrid(
        (torch.arange(height, device=feature_mask.device) + 0.5) / height,
        (torch.arange(width, device=feature_mask.device) + 0.5) / width,
        indexing="ij",
    )
    centres = torch.stack([x, y], dim=-1).flatten(0, 1)[None]  # (1, S, 2), relative to the canvas
    if pixel_mask is None:
        return centres.expand(len(feature_mask), -1, -1)
    image_share = torch.stack([pixel_mask[:, 0].float().mean(-1), pixel_mask[:, :, 0].float().mean(-1)], dim=-1)
    return centres / image_share[:, None]  # (B, S, 2)
