"""Ours → Transformers' own DETR: a folder that loads where this package is not installed.

What stock Transformers computes differs from the original in places (see the README), but in evaluation mode, with
`auxiliary_loss` off, it computes what ours does. Parameters keep their names, those of the checkpoints on the Hub. The
other direction needs no conversion: `from_pretrained` reads stock checkpoints as they are.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import DetrConfig as StockConfig
from transformers import DetrImageProcessor as StockProcessor

from modeling_detr.backbone_detr import DetrConvEncoder
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.pretrained_detr import DetrPreTrainedModel
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.stock_detr import SHARED_KEYS, TRAINING_KEYS, norm_that_stock_computes_otherwise


# Arguments of timm that decide nothing once there are weights and nothing trains.
_WITHOUT_EFFECT_IN_USE = {"drop_path_rate", "drop_rate", "zero_init_last"}
# The size of its table of learned positions
_STOCK_GRID = 50
# The temperature of its sine positions
_STOCK_TEMPERATURE = 10_000


def save_for_transformers(
    model: DetrPreTrainedModel, processor: DetrTorchvisionImageProcessor | None, folder: Path
) -> None:
    """Writes weights, `config.json` and `preprocessor_config.json` as Transformers' own DETR wants them.

    Args:
        model: Any of ours.
        processor: Its image processor; None: none is written.
        folder: Where to write; made if it is not there.

    Raises:
        ValueError: The model has something that stock Transformers lacks.
    """
    config = stock_config(model)
    weights = {_stock_name(name): tensor.contiguous() for name, tensor in model.state_dict().items() if _is_kept(name)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    if processor is not None:
        _stock_processor(processor).save_pretrained(folder)


def stock_config(model: DetrPreTrainedModel) -> StockConfig:
    """The config of Transformers' own DETR that computes what `model` does.

    Costs and weights of losses that are no whole numbers are left out, which stock does not take; only training reads
    them.

    Raises:
        ValueError: There is none; the message names everything that stock Transformers lacks.
    """
    config = model.config
    lacking = _what_stock_lacks(model)
    if lacking:
        raise ValueError(
            f"Transformers' own DETR cannot compute this model: it has no {'; no '.join(lacking)}. Load it with "
            f"trust_remote_code=True instead; that needs no conversion."
        )
    written = {*SHARED_KEYS, *TRAINING_KEYS} - {"auxiliary_loss", "num_labels", "torch_dtype", "transformers_version"}
    backbone = {
        "model_type": "timm_backbone",
        "backbone": config.backbone,
        "num_channels": config.num_channels,
        "out_indices": _feature_maps(model),
        "features_only": True,
        "use_pretrained_backbone": False,
        **({"output_stride": 16} if config.dilation else {}),
    }
    values: dict[str, Any] = {key: getattr(config, key) for key in sorted(written)}
    for key in [key for key in values if key.endswith(("_cost", "_loss_coefficient"))]:
        value = values.pop(key)  # only training reads them, and stock takes whole numbers
        if float(value).is_integer():
            values[key] = int(value)
    values["eos_coefficient"] = float(config.eos_coefficient)
    return StockConfig(**values, backbone_config=backbone, auxiliary_loss=False)


def _what_stock_lacks(model: DetrPreTrainedModel) -> list[str]:
    config, lacking = model.config, []
    if config.pre_norm:
        lacking.append("pre_norm")
    if config.position_embedding_type == "sine" and config.position_temperature != _STOCK_TEMPERATURE:
        lacking.append(f"position_temperature, which is {config.position_temperature:g} and not 10,000")
    if config.position_embedding_type == "learned" and config.learned_position_grid != _STOCK_GRID:
        lacking.append(f"learned_position_grid, which is {config.learned_position_grid} and not {_STOCK_GRID}")
    arguments = sorted(set(config.backbone_kwargs or {}) - _WITHOUT_EFFECT_IN_USE)
    if arguments:
        lacking.append(f"backbone_kwargs ({', '.join(arguments)})")
    if isinstance(model, DetrForSegmentation) and config.activation_function != "relu":
        lacking.append(f"mask head with ReLU beside the activation '{config.activation_function}'")
    backbone = _backbone(model)
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        lacking.append(f"backbone with channels last, as '{config.backbone}'")
    if (norm := norm_that_stock_computes_otherwise(backbone)) is not None:
        lacking.append(f"batch norms of the backbone '{config.backbone}' ({norm})")
    return lacking


def _backbone(model: DetrPreTrainedModel) -> Any:
    """The timm model in any of ours."""
    return next(module.model for module in model.modules() if isinstance(module, DetrConvEncoder))


def _feature_maps(model: DetrPreTrainedModel) -> list[int]:
    """The maps that the backbone computes, counted from the shallowest; stock too reads the last."""
    return [int(index) for index in _backbone(model).feature_info.out_indices]


def _is_kept(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _stock_name(name: str) -> str:
    """The name in a file that stock Transformers reads: the Hub's, but for the learned positions of version 5."""
    return name.replace("model.backbone.position_embedding.", "model.position_embedding.")


def _stock_processor(processor: DetrTorchvisionImageProcessor) -> StockProcessor:
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    keys = (
        "do_resize",
        "do_rescale",
        "do_normalize",
        "do_pad",
        "rescale_factor",
        "image_mean",
        "image_std",
        "resample",
    )
    return StockProcessor(size=size, **{key: getattr(processor, key) for key in keys})
