"""Images to model inputs: `DetrTorchvisionImageProcessor`, saved as `preprocessor_config.json`.

An image of any kind becomes RGB, is resized (shortest edge 800, longest 1333), normalised with the mean and standard
deviation of the backbone's training data, and padded with zeros on the right and at the bottom. Annotations become
labels in `annotations_detr.py`, model outputs become predictions in `post_processing_detr.py`.

The data loader and the evaluation call the same steps as functions: `to_rgb`, `resize_output_size`, `normalize`,
`batch_to_device`, and `pad_images` of `padding_detr.py`.

Shapes: B images · N objects of one image · H, W pixels. Sizes are `(height, width)`.
"""

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict, load_image, pil_torch_interpolation_mapping
from transformers.utils import IMAGE_PROCESSOR_NAME

from .annotations_detr import CocoAnnotation, CocoPanopticAnnotation, coco_to_labels
from .errors_detr import ModelError, did_you_mean
from .image_reading_detr import open_image
from .model_folder_detr import model_folder
from .padding_detr import ImageBatch, pad_images
from .post_processing_detr import DetrPostProcessor
from .structures_detr import DetectionBatch


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MOST_PIXELS = 89_478_485  # of a resized or padded image: Pillow's limit of what is plausible

EncodedImage = Mapping[str, Any]  # a row of `datasets`: {"bytes": the file's content or None, "path": its path}
RawImage = Image.Image | NDArray[np.generic] | Tensor | str | Path | bytes | BinaryIO | EncodedImage


# The steps as functions


def to_rgb(image: RawImage, channels_first: bool | None = None) -> Tensor:
    """Converts an image of any kind to 8-bit RGB.

    Grey is repeated, palettes are looked up, CMYK is converted, and the EXIF orientation of a PIL image or a file is
    applied. An alpha channel is **dropped**, as by `convert("RGB")` in the original's loader: the colours under
    transparent pixels become visible. 16-bit values are scaled from 0…65535. Floating-point values in [0, 1] are
    scaled to 0…255; values up to 255 are kept.

    Args:
        image: A PIL image, a path or URL, the bytes of a file or the open file, a row {"bytes": …, "path": …} of
            `datasets`, or an array or tensor (H, W), (H, W, channels) or (channels, H, W) with 1 (grey), 2 (grey,
            alpha), 3 or 4 (RGB, alpha) channels; bool, uint8, uint16, integers or floats.
        channels_first: Whether an array's channels come first. None: the axis with 1-4 entries; if both ends qualify,
            the last for NumPy arrays and the first for tensors.

    Returns:
        (3, H, W) uint8, on the device of the input; it may share memory with the input.

    Raises:
        TypeError: Not an image of these kinds.
        ValueError: The shape or the values are not those of an image.
    """
    return _to_eight_bits(_to_three_channels(image, channels_first))


def resize_output_size(
    height: int, width: int, shortest_edge: int, longest_edge: int | None = None
) -> tuple[int, int]:
    """The size after resizing the shortest edge to `shortest_edge`, or to less if the longest would be too long.

    Original: datasets/transforms.py, `resize`; with its rounding, which truncates the longer edge.

    Returns:
        `(height, width)`, at least one pixel each. An image whose shortest edge would need less than one is distorted:
        a line of a million pixels, which as a file is small, would fill the memory of a model.
    """
    short, long = min(height, width), max(height, width)
    if longest_edge is not None and long / short > longest_edge:
        return (longest_edge, 1) if width < height else (1, longest_edge)
    target = shortest_edge
    if longest_edge is not None and long / short * target > longest_edge:
        target = max(1, round(longest_edge * short / long))
    if short == target:
        return height, width
    if width < height:
        return int(target * height / width), target
    return target, int(target * width / height)


