"""What pixels mean to a DETR: `DetrTorchvisionImageProcessor`, saved as `preprocessor_config.json`.

On the way in, an image of any kind becomes RGB, is resized (shortest edge 800, longest 1333), normalised with the
backbone's own mean and std, and padded right and bottom with zeros. On the way out, logits and relative boxes become
scores, labels and corners in pixels of the original image. The functions at the head are the same steps one by one;
the data loader and the evaluation use them too.

Shapes: B images · Q queries · C classes · N objects of one image · K predictions of one image · H, W pixels.
Boxes: `boxes_xyxy` are corners in pixels, `boxes_cxcywh` centre and size relative to the **unpadded** image. Sizes are
`(height, width)`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as transforms
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict, load_image, pil_torch_interpolation_mapping

from .post_processing_detr import DetrPostProcessor
from .structures_detr import DetectionBatch


try:  # needed only for masks among annotations
    from pycocotools import mask as coco_mask
except ImportError:
    coco_mask = None


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RawImage = Image.Image | NDArray[Any] | Tensor | str | Path


# The steps, one by one


def to_rgb(image: RawImage, channels_first: bool | None = None) -> Tensor:
    """Any image as 8-bit RGB.

    Grey is repeated, palettes are looked up, CMYK is converted, an alpha channel is **dropped** (as `convert("RGB")`
    of the original's loader does: what lies under transparent pixels is seen), the EXIF orientation of a PIL image or
    a file is applied. 16-bit values are scaled from 0…65535. Floating point values in [0, 1] are scaled to 0…255;
    those that go up to 255 are taken as they are.

    Args:
        image: A PIL image, a path or URL, or an array or tensor (H, W), (H, W, channels) or (channels, H, W) with
            1 (grey), 2 (grey, alpha), 3 or 4 (RGB, alpha) channels; bool, uint8, uint16, integers or floats.
        channels_first: Where an array has its channels. None: wherever an axis of 1-4 entries is; if both ends could
            be it, NumPy arrays have them last and tensors first, as is the custom of each.

    Returns:
        (3, H, W) uint8, on the device of the input; it may share the memory of an array or tensor.

    Raises:
        TypeError: Not an image of those kinds.
        ValueError: Shape or values are not an image's; the message says got and wanted.
    """
    return _to_eight_bits(_to_three_channels(image, channels_first))


def resize_output_size(
    height: int, width: int, shortest_edge: int, longest_edge: int | None = None
) -> tuple[int, int]:
    """The size an image is resized to: shortest edge as wanted, unless the longest would pass `longest_edge`.

    Original: datasets/transforms.py, `resize`; with its rounding, which truncates the longer edge.

    Returns:
        `(height, width)`, at least one pixel each.
    """
    short, long = min(height, width), max(height, width)
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
        rescale_factor: What takes the integers to [0, 1]; floats are not rescaled.

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
            {key: value.to(device, non_blocking=True) if key in moved else value for key, value in label.items()}
            for label in batch["labels"]
        ]
    return inputs


def pad_images(images: Sequence[Tensor], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Images of several sizes as one batch, padded with zeros on the right and at the bottom.

    Args:
        images: One tensor (channels, H, W) an image, of one dtype and device.
        size: `(height, width)` of the batch; None: the largest height and the largest width among the images.

    Returns:
        pixel_values (B, channels, height, width) of the images' dtype, and pixel_mask (B, height, width) int64 with 1
        where the image is and 0 where padding is.

    Raises:
        ValueError: There are no images, or one is larger than `size`.
    """
    if not images:
        raise ValueError("There are no images to pad; wanted at least one.")
    largest = max(image.shape[-2] for image in images), max(image.shape[-1] for image in images)
    height, width = size or largest
    if largest[0] > height or largest[1] > width:
        raise ValueError(
            f"Images of up to {largest[0]}x{largest[1]} (height x width) do not fit into a batch of {height}x{width}; "
            f"enlarge pad_size, or resize the images to less."
        )
    pixel_values = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    pixel_mask = torch.zeros((len(images), height, width), dtype=torch.int64, device=images[0].device)
    for position, image in enumerate(images):
        pixel_values[position, :, : image.shape[-2], : image.shape[-1]] = image
        pixel_mask[position, : image.shape[-2], : image.shape[-1]] = 1
    return pixel_values, pixel_mask


# Images of any kind


def _to_three_channels(image: RawImage, channels_first: bool | None) -> Tensor:
    """The image as (3, H, W) with the kind of values that it came with."""
    if isinstance(image, str) and image.startswith(("http://", "https://", "data:")):
        image = load_image(image)
    if isinstance(image, str | Path):
        with Image.open(image) as opened:
            image, channels_first = _pil_to_array(opened), False
    elif isinstance(image, Image.Image):
        image, channels_first = _pil_to_array(image), False
    if isinstance(image, np.ndarray):
        pixels = _array_to_tensor(image)
        prefer_first = False
    elif isinstance(image, Tensor):
        pixels = image.detach().as_subclass(Tensor)
        prefer_first = True
    else:
        raise TypeError(
            f"An image is a {type(image).__name__}; wanted a PIL image, a NumPy array, a tensor, or a path or URL."
        )
    if pixels.is_complex():
        raise ValueError(f"An image has complex values ({pixels.dtype}); wanted integers or floats.")
    if pixels.ndim == 2:
        pixels, channels_first = pixels[None], True
    if pixels.ndim != 3 or pixels.numel() == 0:
        raise ValueError(
            f"An image has shape {tuple(pixels.shape)}; "
            f"wanted (H, W), (H, W, channels) or (channels, H, W), none of them 0."
        )
    if channels_first is None:
        fits_first, fits_last = pixels.shape[0] <= 4, pixels.shape[-1] <= 4
        channels_first = fits_first if fits_first != fits_last else prefer_first
    if not channels_first:
        pixels = pixels.permute(2, 0, 1)
    channels = pixels.shape[0]
    if channels > 4:
        raise ValueError(
            f"An image has shape {tuple(pixels.shape)} when read as (channels, H, W), that is {channels} channels; "
            f"wanted 1 (grey), 2 (grey, alpha), 3 or 4 (RGB, alpha)."
        )
    return pixels[:1].repeat(3, 1, 1) if channels <= 2 else pixels[:3].contiguous()


def _pil_to_array(image: Image.Image) -> NDArray[Any]:
    """A PIL image of any mode, upright, as an array: uint8 RGB, uint16 grey, or float grey as it is."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":  # what 16-bit formats other than PNG and TIFF open as, e.g. PGM
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"A PIL image of mode I holds values {values.min()}…{values.max()}; wanted 16-bit grey, 0…65535."
            )
        return values.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode == "LAB":
        raise ValueError("A PIL image has mode LAB; convert it to RGB with PIL.ImageCms first.")
    if image.mode in ("P", "PA", "RGBa", "La"):  # by way of alpha: PIL warns of, or lacks, the direct conversion
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _array_to_tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "buif":
        raise ValueError(f"An image array has dtype {array.dtype}; wanted bool, integers or floats.")
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=not array.flags.writeable)
    return torch.from_numpy(native)


def _to_eight_bits(pixels: Tensor) -> Tensor:
    """Values of any kind as uint8 in 0…255; see `to_rgb`."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        return ((pixels.to(torch.int32) + 128) // 257).to(torch.uint8)  # 65535 = 255 * 257, rounded
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 255:  # false for NaN too
        raise ValueError(
            f"An image of dtype {pixels.dtype} holds values {low:g}…{high:g}; wanted 0…255, floats in [0, 1], or "
            f"uint16. An image that is normalised already needs no processor."
        )
    if not pixels.is_floating_point():
        return pixels.to(torch.uint8)
    # A picture in 0…255 that never passes 1 would be black, so the two conventions can be told apart.
    return (pixels * 255 if high <= 1 else pixels).round().to(torch.uint8)


# COCO annotations


def _coco_to_labels(
    annotation: Any, size: tuple[int, int], new_size: tuple[int, int], where: str, with_masks: bool
) -> dict[str, Tensor]:
    """The objects of one image as the loss takes them.

    Crowd regions are left out; boxes are clipped to the image and those without area left out, as in the original
    (datasets/coco.py, `ConvertCocoPolysToMask`).

    Args:
        annotation: `{"image_id": …, "annotations": [{"bbox": [x, y, width, height], "category_id": …, …}]}`.
        size: Size of the image that the annotation speaks of.
        new_size: Its size after resizing, unpadded; `area` is scaled with it.
        where: What to call the image in a message.
        with_masks: Make `masks` of the objects' `segmentation`.

    Raises:
        ValueError: The annotation has another form; the message says where.
    """
    if not isinstance(annotation, Mapping) or "annotations" not in annotation:
        got = sorted(annotation) if isinstance(annotation, Mapping) else type(annotation).__name__
        raise ValueError(
            f"{where}: its annotation must be a dict {{'image_id': …, 'annotations': [{{'bbox': [x, y, width, "
            f"height], 'category_id': …}}, …]}}; got {got}."
        )
    objects = [entry for entry in annotation["annotations"] if not entry.get("iscrowd", 0)]
    for number, entry in enumerate(objects):
        missing = [key for key in ("bbox", "category_id") if key not in entry]
        if missing:
            raise ValueError(f"{where}: annotation {number} has no {' and no '.join(missing)}; got {sorted(entry)}.")
        if len(entry["bbox"]) != 4 or not all(math.isfinite(number) for number in entry["bbox"]):
            raise ValueError(
                f"{where}: annotation {number} has bbox {entry['bbox']}; wanted four finite numbers "
                f"[x, y, width, height] in pixels."
            )
    height, width = size
    boxes_xywh = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float64).reshape(-1, 4)
    boxes_xyxy = box_convert(boxes_xywh, "xywh", "xyxy")
    areas = [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in objects]
    boxes_xyxy[:, 0::2] = boxes_xyxy[:, 0::2].clamp(0, width)
    boxes_xyxy[:, 1::2] = boxes_xyxy[:, 1::2].clamp(0, height)
    kept = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(-1)
    boxes_cxcywh = box_convert(boxes_xyxy[kept], "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
    scale = (new_size[0] / height) * (new_size[1] / width)
    labels = {
        "class_labels": torch.tensor([entry["category_id"] for entry in objects], dtype=torch.int64)[kept],
        "boxes": boxes_cxcywh.to(torch.float32),
        "area": (torch.tensor(areas, dtype=torch.float64)[kept] * scale).to(torch.float32),
        "orig_size": torch.tensor(size),
        "size": torch.tensor(new_size),
    }
    if with_masks:
        chosen = [entry for entry, is_kept in zip(objects, kept.tolist(), strict=True) if is_kept]
        masks = [_coco_mask(entry, size, where) for entry in chosen]
        whole = torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, 1, *size))
        labels["masks"] = F.interpolate(whole, size=new_size, mode="nearest")[:, 0].bool()
    if "image_id" in annotation:
        if not isinstance(annotation["image_id"], int):
            raise ValueError(f"{where}: image_id is {annotation['image_id']!r}; wanted an integer, or leave it out.")
        labels["image_id"] = torch.tensor([annotation["image_id"]])
    return labels


