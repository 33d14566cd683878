"""The files that stand for remote images while a remote dataset is being opened.

A format reads the header of an image from its file. In a mirror, that file is empty, and a reader gets the image.
"""

import contextlib
from collections.abc import Iterator

from modeling_detr.structures_detr import ImageReader


_readers: dict[str, ImageReader] = {}  # folder, with a slash at its end → the reader of its images


@contextlib.contextmanager
def stand_for(folder: str, reader: ImageReader) -> Iterator[None]:
    """Have `reader` read the image files in `folder` during the block."""
    _readers[f"{folder}/"] = reader
    try:
        yield
    finally:
        del _readers[f"{folder}/"]


def reader_of(path: str) -> ImageReader | None:
    """The reader of an image that a file stands for; None for ordinary files."""
    return next((reader for folder, reader in _readers.items() if path.startswith(folder)), None)