def normalize(
    pixel_values: Tensor, mean: Sequence[float], std: Sequence[float], rescale_factor: float = 1 / 255
) -> Tensor:
    """Subtracts the mean and divides by the standard deviation, channel by channel.

    Args:
        pixel_values: (…, 3, H, W) on any device; integers in 0…255, or floats that are already in [0, 1].
        mean: Mean of each channel, in units of [0, 1].
        std: Standard deviation of each channel, in units of [0, 1].
        rescale_factor: Scales integers to [0, 1]; floats are not rescaled.

    Returns:
        The same shape in floating point; float32 for integers.
    """
    scale = 1.0
    if not pixel_values.is_floating_point():
        pixel_values, scale = pixel_values.to(torch.float32), 1 / rescale_factor  # both steps in one pass
    offsets = torch.tensor(mean, dtype=pixel_values.dtype, device=pixel_values.device) * scale
    widths = torch.tensor(std, dtype=pixel_values.dtype, device=pixel_values.device) * scale
    return (pixel_values - offsets[:, None, None]) / widths[:, None, None]


def batch_to_device(
    batch: DetectionBatch, device: torch.device, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Prepares a collated batch for the model: moves it to `device` and normalises pixels that are still integers.

    Args:
        batch: A batch in host memory.
        device: The model's device.
        mean: Mean of each channel, in units of [0, 1].
        std: Standard deviation of each channel, in units of [0, 1].

    Returns:
        The model's keyword arguments. `pixel_mask` is None if no image is padded. `labels` are passed on only if every
        image has classes and boxes; they keep all their keys, of which `class_labels`, `boxes` and `masks` are moved
        to the device and the others stay in host memory.
    """
    padded = not bool(batch["pixel_mask"].all())
    pixel_mask = batch["pixel_mask"].to(device, non_blocking=True) if padded else None
    pixel_values = batch["pixel_values"].to(device, non_blocking=True)
    if not pixel_values.is_floating_point():
        pixel_values = normalize(pixel_values, mean, std)
        if pixel_mask is not None:
            pixel_values = pixel_values * pixel_mask[:, None]  # padding is zero after normalisation, not before
    inputs: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
    if all("class_labels" in label and "boxes" in label for label in batch["labels"]):
        moved = ("class_labels", "boxes", "masks")
        inputs["labels"] = [
            {
                key: value.to(device, non_blocking=True) if key in moved and isinstance(value, Tensor) else value
                for key, value in label.items()
            }
            for label in batch["labels"]
        ]
    return inputs


# Reading an image of any kind


def _to_three_channels(image: RawImage, channels_first: bool | None) -> Tensor:
    """Converts an image to (3, H, W) and keeps its dtype and value range; see `to_rgb`."""
    pixels, channels_first = _to_tensor(image, channels_first)
    if pixels.is_complex():
        raise ValueError(f"image: got complex values ({pixels.dtype}), expected integers or floats.")
    if pixels.ndim == 2:
        pixels, channels_first = pixels[None], True
    if pixels.ndim != 3 or pixels.numel() == 0:
        raise ValueError(
            f"image: got shape {tuple(pixels.shape)}, expected (H, W), (H, W, channels) or (channels, H, W), without "
            f"zeros."
        )
    if channels_first is None:
        fits_first, fits_last = pixels.shape[0] <= 4, pixels.shape[-1] <= 4
        channels_first = fits_first if fits_first != fits_last else isinstance(image, Tensor)
    if not channels_first:
        pixels = pixels.permute(2, 0, 1)
    channels = pixels.shape[0]
    if channels > 4:
        raise ValueError(
            f"image: got {channels} channels (shape {tuple(pixels.shape)}, read as channels, H, W), expected "
            f"1 (grey), 2 (grey, alpha), 3 or 4 (RGB, alpha)."
        )
    return pixels[:1].repeat(3, 1, 1) if channels <= 2 else pixels[:3].contiguous()


def _to_tensor(image: Any, channels_first: bool | None) -> tuple[Tensor, bool | None]:
    """Opens or converts an image to a tensor; the second value is `channels_first`, which files and PIL images decide.

    Raises:
        TypeError: Not an image.
    """
    if isinstance(image, Mapping) and {"bytes", "path"} & image.keys():
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        image = load_image(image)
    if isinstance(image, bytes | bytearray | memoryview):
        image = io.BytesIO(image)
    if isinstance(image, str | Path) or hasattr(image, "read"):
        with open_image(image) as opened:
            return _array_to_tensor(_pil_to_array(opened)), False
    if isinstance(image, Image.Image):
        return _array_to_tensor(_pil_to_array(image)), False
    if isinstance(image, np.ndarray):
        return _array_to_tensor(image), channels_first
    if isinstance(image, Tensor):
        return image.detach().as_subclass(Tensor), channels_first
    kind = f"a dict with the keys {[*image]}" if isinstance(image, Mapping) else type(image).__name__
    raise TypeError(
        f"image: got {kind}, expected a PIL image, a NumPy array, a tensor, a path or URL, or the bytes of a file."
    )


def _pil_to_array(image: Image.Image) -> NDArray[np.generic]:
    """Converts a PIL image of any mode, upright: to uint8 RGB, uint16 grey, or unscaled float grey."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":  # the mode of 16-bit formats other than PNG and TIFF, e.g. PGM
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"image: got values {values.min()}…{values.max()} in PIL mode I, expected 16-bit grey, 0…65535."
            )
        return values.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode == "LAB":
        raise ValueError("image: PIL mode LAB is not supported; convert the image to RGB with PIL.ImageCms.")
    if image.mode in ("P", "PA", "RGBa", "La"):  # via alpha: for the direct conversion PIL warns, or has none
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _array_to_tensor(array: NDArray[np.generic]) -> Tensor:
    if array.dtype.kind not in "buif":
        raise ValueError(f"image: got an array of dtype {array.dtype}, expected bool, integers or floats.")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=not array.flags.writeable)
    return torch.from_numpy(native)


