"""Supervision that exists only while a DETR trains, so that it learns from little.

`build_training_model` puts both beside the detector in one module. Its forward has the detector's signature and
output; its loss has further terms. What is exported is `.detector`, the plain DETR, which knows nothing of all this.

Shapes: B images · Q queries · S encoder tokens, the cells of the feature map · D width · C classes · N targets of
one image, n the most of any image of the batch · G groups of denoising queries · E = G·n extra queries.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_detr.backbone_detr import sine_embedding, sine_position
from modeling_detr.loss_detr import SetCriterion, box_distances
from modeling_detr.modeling_detr import (
    DetrDecoderLayer,
    DetrForObjectDetection,
    DetrObjectDetectionOutput,
    ExtraQueries,
)
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.structures_detr import DetectionLabels


class EncoderSupervision(nn.Module):
    """Asks every token of the encoder what it sees, through the decoder's last norm and the detector's own heads.

    A token is positive if, measured in a box's half-sides, it lies within `radius` of the box's centre (the larger of
    |dx| and |dy|), and so is the token nearest to each centre; of several boxes it belongs to the nearest. All other
    tokens are "no object". The terms are those of the set loss. Each image's are divided by its own number of positive
    tokens, the class term over all tokens too (divided by the class weights it would be several times smaller, and the
    decoder start several times later: measured), and images weigh by their share of the step's objects, so that the
    sum does not depend on how a step is split over processes.

    Without it, the decoder has to learn where to look before the encoder has anything to show: on small data the
    original's recipe stays at AP 0 for hours.

    Args:
        eos_coefficient: Class weight of "no object" among the tokens.
        radius: How far from a centre a token still belongs to a box, in half-sides.
    """

    def __init__(self, eos_coefficient: float, radius: float = 0.4) -> None:
        super().__init__()
        self.eos_coefficient = eos_coefficient
        self.radius = radius

    def forward(
        self,
        detector: DetrForObjectDetection,
        output: DetrObjectDetectionOutput,
        pixel_mask: Tensor | None,
        labels: Sequence[DetectionLabels],
        num_boxes: float | Tensor,
    ) -> dict[str, Tensor]:
        """The terms `loss_ce_encoder`, `loss_bbox_encoder` and `loss_giou_encoder` of a batch."""
        memory, feature_mask = cast(Tensor, output.encoder_last_hidden_state), cast(Tensor, output.feature_mask)
        logits, boxes = detector.predict(detector.model.decoder.layernorm(memory))  # (B, S, C + 1), (B, S, 4)
        real = feature_mask.flatten(1)  # (B, S)
        owner = self.owners(token_centres(feature_mask, pixel_mask), real, labels)  # (B, S), -1 = no object
        counts = torch.tensor([len(label["class_labels"]) for label in labels])
        first_target = (counts.cumsum(0) - counts).to(owner.device)  # (B,) row of each image's first target
        image_share = counts.to(owner.device, logits.dtype) / num_boxes  # (B,)

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
        """Which target each token belongs to: (B, S, 2) centres, (B, S) real tokens → (B, S) index, -1 for none."""
        owners = torch.full(real.shape, -1, dtype=torch.int64, device=centres.device)
        for image, label in enumerate(labels):
            boxes = label["boxes"].to(centres.dtype)  # (N, 4)
            if len(boxes) == 0:
                continue
            offset = centres[image, None] - boxes[:, None, :2]  # (N, S, 2)
            half_sides = (boxes[:, None, 2:] / 2).clamp(min=1e-6)
            distance = (offset / half_sides).abs().amax(-1)  # (N, S)
            distance = distance.masked_fill(~real[image], torch.inf)
            nearest_token = offset.square().sum(-1).masked_fill(~real[image], torch.inf).argmin(1)  # (N,)
            rank = torch.where(distance <= self.radius, distance, torch.inf)
            rank[torch.arange(len(boxes), device=rank.device), nearest_token] = -1.0  # each box gets one, always
            best, owner = rank.min(0)  # (S,)
            owners[image] = torch.where(torch.isfinite(best), owner, -1)
        return owners


def token_centres(feature_mask: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Centres of the encoder's tokens, (B, S, 2) as (x, y) relative to each unpadded image.

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


class Denoising(nn.Module):
    """Queries that start at a noised target and have to find back; they bypass the matching, so they learn at once.

    Each group holds every target once, with its label flipped at times, its centre moved and its sides scaled. The
    content of such a query embeds the label, its position the noised box: the encoder's own code of the centre, and
    what a small network makes of the whole box. Groups see neither each other nor are they
    seen by the learned queries, so that what those compute is what they compute alone.

    What is drawn for an image follows its label's `noise_seed`, where it has one, and then depends neither on the
    batch nor on the process that it is in, nor on the device.

    Paper: DN-DETR, sec. 4.

    Args:
        num_labels: C.
        width: D.
        num_groups: G.
        temperature: Of the sine embedding of the noised boxes; best that of the model's positions.
        label_noise: Probability that a label is replaced by a random one.
        centre_noise: A centre moves by up to this share of the side, each way.
        size_noise: A side is scaled by 1 ± this.
    """

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
        nn.init.zeros_(cast(Tensor, self.position_mlp[-1].weight))  # at first a position is that of the centre alone
        nn.init.zeros_(cast(Tensor, self.position_mlp[-1].bias))

    def queries(self, labels: Sequence[DetectionLabels], num_queries: int) -> ExtraQueries:
        """G·n noised queries for each image; those past an image's own targets attend only to themselves."""
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
        noised = self._noised(boxes, draws[..., 2:])
        embedded = sine_embedding(noised, self.width // 2, self.temperature).flatten(-2)  # (B, E, 4 · D/2)
        centres = sine_position(noised[..., :2], self.width, self.temperature)  # (B, E, D), as tokens have
        positions = centres + self.position_mlp(embedded.to(content.dtype))
        return ExtraQueries(content, positions, self._attention_mask(counts, most, num_queries, device))

    def _draws(self, labels: Sequence[DetectionLabels], counts: list[int], most: int) -> Tensor:
        """(B, E, 6) random numbers in [0, 1), on the host; zero for what is filling."""
        draws = torch.zeros(len(labels), self.num_groups, most, 6)
        for own, label, count in zip(draws, labels, counts, strict=True):
            seed = label.get("noise_seed")
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            own[:, :count] = torch.rand(self.num_groups, count, 6, generator=generator)
        return draws.flatten(1, 2)

    def _noised(self, boxes: Tensor, draws: Tensor) -> Tensor:
        """(…, 4) cxcywh and as many numbers in [0, 1) → the boxes, moved and scaled, clipped to the image."""
        centre, size = boxes[..., :2], boxes[..., 2:]
        move = (2 * draws[..., :2] - 1) * self.centre_noise * size
        scale = 1 + (2 * draws[..., 2:] - 1) * self.size_noise
        return torch.cat([(centre + move).clamp(0, 1), (size * scale).clamp(0, 1)], dim=-1)

    def _attention_mask(self, counts: list[int], most: int, num_queries: int, device: torch.device) -> Tensor:
        """(B, Q + E, Q + E) bool: learned queries see each other, a group sees itself and the learned ones."""
        group = torch.arange(self.num_groups, device=device).repeat_interleave(most)  # (E,)
        owner = torch.cat([group.new_full((num_queries,), -1), group])  # (Q + E,)
        allowed = (owner[:, None] == owner) | (owner == -1)  # (Q + E, Q + E)
        real = torch.arange(most, device=device) < torch.tensor(counts, device=device)[:, None]  # (B, n)
        real = torch.cat([real.new_ones(len(counts), num_queries), real.repeat(1, self.num_groups)], dim=1)
        itself = torch.eye(len(owner), dtype=torch.bool, device=device)
        return (allowed & real[:, None]) | itself

    def loss(
        self, logits: Tensor, boxes: Tensor, labels: Sequence[DetectionLabels], num_boxes: float | Tensor
    ) -> dict[str, Tensor]:
        """The terms of every decoder layer together.

        Args:
            logits: (L, B, E, C + 1).
            boxes: (L, B, E, 4) cxcywh.
            labels: B dicts of the batch.
            num_boxes: Boxes of the whole optimizer step.

        Returns:
            `loss_ce_denoising`, `loss_bbox_denoising`, `loss_giou_denoising`: means over the noised targets of the
            step, summed over the layers.
        """
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
        num_targets = num_boxes * self.num_groups
        class_loss = F.cross_entropy(logits.flatten(0, 1), classes.repeat(len(logits)), reduction="sum")
        return {
            "loss_ce_denoising": class_loss / num_targets,
            "loss_bbox_denoising": l1.sum() / num_targets,
            "loss_giou_denoising": giou_loss.sum() / num_targets,
        }


class TrainingModel(nn.Module):
    """A detector, or one with masks, and the aids it trains with, called like it.

    Args:
        detector: The plain DETR; it is what remains after the training.
        encoder_supervision: Supervise the encoder's tokens.
        denoising_groups: Groups of denoising queries, 0 for none.
    """

    def __init__(self, detector: Detector, encoder_supervision: bool, denoising_groups: int) -> None:
        super().__init__()
        self.detector = detector
        config = detector.config
        self.encoder_supervision = EncoderSupervision(float(config.eos_coefficient)) if encoder_supervision else None
        self.denoising = (
            Denoising(
                cast(int, config.num_labels), config.d_model, denoising_groups, float(config.position_temperature)
            )
            if denoising_groups
            else None
        )

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        **arguments: Any,
    ) -> DetrObjectDetectionOutput:
        """The detector's forward; in training and with labels, the loss and its terms include the aids'."""
        aided = self.training and labels is not None and any(len(label["class_labels"]) for label in labels)
        num_queries = self.detector.config.num_queries
        if aided and self.denoising is not None:
            arguments["extra_queries"] = self.denoising.queries(cast(Sequence[DetectionLabels], labels), num_queries)
        output: DetrObjectDetectionOutput = self.detector(pixel_values, pixel_mask, labels, **arguments)
        if not aided or labels is None:
            return self._touch_unused(output)

        num_boxes = arguments.get("num_boxes")
        if num_boxes is None:
            num_boxes = sum(len(label["class_labels"]) for label in labels)
        terms: dict[str, Tensor] = {}
        if self.encoder_supervision is not None:
            terms |= self.encoder_supervision(self._boxes_and_classes, output, pixel_mask, labels, num_boxes)
        if self.denoising is not None:
            heads = self._boxes_and_classes
            states = heads.layers_for_heads(cast(Tensor, output.intermediate_hidden_states))
            terms |= self.denoising.loss(*heads.predict(states[:, :, num_queries:]), labels, num_boxes)
        if terms:
            output.loss = cast(Tensor, output.loss) + _weighted_sum(self.detector.criterion, terms)
        output.loss_dict = {**cast(dict[str, Tensor], output.loss_dict), **{k: v.detach() for k, v in terms.items()}}
        return output

    @property
    def _boxes_and_classes(self) -> DetrForObjectDetection:
        """The detector without what makes masks: the aids know of boxes and classes only."""
        return self.detector.detr if isinstance(self.detector, DetrForSegmentation) else self.detector

    def _touch_unused(self, output: DetrObjectDetectionOutput) -> DetrObjectDetectionOutput:
        """A batch without objects has nothing to denoise, but other processes wait for its gradients and its terms."""
        if not self.training or output.loss is None:
            return output
        if self.denoising is not None:
            output.loss = output.loss + 0.0 * sum(parameter.sum() for parameter in self.denoising.parameters())
        aids = {"encoder": self.encoder_supervision, "denoising": self.denoising}
        zero = output.loss.detach().new_zeros(())
        terms = {
            f"{term}_{name}": zero for name, aid in aids.items() if aid for term in self.detector.criterion.weights
        }
        output.loss_dict = {**cast(dict[str, Tensor], output.loss_dict), **terms}
        return output


