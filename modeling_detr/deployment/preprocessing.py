"""The image processor's steps as data, for `export.json`; `runtimes/detect.py` reads them."""

from typing import Any

import torch
from transformers.image_utils import PILImageResampling

from modeling_detr.errors_detr import ModelError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.runtimes.detect import FILTERS


def preprocessing_of(processor: DetrTorchvisionImageProcessor) -> dict[str, Any]:
    """The steps that turn an 8-bit RGB image into `pixel_values`.

    Returns:
        `size`, the rule for resizing, or None; `resample`, its filter; `mean` and `std` of each channel in units of
        0…255, with `do_rescale` and `do_normalize` included; `pad_size`, [height, width] of the padded image, or None.

    Raises:
        ModelError: An exported model cannot resize like this.
    """
    resample = PILImageResampling(processor.resample).name.lower()
    if processor.do_resize and resample not in FILTERS:
        raise ModelError(
            "preprocessor_config.json",
            f"resample is {processor.resample} ({resample}), but exported models resize with {' or '.join(FILTERS)}",
            "set it to 2 (bilinear), and evaluate the model again with it",
        )
    mean, std = _mean_and_std(processor)
    pad = processor.pad_size if processor.do_pad else None
    return {
        "size": _given(processor.size) if processor.do_resize else None,
        "resample": resample,
        "mean": mean,
        "std": std,
        "pad_size": None if pad is None else [pad.height, pad.width],
    }


def _given(size: Any) -> dict[str, int]:
    return {key: side for key, side in vars(size).items() if side is not None}


def _mean_and_std(processor: DetrTorchvisionImageProcessor) -> tuple[list[float], list[float]]:
    """Rounded to float32 at the same places as in `normalize`."""
    scale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
    mean = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    std = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    return (torch.tensor(mean) * scale).tolist(), (torch.tensor(std) * scale).tolist()