def _to_eight_bits(pixels: Tensor) -> Tensor:
    """Converts pixel values of any dtype to uint8 in 0…255; see `to_rgb`."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        return ((pixels.to(torch.int32) + 128) // 257).to(torch.uint8)  # 65535 = 255 * 257, rounded
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 255:  # also false for NaN
        raise ValueError(
            f"image: got values {low:g}…{high:g} ({pixels.dtype}), expected 0…255, floats in [0, 1], or uint16. "
            f"If it is already normalised, pass it to the model directly."
        )
    if not pixels.is_floating_point():
        return pixels.to(torch.uint8)
    # An image in 0…255 whose values never exceed 1 would be black, so the maximum distinguishes the two ranges.
    return (pixels * 255 if high <= 1 else pixels).round().to(torch.uint8)


# The options


SizeOption = int | Sequence[int] | Mapping[str, int] | SizeDict
ChannelValues = float | Sequence[float]


class DetrTorchvisionImageProcessorKwargs(TypedDict, total=False):
    """The options as a caller may give them, to the constructor or to one call of `preprocess`."""

    do_resize: bool | None
    size: SizeOption | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: ChannelValues | None
    image_std: ChannelValues | None
    do_pad: bool | None
    pad_size: SizeOption | None
    return_segmentation_masks: bool | None
    input_data_format: str | None
    device: torch.device | str | None
    return_tensors: str | None


@dataclass(frozen=True)
class PreprocessingOptions:
    """The options of one call, complete and checked; their meaning is in `DetrTorchvisionImageProcessor`."""

    do_resize: bool
    size: SizeDict
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    do_pad: bool
    pad_size: SizeDict | None
    return_segmentation_masks: bool
    input_data_format: Literal["channels_first", "channels_last"] | None
    device: torch.device | str | None
    return_tensors: Literal["pt", "np"]

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "PreprocessingOptions":
        """Brings every option to one form.

        Args:
            values: All options, in any form that `DetrTorchvisionImageProcessorKwargs` allows.

        Raises:
            ValueError: The value of an option is not valid.
        """
        for name in ("do_resize", "do_rescale", "do_normalize", "do_pad", "return_segmentation_masks"):
            if not isinstance(values[name], bool):
                raise ValueError(f"{name}: got {values[name]!r}, expected True or False.")
        if values["return_tensors"] not in ("pt", "np"):
            raise ValueError(f"return_tensors: got {values['return_tensors']!r}, expected 'pt' or 'np'.")
        if values["input_data_format"] not in (None, "channels_first", "channels_last"):
            raise ValueError(
                f"input_data_format: got {values['input_data_format']!r}, expected 'channels_first' or "
                f"'channels_last'."
            )
        parsed = {
            "size": _parse_size(values["size"]),
            "pad_size": None if values["pad_size"] is None else _parse_pad_size(values["pad_size"]),
            "image_mean": _parse_channel_values("image_mean", values["image_mean"]),
            "image_std": _parse_channel_values("image_std", values["image_std"]),
        }
        cls._check_numbers(values)
        return cls(**{**values, **parsed})

    @staticmethod
    def _check_numbers(values: Mapping[str, Any]) -> None:
        factor = values["rescale_factor"]
        if not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise ValueError(f"rescale_factor: got {factor!r}, expected a number above 0, such as 1/255.")
        if values["resample"] not in [*PILImageResampling]:
            raise ValueError(f"resample: got {values['resample']!r}, expected one of PIL's filters, 0-5.")

    @property
    def batch_height_width(self) -> tuple[int, int] | None:
        """`pad_size` as (height, width)."""
        if self.pad_size is None or self.pad_size.height is None or self.pad_size.width is None:
            return None
        return self.pad_size.height, self.pad_size.width

    @property
    def channels_first(self) -> bool | None:
        """Where arrays have their channels; None: to be seen from their shape."""
        return None if self.input_data_format is None else self.input_data_format == "channels_first"


def _parse_size(size: SizeOption) -> SizeDict:
    if isinstance(size, int | np.integer):
        size = {"shortest_edge": int(size)}
    return _parse_size_dict(
        "size",
        size,
        [{"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"}],
    )


def _parse_pad_size(size: SizeOption) -> SizeDict:
    parsed = _parse_size_dict(
        "pad_size", (size, size) if isinstance(size, int | np.integer) else size, [{"height", "width"}]
    )
    if (parsed.height or 0) * (parsed.width or 0) > _MOST_PIXELS:
        raise ValueError(
            f"pad_size: got {parsed.width}x{parsed.height} (width x height), expected at most {_MOST_PIXELS:,} pixels."
        )
    return parsed


def _parse_size_dict(name: str, size: Sequence[int] | Mapping[str, int] | SizeDict, forms: list[set[str]]) -> SizeDict:
    """A (height, width) pair or a dict with the keys of one of `forms` as the library's `SizeDict`."""
    if isinstance(size, SizeDict):
        return size
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        size = {key: value for key, value in size.items() if value is not None}
        if set(size) in forms and all(isinstance(side, int | np.integer) and side > 0 for side in size.values()):
            return SizeDict(**{key: int(side) for key, side in size.items()})
    expected = " or ".join("{" + ", ".join(f"'{key}': …" for key in sorted(form)) + "}" for form in forms)
    raise ValueError(f"{name}: got {size}, expected {expected}, in whole pixels.")


