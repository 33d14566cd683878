"""The image processor's steps as data, for `export.json`; `runtimes/detect.py` reads them."""

from typing import Any

import torch
from transformers.image_utils import PILImageResampling, SizeDict

from modeling_detr.errors_detr import ModelError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.runtimes.detect import FILTERS


def fitted_processor(
    processor: DetrTorchvisionImageProcessor, height: int, width: int
) -> DetrTorchvisionImageProcessor:
    """A processor like another, whose images are resized to fit into (height, width) and padded to it."""
    size = _size_that_fits(processor.size, height, width)
    changes = {"size": size, "do_pad": True, "pad_size": {"height": height, "width": width}}
    fitted: DetrTorchvisionImageProcessor = type(processor).from_dict({**processor.to_dict(), **changes})
    return fitted


def _size_that_fits(size: SizeDict, height: int, width: int) -> dict[str, int]:
    """A rule for resizing whose images are never larger than (height, width)."""
    if size.height is not None and size.width is not None:
        return {"height": min(size.height, height), "width": min(size.width, width)}
    if size.max_height is not None and size.max_width is not None:
        return {"max_height": min(size.max_height, height), "max_width": min(size.max_width, width)}
    short, side = size.shortest_edge or height, min(height, width)
    if short >= side:
        return {"max_height": height, "max_width": width}
    return {"shortest_edge": short, "longest_edge": min(size.longest_edge or side, side)}


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
