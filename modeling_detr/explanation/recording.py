"""The attention of one forward pass, from which any row of any attention map is computed when it is needed.

A recording keeps what the attention layers project (T·D numbers each) instead of their maps (A·S² numbers each): six
encoder maps of an image of 800x1333 pixels take 200 MB, with dilation 3 GB. Nothing depends on the attention
implementation: `sdpa` returns no maps, but projects the same states.

Shapes: Q queries · D width · A attention heads · h, w feature cells · S = h·w tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modeling_detr.modeling_detr import DetrAttention, DetrForObjectDetection, DetrObjectDetectionOutput
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation


NUMBERS_PER_CHUNK = 2**23  # of a map at a time: 32 MB


@dataclass
class AttentionRecord:
    """One attention layer in one forward pass of one image.

    Attributes:
        query_heads: (A, T, D/A), projected.
        key_heads: (A, S, D/A), projected.
        value_heads: (A, S, D/A), projected.
        mask: (S,) bool, True = may be attended to; None = all.
        context: (1, T, D), the input of the output projection; it belongs to the graph of a recording with gradients.
        context_gradient: (A, T, D/A), the gradient of a target by the context; see `Recording.differentiate`.
    """

    query_heads: Tensor
    key_heads: Tensor
    value_heads: Tensor
    mask: Tensor | None
    context: Tensor
    context_gradient: Tensor | None = None

    def rows(self, indices: Tensor) -> Tensor:
        """The attention of the rows `indices` (N,), (A, N, S); each row of each head sums to 1."""
        scores = self.query_heads[:, indices] @ self.key_heads.transpose(-1, -2) * self.query_heads.shape[-1] ** -0.5
        if self.mask is not None:
            scores = scores.masked_fill(~self.mask, -torch.inf)
        weights: Tensor = scores.softmax(-1)
        return weights

    def relevant_rows(self, indices: Tensor) -> Tensor:
        """Rows of mean_h((∇A ⊙ A)⁺) over heads, (N, S): equation 5 of Chefer et al. (2103.15679).

        Raises:
            ValueError: No gradient has been computed.
        """
        if self.context_gradient is None:
            raise ValueError("relevance: no gradient has been computed; call Recording.differentiate first.")
        gradients = self.context_gradient[:, indices] @ self.value_heads.transpose(-1, -2)  # as context = A · values
        return (gradients * self.rows(indices)).float().clamp(min=0).mean(0)

    def chunks(self) -> Iterator[Tensor]:
        """The indices of all rows, in parts whose maps stay small."""
        heads, rows, _ = self.query_heads.shape
        size = max(1, NUMBERS_PER_CHUNK // (heads * self.key_heads.shape[1]))
        yield from torch.arange(rows, device=self.query_heads.device).split(size)


@dataclass
class Recording:
    """The attention of one forward pass of one image.

    Attributes:
        outputs: The detector's outputs.
        encoder: The self-attention of each encoder layer.
        decoder: The self-attention of each decoder layer.
        cross: The cross-attention of each decoder layer.
        canvas_size: (height, width) of the model's input, with padding.
        processed_size: (height, width) of the image in it.
    """

    outputs: DetrObjectDetectionOutput
    encoder: list[AttentionRecord] = field(default_factory=list)
    decoder: list[AttentionRecord] = field(default_factory=list)
    cross: list[AttentionRecord] = field(default_factory=list)
    canvas_size: tuple[int, int] = (0, 0)
    processed_size: tuple[int, int] = (0, 0)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), the feature cells that cover the canvas."""
        height, width = self.outputs.feature_mask.shape[1:]
        return height, width

    @property
    def extent(self) -> tuple[float, float]:
        """(height, width) of the image in feature cells."""
        return extent_of(self.processed_size, self.canvas_size, self.grid)

    def cross_attention(self, queries: Tensor) -> Tensor:
        """Where the queries (N,) look, (N, L, A, h, w): the paper's figure 6 shows the mean of the last layer."""
        maps = torch.stack([record.rows(queries) for record in self.cross])  # (L, A, N, S)
        return _on_grid(maps, self.grid)

    def self_attention(self, tokens: Tensor) -> Tensor:
        """Where the encoder's tokens (N,) look, (N, L, A, h, w): the paper's figure 3 shows the last layer."""
        if not self.encoder:  # as in the paper's table 2
            return torch.zeros(len(tokens), 0, 0, *self.grid)
        maps = torch.stack([record.rows(tokens) for record in self.encoder])
        return _on_grid(maps, self.grid)

    def differentiate(self, target: Tensor) -> None:
        """Computes the gradient of a scalar of the outputs by all attention; a second call replaces the first's.

        Raises:
            ValueError: The recording has no gradients.
        """
        if not target.requires_grad:
            raise ValueError("differentiate: the recording has no graph; record with gradients=True.")
        records = [*self.encoder, *self.decoder, *self.cross]
        contexts = [record.context for record in records]
        gradients = torch.autograd.grad(target, contexts, retain_graph=True, allow_unused=True)
        for record, gradient in zip(records, gradients, strict=True):
            states = torch.zeros_like(record.context) if gradient is None else gradient
            record.context_gradient = _heads(states, len(record.query_heads))


