"""Segmentation: attention maps, the mask head, and the detector with masks.

Shapes: B images · Q queries · D width · A attention heads · H, W pixels · h, w feature cells · S = h·w tokens ·
M queries whose masks are computed.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.utils.import_utils import is_tracing

from .configuration_detr import DetrConfig
from .layers_detr import init_bias, xavier_linear
from .loss_detr import MaskCriterion, SetCriterion, flat_queries
from .modeling_detr import (
    DetectionFields,
    DetrForObjectDetection,
    DetrObjectDetectionOutput,
    ExtraQueries,
)
from .padding_detr import ImageList, batch_of
from .pretrained_detr import DetrPreTrainedModel, HeadChange
from .structures_detr import DetectionLabels, check_masks, labels_as_tensors


@dataclass
class SegmentationFields(DetectionFields):
    """The fields of a segmentation; see `DetectionFields` for their order."""

    pred_masks: Tensor | None = None
    image_sizes: Tensor | None = None
    canvas_size: Tensor | None = None
    stuff_labels: Tensor | None = None


@dataclass
class DetrSegmentationOutput(DetrObjectDetectionOutput, SegmentationFields):
    """Detections with masks, and the fields of `DetrObjectDetectionOutput`.

    Attributes:
        loss: Scalar, the weighted sum of all terms, including those of the masks.
        loss_dict: See `DetrObjectDetectionOutput`; `loss_mask` and `loss_dice` are those of the last decoder layer.
        pred_masks: (B, Q, h, w) logits of every query's mask, on the finest feature map of the whole padded canvas;
            None unless requested, see `DetrForSegmentation.forward`.
        image_sizes: (B, 2) int64, height and width of each image in `pixel_values`, without padding.
        canvas_size: (B, 2) int64, height and width of `pixel_values`, the same for each image.
        stuff_labels: (B, n) int64, those of the config: classes whose segments are merged into one per image; None if
            there are none.
    """


# The mask head


class MaskConv2d(nn.Conv2d):
    """A convolution of the mask head, initialised by He's uniform rule for linear units, with a bias of 0."""

    def reset_weights(self) -> None:
        """Draws new weights."""
        init.kaiming_uniform_(self.weight, a=1)
        init_bias(self, zero=True)


