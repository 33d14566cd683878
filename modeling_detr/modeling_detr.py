"""DETR as the paper draws it: backbone → positions → transformer encoder → decoder → heads.

Read `DetrModel.forward` first: it is figure 2 of "End-to-End Object Detection with Transformers" read aloud. Parameter
names are those of the DETR checkpoints on the Hub; the numbers are the original's (facebookresearch/detr).

Shapes: B images · Q queries (E extra ones in training) · C classes · D width · A attention heads · H, W pixels ·
h, w feature cells · S = h·w tokens · L decoder layers · M queries whose masks are computed.
"""

import contextlib
import copy
import difflib
import logging
import math
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from .configuration_detr import TRANSFORMERS_MODEL_TYPE, DetrConfig, config_under_our_keys, is_huggingface_resnet
from .loss_detr import HungarianMatcher, MaskCriterion, SetCriterion, flat_queries
from .structures_detr import Assignment, DetectionLabels, check_labels, check_masks


_logger = logging.getLogger(__name__)


# What goes in and comes out


class ExtraQueries(NamedTuple):
    """Queries beside the learned ones, with content of their own; training aids such as denoising use them.

    content: (B, E, D), what the decoder starts from. positions: (B, E, D), their query embedding. attention_mask:
    (Q + E, Q + E) or (B, Q + E, Q + E) bool, True where a query (row) may attend to another (column); each row needs
    one True.
    """

    content: Tensor
    positions: Tensor
    attention_mask: Tensor


@dataclass
class DetrModelOutput(ModelOutput):
    """What the transformer makes of a batch.

    Attributes:
        last_hidden_state: (B, Q + E, D), the last decoder layer, normalised.
        intermediate_hidden_states: (L, B, Q + E, D), every decoder layer, normalised; the last is `last_hidden_state`.
        encoder_last_hidden_state: (B, S, D), the encoder's tokens in row-major order.
        feature_mask: (B, h, w) bool, True where a token shows image and not padding.
        decoder_hidden_states: L + 1 tensors (B, Q + E, D), not normalised, the first is the decoder's input.
        decoder_attentions: L tensors (B, A, Q + E, Q + E).
        cross_attentions: L tensors (B, A, Q + E, S).
        encoder_hidden_states: One tensor (B, S, D) a layer and the encoder's input before them.
        encoder_attentions: One tensor (B, A, S, S) an encoder layer.
        feature_maps: The backbone's maps (B, channels, …) from the largest to the second deepest, and instead of the
            deepest its projection (B, D, h, w), which the encoder reads.
    """

    last_hidden_state: Tensor | None = None
    intermediate_hidden_states: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    feature_mask: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    feature_maps: tuple[Tensor, ...] | None = None


class NotByImage:
    """What an output has beside its fields, because it is not one entry an image.

    Transformers' pipelines cut every field of a batch's output into images; these are no fields.

    Attributes:
        auxiliary_outputs: `{"logits", "pred_boxes"}` of each decoder layer but the last; None without
            `auxiliary_loss`.
        intermediate_hidden_states: See `DetrModelOutput`.
        feature_maps: See `DetrModelOutput`.
    """

    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    intermediate_hidden_states: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None


