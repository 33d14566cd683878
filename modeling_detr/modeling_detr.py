"""DETR as the paper draws it: backbone → positions → transformer encoder → decoder → heads.

Read `DetrModel.forward` first: it is figure 2 of "End-to-End Object Detection with Transformers" read aloud. Parameter
names are those of the DETR checkpoints on the Hub; the numbers are the original's (facebookresearch/detr).

Shapes: B images · Q queries (E extra ones in training) · C classes · D width · A attention heads · H, W pixels ·
h, w feature cells · S = h·w tokens · L decoder layers · M queries whose masks are computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from .backbone_detr import DetrBackbone
from .configuration_detr import DetrConfig
from .loss_detr import HungarianMatcher, SetCriterion
from .pretrained_detr import DetrPreTrainedModel, HeadChange, init_bias, resized
from .structures_detr import Assignment, DetectionLabels, check_labels


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


class BatchLevelOutputs:
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
class DetrObjectDetectionOutput(BatchLevelOutputs, ModelOutput):
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


# Transformer


class XavierLinear(nn.Linear):
    """A linear layer of the transformer: its weight is drawn by Xavier's uniform rule.

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

    def reset_weights(self) -> None:
        """Draws weight and bias."""
        init.xavier_uniform_(self.weight, self.gain)
        init_bias(self, zero=self.zero_bias)


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
            states = F.relu(linear_at_least_float32(layer, states))
        return linear_at_least_float32(last, states)


def linear_at_least_float32(layer: nn.Module, states: Tensor) -> Tensor:
    """A linear layer in float32 (float64 if the states are): half precision moves a box of a large image by pixels."""
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    weight, bias = cast(Tensor, layer.weight), cast(Tensor, layer.bias)
    with torch.autocast(states.device.type, enabled=False):
        return F.linear(states.to(dtype), weight.to(dtype), bias.to(dtype))


# The models

# Noise on the copies of queries, in standard deviations of the queries that were there.
_QUERY_NOISE = 0.1


class DetrModel(DetrPreTrainedModel):
    """Backbone and transformer without heads: an image in, one state for each object query out.

    Args:
        config: See `DetrConfig`.
    """

    has_class_head = False

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
        self.backbone.conv_encoder.load_weights(source)

    def change_head(self, change: HeadChange) -> None:
        """Keeps, drops or adds queries."""
        wanted = change.new_num_queries
        if wanted != change.old_num_queries:
            queries = self.query_position_embeddings
            queries.weight = resized(queries.weight, _more_queries(queries.weight, wanted))
            queries.num_embeddings = wanted

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


def _more_queries(queries: Tensor, wanted: int) -> Tensor:
    """(Q, D) → (wanted, D): the first ones as they are, then copies of them in turn with some noise."""
    copies = queries[torch.arange(len(queries), max(wanted, len(queries)), device=queries.device) % len(queries)]
    noise = torch.randn_like(copies) * queries.std() * _QUERY_NOISE
    return torch.cat([queries, copies + noise])[:wanted]


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
                batch's. See `sum_class_weights`.
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
            **{name: value for name, value in states.items() if not hasattr(BatchLevelOutputs, name)},
        )
        output.auxiliary_outputs = self._auxiliary_outputs(logits, pred_boxes)
        output.intermediate_hidden_states = states.intermediate_hidden_states
        output.feature_maps = states.feature_maps
        return output, assignments

    def change_head(self, change: HeadChange) -> None:
        """Moves, drops and adds rows of the class head, and queries of the transformer."""
        if change.classes_change:
            classifier = self.class_labels_classifier
            classifier.weight = resized(classifier.weight, change.new_rows(classifier.weight))
            classifier.bias = resized(classifier.bias, change.new_rows(classifier.bias, change.offset_of_new_rows))
            classifier.out_features = len(classifier.weight)
        self.model.change_head(change)

    def predict(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The heads: (…, D) decoder states → logits (…, C + 1) and boxes (…, 4) cxcywh in [0, 1], at least float32.

        Where it does not train, logits are computed in float64: a product in float32 is rounded in another way when
        the matrix has other rows, so a head with further classes would change the logits of those that it had.
        """
        return self._class_logits(states), self.bbox_predictor(states).sigmoid()

    def _class_logits(self, states: Tensor) -> Tensor:
        exact = not self.training and states.device.type != "mps"  # which has no float64
        logits = linear_at_least_float32(self.class_labels_classifier, states.double() if exact else states)
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


__all__ = [
    "DetrForObjectDetection",
    "DetrModel",
    "DetrModelOutput",
    "DetrObjectDetectionOutput",
    "ExtraQueries",
]
