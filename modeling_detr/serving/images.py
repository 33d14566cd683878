"""From the bytes that a client sends to what the model takes: checked by the header first, then decoded."""

import io
import re
from functools import cache
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, to_rgb
from modeling_detr.serving.refusal import Refusal


_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # no others are tried
_JPEG = ("JPEG", "MPO")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of those that are followed by a length, and of the end
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MOST_SCANS = 100  # a progressive file has about ten
_SEND = "send a JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or PPM file"


class SentImage(NamedTuple):
    """An image as it was sent.

    where: its name in messages. content: the bytes of the file.
    """

    where: str
    content: bytes


class PreparedImage(NamedTuple):
    """An image that is ready for the model.

    inputs: what the image processor returns. size: (height, width) of the original image.
    """

    inputs: dict[str, Tensor]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Images with the same shape can be computed together, without padding."""
        return (len(self.inputs), *self.inputs["pixel_values"].shape)


def prepare_image(image: SentImage, processor: DetrTorchvisionImageProcessor, max_pixels: int) -> PreparedImage:
    """Decodes an image and prepares it for the model.

    Args:
        image: The image.
        processor: The model's image processor.
        max_pixels: An image with more pixels in its header is not decoded.

    Raises:
        Refusal: It is too large, no image, damaged, or not of a format that is read.
    """
    try:
        with Image.open(io.BytesIO(image.content), formats=_readable_formats()) as opened:
            _check_size(image.where, opened.width, opened.height, max_pixels)
            if opened.format in _JPEG:
                _check_scans(image)
            pixels = to_rgb(opened)
        return PreparedImage(dict(processor(pixels)), (pixels.shape[-2], pixels.shape[-1]))
    except Refusal:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refusal(413, image.where, "has an implausible number of pixels", "send a smaller image") from error
    except UnidentifiedImageError as error:
        problem = "is empty" if not image.content else f"is not an image ({len(image.content):,} bytes)"
        raise Refusal(422, image.where, problem, _SEND) from error
    except Exception as error:  # Pillow raises almost anything for a damaged or hostile image
        reason = " ".join(str(error).split()).removeprefix("image: ").rstrip(".") or type(error).__name__
        raise Refusal(422, image.where, f"cannot be decoded ({reason})", _SEND) from error


def _check_size(where: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        problem = f"{width}x{height} pixels (width x height), more than the limit of {max_pixels:,}"
        raise Refusal(413, where, problem, "send a smaller image, or start the server with a larger --max_pixels")


def _check_scans(image: SentImage) -> None:
    """Refuses a JPEG file of thousands of scans: each is a few bytes, and the time of a whole decoding."""
    scans = position = 0
    while (marker := _MARKER.search(image.content, position)) and marker[0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        position = marker.end() + max(2, int.from_bytes(image.content[marker.end() : marker.end() + 2], "big"))
        if scans > _MOST_SCANS:
            problem = f"has more than {_MOST_SCANS} scans, which take too long to decode"
            raise Refusal(413, image.where, problem, "save it again as an ordinary JPEG file")


@cache
def _readable_formats() -> list[str]:
    """The formats that this build of Pillow reads."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
