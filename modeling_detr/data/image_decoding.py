"""Decode an image to 8-bit RGB, in the orientation in which it was annotated."""

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from modeling_detr.data.image_headers import (
    EXIF_ORIENTATION,
    exif_orientation,
    image_source,
    opened_image,
)
from modeling_detr.errors_detr import DatasetError
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.structures_detr import ImageReader, ImageRecord


def read_image(record: ImageRecord) -> tv_tensors.Image:
    """Read the image of `record`: (3, H, W) uint8 RGB, with the record's height and width.

    The EXIF orientation is applied, unless `ignores_exif` is set or only the stored image has the record's size: then
    it was annotated without it. Decoding uses Pillow: torchvision returns the same pixels in four fifths of the time,
    but its decoders are deprecated.

    Args:
        record: The image, a file or what its `reader` returns.

    Raises:
        DatasetNotFoundError: The image does not exist.
        DatasetReadError: The image cannot be read or decoded.
        DatasetError: Its size is not the record's.
    """
    pixels = _decode(record.path, record.reader, oriented=not record.ignores_exif)
    if pixels.shape[1:] != (record.height, record.width):
        stored = _decode(record.path, record.reader, oriented=False)
        if stored.shape[1:] != (record.height, record.width):
            raise DatasetError(
                record.path,
                f"the image is {pixels.shape[2]}x{pixels.shape[1]} (width x height), but its annotations are for "
                f"{record.width}x{record.height}",
                "restore the image that was annotated, or correct the size (and the boxes) in the annotation file",
            )
        pixels = stored
    return tv_tensors.Image(pixels)


def _decode(path: str, reader: ImageReader | None, oriented: bool) -> Tensor:
    """Decode an image to pixels (3, H, W) uint8, rotated by its EXIF orientation if `oriented`."""
    source = image_source(path, reader)
    if isinstance(source, np.ndarray):
        return torch.from_numpy(source).permute(2, 0, 1)
    with opened_image(path, source) as image:
        image.load()
        orientation = exif_orientation(image)
        if not oriented or orientation == 1:
            image.getexif()[EXIF_ORIENTATION] = 1  # also replaces an invalid value
        if image.mode == "RGB" and image.format == "JPEG" and (orientation == 1 or not oriented):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # the usual case: nothing to convert
        return to_rgb(image)