def _coco_mask(entry: Mapping[str, Any], size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """The mask (H, W) of an object's `segmentation`: polygons, or run lengths, compressed or not."""
    if coco_mask is None:
        raise ValueError("Masks among annotations are read by pycocotools, which is missing: pip install pycocotools.")
    segmentation = entry.get("segmentation")
    try:
        if isinstance(segmentation, Mapping):
            runs = segmentation
            if isinstance(segmentation["counts"], list):
                runs = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        else:
            polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
            runs = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
        mask: NDArray[np.uint8] = coco_mask.decode(runs)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{where}: the segmentation of annotation {entry.get('id', entry['bbox'])} cannot be read ({error}); "
            f"wanted polygons [[x, y, x, y, …], …] or run lengths {{size: [height, width], counts: …}}."
        ) from error
    if mask.shape != size:
        raise ValueError(
            f"{where}: the segmentation of annotation {entry.get('id', entry['bbox'])} is of {mask.shape}, but the "
            f"image is {size} (height, width)."
        )
    return mask


def _labels_of_images(
    annotations: Any, originals: Sequence[Tensor], resized: Sequence[Tensor], with_masks: bool
) -> list[dict[str, Tensor]]:
    """The labels of each image, given the images (3, H, W) before and after resizing."""
    annotations = [annotations] if isinstance(annotations, Mapping) else list(annotations)
    if len(annotations) != len(originals):
        raise ValueError(f"{len(originals)} images, but {len(annotations)} annotations; wanted one an image.")
    return [
        _coco_to_labels(
            annotation,
            (before.shape[-2], before.shape[-1]),
            (after.shape[-2], after.shape[-1]),
            f"image {position}",
            with_masks,
        )
        for position, (annotation, before, after) in enumerate(zip(annotations, originals, resized, strict=True))
    ]


