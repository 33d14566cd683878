"""Reads one image as 8-bit RGB, in the orientation that its annotations see."""

import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from modeling_detr.data.image_files import (
    EXIF_ORIENTATION,
    TooManyPixelsError,
    check_pixels,
    exif_orientation,
    ignore_warnings_of_opening,
    image_source,
)
from modeling_detr.data.shapes import is_shapes, render
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.structures_detr import ImageRecord


def read_image(record: ImageRecord) -> tv_tensors.Image:
    """Reads the image of `record`: (3, H, W) uint8 RGB, of the height and width that the record says.

    The EXIF orientation is applied, unless only the image as it is stored has the record's size: then whoever
    annotated it saw it so. Pillow decodes: torchvision gives the same pixels in four fifths of the time, but its
    decoders are deprecated.

    Args:
        record: The image; its path may be a virtual one of the built-in shapes.

    Raises:
        OSError: The file is missing or cannot be decoded.
        ValueError: Its size is not the record's, or what it holds is no picture.
    """
    if is_shapes(record.path):
        return tv_tensors.Image(torch.from_numpy(render(record.path)).permute(2, 0, 1))
    pixels = _decode(record.path, oriented=True)
    if pixels.shape[1:] != (record.height, record.width):
        stored = _decode(record.path, oriented=False)
        if stored.shape[1:] != (record.height, record.width):
            raise ValueError(
                f"{record.path}: the image is {pixels.shape[1]}x{pixels.shape[2]} (height x width), but its "
                f"annotations were made for {record.height}x{record.width}; put the image there that was annotated, "
                f"or correct the size (and the boxes) in the annotation file."
            )
        pixels = stored
    return tv_tensors.Image(pixels)


def _decode(path: str, oriented: bool) -> Tensor:
    """Pixels (3, H, W) uint8 of an image file, turned as its EXIF orientation says if `oriented`."""
    try:
        with warnings.catch_warnings():
            ignore_warnings_of_opening()
            opened = Image.open(image_source(path))
        with opened as image:
            check_pixels(path, image.height, image.width)
            image.load()
            orientation = exif_orientation(image)
            if not oriented or orientation == 1:
                image.getexif()[EXIF_ORIENTATION] = 1  # also in place of a number that is none
            if image.mode == "RGB" and image.format == "JPEG" and (orientation == 1 or not oriented):
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # nothing to convert: most images by far
            return to_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such image; put it there, or remove its annotations.") from error
    except TooManyPixelsError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken chunks of a PNG
        raise OSError(
            f"{path}: the image cannot be decoded ({error}); replace it, or remove it and its annotations."
        ) from error
