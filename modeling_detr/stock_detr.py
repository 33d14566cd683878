"""What is known of Transformers' own DETR, "stock" for short: keys of its config, names of its parameters."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn


_logger = logging.getLogger(__name__)


STOCK_MODEL_TYPE = "detr"

# Keys that mean the same there and here.
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
# Other names of a key
KEY_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
}
# How a model is trained; these become ours, since with its values stock's numerics would be trained. Its own defaults.
TRAINING_KEYS = {"auxiliary_loss": False, "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0}

# The ResNets that have a name, by kind of block and number of blocks in each stage
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}


def translate_stock_config(
    said: Mapping[str, Any], source: str, training_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Translates the content of stock's `config.json` to keys of our config; logs which training settings change.

    Args:
        said: The content.
        source: Where it comes from, for messages.
        training_defaults: Our value of each of `TRAINING_KEYS`, which replaces stock's.

    Raises:
        ValueError: The backbone cannot be computed here.
    """
    ours = {key: said[key] for key in SHARED_KEYS if said.get(key) is not None}
    for alias, key in KEY_ALIASES.items():
        if said.get(alias) is not None:
            ours.setdefault(key, said[alias])
    ours.update(_backbone_under_our_keys(said, source))
    changes = []
    for key, default in TRAINING_KEYS.items():
        before, after = said.get(key, default), training_defaults[key]
        if before != after:
            changes.append(f"{key} {before} → {after}")
    changes += [
        f"{key} {said[key]} → none" for key in ("encoder_layerdrop", "decoder_layerdrop") if said.get(key, 0) != 0
    ]
    if changes:
        _logger.warning(
            "%s is a DETR of Transformers' own; its training settings become those of the original: %s. They do not "
            "change what it predicts.",
            source,
            ", ".join(changes),
        )
    return ours


def is_huggingface_resnet(said: Mapping[str, Any]) -> bool:
    """Whether a stock config's backbone is Transformers' own ResNet, whose parameters have other names than timm's."""
    return cast(dict[str, Any], said.get("backbone_config") or {}).get("model_type") == "resnet"


def _backbone_under_our_keys(said: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Keys of the backbone, from either layout: `backbone` and `use_timm_backbone`, or `backbone_config`."""
    inner: dict[str, Any] | None = said.get("backbone_config")
    if inner is None and said.get("use_timm_backbone", True) is False and said.get("backbone") is None:
        inner = {"model_type": "resnet"}  # the default of a stock config without timm
    if inner is None and said.get("use_timm_backbone", True) is False:
        raise ValueError(
            f"{source}: its backbone is '{said['backbone']}', a model of Transformers' own; wanted one of timm's, or "
            f"the backbone_config of a ResNet."
        )
    if inner is None:
        arguments = {**(said.get("backbone_kwargs") or {})}
        stride = arguments.pop("output_stride", None)
        inner = {
            "model_type": "timm_backbone",
            "backbone": said.get("backbone") or "resnet50",
            "out_indices": arguments.pop("out_indices", None),
            "num_channels": arguments.pop("in_chans", arguments.pop("num_channels", None)),
            "output_stride": stride,
            "arguments": {
                key: value for key, value in arguments.items() if key not in ("pretrained", "features_only")
            },
        }
    if is_huggingface_resnet({"backbone_config": inner}):
        return _resnet_under_our_keys(inner, source)
    if inner.get("model_type") != "timm_backbone":
        raise ValueError(
            f"{source}: its backbone is of type '{inner.get('model_type')}'; wanted a timm backbone, or Transformers' "
            f"own ResNet."
        )
    ours: dict[str, Any] = {"backbone": inner["backbone"]}
    if inner.get("out_indices") is not None:
        ours["out_indices"] = list(inner["out_indices"])
    if inner.get("num_channels") is not None:
        ours["num_channels"] = inner["num_channels"]
    if inner.get("arguments"):
        ours["backbone_kwargs"] = inner["arguments"]
    stride = inner.get("output_stride")
    if stride not in (None, 16, 32):
        raise ValueError(f"{source}: its backbone has output_stride {stride}; only 32 and 16 (DC5) are known here.")
    return {**ours, "dilation": stride == 16 or (stride is None and bool(said.get("dilation")))}


def _resnet_under_our_keys(inner: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Transformers' own ResNet as the timm model that computes the same."""
    kind = inner.get("layer_type", "bottleneck")
    depths = tuple(inner.get("depths", (3, 4, 6, 3)))
    widths = tuple(inner.get("hidden_sizes", (256, 512, 1024, 2048)))
    expansion = 4 if kind == "bottleneck" else 1
    unlike = {
        "layer_type": kind not in ("basic", "bottleneck"),
        "depths": len(depths) != 4,
        "hidden_sizes": len(widths) != 4 or any(width % expansion for width in widths),
        "embedding_size": inner.get("embedding_size", 64) != 64,
        "hidden_act": inner.get("hidden_act", "relu") != "relu",
        "downsample_in_first_stage": bool(inner.get("downsample_in_first_stage")),
        "downsample_in_bottleneck": bool(inner.get("downsample_in_bottleneck")),
    }
    if any(unlike.values()):
        keys = ", ".join(f"{key}={inner.get(key)}" for key, differs in unlike.items() if differs)
        raise ValueError(f"{source}: its backbone is a ResNet of Transformers' own that timm does not have: {keys}.")
    kwargs: dict[str, Any] = {}
    if (kind, depths) not in RESNETS:
        kwargs["layers"] = list(depths)
    if (channels := [width // expansion for width in widths]) != [64, 128, 256, 512]:
        kwargs["channels"] = channels
    names = [f"stage{place}" for place in range(1, 5)]
    wanted = inner.get("out_features") or [f"stage{place}" for place in inner.get("out_indices") or [4]]
    return {
        "backbone": RESNETS.get((kind, depths), "resnet18" if kind == "basic" else "resnet50"),
        "backbone_kwargs": kwargs or None,
        "out_indices": [names.index(name) + 1 for name in wanted],
        "num_channels": inner.get("num_channels", 3),
        "dilation": False,
    }


# Parameters of Transformers' own DETR whose names are not those of the checkpoints on the Hub: as version 5 calls them
# in memory, and as versions 4 called a timm backbone that was built through `backbone_config`. In order.
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
NAMES_OF_RESNET = {
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


def norm_that_stock_computes_otherwise(model: nn.Module) -> str | None:
    """What differs in the first batch norm that stock Transformers computes otherwise, and its name; None: no such.

    Stock replaces every batch norm by a frozen one with an epsilon of 1e-5, and loses the activation that some of
    timm's carry.
    """
    for name, module in model.named_modules():
        if isinstance(getattr(module, "running_var", None), Tensor):  # a batch norm, frozen or not
            if not isinstance(getattr(module, "act", None) or nn.Identity(), nn.Identity):
                return f"those of stock lose their activations, first {name}"
            if module.eps != 1e-5:
                return f"those of stock have an epsilon of 1e-5 and not {module.eps:g}, first {name}"
    return None
