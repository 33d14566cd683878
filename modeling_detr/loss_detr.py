"""Matching and loss, which make DETR a set predictor. They have no weights and use no collectives.

Both handle all decoder layers at once: one cost tensor that holds only each image's own targets, one copy to the host
for the assignment, one operation for the losses. Normalisers are arguments: the training loop knows how an optimizer
step is split over processes and micro-batches, the loss does not.

Shapes: L decoder layers · B images · Q queries · C classes (index C is "no object") · N targets of one image ·
T targets of all images of the batch · M matched pairs of the batch, Σ min(N, Q).
"""

import itertools
import logging
import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .boxes_detr import BoxComparison, plane_distances
from .structures_detr import Assignment, DetectionLabels


_logger = logging.getLogger(__name__)

# Pairs of a query and a target whose costs are computed at once, about 100 bytes each. On a CPU, larger chunks do not
# fit into the cache and are slower; on a GPU, smaller ones take more kernels.
_PAIRS_PER_CHUNK_ON_CPU = 2**16
_PAIRS_PER_CHUNK = 2**18
# Limit of memory. The masks of a batch of usual size stay below it, and are computed as a whole.
MAX_MASK_PIXELS = 2**27  # of all masks of a batch, 125 of 800x1333, about 6 GB until the backward pass

# Replaces costs that are not finite. Real costs, sums of a probability, an L1 distance and a GIoU, are far smaller.
_UNUSABLE_COST = 1e6
_TERMS = "loss_ce", "loss_bbox", "loss_giou"
_NO_MATCH_CLASS_ERROR = 100.0  # percent; the original's, where no query is matched