def extent_of(
    processed_size: tuple[int, int], canvas_size: tuple[int, int], grid: tuple[int, int]
) -> tuple[float, float]:
    """(height, width) of an image in the cells of a grid that covers a canvas, of which the image has a part."""
    (height, width), (whole_height, whole_width), (rows, columns) = processed_size, canvas_size, grid
    return height / whole_height * rows, width / whole_width * columns


def _on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(L, A, N, S) → (N, L, A, h, w)."""
    return maps.permute(2, 0, 1, 3).reshape(maps.shape[2], *maps.shape[:2], *grid)


def _heads(states: Tensor, num_heads: int) -> Tensor:
    """(1, T, D) → (A, T, D/A)."""
    return states.detach().view(states.shape[1], num_heads, -1).transpose(0, 1)


def detector_of(model: Detector) -> DetrForObjectDetection:
    """The detector in a model with masks, or the model itself."""
    return model.detr if isinstance(model, DetrForSegmentation) else model


def record(
    model: Detector, pixel_values: Tensor, pixel_mask: Tensor | None = None, gradients: bool = False
) -> Recording:
    """Runs a model on one image and records its attention.

    Args:
        model: A model in evaluation mode.
        pixel_values: (1, 3, H, W), normalised.
        pixel_mask: (1, H, W), 1 = image, 0 = padding; None if nothing is padded.
        gradients: Keep the transformer's graph, for `Recording.differentiate`; the backbone has none.

    Raises:
        ValueError: More than one image, or a model in training mode.
    """
    if len(pixel_values) != 1:
        raise ValueError(f"pixel_values: got {len(pixel_values)} images, expected 1.")
    if model.training:
        raise ValueError("model: it is in training mode, where dropout is on; call model.eval() first.")
    detector = detector_of(model)
    layers = [
        [layer.self_attn for layer in detector.model.encoder.layers],
        [layer.self_attn for layer in detector.model.decoder.layers],
        [layer.encoder_attn for layer in detector.model.decoder.layers],
    ]
    calls: dict[nn.Module, dict[str, Any]] = {}
    with torch.no_grad(), _hooks(detector, [layer for kind in layers for layer in kind], calls, gradients):
        outputs, _ = detector.detect(pixel_values, pixel_mask)
    encoder, decoder, cross = ([_record_of(layer, calls[layer]) for layer in kind] for kind in layers)
    height, width = pixel_values.shape[-2:]
    processed_size = (height, width) if pixel_mask is None else _size_in(pixel_mask[0])
    return Recording(outputs, encoder, decoder, cross, (height, width), processed_size)


def _size_in(mask: Tensor) -> tuple[int, int]:
    """(height, width) of the image in its mask (H, W), 1 = image."""
    return int(mask[:, 0].sum()), int(mask[0].sum())


@contextmanager
def _hooks(
    detector: DetrForObjectDetection,
    layers: Sequence[nn.Module],
    calls: dict[nn.Module, dict[str, Any]],
    gradients: bool,
) -> Iterator[None]:
    """Collect the projections, the mask and the context of every attention layer."""

    def start_graph(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.set_grad_enabled(True)  # from here on; `torch.no_grad` around the forward pass resets it
        return arguments[0].requires_grad_(), *arguments[1:]

    def keep_mask(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls[layer] = {"mask": arguments[3]}

    handles = [detector.model.encoder.register_forward_pre_hook(start_graph)] if gradients else []
    for layer in layers:
        handles.append(layer.register_forward_pre_hook(keep_mask))
        for name in ("q_proj", "k_proj", "v_proj"):

            def keep(_: nn.Module, __: Any, output: Tensor, layer: nn.Module = layer, name: str = name) -> None:
                calls[layer][name] = output

            handles.append(getattr(layer, name).register_forward_hook(keep))

        def keep_context(_: nn.Module, arguments: tuple[Tensor, ...], layer: nn.Module = layer) -> None:
            calls[layer]["context"] = arguments[0]

        handles.append(layer.out_proj.register_forward_pre_hook(keep_context))  # type: ignore[union-attr]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record_of(layer: DetrAttention, call: dict[str, Any]) -> AttentionRecord:
    mask: Tensor | None = call["mask"]
    return AttentionRecord(
        query_heads=_heads(call["q_proj"], layer.num_heads),
        key_heads=_heads(call["k_proj"], layer.num_heads),
        value_heads=_heads(call["v_proj"], layer.num_heads),
        mask=None if mask is None else mask[0, 0, 0],
        context=call["context"],
    )
