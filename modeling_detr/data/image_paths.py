"""Find the image files of a dataset, and report files outside it."""

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from modeling_detr.data.findings import Findings
from modeling_detr.input_files import is_file


IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "pbm"]
)
MAX_PARTS = 32  # of a path that is looked up by its last parts
_OLD_ENCODINGS = ("cp437", "latin-1")  # of ZIP files from Windows and of old Unix systems
_SPLIT_NAME = re.compile(r"(train(ing|val)?|val(id|idation)?|dev|eval|test(ing)?)[-_]?\d*", re.IGNORECASE)


def is_split_name(name: str) -> bool:
    """Whether a folder or file with this name usually is a split (train, valid, test2017, …)."""
    return _SPLIT_NAME.fullmatch(name) is not None


def is_image_name(name: str) -> bool:
    """Whether a file name has an image suffix, in any case; hidden files do not count."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() in IMAGE_SUFFIXES and bool(stem) and not name.startswith(".")


def refuse_outside(
    paths: Iterable[str], roots: Sequence[str | Path | None], findings: Findings, where: object = None
) -> bool:
    """Report files and folders that are outside `roots` after symbolic links and `..` are resolved.

    This is the rule for every path that a dataset's files contain: images, labels, lists, the folder of the dataset.
    The root itself may be a symbolic link.

    Args:
        paths: The paths; those of folders end with a slash.
        roots: The dataset's folder, and the folders that the user has allowed; None: not set.
        findings: Gets an error for each path outside.
        where: Location to report; None: the path itself.

    Returns:
        Whether all paths are inside.

    Raises:
        DatasetError: A path is outside, if `findings` raises.
    """
    inside = True
    allowed = [os.path.realpath(root) for root in roots if root is not None]
    real: dict[str, str] = {}  # each folder is resolved once
    for path in paths:
        folder, name = os.path.split(path)
        try:
            if folder not in real:
                real[folder] = os.path.realpath(folder)
            place = os.path.realpath(path) if os.path.islink(path) else f"{real[folder]}/{name}"  # noqa: PTH114
        except ValueError:  # a name that no file can have
            place = path
        if not any(place.startswith(f"{root.rstrip('/')}/") for root in allowed):
            inside = False
            findings.error(
                "path outside",
                path if where is None else where,
                f"is outside the dataset's folder {allowed[0]}, at {place}",
                "move it into the dataset's folder, or allow its folder",
                {"images": place.rpartition("/")[0] or "/"},
                image=path,
            )
    return inside


class FolderListings:
    """Lists each folder only once, so that a hundred thousand names are looked up with few system calls.

    Folders are strings, because `Path` objects would take most of the time. Names may contain sub-folders.
    """

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._alike: dict[str, dict[str, str]] = {}
        self._image_stems: dict[str, set[str]] = {}

    def names(self, folder: str) -> set[str]:
        """The names in `folder`; empty if it is not a folder."""
        if folder not in self._names:
            self._names[folder] = set()
            with contextlib.suppress(OSError, ValueError):  # ValueError: a name that no folder can have
                self._names[folder] = {entry.name for entry in os.scandir(folder)}
        return self._names[folder]

    def images(self, folder: str) -> list[str]:
        """The paths of the image files directly in `folder`, sorted by name."""
        return [f"{folder}/{name}" for name in sorted(self.names(folder)) if is_image_name(name)]

    def image_stems(self, folder: str) -> set[str]:
        """The stems of the image files directly in `folder`."""
        if folder not in self._image_stems:
            images = filter(is_image_name, self.names(folder))
            self._image_stems[folder] = {name.rpartition(".")[0] for name in images}
        return self._image_stems[folder]

    def find(self, folder: str, name: str) -> str | None:
        """Find `name` in `folder` and return its path; None if it does not exist.

        If no file has exactly this name, it may differ in case, in how accents are composed, or, in old archives, in
        its encoding.
        """
        parent, _, last = name.rpartition("/")
        place = f"{folder}/{parent}" if parent else folder
        if last in self.names(place):
            return f"{place}/{last}"
        if place not in self._alike:
            entries = sorted(self.names(place), reverse=True)
            self._alike[place] = {_folded(reading): entry for entry in entries for reading in _readings(entry)}
        alike = self._alike[place].get(_folded(last))
        return f"{place}/{alike}" if alike else None


def walk_folders(root: str | Path, max_depth: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Walk through a folder and the folders in it, in order of their names, without hidden ones.

    Links are followed, but each folder is visited once, so that links to a parent do not multiply.

    Args:
        root: The folder.
        max_depth: Number of folders to go down; None: all.

    Yields:
        Each folder with the sorted names of its files.
    """
    waiting, visited = [(str(root), 0)], set[tuple[int, int]]()
    while waiting:
        folder, depth = waiting.pop()
        try:
            status = Path(folder).stat()
            with os.scandir(folder) as entries:
                is_inner = {entry.name: _is_folder(entry) for entry in entries}
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        names = sorted(is_inner)
        yield folder, [name for name in names if not is_inner[name]]
        if max_depth is None or depth < max_depth:
            inner = [name for name in names if is_inner[name] and not name.startswith(".")]
            waiting += [(f"{folder.rstrip('/')}/{name}", depth + 1) for name in reversed(inner)]


def folders_in(parent: Path) -> list[Path]:
    """List the folders in `parent`, which may also contain a hundred thousand images, without hidden ones."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()


def _readings(name: str) -> Iterator[str]:
    """A name on disk; if it is not UTF-8, first as text in the encodings of old archives."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        for encoding in _OLD_ENCODINGS:
            yield os.fsencode(name).decode(encoding)
    yield name


def locate_images(names: Sequence[str], folders: Iterable[Path]) -> list[str | None]:
    """Find the path of each image, searching `folders` in order; None if an image is in none of them.

    Names may contain folders of another machine: if a name is not found as written, only its last part is searched.
    """
    places, listings = [str(folder) for folder in folders], FolderListings()
    return [_locate_on_any_system(name, places, listings) for name in names]


def _locate_on_any_system(name: str, places: Sequence[str], listings: FolderListings) -> str | None:
    """Find an image by its name, then by the name with Windows' separators."""
    found = _locate(name.removeprefix("./"), places, listings)
    if found is None and "\\" in name:
        return _locate(name.replace("\\", "/").removeprefix("./"), places, listings)
    return found


def _locate(name: str, places: Sequence[str], listings: FolderListings) -> str | None:
    last = name.rpartition("/")[2]
    if name.startswith("/"):
        if is_file(name):
            return name
        name = last
    for candidate in (name,) if name == last else (name, last):
        for place in places:
            path = listings.find(place, candidate)
            if path is not None:
                return path
    return None
