"""Infer the architecture of an original DETR checkpoint from its weights.

What the weights do not show comes from the caller, from the training options in the checkpoint, or from the name of a
released file; otherwise it is assumed and reported.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from modeling_detr.conversion.checkpoint_files import Checkpoint, released_name_of
from modeling_detr.conversion.original_names import original_shapes
from modeling_detr.errors_detr import ModelError
from modeling_detr.stock_detr import RESNETS


# The original's command-line options that affect outputs or loss → keys of our config
_OPTIONS = {
    "dilation": ("dilation",),
    "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
    "dropout": ("dropout", "attention_dropout", "activation_dropout"),
    "aux_loss": ("auxiliary_loss",),
    "set_cost_class": ("class_cost",),
    "set_cost_bbox": ("bbox_cost",),
    "set_cost_giou": ("giou_cost",),
    "bbox_loss_coef": ("bbox_loss_coefficient",),
    "giou_loss_coef": ("giou_loss_coefficient",),
    "mask_loss_coef": ("mask_loss_coefficient",),
    "dice_loss_coef": ("dice_loss_coefficient",),
    "eos_coef": ("eos_coefficient",),
}
_TYPES: dict[str, type] = {"dilation": bool, "aux_loss": bool, "nheads": int}  # all others are float
_HEADS = ("encoder_attention_heads", "decoder_attention_heads")


@dataclass
class Architecture:
    """The architecture of an original DETR checkpoint.

    Attributes:
        config: Keys of `DetrConfig`, except those of the labels.
        num_labels: Number of classes; None if the checkpoint has no class head.
        has_masks: Whether it is a panoptic model.
        assumed: What had to be assumed, one phrase each.
    """

    config: dict[str, Any]
    num_labels: int | None
    has_masks: bool
    assumed: list[str] = field(default_factory=list)


class _Weights:
    """Looks up parameters, shapes and layer counts in a state dict, by the names of a model without masks."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.weights = checkpoint.weights
        self.has_masks = any(name.startswith(("mask_head.", "bbox_attention.")) for name in self.weights)
        self.prefix = "detr." if self.has_masks else ""

    def has(self, start: str) -> bool:
        """Whether the name of any parameter begins with `start`."""
        return any(name.startswith(self.prefix + start) for name in self.weights)

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """The shape of a matrix.

        Raises:
            ModelError: It is missing or not a matrix.
        """
        name = self.prefix + name
        if name not in self.weights:
            raise ModelError(
                self.path,
                f"not an original DETR checkpoint: no '{name}'; its parameters are {_listed(self.weights)}",
            )
        shape = tuple(self.weights[name].shape)
        if len(shape) != 2:
            raise ModelError(self.path, f"'{name}' has shape {shape}, expected a matrix")
        return shape

    def count(self, pattern: str) -> int:
        """One more than the largest index that the group in `pattern` matches; 0 if nothing matches."""
        matches = (re.match(re.escape(self.prefix) + pattern, name) for name in self.weights)
        return max((int(match[1]) for match in matches if match), default=-1) + 1


def read_architecture(
    checkpoint: Checkpoint, overrides: Mapping[str, bool | int | None] | None = None
) -> Architecture:
    """Infers the architecture from the weights and the training options.

    Args:
        checkpoint: The original's.
        overrides: Values for the keys `dilation`, `encoder_attention_heads` and `decoder_attention_heads` of
            `DetrConfig`. They take precedence over everything else; None is ignored.

    Raises:
        ModelError: An essential parameter is missing, or has a shape that is impossible in a DETR.
    """
    weights = _Weights(checkpoint)
    num_queries, width = weights.matrix_shape("query_embed.weight")
    encoder_layers, decoder_layers = (
        weights.count(rf"transformer\.{part}\.layers\.(\d+)\.") for part in ("encoder", "decoder")
    )
    decoder_ffn_dim = weights.matrix_shape("transformer.decoder.layers.0.linear1.weight")[0]
    encoder_ffn_dim = decoder_ffn_dim
    if encoder_layers:
        encoder_ffn_dim = weights.matrix_shape("transformer.encoder.layers.0.linear1.weight")[0]
    config: dict[str, Any] = {
        "backbone": _backbone(weights),
        "num_queries": num_queries,
        "d_model": width,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_ffn_dim": encoder_ffn_dim,
        "decoder_ffn_dim": decoder_ffn_dim,
        "pre_norm": weights.has("transformer.encoder.norm.weight"),
    }
    if weights.has("backbone.1.row_embed.weight"):
        config["position_embedding_type"] = "learned"
        config["learned_position_grid"] = weights.matrix_shape("backbone.1.row_embed.weight")[0]
    for option, keys in _OPTIONS.items():
        if option in checkpoint.options:
            config.update(dict.fromkeys(keys, _option_value(checkpoint, option)))
    config.update({key: value for key, value in (overrides or {}).items() if value is not None})
    assumed = _add_dilation(config, checkpoint) + _add_attention_heads(config, checkpoint)
    num_labels = weights.matrix_shape("class_embed.weight")[0] - 1 if weights.has("class_embed.") else None
    if num_labels is not None and num_labels < 1:
        raise ModelError(checkpoint.path, "'class_embed.weight' has one row, for no object, and none for a class")
    return Architecture(config, num_labels, weights.has_masks, assumed)


