"""One image that a model is to predict for, and how its pixels are read."""

import stat
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
    record: the image's record, if it is one of a dataset. version: tells the content of a source without a file from
    what the same source had before; empty if that is not known.
    """

    name: PurePath
    source: str
    opener: Opener | None = None
    record: ImageRecord | None = None
    version: str = ""


class InputImage(NamedTuple):
    """An image to predict for.

    name: relative path, with forward slashes, unique in a run also without its suffix and in any case. source: its
    path or URL, unique in a run. opener, record, version: see `FoundImage`.
    """

    name: str
    source: str
    opener: Opener | None = None
    record: ImageRecord | None = None
    version: str = ""

    def state(self) -> list[str | int]:
        """What decides its predictions and the names of its files: the name, and size and time of its file."""
        of_record: list[str | int] = []
        if self.record is not None:  # decides how the image is turned
            of_record = [self.record.height, self.record.width, int(self.record.ignores_exif)]
        if self.opener is not None:
            return [self.name, self.version]
        return [self.name, *of_record, *_file_state(Path(self.source))]

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


def _file_state(path: Path) -> list[str | int]:
    """Size and time of a file, or of the archive that it is in; empty if there is none."""
    for place in (path, *path.parents):
        try:
            status = place.stat()
        except (OSError, ValueError):  # inside of an archive, drawn, or removed
            continue
        return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else []
    return []


def _decode(source: str | BinaryIO) -> Tensor:
    with open_image(source) as image:
        pixels: Tensor = to_rgb(image)
        return pixels