def _parse_channel_values(name: str, value: ChannelValues) -> tuple[float, float, float]:
    """One number for all channels, or one for each, as three numbers; those of `image_std` are positive."""
    try:
        red, green, blue = (value,) * 3 if isinstance(value, int | float) else value
        channels = float(red), float(green), float(blue)
    except (TypeError, ValueError):
        channels = None
    is_valid = channels is not None and all(map(math.isfinite, channels))
    if channels is None or not is_valid or (name == "image_std" and min(channels) <= 0):
        above_zero = " above 0" if name == "image_std" else ""
        raise ValueError(
            f"{name}: got {value}, expected one number{above_zero} or one for each of three channels, in units of "
            f"[0, 1]."
        )
    return channels


# Keys without any effect, which Transformers and other processors write into saved files, or which a pipeline passes
# to both the model and the processor.
_KEYS_WITHOUT_EFFECT = {
    "auto_map",
    "default_to_square",
    "device_map",
    "disable_grouping",
    "do_convert_rgb",  # images always become RGB
    "dtype",
    "feature_extractor_type",
    "format",  # the form of annotations is recognised
    "image_processor_type",
    "image_seq_length",
    "processor_class",
    "use_fast",
}
_KEPT_KEYS = {"auto_map", "do_convert_rgb", "format"}  # those of them that are saved again
# Options of other processors, with the only value that is accepted here, because it is what this processor does.
_KEYS_WITH_ONE_VALUE = {
    "data_format": "channels_first",
    "do_center_crop": False,
    "do_convert_annotations": True,
}


# The processor