def _weighted_sum(criterion: SetCriterion, terms: dict[str, Tensor]) -> Tensor:
    """The aids' terms with the weights of the set loss."""
    weighted = [criterion.weights[name.rsplit("_", 1)[0]] * value for name, value in terms.items()]
    return torch.stack(weighted).sum()


def build_training_model(
    detector: Detector,
    encoder_supervision: bool = False,
    denoising_groups: int = 0,
) -> TrainingModel:
    """The module that trains: `detector` with the aids asked for, or with none. See `TrainingModel`."""
    return TrainingModel(detector, encoder_supervision, denoising_groups)


@torch.no_grad()
def start_local(detector: DetrForObjectDetection) -> None:
    """Initialises a new detector so that its queries look at one place each from the first step.

    Each query begins as the position code of a point (the points are spread over the image), and the decoder's
    attention to the image with equal projections of queries and keys, so that what lies close in position scores high.
    From the original's random start a decoder takes long to find this; the network is the same.

    Args:
        detector: A new detector with sine positions; a `position_temperature` far below 10,000 tells points apart.

    Raises:
        ValueError: The detector has learned positions.
    """
    config = detector.config
    if config.position_embedding_type != "sine":
        raise ValueError(
            f"Queries can only start at points of the image with sine positions; position_embedding_type is "
            f"'{config.position_embedding_type}'. Set local_start to false, or use sine positions."
        )
    points = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(config.num_queries)  # (Q, 2) in [0, 1]
    codes = sine_position(points, config.d_model, float(config.position_temperature))
    detector.model.query_position_embeddings.weight.copy_(codes)
    for layer in detector.model.decoder.layers:
        attention = cast(DetrDecoderLayer, layer).encoder_attn
        nn.init.xavier_uniform_(attention.q_proj.weight)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