class HungarianMatcher:
    """Assigns queries to targets one to one, at the lowest total cost.

    cost = class_cost · (-p[target class]) + bbox_cost · L1 + giou_cost · (-GIoU)

    Paper: sec. 3.1, eq. 1. Original: models/matcher.py. Differs from the original: costs are computed only for an
    image's own targets, for all decoder layers in one tensor, and copied to the host at once.

    Args:
        class_cost: Weight of the class probability.
        bbox_cost: Weight of the L1 distance of the boxes.
        giou_cost: Weight of the generalised IoU.
    """

    def __init__(self, class_cost: float = 1.0, bbox_cost: float = 5.0, giou_cost: float = 2.0) -> None:
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost

    def __call__(self, logits: Tensor, pred_boxes: Tensor, labels: Sequence[DetectionLabels]) -> list[Assignment]:
        """Matches one decoder layer.

        Args:
            logits: (B, Q, C + 1).
            pred_boxes: (B, Q, 4) cxcywh in [0, 1].
            labels: B dicts with `class_labels` (N,) integers and `boxes` (N, 4) cxcywh in [0, 1].

        Returns:
            An `Assignment` per image, min(N, Q) pairs ordered by query, on the host.
        """
        log_probabilities = _at_least_float32(logits).log_softmax(-1)
        return self.match_layers(log_probabilities[None], pred_boxes[None], labels)[0]

    @torch.no_grad()
    def match_layers(
        self, log_probabilities: Tensor, pred_boxes: Tensor, labels: Sequence[DetectionLabels]
    ) -> "LayerAssignments":
        """Matches each decoder layer separately.

        Args:
            log_probabilities: (L, B, Q, C + 1), the log-softmax of the logits, which the class loss needs too.
            pred_boxes: (L, B, Q, 4) cxcywh in [0, 1].
            labels: As for one layer.
        """
        counts = [len(label["class_labels"]) for label in labels]
        costs = self.costs(log_probabilities, pred_boxes, labels).to("cpu", torch.float64).numpy()  # (L, T, Q)
        ends = itertools.accumulate(counts)
        images = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
        try:
            pairs = [linear_sum_assignment(layer[image]) for layer in costs for image in images]
        except ValueError:  # of NaN or infinity; the loss of such a step is not finite, so the training loop stops
            costs = np.nan_to_num(costs, nan=_UNUSABLE_COST, posinf=_UNUSABLE_COST, neginf=-_UNUSABLE_COST)
            pairs = [linear_sum_assignment(layer[image]) for layer in costs for image in images]
        return LayerAssignments(pairs, counts, log_probabilities.shape[2])

    def costs(self, log_probabilities: Tensor, pred_boxes: Tensor, labels: Sequence[DetectionLabels]) -> Tensor:
        """(L, T, Q) costs of every target and each query of its image; see `match_layers` for the arguments."""
        device = log_probabilities.device
        num_layers, num_images, num_queries = log_probabilities.shape[:3]
        counts = [len(label["class_labels"]) for label in labels]
        # (T,), made on the host, which knows its length
        image_of_target = torch.from_numpy(np.arange(num_images).repeat(counts)).to(device, non_blocking=True)
        classes = torch.cat([label["class_labels"] for label in labels]).to(device, torch.int64)  # (T,)
        boxes = torch.cat([label["boxes"] for label in labels]).to(device, pred_boxes.dtype)  # (T, 4)
        # coordinates in adjacent memory: (4, L, B, Q), (4, T, 1)
        queries, targets = pred_boxes.movedim(-1, 0).contiguous(), boxes.T[..., None]
        costs = pred_boxes.new_empty(num_layers, len(classes), num_queries)
        pairs = _PAIRS_PER_CHUNK_ON_CPU if device.type == "cpu" else _PAIRS_PER_CHUNK
        step = max(1, pairs // (num_layers * num_queries))
        for first in range(0, len(classes), step):
            chunk = slice(first, first + step)  # of t targets
            images = image_of_target[chunk]
            # the two index tensors are not adjacent, so the result is (t, L, Q); (L, t, Q, C + 1) is never allocated
            class_score = log_probabilities[:, images, :, classes[chunk]].exp_().transpose(0, 1)  # (L, t, Q)
            l1, giou = plane_distances(queries.index_select(2, images), targets[:, None, chunk])  # (L, t, Q)
            cost = l1.mul_(self.bbox_cost).sub_(class_score, alpha=self.class_cost)
            torch.sub(cost, giou, alpha=self.giou_cost, out=costs[:, chunk])
        return costs


class LayerAssignments:
    """The assignments of L decoder layers, on the host; a sequence of L lists of B `Assignment`.

    Every layer matches min(N, Q) pairs per image, so that the layers are rows of one array.

    Args:
        pairs: L·B indices of (targets, queries) of an image, layer by layer.
        counts: N of each image.
        num_queries: Q.

    Attributes:
        pairs: (2, L, M) indices of the batch's B·Q queries, ascending, and of its T targets.
    """

    def __init__(
        self, pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], counts: Sequence[int], num_queries: int
    ) -> None:
        self._matched = [min(count, num_queries) for count in counts]
        firsts = [range(0, len(counts) * num_queries, num_queries), itertools.accumulate(counts[:-1], initial=0)]
        self._firsts = np.array([[*first] for first in firsts]).repeat(self._matched, axis=1)  # (2, M)
        shape = len(pairs) // len(counts), self._firsts.shape[-1]
        targets, queries = (np.concatenate(indices).reshape(shape) for indices in zip(*pairs, strict=True))
        num_targets = max(sum(counts), 1)
        first_query, first_target = self._firsts
        keys = np.sort(queries * num_targets + targets + (first_query * num_targets + first_target), axis=1)
        self.pairs = np.empty((2, *shape), np.int64)
        np.divmod(keys, num_targets, out=(self.pairs[0], self.pairs[1]))

    def __len__(self) -> int:
        return self.pairs.shape[1]

    def __iter__(self) -> Iterator[list[Assignment]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, layer: int) -> list[Assignment]:
        """The assignments of one layer, pairs ordered by query."""
        pairs = torch.from_numpy(self.pairs[:, layer] - self._firsts)
        return [Assignment(*image) for image in pairs.split(self._matched, dim=1)]

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`pairs` as two tensors, (L, M) each, copied to the device at once."""
        queries, targets = torch.from_numpy(self.pairs).to(device, non_blocking=True)
        return queries, targets


def sum_class_weights(
    num_images: float | Tensor, num_matched: float | Tensor, num_queries: int, eos_coefficient: float
) -> float | Tensor:
    """The class weights of all queries, by which the class loss is divided: eos·B·Q + (1 - eos)·Σ min(N, Q).

    Args:
        num_images: B, over the batch or the whole optimizer step; a number or a scalar tensor.
        num_matched: Queries of these images that are matched to a target, Σ min(N, Q); likewise.
        num_queries: Q, of one image.
        eos_coefficient: Class weight of "no object"; every class weighs 1.
    """
    return eos_coefficient * num_images * num_queries + (1 - eos_coefficient) * num_matched


@dataclass(frozen=True)
class LossNumbers:
    """What the terms of a loss are means over.

    A term times its number is a sum over images, and so are the numbers: both add up over batches and processes, and
    the quotient of the two totals does not depend on how the images were split.

    Attributes:
        images: B.
        boxes: Boxes, including those for which an image has no query left.
        matched: Queries that are matched to a target, Σ min(N, Q).
        class_weights: See `sum_class_weights`.
    """

    images: int = 0
    boxes: int = 0
    matched: int = 0
    class_weights: float = 0.0

    @classmethod
    def of(cls, labels: Sequence[DetectionLabels], num_queries: int, eos_coefficient: float) -> "LossNumbers":
        """Counts the numbers of a batch."""
        counts = [len(label["class_labels"]) for label in labels]
        matched = sum(min(count, num_queries) for count in counts)
        class_weights = float(sum_class_weights(len(counts), matched, num_queries, eos_coefficient))
        return cls(len(counts), sum(counts), matched, class_weights)

    def __add__(self, other: "LossNumbers") -> "LossNumbers":
        return LossNumbers(
            self.images + other.images,
            self.boxes + other.boxes,
            self.matched + other.matched,
            self.class_weights + other.class_weights,
        )

    def divisor(self, term: str) -> float:
        """The number that a term of `SetCriterion` or `MaskCriterion` is divided by; that of any other: the images."""
        if term.startswith("loss_ce"):
            return self.class_weights
        if term.startswith("loss_"):
            return max(self.boxes, 1)
        return self.matched if term == "class_error" else self.images

    def mean(self, term: str, total: float) -> float:
        """The mean of a term, given the total of term times divisor over all batches."""
        divisor = self.divisor(term)
        return total / divisor if divisor else _NO_MATCH_CLASS_ERROR


class CriterionOutput(NamedTuple):
    """The weighted sum of all terms, the unweighted terms under the original's names, and the assignments."""

    loss: Tensor
    loss_dict: dict[str, Tensor]
    assignments: LayerAssignments


