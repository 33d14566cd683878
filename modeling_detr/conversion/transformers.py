"""Export to Transformers' own DETR ("stock"), so that a model loads where this package is not installed.

In evaluation mode and with `auxiliary_loss` off, stock computes the same outputs as ours; in training it differs from
the original (see `docs/differences.md`). Parameters keep their names, which are those of the checkpoints on the Hub.
The other direction needs no conversion: `from_pretrained` reads stock checkpoints as they are.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import DetrConfig as StockConfig
from transformers import DetrImageProcessor as StockProcessor

from modeling_detr.backbone_detr import DetrConvEncoder
from modeling_detr.conversion.original import unsupported_positions
from modeling_detr.errors_detr import ModelError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.pretrained_detr import DetrPreTrainedModel
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.stock_detr import SHARED_KEYS, TRAINING_KEYS, stock_norm_difference


# timm arguments that have no effect on a trained model in evaluation mode
_WITHOUT_EFFECT = {"drop_path_rate", "drop_rate", "zero_init_last"}
_PROCESSOR_KEYS = (
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_pad",
    "rescale_factor",
    "image_mean",
    "image_std",
    "resample",
)


def save_for_transformers(
    model: DetrPreTrainedModel, processor: DetrTorchvisionImageProcessor | None, folder: Path
) -> None:
    """Writes weights, `config.json` and `preprocessor_config.json` as Transformers' own DETR loads them.

    Args:
        model: Any model of this package.
        processor: Its image processor; None: only the model is written.
        folder: Where to write; created if it does not exist.

    Raises:
        ModelError: Stock does not support the model; the message lists why.
    """
    config = stock_config(model)
    weights = {
        _stock_name(name): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    if processor is not None:
        _stock_processor(processor).save_pretrained(folder)


def stock_config(model: DetrPreTrainedModel) -> StockConfig:
    """The config of Transformers' own DETR that computes what `model` does.

    Stock's costs and loss weights are integers; others are left out, since only training uses them.

    Raises:
        ModelError: Stock does not support the model; the message lists why.
    """
    config = model.config
    unsupported = unsupported_by_stock(model)
    if unsupported:
        raise ModelError(
            model.name_or_path or type(model).__name__,
            f"not supported by Transformers' own DETR: {', '.join(unsupported)}",
            "load the model with trust_remote_code=True instead, which needs no conversion",
        )
    keys = {*SHARED_KEYS, *TRAINING_KEYS} - {"auxiliary_loss", "num_labels", "torch_dtype", "transformers_version"}
    backbone_config = {
        "model_type": "timm_backbone",
        "backbone": config.backbone,
        "num_channels": config.num_channels,
        "out_indices": _feature_maps(model),
        "features_only": True,
        "use_pretrained_backbone": False,
        **({"output_stride": 16} if config.dilation else {}),
    }
    values = {key: getattr(config, key) for key in sorted(keys)}
    for key in [key for key in values if key.endswith(("_cost", "_loss_coefficient"))]:
        value = values.pop(key)
        if float(value).is_integer():
            values[key] = int(value)
    values["eos_coefficient"] = float(config.eos_coefficient)
    return StockConfig(**values, backbone_config=backbone_config, auxiliary_loss=False)


def unsupported_by_stock(model: DetrPreTrainedModel) -> list[str]:
    """The features of a model that stock does not support, one phrase each; training does not change them."""
    config, unsupported = model.config, []
    if config.pre_norm:
        unsupported.append("pre_norm")
    unsupported += unsupported_positions(config)
    arguments = sorted(set(config.backbone_kwargs or {}) - _WITHOUT_EFFECT)
    if arguments:
        unsupported.append(f"backbone_kwargs ({', '.join(arguments)})")
    if isinstance(model, DetrForSegmentation) and config.activation_function != "relu":
        unsupported.append(f"activation_function '{config.activation_function}' in a model with masks (only relu)")
    backbone = _backbone(model)
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        unsupported.append(f"backbone '{config.backbone}' (channels last)")
    if (norm := stock_norm_difference(backbone)) is not None:
        unsupported.append(f"batch norms of the backbone '{config.backbone}' ({norm})")
    return unsupported


def _backbone(model: DetrPreTrainedModel) -> nn.Module:
    """The timm model inside any of our models."""
    return next(module.model for module in model.modules() if isinstance(module, DetrConvEncoder))


def _feature_maps(model: DetrPreTrainedModel) -> list[int]:
    """Indices of the feature maps that the backbone computes, shallowest first; stock uses the last one, as we do."""
    feature_info: Any = _backbone(model).feature_info  # timm's, untyped
    return [int(index) for index in feature_info.out_indices]


def _stock_name(name: str) -> str:
    """The name under which stock loads a parameter: the Hub's, except for learned positions (Transformers 5)."""
    return name.replace("model.backbone.position_embedding.", "model.position_embedding.")


def _stock_processor(processor: DetrTorchvisionImageProcessor) -> StockProcessor:
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    return StockProcessor(size=size, **{key: getattr(processor, key) for key in _PROCESSOR_KEYS})
