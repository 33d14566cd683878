"""Recognise the image files and folders of a dataset, and report files outside it."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from modeling_detr.data.findings import Findings


IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "pbm"]
)
_LABEL_FOLDERS = ("annotations", "annotation", "anns", "ann", "xmls", "xml", "jsons", "json", "labels", "label")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "image", "imgs", "img")
_SPLIT_NAME = re.compile(r"(train(ing|val)?|val(id|idation)?|dev|eval|test(ing)?)[-_]?\d*", re.IGNORECASE)


def is_split_name(name: str) -> bool:
    """Whether a folder or file with this name usually is a split (train, valid, test2017, …)."""
    return _SPLIT_NAME.fullmatch(name) is not None


def split_in_name(stem: str) -> str | None:
    """The word of a file's stem that is the name of a split, as in `train-annotations-bbox` or `via_val`."""
    words = (stem, *re.split(r"[-_.\s]+", stem))
    return next((word for word in words if is_split_name(word)), None)


def is_image_name(name: str) -> bool:
    """Whether a file name has an image suffix, in any case; hidden files do not count."""
    stem, _, suffix = name.rpartition(".")
    return suffix.lower() in IMAGE_SUFFIXES and bool(stem) and not name.startswith(".")


def is_label_folder(name: str) -> bool:
    """Whether a folder with this name usually has annotations and no images."""
    return name.lower() in _LABEL_FOLDERS


def image_folders(folder: str, root: str) -> list[str]:
    """List the folders in `root` that may contain the images for annotations in `folder`, the nearest ones first.

    `x/annotations/y` → `x/annotations/y`, `x/JPEGImages/y`, `x/images/y`, …, `x/y`; `label_2` → `image_2`.
    """
    inner = os.path.relpath(folder, root)
    parts = [] if inner == "." or inner.startswith("..") else inner.split("/")
    places = [folder]
    for depth in reversed(range(len(parts))):
        before, after = parts[:depth], parts[depth + 1 :]
        if is_label_folder(parts[depth]):
            places += ["/".join([root, *before, name, *after]) for name in _IMAGE_FOLDERS]
            places.append("/".join([root, *before, *after]))
        other = re.sub("label", "image", parts[depth], flags=re.IGNORECASE)
        places.append("/".join([root, *before, other, *after]))
    places += [f"{place}/{name}" for place in (folder, root) for name in _IMAGE_FOLDERS]
    return list(dict.fromkeys(os.path.normpath(place) for place in [*places, root]))


def refuse_outside(
    paths: Iterable[str], roots: Sequence[str | Path | None], findings: Findings, where: object = None
) -> bool:
    """Report files and folders that are outside `roots`.

    This is the rule for every path that a dataset's files contain: images, labels, lists, the folder of the dataset.
    Folders in the dataset may be symbolic links, as on servers whose data is on another disk: they are part of it. A
    link that is a file, or a path with `..`, must lead to a place in the dataset.

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
    real_roots = [os.path.realpath(root) for root in roots if root is not None]
    allowed = tuple(f"{root.rstrip('/')}/" for root in real_roots)
    as_written = tuple(f"{os.path.abspath(root).rstrip('/')}/" for root in roots if root is not None)  # noqa: PTH100
    real: dict[str, str] = {}  # each folder is resolved once
    for path in paths:
        folder, name = os.path.split(path)
        try:
            if folder not in real:
                absolute = f"{os.path.abspath(folder)}/"  # noqa: PTH100
                followed = ".." not in folder.split("/") and absolute.startswith(as_written)
                real[folder] = real_roots[0] if followed else os.path.realpath(folder)
            place = os.path.realpath(path) if os.path.islink(path) else f"{real[folder]}/{name}"  # noqa: PTH114
        except ValueError:  # a name that no file can have
            place = path
        if not place.startswith(allowed):
            inside = False
            findings.error(
                "path outside",
                path if where is None else where,
                f"is outside the dataset's folder {real_roots[0]}, at {place}",
                "move it into the dataset's folder, or allow its folder",
                {"images": place.rpartition("/")[0] or "/"},
                image=path,
            )
    return inside


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