class SetCriterion:
    """The loss between a set of predictions and the set of targets matched to them.

    Classification over all queries ("no object" weighted by `eos_coefficient`), L1 and generalised IoU over the
    matched ones. Computed in at least float32.

    Paper: sec. 3.1, eq. 2. Original: models/detr.py, `SetCriterion`. Differs from the original: normalisers are
    arguments, because a loss divided by the counts of one process depends on the number of processes.

    Args:
        matcher: Assigns queries to targets.
        eos_coefficient: Class weight of "no object"; every class weighs 1.
        bbox_loss_coefficient: Weight of the L1 term in the sum.
        giou_loss_coefficient: Weight of the generalised IoU term in the sum.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        eos_coefficient: float = 0.1,
        bbox_loss_coefficient: float = 5.0,
        giou_loss_coefficient: float = 2.0,
    ) -> None:
        self.matcher = matcher
        self.eos_coefficient = eos_coefficient
        self._reported_surplus = 0
        self.weights = {"loss_ce": 1.0, "loss_bbox": bbox_loss_coefficient, "loss_giou": giou_loss_coefficient}

    def __call__(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        labels: Sequence[DetectionLabels],
        *,
        num_boxes: float | Tensor | None = None,
        class_weight_sum: float | Tensor | None = None,
    ) -> CriterionOutput:
        """Computes the loss of every decoder layer; the names of the last layer's terms have no number.

        Args:
            logits: (L, B, Q, C + 1).
            pred_boxes: (L, B, Q, 4) cxcywh in [0, 1].
            labels: B dicts with `class_labels` (N,) and `boxes` (N, 4) cxcywh in [0, 1] of the unpadded image.
            num_boxes: Divisor of the box terms: the boxes of the whole optimizer step. None: this batch's, at least 1.
            class_weight_sum: Divisor of the class term: the class weights of all queries of the whole step, see
                `sum_class_weights`. None: this batch's.
        """
        logits, pred_boxes = _at_least_float32(logits), _at_least_float32(pred_boxes)
        counts = [len(label["class_labels"]) for label in labels]
        num_images, num_queries = logits.shape[1:3]
        self._report_surplus(counts, num_queries)
        if num_boxes is None:
            num_boxes = max(sum(counts), 1)
        if class_weight_sum is None:
            class_weight_sum = self.class_weight_sum(counts, num_queries)

        with _without_autocast(logits.device.type):
            log_probabilities = logits.log_softmax(-1)  # for the matcher and the class loss
            assignments = self.matcher.match_layers(log_probabilities, pred_boxes, labels)
            queries, targets = assignments.indices(logits.device)  # (L, M) each
            classes = torch.cat([label["class_labels"] for label in labels]).to(logits.device, torch.int64)  # (T,)
            boxes = torch.cat([label["boxes"] for label in labels]).to(logits.device, pred_boxes.dtype)  # (T, 4)

            query_classes = queries.new_full((len(logits), num_images * num_queries), logits.shape[-1] - 1)
            query_classes.scatter_(1, queries, classes[targets])  # (L, B·Q)
            query_weights = logits.new_full(query_classes.shape, self.eos_coefficient).scatter_(1, queries, 1.0)
            sums = _SetLosses.apply(
                log_probabilities, pred_boxes, query_classes, query_weights, queries, boxes[targets]
            )  # (3, L)
            numbers = [*map(self.weights.__getitem__, _TERMS), class_weight_sum, num_boxes, num_boxes]
            weights, divisors = _column(numbers, sums).chunk(2)  # (3, 1) each
            total = (sums * (weights / divisors)).sum()
            values = torch.cat([sums.detach() / divisors, _cardinality_error(logits.detach(), counts)[None]])

        terms = dict(zip(_term_names(len(logits)), values.flatten().unbind(), strict=True))
        terms["class_error"] = _class_error(logits[-1].detach(), queries[-1], classes[targets[-1]])
        return CriterionOutput(total, terms, assignments)

    def class_weight_sum(self, counts: Sequence[int], num_queries: int) -> float:
        """The class weights of all queries of a batch whose images have `counts` targets; see `sum_class_weights`."""
        num_matched = sum(min(count, num_queries) for count in counts)
        return float(sum_class_weights(len(counts), num_matched, num_queries, self.eos_coefficient))

    def _report_surplus(self, counts: Sequence[int], num_queries: int) -> None:
        surplus = sum(max(count - num_queries, 0) for count in counts)
        if surplus > self._reported_surplus:  # only when it grows, not in every batch of every epoch
            self._reported_surplus = surplus
            _logger.warning(
                "The loss ignores %d objects of this batch: an image has up to %d objects, but the model only %d "
                "queries. Raise num_queries to learn from all of them.",
                surplus,
                max(counts),
                num_queries,
            )


class _SetLosses(torch.autograd.Function):
    """The losses of the matched queries of each layer as one operation: in small batches, most of the time would go
    into recording the many small ones and their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        log_probabilities: Tensor,
        pred_boxes: Tensor,
        classes: Tensor,
        weights: Tensor,
        queries: Tensor,
        target_boxes: Tensor,
    ) -> Tensor:
        """Sums over the queries of a layer: cross-entropy, L1 and GIoU losses.

        Args:
            ctx: Keeps what the gradient needs.
            log_probabilities: (L, B, Q, C + 1).
            pred_boxes: (L, B, Q, 4) cxcywh.
            classes: (L, B·Q) int64, the class of each query.
            weights: (L, B·Q), their weights.
            queries: (L, M) indices of those of the B·Q queries that are matched.
            target_boxes: (L, M, 4) cxcywh, what they are matched with.

        Returns:
            (3, L).
        """
        rows = queries[..., None].expand(-1, -1, 4)
        boxes = BoxComparison.of(pred_boxes.flatten(1, 2).gather(1, rows), target_boxes)
        scores = log_probabilities.flatten(1, 2).gather(2, classes[..., None])[..., 0]  # (L, B·Q)
        ctx.shape = log_probabilities.shape
        ctx.save_for_backward(classes, weights, rows, *boxes)
        return torch.stack([-(scores * weights).sum(1), boxes.l1.sum(1), boxes.giou_loss.sum(1)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_sums: Tensor) -> tuple[Tensor | None, ...]:
        """(3, L) → the gradients of log-probabilities and boxes."""
        classes, weights, rows, *boxes = ctx.saved_tensors
        by_class_loss, by_l1, by_giou_loss = by_sums[..., None]  # (L, 1) each
        by_scores = (weights * -by_class_loss)[..., None]
        by_log_probabilities = weights.new_zeros(*weights.shape, ctx.shape[-1])
        by_log_probabilities.scatter_(2, classes[..., None], by_scores)
        by_boxes = BoxComparison(*boxes).gradient(by_l1, by_giou_loss)
        by_pred_boxes = weights.new_zeros(*weights.shape, 4).scatter_(1, rows, by_boxes)
        return by_log_probabilities.view(ctx.shape), by_pred_boxes.view(*ctx.shape[:3], 4), None, None, None, None


def _column(numbers: Sequence[float | Tensor], like: Tensor) -> Tensor:
    """n numbers or scalar tensors → (n, 1)."""
    if any(isinstance(number, Tensor) for number in numbers):  # without reading them, which would synchronise
        filled = [n.to(like) if isinstance(n, Tensor) else like.new_full((), n) for n in numbers]
        return torch.stack(filled)[:, None]
    return torch.tensor(numbers, dtype=like.dtype)[:, None].to(like.device, non_blocking=True)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Computes in the dtype of the inputs; `torch.autocast` takes time, so it is entered only where it is on."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


@cache
def _term_names(num_layers: int) -> list[str]:
    """The names of the terms, and within each of the layers, of which the last has no number."""
    suffixes = [*(f"_{layer}" for layer in range(num_layers - 1)), ""]
    return [name + suffix for name in (*_TERMS, "cardinality_error") for suffix in suffixes]


@torch.no_grad()
def _cardinality_error(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """(L,) mean over images of |queries that predict an object - targets|. For the log only, without a gradient."""
    is_object = logits[..., :-1].amax(-1) >= logits[..., -1]  # (L, B, Q); several times faster than argmax
    predicted = is_object.sum(-1, dtype=logits.dtype)  # (L, B)
    expected = torch.tensor(counts, dtype=logits.dtype).to(logits.device, non_blocking=True)
    return (predicted - expected).abs().mean(-1)


def _class_error(logits: Tensor, queries: Tensor, classes: Tensor) -> Tensor:
    """Percentage of matched queries of one layer ((B, Q, C + 1), (M,), (M,)) with a wrong class; 100 if none."""
    if len(classes) == 0:
        return logits.new_tensor(_NO_MATCH_CLASS_ERROR)
    predicted = logits.flatten(0, 1)[queries].argmax(-1)
    return (predicted != classes).sum(dtype=logits.dtype) * (100 / len(classes))


# Masks


class MaskCriterion:
    """The loss of the matched queries' masks: focal loss and dice loss, on the whole padded canvas.

    Paper: sec. 4.4. Original: models/detr.py, `SetCriterion.loss_masks`; models/segmentation.py, `sigmoid_focal_loss`
    and `dice_loss`. Computed in at least float32.

    Args:
        mask_loss_coefficient: Weight of the focal loss in the sum.
        dice_loss_coefficient: Weight of the dice loss in the sum.
        max_pixels: Pixels of all masks of a batch that are computed as a whole. More are computed in parts, and again
            in the backward pass: the same numbers in less memory.
    """

    def __init__(
        self,
        mask_loss_coefficient: float = 1.0,
        dice_loss_coefficient: float = 1.0,
        max_pixels: int = MAX_MASK_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self.weights = {"loss_mask": mask_loss_coefficient, "loss_dice": dice_loss_coefficient}

    def __call__(
        self,
        mask_logits: Tensor,
        labels: Sequence[DetectionLabels],
        assignments: Sequence[Assignment],
        canvas_size: tuple[int, int],
        num_boxes: float | Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the weighted sum of both terms, and the unweighted terms.

        Args:
            mask_logits: (M, h, w), the matched queries' masks in the order of `flat_queries`.
            labels: B dicts with `masks` (N, height, width) bool of the unpadded image.
            assignments: One per image.
            canvas_size: Height and width of the padded batch.
            num_boxes: Divisor of the terms: the boxes of the whole optimizer step. None: this batch's, at least 1.
        """
        if num_boxes is None:
            num_boxes = max(sum(len(label["class_labels"]) for label in labels), 1)
        images = [index for index, match in enumerate(assignments) for _ in range(len(match.targets))]
        targets = [target for match in assignments for target in match.targets.tolist()]

        def losses(logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
            """(K, h, w) logits of the masks from `start` on → (K,) focal and (K,) dice losses."""
            stop = start + len(logits)
            masks = _padded_masks(labels, images[start:stop], targets[start:stop], canvas_size, logits).flatten(1)
            logits = F.interpolate(logits[:, None], size=canvas_size, mode="bilinear", align_corners=False)
            logits = logits.flatten(1)  # (K, H·W)
            return _focal_loss(logits, masks).mean(1), _dice_loss(logits, masks)

        with _without_autocast(mask_logits.device.type):
            logits = _at_least_float32(mask_logits)
            pixels = canvas_size[0] * canvas_size[1]
            if len(logits) * pixels <= self.max_pixels:
                focal_loss, dice_loss = losses(logits, 0)
            else:
                step = max(1, self.max_pixels // 8 // pixels)
                chunks = [
                    checkpoint(losses, chunk, index * step, use_reentrant=False, preserve_rng_state=False)
                    for index, chunk in enumerate(logits.split(step))
                ]
                focal_loss, dice_loss = (torch.cat(parts) for parts in zip(*chunks, strict=True))
            terms = {"loss_mask": focal_loss.sum() / num_boxes, "loss_dice": dice_loss.sum() / num_boxes}
        total = sum((self.weights[name] * value for name, value in terms.items()), logits.new_zeros(()))
        return total, {name: value.detach() for name, value in terms.items()}


def flat_queries(assignments: Sequence[Assignment], device: torch.device) -> tuple[Tensor, Tensor]:
    """The matched queries of a batch, image by image: (M,) image indices and (M,) query indices, on `device`."""
    images = [torch.full_like(match.queries, image_index) for image_index, match in enumerate(assignments)]
    pairs = torch.stack([torch.cat(images), torch.cat([match.queries for match in assignments])])
    image_index, query_index = pairs.to(device, non_blocking=True)
    return image_index, query_index


def _padded_masks(
    labels: Sequence[DetectionLabels],
    images: Sequence[int],
    targets: Sequence[int],
    size: tuple[int, int],
    like: Tensor,
) -> Tensor:
    """The masks (K, H, W) of K targets, each of an image, on the padded canvas; zero in the padding."""
    masks = like.new_zeros((len(targets), *size))
    start = 0
    for image, group in itertools.groupby(zip(images, targets, strict=True), key=operator.itemgetter(0)):
        image_masks = labels[image]["masks"]
        chosen = image_masks[torch.tensor([target for _, target in group], device=image_masks.device)]  # (k, h, w)
        masks[start : start + len(chosen), : chosen.shape[1], : chosen.shape[2]] = chosen
        start += len(chosen)
    return masks


def _focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Binary cross-entropy (…) of logits (…) and targets (…) in {0, 1}, with a low weight for easy pixels.

    Source: Lin et al., "Focal Loss for Dense Object Detection", eq. 5.
    """
    probability = logits.sigmoid()
    missed = (probability - targets).abs()  # 1 - the probability of the target
    weight = 1 - alpha + (2 * alpha - 1) * targets
    return weight * missed**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(M, pixels) logits and targets → (M,) 1 - (2·overlap + 1) / (sum of both areas + 1)."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probability.sum(-1) + targets.sum(-1) + 1)
