"""One image that a model is to predict for, and how its pixels are read."""

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from PIL import UnidentifiedImageError
from torch import Tensor

from modeling_detr.data.image_decoding import read_image
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.image_reading_detr import open_image
from modeling_detr.structures_detr import ImageRecord


Opener = Callable[[str], BinaryIO]
"""Opens the image with a given source; it can be pickled, for loader processes."""


class FoundImage(NamedTuple):
    """An image that was found, before it has a unique name.

    name: relative path to name its outputs by. source: its path or URL. opener: opens a source that is not a file.
    record: the image's record, if it is one of a dataset.
    """

    name: PurePath
    source: str
    opener: Opener | None = None
    record: ImageRecord | None = None


class InputImage(NamedTuple):
    """An image to predict for.

    name: relative path, with forward slashes, unique in a run also without its suffix and in any case. source: its
    path or URL, unique in a run. opener, record: see `FoundImage`.
    """

    name: str
    source: str
    opener: Opener | None = None
    record: ImageRecord | None = None

    def state(self) -> list[str | int]:
        """What decides its predictions and the names of its files: the name, and size and time if it is a file."""
        if self.opener is not None:
            return [self.name]
        try:
            status = Path(self.source).stat()
        except (OSError, ValueError):  # an image inside of an archive, or removed
            return [self.name]
        return [self.name, status.st_size, status.st_mtime_ns]

    def read(self) -> Tensor:
        """The pixels (3, H, W) uint8 RGB, upright.

        Raises:
            Exception: Of any kind: Pillow raises almost anything for a hostile image.
        """
        if self.record is not None:
            pixels: Tensor = read_image(self.record).as_subclass(Tensor)
            return pixels
        if self.opener is None:
            return _decode(self.source)
        with self.opener(self.source) as file:
            try:
                return _decode(file)
            except UnidentifiedImageError as error:  # whose message names a buffer
                raise ValueError("what was read is not an image") from error


def _decode(source: str | BinaryIO) -> Tensor:
    with open_image(source) as image:
        pixels: Tensor = to_rgb(image)
        return pixels
