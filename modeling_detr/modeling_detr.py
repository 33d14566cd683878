"""DETR as the paper draws it: backbone → positions → transformer encoder → decoder → heads.

Read `DetrModel.forward` first: it is figure 2 of "End-to-End Object Detection with Transformers" in code. Parameter
names are those of the DETR checkpoints on the Hub; the numbers are the original's (facebookresearch/detr).

Shapes: B images · Q queries (plus E extra ones in training) · C classes · D width · A attention heads · H, W pixels ·
h, w feature cells · S = h·w tokens · L decoder layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput
from transformers.utils.import_utils import is_tracing

from .backbone_detr import DetrBackbone
from .configuration_detr import DetrConfig
from .layers_detr import DetrMLPPredictionHead, HeadLinear, at_least_float32, xavier_linear
from .loss_detr import HungarianMatcher, SetCriterion
from .padding_detr import ImageList, PaddingWatch, batch_of
from .pretrained_detr import DetrPreTrainedModel, HeadChange, resized
from .structures_detr import Assignment, DetectionLabels, check_labels, labels_as_tensors


# Inputs and outputs

_ALWAYS_SET: Any = None  # `ModelOutput` requires a default; the models set these fields in every forward pass


class ExtraQueries(NamedTuple):
    """Queries beside the learned ones, with their own content; training aids such as denoising add them.

    content: (B, E, D), the decoder's input. positions: (B, E, D), their query embedding. attention_mask:
    (Q + E, Q + E) or (B, Q + E, Q + E) bool, True where a query (row) may attend to another (column); each row needs
    at least one True.
    """

    content: Tensor
    positions: Tensor
    attention_mask: Tensor


class BatchLevelOutputs:
    """Outputs that are attributes rather than fields, because they are not one entry per image, or not of one size.

    Transformers' pipelines split every field of an output by image, and its Trainer concatenates them over batches.

    Attributes:
        feature_mask: (B, h, w) bool, True where a token covers image rather than padding.
        intermediate_hidden_states: (L, B, Q + E, D), every decoder layer, normalised; the last is `last_hidden_state`.
        auxiliary_outputs: `{"logits", "pred_boxes"}` of each decoder layer except the last; None without
            `auxiliary_loss`.
        feature_maps: The backbone's maps (B, channels, …) from the largest to the second deepest, followed by the
            projected deepest map (B, D, h, w), which the encoder reads. None unless requested.
    """

    feature_mask: Tensor = _ALWAYS_SET
    intermediate_hidden_states: Tensor = _ALWAYS_SET
    auxiliary_outputs: list[dict[str, Tensor]] | None = None
    feature_maps: tuple[Tensor, ...] | None = None

    def copy_batch_level(self, other: "BatchLevelOutputs") -> None:
        """Copies these attributes from `other`."""
        for name in BatchLevelOutputs.__annotations__:
            setattr(self, name, getattr(other, name))


@dataclass
class DetrModelOutput(BatchLevelOutputs, ModelOutput):
    """Hidden states of the transformer.

    Attributes:
        last_hidden_state: (B, Q + E, D), the last decoder layer, normalised.
        encoder_last_hidden_state: (B, S, D), the encoder's tokens in row-major order.
        decoder_hidden_states: L + 1 tensors (B, Q + E, D), not normalised; the first is the decoder's input.
        decoder_attentions: L tensors (B, A, Q + E, Q + E).
        cross_attentions: L tensors (B, A, Q + E, S).
        encoder_hidden_states: The encoder's input and one tensor (B, S, D) per layer.
        encoder_attentions: One tensor (B, A, S, S) per encoder layer.
    """

    last_hidden_state: Tensor = _ALWAYS_SET
    encoder_last_hidden_state: Tensor = _ALWAYS_SET
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class DetectionFields(ModelOutput):
    """The fields of a detection. As the last base class of an output they come first in its tuple, the loss at 0."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor = _ALWAYS_SET
    pred_boxes: Tensor = _ALWAYS_SET

    def add_loss(self, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Adds a weighted loss to `loss`, and its unweighted terms to `loss_dict`.

        Raises:
            ValueError: The output has no loss, because the model was called without labels.
        """
        if self.loss is None or self.loss_dict is None:
            raise ValueError("This output has no loss to add to; pass labels to the model.")
        self.loss = self.loss + loss
        self.loss_dict = {**self.loss_dict, **terms}


@dataclass
class DetrObjectDetectionOutput(DetrModelOutput, DetectionFields):
    """Detections of a batch, their loss if labels were given, and the fields of `DetrModelOutput`.

    Attributes:
        loss: Scalar, the weighted sum of all terms.
        loss_dict: The unweighted terms under the original's names; those of the last decoder layer have no number.
        logits: (B, Q, C + 1), the last decoder layer; index C is "no object".
        pred_boxes: (B, Q, 4) cxcywh in [0, 1], relative to the unpadded image.
    """


# Transformer


class DetrAttention(nn.Module):
    """Multi-head attention.

    Args:
        config: `d_model` and `attention_dropout` are read; so is the attention implementation, at every call, since it
            may change later: `"sdpa"` (PyTorch's fused kernels) or `"eager"` (plain matrix products).
        num_heads: A.
    """

    def __init__(self, config: DetrConfig, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.dropout = float(config.attention_dropout)
        width = config.d_model
        # the original's three input projections are one (3D, D) matrix: Xavier's bound of (D, D) over √2
        self.q_proj = xavier_linear(width, width, gain=2**-0.5, zero_bias=True)
        self.k_proj = xavier_linear(width, width, gain=2**-0.5, zero_bias=True)
        self.v_proj = xavier_linear(width, width, gain=2**-0.5, zero_bias=True)
        self.out_proj = xavier_linear(width, width, zero_bias=True)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) queries attend to (B, S, D) keys and values → (B, T, D), and on request the weights (B, A, T, S).

        `mask` broadcasts to (B, A, T, S) bool, True = may attend; None = no restriction.
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


class TransformerLayer(nn.Module):
    """The parts that encoder and decoder layers share: residual branches with their norm, and the feed-forward
    network."""

    def __init__(self, config: DetrConfig, ffn_dim: int) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.dropout = float(config.dropout)
        self.activation_dropout = float(config.activation_dropout)
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = xavier_linear(config.d_model, ffn_dim)
        self.fc2 = xavier_linear(ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def residual(self, states: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """states + branch(states), normalised after (the paper) or before the branch (`pre_norm`)."""
        if self.pre_norm:
            return states + F.dropout(branch(norm(states)), self.dropout, self.training)
        normed: Tensor = norm(states + F.dropout(branch(states), self.dropout, self.training))
        return normed

    def feed_forward(self, states: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        hidden = F.dropout(self.activation(self.fc1(states)), self.activation_dropout, self.training)
        output: Tensor = self.fc2(hidden)
        return output


class DetrEncoderLayer(GradientCheckpointingLayer, TransformerLayer):
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
            placed = states + positions
            attended: Tensor
            attended, weights = self.self_attn(placed, placed, states, mask, output_attentions)
            return attended

        tokens = self.residual(tokens, self.self_attn_layer_norm, self_attention)
        tokens = self.residual(tokens, self.final_layer_norm, self.feed_forward)
        return tokens, weights


class DetrDecoderLayer(GradientCheckpointingLayer, TransformerLayer):
    """Self-attention of the queries, cross-attention to the image, then a feed-forward network.

    Original: `TransformerDecoderLayer`.
    """

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
        placed_memory: Tensor,
        query_mask: Tensor | None,
        memory_mask: Tensor | None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One decoder layer.

        Args:
            queries: (B, Q + E, D).
            query_positions: (B, Q + E, D), added to the queries wherever they act as attention queries or keys.
            memory: (B, S, D), the encoder's tokens.
            placed_memory: (B, S, D), the same tokens with their positions added.
            query_mask: (1 or B, 1, Q + E, Q + E) bool, True = may attend; None = no restriction.
            memory_mask: (B, 1, 1, S) bool, True = image; None = no padding.
            output_attentions: Return both attention weights.

        Returns:
            (B, Q + E, D), then self- and cross-attention weights, or None.
        """
        self_weights = cross_weights = None

        def self_attention(states: Tensor) -> Tensor:
            nonlocal self_weights
            placed = states + query_positions
            attended: Tensor
            attended, self_weights = self.self_attn(placed, placed, states, query_mask, output_attentions)
            return attended

        def cross_attention(states: Tensor) -> Tensor:
            nonlocal cross_weights
            attended: Tensor
            attended, cross_weights = self.encoder_attn(
                states + query_positions, placed_memory, memory, memory_mask, output_attentions
            )
            return attended

        queries = self.residual(queries, self.self_attn_layer_norm, self_attention)
        queries = self.residual(queries, self.encoder_attn_layer_norm, cross_attention)
        queries = self.residual(queries, self.final_layer_norm, self.feed_forward)
        return queries, self_weights, cross_weights


class EncoderOutput(NamedTuple):
    """memory (B, S, D), and on request one tensor per layer as in `DetrModelOutput`."""

    memory: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class DetrEncoder(nn.Module):
    """The encoder layers, and with `pre_norm` a final norm. Original: models/transformer.py, `TransformerEncoder`.

    Args:
        config: The `encoder_…`, dropout and norm keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DetrEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.layernorm = nn.LayerNorm(config.d_model) if config.pre_norm else nn.Identity()

    def forward(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, output_attentions: bool, output_states: bool
    ) -> EncoderOutput:
        """Encodes (B, S, D) tokens at (B, S, D) positions; the mask is (B, 1, 1, S) bool, True = image."""
        states, attentions = [tokens], []
        for layer in self.layers:
            tokens, weights = layer(tokens, positions, mask, output_attentions)
            states.append(tokens)
            attentions.append(weights)
        return EncoderOutput(
            self.layernorm(tokens),
            tuple(states) if output_states else None,
            tuple(attentions) if output_attentions else None,
        )


class DecoderOutput(NamedTuple):
    """intermediate (L, B, Q + E, D), normalised, and on request one tensor per layer as in `DetrModelOutput`."""

    intermediate: Tensor
    hidden_states: tuple[Tensor, ...] | None
    self_attentions: tuple[Tensor, ...] | None
    cross_attentions: tuple[Tensor, ...] | None


class DetrDecoder(nn.Module):
    """The decoder layers. The heads read each layer's output through one shared norm; the next layer reads it raw.

    Paper: app. A.3. Original: models/transformer.py, `TransformerDecoder`.

    Args:
        config: The `decoder_…`, dropout and norm keys are read.
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
    ) -> DecoderOutput:
        """See `DetrDecoderLayer.forward`; `memory_positions` is (B, S, D)."""
        placed_memory = memory + memory_positions
        states, self_attentions, cross_attentions = [queries], [], []
        for layer in self.layers:
            queries, self_weights, cross_weights = layer(
                queries, query_positions, memory, placed_memory, query_mask, memory_mask, output_attentions
            )
            states.append(queries)
            self_attentions.append(self_weights)
            cross_attentions.append(cross_weights)
        return DecoderOutput(
            self.layernorm(torch.stack(states[1:])),
            tuple(states) if output_states else None,
            tuple(self_attentions) if output_attentions else None,
            tuple(cross_attentions) if output_attentions else None,
        )


class DetrModel(DetrPreTrainedModel):
    """Backbone and transformer without heads: images in, one hidden state per object query out.

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
        self.padding_watch = PaddingWatch()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | ImageList,
        pixel_mask: Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_feature_maps: bool = False,
        **kwargs: Any,
    ) -> DetrModelOutput | tuple[Any, ...]:
        """Computes the hidden states. Paper: fig. 2. Original: models/detr.py and models/transformer.py.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded with zeros on the right and at the bottom; or a list of
                images (3, H, W) of any sizes, which are padded.
            pixel_mask: (B, H, W), 1 = image, 0 = padding; None if nothing is padded. Ignored in evaluation mode if
                the model was trained on padded images without one, see `DetrConfig.trained_without_mask`.
            extra_queries: Additional queries for the decoder.
            output_attentions: Return all attention weights; attention is then computed by plain matrix products.
            output_hidden_states: Return the hidden states before and after each layer.
            return_dict: False returns a tuple instead of `DetrModelOutput`.
            output_feature_maps: Return the feature maps from which masks are computed.
            **kwargs: Arguments that Transformers' tools pass to any model; ignored.

        Raises:
            ValueError: Shapes do not match, or an image is all padding (checked only on the CPU, where it costs no
                synchronisation).
        """
        self.check_library_arguments(kwargs)
        pixel_values, pixel_mask = batch_of(pixel_values, pixel_mask)
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        uses_mask = self.padding_watch(
            self.config, pixel_values, pixel_mask, self.training and torch.is_grad_enabled()
        )
        pixel_mask = self._check_images(pixel_values, pixel_mask)
        if not uses_mask:
            pixel_mask = None

        features, feature_mask, positions = self.backbone(pixel_values, pixel_mask)
        projected = self.input_projection(features[-1])  # (B, D, h, w)
        tokens = projected.flatten(2).transpose(1, 2)  # (B, S, D)
        positions = positions.flatten(1, 2).to(tokens.dtype)  # (B, S, D)
        memory_mask = None if pixel_mask is None else feature_mask.flatten(1)[:, None, None]  # (B, 1, 1, S)
        encoded = self.encoder(tokens, positions, memory_mask, attentions, states)
        queries, query_positions, query_mask = self._queries(tokens, extra_queries)
        decoded = self.decoder(
            queries, query_positions, encoded.memory, positions, query_mask, memory_mask, attentions, states
        )

        output = DetrModelOutput(
            last_hidden_state=decoded.intermediate[-1],
            encoder_last_hidden_state=encoded.memory,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.self_attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
        output.feature_mask = feature_mask
        output.intermediate_hidden_states = decoded.intermediate
        output.feature_maps = (*features[:-1], projected) if output_feature_maps else None
        return self.output_or_tuple(output, return_dict)

    def load_backbone_weights(self, source: str | Path) -> None:
        """Replaces the backbone's weights by pretrained ones; building from a config never downloads any.

        Args:
            source: A file (`.safetensors`, `.pth`) with weights of the config's backbone under timm's names, with or
                without a classifier; or a timm name with its tag, whose weights are downloaded (`"resnet50.tv_in1k"`
                is what the original starts from).

        Raises:
            FileNotFoundError: `source` looks like a file, but does not exist.
            ValueError: The weights belong to another architecture, or cannot be read or downloaded.
        """
        self.backbone.conv_encoder.load_weights(source)

    def change_head(self, change: HeadChange) -> None:
        """Drops queries, or adds copies of the existing ones with some noise."""
        if change.new_num_queries != change.old_num_queries:
            queries = self.query_position_embeddings
            queries.weight = resized(queries.weight, change.resize_queries(queries.weight))
            queries.num_embeddings = change.new_num_queries

    def _queries(self, tokens: Tensor, extra: ExtraQueries | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The decoder's input (B, Q + E, D), its positions, and its self-attention mask."""
        indices = torch.arange(self.config.num_queries, device=tokens.device)
        positions = self.query_position_embeddings(indices).to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        queries = torch.zeros_like(positions)  # the learned queries consist of a position only
        if extra is None:
            return queries, positions, None
        mask = extra.attention_mask
        return (
            torch.cat([queries, extra.content.to(queries.dtype)], dim=1),
            torch.cat([positions, extra.positions.to(positions.dtype)], dim=1),
            mask[None, None] if mask.ndim == 2 else mask[:, None],
        )

    def _check_images(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor | None:
        """Checks shapes and mask; returns the mask, or None if nothing is padded, which is faster to compute."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values: got shape {tuple(pixel_values.shape)}, expected (images, {self.config.num_channels}, "
                f"height, width)."
            )
        if pixel_mask is None:
            return None
        expected = (pixel_values.shape[0], *pixel_values.shape[2:])
        if pixel_mask.shape != expected:
            raise ValueError(
                f"pixel_mask: got shape {tuple(pixel_mask.shape)}, expected {expected}, to match pixel_values."
            )
        if pixel_mask.device.type != "cpu" or is_tracing(pixel_mask):
            # reading it would stall the device, or make this batch's padding a part of the graph
            return pixel_mask
        image = pixel_mask.bool()
        if bool(image.all()):
            return None
        empty = (
            (~image[:, 0, 0]).nonzero().flatten().tolist()
        )  # images are at the top left, and so is their first pixel
        if empty:
            raise ValueError(
                f"pixel_mask: image {empty[0]} of the batch is 0 at its top left pixel, so it is all padding or the "
                f"mask is inverted; expected 1 = image, 0 = padding on the right and at the bottom."
            )
        return pixel_mask


# Heads


class DetrForObjectDetection(DetrPreTrainedModel):
    """DETR: one class and one box per object query.

    Args:
        config: See `DetrConfig`; `num_labels` (or `id2label`) is the number of classes without "no object".
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__(config)
        self.model = DetrModel(config)
        self.class_labels_classifier = HeadLinear(config.d_model, config.num_classes + 1, exact=True)
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
        pixel_values: Tensor | ImageList,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        num_boxes: float | Tensor | None = None,
        class_weight_sum: float | Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DetrObjectDetectionOutput | tuple[Any, ...]:
        """Detects objects, and computes the loss if `labels` are given.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded with zeros on the right and at the bottom; or a list of
                images (3, H, W) of any sizes, which are padded.
            pixel_mask: (B, H, W), 1 = image, 0 = padding; None if nothing is padded.
            labels: B dicts with `class_labels` (N,) integers in 0…C-1 and `boxes` (N, 4) cxcywh in [0, 1], relative to
                the unpadded image; N may be 0. Tensors, arrays or lists.
            num_boxes: Boxes of the whole optimizer step, the divisor of the box losses. None: this batch's.
            class_weight_sum: Class weights of the whole optimizer step, the divisor of the class loss. None: this
                batch's. See `sum_class_weights`.
            extra_queries: Additional queries for the decoder. Predictions and loss cover the learned queries only;
                `intermediate_hidden_states` has the states of all.
            output_attentions: See `DetrModel.forward`.
            output_hidden_states: See `DetrModel.forward`.
            return_dict: False returns a tuple instead of `DetrObjectDetectionOutput`.
            **kwargs: See `DetrModel.forward`.

        Raises:
            ValueError: Labels are out of range or boxes are not normalised (checked only on the CPU, where it costs no
                synchronisation); or see `DetrModel.forward`.
        """
        self.check_library_arguments(kwargs)
        pixel_values, pixel_mask = batch_of(pixel_values, pixel_mask)
        output, _ = self.detect(
            pixel_values,
            pixel_mask,
            None if labels is None else labels_as_tensors(labels),
            num_boxes,
            class_weight_sum,
            extra_queries,
            output_attentions,
            output_hidden_states,
        )
        return self.output_or_tuple(output, return_dict)

    def detect(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[DetectionLabels] | None = None,
        num_boxes: float | Tensor | None = None,
        class_weight_sum: float | Tensor | None = None,
        extra_queries: ExtraQueries | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_feature_maps: bool = False,
    ) -> tuple[DetrObjectDetectionOutput, list[Assignment]]:
        """The step that detection and segmentation share; see `forward`.

        Returns:
            The output, and with `labels` one assignment per image, of the last decoder layer.
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
        learned = states.intermediate_hidden_states[:, :, : self.config.num_queries]
        logits, pred_boxes = self.predict(self.layers_for_heads(learned))  # (L, B, Q, C + 1), (L, B, Q, 4)
        loss, loss_dict, assignments = self._loss(logits, pred_boxes, labels, num_boxes, class_weight_sum)
        output = DetrObjectDetectionOutput(loss, loss_dict, logits[-1], pred_boxes[-1], **states)
        output.copy_batch_level(states)
        if self.config.auxiliary_loss:
            layers = zip(logits[:-1], pred_boxes[:-1], strict=True)
            output.auxiliary_outputs = [{"logits": scores, "pred_boxes": boxes} for scores, boxes in layers]
        return output, assignments

    def layers_for_heads(self, layers: Tensor) -> Tensor:
        """Selects from (L, B, Q + E, D) decoder layers those the heads read: all with `auxiliary_loss`, else the
        last."""
        return layers if self.config.auxiliary_loss else layers[-1:]

    def predict(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The heads: (…, D) decoder states → logits (…, C + 1) and boxes (…, 4) cxcywh in [0, 1], at least float32.

        In evaluation mode logits are computed in float64: float32 products round differently when the matrix has more
        rows, so adding classes to a head would change the logits of the existing ones.
        """
        logits = at_least_float32(self.class_labels_classifier(states))
        return logits, at_least_float32(self.bbox_predictor(states)).sigmoid()

    def change_head(self, change: HeadChange) -> None:
        """Moves, drops and adds rows of the class head; see `DetrModel.change_head` for queries."""
        if change.classes_change:
            classifier = self.class_labels_classifier
            classifier.weight = resized(classifier.weight, change.move_rows(classifier.weight))
            classifier.bias = resized(classifier.bias, change.move_rows(classifier.bias, change.new_class_offset))
            classifier.out_features = len(classifier.weight)
        self.model.change_head(change)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss term in the sum, the same for all decoder layers."""
        return self.criterion.weights

    def _loss(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        labels: Sequence[DetectionLabels] | None,
        num_boxes: float | Tensor | None,
        class_weight_sum: float | Tensor | None,
    ) -> tuple[Tensor | None, dict[str, Tensor] | None, list[Assignment]]:
        """Loss, its terms and the assignment of the last decoder layer; nothing of these without labels."""
        if labels is None:
            return None, None, []
        if len(labels) != logits.shape[1]:
            raise ValueError(f"labels: got {len(labels)} images, expected {logits.shape[1]}, as in pixel_values.")
        if logits.device.type == "cpu" and not is_tracing(logits):
            check_labels(labels, self.config.num_classes)
        loss, loss_dict, assignments = self.criterion(
            logits, pred_boxes, labels, num_boxes=num_boxes, class_weight_sum=class_weight_sum
        )
        return loss, loss_dict, assignments[-1]


# A saved model names the hub files that it needs, so trust_remote_code can load it without this package
DetrModel.register_for_auto_class("AutoModel")
DetrForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")


__all__ = [
    "DetrForObjectDetection",
    "DetrModel",
    "DetrModelOutput",
    "DetrObjectDetectionOutput",
    "ExtraQueries",
]
