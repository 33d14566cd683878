"""Read the size and EXIF orientation of an image from its header, without decoding it."""

import io
import struct
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from modeling_detr.errors_detr import DatasetReadError


EXIF_ORIENTATION = 0x0112
# Pillow warns above 89 million pixels and rejects twice as many; datasets store satellite and slide images as tiles.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)


def header_size(path: str) -> tuple[int, int]:
    """Read the height and width of an image from its header, after applying its EXIF orientation.

    Raises:
        DatasetReadError: The file cannot be read, is not an image, or is implausibly large.
    """
    return header_sizes(path)[0]


def header_sizes(path: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read height and width after applying the EXIF orientation, and as stored; see `header_size`."""
    try:
        with warnings.catch_warnings():
            ignore_opening_warnings()
            with Image.open(image_source(path)) as image:
                width, height = image.size
                check_pixels(path, height, width)
                # Pillow decodes a whole PNG to look for EXIF data after its pixels, which hardly any file has.
                has_exif = image.format in ("JPEG", "MPO", "TIFF", "WEBP") or "exif" in image.info
                orientation = exif_orientation(image) if has_exif else 1
    except UnidentifiedImageError as error:
        raise DatasetReadError(
            path, f"not a readable image ({_num_bytes(path):,} bytes)", "replace or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise DatasetReadError(path, str(error), "scale it down, or remove it and its annotations") from error
    except DatasetReadError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow's PNG reader raises SyntaxError on broken chunks
        raise DatasetReadError(path, f"cannot be read ({error})", "replace or remove it") from error
    return ((width, height) if orientation in (5, 6, 7, 8) else (height, width)), (height, width)


def check_pixels(path: str, height: int, width: int) -> None:
    """Reject an implausibly large image before it is decoded and fills the memory.

    Raises:
        DatasetReadError: It has more than `MAX_PIXELS` pixels.
    """
    if height * width > MAX_PIXELS:
        raise DatasetReadError(
            path,
            f"{width}x{height} pixels (width x height), more than the limit of {MAX_PIXELS / 1e6:.0f} million",
            "cut it into tiles or scale it down, with its boxes, or remove it and its annotations",
        )


def exif_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of an image, 1 (upright) to 8; 1 if the data is broken or out of range."""
    with warnings.catch_warnings():
        ignore_opening_warnings()
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        except (SyntaxError, ValueError, struct.error):  # not valid EXIF data
            return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def ignore_opening_warnings() -> None:
    """Silence Pillow's warnings about size and EXIF data, which are checked here; use in `catch_warnings()`."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


def image_source(path: str) -> str | io.BytesIO:
    """Return what Pillow opens: the path of a file, or the bytes of the Arrow row at a virtual path.

    Raises:
        OSError: The row cannot be read.
    """
    if ".arrow?" not in path:
        return path
    from modeling_detr.data.arrow_rows import read_row  # imports pyarrow, which few datasets need

    return read_row(path)


def _num_bytes(path: str) -> int:
    source = image_source(path)
    return Path(source).stat().st_size if isinstance(source, str) else source.getbuffer().nbytes
