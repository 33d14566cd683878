"""The description of a YOLO dataset: its data.yaml, or its list of class names."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_detr.data.file_search import MAX_PARTS, FolderListings
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.formats.written_values import to_integer, to_text
from modeling_detr.data.image_paths import is_split_name, refuse_outside
from modeling_detr.data.labels import MAX_CLASSES
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, FileContentError
from modeling_detr.input_files import is_file, is_folder, read_text, read_yaml
from modeling_detr.structures_detr import UNSPLIT


SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
OTHER_KEYS = (
    "path",
    "names",
    "nc",
    "download",
    "kpt_shape",
    "flip_idx",
    "channels",
    "task",
)  # of data.yaml, not splits
POLYGON_TASK = "segment"  # value of the key 'task', in Ultralytics' word, if label lines are polygons
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "classes.names")


@dataclass(frozen=True)
class Description:
    """The description of a dataset: its YAML file, or its list of class names.

    Attributes:
        source: The file.
        folder: The dataset's folder, which contains the file.
        root: The folder that split paths are relative to.
        names: Class id in the label files → name.
        splits: Split → its folders or image lists.
        has_keypoints: Whether label lines continue with keypoints after the box.
        has_polygons: Whether label lines are polygons.
        images: The folder that the user allows; see `yolo.read_yolo`.
    """

    source: Path
    folder: Path
    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]]
    has_keypoints: bool = False
    has_polygons: bool = False
    images: str | Path | None = None


def find_yolo_file(path: Path) -> Path | None:
    """Find the YAML file or list of class names of the YOLO dataset at `path`; None if there is none."""
    broken = path / "data.yaml"  # not recognised, so that reading it explains what is wrong
    return find_yaml(path) or find_class_names(path) or (broken if path.is_dir() and broken.exists() else None)


def find_yaml(path: Path) -> Path | None:
    """Find the YAML file of the YOLO dataset at `path`; None if there is none that can be read."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda file: (file.stem != "data", file.name))
    for file in files:
        try:
            content = read_yaml(file)
        except (OSError, FileContentError):
            continue
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            return file
    return None


def find_class_names(path: Path) -> Path | None:
    """Find the list of class names of the YOLO dataset at `path`, which has no YAML file; None if there is none."""
    if path.is_file():
        return None
    folders = [path, path / "labels", *(child for child in sorted(path.glob("*")) if is_split_name(child.name))]
    return next((folder / name for folder in folders for name in NAME_FILES if (folder / name).is_file()), None)


def describe(file: Path, path: Path, images: str | Path | None, findings: Findings) -> Description:
    """Read the description of a dataset.

    Args:
        file: Its YAML file or list of class names.
        path: The dataset's folder.
        images: See `yolo.read_yolo`.
        findings: Collects problems.

    Raises:
        FileReadError: The file cannot be read.
        ValueError: Its content is invalid.
    """
    if file.suffix.lower() not in (".yaml", ".yml"):
        lines = read_text(file).splitlines()
        names = {class_id: line.strip() for class_id, line in enumerate(lines) if line.strip()}
        _check_count(file, len(names))
        return Description(file, path, path, names, _splits_by_folder(path), images=images)

    content = read_yaml(file, text_keys=["names"])
    if not isinstance(content, dict):
        raise DatasetError(file, f"got a {type(content).__name__}, expected a mapping with 'names' and 'train'")
    root = _root(file, content.get("path"), images, findings)
    splits = _named_splits(file, content, root, images, findings) or _splits_by_folder(root)
    names = _names(file, content, findings)
    has_polygons = content.get("task") == POLYGON_TASK
    return Description(file, file.parent, root, names, splits, "kpt_shape" in content, has_polygons, images)


def _named_splits(
    file: Path, content: Mapping[str, Any], root: Path, images: str | Path | None, findings: Findings
) -> dict[str, list[Path]]:
    """Locate the splits that the YAML file names; those that are not in the dataset are left out, unless all are."""
    splits: dict[str, list[Path]] = {}
    absent: list[tuple[str, str]] = []
    for key in SPLIT_KEYS:
        values = content.get(key)
        for value in (values if isinstance(values, list) else [values]) if values else []:
            if not isinstance(value, str):
                message = f"{key} is {value!r}, expected the path of a folder of images or of a list of them"
                findings.error("missing file", file, message, f"correct '{key}'")
                continue
            place = _split_place(value, root)
            if place is None:
                absent.append((key, value))
            elif _is_within(place, root) or refuse_outside(
                [str(place) if is_file(place) else f"{place}/"], [file.parent, images], findings
            ):
                splits.setdefault(key, []).append(place)
    messages = [f"{key} is '{value}', but {root.resolve()} has no such folder or list" for key, value in absent]
    if absent and not splits:
        remedy = f"set 'path' to the dataset's folder, and '{absent[0][0]}' to a folder of images or a list of them"
        findings.error("missing file", file, messages[0], remedy, raises=DatasetNotFoundError)
    elif absent:
        findings.warn(
            "split not there",
            f"{file}: {'; '.join(messages)}. The dataset is read without it.",
            "the dataset is read without it",
            [(file, message) for message in messages],
        )
    return splits


