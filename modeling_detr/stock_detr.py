"""Everything this project knows about Transformers' own DETR ("stock" for short): config keys and parameter names."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .errors_detr import printable


_logger = logging.getLogger(__name__)

STOCK_MODEL_TYPE = "detr"

# Config keys with the same meaning in both configs
SHARED_KEYS = (
    "activation_function",
    "architectures",
    "bbox_cost",
    "bbox_loss_coefficient",
    "class_cost",
    "d_model",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "decoder_layers",
    "dice_loss_coefficient",
    "dilation",
    "dtype",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "encoder_layers",
    "eos_coefficient",
    "giou_cost",
    "giou_loss_coefficient",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "mask_loss_coefficient",
    "num_channels",
    "num_labels",
    "num_queries",
    "position_embedding_type",
    "torch_dtype",
    "transformers_version",
)
# Alternative names of keys
KEY_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
# Keys that only matter in training, with stock's defaults. Our values replace them, or training would follow stock.
TRAINING_KEYS = {"auxiliary_loss": False, "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0}

_LAYER_DROP_KEYS = ("encoder_layerdrop", "decoder_layerdrop")

# The ResNets that have a name, by kind of block and number of blocks in each stage
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}


def translate_stock_config(
    stock: Mapping[str, Any], source: str, training_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Translates stock's `config.json` to keys of our config; logs which training settings change.

    Args:
        stock: The content of the file.
        source: Where it comes from, for messages.
        training_defaults: Our value of each of `TRAINING_KEYS`, which replaces stock's.

    Raises:
        ValueError: The backbone cannot be computed here.
    """
    ours = {key: stock[key] for key in SHARED_KEYS if stock.get(key) is not None}
    for alias, key in KEY_ALIASES.items():
        if stock.get(alias) is not None:
            ours.setdefault(key, stock[alias])
    ours.update(_translate_backbone(stock, source))
    changes = [
        f"{key} {stock.get(key, default)} → {training_defaults[key]}"
        for key, default in TRAINING_KEYS.items()
        if stock.get(key, default) != training_defaults[key]
    ]
    changes += [f"{key} {stock[key]} → none" for key in _LAYER_DROP_KEYS if stock.get(key, 0) != 0]
    if changes:
        _logger.warning(
            "%s is one of Transformers' own DETR models; its training settings become the original's: %s. Predictions "
            "do not change.",
            printable(source),
            printable(", ".join(changes)),
        )
    return ours


def is_huggingface_resnet(stock: Mapping[str, Any]) -> bool:
    """Whether a stock config's backbone is Transformers' own ResNet, whose parameter names differ from timm's."""
    backbone: Mapping[str, Any] = stock.get("backbone_config") or {}
    return backbone.get("model_type") == "resnet"