class DetrTorchvisionImageProcessor(DetrPostProcessor, TorchvisionBackend):
    """Converts images to batches and model outputs to predictions, with torchvision.

    Every option can be passed to the constructor, is saved in `preprocessor_config.json`, and can be overridden in a
    single call of `preprocess`, where None means the processor's value.

    Differs from Transformers' DETR processor: boxes are relative to the unpadded image, as in the original; 16-bit
    images and EXIF orientation are supported; alpha is dropped instead of blended with white, as in the original; an
    unknown option is an error.

    Args:
        do_resize: Resize to `size`.
        size: `{"shortest_edge": 800, "longest_edge": 1333}` keeps the aspect ratio (`longest_edge` is optional),
            `{"height": …, "width": …}` does not, `{"max_height": …, "max_width": …}` is the largest size that fits. An
            integer is the shortest edge and a pair is (height, width).
        max_size: The longest edge, with an integer `size`; found in older files, as is `pad_and_return_pixel_mask`,
            the former name of `do_pad`.
        resample: The filter as PIL's number, bilinear by default; always antialiased.
        do_rescale: Multiply by `rescale_factor`. False: integers and floats keep their values.
        rescale_factor: 1/255 by default.
        do_normalize: Subtract `image_mean` and divide by `image_std`, one number or three; ImageNet's by default.
        do_pad: Pad to a common size with zeros, on the right and at the bottom, and return `pixel_mask`.
        pad_size: `{"height": …, "width": …}` of every batch; None: the largest height and width of its images.
        return_segmentation_masks: Convert the annotations' `segmentation` to `masks`, for `DetrForSegmentation`.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays whose shape leaves it open.
        device: Where to compute and return the batch; None: the device of each image.
        return_tensors: `"pt"` (the default) or `"np"`.

    Raises:
        ValueError: An option is unknown, or its value is not valid.
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012 (a list in the library)
    valid_kwargs: Any = DetrTorchvisionImageProcessorKwargs
    do_resize = True
    size: Any = {"shortest_edge": 800, "longest_edge": 1333}  # noqa: RUF012 (the library copies class defaults)
    default_to_square = False
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_MEAN
    image_std = IMAGENET_STD
    do_pad = True
    pad_size = None
    return_segmentation_masks = False
    return_tensors = "pt"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**self._supported_options(kwargs))
        for key in _KEPT_KEYS & kwargs.keys():
            setattr(self, key, kwargs[key])

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `ImageProcessingMixin.get_image_processor_dict`; also reads from the folder of a run.

        Raises:
            ModelNotFoundError: The folder has no image processor.
            ModelError: Its file is malformed.
        """
        file = kwargs.get("image_processor_filename", IMAGE_PROCESSOR_NAME)
        folder = model_folder(pretrained_model_name_or_path, kwargs.get("subfolder") or "", file)
        remedy = "copy it from the model's source"
        try:
            values, unused = super().get_image_processor_dict(folder, **kwargs)
        except (AttributeError, RecursionError, TypeError, UnicodeDecodeError) as error:
            raise ModelError(folder, f"{file} cannot be read ({error})", remedy) from error
        if not isinstance(values, dict):
            raise ModelError(
                folder, f"{file} holds no keys, expected a JSON object", "copy it from the model's source"
            )
        if kwargs.get("_from_pipeline") is not None:  # a pipeline passes the model's options too
            unused = {key: value for key, value in unused.items() if key in cls.valid_kwargs.__annotations__}
        return values, unused

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Builds a processor from the contents of a saved file; options passed beside it take precedence.

        Args:
            image_processor_dict: The contents of `preprocessor_config.json`.
            **kwargs: Any option. With `return_unused_kwargs`, unknown options are returned beside the processor, as
                the Auto classes expect; without, they are an error.
        """
        if kwargs.pop("return_unused_kwargs", False):
            unused = {key: kwargs.pop(key) for key in set(kwargs) - {*cls.valid_kwargs.__annotations__, "max_size"}}
            return cls.from_dict(image_processor_dict, **kwargs), unused
        replaced = {"size", "max_size"} if kwargs.get("size") is not None else set()
        saved = {key: value for key, value in image_processor_dict.items() if key not in replaced}
        return cls(**(saved | kwargs))

    def preprocess(
        self,
        images: RawImage | Iterable[RawImage],
        annotations: CocoAnnotation
        | CocoPanopticAnnotation
        | Sequence[CocoAnnotation | CocoPanopticAnnotation]
        | None = None,
        return_segmentation_masks: bool | None = None,
        masks_path: str | Path | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Converts images, and their annotations if given, to a batch for the model.

        Args:
            images: One image, or any sequence of them: a list, a pandas Series, a column of `datasets`, a generator.
                `to_rgb` lists the kinds of images. A tensor or array (B, …) with four axes is B images.
            annotations: COCO annotations, one dict per image: `{"image_id": 1, "annotations": [{"bbox": [x, y, width,
                height], "category_id": 3, "area": …, "iscrowd": 0}, …]}`. `category_id` is used as the label.
                Or panoptic ones: `{"file_name": "1.png", "segments_info": [{"id": 7, "category_id": 3}, …]}`.
            return_segmentation_masks: See the class.
            masks_path: The folder with the PNG files of panoptic annotations.
            **options: Options of the processor to override in this call.

        Returns:
            `pixel_values` (B, 3, H, W); `pixel_mask` (B, H, W) int64, 1 = image, with `do_pad`; with annotations
            `labels`, one dict per image: `class_labels` (N,), `boxes` (N, 4) cxcywh in [0, 1] of the unpadded image,
            `area` (N,) square pixels of the resized image, `image_id` (1,), `orig_size` (2,), `size` (2,), and with
            `return_segmentation_masks` `masks` (N, height, width) bool of the resized image, without padding. Without
            `do_pad`, images of different sizes are returned as a list.

        Raises:
            TypeError: An image is of an unsupported type.
            ValueError: An image, an annotation or an option is malformed.
        """
        options["return_segmentation_masks"] = return_segmentation_masks
        chosen = self._complete_options(self._supported_options(options))
        originals = _read_images(_flatten_images(images), chosen)
        resized = originals
        if chosen.do_resize:
            resized = [self.resize(image, chosen.size, chosen.resample) for image in originals]
        pixels = [_rescale_and_normalize(image, chosen) for image in resized]
        data: dict[str, object] = {}
        if chosen.do_pad:
            data["pixel_values"], data["pixel_mask"] = pad_images(pixels, chosen.batch_height_width)
        elif len({image.shape for image in pixels}) == 1:
            data["pixel_values"] = torch.stack(pixels)
        else:
            data["pixel_values"] = pixels
        if annotations is not None:
            with_masks = chosen.return_segmentation_masks
            data["labels"] = coco_to_labels(annotations, originals, resized, with_masks, masks_path)
        if chosen.return_tensors == "np":
            data = {key: _to_numpy(value) for key, value in data.items()}
        return ImageBatch(data)

    def resize(  # noqa: D102 (the library's)
        self, image: Tensor, size: SizeDict, resample: int | None = None, antialias: bool = True, **_: object
    ) -> Tensor:
        new_size = _size_after_resize(image.shape[-2], image.shape[-1], size)
        pil_filter = PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample)
        interpolation = pil_torch_interpolation_mapping[pil_filter]
        resized: Tensor = transforms.resize(image, list(new_size), interpolation=interpolation, antialias=antialias)
        return resized

    @classmethod
    def _supported_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of this processor, under the present names of those that were renamed.

        Raises:
            ValueError: An option is unknown, or not supported with this value.
        """
        supported = {key: value for key, value in options.items() if key not in _KEYS_WITHOUT_EFFECT}
        if (pad := supported.pop("pad_and_return_pixel_mask", None)) is not None:
            supported["do_pad"] = pad
        max_size = supported.pop("max_size", None)
        if max_size is not None:
            size = supported.get("size")
            if not isinstance(size, int | np.integer):
                raise ValueError(
                    f"max_size: got {max_size} with size {size}, expected an integer size; "
                    f"use size={{'shortest_edge': …, 'longest_edge': {max_size}}}."
                )
            supported["size"] = {"shortest_edge": size, "longest_edge": max_size}
        names = cls.valid_kwargs.__annotations__
        for key in supported.keys() - names:
            value = supported.pop(key)
            if value is None or (key in _KEYS_WITH_ONE_VALUE and value == _KEYS_WITH_ONE_VALUE[key]):
                continue
            if key in _KEYS_WITH_ONE_VALUE:
                raise ValueError(f"{cls.__name__}: got {key}={value!r}, expected {_KEYS_WITH_ONE_VALUE[key]!r}.")
            raise ValueError(f"{cls.__name__} has no option '{key}'; {did_you_mean(key, names)}")
        return supported

    def _set_attributes(self, **kwargs: Any) -> None:  # called by the library when the processor is built
        for key, value in vars(self._complete_options(kwargs)).items():
            setattr(self, key, value)

    def _complete_options(self, given: Mapping[str, Any]) -> PreprocessingOptions:
        """All options: those given that are not None, and the processor's values of the others."""
        given = {key: value for key, value in given.items() if value is not None}
        defaults = {key: getattr(self, key, None) for key in self.valid_kwargs.__annotations__}
        return PreprocessingOptions.parse(defaults | given)


