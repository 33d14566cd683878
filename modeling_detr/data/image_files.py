"""Where the image files of a dataset lie, and how large they are, without decoding one."""

import io
import os
import re
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from modeling_detr.data.findings import Findings


IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "pbm"]
)
EXIF_ORIENTATION = 0x0112
# Pillow warns above 89 million pixels and refuses twice that; satellite and slide images of datasets are tiles.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
_SPLIT_NAME = re.compile(r"(train(ing|val)?|val(id|idation)?|dev|eval|test(ing)?)[-_]?\d*", re.IGNORECASE)


def is_split_name(name: str) -> bool:
    """Whether a folder or file of that name is a split by custom (train, valid, test2017, …)."""
    return _SPLIT_NAME.fullmatch(name) is not None


def is_image_name(name: str) -> bool:
    """Whether the name ends as image files do, in upper or lower case; hidden files are none."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() in IMAGE_SUFFIXES and bool(stem) and not name.startswith(".")


def refuse_outside(paths: Iterable[str], roots: Sequence[str | Path | None], findings: Findings) -> None:
    """Refuses files that lie elsewhere than in `roots` once symbolic links and `..` are followed; each folder is
    followed once.

    Raises:
        ValueError: One does; the message names it.
    """
    allowed = [os.path.realpath(root) for root in roots if root is not None]
    real: dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        place = os.path.realpath(path) if os.path.islink(path) else f"{real[folder]}/{name}"  # noqa: PTH114
        if not any(place.startswith(f"{root}/") for root in allowed):
            findings.error(
                "path outside",
                f"{path}:",
                f"lies outside the dataset's folder {allowed[0]}, at {place}",
                f"put it there, or allow the folder that it lies in: --images {Path(place).parent}",
                image=path,
            )


def image_source(path: str) -> str | io.BytesIO:
    """What Pillow opens for the path of an image record: the path, or the bytes in the row that a virtual one names.

    Raises:
        OSError: It names a row of a file that cannot be read.
    """
    if ".arrow?" not in path:
        return path
    from modeling_detr.data.arrow_images import read_row  # with pyarrow only where a dataset needs it

    return read_row(path)


class FolderListings:
    """Lists each folder once, so that a hundred thousand names are looked up without as many calls to the disk.

    Folders are strings, and `name`s may hold sub-folders: path objects would take most of the time.
    """

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._lower: dict[str, dict[str, str]] = {}
        self._image_stems: dict[str, set[str]] = {}

    def names(self, folder: str) -> set[str]:
        """The names in `folder`; none if it is not a folder."""
        if folder not in self._names:
            is_folder = Path(folder).is_dir()
            self._names[folder] = {entry.name for entry in os.scandir(folder)} if is_folder else set()
        return self._names[folder]

    def images(self, folder: str) -> list[str]:
        """The paths of the image files that lie directly in `folder`, sorted by name."""
        return [f"{folder}/{name}" for name in sorted(self.names(folder)) if is_image_name(name)]

    def image_stems(self, folder: str) -> set[str]:
        """The names, without their endings, of the image files that lie directly in `folder`."""
        if folder not in self._image_stems:
            images = filter(is_image_name, self.names(folder))
            self._image_stems[folder] = {name.rpartition(".")[0] for name in images}
        return self._image_stems[folder]

    def find(self, folder: str, name: str) -> str | None:
        """The path of `name` in `folder`, exactly or, failing that, in another case; None if there is neither."""
        parent, _, last = name.rpartition("/")
        place = f"{folder}/{parent}" if parent else folder
        if last in self.names(place):
            return f"{place}/{last}"
        if place not in self._lower:
            self._lower[place] = {entry.lower(): entry for entry in sorted(self.names(place), reverse=True)}
        other_case = self._lower[place].get(last.lower())
        return f"{place}/{other_case}" if other_case else None


def locate_images(names: Sequence[str], folders: Iterable[Path]) -> list[str | None]:
    """The path of each image, looked for in `folders` in turn; None where there is none.

    A name may hold folders of the machine that wrote it; if it is not found as it stands, its last part is looked for.
    """
    places, listings = [str(folder) for folder in folders], FolderListings()
    return [_locate(name.replace("\\", "/").removeprefix("./"), places, listings) for name in names]


def _locate(name: str, places: Sequence[str], listings: FolderListings) -> str | None:
    last = name.rpartition("/")[2]
    if name.startswith("/"):
        if Path(name).is_file():
            return name
        name = last
    for candidate in (name,) if name == last else (name, last):
        for place in places:
            path = listings.find(place, candidate)
            if path is not None:
                return path
    return None


def header_size(path: str) -> tuple[int, int]:
    """Height and width of an image file from its header, after its EXIF orientation.

    Raises:
        OSError: The file cannot be read, is no image, or is absurdly large; the message names it.
    """
    return header_sizes(path)[0]


def header_sizes(path: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image after its EXIF orientation, and as it is stored; see `header_size`."""
    try:
        with warnings.catch_warnings():
            ignore_warnings_of_opening()
            with Image.open(image_source(path)) as image:
                width, height = image.size
                check_pixels(path, height, width)
                # Pillow decodes a whole PNG to look for EXIF data behind its pixels, where hardly any has it.
                has_exif = image.format in ("JPEG", "MPO", "TIFF", "WEBP") or "exif" in image.info
                orientation = exif_orientation(image) if has_exif else 1
    except UnidentifiedImageError as error:
        raise OSError(f"{path}: not an image that can be read ({_bytes(path)}); replace or remove it.") from error
    except Image.DecompressionBombError as error:
        raise OSError(f"{path}: {error}; scale it down, or remove it and its annotations.") from error
    except TooManyPixelsError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow's PNG reader raises SyntaxError on broken chunks
        raise OSError(f"{path}: cannot be read: {error}; replace or remove it.") from error
    return ((width, height) if orientation in (5, 6, 7, 8) else (height, width)), (height, width)


class TooManyPixelsError(OSError):
    """An image is so large that it is no picture of a dataset, but a mistake or an attack on memory."""


def check_pixels(path: str, height: int, width: int) -> None:
    """Refuses an image of absurd size, before it is decoded.

    Raises:
        TooManyPixelsError: It has more than `MAX_PIXELS` pixels.
    """
    if height * width > MAX_PIXELS:
        raise TooManyPixelsError(
            f"{path}: the image is {width}x{height} (width x height), more than {MAX_PIXELS / 1e6:.0f} million "
            f"pixels, and is not decoded; cut it into tiles or scale it down, with its boxes, or remove it and its "
            f"annotations."
        )


def ignore_warnings_of_opening() -> None:
    """Within `warnings.catch_warnings()`: size and EXIF data are judged here, each image with a message of its own."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 (upright) to 8; 1 where the data is broken or says something else."""
    with warnings.catch_warnings():
        ignore_warnings_of_opening()
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        except (SyntaxError, ValueError, struct.error):  # what its bytes say is not even EXIF
            return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _bytes(path: str) -> str:
    source = image_source(path)
    size = Path(source).stat().st_size if isinstance(source, str) else source.getbuffer().nbytes
    return f"{size} bytes"