def _backbone(weights: _Weights) -> str:
    block = "bottleneck" if weights.has("backbone.0.body.layer1.0.conv3.weight") else "basic"
    blocks = tuple(weights.count(rf"backbone\.0\.body\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    if (block, blocks) not in RESNETS:
        raise ModelError(
            weights.path,
            f"the stages of the backbone have {', '.join(map(str, blocks))} {block} blocks, expected one of "
            f"torchvision's ResNets: {', '.join(RESNETS.values())}",
        )
    return RESNETS[block, blocks]


def _option_value(checkpoint: Checkpoint, option: str) -> bool | int | float:
    """A training option, checked to have the type that the original's command line gives it."""
    value, expected = checkpoint.options[option], _TYPES.get(option, float)
    if type(value) not in ((int, float) if expected is float else (expected,)):
        raise ModelError(
            checkpoint.path,
            f"training option '{option}' is {value!r}, expected {expected.__name__}; the file is damaged or "
            f"comes from a modified DETR",
        )
    return cast(bool | int | float, value)


def _add_dilation(config: dict[str, Any], checkpoint: Checkpoint) -> list[str]:
    """Adds `dilation` to `config` if it is missing; returns what was assumed."""
    if "dilation" in config:
        return []
    released = released_name_of(checkpoint.path)
    config["dilation"] = released is not None and "-dc5" in released
    if released is None:
        return ["no dilation in the backbone (DC5), which the weights do not show; to enable it, set dilation"]
    start = "" if config["dilation"] else "no "
    return [f"{start}dilation in the backbone, as the name {released} implies"]


def _add_attention_heads(config: dict[str, Any], checkpoint: Checkpoint) -> list[str]:
    """Adds the numbers of attention heads to `config` if they are missing; returns what was assumed."""
    heads, assumed = 8, []
    if "mask_head.lay1.weight" in checkpoint.weights:  # its input channels: the width and one map per head
        heads = len(checkpoint.weights["mask_head.lay1.weight"]) - config["d_model"]
    elif released_name_of(checkpoint.path) is None and not any(key in config for key in _HEADS):
        assumed = [f"8 attention heads, which the weights do not show; for another number, set {' and '.join(_HEADS)}"]
    for key in _HEADS:
        config.setdefault(key, heads)
    return assumed


def check_parameters(checkpoint: Checkpoint, model: nn.Module, without_head: bool) -> None:
    """Checks that the checkpoint has exactly the parameters of the model, with the same shapes, in floating point.

    Args:
        checkpoint: The original's.
        model: Ours, of the checkpoint's architecture; may be on the meta device.
        without_head: Whether the checkpoint has no class head.

    Raises:
        ModelError: It does not; the message names the first such parameters, as in the original.
    """
    expected = original_shapes(model.state_dict())
    if without_head:
        expected = {name: shape for name, shape in expected.items() if ".class_embed." not in f".{name}"}
    weights, path = checkpoint.weights, checkpoint.path
    for names, problem in (
        (expected.keys() - weights.keys(), "missing parameters"),
        (weights.keys() - expected.keys(), "unexpected parameters"),
    ):
        if names:
            raise ModelError(
                path,
                f"{problem}: {_listed(sorted(names))}; the file is damaged or comes from a modified DETR, "
                f"which cannot be converted",
            )
    for name, shape in expected.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(
                path,
                f"'{name}' has shape {tuple(tensor.shape)}, which does not match the other weights (expected {shape})",
            )
        # floats of 8 bits are saved with scales, which this model does not have
        if not tensor.is_floating_point() or tensor.itemsize < 2 or tensor.layout != torch.strided:
            raise ModelError(
                path,
                f"'{name}' is {tensor.dtype} in {tensor.layout}, expected a dense floating-point tensor of at least "
                "16 bits",
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
