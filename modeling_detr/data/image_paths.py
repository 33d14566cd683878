"""Where the image files of a dataset are: names, folders, and files outside the dataset."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from modeling_detr.data.findings import Findings


IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "pbm"]
)
_SPLIT_NAME = re.compile(r"(train(ing|val)?|val(id|idation)?|dev|eval|test(ing)?)[-_]?\d*", re.IGNORECASE)


def is_split_name(name: str) -> bool:
    """Whether a folder or file of this name is usually a split (train, valid, test2017, …)."""
    return _SPLIT_NAME.fullmatch(name) is not None


def is_image_name(name: str) -> bool:
    """Whether the name has the ending of an image file, in upper or lower case; hidden files do not count."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() in IMAGE_SUFFIXES and bool(stem) and not name.startswith(".")


def refuse_outside(paths: Iterable[str], roots: Sequence[str | Path | None], findings: Findings) -> None:
    """Report files outside `roots` once symbolic links and `..` are resolved.

    Raises:
        DatasetError: A file is outside, if `findings` raises.
    """
    allowed = [os.path.realpath(root) for root in roots if root is not None]
    real: dict[str, str] = {}  # each folder is resolved once
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        place = os.path.realpath(path) if os.path.islink(path) else f"{real[folder]}/{name}"  # noqa: PTH114
        if not any(place.startswith(f"{root}/") for root in allowed):
            findings.error(
                "path outside",
                path,
                f"is outside the dataset's folder {allowed[0]}, at {place}",
                "move it there, or allow its folder",
                {"images": str(Path(place).parent)},
                image=path,
            )


class FolderListings:
    """Lists each folder once, so that a hundred thousand names are looked up with few calls to the disk.

    Folders are strings, and names may contain sub-folders: path objects would take most of the time.
    """

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._lower: dict[str, dict[str, str]] = {}
        self._image_stems: dict[str, set[str]] = {}

    def names(self, folder: str) -> set[str]:
        """The names in `folder`; empty if it is not a folder."""
        if folder not in self._names:
            is_folder = Path(folder).is_dir()
            self._names[folder] = {entry.name for entry in os.scandir(folder)} if is_folder else set()
        return self._names[folder]

    def images(self, folder: str) -> list[str]:
        """The paths of the image files directly in `folder`, sorted by name."""
        return [f"{folder}/{name}" for name in sorted(self.names(folder)) if is_image_name(name)]

    def image_stems(self, folder: str) -> set[str]:
        """The names, without their endings, of the image files directly in `folder`."""
        if folder not in self._image_stems:
            images = filter(is_image_name, self.names(folder))
            self._image_stems[folder] = {name.rpartition(".")[0] for name in images}
        return self._image_stems[folder]

    def find(self, folder: str, name: str) -> str | None:
        """The path of `name` in `folder`, as written or else in another case; None if neither exists."""
        parent, _, last = name.rpartition("/")
        place = f"{folder}/{parent}" if parent else folder
        if last in self.names(place):
            return f"{place}/{last}"
        if place not in self._lower:
            self._lower[place] = {entry.lower(): entry for entry in sorted(self.names(place), reverse=True)}
        other_case = self._lower[place].get(last.lower())
        return f"{place}/{other_case}" if other_case else None


def locate_images(names: Sequence[str], folders: Iterable[Path]) -> list[str | None]:
    """Find the path of each image, searching `folders` in turn; None where it is in none of them.

    A name may contain folders of the machine that wrote it; if it is not found as written, its last part is searched.
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