class DetrAttentionMaps(nn.Module):
    """Where each query looks: one map per attention head, with a softmax over heads and cells together.

    Paper: sec. 4.4, fig. 8. Original: models/segmentation.py, `MHAttentionMap`.

    Args:
        width: D.
        num_heads: A.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = xavier_linear(width, width, zero_bias=True)
        self.k_linear = xavier_linear(width, width, zero_bias=True)

    def forward(self, queries: Tensor, memory: Tensor, feature_mask: Tensor) -> Tensor:
        """(B, Q, D) queries, (B, S, D) memory and (B, h, w) bool, True = image → (B, Q, A, h, w)."""
        heads = (self.num_heads, queries.shape[-1] // self.num_heads)
        query_heads = self.q_linear(queries).unflatten(-1, heads).transpose(1, 2)  # (B, A, Q, D/A)
        key_heads = self.k_linear(memory).unflatten(-1, heads).permute(0, 2, 3, 1)  # (B, A, D/A, S)
        scores: Tensor = (query_heads * heads[1] ** -0.5) @ key_heads  # (B, A, Q, S)
        scores = scores.masked_fill(~feature_mask.flatten(1)[:, None, None], -torch.inf)
        scores = scores.transpose(1, 2)  # (B, Q, A, S)
        probabilities = scores.flatten(2).softmax(-1)  # (B, Q, A·S)
        return probabilities.view(*scores.shape[:3], *feature_mask.shape[1:])


_NORM_GROUPS = 8  # the original's


class DetrMaskHead(nn.Module):
    """A small feature pyramid network that turns a query's attention maps into the logits of its mask.

    Paper: sec. 4.4, fig. 8. Original: models/segmentation.py, `MaskHeadSmallConv`. Differs from the original: what the
    queries of an image share (the projected map's part of the first convolution, the lateral maps) is computed once
    per image, and masks only for the requested queries. Group norm works within one query's map, so the numbers are
    the same.

    Args:
        width: D.
        num_heads: A.
        lateral_channels: Channels of the backbone's three other maps, from the second deepest to the largest.

    Raises:
        ValueError: A layer's width is not divisible by its number of groups.
    """

    def __init__(self, width: int, num_heads: int, lateral_channels: Sequence[int]) -> None:
        super().__init__()
        widths = [width + num_heads, width // 2, width // 4, width // 8, width // 16]
        groups = _norm_groups(widths)
        self.width = width
        self.lay1 = MaskConv2d(widths[0], widths[0], 3, padding=1)
        self.lay2 = MaskConv2d(widths[0], widths[1], 3, padding=1)
        self.lay3 = MaskConv2d(widths[1], widths[2], 3, padding=1)
        self.lay4 = MaskConv2d(widths[2], widths[3], 3, padding=1)
        self.lay5 = MaskConv2d(widths[3], widths[4], 3, padding=1)
        self.out_lay = MaskConv2d(widths[4], 1, 3, padding=1)
        self.gn1, self.gn2, self.gn3, self.gn4, self.gn5 = map(nn.GroupNorm, groups, widths)
        self.adapter1, self.adapter2, self.adapter3 = (
            MaskConv2d(channels, width, 1) for channels, width in zip(lateral_channels, widths[1:4], strict=True)
        )

    def forward(self, projected: Tensor, maps: Tensor, image_index: Tensor, laterals: Sequence[Tensor]) -> Tensor:
        """Computes the masks of M queries of the batch.

        Args:
            projected: (B, D, h, w), the deepest map as the encoder reads it.
            maps: (M, A, h, w), the queries' attention maps.
            image_index: (M,) int64, the image of the batch that each query belongs to.
            laterals: The backbone's other three maps, from the second deepest to the largest.

        Returns:
            (M, height, width) logits at the resolution of the largest map.
        """
        states = F.relu(self.gn1(self._first_convolution(projected, maps, image_index)))
        states = F.relu(self.gn2(self.lay2(states)))
        stages = (
            (self.adapter1, self.lay3, self.gn3),
            (self.adapter2, self.lay4, self.gn4),
            (self.adapter3, self.lay5, self.gn5),
        )
        for lateral, (adapter, convolution, norm) in zip(laterals, stages, strict=True):
            enlarged = F.interpolate(states, size=lateral.shape[-2:], mode="nearest")
            states = F.relu(norm(convolution(adapter(lateral)[image_index] + enlarged)))
        logits: Tensor = self.out_lay(states)
        return logits[:, 0]

    def _first_convolution(self, projected: Tensor, maps: Tensor, image_index: Tensor) -> Tensor:
        """`lay1` of the projected map and a query's maps → (M, D + A, h, w), at a fraction of the cost of a call.

        The part of the projected map is the same for all queries of an image. A layer that somebody has replaced,
        adapted or hooked is called as it is.
        """
        if not _is_untouched(self.lay1, MaskConv2d):
            states: Tensor = self.lay1(torch.cat([projected[image_index], maps], dim=1))
            return states
        shared_weight, query_weight = self.lay1.weight.split([self.width, maps.shape[1]], dim=1)
        shared = F.conv2d(projected, shared_weight, self.lay1.bias, padding=1)  # (B, D + A, h, w)
        return shared[image_index] + F.conv2d(maps, query_weight, padding=1)


def _is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a layer does what its class does, and nothing else."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is kind and "forward" not in vars(layer) and not any(hooks)


def _norm_groups(widths: Sequence[int]) -> list[int]:
    """Groups of each group norm; layers narrower than the original's get one group per channel, as in Transformers."""
    groups = [max(1, min(_NORM_GROUPS, width)) for width in widths]
    for width, count in zip(widths, groups, strict=True):
        if width % count or not width:
            raise ValueError(
                f"The mask head's layers have the widths {list(widths)} (d_model + encoder_attention_heads, d_model "
                f"/ 2, / 4, / 8, / 16), but {width} is not divisible by the {_NORM_GROUPS} groups of its group norm; "
                f"expected a d_model that is a multiple of {16 * _NORM_GROUPS} and a number of heads that is a "
                f"multiple of {_NORM_GROUPS}, as in the original (256, 8)."
            )
    return groups


# The model

_MASKS_PER_CHUNK = 32  # a mask of a large image takes about 30 MB on its way through the mask head


class DetrForSegmentation(DetrPreTrainedModel):
    """DETR with masks: the detector, and for each object query a mask of its object.

    Paper: sec. 4.4. Original: models/segmentation.py, `DETRsegm`.

    Args:
        config: See `DetrConfig`. Segmentation reads four of the backbone's maps; `out_indices` None means its last
            four, which in most backbones have strides 4 to 32.

    Raises:
        ValueError: `out_indices` does not have four entries, or a width does not fit the mask head.
    """

    detector_prefix = "detr."
    further_auto_classes = ("AutoModelForImageSegmentation", "AutoModelForInstanceSegmentation")

    def __init__(self, config: DetrConfig) -> None:
        if config.out_indices is None:
            config = copy.deepcopy(config)
            config.out_indices = [-4, -3, -2, -1]
        super().__init__(config)
        self.detr = DetrForObjectDetection(config)
        channels = self.detr.model.backbone.conv_encoder.channels
        if len(channels) != 4:
            raise ValueError(
                f"out_indices: got {list(config.out_indices or ())}, expected four maps of the backbone for "
                f"segmentation; set four, or None for the last four."
            )
        self.bbox_attention = DetrAttentionMaps(config.d_model, config.encoder_attention_heads)
        self.mask_head = DetrMaskHead(config.d_model, config.encoder_attention_heads, channels[2::-1])
        self.mask_criterion = MaskCriterion(float(config.mask_loss_coefficient), float(config.dice_loss_coefficient))
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | ImageList,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        num_boxes: float | Tensor | None = None,
        class_weight_sum: float | Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_masks: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DetrSegmentationOutput | tuple[Any, ...]:
        """Detects and segments objects, and computes the loss if `labels` are given.

        Args:
            pixel_values: See `DetrModel.forward`.
            pixel_mask: (B, H, W), 1 = image, 0 = padding; None if nothing is padded.
            labels: The detector's labels, and `masks` (N, height, width) bool of the unpadded image.
            num_boxes: Boxes of the whole optimizer step, the divisor of the box and mask losses. None: this batch's.
            class_weight_sum: See `DetrForObjectDetection.forward`.
            extra_queries: See `DetrForObjectDetection.forward`; they get no masks.
            output_masks: Compute the masks of all queries. None: except in training with labels, whose loss needs no
                masks but those of the matched queries. To get the masks of a few queries, pass False and call
                `predict_masks` afterwards.
            output_attentions: See `DetrModel.forward`.
            output_hidden_states: See `DetrModel.forward`.
            return_dict: False returns a tuple instead of `DetrSegmentationOutput`.
            **kwargs: See `DetrModel.forward`.

        Raises:
            ValueError: See `DetrForObjectDetection.forward`; or the masks of an image are missing, do not match its
                objects, or are larger than the batch.
        """
        self.check_library_arguments(kwargs)
        pixel_values, pixel_mask = batch_of(pixel_values, pixel_mask)
        height, width = pixel_values.shape[-2:]
        if labels is not None:
            labels = labels_as_tensors(labels)
            check_masks(labels, (height, width))
        detected, assignments = self.detr.detect(
            pixel_values,
            pixel_mask,
            labels,
            num_boxes,
            class_weight_sum,
            extra_queries,
            output_attentions,
            output_hidden_states,
            output_feature_maps=True,
        )
        batch = pixel_values.shape[0]  # not `len`, which an export would take for a constant
        stuff = self.config.stuff_labels
        wants_masks = not (self.training and labels is not None) if output_masks is None else output_masks
        output = DetrSegmentationOutput(
            pred_masks=self._masks_of_all(detected) if wants_masks else None,
            image_sizes=image_sizes(pixel_values, pixel_mask),
            canvas_size=torch.tensor((height, width)).expand(batch, -1),
            stuff_labels=torch.tensor(stuff).expand(batch, -1) if stuff else None,
            **detected,
        )
        output.copy_batch_level(detected)
        if labels is not None:
            masks = self.masks_of(output, *flat_queries(assignments, pixel_values.device))
            output.add_loss(*self.mask_criterion(masks, labels, assignments, (height, width), num_boxes))
        return self.output_or_tuple(output, return_dict)

    def predict_masks(self, outputs: DetrSegmentationOutput, keep: Tensor) -> Tensor:
        """Computes the masks of selected queries, at a fraction of the cost of all.

        Args:
            outputs: The model's output.
            keep: (B, Q) bool, the selected queries.

        Returns:
            (M, h, w) logits in the order of `keep.nonzero()`, equal to `pred_masks[keep]`.
        """
        image_index, query_index = keep.nonzero(as_tuple=True)
        return self.masks_of(outputs, image_index, query_index)

    def train(self, mode: bool = True) -> Self:
        """Sets training mode; a detector that is completely frozen stays in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.detr.parameters()):
            self.detr.eval()
        return self

    def change_head(self, change: HeadChange) -> None:
        """See `DetrForObjectDetection.change_head`; the mask head depends on neither classes nor queries."""
        self.detr.change_head(change)

    @property
    def criterion(self) -> SetCriterion:
        """The detector's loss."""
        return self.detr.criterion

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss term in the sum, the same for all decoder layers."""
        return {**self.detr.loss_weights, **self.mask_criterion.weights}

    def _masks_of_all(self, outputs: DetrObjectDetectionOutput) -> Tensor:
        """(B, Q, h, w) logits of the masks of all queries."""
        batch, queries = outputs.logits.shape[:2]
        device = outputs.logits.device
        image_index = torch.arange(batch, device=device)[:, None].expand(batch, queries).flatten()
        query_index = torch.arange(queries, device=device).expand(batch, queries).flatten()
        masks = self.masks_of(outputs, image_index, query_index)
        return masks.view(batch, queries, *masks.shape[1:])

    def masks_of(self, outputs: DetrObjectDetectionOutput, image_index: Tensor, query_index: Tensor) -> Tensor:
        """(M,) images and (M,) queries in them → (M, h, w) logits of their masks.

        In chunks that limit the memory. A batch that trains is one chunk unless it has very many masks, which are then
        computed again in the backward pass; see `MaskCriterion`.
        """
        if outputs.feature_maps is None:
            raise ValueError(
                "These outputs have no feature maps; pass outputs of DetrForSegmentation, as it returns them."
            )
        *laterals, projected = outputs.feature_maps
        laterals.reverse()
        queries = outputs.last_hidden_state[:, : self.config.num_queries]
        maps = self.bbox_attention(queries, outputs.encoder_last_hidden_state, outputs.feature_mask)

        def compute(images: Tensor, queries: Tensor) -> Tensor:
            logits: Tensor = self.mask_head(projected, maps[images, queries], images, laterals)
            return logits

        if is_tracing(image_index):
            return compute(image_index, query_index)
        trains = torch.is_grad_enabled()
        if trains and len(image_index) * 16 * laterals[-1].shape[-2:].numel() <= self.mask_criterion.max_pixels:
            return compute(image_index, query_index)
        chunks = zip(image_index.split(_MASKS_PER_CHUNK), query_index.split(_MASKS_PER_CHUNK), strict=True)
        if not trains:
            return torch.cat([compute(*chunk) for chunk in chunks])
        return torch.cat(
            [checkpoint(compute, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        )


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) height and width of the images in a padded batch."""
    if pixel_mask is None:
        return torch.tensor(pixel_values.shape[-2:]).expand(pixel_values.shape[0], -1)
    return torch.stack([pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0].sum(1)], dim=1).long()


Detector = DetrForObjectDetection | DetrForSegmentation


def has_masks(model: nn.Module) -> TypeGuard[DetrForSegmentation]:
    """Whether a model predicts masks; it may be an exported one."""
    return hasattr(model, "predict_masks")


# A saved model names the hub files that it needs, so trust_remote_code can load it without this package
DetrForSegmentation.register_for_auto_class("AutoModelForUniversalSegmentation")


__all__ = ["Detector", "DetrForSegmentation", "DetrSegmentationOutput", "has_masks", "image_sizes"]