def _names(file: Path, content: Mapping[str, Any], findings: Findings) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None and type(count) is int and count > 0:
        _check_count(file, count)
        return {class_id: f"class_{class_id}" for class_id in range(count)}
    try:
        result = {to_integer(class_id): to_text(name) for class_id, name in names.items()} if names else {}
    except (AttributeError, ValueError):
        raise DatasetError(
            file, f"'names': got {names!r}, expected a list of class names, or a mapping from class id to name"
        ) from None
    if not result:
        raise DatasetError(file, "no 'names'", "list the classes under 'names:'")
    _check_count(file, len(result))
    if count is not None and count != len(result):
        message = f"nc is {count}, but 'names' lists {counted(len(result), 'class', 'classes')}"
        findings.error("category", file, message, "make them agree")
    return result


def _check_count(file: Path, count: int) -> None:
    if count > MAX_CLASSES:
        raise DatasetError(file, f"{count:,} classes, more than the limit of {MAX_CLASSES:,}", "correct the file")


def _root(file: Path, path: Any, images: str | Path | None, findings: Findings) -> Path:
    """Find the folder that 'path:' names, relative to the file or to the working directory; else the file's own."""
    if path is None:
        return file.parent
    written = Path(str(path))
    with contextlib.suppress(RuntimeError):  # a user who does not exist
        written = written.expanduser()
    for candidate in (written if written.is_absolute() else file.parent / written, written):
        if is_folder(candidate):
            inside = refuse_outside([f"{candidate}/"], [file.parent, images], findings, f"{file}, 'path: {path}'")
            return candidate if inside else file.parent
    if str(path) not in ("", "."):
        message = f"'path: {path}' does not exist"
        used = f"{file.parent} is used instead"
        findings.warn("path", f"{file}: {message}; {used}.", used, [(file, message)])
    return file.parent


def _split_place(value: str, root: Path) -> Path | None:
    """Locate a split of the YAML file: as written if that is in the root, else its last parts in the root, else as
    written."""
    written = Path(value.replace("\\", "/"))
    straight = root / written
    exists = is_file(straight) or is_folder(straight)
    if exists and _is_within(straight, root):
        return straight
    parts = [part for part in written.parts if part not in ("..", ".", written.anchor)]
    listings = FolderListings()
    for start in range(max(0, len(parts) - MAX_PARTS), len(parts)):
        if any(map(is_split_name, parts[:start])) and not any(map(is_split_name, parts[start:])):
            break  # `images` alone is not `valid/images`
        candidate = follow(str(root), parts[start:], listings)
        if candidate is not None and (is_file(candidate) or is_folder(candidate)):
            return Path(candidate)
    return straight if exists else None  # outside: a list is not opened and a folder not searched unless allowed


def follow(folder: str, parts: Sequence[str], listings: FolderListings) -> str | None:
    """Find a path below a folder, whose parts may be spelled in another way."""
    place: str | None = folder
    for part in parts:
        place = listings.find(place, part).path if place is not None else None
    return place


def _is_within(place: Path, root: Path) -> bool:
    """Whether a place is in the dataset, which folders that are links belong to."""
    is_plain = ".." not in place.parts and place.is_relative_to(root) and not (place.is_symlink() and is_file(place))
    return is_plain or place.resolve().is_relative_to(root.resolve())


def _splits_by_folder(root: Path) -> dict[str, list[Path]]:
    """Find splits without a YAML file: sub-folders named like splits, else image lists, else all images."""
    splits: dict[str, list[Path]] = {}
    for parent in (root / "images", root):
        for child in sorted(parent.glob("*")):
            if child.is_dir() and is_split_name(child.name) and child.name not in splits:
                splits[child.name] = [child]
    if not splits:
        splits = {file.stem: [file] for file in sorted(root.glob("*.txt")) if is_split_name(file.stem)}
    return splits or {UNSPLIT: [root / "images" if (root / "images").is_dir() else root]}
