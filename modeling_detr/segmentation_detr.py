"""Masks: where each query looks, the mask head, and the detector with masks.

Shapes: B images · Q queries · D width · A attention heads · H, W pixels · h, w feature cells · S = h·w tokens ·
M queries whose masks are computed.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .configuration_detr import DetrConfig
from .loss_detr import MaskCriterion, SetCriterion, flat_queries
from .modeling_detr import BatchLevelOutputs, DetrForObjectDetection, ExtraQueries, XavierLinear
from .pretrained_detr import DetrPreTrainedModel, HeadChange, init_bias
from .structures_detr import DetectionLabels, check_masks


@dataclass
class DetrSegmentationOutput(BatchLevelOutputs, ModelOutput):
    """Detections of a batch with their masks, and their loss if labels were given.

    Attributes:
        loss: Scalar, the weighted sum of all terms, those of the masks included.
        loss_dict: The terms unweighted, under the original's names; `loss_mask` and `loss_dice` are those of the last
            decoder layer.
        logits: (B, Q, C + 1), the last decoder layer; index C is "no object".
        pred_boxes: (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
        pred_masks: (B, Q, h, w) logits of every query's mask, on the finest feature map of the whole padded canvas;
            None where they were not asked for, see `DetrForSegmentation.forward`.
        image_sizes: (B, 2) int64, height and width of each image in `pixel_values`, without padding.
        canvas_size: (B, 2) int64, height and width of `pixel_values`, the same for each image.
        stuff_labels: (B, n) int64, the config's: classes of which all segments of an image are one.
        last_hidden_state: See `DetrModelOutput`, like all that follow.
        encoder_last_hidden_state: See there.
        feature_mask: See there.
        decoder_hidden_states: See there.
        decoder_attentions: See there.
        cross_attentions: See there.
        encoder_hidden_states: See there.
        encoder_attentions: See there.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None
    image_sizes: Tensor | None = None
    canvas_size: Tensor | None = None
    stuff_labels: Tensor | None = None
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    feature_mask: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


class MaskConv2d(nn.Conv2d):
    """A convolution of the mask head: He's uniform rule for linear units and no bias at the start."""

    def reset_weights(self) -> None:
        """Draws weight and bias."""
        init.kaiming_uniform_(self.weight, a=1)
        init_bias(self, zero=True)


class DetrAttentionMaps(nn.Module):
    """Where each query looks: one map for each attention head, a softmax over heads and cells together.

    Paper: sec. 4.4, fig. 8. Original: models/segmentation.py, `MHAttentionMap`.

    Args:
        width: D.
        num_heads: A.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = XavierLinear(width, width, zero_bias=True)
        self.k_linear = XavierLinear(width, width, zero_bias=True)

    def forward(self, queries: Tensor, memory: Tensor, feature_mask: Tensor) -> Tensor:
        """(B, Q, D) queries, (B, S, D) memory and (B, h, w) bool, True = image → (B, Q, A, h, w)."""
        heads = (self.num_heads, queries.shape[-1] // self.num_heads)
        query_heads = self.q_linear(queries).unflatten(-1, heads).transpose(1, 2)  # (B, A, Q, D/A)
        key_heads = self.k_linear(memory).unflatten(-1, heads).permute(0, 2, 3, 1)  # (B, A, D/A, S)
        scores = (query_heads * heads[1] ** -0.5) @ key_heads  # (B, A, Q, S)
        scores = scores.masked_fill(~feature_mask.flatten(1)[:, None, None], -torch.inf)
        scores = scores.transpose(1, 2)  # (B, Q, A, S)
        maps = scores.flatten(2).softmax(-1).unflatten(-1, (self.num_heads, *feature_mask.shape[1:]))
        return cast(Tensor, maps)


class DetrMaskHead(nn.Module):
    """A small feature pyramid network that makes of a query's attention maps the logits of its mask.

    Paper: sec. 4.4, fig. 8. Original: models/segmentation.py, `MaskHeadSmallConv`. Differs from the original: what
    queries of one image share (the projected map's part of the first convolution, the lateral maps) is computed once
    an image, and only for queries that are asked for; group norm works within one query's map, so that the numbers
    are the same.

    Args:
        width: D.
        num_heads: A.
        lateral_channels: Channels of the backbone's maps, from the second deepest to the largest: three.

    Raises:
        ValueError: A width does not divide into the eight groups of group norm.
    """

    def __init__(self, width: int, num_heads: int, lateral_channels: Sequence[int]) -> None:
        super().__init__()
        widths = [width + num_heads, width // 2, width // 4, width // 8, width // 16]
        groups = [max(1, min(_NORM_GROUPS, channels)) for channels in widths]  # narrow maps: a channel each, as stock
        unfit = [channels for channels, parts in zip(widths, groups, strict=True) if channels % parts or not channels]
        if unfit:
            raise ValueError(
                f"The mask head of d_model={width} with {num_heads} encoder_attention_heads has the widths {widths} "
                f"(d_model + heads, d_model / 2, / 4, / 8, / 16), but {unfit[0]} does not divide into the "
                f"{_NORM_GROUPS} groups of its group norms; wanted a d_model that is a multiple of "
                f"{16 * _NORM_GROUPS} and heads that are a multiple of {_NORM_GROUPS}, as in the original (256, 8)."
            )
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

    def forward(self, projected: Tensor, maps: Tensor, image: Tensor, laterals: Sequence[Tensor]) -> Tensor:
        """Masks of M queries of the batch.

        Args:
            projected: (B, D, h, w), the deepest map as the encoder reads it.
            maps: (M, A, h, w), the queries' attention maps.
            image: (M,) int64, which image of the batch each query belongs to.
            laterals: The backbone's other three maps, from the second deepest to the largest.

        Returns:
            (M, height, width) logits, of the largest map's size.
        """
        shared_weight, own_weight = self.lay1.weight.split([self.width, maps.shape[1]], dim=1)
        shared = F.conv2d(projected, shared_weight, self.lay1.bias, padding=1)  # (B, D + A, h, w)
        states = shared[image] + F.conv2d(maps, own_weight, padding=1)  # (M, D + A, h, w)
        states = F.relu(self.gn1(states))
        states = F.relu(self.gn2(self.lay2(states)))
        stages = (
            (self.adapter1, self.lay3, self.gn3),
            (self.adapter2, self.lay4, self.gn4),
            (self.adapter3, self.lay5, self.gn5),
        )
        for lateral, (adapter, convolution, norm) in zip(laterals, stages, strict=True):
            enlarged = F.interpolate(states, size=lateral.shape[-2:], mode="nearest")
            states = F.relu(norm(convolution(adapter(lateral)[image] + enlarged)))
        return cast(Tensor, self.out_lay(states)[:, 0])


_NORM_GROUPS = 8  # the original's


_MASKS_AT_ONCE = 32  # a mask of a large image takes some 30 MB on its way through the mask head


class DetrForSegmentation(DetrPreTrainedModel):
    """DETR with masks: the detector, and for each object query where its object is, pixel by pixel.

    Paper: sec. 4.4. Original: models/segmentation.py, `DETRsegm`.

    Args:
        config: See `DetrConfig`. Four of the backbone's maps are read; `out_indices` None means its last four, which
            for most have strides 4 to 32.

    Raises:
        ValueError: `out_indices` are not four, or a width does not fit the mask head.
    """

    detector_prefix = "detr."

    def __init__(self, config: DetrConfig) -> None:
        if config.out_indices is None:
            config = copy.deepcopy(config)
            config.out_indices = [-4, -3, -2, -1]
        super().__init__(config)
        self.detr = DetrForObjectDetection(config)
        channels = self.detr.model.backbone.conv_encoder.channels
        if len(channels) != 4:
            raise ValueError(
                f"out_indices is {list(cast(Sequence[int], config.out_indices))}; segmentation reads four maps of the "
                f"backbone. Give four, or none for the last four."
            )
        self.bbox_attention = DetrAttentionMaps(config.d_model, config.encoder_attention_heads)
        self.mask_head = DetrMaskHead(config.d_model, config.encoder_attention_heads, channels[2::-1])
        self.mask_criterion = MaskCriterion(float(config.mask_loss_coefficient), float(config.dice_loss_coefficient))
        self.post_init()

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """See Transformers. What is saved also says which class the image-segmentation pipeline takes, which asks for
        another Auto class than the one that universal segmentation has."""
        if self._auto_class is not None:
            known = getattr(self.config, "auto_map", None) or {}
            name = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
            self.config.auto_map = {**known, "AutoModelForImageSegmentation": name}
        super().save_pretrained(save_directory, *arguments, **options)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        num_boxes: float | Tensor | None = None,
        class_weight_sum: float | Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_masks: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DetrSegmentationOutput | tuple[Any, ...]:
        """Detects and segments, and with `labels` computes the loss.

        Args:
            pixel_values: See `DetrForObjectDetection.forward`, like what is not explained here.
            pixel_mask: See there.
            labels: What the detector takes, and `masks` (N, height, width) bool of the unpadded image.
            num_boxes: See there; it divides the losses of masks too.
            class_weight_sum: See there.
            extra_queries: See there; they get no masks.
            output_masks: Compute the masks of all queries. None: without labels they are, with labels not, because
                the loss needs those of the matched queries only. False and `predict_masks` afterwards is the way to
                the masks of a few queries.
            output_attentions: See there.
            output_hidden_states: See there.
            return_dict: False: a tuple instead of `DetrSegmentationOutput`.

        Raises:
            ValueError: See `DetrForObjectDetection.forward`; or an image's masks are missing, not one an object, or
                larger than the batch.
        """
        canvas_size = cast(tuple[int, int], tuple(pixel_values.shape[-2:]))
        if labels is not None:
            check_masks(labels, canvas_size)
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
        output = DetrSegmentationOutput(
            image_sizes=_image_sizes(pixel_values, pixel_mask),
            canvas_size=torch.tensor(canvas_size).expand(len(pixel_values), -1),
            stuff_labels=torch.tensor(self.config.stuff_labels, dtype=torch.int64).expand(len(pixel_values), -1),
            **detected,
        )
        for name in ("auxiliary_outputs", "intermediate_hidden_states", "feature_maps"):
            setattr(output, name, getattr(detected, name))
        if labels is not None and assignments is not None:
            image, query = flat_queries(assignments, pixel_values.device)
            mask_loss, terms = self.mask_criterion(
                self._masks_of(output, image, query), labels, assignments, canvas_size, num_boxes
            )
            output.loss = cast(Tensor, output.loss) + mask_loss
            output.loss_dict = {**cast(dict[str, Tensor], output.loss_dict), **terms}
        if output_masks or (output_masks is None and labels is None):
            everything = cast(Tensor, output.logits).new_ones(cast(Tensor, output.logits).shape[:2], dtype=torch.bool)
            output.pred_masks = self.predict_masks(output, everything).unflatten(0, everything.shape)
        returns_dict = self.config.return_dict if return_dict is None else return_dict
        return output if returns_dict else output.to_tuple()

    def change_head(self, change: HeadChange) -> None:
        """See `DetrForObjectDetection.change_head`; masks depend on neither classes nor queries."""
        self.detr.change_head(change)

    def train(self, mode: bool = True) -> Self:
        """Training mode; a detector of which nothing trains stays as it is used: no dropout, fixed batch norms."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.detr.parameters()):
            self.detr.eval()
        return self

    def predict_masks(self, outputs: DetrSegmentationOutput, keep: Tensor) -> Tensor:
        """The masks of chosen queries, at a fraction of the cost of all.

        Args:
            outputs: What the model has returned.
            keep: (B, Q) bool, which queries.

        Returns:
            (M, h, w) logits, in the order of `keep.nonzero()`; what `pred_masks[keep]` would be.
        """
        image, query = keep.nonzero(as_tuple=True)
        if torch.is_grad_enabled():
            return self._masks_of(outputs, image, query)
        pieces = zip(image.split(_MASKS_AT_ONCE), query.split(_MASKS_AT_ONCE), strict=True)
        return torch.cat([self._masks_of(outputs, *piece) for piece in pieces])

    @property
    def criterion(self) -> SetCriterion:
        """The detector's loss."""
        return self.detr.criterion

    def _masks_of(self, outputs: DetrSegmentationOutput, image: Tensor, query: Tensor) -> Tensor:
        """(M,) images and (M,) queries in them → (M, h, w) logits of their masks."""
        *laterals, projected = cast(tuple[Tensor, ...], outputs.feature_maps)
        queries = cast(Tensor, outputs.last_hidden_state)[:, : self.config.num_queries]
        maps = self.bbox_attention(queries, outputs.encoder_last_hidden_state, outputs.feature_mask)
        return cast(Tensor, self.mask_head(projected, maps[image, query], image, laterals[::-1]))


def _image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """(B, 2) height and width of the images in a padded batch."""
    if pixel_mask is None:
        return torch.tensor(pixel_values.shape[-2:]).expand(len(pixel_values), -1)
    return torch.stack([pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0].sum(1)], dim=1).long()


Detector = DetrForObjectDetection | DetrForSegmentation  # either takes pictures to boxes and classes

__all__ = ["Detector", "DetrForSegmentation", "DetrSegmentationOutput"]
