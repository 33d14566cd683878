"""Decode an image to 8-bit RGB, in the orientation in which it was annotated."""

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageFile, features
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


try:
    import simplejpeg
except ImportError:  # not built for every platform
    simplejpeg = None

# Built with another library, Pillow decodes to slightly different pixels, and other parts of the package use Pillow
_HAS_SIMPLEJPEG = simplejpeg is not None and features.check("libjpeg_turbo")
_MAX_JPEG_BYTES = 256 << 20  # that are read at once; Pillow reads larger files in parts


def read_image(record: ImageRecord) -> tv_tensors.Image:
    """Read the image of `record`: (3, H, W) uint8 RGB, with the record's height and width.

    The EXIF orientation is applied, unless `ignores_exif` is set or only the stored image has the record's size: then
    it was annotated without it. Decoding uses Pillow, and simplejpeg for JPEG files, which returns the same pixels in
    two thirds of the time.

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
        if (
            isinstance(image, ImageFile.ImageFile)
            and (image.format, image.mode) == ("JPEG", "RGB")
            and (not oriented or exif_orientation(image) == 1)
        ):
            return torch.from_numpy(_jpeg_pixels(image)).permute(2, 0, 1)  # the usual case: nothing to convert
        image.load()
        if not oriented or exif_orientation(image) == 1:
            image.getexif()[EXIF_ORIENTATION] = 1  # also replaces an invalid value
        return to_rgb(image)


def _jpeg_pixels(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Decode an opened RGB JPEG image to (H, W, 3).

    simplejpeg calls the library that Pillow is built with, but copies no pixels. What it cannot decode without a
    warning is left to Pillow, which reads more files and says what is wrong with the others.
    """
    if _HAS_SIMPLEJPEG and image.fp is not None:
        image.fp.seek(0)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        with contextlib.suppress(ValueError):
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(image.fp.read(_MAX_JPEG_BYTES), buffer=pixels)
            if decoded.shape == pixels.shape:
                return decoded
    return np.array(image)