# The processor


class DetrImageProcessorKwargs(TypedDict, total=False):
    """Everything that can be set when the processor is built and, for one call, in `preprocess`."""

    do_resize: bool | None
    size: Any
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | int | None
    do_normalize: bool | None
    image_mean: float | int | list[float | int] | tuple[float | int, ...] | None
    image_std: float | int | list[float | int] | tuple[float | int, ...] | None
    do_pad: bool | None
    pad_size: Any
    return_segmentation_masks: bool | None
    input_data_format: Any
    device: Any
    return_tensors: Any


# Keys that the library and other processors write into a saved file, or that a pipeline hands to model and processor
# alike, and that decide nothing here; and those that are accepted with the one value that says what is done anyway.
_KEYS_WITHOUT_EFFECT = {
    "auto_map",
    "default_to_square",
    "device_map",
    "disable_grouping",
    "dtype",
    "feature_extractor_type",
    "format",  # annotations say themselves what they are
    "image_processor_type",
    "image_seq_length",
    "processor_class",
    "use_fast",
}
_KEYS_WITH_ONE_VALUE = {
    "data_format": "channels_first",
    "do_center_crop": False,
    "do_convert_annotations": True,
    "do_convert_rgb": True,
}


class DetrTorchvisionImageProcessor(DetrPostProcessor, TorchvisionBackend):
    """Images to batches and model outputs to detections, on torchvision.

    Every option can be set when the processor is built, is saved in `preprocessor_config.json`, and can be given to a
    single call of `preprocess`, where None means the processor's own value.

    Differs from Transformers' DETR processor: boxes stay relative to the unpadded image, as in the original; 16-bit
    images and EXIF orientation are seen to; alpha is dropped rather than laid over white, as in the original; an
    option that does not exist is an error.

    Args:
        do_resize: Resize to `size`.
        size: `{"shortest_edge": 800, "longest_edge": 1333}` keeps the proportions (`longest_edge` may be left out),
            `{"height": …, "width": …}` does not, `{"max_height": …, "max_width": …}` is the largest that fits. An
            integer is the shortest edge and a pair is (height, width).
        max_size: The longest edge, beside an integer `size`: the form of older files.
        resample: PIL's number of the filter, bilinear by default; always antialiased.
        do_rescale: Multiply by `rescale_factor`. Without, integers keep their values, and floats are taken to be what
            the caller wants them to be.
        rescale_factor: 1/255 by default.
        do_normalize: Subtract `image_mean` and divide by `image_std`, one number or three; ImageNet's by default.
        do_pad: Pad to a common size, right and bottom, with zeros, and return `pixel_mask`.
        pad_size: `{"height": …, "width": …}` of every batch; None: the largest height and width among its images.
        return_segmentation_masks: Make `masks` of the annotations' `segmentation`, for `DetrForSegmentation`.
        input_data_format: `"channels_first"` or `"channels_last"`: where arrays have their channels, if that is not
            plain from their shape.
        device: Where to work and to leave the result; None: wherever each image is.
        return_tensors: `"pt"` (the default) or `"np"`.

    Raises:
        ValueError: An option does not exist (the nearest is named), or its value makes no sense.
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012 (a list in the library)
    valid_kwargs: Any = DetrImageProcessorKwargs
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
        options = {key: value for key, value in kwargs.items() if key not in _KEYS_WITHOUT_EFFECT}
        super().__init__(**self._checked_options(options))

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """A processor from the contents of a saved file; options given beside it win.

        Args:
            image_processor_dict: The contents of `preprocessor_config.json`.
            **kwargs: Any option. With `return_unused_kwargs`, those that do not exist are returned beside the
                processor, as the Auto classes ask for; without, they are an error.
        """
        if kwargs.pop("return_unused_kwargs", False):
            unused = {key: kwargs.pop(key) for key in set(kwargs) - {*cls.valid_kwargs.__annotations__, "max_size"}}
            return cls.from_dict(image_processor_dict, **kwargs), unused
        replaced = {"size", "max_size"} if kwargs.get("size") is not None else set()
        saved = {key: value for key, value in image_processor_dict.items() if key not in replaced}
        return cls(**(saved | kwargs))

    def preprocess(self, images: Any, annotations: Any = None, **options: Any) -> BatchFeature:
        """Images, and their annotations if there are any, as the model takes them.

        Args:
            images: One image or a list of them; PIL images, arrays, tensors, paths or URLs, see `to_rgb`. A tensor or
                array (B, …) of four axes is B images.
            annotations: COCO annotations, one dict an image: `{"image_id": 1, "annotations": [{"bbox": [x, y, width,
                height], "category_id": 3, "area": …, "iscrowd": 0}, …]}`. `category_id` becomes the label as it is.
            **options: Any option of the processor, for this call.

        Returns:
            `pixel_values` (B, 3, H, W); `pixel_mask` (B, H, W) int64, 1 = image, if `do_pad`; with annotations
            `labels`, one dict an image: `class_labels` (N,), `boxes` (N, 4) cxcywh in [0, 1] of the unpadded image,
            `area` (N,) square pixels of the resized image, `image_id` (1,), `orig_size` (2,), `size` (2,), and with
            `return_segmentation_masks` `masks` (N, height, width) bool of the resized image, without padding. Without
            `do_pad`, images of different sizes come as a list.

        Raises:
            TypeError: Something that is no image.
            ValueError: An image, an annotation or an option has the wrong form.
        """
        chosen = self._complete_options(self._checked_options(options))
        images = _flat_list(images)
        originals = [_process_image(image, chosen) for image in images]
        resized = (
            [self.resize(image, chosen["size"], chosen["resample"]) for image in originals]
            if chosen["do_resize"]
            else originals
        )
        pixels = [_to_values(image, chosen) for image in resized]
        data: dict[str, Any] = {}
        if chosen["do_pad"]:
            pad_size = chosen["pad_size"]
            size = (pad_size.height, pad_size.width) if pad_size is not None else None
            data["pixel_values"], data["pixel_mask"] = pad_images(pixels, size)
        elif len({image.shape for image in pixels}) == 1:
            data["pixel_values"] = torch.stack(pixels)
        else:
            data["pixel_values"] = pixels
        if annotations is not None:
            with_masks = chosen["return_segmentation_masks"]
            data["labels"] = _labels_of_images(annotations, originals, resized, with_masks)
        return BatchFeature(_to_numpy(data) if chosen["return_tensors"] == "np" else data)

    def resize(  # noqa: D102 (the library's)
        self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **_: Any
    ) -> Tensor:
        output_size = _output_size(image.shape[-2], image.shape[-1], size)
        filter_number = PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample)
        interpolation = pil_torch_interpolation_mapping[filter_number]
        resized: Tensor = transforms.resize(image, list(output_size), interpolation=interpolation, antialias=antialias)
        return resized

    @classmethod
    def _checked_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that this processor has, `size` with `max_size` merged into it; an error for any other."""
        checked = dict(options)
        max_size = checked.pop("max_size", None)
        if max_size is not None:
            size = checked.get("size")
            if not isinstance(size, int):
                raise ValueError(
                    f"max_size={max_size} goes with an integer size, but size is {size}; "
                    f"use size={{'shortest_edge': …, 'longest_edge': {max_size}}}."
                )
            checked["size"] = {"shortest_edge": size, "longest_edge": max_size}
        known = cls.valid_kwargs.__annotations__
        for key, value in options.items():
            if key in known or key == "max_size":
                continue
            checked.pop(key)
            if value is None or (key in _KEYS_WITH_ONE_VALUE and value == _KEYS_WITH_ONE_VALUE[key]):
                continue
            if key in _KEYS_WITH_ONE_VALUE:
                raise ValueError(f"{cls.__name__} cannot do {key}={value!r}; only {_KEYS_WITH_ONE_VALUE[key]!r}.")
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"it has {', '.join(known)}."
            raise ValueError(f"{cls.__name__} has no option '{key}'; {hint}")
        return checked

    def _set_attributes(self, **kwargs: Any) -> None:  # called by the library when the processor is built
        for key, value in self._complete_options(kwargs).items():
            setattr(self, key, value)

    def _complete_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option: as given, or else the processor's own; several forms brought into one, and checked."""
        given = {key: value for key, value in given.items() if value is not None}
        options = {key: getattr(self, key, None) for key in self.valid_kwargs.__annotations__} | given
        options["size"] = _size_option("size", options["size"])
        options["pad_size"] = _size_option("pad_size", options["pad_size"])
        for key in ("do_resize", "do_rescale", "do_normalize", "do_pad", "return_segmentation_masks"):
            if not isinstance(options[key], bool):
                raise ValueError(f"{key} is {options[key]!r}; wanted True or False.")
        for key in ("image_mean", "image_std"):
            value = options[key]
            channels = (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))
            if len(channels) != 3 or (key == "image_std" and min(channels) <= 0):
                wanted = "one number or three, above 0" if key == "image_std" else "one number or three"
                raise ValueError(f"{key} is {value}; wanted {wanted}, in units of [0, 1].")
            options[key] = channels
        if options["return_tensors"] not in ("pt", "np"):
            raise ValueError(f"return_tensors is {options['return_tensors']!r}; wanted 'pt' or 'np'.")
        if options["input_data_format"] not in (None, "channels_first", "channels_last"):
            raise ValueError(
                f"input_data_format is {options['input_data_format']!r}; wanted 'channels_first' or 'channels_last'."
            )
        return options


