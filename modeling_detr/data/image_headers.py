"""Read the size and EXIF orientation of an image from its header, without decoding it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from modeling_detr.data.remote.placeholders import reader_of
from modeling_detr.errors_detr import DatasetNotFoundError, DatasetReadError, DetrError, FileReadError
from modeling_detr.input_files import read_ends, require_file
from modeling_detr.structures_detr import ImageReader


EXIF_ORIENTATION = 0x0112
_HEAD_BYTES = 1 << 15  # of a JPEG file, and as many at its end, where EXIF data is looked for
_LEAVE_OUT = "train on a copy of the dataset without it (detr data check DATA --fix OUT)"
UNREADABLE_REMEDY = f"replace it, or {_LEAVE_OUT}"
# Pillow warns above 89 million pixels and rejects twice as many; datasets store satellite and slide images as tiles.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)


def header_size(path: str, reader: ImageReader | None = None) -> tuple[int, int]:
    """Read the height and width of an image from its header, after applying its EXIF orientation.

    Args:
        path: Path of the image.
        reader: Reads an image that is not a file; see `ImageRecord`.

    Raises:
        DatasetNotFoundError: The image does not exist.
        DatasetReadError: It cannot be read, is not an image, or is implausibly large.
    """
    return header_sizes(path, reader)[0]


def header_sizes(path: str, reader: ImageReader | None = None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read height and width after applying the EXIF orientation, and as stored; see `header_size`."""
    (height, width), orientation = stored_size(path, reader)
    return ((width, height) if orientation in (5, 6, 7, 8) else (height, width)), (height, width)


def stored_size(path: str, reader: ImageReader | None = None) -> tuple[tuple[int, int], int]:
    """Read height and width of the stored image, and its EXIF orientation, 1 to 8; see `header_size`."""
    source = image_source(path, reader)
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2]
        return (height, width), 1
    with opened_image(path, source) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for EXIF data after its pixels, which hardly any file has.
        has_exif = image.format in ("JPEG", "MPO", "TIFF", "WEBP") or "exif" in image.info
        return (height, width), exif_orientation(image) if has_exif else 1


def may_be_turned(path: str, reader: ImageReader | None = None) -> bool:
    """Whether an image may have an orientation: False for JPEG files without EXIF data, in a third of the time."""
    if reader is not None or reader_of(path) is not None:
        return True
    head = read_ends(path, _HEAD_BYTES)
    return not head.startswith(b"\xff\xd8") or b"Exif" in head or b"tiff:Orientation" in head


@contextmanager
def opened_image(path: str, source: str | BinaryIO, kind: str = "image") -> Iterator[Image.Image]:
    """Open an image of at most `MAX_PIXELS` pixels. Everything that Pillow raises in the block is a DatasetReadError.

    Args:
        path: The image's path, for messages.
        source: A file, or its content.
        kind: Its name in messages.

    Raises:
        DatasetNotFoundError: It does not exist.
        DatasetReadError: It cannot be read or decoded, is not an image, or is implausibly large.
    """
    try:
        if isinstance(source, str) and require_file(source) == 0:  # as files of the kernel, which may block
            raise UnidentifiedImageError
        with warnings.catch_warnings():
            ignore_opening_warnings()
            opened = Image.open(source)
        with opened as image:
            if image.format == "EPS":  # Pillow would run Ghostscript on it
                raise DatasetReadError(path, f"the {kind} is an EPS program", "convert it to PNG")
            check_pixels(path, image.height, image.width)
            yield image
    except FileNotFoundError as error:
        raise DatasetNotFoundError(path, f"no such {kind}", "restore it, or remove its annotations") from error
    except FileReadError as error:
        raise DatasetReadError(path, error.problem, UNREADABLE_REMEDY) from error
    except DetrError:
        raise
    except UnidentifiedImageError as error:
        raise DatasetReadError(
            path,
            f"the {kind} cannot be decoded (not a readable image, {_num_bytes(source):,} bytes)",
            UNREADABLE_REMEDY,
        ) from error
    except Exception as error:  # Pillow raises almost anything for a hostile image
        raise DatasetReadError(
            path,
            f"the {kind} cannot be decoded ({_reason(error)})",
            UNREADABLE_REMEDY,
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("image: ").rstrip(".") or type(error).__name__


def check_pixels(path: str, height: int, width: int) -> None:
    """Reject an implausibly large image before it is decoded and fills the memory.

    Raises:
        DatasetReadError: It has more than `MAX_PIXELS` pixels.
    """
    if height * width > MAX_PIXELS:
        raise DatasetReadError(
            path,
            f"{width}x{height} pixels (width x height), more than the limit of {MAX_PIXELS / 1e6:.0f} million",
            f"cut it into tiles or scale it down, with its boxes, or {_LEAVE_OUT}",
        )


def exif_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of an image, 1 (upright) to 8; 1 if the data is broken or out of range."""
    with warnings.catch_warnings():
        ignore_opening_warnings()
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:  # not valid EXIF data, for which Pillow raises almost anything
            return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def ignore_opening_warnings() -> None:
    """Silence Pillow's warnings; size and EXIF problems raise this package's own errors. Use in `catch_warnings()`."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


def image_source(path: str, reader: ImageReader | None) -> str | BinaryIO | NDArray[np.uint8]:
    """Return what can be decoded: the path of a file, or what `reader` returns, bytes or pixels (H, W, 3) uint8.

    Raises:
        DatasetReadError: The reader failed, or returned something else.
    """
    reader = reader or reader_of(path)
    if reader is None:
        return path
    try:
        source = reader(path)
    except DetrError:
        raise
    except Exception as error:  # of any library that a reader uses
        problem = f"the image cannot be read ({type(error).__name__}: {error})"
        raise DatasetReadError(path, problem, "restore it, or remove its annotations") from error
    if isinstance(source, np.ndarray) and (source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3):
        problem = f"its reader returned {source.dtype} pixels of shape {source.shape}, expected uint8 (H, W, 3)"
        raise DatasetReadError(path, problem)
    return source


def _num_bytes(source: str | BinaryIO) -> int:
    return Path(source).stat().st_size if isinstance(source, str) else source.seek(0, os.SEEK_END)
