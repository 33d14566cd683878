"""Parameter names of the original DETR (facebookresearch/detr) ↔ ours.

Modules are named differently, and the original's attention stores its three input projections in one matrix. Inside
the backbone the names are the same: the original's are torchvision's, ours are timm's.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


# Prefix in the original, prefix in ours; # is the layer index. In a panoptic model, all parameters except the mask
# head's are also prefixed with `detr.`, in both.
_NAMES = (
    ("backbone.0.body.", "model.backbone.conv_encoder.model."),
    ("backbone.1.row_embed.", "model.backbone.position_embedding.row_embeddings."),
    ("backbone.1.col_embed.", "model.backbone.position_embedding.column_embeddings."),
    ("input_proj.", "model.input_projection."),
    ("query_embed.", "model.query_position_embeddings."),
    ("class_embed.", "class_labels_classifier."),
    ("bbox_embed.", "bbox_predictor."),
    ("transformer.encoder.norm.", "model.encoder.layernorm."),
    ("transformer.encoder.layers.#.norm1.", "model.encoder.layers.#.self_attn_layer_norm."),
    ("transformer.encoder.layers.#.norm2.", "model.encoder.layers.#.final_layer_norm."),
    ("transformer.encoder.layers.#.linear1.", "model.encoder.layers.#.fc1."),
    ("transformer.encoder.layers.#.linear2.", "model.encoder.layers.#.fc2."),
    ("transformer.encoder.layers.#.self_attn.", "model.encoder.layers.#.self_attn."),
    ("transformer.decoder.norm.", "model.decoder.layernorm."),
    ("transformer.decoder.layers.#.norm1.", "model.decoder.layers.#.self_attn_layer_norm."),
    ("transformer.decoder.layers.#.norm2.", "model.decoder.layers.#.encoder_attn_layer_norm."),
    ("transformer.decoder.layers.#.norm3.", "model.decoder.layers.#.final_layer_norm."),
    ("transformer.decoder.layers.#.linear1.", "model.decoder.layers.#.fc1."),
    ("transformer.decoder.layers.#.linear2.", "model.decoder.layers.#.fc2."),
    ("transformer.decoder.layers.#.self_attn.", "model.decoder.layers.#.self_attn."),
    ("transformer.decoder.layers.#.multihead_attn.", "model.decoder.layers.#.encoder_attn."),
)

_COUNTER = ".num_batches_tracked"  # of batch norms; the original's frozen ones have none


def original_name_to_ours(name: str) -> tuple[str, ...]:
    """Our names for one parameter of the original: query, key and value for `in_proj_…`, otherwise a single one."""
    ours = _with_prefix_replaced(name, _NAMES)
    if match := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", ours):
        return tuple(f"{match[1]}.{projection}_proj.{match[2]}" for projection in "qkv")
    return (ours,)


def our_name_to_original(name: str) -> str:
    """The original's name for one of our parameters; the three projections of an attention share a name."""
    original = _with_prefix_replaced(name, [(ours, original) for original, ours in _NAMES])
    return re.sub(r"\.[qkv]_proj\.(weight|bias)$", r".in_proj_\1", original)


def original_to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's state dict under our names, with `in_proj_…` split in three. No tensor is copied."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        names = original_name_to_ours(name)
        converted.update(zip(names, tensor.chunk(len(names)), strict=True))
    return converted


def ours_to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the original's names, without batch-norm counters."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if not name.endswith(_COUNTER):
            parts.setdefault(our_name_to_original(name), {})[name] = tensor
    converted = {}
    for original, tensors in parts.items():
        ordered = [tensors[ours] for ours in original_name_to_ours(original)]
        converted[original] = ordered[0] if len(ordered) == 1 else torch.cat(ordered)
    return converted


def original_shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `ours_to_original` returns, by name; also works on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in state_dict.items():
        if not name.endswith(_COUNTER):
            original = our_name_to_original(name)
            rows, *rest = tensor.shape
            shapes[original] = (shapes[original][0] + rows if original in shapes else rows, *rest)
    return shapes


def _with_prefix_replaced(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """`name` with its prefix replaced according to `pairs`; unchanged if none matches."""
    inner = name.removeprefix("detr.")
    outer = name[: len(name) - len(inner)]
    for before, after in pairs:
        if match := re.match(re.escape(before).replace(r"\#", r"(\d+)"), inner):
            index = match[1] if match.groups() else ""
            return outer + after.replace("#", index) + inner[match.end() :]
    return name