def _flat_list(images: Any) -> list[Any]:
    """One image, several, or a batch in one array, as a list of images."""
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("There are no images; wanted at least one.")
        return [image for entry in images for image in (_flat_list(entry) if _is_batch(entry) else [entry])]
    return [images]


def _is_batch(entry: Any) -> bool:
    return isinstance(entry, np.ndarray | Tensor) and entry.ndim == 4


def _process_image(image: RawImage, options: Mapping[str, Any]) -> Tensor:
    """One image as (3, H, W): 8-bit RGB, but floats as they are where `do_rescale` is off."""
    channels_first = {"channels_first": True, "channels_last": False}.get(options["input_data_format"])
    pixels = _to_three_channels(image, channels_first)
    if options["do_rescale"] or not pixels.is_floating_point():
        pixels = _to_eight_bits(pixels)
    return pixels.to(options["device"] or pixels.device)


def _to_values(image: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Rescales and normalises an image (3, H, W), as far as the options say so; floating point."""
    factor = options["rescale_factor"] if options["do_rescale"] else 1
    if options["do_normalize"]:
        return normalize(image, options["image_mean"], options["image_std"], factor)
    return image if image.is_floating_point() else image.to(torch.float32) * factor


def _size_option(name: str, size: Any) -> SizeDict | None:
    """An integer, a pair or a dict as the library's `SizeDict`, checked."""
    if size is None or isinstance(size, SizeDict):
        return size
    if isinstance(size, int):
        size = {"shortest_edge": size} if name == "size" else {"height": size, "width": size}
    elif isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    forms = [{"height", "width"}]
    if name == "size":
        forms += [{"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"}]
    if isinstance(size, Mapping):
        size = {key: value for key, value in size.items() if value is not None}
        if set(size) in forms and all(isinstance(value, int) and value > 0 for value in size.values()):
            return SizeDict(**size)
    wanted = " or ".join("{" + ", ".join(f"'{key}': …" for key in sorted(form)) + "}" for form in forms)
    raise ValueError(f"{name} is {size}; wanted {wanted}, in whole pixels.")


def _output_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """The size that an image of this height and width is resized to."""
    if size.shortest_edge is not None:
        return resize_output_size(height, width, size.shortest_edge, size.longest_edge)
    if size.max_height is not None and size.max_width is not None:
        scale = min(size.max_height / height, size.max_width / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    if size.height is not None and size.width is not None:
        return size.height, size.width
    raise ValueError(f"size is {size}; it says neither an edge nor a height and a width.")


def _to_numpy(value: Any) -> Any:
    """Tensors anywhere in lists and dicts as arrays."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, list):
        return [_to_numpy(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _to_numpy(entry) for key, entry in value.items()}
    return value