# The steps of `preprocess`


def _flatten_images(images: RawImage | Iterable[RawImage]) -> list[RawImage]:
    """The images of a sequence, of a batch in one array, or of a sequence of such batches; or the one image."""
    if hasattr(images, "columns"):
        raise TypeError(f"images: got {type(images).__name__}, expected one of its columns.")
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":
        images = images.ravel().tolist()
    is_one = isinstance(images, str | bytes | bytearray | memoryview | Mapping | set | np.ndarray | Tensor)
    is_one = is_one or hasattr(images, "read") or not isinstance(images, Iterable)
    entries: list[Any] = [images] if is_one else list(cast(Iterable[RawImage], images))
    if not entries:
        raise ValueError("images: got none, expected at least one.")
    flat: list[RawImage] = []
    for entry in entries:
        flat += entry if isinstance(entry, np.ndarray | Tensor) and entry.ndim == 4 else [entry]
    return flat


def _read_images(images: Sequence[RawImage], options: PreprocessingOptions) -> list[Tensor]:
    """Reads the images; an error names the position in a batch."""
    pixels = []
    for index, image in enumerate(images):
        try:
            pixels.append(_read_image(image, options))
        except (TypeError, ValueError) as error:
            if len(images) == 1:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"image {index} of {len(images)}: {str(error).removeprefix('image: ')}") from error
    return pixels


