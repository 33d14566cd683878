"""The original's state dict (facebookresearch/detr) ↔ our parameter names.

The names differ in three ways: parts are called otherwise, the original's attention keeps its three input projections
in one matrix, and its backbone carries torchvision's names, which are timm's.
"""

import re
from collections.abc import Mapping

from torch import Tensor


# Applied in order to every name; what a rule does not match it leaves alone.
_RENAMES = (
    (r"^backbone\.0\.body\.", "model.backbone.conv_encoder.model."),
    (r"^backbone\.1\.row_embed\.", "model.backbone.position_embedding.row_embeddings."),
    (r"^backbone\.1\.col_embed\.", "model.backbone.position_embedding.column_embeddings."),
    (r"^input_proj\.", "model.input_projection."),
    (r"^query_embed\.", "model.query_position_embeddings."),
    (r"^class_embed\.", "class_labels_classifier."),
    (r"^bbox_embed\.", "bbox_predictor."),
    (r"^transformer\.(encoder|decoder)\.norm\.", r"model.\1.layernorm."),
    (r"^transformer\.encoder\.layers\.(\d+)\.norm1\.", r"model.encoder.layers.\1.self_attn_layer_norm."),
    (r"^transformer\.encoder\.layers\.(\d+)\.norm2\.", r"model.encoder.layers.\1.final_layer_norm."),
    (r"^transformer\.decoder\.layers\.(\d+)\.norm1\.", r"model.decoder.layers.\1.self_attn_layer_norm."),
    (r"^transformer\.decoder\.layers\.(\d+)\.norm2\.", r"model.decoder.layers.\1.encoder_attn_layer_norm."),
    (r"^transformer\.decoder\.layers\.(\d+)\.norm3\.", r"model.decoder.layers.\1.final_layer_norm."),
    (r"^transformer\.(encoder|decoder)\.", r"model.\1."),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.linear([12])\.", r".fc\1."),
)


def original_name_to_ours(name: str) -> tuple[str, ...]:
    """Our name or names for one parameter of the original: three, in the order query, key, value, for `in_proj_…`.

    A panoptic checkpoint has the detector's under `detr.`, here and there, and its mask head's names are the same.
    """
    if name.startswith(("bbox_attention.", "mask_head.")):
        return (name,)
    if name.startswith("detr."):
        return tuple(f"detr.{ours}" for ours in original_name_to_ours(name.removeprefix("detr.")))
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if match := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name):
        return tuple(f"{match[1]}.{projection}_proj.{match[2]}" for projection in "qkv")
    return (name,)


def original_to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's state dict under our names, `in_proj_…` cut in three. No tensor is copied."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        names = original_name_to_ours(name)
        converted.update(zip(names, tensor.chunk(len(names)), strict=True))
    return converted
