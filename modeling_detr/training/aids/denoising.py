"""Denoising: extra decoder queries that start at a noised target and learn to recover it.

Shapes: B images · Q queries · D width · C classes · N targets of an image, n the largest N in the batch ·
G groups · E = G·n extra queries · L decoder layers.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_detr.backbone_detr import sine_embedding, sine_position
from modeling_detr.loss_detr import box_distances
from modeling_detr.modeling_detr import ExtraQueries
from modeling_detr.structures_detr import DetectionLabels
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid


class Denoising(TrainingAid):
    """Queries that start at a noised target and are trained to recover it, without matching, from the first step on.

    Each group has every target once, with its label sometimes replaced, its centre shifted and its sides scaled. The
    content of such a query is the embedded label; its position is the position code of the noised centre plus the
    output of a small network for the whole noised box. Groups do not attend to each other, and the learned queries do
    not attend to any group, so their predictions are the same as without denoising.

    The noise of an image depends only on the `noise_seed` of its labels, if they have one, and not on the batch, the
    process or the device.

    Paper: DN-DETR, sec. 4.

    Args:
        num_labels: C.
        width: D.
        num_groups: G.
        temperature: Temperature of the sine embedding of the noised boxes; ideally that of the model's positions.
        label_noise: Probability that a label is replaced by a random one.
        centre_noise: Maximum shift of a centre, as a fraction of the side.
        size_noise: Maximum change of a side, as a fraction of it.
    """

    suffix = "denoising"

    def __init__(
        self,
        num_labels: int,
        width: int,
        num_groups: int,
        temperature: float,
        label_noise: float = 0.2,
        centre_noise: float = 0.4,
        size_noise: float = 0.4,
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.width = width
        self.num_groups = num_groups
        self.temperature = temperature
        self.label_noise = label_noise
        self.centre_noise = centre_noise
        self.size_noise = size_noise
        self.label_embedding = nn.Embedding(num_labels, width)
        self.position_mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        nn.init.zeros_(cast(Tensor, self.position_mlp[-1].weight))  # positions start as those of the centre alone
        nn.init.zeros_(cast(Tensor, self.position_mlp[-1].bias))

    def extra_queries(self, labels: Sequence[DetectionLabels], num_queries: int) -> ExtraQueries:
        """Return G·n noised queries for each image; padding queries attend to themselves and the learned ones."""
        counts = [len(label["class_labels"]) for label in labels]
        most = max(counts)
        device = labels[0]["class_labels"].device
        classes = torch.zeros(len(labels), most, dtype=torch.int64, device=device)
        boxes = torch.full((len(labels), most, 4), 0.5, device=device)
        for image, label in enumerate(labels):
            classes[image, : counts[image]] = label["class_labels"]
            boxes[image, : counts[image]] = label["boxes"].to(boxes.dtype)
        classes, boxes = classes.repeat(1, self.num_groups), boxes.repeat(1, self.num_groups, 1)  # (B, E), (B, E, 4)
        draws = self._draws(labels, counts, most).to(device, non_blocking=True)  # (B, E, 6)
        flipped, others = draws[..., 0] < self.label_noise, (draws[..., 1] * self.num_labels).to(torch.int64)
        content = self.label_embedding(torch.where(flipped, others, classes))
        noised = self.add_noise(boxes, draws[..., 2:])
        embedded = sine_embedding(noised, self.width // 2, self.temperature).flatten(-2)  # (B, E, 4 · D/2)
        centres = sine_position(noised[..., :2], self.width, self.temperature)  # (B, E, D), as for encoder tokens
        positions = centres + self.position_mlp(embedded.to(content.dtype))
        return ExtraQueries(content, positions, self._attention_mask(counts, most, num_queries, device))

    def _draws(self, labels: Sequence[DetectionLabels], counts: list[int], most: int) -> Tensor:
        """Return (B, E, 6) random numbers in [0, 1), in host memory; zero for padding queries."""
        draws = torch.zeros(len(labels), self.num_groups, most, 6)
        for image_draws, label, count in zip(draws, labels, counts, strict=True):
            seed = label.get("noise_seed")
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            image_draws[:, :count] = torch.rand(self.num_groups, count, 6, generator=generator)
        return draws.flatten(1, 2)

    def add_noise(self, boxes: Tensor, draws: Tensor) -> Tensor:
        """Shift and scale boxes, (…, 4) cxcywh, by (…, 4) random numbers in [0, 1), and clip them to the image."""
        centre, size = boxes[..., :2], boxes[..., 2:]
        move = (2 * draws[..., :2] - 1) * self.centre_noise * size
        scale = 1 + (2 * draws[..., 2:] - 1) * self.size_noise
        return torch.cat([(centre + move).clamp(0, 1), (size * scale).clamp(0, 1)], dim=-1)

    def _attention_mask(self, counts: list[int], most: int, num_queries: int, device: torch.device) -> Tensor:
        """Return (B, Q + E, Q + E) bool: learned queries see each other, a group sees itself and the learned ones."""
        group = torch.arange(self.num_groups, device=device).repeat_interleave(most)  # (E,)
        owner = torch.cat([group.new_full((num_queries,), -1), group])  # (Q + E,)
        allowed = (owner[:, None] == owner) | (owner == -1)  # (Q + E, Q + E)
        real = torch.arange(most, device=device) < torch.tensor(counts, device=device)[:, None]  # (B, n)
        real = torch.cat([real.new_ones(len(counts), num_queries), real.repeat(1, self.num_groups)], dim=1)
        itself = torch.eye(len(owner), dtype=torch.bool, device=device)
        return (allowed & real[:, None]) | itself

    def losses(self, batch: AidedBatch) -> dict[str, Tensor]:
        """Return `loss_ce_denoising`, `loss_bbox_denoising` and `loss_giou_denoising`.

        They are means over the noised targets of the step, summed over the decoder layers.
        """
        logits, boxes = batch.detector.predict(cast(Tensor, batch.extra_states))  # (L, B, E, C + 1), (L, B, E, 4)
        labels = batch.labels
        counts = [len(label["class_labels"]) for label in labels]
        most = max(counts)
        rows = [
            image * self.num_groups * most + group * most + target
            for group in range(self.num_groups)
            for image, count in enumerate(counts)
            for target in range(count)
        ]
        index = torch.tensor(rows, dtype=torch.int64, device=logits.device)  # (G·T,)
        classes = torch.cat([label["class_labels"] for label in labels]).repeat(self.num_groups)
        targets = torch.cat([label["boxes"] for label in labels]).to(boxes.dtype).repeat(self.num_groups, 1)
        logits, boxes = logits.flatten(1, 2)[:, index], boxes.flatten(1, 2)[:, index]  # (L, G·T, …)
        l1, giou_loss = box_distances(boxes, targets)
        num_targets = batch.num_boxes * self.num_groups
        class_loss = F.cross_entropy(logits.flatten(0, 1), classes.repeat(len(logits)), reduction="sum")
        return {
            "loss_ce_denoising": class_loss / num_targets,
            "loss_bbox_denoising": l1.sum() / num_targets,
            "loss_giou_denoising": giou_loss.sum() / num_targets,
        }