def _translate_backbone(stock: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Translates the backbone's keys, whichever of stock's layouts they have."""
    backbone: Mapping[str, Any] = stock.get("backbone_config") or _flat_backbone_config(stock, source)
    if backbone.get("model_type") == "resnet":
        return _translate_resnet(backbone, source)
    if backbone.get("model_type") != "timm_backbone":
        raise ValueError(
            f"{source}: got a backbone of type '{backbone.get('model_type')}', expected a timm backbone or "
            f"Transformers' own ResNet."
        )
    ours: dict[str, Any] = {"backbone": backbone["backbone"]}
    if backbone.get("out_indices") is not None:
        ours["out_indices"] = list(backbone["out_indices"])
    if backbone.get("num_channels") is not None:
        ours["num_channels"] = backbone["num_channels"]
    if backbone.get("arguments"):
        ours["backbone_kwargs"] = backbone["arguments"]
    stride = backbone.get("output_stride")
    if stride not in (None, 16, 32):
        raise ValueError(f"{source}: got a backbone with output_stride {stride}, expected 32 or 16 (DC5).")
    return {**ours, "dilation": stride == 16 or (stride is None and bool(stock.get("dilation")))}


def _flat_backbone_config(stock: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The older layout, `backbone`, `use_timm_backbone` and `backbone_kwargs`, in the form of a `backbone_config`."""
    if stock.get("use_timm_backbone", True) is False:
        if stock.get("backbone") is None:
            return {"model_type": "resnet"}  # the default of a stock config without timm
        raise ValueError(
            f"{source}: got the backbone '{stock['backbone']}' of Transformers itself, expected one of timm's, or the "
            f"backbone_config of a ResNet."
        )
    arguments = dict(stock.get("backbone_kwargs") or {})
    return {
        "model_type": "timm_backbone",
        "backbone": stock.get("backbone") or "resnet50",
        "output_stride": arguments.pop("output_stride", None),
        "out_indices": arguments.pop("out_indices", None),
        "num_channels": arguments.pop("in_chans", arguments.pop("num_channels", None)),
        "arguments": {key: value for key, value in arguments.items() if key not in ("pretrained", "features_only")},
    }


def _translate_resnet(backbone: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Translates Transformers' own ResNet to the equivalent timm model."""
    kind = backbone.get("layer_type", "bottleneck")
    depths = tuple(backbone.get("depths", (3, 4, 6, 3)))
    widths = tuple(backbone.get("hidden_sizes", (256, 512, 1024, 2048)))
    expansion = 4 if kind == "bottleneck" else 1
    unsupported = {
        "layer_type": kind not in ("basic", "bottleneck"),
        "depths": len(depths) != 4,
        "hidden_sizes": len(widths) != 4 or any(width % expansion for width in widths),
        "embedding_size": backbone.get("embedding_size", 64) != 64,
        "hidden_act": backbone.get("hidden_act", "relu") != "relu",
        "downsample_in_first_stage": bool(backbone.get("downsample_in_first_stage")),
        "downsample_in_bottleneck": bool(backbone.get("downsample_in_bottleneck")),
    }
    if any(unsupported.values()):
        keys = ", ".join(f"{key}={backbone.get(key)}" for key, differs in unsupported.items() if differs)
        raise ValueError(
            f"{source}: its backbone is one of Transformers' own ResNets that timm does not have: {keys}."
        )
    kwargs: dict[str, Any] = {}
    if (kind, depths) not in RESNETS:
        kwargs["layers"] = list(depths)
    if (channels := [width // expansion for width in widths]) != [64, 128, 256, 512]:
        kwargs["channels"] = channels
    stages = backbone.get("out_features") or [f"stage{index}" for index in backbone.get("out_indices") or [4]]
    return {
        "backbone": RESNETS.get((kind, depths), "resnet18" if kind == "basic" else "resnet50"),
        "backbone_kwargs": kwargs or None,
        "out_indices": [("stage1", "stage2", "stage3", "stage4").index(stage) + 1 for stage in stages],
        "num_channels": backbone.get("num_channels", 3),
        "dilation": False,
    }


def stock_norm_difference(model: nn.Module) -> str | None:
    """Describes the first batch norm of `model` that stock computes differently; None if there is none.

    Stock replaces every batch norm by a frozen one with an epsilon of 1e-5, and drops the activation that some of
    timm's batch norms contain.
    """
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "running_var", None), Tensor):
            continue  # not a batch norm, frozen or not
        if not isinstance(getattr(module, "act", None) or nn.Identity(), nn.Identity):
            return f"Transformers drops their activations, first in {name}"
        if module.eps != 1e-5:
            return f"stock's have an epsilon of 1e-5 instead of {module.eps:g}, first in {name}"
    return None


# Parameter names

# Patterns of stock's parameter names → ours, which are those of the checkpoints on the Hub; applied in this order. On
# the left are the names that version 5 has in memory, and those that versions 4 gave to a timm backbone built from
# `backbone_config`.
NAMES_OF_STOCK = {
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
        rf"mask_head\.fpn_stages\.{stage}\.{stock}": f"mask_head.{ours}{number}"
        for stage in range(3)
        for stock, ours, number in (
            ("fpn_adapter", "adapter", stage + 1),
            (r"refine\.conv", "lay", stage + 3),
            (r"refine\.norm", "gn", stage + 3),
        )
    },
    r"mask_head\.output_conv": "mask_head.out_lay",
}
# Patterns of parameter names of Transformers' own ResNet → timm's
NAMES_OF_RESNET = {
    r"conv_encoder\.model\.embedder\.embedder\.convolution": "conv_encoder.model.conv1",
    r"conv_encoder\.model\.embedder\.embedder\.normalization": "conv_encoder.model.bn1",
    **{
        rf"model\.encoder\.stages\.{stage}\.layers\.(\d+)\.{stock}": rf"model.layer{stage + 1}.\1.{ours}"
        for stage in range(4)
        for stock, ours in (
            (r"shortcut\.convolution", "downsample.0"),
            (r"shortcut\.normalization", "downsample.1"),
            *((rf"layer\.{number}\.convolution", f"conv{number + 1}") for number in range(3)),
            *((rf"layer\.{number}\.normalization", f"bn{number + 1}") for number in range(3)),
        )
    },
}
