"""Denoising: extra decoder queries that start at a noised target and learn to recover it.

Shapes: B images · Q queries · D width · C classes · N targets of an image, n those that are denoised · G groups of an
image · E extra queries, at least the largest G·n · P queries with a target, Σ G·n · L decoder layers.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling_detr.backbone_detr import sine_embedding, sine_position
from modeling_detr.boxes_detr import box_distances
from modeling_detr.data.findings import counted
from modeling_detr.modeling_detr import ExtraQueries
from modeling_detr.structures_detr import DetectionLabels
from modeling_detr.training.aids.training_aid import AidedBatch, TrainingAid


MAX_QUERIES = 300  # of an image; three groups of 100 targets, more than images of COCO have


class _Slots(NamedTuple):
    """What the extra queries of a batch hold, in host memory.

    Attributes:
        is_used: (B, E) bool; a query without a target is padding.
        group: (B, E) int64, the group of each query.
        target: (P,) int64, index of the target among those of the batch, image by image.
        weight: (P,) how much the loss of a query counts, 1/G unless only some targets are denoised.
    """

    is_used: Tensor
    group: Tensor
    target: Tensor
    weight: Tensor


class Denoising(TrainingAid):
    """Queries that start at a noised target and are trained to recover it, without matching, from the first step on.

    Each group has every target once, with its label sometimes replaced, its centre shifted and its sides scaled. The
    content of such a query is the embedded label; its position is the position code of the noised centre plus the
    output of a small network for the whole noised box. Groups do not attend to each other, and the learned queries do
    not attend to any group, so their predictions are the same as without denoising.

    The noise of an image depends only on the `noise_seed` of its labels, if they have one, and not on the batch, the
    process or the device.

    An image has at most `max_queries` of them, because the memory of self-attention grows with their square: with many
    targets it has fewer groups, and with more targets than that a single group of some of them, others in each step.
    The losses of such an image are scaled up as if it had all.

    Paper: DN-DETR, sec. 4; the limit: DINO, app. D.1, "Dynamic DN groups".

    Args:
        num_labels: C.
        width: D.
        num_groups: The largest G.
        temperature: Temperature of the sine embedding of the noised boxes; ideally that of the model's positions.
        label_noise: Probability that a label is replaced by a random one.
        centre_noise: Maximum shift of a centre, as a fraction of the side.
        size_noise: Maximum change of a side, as a fraction of it.
        max_queries: Maximum of G·n.
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
        max_queries: int = MAX_QUERIES,
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.width = width
        self.num_groups = num_groups
        self.temperature = temperature
        self.label_noise = label_noise
        self.centre_noise = centre_noise
        self.size_noise = size_noise
        self.max_queries = max_queries
        self.label_embedding = nn.Embedding(num_labels, width)
        self.position_mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        nn.init.zeros_(cast(Tensor, self.position_mlp[-1].weight))  # positions start as those of the centre alone
        nn.init.zeros_(cast(Tensor, self.position_mlp[-1].bias))

    def extra_queries(self, labels: Sequence[DetectionLabels], num_queries: int) -> ExtraQueries:
        """Return noised queries for each image; padding queries attend to themselves and the learned ones."""
        slots = self._slots(labels)
        device = labels[0]["class_labels"].device
        index, target = _to(slots.is_used.flatten().nonzero()[:, 0], device), _to(slots.target, device)
        classes = torch.zeros(slots.is_used.shape, dtype=torch.int64, device=device)
        boxes = torch.full((*slots.is_used.shape, 4), 0.5, device=device)
        classes.view(-1)[index] = torch.cat([label["class_labels"] for label in labels])[target].to(torch.int64)
        boxes.view(-1, 4)[index] = torch.cat([label["boxes"] for label in labels])[target].to(boxes.dtype)
        draws = _to(self._draws(labels, slots.is_used), device)  # (B, E, 6)
        flipped, others = draws[..., 0] < self.label_noise, (draws[..., 1] * self.num_labels).to(torch.int64)
        content = self.label_embedding(torch.where(flipped, others, classes))
        noised = self.add_noise(boxes, draws[..., 2:])
        embedded = sine_embedding(noised, self.width // 2, self.temperature).flatten(-2)  # (B, E, 4 · D/2)
        centres = sine_position(noised[..., :2], self.width, self.temperature)  # (B, E, D), as for encoder tokens
        positions = centres + self.position_mlp(embedded.to(content.dtype))
        return ExtraQueries(content, positions, _attention_mask(slots, num_queries, device))

    def _slots(self, labels: Sequence[DetectionLabels]) -> _Slots:
        """Lay out the queries of a batch: each image's groups one after the other, each with the same targets."""
        counts = [len(label["class_labels"]) for label in labels]
        chosen = [self._denoised(label) for label in labels]
        groups = [min(self.num_groups, max(1, self.max_queries // max(len(targets), 1))) for targets in chosen]
        most = max(map(len, chosen))
        fits = self.num_groups * most <= self.max_queries
        # the distance of an image's groups: the same for all images, unless that took more than the maximum
        strides = torch.tensor([most if fits else max(len(targets), 1) for targets in chosen])[:, None]
        length = max(count * len(targets) for count, targets in zip(groups, chosen, strict=True))
        slot = torch.arange(self.num_groups * most if fits else length)
        group, place = slot // strides, slot % strides  # (B, E)
        sizes = torch.tensor([len(targets) for targets in chosen])[:, None]
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        weights = [count / max(len(one) * g, 1) for count, one, g in zip(counts, chosen, groups, strict=True)]
        repeats = [len(targets) * count for targets, count in zip(chosen, groups, strict=True)]
        return _Slots(
            is_used=(place < sizes) & (group < torch.tensor(groups)[:, None]),
            group=group,
            target=torch.cat(
                [(one + first).repeat(g) for one, first, g in zip(chosen, starts[:-1], groups, strict=True)]
            ),
            weight=torch.tensor(weights).repeat_interleave(torch.tensor(repeats)),
        )

    def _denoised(self, label: DetectionLabels) -> Tensor:
        """Return the indices (n,) of the targets of an image that are denoised: all, or `max_queries` random ones."""
        count = len(label["class_labels"])
        if count <= self.max_queries:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(label.get("noise_seed", 0))  # for the queries as for their losses
        return torch.randperm(count, generator=generator)[: self.max_queries].sort().values

    def _draws(self, labels: Sequence[DetectionLabels], is_used: Tensor) -> Tensor:
        """Return (B, E, 6) random numbers in [0, 1), in host memory; zero for padding queries."""
        draws = torch.zeros(*is_used.shape, 6)
        for image_draws, label, used in zip(draws, labels, is_used, strict=True):
            seed = label.get("noise_seed")
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            image_draws[used] = torch.rand(int(used.sum()), 6, generator=generator)
        return draws

    def add_noise(self, boxes: Tensor, draws: Tensor) -> Tensor:
        """Shift and scale boxes, (…, 4) cxcywh, by (…, 4) random numbers in [0, 1), and clip them to the image."""
        centre, size = boxes[..., :2], boxes[..., 2:]
        move = (2 * draws[..., :2] - 1) * self.centre_noise * size
        scale = 1 + (2 * draws[..., 2:] - 1) * self.size_noise
        return torch.cat([(centre + move).clamp(0, 1), (size * scale).clamp(0, 1)], dim=-1)

    def note(self, counts: NDArray[np.int64]) -> str | None:
        """Return a note if images have fewer groups than requested."""
        limit = self.max_queries // self.num_groups
        num_limited, num_sampled = int((counts > limit).sum()), int((counts > self.max_queries).sum())
        if num_limited == 0:
            return None
        has = "has" if num_limited == 1 else "have"
        sampled = f"; of more than {self.max_queries}, each step denoises others" if num_sampled else ""
        return (
            f"denoising has at most {self.max_queries} queries per image, so {counted(num_limited, 'image')} with "
            f"more than {limit} objects {has} fewer than {self.num_groups} groups{sampled}."
        )

    def losses(self, batch: AidedBatch) -> dict[str, Tensor]:
        """Return `loss_ce_denoising`, `loss_bbox_denoising` and `loss_giou_denoising`.

        They are means over the noised targets of the step, summed over the decoder layers.
        """
        logits, boxes = batch.detector.predict(cast(Tensor, batch.extra_states))  # (L, B, E, C + 1), (L, B, E, 4)
        slots = self._slots(batch.labels)
        index, target = _to(slots.is_used.flatten().nonzero()[:, 0], logits.device), _to(slots.target, logits.device)
        weight = _to(slots.weight, logits.device).to(logits.dtype) / batch.num_boxes  # (P,)
        classes = torch.cat([label["class_labels"] for label in batch.labels])[target].to(torch.int64)
        targets = torch.cat([label["boxes"] for label in batch.labels])[target].to(boxes.dtype)
        logits, boxes = logits.flatten(1, 2)[:, index], boxes.flatten(1, 2)[:, index]  # (L, P, …)
        l1, giou_loss = box_distances(boxes, targets)  # (L, P)
        class_loss = F.cross_entropy(logits.flatten(0, 1), classes.repeat(len(logits)), reduction="none")  # (L·P,)
        return {
            "loss_ce_denoising": (class_loss.view_as(l1) * weight).sum(),
            "loss_bbox_denoising": (l1 * weight).sum(),
            "loss_giou_denoising": (giou_loss * weight).sum(),
        }


def _attention_mask(slots: _Slots, num_queries: int, device: torch.device) -> Tensor:
    """Return (B, Q + E, Q + E) bool: learned queries see each other, a group sees itself and the learned ones."""
    learned = torch.full((len(slots.group), num_queries), -1)
    owner = _to(torch.cat([learned, slots.group], dim=1), device)  # (B, Q + E)
    is_real = _to(torch.cat([learned == -1, slots.is_used], dim=1), device)  # (B, Q + E)
    seen = (owner[:, :, None] == owner[:, None]) | (owner == -1)[:, None]  # (B, Q + E, Q + E)
    return (seen & is_real[:, None]) | torch.eye(owner.shape[1], dtype=torch.bool, device=device)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