@dataclass
class DetrObjectDetectionOutput(NotByImage, ModelOutput):
    """Detections of a batch, and their loss if labels were given.

    Attributes:
        loss: Scalar, the weighted sum of all terms.
        loss_dict: The terms unweighted, under the original's names, the last decoder layer's without a number.
        logits: (B, Q, C + 1), the last decoder layer; index C is "no object".
        pred_boxes: (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
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
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    feature_mask: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class DetrSegmentationOutput(NotByImage, ModelOutput):
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


# Backbone


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and scale, all buffers, so that nothing of it ever trains.

    Original: models/backbone.py, `FrozenBatchNorm2d`. Differs from the original: one fused kernel instead of two
    passes over the feature map, and timm's batch norms that carry their activation are frozen too.

    Args:
        norm: The batch norm whose weights and statistics are taken over.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.drop = norm.drop if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        running_mean, running_var = norm.running_mean, norm.running_var
        if running_mean is None or running_var is None:
            raise ValueError("A batch norm without running statistics cannot be frozen; set freeze_batch_norm=False.")
        ones, zeros = torch.ones_like(running_var), torch.zeros_like(running_mean)
        self.register_buffer("weight", ones if norm.weight is None else norm.weight.detach().clone())
        self.register_buffer("bias", zeros if norm.bias is None else norm.bias.detach().clone())
        self.register_buffer("running_mean", running_mean.clone())
        self.register_buffer("running_var", running_var.clone())

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) → the same shape."""
        normed = F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
        return cast(Tensor, self.act(self.drop(normed)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # a counter that only training uses
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norms(module: nn.Module) -> None:
    """Replaces every batch norm under `module` by a `FrozenBatchNorm2d` with the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            freeze_batch_norms(child)


def create_timm_backbone(config: DetrConfig, **overrides: Any) -> nn.Module:
    """The timm feature extractor that `config` names, with random weights unless `overrides` say `pretrained=True`.

    Raises:
        ValueError: timm has no such model, it offers no feature maps, or it does not take the arguments.
    """
    arguments: dict[str, Any] = {
        "pretrained": False,
        "features_only": True,
        "in_chans": config.num_channels,
        "out_indices": tuple(config.out_indices) if config.out_indices is not None else (-1,),
        **({"output_stride": 16} if config.dilation else {}),
        **(config.backbone_kwargs or {}),
    }
    try:
        backbone = timm.create_model(**{"model_name": config.backbone, **arguments, **overrides})
    except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError, LookupError) as error:
        raise ValueError(
            f"timm cannot build the backbone '{overrides.get('model_name', config.backbone)}' with {arguments}: "
            f"{error}. Wanted a timm model that offers features_only, and arguments that it takes "
            f"(config keys backbone, backbone_kwargs, out_indices, dilation)."
        ) from error
    _drop_unused_stages(backbone)
    return backbone


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """The parameters that timm does not find while it loads weights; it only logs their names and goes on.

    What it says of surplus weights (a classifier's, left out on purpose) is kept from the screen.
    """
    said: list[str] = []

    def listen(record: logging.LogRecord) -> bool:
        if match := re.match(r"Missing keys \((.*?)\)", record.getMessage()):
            said.extend(match[1].split(", "))
        return record.levelno > logging.WARNING

    timm_logger = logging.getLogger("timm.models._builder")
    level = timm_logger.level
    timm_logger.setLevel(logging.INFO)
    timm_logger.addFilter(listen)
    try:
        yield said
    finally:
        timm_logger.removeFilter(listen)
        timm_logger.setLevel(level)


def _drop_unused_stages(backbone: nn.Module) -> None:
    """Cuts what lies behind the deepest requested map; timm does so itself for all but its EfficientNet family.

    There, the stages behind it would be computed for nothing, and their weights never get a gradient.
    """
    deepest: str = backbone.feature_info.module_name()[-1]  # type: ignore[union-attr, operator]
    parent, _, index = deepest.rpartition(".")
    stages = getattr(backbone, parent, None) if parent else None
    if isinstance(stages, nn.Sequential) and index.isdigit():
        setattr(backbone, parent, stages[: int(index) + 1])


class DetrConvEncoder(nn.Module):
    """The backbone: a timm feature extractor whose deepest requested map feeds the transformer.

    Original: models/backbone.py. Batch norms are frozen, and so is everything up to and including the stride-4 map,
    as the config says.

    Args:
        config: Its `backbone…`, `out_indices`, `dilation` and `freeze_…` keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.model = create_timm_backbone(config)
        if config.freeze_batch_norm:
            freeze_batch_norms(self.model)
        self.stem_is_frozen = config.freeze_backbone_stem
        self.freeze_stem()
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.device.type != "meta":  # timm has filled it: `post_init` must leave it as it is
                tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        info = self.model.feature_info
        self.channels: list[int] = info.channels()  # type: ignore[union-attr, operator]
        self.strides: list[int] = info.reduction()  # type: ignore[union-attr, operator]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → one (B, channels, h, w) feature map for each of `out_indices`."""
        features: list[Tensor] = self.model(pixel_values)
        if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features

    def freeze_stem(self) -> None:
        """No gradient for what lies, in the order of the network, up to the last map of stride 4 or less."""
        if not self.stem_is_frozen:
            return
        stages = [stage["module"] for stage in self.model.feature_info.info if stage["reduction"] <= 4]  # type: ignore
        if not stages:  # a plain vision transformer begins at stride 16: it has no such stem
            return
        prefixes = tuple(form + "." for form in (stages[-1], stages[-1].replace(".", "_")))
        names = [name for name, _ in self.model.named_parameters()]
        in_stage = [position for position, name in enumerate(names) if name.startswith(prefixes)]
        if not in_stage:
            raise ValueError(
                f"The stem of this backbone cannot be told from its parameter names (looked for '{prefixes[0]}…'): "
                f"set freeze_backbone_stem=False and freeze what you want by hand."
            )
        for name, parameter in self.model.named_parameters():
            if name in names[: in_stage[-1] + 1]:
                parameter.requires_grad_(False)


# Positions


class DetrSinePositionEmbedding(nn.Module):
    """Sines and cosines of a cell's row and column, counted over the unpadded image and scaled to 2π.

    Paper: app. A.4. Original: models/position_encoding.py, `PositionEmbeddingSine`.

    Args:
        width: D, the width of the embedding; half for rows, half for columns.
        temperature: Ratio of the longest to the shortest wave length.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature

    def forward(self, feature_mask: Tensor) -> Tensor:
        """(B, h, w) bool, True = image → (B, h, w, D) float32."""
        rows, columns = (feature_mask.cumsum(axis, dtype=torch.float32) for axis in (1, 2))
        x = columns / (columns[:, :, -1:] + 1e-6)
        y = rows / (rows[:, -1:, :] + 1e-6)
        return sine_position(torch.stack([x, y], dim=-1), self.width, self.temperature)


def sine_position(points: Tensor, width: int, temperature: float) -> Tensor:
    """Points (…, 2) as (x, y) in [0, 1] → (…, width): the embedding of y, then that of x."""
    return sine_embedding(points.flip(-1), width // 2, temperature).flatten(-2)


def sine_embedding(positions: Tensor, width: int, temperature: float) -> Tensor:
    """Positions (…) in [0, 1] → (…, width): sines and cosines, interleaved, of the position times 2π, ever slower."""
    channel = torch.arange(width, dtype=torch.float32, device=positions.device)
    wave_length = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    angles = (positions * 2 * torch.pi)[..., None] / wave_length
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class PositionTable(nn.Embedding):
    """An embedding that starts uniform in [0, 1), see `_init_weights`."""


class DetrLearnedPositionEmbedding(nn.Module):
    """A learned vector for every row and every column.

    Original: models/position_encoding.py, `PositionEmbeddingLearned`. Differs from the original: a feature map larger
    than the table is a clear error instead of an index error.

    Args:
        width: D; half for columns, half for rows.
        grid: Rows and columns of the table.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.row_embeddings = PositionTable(grid, width // 2)
        self.column_embeddings = PositionTable(grid, width // 2)

    def forward(self, feature_mask: Tensor) -> Tensor:
        """(B, h, w) bool → (B, h, w, D); padding plays no part.

        Raises:
            ValueError: The feature map has more rows or columns than the table.
        """
        batch, height, width = feature_mask.shape
        grid = self.row_embeddings.num_embeddings
        if max(height, width) > grid:
            raise ValueError(
                f"The feature map has {height} x {width} cells, but the learned position table has {grid} x {grid}; "
                f"set learned_position_grid to at least {max(height, width)}, use smaller images, or sine positions."
            )
        rows, columns = self.row_embeddings.weight[:height], self.column_embeddings.weight[:width]
        grid_positions = torch.cat(
            [columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1
        )  # (h, w, D)
        return grid_positions.expand(batch, -1, -1, -1)


class DetrBackbone(nn.Module):
    """Feature maps and the positions of their cells.

    The position embedding lies beside the convolutions, as in the original: a learned one trains at the backbone's
    rate.

    Args:
        config: See `DetrConvEncoder`; `position_embedding_type`, `d_model` and `learned_position_grid`.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.conv_encoder = DetrConvEncoder(config)
        self.position_embedding: nn.Module
        if config.position_embedding_type == "sine":
            self.position_embedding = DetrSinePositionEmbedding(config.d_model, float(config.position_temperature))
        else:
            self.position_embedding = DetrLearnedPositionEmbedding(config.d_model, config.learned_position_grid)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Feature maps, the deepest one's mask (B, h, w) bool (True = image) and its positions (B, h, w, D)."""
        features = self.conv_encoder(pixel_values)
        batch, _, height, width = features[-1].shape
        if pixel_mask is None:
            feature_mask = torch.ones(batch, height, width, dtype=torch.bool, device=pixel_values.device)
        else:
            feature_mask = F.interpolate(pixel_mask[:, None].float(), size=(height, width))[:, 0].bool()
        return features, feature_mask, self.position_embedding(feature_mask)


# Transformer


class XavierLinear(nn.Linear):
    """A linear layer of the transformer: its weight is drawn by Xavier's uniform rule, see `_init_weights`.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        gain: Factor of the bound.
        zero_bias: The bias starts at 0 instead of PyTorch's default.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0, zero_bias: bool = False) -> None:
        self.gain = gain
        self.zero_bias = zero_bias
        super().__init__(in_features, out_features)


class DetrAttention(nn.Module):
    """Multi-head attention of `queries` over `keys` and `values`.

    Args:
        config: Its `d_model` and `attention_dropout`; and how attention is computed, which may change later: `"sdpa"`
            by PyTorch's fused kernels, `"eager"` by plain matrix products.
        num_heads: A.
    """

    def __init__(self, config: DetrConfig, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.dropout = float(config.attention_dropout)
        width = config.d_model
        # the original's three input projections are one (3D, D) matrix: Xavier's bound of (D, D) over √2
        self.q_proj = XavierLinear(width, width, gain=2**-0.5, zero_bias=True)
        self.k_proj = XavierLinear(width, width, gain=2**-0.5, zero_bias=True)
        self.v_proj = XavierLinear(width, width, gain=2**-0.5, zero_bias=True)
        self.out_proj = XavierLinear(width, width, zero_bias=True)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) queries over (B, S, D) keys and values → (B, T, D), and the weights (B, A, T, S) if asked for.

        `mask` broadcasts to (B, A, T, S) bool, True = may attend; None = everything may.
        """
        query_heads = self._split(self.q_proj(queries))  # (B, A, T, D/A)
        key_heads = self._split(self.k_proj(keys))  # (B, A, S, D/A)
        value_heads = self._split(self.v_proj(values))  # (B, A, S, D/A)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if output_attentions or self.config._attn_implementation == "eager":
            scores = query_heads @ key_heads.transpose(-1, -2) * query_heads.shape[-1] ** -0.5  # (B, A, T, S)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            weights = scores.softmax(-1)
            context = F.dropout(weights, dropout) @ value_heads
        else:
            context = F.scaled_dot_product_attention(query_heads, key_heads, value_heads, mask, dropout)
        context = context.transpose(1, 2).flatten(2)  # (B, T, D)
        return self.out_proj(context), weights if output_attentions else None

    def _split(self, states: Tensor) -> Tensor:
        """(B, T, D) → (B, A, T, D/A)."""
        return states.view(*states.shape[:2], self.num_heads, -1).transpose(1, 2)


class _TransformerLayer(nn.Module):
    """What encoder and decoder layers share: the feed-forward network, and residual branches with their norm."""

    def __init__(self, config: DetrConfig, ffn_dim: int) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.dropout = float(config.dropout)
        self.activation_dropout = float(config.activation_dropout)
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = XavierLinear(config.d_model, ffn_dim)
        self.fc2 = XavierLinear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def residual(self, states: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """states + branch(states), normalised after (the paper) or before the branch (`pre_norm`)."""
        if self.pre_norm:
            return states + F.dropout(branch(norm(states)), self.dropout, self.training)
        return cast(Tensor, norm(states + F.dropout(branch(states), self.dropout, self.training)))

    def feed_forward(self, states: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        hidden = F.dropout(self.activation(self.fc1(states)), self.activation_dropout, self.training)
        return cast(Tensor, self.fc2(hidden))


class DetrEncoderLayer(GradientCheckpointingLayer, _TransformerLayer):
    """Self-attention over the image's tokens, then a feed-forward network. Original: `TransformerEncoderLayer`."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config, config.encoder_ffn_dim)
        self.self_attn = DetrAttention(config, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, D) tokens, (B, S, D) positions, (B, 1, 1, S) mask → (B, S, D) and the attention weights."""
        weights = None

        def self_attention(states: Tensor) -> Tensor:
            nonlocal weights
            located = states + positions
            attended, weights = self.self_attn(located, located, states, mask, output_attentions)
            return cast(Tensor, attended)

        tokens = self.residual(tokens, self.self_attn_layer_norm, self_attention)
        tokens = self.residual(tokens, self.final_layer_norm, self.feed_forward)
        return tokens, weights


class DetrDecoderLayer(GradientCheckpointingLayer, _TransformerLayer):
    """Self-attention among the queries, attention to the image, feed-forward. Original: `TransformerDecoderLayer`."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config, config.decoder_ffn_dim)
        self.self_attn = DetrAttention(config, config.decoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.encoder_attn = DetrAttention(config, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        located_memory: Tensor,
        query_mask: Tensor | None,
        memory_mask: Tensor | None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One round of the decoder.

        Args:
            queries: (B, Q + E, D).
            query_positions: (B, Q + E, D), added to queries where they ask and are asked.
            memory: (B, S, D), the encoder's tokens.
            located_memory: (B, S, D), the same with their positions added.
            query_mask: (1 or B, 1, Q + E, Q + E) bool, True = may attend; None = all.
            memory_mask: (B, 1, 1, S) bool, True = image; None = no padding.
            output_attentions: Return both attention weights.

        Returns:
            (B, Q + E, D), and self- and cross-attention weights or None.
        """
        self_weights = cross_weights = None

        def self_attention(states: Tensor) -> Tensor:
            nonlocal self_weights
            located = states + query_positions
            attended, self_weights = self.self_attn(located, located, states, query_mask, output_attentions)
            return cast(Tensor, attended)

        def cross_attention(states: Tensor) -> Tensor:
            nonlocal cross_weights
            attended, cross_weights = self.encoder_attn(
                states + query_positions, located_memory, memory, memory_mask, output_attentions
            )
            return cast(Tensor, attended)

        queries = self.residual(queries, self.self_attn_layer_norm, self_attention)
        queries = self.residual(queries, self.encoder_attn_layer_norm, cross_attention)
        queries = self.residual(queries, self.final_layer_norm, self.feed_forward)
        return queries, self_weights, cross_weights


class _EncoderOutput(NamedTuple):
    memory: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class DetrEncoder(nn.Module):
    """The encoder layers, and with `pre_norm` a last norm. Original: models/transformer.py, `TransformerEncoder`.

    Args:
        config: Its `encoder_…`, dropout and norm keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DetrEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.layernorm = nn.LayerNorm(config.d_model) if config.pre_norm else nn.Identity()

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, output_attentions: bool, output_states: bool
    ) -> _EncoderOutput:
        """(B, S, D) tokens, (B, S, D) positions, (B, 1, 1, S) mask → memory (B, S, D) and what was asked for."""
        states, attentions = [tokens], []
        for layer in self.layers:
            tokens, weights = layer(tokens, positions, mask, output_attentions)
            states.append(tokens)
            attentions.append(weights)
        return _EncoderOutput(
            self.layernorm(tokens),
            tuple(states) if output_states else None,
            tuple(attentions) if output_attentions else None,
        )


class _DecoderOutput(NamedTuple):
    intermediate: Tensor
    hidden_states: tuple[Tensor, ...] | None
    self_attentions: tuple[Tensor, ...] | None
    cross_attentions: tuple[Tensor, ...] | None


class DetrDecoder(nn.Module):
    """The decoder layers. Each one's output is read through the shared last norm; what the next layer gets is not.

    Paper: app. A.3. Original: models/transformer.py, `TransformerDecoder`.

    Args:
        config: Its `decoder_…`, dropout and norm keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DetrDecoderLayer(config) for _ in range(config.decoder_layers)])
        self.layernorm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        query_mask: Tensor | None,
        memory_mask: Tensor | None,
        output_attentions: bool,
        output_states: bool,
    ) -> _DecoderOutput:
        """See `DetrDecoderLayer.forward`; the result's `intermediate` is (L, B, Q + E, D), normalised."""
        located_memory = memory + memory_positions
        states, self_attentions, cross_attentions = [queries], [], []
        for layer in self.layers:
            queries, self_weights, cross_weights = layer(
                queries, query_positions, memory, located_memory, query_mask, memory_mask, output_attentions
            )
            states.append(queries)
            self_attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        return _DecoderOutput(
            self.layernorm(torch.stack(states[1:])),
            tuple(states) if output_states else None,
            tuple(self_attentions) if output_attentions else None,
            tuple(cross_attentions) if output_attentions else None,
        )


class DetrMLPPredictionHead(nn.Module):
    """A multi-layer perceptron with ReLU between its layers; computed in at least float32.

    Original: models/detr.py, `MLP`.

    Args:
        width: Width of the input and the hidden layers.
        output_width: Width of the output.
        num_layers: Number of linear layers.
    """

    def __init__(self, width: int, output_width: int, num_layers: int) -> None:
        super().__init__()
        widths = [width] * num_layers + [output_width]
        self.layers = nn.ModuleList([nn.Linear(i, o) for i, o in pairwise(widths)])

    def forward(self, states: Tensor) -> Tensor:
        """(…, width) → (…, output_width)."""
        *hidden, last = self.layers
        for layer in hidden:
            states = F.relu(_linear_at_least_float32(layer, states))
        return _linear_at_least_float32(last, states)


# Masks


class MaskConv2d(nn.Conv2d):
    """A convolution of the mask head: He's uniform rule for linear units and no bias at the start."""


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


def _linear_at_least_float32(layer: nn.Module, states: Tensor) -> Tensor:
    """A linear layer in float32 (float64 if the states are): half precision moves a box of a large image by pixels."""
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    with torch.autocast(states.device.type, enabled=False):
        return F.linear(states.to(dtype), weight.to(dtype), bias.to(dtype))


# A head that changes size

# A new class starts as "no object" less so much that all new classes together get this share of its probability.
# Measured on shapes: 0.1 costs the old classes .001 to .002 AP, 0.5 costs .004 and 1 costs .008; and a lower start has
# more to climb. (A start from the mean of the old classes costs them less, but then the new ones had learnt nothing
# after 100 steps: what a source does not know looks like "no object" to it rather than like its average class.)
NEW_CLASSES_SHARE = 0.1
# Noise on the copies of queries, in standard deviations of the queries that were there.
QUERY_NOISE = 0.1


class MismatchedSizesError(ValueError, RuntimeError):
    """A head has another size than is wanted: a wrong argument, and what the library raises a RuntimeError for."""


@dataclass(frozen=True)
class HeadChange:
    """What becomes of the class head and the queries of a model that is loaded for other classes.

    Attributes:
        old_names: Name of each class that the source knows, in the order of its rows.
        new_names: Name of each class that is wanted, in the order of the rows to be.
        rows: For each wanted class the row of the source that it starts from; None: a new one.
        old_num_queries: Queries of the source.
        new_num_queries: Queries that are wanted.
        kept_places: The source has no names, and as many classes: its rows stay where they are.
    """

    old_names: tuple[str, ...]
    new_names: tuple[str, ...]
    rows: tuple[int | None, ...]
    old_num_queries: int
    new_num_queries: int
    kept_places: bool = False

    @classmethod
    def between(cls, old: DetrConfig, new: DetrConfig, label_mapping: Mapping[str, str] | None = None) -> "HeadChange":
        """Matches the classes of two configs by name: exactly, then case and spacing aside.

        Where a name is there several times, as COCO's "N/A", the first goes to the first and so on.

        Args:
            old: The source's config.
            new: The config that is wanted.
            label_mapping: Old names and the new ones that take over their rows, where those differ.

        Raises:
            ValueError: `label_mapping` has a name that its side does not know, or a new name twice.
        """
        old_names, new_names = _class_names(old), _class_names(new)
        rows: list[int | None] = [None] * len(new_names)
        free = set(range(len(old_names)))

        def match(form: Callable[[str], str]) -> None:
            waiting: dict[str, list[int]] = {}
            for row in sorted(free):
                waiting.setdefault(form(old_names[row]), []).append(row)
            for label, name in enumerate(new_names):
                if rows[label] is None and waiting.get(form(name)):
                    rows[label] = waiting[form(name)].pop(0)
                    free.discard(cast(int, rows[label]))

        for old_name, new_name in (label_mapping or {}).items():
            row = _place_of(old_name, old_names, "the source has no class")
            label = _place_of(new_name, new_names, "the classes that are wanted have no")
            if rows[label] is not None or row not in free:
                raise ValueError(f"label_mapping: '{old_name}: {new_name}' names a class for the second time.")
            rows[label] = row
            free.discard(row)
        kept_places = False
        if not all(map(_is_placeholder, new_names)):
            match(str)
            match(_bare_name)
            if all(map(_is_placeholder, old_names)) and len(old_names) == len(new_names) and not label_mapping:
                rows, kept_places = list(range(len(new_names))), True
        elif old_names == new_names:
            rows = list(range(len(new_names)))
        return cls(old_names, new_names, tuple(rows), old.num_queries, new.num_queries, kept_places)

    @property
    def classes_change(self) -> bool:
        """Whether any row moves, is made, or is lost."""
        return self.rows != tuple(range(len(self.old_names)))

    @property
    def made(self) -> list[int]:
        """Labels whose rows are new."""
        return [label for label, row in enumerate(self.rows) if row is None]

    def sentences(self) -> list[str]:
        """What was kept, moved and made, for the person who loads."""
        said = []
        if self.kept_places and self.old_names != self.new_names:
            said.append(
                f"class head: the source has no class names ({_listed(self.old_names, 2)}), and as many classes as "
                f"are wanted: its rows stay where they are"
            )
        elif self.classes_change:
            said.append(self._sentence_of_classes())
        old, new = self.old_num_queries, self.new_num_queries
        if new > old:
            said.append(f"queries: {old} kept, {new - old} made, as perturbed copies of those")
        elif new < old:
            said.append(f"queries: the first {new} of {old} kept, {old - new} dropped")
        return said

    def _sentence_of_classes(self) -> str:
        kept = [name for label, name in enumerate(self.new_names) if self.rows[label] == label]
        moved = [
            f"{name} {row} → {label}"
            for label, (name, row) in enumerate(zip(self.new_names, self.rows, strict=True))
            if row is not None and row != label
        ]
        made = [self.new_names[label] for label in self.made]
        dropped = [name for row, name in enumerate(self.old_names) if row not in self.rows]
        parts = [
            f"{len(names)} {word}" + f" ({_listed(names)})" * bool(names)
            for names, word in (
                (kept, "kept"),
                (moved, "moved"),
                (made, f"made, which start {self.offset_of_new_rows:.1f} below 'no object'"),
                (dropped, "dropped"),
            )
            if names
        ]
        sentence = (
            f"class head, {len(self.old_names)} → {len(self.new_names)} classes: 'no object' kept; {', '.join(parts)}"
        )
        if len(made) == len(self.new_names) and all(map(_is_placeholder, self.new_names)):
            sentence += ". num_labels alone gives classes no names: pass id2label (or --labels) to keep rows by name"
        elif len(made) == len(self.new_names):
            sentence += ". No name is known to both: pass label_mapping, old names to new ones, to keep rows"
        return sentence

    def size_error(self, source: str) -> str | None:
        """What to say of sizes that differ where that is not allowed; None: they do not."""
        differing = [
            f"{old} {what}, {new} are wanted"
            for what, old, new in (
                ("classes", len(self.old_names), len(self.new_names)),
                ("queries", self.old_num_queries, self.new_num_queries),
            )
            if old != new
        ]
        if not differing:
            return None
        return (
            f"{source} has {', and '.join(differing)}. Pass ignore_mismatched_sizes=True, which keeps 'no object', "
            f"the rows of classes whose names both know, and the queries (head_init='fresh' begins anew instead); or "
            f"leave out num_labels, id2label and num_queries."
        )

    def warn_of_rows_that_stay(self, source: str) -> None:
        """Logs a warning if known classes get another place without their rows: names on the wrong rows."""
        moving = [
            name
            for label, (name, row) in enumerate(zip(self.new_names, self.rows, strict=True))
            if row not in (None, label)
        ]
        if moving and len(self.old_names) == len(self.new_names):
            _logger.warning(
                "%s: id2label has its classes in other places (%s), but rows move only with "
                "ignore_mismatched_sizes=True, and not with head_init='fresh'.",
                source,
                _listed(moving),
            )

    @torch.no_grad()
    def apply(self, model: nn.Module, source: str, missing: Container[str] = ()) -> None:
        """Gives rows and queries of a model with the old sizes their new places.

        Args:
            model: The loaded model.
            source: Where it comes from, for the message.
            missing: Names of parameters that the source did not have in their size.

        Raises:
            ValueError: There were no rows to move.
        """
        for name, _ in model.named_parameters():
            if name in missing and self.classes_change and "class_labels_classifier." in name:
                raise ValueError(
                    f"{source}: {name} is missing or has another size than its own config.json says, so that its rows "
                    f"cannot be told; pass head_init='fresh'."
                )
        for module in model.modules():
            if isinstance(module, DetrForObjectDetection) and self.classes_change:
                classifier = module.class_labels_classifier
                classifier.weight = _resized(classifier.weight, self._new_rows(classifier.weight))
                classifier.bias = _resized(classifier.bias, self._new_rows(classifier.bias, self.offset_of_new_rows))
                classifier.out_features = len(classifier.weight)
            elif isinstance(module, DetrModel) and self.old_num_queries != self.new_num_queries:
                queries = module.query_position_embeddings
                queries.weight = _resized(queries.weight, _more_queries(queries.weight, self.new_num_queries))
                queries.num_embeddings = self.new_num_queries

    @property
    def offset_of_new_rows(self) -> float:
        """How far below "no object" the logit of a new class starts, in every query."""
        return math.log(max(1, len(self.made)) / NEW_CLASSES_SHARE)

    def _new_rows(self, tensor: Tensor, offset: float = 0.0) -> Tensor:
        """(C + 1, …) of the old head → of the new one: rows in their places, new ones "no object" less `offset`."""
        no_object = tensor[-1]
        rows = [no_object - offset if row is None else tensor[row] for row in self.rows]
        return torch.stack([*rows, no_object])


def _class_names(config: DetrConfig) -> tuple[str, ...]:
    return tuple(str(name) for _, name in sorted(cast(dict[int, str], config.id2label).items()))


def _is_placeholder(name: str) -> bool:
    """Whether a name is one that Transformers makes up where nobody gave any."""
    return re.fullmatch(r"LABEL_\d+", name) is not None


def _bare_name(name: str) -> str:
    """A class name without case and spacing: 'Dining Table' is 'diningtable' and 'dining_table'."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _place_of(name: str, names: Sequence[str], complaint: str) -> int:
    """Where `name` is among `names`, exactly or case and spacing aside."""
    for form in (str, _bare_name):
        for place, other in enumerate(names):
            if form(other) == form(name):
                return place
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise ValueError(f"label_mapping: {complaint} '{name}'; did you mean '{nearest}'?")


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _resized(old: Tensor, tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=old.requires_grad)


def _more_queries(queries: Tensor, wanted: int) -> Tensor:
    """(Q, D) → (wanted, D): the first ones as they are, then copies of them in turn with some noise."""
    copies = queries[torch.arange(len(queries), max(wanted, len(queries)), device=queries.device) % len(queries)]
    noise = torch.randn_like(copies) * queries.std() * QUERY_NOISE
    return torch.cat([queries, copies + noise])[:wanted]


# Parameters of Transformers' own DETR whose names are not those of the checkpoints on the Hub: as version 5 calls them
# in memory, and as versions 4 called a timm backbone that was built through `backbone_config`. In order.
_NAMES_OF_STOCK = {
    r"attn\.o_proj": "attn.out_proj",
    r"coder\.layers\.(\d+)\.mlp\.fc1": r"coder.layers.\1.fc1",
    r"coder\.layers\.(\d+)\.mlp\.fc2": r"coder.layers.\1.fc2",
    r"backbone\.model": "backbone.conv_encoder.model",
    r"conv_encoder\.model\._backbone": "conv_encoder.model",
    r"^(detr\.model\.|model\.|)position_embedding": r"\1backbone.position_embedding",
    r"bbox_attention\.q_proj": "bbox_attention.q_linear",
    r"bbox_attention\.k_proj": "bbox_attention.k_linear",
    r"mask_head\.conv1\.conv": "mask_head.lay1",
    r"mask_head\.conv1\.norm": "mask_head.gn1",
    r"mask_head\.conv2\.conv": "mask_head.lay2",
    r"mask_head\.conv2\.norm": "mask_head.gn2",
    **{
        rf"mask_head\.fpn_stages\.{stage}\.{there}": f"mask_head.{here}{number}"
        for stage in range(3)
        for there, here, number in (
            ("fpn_adapter", "adapter", stage + 1),
            (r"refine\.conv", "lay", stage + 3),
            (r"refine\.norm", "gn", stage + 3),
        )
    },
    r"mask_head\.output_conv": "mask_head.out_lay",
}
# Transformers' own ResNet as timm's
_NAMES_OF_RESNET = {
    r"conv_encoder\.model\.embedder\.embedder\.convolution": "conv_encoder.model.conv1",
    r"conv_encoder\.model\.embedder\.embedder\.normalization": "conv_encoder.model.bn1",
    **{
        rf"model\.encoder\.stages\.{stage}\.layers\.(\d+)\.{there}": rf"model.layer{stage + 1}.\1.{here}"
        for stage in range(4)
        for there, here in (
            (r"shortcut\.convolution", "downsample.0"),
            (r"shortcut\.normalization", "downsample.1"),
            *((rf"layer\.{number}\.convolution", f"conv{number + 1}") for number in range(3)),
            *((rf"layer\.{number}\.normalization", f"bn{number + 1}") for number in range(3)),
        )
    },
}


# The models


class DetrPreTrainedModel(PreTrainedModel):
    """What all DETR models share: config, names, initialisation."""

    config: DetrConfig
    config_class = DetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DetrConvEncoder", "DetrEncoderLayer", "DetrDecoderLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r".*num_batches_tracked$"]  # noqa: RUF012
    detector_prefix: ClassVar[str] = ""  # of the names of a detector's parameters, in a model that holds one

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return (
            True  # each attention asks the config when it runs; the library guesses from the source, and wrongly here
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        ignore_mismatched_sizes: bool = False,
        head_init: Literal["by_name", "fresh"] = "by_name",
        label_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """`PreTrainedModel.from_pretrained`, which also takes Transformers' own DETR, and keeps what it can of a head.

        With other classes (`id2label`) or `num_queries` than the source has, and `ignore_mismatched_sizes`, the row of
        "no object" stays, rows of classes whose names both know move to their new places (case and spacing aside),
        new rows start just low enough not to disturb the old ones, and further queries are perturbed copies. What was
        kept, moved and made is logged. What the config freezes is frozen in the loaded model.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id, of a model of ours or of Transformers' own DETR.
            *model_args: See the library.
            config: A config to use instead of the source's.
            ignore_mismatched_sizes: Allow a class head or queries of another size.
            head_init: `"fresh"`: what has another size begins anew at random, as in the library.
            label_mapping: Names of classes of the source, and those that take over their rows where they differ.
            **kwargs: Keys of the config to change, and the library's own options. With `output_loading_info` the
                information has the key `head_change` too, a `HeadChange`, or None if there is none to speak of.

        Raises:
            MismatchedSizesError: Sizes differ and may not.
            ValueError: A key is unknown; labels contradict each other; or the source is
                another kind of model.
            OSError: There is no such source.
        """
        if head_init not in ("by_name", "fresh"):
            raise ValueError(f"head_init is '{head_init}'; wanted 'by_name' or 'fresh'.")
        if label_mapping and head_init == "fresh":
            raise ValueError("label_mapping and head_init='fresh' exclude each other; give one of them.")
        options = {"ignore_mismatched_sizes": ignore_mismatched_sizes, **kwargs}
        if pretrained_model_name_or_path is None:  # a state_dict and a config: there is no other head to compare with
            loaded: Any = super().from_pretrained(None, *model_args, config=cast(Any, config), **options)
            _freeze_stems(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded

        # What is there, what is wanted, and what becomes of the head.
        source = str(pretrained_model_name_or_path)
        stock, there, wanted = _read_configs(source, config, options)
        change = HeadChange.between(there, wanted, label_mapping)
        if issubclass(cls, DetrModel):  # which has queries, but no class head
            change = HeadChange((), (), (), change.old_num_queries, change.new_num_queries)
        if not ignore_mismatched_sizes and (complaint := change.size_error(source)):
            raise MismatchedSizesError(complaint)
        moves = head_init == "by_name" and bool(ignore_mismatched_sizes or label_mapping) and bool(change.sentences())
        if not moves:
            change.warn_of_rows_that_stay(source)

        # First as it is there, then with its rows in their places.
        loading = copy.deepcopy(wanted)
        if moves:
            loading.id2label, loading.label2id, loading.num_queries = there.id2label, there.label2id, there.num_queries
        with_info = options.pop("output_loading_info", False)
        names = {**cls._names_elsewhere(stock), **(options.pop("key_mapping", None) or {})}
        try:
            loaded = super().from_pretrained(
                source, *model_args, config=loading, key_mapping=names, output_loading_info=True, **options
            )
        except TypeError as error:
            raise _unknown_key(error) from error
        model, info = loaded
        model._weight_conversions = None  # or what is saved later would get the names that were read
        if stock and (differing := norm_that_stock_computes_otherwise(model)):
            raise ValueError(
                f"{source}: its backbone's batch norms cannot be reproduced here: {differing}. Its weights fit no "
                f"other model."
            )
        if moves:
            change.apply(model, source, _missing(info))
            for key in ("id2label", "label2id", "num_queries"):
                setattr(model.config, key, getattr(wanted, key))
        info["head_change"] = change if moves else None
        _say_what_was_loaded(source, cls, info)
        _freeze_stems(model)
        return (model, info) if with_info else model

    @classmethod
    def _names_elsewhere(cls, stock: Mapping[str, Any]) -> dict[str, str]:
        """What names of parameters become: those of a detector in a panoptic model and back, and those of stock."""
        names = dict(_NAMES_OF_STOCK) if stock else {}
        if is_huggingface_resnet(stock):
            names.update(_NAMES_OF_RESNET)
        if cls.detector_prefix:
            names[r"^(model|class_labels_classifier|bbox_predictor)\."] = rf"{cls.detector_prefix}\1."
        else:
            names[r"^detr\."] = ""
        return names

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises one module as the original does: its transformer by Xavier, the rest by PyTorch's own defaults.

        Original: models/transformer.py, `_reset_parameters`. Backbone weights are timm's own and already there; the
        rules below reach them only if a checkpoint lacks them. Only modules with weights of their own get here: the
        library passes by those that only hold others.
        """
        if isinstance(module, MaskConv2d):
            init.kaiming_uniform_(module.weight, a=1)
            _init_bias(module, zero=True)
        elif isinstance(module, XavierLinear):
            init.xavier_uniform_(module.weight, module.gain)
            _init_bias(module, zero=module.zero_bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            _init_bias(module)
        elif isinstance(module, PositionTable):
            init.uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, FrozenBatchNorm2d)):
            _init_norm(module)
        elif hasattr(module, "init_non_persistent_buffers"):  # timm's: not in any checkpoint, lost on the meta device
            cast(Any, module).init_non_persistent_buffers()


def _init_bias(module: nn.Linear | nn.Conv2d, zero: bool = False) -> None:
    """PyTorch's default, uniform within 1/√(inputs), or zero."""
    if module.bias is not None:
        bound = 0.0 if zero else module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)


def _init_norm(module: nn.Module) -> None:
    """Scale 1, shift 0, and for batch norms mean 0 and variance 1."""
    for name, fill in (("weight", init.ones_), ("bias", init.zeros_), ("running_mean", init.zeros_)):
        if isinstance(tensor := getattr(module, name, None), Tensor):
            fill(tensor)
    if isinstance(variance := getattr(module, "running_var", None), Tensor):
        init.ones_(variance)
    if isinstance(counter := getattr(module, "num_batches_tracked", None), Tensor):
        init.zeros_(counter)


def _read_configs(
    source: str, config: PreTrainedConfig | str | os.PathLike[str] | None, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], DetrConfig, DetrConfig]:
    """The source's `config.json` as it is if it is stock's, else {}; its config under our keys; the config wanted.

    Keys of the config are taken out of `kwargs`, what is the library's stays.
    """
    places = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder")
    where = {key: kwargs[key] for key in places if key in kwargs}
    said, _ = PreTrainedConfig.get_config_dict(source, **where)
    under_ours = config_under_our_keys(said, source)
    stock = said if said.get("model_type") == TRANSFORMERS_MODEL_TYPE else {}
    old = cast(DetrConfig, DetrConfig.from_dict(under_ours))
    if isinstance(config, (str, os.PathLike)):
        under_ours, config = DetrConfig.get_config_dict(config, **where)[0], None
    if config is None:
        config, unused = DetrConfig.from_dict(under_ours, return_unused_kwargs=True, **kwargs)
        for key in set(kwargs) - set(unused):
            del kwargs[key]
    elif not isinstance(config, DetrConfig):
        config = DetrConfig.from_dict(config_under_our_keys(config.to_dict(), "config"))
    return stock, old, cast(DetrConfig, config)


def _unknown_key(error: TypeError) -> Exception:
    """What to say where the library hands a key that nobody knows to the model."""
    match = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None:
        return error
    known = [*(field.name for field in fields(DetrConfig)), "num_labels", "ignore_mismatched_sizes", "label_mapping"]
    nearest = difflib.get_close_matches(match[1], known, n=1)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ": it is no key of DetrConfig, and no option of loading."
    return ValueError(f"from_pretrained does not know the key '{match[1]}'{hint}")


def _missing(info: Mapping[str, Any]) -> set[str]:
    """Parameters that a checkpoint did not fill."""
    return {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _freeze_stems(model: nn.Module) -> None:
    """Loading replaces the parameters, and with them what froze them."""
    for module in model.modules():
        if isinstance(module, DetrConvEncoder):
            module.freeze_stem()


def _say_what_was_loaded(source: str, cls: type[PreTrainedModel], info: Mapping[str, Any]) -> None:
    """Logs what became of the head and of masks."""
    said = info["head_change"].sentences() if info["head_change"] else []
    mask_parts = ("mask_head.", "bbox_attention.")
    if any(name.startswith(mask_parts) for name in info["missing_keys"]):
        said.append(f"the source has no mask head: that of {cls.__name__} is new, and must be trained")
    if any(name.removeprefix("detr.").startswith(mask_parts) for name in info["unexpected_keys"]):
        said.append(f"the source's mask head is left out: {cls.__name__} has none")
    if said:
        _logger.warning("%s: %s.", source, "; ".join(said))


def norm_that_stock_computes_otherwise(model: nn.Module) -> str | None:
    """What differs in the first batch norm that stock Transformers computes otherwise, and its name; None: no such.

    Stock replaces every batch norm by a frozen one with an epsilon of 1e-5, and loses the activation that some of
    timm's carry.
    """
    for name, module in model.named_modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            if not isinstance(getattr(module, "act", None) or nn.Identity(), nn.Identity):
                return f"those of stock lose their activations, first {name}"
            if module.eps != 1e-5:
                return f"those of stock have an epsilon of 1e-5 and not {module.eps:g}, first {name}"
    return None


class DetrModel(DetrPreTrainedModel):
    """Backbone and transformer without heads: an image in, one state for each object query out.

    Args:
        config: See `DetrConfig`.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.backbone = DetrBackbone(config)
        self.input_projection = nn.Conv2d(self.backbone.conv_encoder.channels[-1], config.d_model, kernel_size=1)
        self.query_position_embeddings = nn.Embedding(config.num_queries, config.d_model)
        self.encoder = DetrEncoder(config)
        self.decoder = DetrDecoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_feature_maps: bool = False,
    ) -> DetrModelOutput | tuple[Any, ...]:
        """Paper: fig. 2. Original: models/detr.py and models/transformer.py.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded with zeros on the right and at the bottom.
            pixel_mask: (B, H, W), 1 where there is image and 0 where there is padding; None if nothing is padded.
            extra_queries: Further queries for the decoder.
            output_attentions: Return all attention weights (computed by plain matrix products).
            output_hidden_states: Return the states before each layer.
            return_dict: False: a tuple instead of `DetrModelOutput`.
            output_feature_maps: Return the maps that masks are made from.

        Raises:
            ValueError: Shapes do not fit, or an image is all padding (checked where it costs no synchronisation: on
                the CPU).
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        pixel_values, pixel_mask = self._checked(pixel_values, pixel_mask)

        features, feature_mask, positions = self.backbone(pixel_values, pixel_mask)
        projected = self.input_projection(features[-1])  # (B, D, h, w)
        tokens = projected.flatten(2).transpose(1, 2)  # (B, S, D)
        positions = positions.flatten(1, 2).to(tokens.dtype)  # (B, S, D)
        memory_mask = None if pixel_mask is None else feature_mask.flatten(1)[:, None, None]  # (B, 1, 1, S)
        encoded = self.encoder(tokens, positions, memory_mask, output_attentions, output_hidden_states)

        queries, query_positions, query_mask = self._queries(tokens, extra_queries)
        decoded = self.decoder(
            queries,
            query_positions,
            encoded.memory,
            positions,
            query_mask,
            memory_mask,
            output_attentions,
            output_hidden_states,
        )
        output = DetrModelOutput(
            last_hidden_state=decoded.intermediate[-1],
            intermediate_hidden_states=decoded.intermediate,
            encoder_last_hidden_state=encoded.memory,
            feature_mask=feature_mask,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.self_attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            feature_maps=(*features[:-1], projected) if output_feature_maps else None,
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def load_backbone_weights(self, source: str | Path) -> None:
        """Replaces the backbone's weights by pretrained ones; building from a config never does this by itself.

        Args:
            source: A file (`.safetensors`, `.pth`) with the weights of the config's backbone under timm's names,
                classifier included or not; or a timm name with its tag (`"resnet50.tv_in1k"`, the weights that the
                original starts from), which is downloaded.

        Raises:
            FileNotFoundError: `source` looks like a file that is not there.
            ValueError: The weights are of another architecture, or cannot be read or downloaded.
        """
        path = Path(source)
        if path.is_file():
            overrides: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(path)}}
        elif path.suffix in (".safetensors", ".pth", ".pt", ".bin") or path.is_dir():
            raise FileNotFoundError(f"{source}: no such file of backbone weights.")
        else:
            overrides = {"model_name": str(source).removeprefix("hf-hub:").removeprefix("timm/")}
        try:
            with _missing_keys() as missing:
                pretrained = create_timm_backbone(self.config, pretrained=True, **overrides)
        except Exception as error:  # timm raises whatever its reader or its download does
            raise ValueError(
                f"{source}: cannot load weights for the backbone '{self.config.backbone}' ({error}). Wanted a file "
                f"with that architecture's weights in timm's names, or a timm model name whose weights can be "
                f"downloaded from here."
            ) from error
        needed = {name.replace(".", "_") for name in pretrained.state_dict()}  # timm flattens some names for features
        lacking = [name for name in missing if name.replace(".", "_") in needed]
        if lacking:
            raise ValueError(
                f"{source}: not the weights of the backbone '{self.config.backbone}' in timm's names; it lacks "
                f"{len(lacking)} of {len(needed)}, first '{lacking[0]}'."
            )
        if self.config.freeze_batch_norm:
            freeze_batch_norms(pretrained)
        try:
            self.backbone.conv_encoder.model.load_state_dict(pretrained.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{source}: not weights of the backbone '{self.config.backbone}': {error}") from error

    def _queries(self, tokens: Tensor, extra: ExtraQueries | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The decoder's input (B, Q + E, D), its positions, and its self-attention mask."""
        positions = self.query_position_embeddings.weight.to(tokens.dtype).expand(len(tokens), -1, -1)
        queries = torch.zeros_like(positions)  # the learned queries have a position only
        if extra is None:
            return queries, positions, None
        mask = extra.attention_mask
        return (
            torch.cat([queries, extra.content.to(queries.dtype)], dim=1),
            torch.cat([positions, extra.positions.to(positions.dtype)], dim=1),
            mask[None, None] if mask.ndim == 2 else mask[:, None],
        )

    def _checked(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Shapes and masks that can be computed with; a mask without padding becomes None, the faster way."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; wanted (images, {self.config.num_channels}, "
                f"height, width)."
            )
        if pixel_mask is None:
            return pixel_values, None
        if pixel_mask.shape != (pixel_values.shape[0], *pixel_values.shape[2:]):
            raise ValueError(
                f"pixel_mask has shape {tuple(pixel_mask.shape)}; wanted "
                f"{(pixel_values.shape[0], *pixel_values.shape[2:])}, as pixel_values has."
            )
        if pixel_mask.device.type != "cpu":  # to look at it would stop the device
            return pixel_values, pixel_mask
        image = pixel_mask.bool()
        if bool(image.all()):
            return pixel_values, None
        empty = (~image[:, 0, 0]).nonzero().flatten().tolist()  # images lie at the top left: so does each one's pixel
        if empty:
            raise ValueError(
                f"pixel_mask of image {empty[0]} of the batch is 0 at its top left pixel: it is all padding, or says "
                f"1 for padding. Wanted 1 = image, 0 = padding on the right and at the bottom."
            )
        return pixel_values, pixel_mask

    def _returns_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)


class DetrForObjectDetection(DetrPreTrainedModel):
    """DETR: boxes and classes, one of each for every object query.

    Args:
        config: See `DetrConfig`; `num_labels` (or `id2label`) is the number of classes without "no object".
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.model = DetrModel(config)
        self.class_labels_classifier = nn.Linear(config.d_model, cast(int, config.num_labels) + 1)
        self.bbox_predictor = DetrMLPPredictionHead(config.d_model, 4, num_layers=3)
        self.criterion = SetCriterion(
            HungarianMatcher(float(config.class_cost), float(config.bbox_cost), float(config.giou_cost)),
            float(config.eos_coefficient),
            float(config.bbox_loss_coefficient),
            float(config.giou_loss_coefficient),
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        num_boxes: float | Tensor | None = None,
        class_weight_sum: float | Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> DetrObjectDetectionOutput | tuple[Any, ...]:
        """Detects, and with `labels` computes the loss.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded with zeros on the right and at the bottom.
            pixel_mask: (B, H, W), 1 = image, 0 = padding; None if nothing is padded.
            labels: B dicts with `class_labels` (N,) int64 in 0…C-1 and `boxes` (N, 4) cxcywh in [0, 1] of the unpadded
                image; N may be 0.
            num_boxes: Boxes of the whole optimizer step, the divisor of the box losses. None: this batch's.
            class_weight_sum: Class weights of the whole optimizer step, the divisor of the class loss. None: this
                batch's. See `SetCriterion.class_weight_sum`.
            extra_queries: Further queries for the decoder; predictions and loss are those of the learned ones, the
                states of all are in `intermediate_hidden_states`.
            output_attentions: See `DetrModel.forward`.
            output_hidden_states: See there.
            return_dict: False: a tuple instead of `DetrObjectDetectionOutput`.

        Raises:
            ValueError: Labels are out of range or boxes are not normalised (checked where it costs no synchronisation:
                on the CPU), or see `DetrModel.forward`.
        """
        output, _ = self.detect(
            pixel_values,
            pixel_mask,
            labels,
            num_boxes,
            class_weight_sum,
            extra_queries,
            output_attentions,
            output_hidden_states,
        )
        returns_dict = self.config.return_dict if return_dict is None else return_dict
        return output if returns_dict else output.to_tuple()

    def detect(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        labels: Sequence[DetectionLabels] | None,
        num_boxes: float | Tensor | None,
        class_weight_sum: float | Tensor | None,
        extra_queries: ExtraQueries | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        output_feature_maps: bool = False,
    ) -> tuple[DetrObjectDetectionOutput, list[Assignment] | None]:
        """The step that detection and segmentation share; see `forward`.

        Returns:
            The output, and with `labels` each image's assignment in the last decoder layer.
        """
        states: DetrModelOutput = self.model(
            pixel_values,
            pixel_mask,
            extra_queries,
            output_attentions,
            output_hidden_states,
            return_dict=True,
            output_feature_maps=output_feature_maps,
        )
        logits, pred_boxes = self.predict(
            self.layers_for_heads(cast(Tensor, states.intermediate_hidden_states))[:, :, : self.config.num_queries]
        )
        loss, loss_dict, assignments = None, None, None
        if labels is not None:
            self._check_labels(labels, pixel_values)
            loss, loss_dict, per_layer = self.criterion(
                logits, pred_boxes, labels, num_boxes=num_boxes, class_weight_sum=class_weight_sum
            )
            assignments = per_layer[-1]
        output = DetrObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits[-1],
            pred_boxes=pred_boxes[-1],
            **{name: value for name, value in states.items() if not hasattr(NotByImage, name)},
        )
        output.auxiliary_outputs = self._auxiliary_outputs(logits, pred_boxes)
        output.intermediate_hidden_states = states.intermediate_hidden_states
        output.feature_maps = states.feature_maps
        return output, assignments

    def predict(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The heads: (…, D) decoder states → logits (…, C + 1) and boxes (…, 4) cxcywh in [0, 1], at least float32.

        Where it does not train, logits are computed in float64: a product in float32 is rounded in another way when
        the matrix has other rows, so a head with further classes would change the logits of those that it had.
        """
        return self._class_logits(states), self.bbox_predictor(states).sigmoid()

    def _class_logits(self, states: Tensor) -> Tensor:
        exact = not self.training and states.device.type != "mps"  # which has no float64
        logits = _linear_at_least_float32(self.class_labels_classifier, states.double() if exact else states)
        return logits if states.dtype == torch.float64 else logits.float()

    def layers_for_heads(self, layers: Tensor) -> Tensor:
        """Of (L, B, Q + E, D) decoder layers those that the heads read: all with `auxiliary_loss`, else the last."""
        return layers if self.config.auxiliary_loss else layers[-1:]

    def _auxiliary_outputs(self, logits: Tensor, pred_boxes: Tensor) -> list[dict[str, Tensor]] | None:
        if not self.config.auxiliary_loss:
            return None
        return [
            {"logits": layer_logits, "pred_boxes": layer_boxes}
            for layer_logits, layer_boxes in zip(logits[:-1], pred_boxes[:-1], strict=True)
        ]

    def _check_labels(self, labels: Sequence[DetectionLabels], pixel_values: Tensor) -> None:
        if len(labels) != len(pixel_values):
            raise ValueError(
                f"labels are of {len(labels)} images, pixel_values of {len(pixel_values)}; wanted as many."
            )
        if pixel_values.device.type == "cpu":
            check_labels(labels, cast(int, self.config.num_labels))


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


__all__ = [
    "DetrForObjectDetection",
    "DetrForSegmentation",
    "DetrModel",
    "DetrModelOutput",
    "DetrObjectDetectionOutput",
    "DetrPreTrainedModel",
    "DetrSegmentationOutput",
    "ExtraQueries",
]
