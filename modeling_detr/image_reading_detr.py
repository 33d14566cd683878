"""Images that others have written, opened without waiting for a pipe and without running a program in them."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image


@contextmanager
def open_image(source: str | os.PathLike[str] | BinaryIO) -> Iterator[Image.Image]:
    """Opens an image.

    Args:
        source: A path, or an open file.

    Raises:
        ValueError: It is a pipe or a device, whose reading may never end, or an EPS program, which Pillow would run.
        OSError: It does not exist, or is not an image.
    """
    if isinstance(source, str | os.PathLike) and not stat.S_ISREG(Path(source).stat().st_mode):
        raise ValueError(f"image: {os.fspath(source)} is a folder, a pipe or a device, expected a file.")
    with Image.open(source) as image:
        if image.format == "EPS":
            raise ValueError("image: got an EPS program, expected an image; convert it to PNG.")
        yield image