def _read_image(image: RawImage, options: PreprocessingOptions) -> Tensor:
    """Reads an image as (3, H, W) in 8-bit RGB; without `do_rescale`, floats keep their values."""
    pixels = _to_three_channels(image, options.channels_first)
    if options.do_rescale or not pixels.is_floating_point():
        pixels = _to_eight_bits(pixels)
    return pixels.to(options.device or pixels.device)


def _rescale_and_normalize(image: Tensor, options: PreprocessingOptions) -> Tensor:
    """Converts an image (3, H, W) to floating point, as `do_rescale` and `do_normalize` say."""
    factor = options.rescale_factor if options.do_rescale else 1
    if options.do_normalize:
        return normalize(image, options.image_mean, options.image_std, factor)
    return image if image.is_floating_point() else image.to(torch.float32) * factor


def _size_after_resize(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The (height, width) of an image after resizing to `size`.

    Raises:
        ValueError: It would fill the memory.
    """
    if size.shortest_edge is not None:
        new_size = resize_output_size(height, width, size.shortest_edge, size.longest_edge)
    elif size.max_height is not None and size.max_width is not None:
        scale = min(size.max_height / height, size.max_width / width)
        new_size = max(1, int(height * scale)), max(1, int(width * scale))
    elif size.height is not None and size.width is not None:
        new_size = size.height, size.width
    else:
        raise ValueError(f"size: got {size}, expected a shortest edge, or a height and a width.")
    if new_size[0] * new_size[1] > _MOST_PIXELS:
        raise ValueError(
            f"size: an image of {width}x{height} (width x height) would be resized to {new_size[1]}x{new_size[0]}, "
            f"expected at most {_MOST_PIXELS:,} pixels; limit the longest edge."
        )
    return new_size


def _to_numpy(value: object) -> object:
    """Converts tensors in nested lists and dicts to arrays."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, list):
        return [_to_numpy(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _to_numpy(entry) for key, entry in value.items()}
    return value


# A saved model names the hub files that it needs, so trust_remote_code can load it without this package
DetrTorchvisionImageProcessor.register_for_auto_class("AutoImageProcessor")
