"""Copy the images of a dataset to a converted one, each once and under a unique name."""

import io
import itertools
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.data.image_decoding import read_image
from modeling_detr.data.image_headers import header_size, image_source, opened_image
from modeling_detr.data.image_paths import is_image_name
from modeling_detr.structures_detr import DetectionIndex, ImageRecord


UNLISTED = "unlisted"  # name of the split for images that are in no split
# Separators, characters that a file system rejects, control characters, and bytes that are not UTF-8
_REJECTED = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)  # on Windows
_MAX_BYTES = 180  # of a name; file systems allow 255, and names get prefixes, suffixes and numbers


class ImageCopies:
    """The images of a converted dataset, each in the folder of the smallest split that contains it.

    Attributes:
        home: The written split in whose folder each image is stored.
        name: File name of each image.
        splits: Name of each written split → indices of its images; images in no split are in the split `UNLISTED`.
        notes: Which images were re-encoded.
    """

    def __init__(self, index: DetectionIndex, folder: Path, place_of: Callable[[str], str], link: bool) -> None:
        """Copy the images.

        Args:
            index: The dataset.
            folder: Folder of the converted dataset.
            place_of: Maps a split to the folder of its images, relative to `folder`. Names are unique in each folder.
            link: Use hard links where possible.

        Raises:
            DatasetError: An image does not have the size in its annotations.
            OSError: An image cannot be read or written.
        """
        self._folder, self._place_of = folder, place_of
        self.home = [UNLISTED] * len(index)
        self.name: list[str] = []
        names = file_names_of(index.splits)
        for split, images in home_splits(index).items():
            for image in images.tolist():
                self.home[image] = names.get(split, UNLISTED)
        self.splits = {names[split]: members for split, members in index.splits.items()}
        unlisted = np.flatnonzero([home == UNLISTED for home in self.home])
        if len(unlisted):
            self.splits[UNLISTED] = unlisted
        self.notes = self._copy_all(index, link)

    @property
    def files(self) -> list[str]:
        """The path of each image in the converted dataset, relative to its folder."""
        return [str(Path(self._place_of(home), name)) for home, name in zip(self.home, self.name, strict=True)]

    def path(self, image: int) -> Path:
        """The path of an image in the converted dataset."""
        return self._folder / self._place_of(self.home[image]) / self.name[image]

    def _copy_all(self, index: DetectionIndex, link: bool) -> list[str]:
        taken: set[tuple[str, str]] = set()
        rewritten = []
        for image, record in enumerate(index.images):
            place = self._place_of(self.home[image])
            source = Path(record.path)
            is_file = record.reader is None and source.is_file()
            content, name = (None, source.name) if is_file and _fits(record) else image_file(record, image)
            stem = _unique_stem(place, Path(name).stem, source.parent.name if is_file else "", image, taken)
            self.name.append(f"{stem}{_REJECTED.sub('_', Path(name).suffix).rstrip(' .')}")
            self.path(image).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                _copy(source, self.path(image), link)
            else:
                self.path(image).write_bytes(content)
                if is_file:
                    rewritten.append(record.path)
        if not rewritten:
            return []
        were = "image was" if len(rewritten) == 1 else "images were"
        return [
            f"{len(rewritten)} {were} annotated without the EXIF orientation, re-encoded as PNG; the first: "
            f"{rewritten[0]}."
        ]


def home_splits(index: DetectionIndex) -> dict[str, NDArray[np.int64]]:
    """The images of each split, each only in the smallest that contains it; those that are in none are `UNLISTED`."""
    home = np.full(len(index), -1, np.int64)
    names = list(index.splits)
    for split in sorted(names, key=lambda name: (-len(index.splits[name]), name)):
        home[index.splits[split]] = names.index(split)
    if (home == -1).any():
        names = names if UNLISTED in names else [*names, UNLISTED]
        home[home == -1] = names.index(UNLISTED)
    homes = {name: np.flatnonzero(home == place) for place, name in enumerate(names)}
    return {name: images for name, images in homes.items() if len(images)}


def image_file(record: ImageRecord, image: int) -> tuple[bytes, str]:
    """The bytes and the name of an image's file.

    It is a PNG file of its pixels if the annotations ignore its EXIF orientation, or if there are only pixels.

    Raises:
        DatasetError: The image does not have the size in its annotations.
        OSError: It cannot be read.
    """
    name = PurePath(record.path).name
    known = is_image_name(name)
    stem = PurePath(name).stem if known or record.reader is None else f"image_{image}"
    source = image_source(record.path, record.reader)
    if not isinstance(source, np.ndarray) and _fits(record):
        content = Path(source).read_bytes() if isinstance(source, str) else source.read()
        return content, name if known else f"{stem}.{_suffix_of(record.path, content)}"
    buffer = io.BytesIO()
    Image.fromarray(read_image(record).permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue(), f"{stem or f'image_{image}'}.png"


def _fits(record: ImageRecord) -> bool:
    """Whether an image can be copied as it is: it has the size of its annotations, also after its EXIF orientation."""
    return not record.ignores_exif and header_size(record.path, record.reader) == (record.height, record.width)


def _suffix_of(path: str, content: bytes) -> str:
    with opened_image(path, io.BytesIO(content)) as image:
        return {"JPEG": "jpg", "MPO": "jpg"}.get(image.format or "PNG", (image.format or "PNG").lower())


def _copy(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)


def _unique_stem(place: str, stem: str, parent: str, image: int, taken: set[tuple[str, str]]) -> str:
    """Choose the stem of an image's file name, unique in the folder `place`, and add it to `taken`."""
    candidates = [stem, f"{parent}_{stem}".lstrip("_"), f"{stem}_{image}", f"image_{image}"]
    numbered = (f"image_{image}_{number}" for number in itertools.count(2))
    free = next(
        name
        for name in map(file_name_of, itertools.chain(candidates, numbered))
        if (place, _folded(name)) not in taken
    )
    taken.add((place, _folded(free)))
    return free


def file_names_of(names: Iterable[str]) -> dict[str, str]:
    """Map names to valid file names that differ in more than case; names that are valid are kept if possible."""
    names = list(dict.fromkeys(names))
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names, key=lambda name: file_name_of(name) != name):  # stable: valid names first
        valid = file_name_of(name)
        numbered = (f"{valid}_{number}" for number in range(2, len(names) + 2))
        free = next(candidate for candidate in (valid, *numbered) if _folded(candidate) not in taken)
        taken.add(_folded(free))
        chosen[name] = free
    return {name: chosen[name] for name in names}


def file_name_of(name: str) -> str:
    """Convert any text from a dataset (a split, a class, an image's name) to a valid name of a file or folder.

    The result is one part of a path: it has no separators and is not empty, `.`, `..`, hidden, a drive, a device of
    Windows, or too long. Different names may become the same; see `file_names_of`.
    """
    valid = _REJECTED.sub("_", name).rstrip(" .") or "_"
    valid = re.sub(r"^[. ]+", lambda start: "_" * len(start[0]), valid)
    valid = valid.encode()[:_MAX_BYTES].decode(errors="ignore").rstrip(" .")
    return f"_{valid}" if _RESERVED.fullmatch(valid) else valid


def _folded(name: str) -> str:
    """The name as file systems that ignore case and Unicode normalisation compare it."""
    return unicodedata.normalize("NFC", name).lower()
