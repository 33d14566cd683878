"""Reads datasets in the format of YOLO: one text file an image, a line `class cx cy width height` an object.

    data.yaml               names (list or mapping), train, val, test: folders, or lists of images (.txt)
    images/train/a.jpg      labels/train/a.txt
    train/images/a.jpg      train/labels/a.txt
    train/a.jpg             train/a.txt           labels beside the images

Without a YAML file, the class names may stand in classes.txt, obj.names or _darknet.labels. A line with more numbers
is a polygon and becomes its box. Images without a label file are backgrounds; where others beside them have one, the
notes say so, as they name label files that belong to no image.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from modeling_detr.data.annotations import AnnotationRows, clean_annotations, to_number
from modeling_detr.data.findings import Findings
from modeling_detr.data.image_files import FolderListings, header_size, is_image_name, is_split_name, refuse_outside
from modeling_detr.structures_detr import UNSPLIT, Category, DetectionIndex, ImageRecord


_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "classes.names")


@dataclass(frozen=True)
class _Description:
    """What is known before any image is looked at.

    Attributes:
        source: The file it comes from, for messages.
        root: The folder that split paths are relative to.
        names: Class id in the label files → name.
        splits: Split → its folders or image lists.
        has_keypoints: Whether label lines go on with keypoints behind the box.
    """

    source: Path
    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]]
    has_keypoints: bool = False


def find_yolo_file(path: Path) -> Path | None:
    """The file that describes the YOLO dataset at `path`: its YAML or list of class names; None if there is none."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda file: (file.stem != "data", file.name))
    for file in files:
        content = _load_yaml(file, strict=False)
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            return file
    folders = [path, path / "labels", *(child for child in sorted(path.glob("*")) if is_split_name(child.name))]
    return next((folder / name for folder in folders for name in _NAME_FILES if (folder / name).is_file()), None)


def read_yolo(path: str | Path, findings: Findings | None = None, images: str | Path | None = None) -> DetectionIndex:
    """Reads a YOLO dataset; sizes in pixels come from the headers of the images, after their EXIF orientation.

    Args:
        path: The dataset's folder, or its YAML file.
        findings: Takes what is wrong; None: the first error is raised.
        images: A folder outside the dataset's that images and labels may lie in as well.

    Raises:
        FileNotFoundError: There is no description, no folder of a split, or no label file at all.
        ValueError: The description or a line of a label file cannot be understood; the message names file and line.
    """
    file = find_yolo_file(Path(path))
    if file is None:
        raise FileNotFoundError(
            f"{path} holds no YOLO dataset: no YAML file with 'names' in it, nor one of {', '.join(_NAME_FILES)}."
        )
    findings = Findings() if findings is None else findings
    description = _describe(file, Path(path), findings)
    listings = FolderListings()
    image_paths, splits = _list_images(description, listings, findings)
    refuse_outside(image_paths, [description.root, images], findings)
    label_files = _find_label_files(description, image_paths, listings, findings)

    refuse_outside([file for file in label_files if file], [description.root, images], findings)
    categories = tuple(Category(class_id, description.names[class_id]) for class_id in sorted(description.names))
    label_of = {category.id: label for label, category in enumerate(categories)}
    records: list[ImageRecord] = []
    rows, readable = AnnotationRows(), np.zeros(len(image_paths), np.bool_)
    for position, (image, label_file) in enumerate(zip(image_paths, label_files, strict=True)):
        try:
            height, width = header_size(image)
        except OSError as error:
            findings.unreadable_image(image, error)
            continue
        if label_file is not None:
            _read_labels(label_file, len(records), label_of, description, rows, findings)
        records.append(ImageRecord(_relative(image, description.root), image, height, width))
        readable[position] = True
    if not readable.all():
        label_files = [file for file, kept in zip(label_files, readable, strict=True) if kept]
        new_position = np.cumsum(readable) - 1
        splits = {name: new_position[members[readable[members]]] for name, members in splits.items()}

    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    image_index = np.array(rows.image_index, dtype=np.int64)
    table = clean_annotations(
        image_index=image_index,
        label=np.array(rows.label, dtype=np.int64),
        boxes_xyxy=rows.boxes * sizes[image_index][:, [1, 0, 1, 0]],
        image_sizes=sizes,
        describe=lambda row: f"{label_files[rows.image_index[row]]}: line {rows.place[row]}",
        findings=findings,
    )
    return DetectionIndex(
        name=description.root.resolve().name,
        images=tuple(records),
        categories=categories,
        annotations=table,
        splits=splits,
        notes=tuple(findings.notes),
    )


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


# The description


def _load_yaml(file: Path, strict: bool = True) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if strict:
            raise ValueError(f"{file}: not valid YAML ({error}).") from error
        return None


def _describe(file: Path, path: Path, findings: Findings) -> _Description:
    if file.suffix.lower() not in (".yaml", ".yml"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        names = {class_id: line.strip() for class_id, line in enumerate(lines) if line.strip()}
        return _Description(file, path, names, _splits_by_folder(path))

    content = _load_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}; wanted a mapping with 'names' and 'train'.")
    root = _root(file, content.get("path"), findings)
    splits = {}
    for key in _SPLIT_KEYS:
        values = content.get(key)
        if values:
            values = values if isinstance(values, list) else [values]
            places = [_split_place(file, key, str(value), root, findings) for value in values]
            splits[key] = [place for place in places if place is not None]
    if not splits:
        splits = _splits_by_folder(root)
    return _Description(file, root, _names(file, content, findings), splits, "kpt_shape" in content)


def _names(file: Path, content: Mapping[str, Any], findings: Findings) -> dict[int, str]:
    names, number = content.get("names"), content.get("nc")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None and isinstance(number, int):
        return {class_id: f"class_{class_id}" for class_id in range(number)}
    try:
        result = {int(class_id): str(name) for class_id, name in names.items()} if names else {}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"{file}: 'names' is {names!r}; wanted a list of class names, or a mapping from class id to name."
        ) from None
    if not result:
        raise ValueError(f"{file}: 'names' is empty; wanted the name of every class.")
    if number is not None and number != len(result):
        message = f"nc is {number}, but 'names' has {len(result)} classes"
        findings.error("category", f"{file}:", message, "make them agree")
    return result


def _root(file: Path, path: Any, findings: Findings) -> Path:
    if path is None:
        return file.parent
    written = Path(str(path)).expanduser()
    for candidate in (written if written.is_absolute() else file.parent / written, written):
        if candidate.is_dir():
            return candidate
    if str(path) not in ("", "."):
        message = f"its path '{path}' does not exist here"
        taken = f"{file.parent} is taken for it"
        findings.warn("path", f"{file}: {message}; {taken}.", taken, [(f"{file}:", message)])
    return file.parent


def _split_place(file: Path, key: str, value: str, root: Path, findings: Findings) -> Path | None:
    """Where a split of the YAML lies: as written if that is in the root, else by its tail in the root, else as
    written."""
    written = Path(value.replace("\\", "/"))
    straight = root / written
    if straight.exists() and straight.resolve().is_relative_to(root.resolve()):
        return straight
    parts = [part for part in written.parts if part not in ("..", ".", written.anchor)]
    for start in range(len(parts)):
        candidate = root.joinpath(*parts[start:])
        if candidate.exists():
            return candidate
    if straight.exists():
        return straight  # outside: the images there are refused, unless they are allowed
    findings.error(
        "missing file",
        f"{file}:",
        f"{key} is '{value}', but neither {straight} nor any tail of it inside {root} exists",
        f"set 'path' to the dataset's folder, and {key} to the folder of its images or to a list of them",
        raises=FileNotFoundError,
    )
    return None


def _splits_by_folder(root: Path) -> dict[str, list[Path]]:
    """Splits without a YAML: the sub-folders that have a split's name, else image lists, else everything."""
    splits: dict[str, list[Path]] = {}
    for parent in (root / "images", root):
        for child in sorted(parent.glob("*")):
            if child.is_dir() and is_split_name(child.name) and child.name not in splits:
                splits[child.name] = [child]
    if not splits:
        splits = {file.stem: [file] for file in sorted(root.glob("*.txt")) if is_split_name(file.stem)}
    return splits or {UNSPLIT: [root / "images" if (root / "images").is_dir() else root]}


# Images and label files


def _list_images(
    description: _Description, listings: FolderListings, findings: Findings
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    position_of: dict[str, int] = {}  # an image of two splits is one image
    splits = {}
    for split, places in description.splits.items():
        members = []
        for place in places:
            is_list = place.is_file()
            paths = _from_list(place, description.root, findings) if is_list else _from_folder(place, listings)
            if not paths:
                message = f"split '{split}' has no images in {place}"
                where = f"{description.source}:"
                findings.warn("empty split", f"{where} {message}.", "it stays empty", [(where, message)])
            members += [position_of.setdefault(path, len(position_of)) for path in paths]
        splits[split] = np.unique(np.array(members, dtype=np.int64))
    if not position_of:
        places_text = ", ".join(str(place) for places in description.splits.values() for place in places)
        raise FileNotFoundError(f"{description.source}: there are no images in {places_text}.")
    return list(position_of), splits


def _from_folder(folder: Path, listings: FolderListings) -> list[str]:
    paths = []
    for place, inner, _ in os.walk(folder, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        paths += listings.images(os.path.normpath(place))
    return paths


def _from_list(file: Path, root: Path, findings: Findings) -> list[str]:
    paths = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        parts = [part for part in Path(name).parts if part not in ("/", ".", "..")]
        tails = [Path(*parts[start:]) for start in range(len(parts))]
        candidates = [Path(name)] if Path(name).is_absolute() else [file.parent / name, root / name]
        candidates += [folder / tail for tail in tails for folder in (root, file.parent)]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None or not is_image_name(path.name):
            problem = "there is no such file" if path is None else "that is no image"
            findings.error(
                "missing image",
                f"{file}: line {number}",
                f"names '{name}', but {problem} in {root}",
                "fix the path or take the line out",
                raises=FileNotFoundError,
            )
            continue
        paths.append(os.path.normpath(path))
    return paths


def _find_label_files(
    description: _Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> list[str | None]:
    """The label file of each image, None for a background. Images of one folder have theirs in one folder."""
    stems_of: dict[str, list[str]] = {}
    for image in images:
        folder, _, name = image.rpartition("/")
        stems_of.setdefault(folder, []).append(name.rpartition(".")[0])
    label_folder: dict[str, str | None] = {}
    tried: list[str] = []
    for folder, stems in stems_of.items():
        candidates = _label_folders(Path(folder), description.root)
        found = [
            sum(listings.find(candidate, f"{stem}.txt") is not None for stem in stems) for candidate in candidates
        ]
        best = int(np.argmax(found))
        label_folder[folder] = candidates[best] if found[best] else None
        tried += candidates
        if not found[best]:
            note = f"None of the {len(stems)} images in {folder} has a label file: they are backgrounds."
            message = f"none of its {len(stems)} images has a label file"
            findings.warn("no label file", note, "they are backgrounds", [(f"{folder}:", message)])
    if not any(label_folder.values()):
        raise FileNotFoundError(
            f"{description.source}: not one image has a label file; looked in {', '.join(dict.fromkeys(tried))}. "
            f"Labels are text files named as their images, in a folder 'labels' where the images are in 'images'."
        )
    files: list[str | None] = []
    for image in images:
        folder, _, name = image.rpartition("/")
        place = label_folder[folder]
        files.append(_find_label_file(place, folder, name.rpartition(".")[0], listings) if place else None)
    _note_images_without_labels(description, images, files, label_folder, findings)
    _note_labels_without_images(description, label_folder, files, listings, findings)
    return files


def _find_label_file(place: str, folder: str, stem: str, listings: FolderListings) -> str | None:
    """The label file of an image, in another case where need be, unless it is that of another image exactly."""
    file = listings.find(place, f"{stem}.txt")
    found = file.rpartition("/")[2].rpartition(".")[0] if file else stem
    return file if found == stem or found not in listings.image_stems(folder) else None


def _note_images_without_labels(
    description: _Description,
    images: Sequence[str],
    files: Sequence[str | None],
    label_folder: Mapping[str, str | None],
    findings: Findings,
) -> None:
    total: Counter[str] = Counter()
    without: dict[str, list[str]] = {}
    for image, file in zip(images, files, strict=True):
        folder = image.rpartition("/")[0]
        total[folder] += 1
        if file is None and label_folder[folder]:
            without.setdefault(folder, []).append(image)
    for folder, bare in without.items():
        one = len(bare) == 1
        have = "has no label file and counts as background" if one else "have no label file and count as backgrounds"
        findings.warn(
            "no label file",
            f"{len(bare)} of {total[folder]} images in {_relative(folder, description.root)} {have}; the first: "
            f"{bare[0]}.",
            "it counts as background",
            ((image, "has no label file, though others in its folder have one") for image in bare),
        )


def _note_labels_without_images(
    description: _Description,
    label_folder: Mapping[str, str | None],
    files: Sequence[str | None],
    listings: FolderListings,
    findings: Findings,
) -> None:
    """Label files whose stem is no image, listed in a split or not, of the folders that share their place."""
    folders_of: dict[str, list[str]] = {}
    for folder, place in label_folder.items():
        if place:
            folders_of.setdefault(place, []).append(folder)
    used = {file for file in files if file}
    for place, folders in folders_of.items():
        stems = {stem for folder in folders for stem in listings.image_stems(folder)}
        lost = [
            name
            for name in sorted(listings.names(place))
            if _may_be_labels(name) and f"{place}/{name}" not in used and name.rpartition(".")[0] not in stems
        ]
        if lost:
            files_are = (
                "label file that belongs to no image is"
                if len(lost) == 1
                else "label files that belong to no image are"
            )
            findings.warn(
                "label file without image",
                f"{len(lost)} {files_are} left out in {_relative(place, description.root)}; the first: "
                f"{place}/{lost[0]}.",
                "the file is left out",
                ((f"{place}/{name}", "belongs to no image") for name in lost),
            )


def _may_be_labels(name: str) -> bool:
    """Whether a text file is one of labels, and not the list of classes or images or a text about the dataset."""
    stem, _, suffix = name.rpartition(".")
    about = name in _NAME_FILES or is_split_name(stem) or stem.lower().startswith(("readme", "license"))
    return suffix.lower() == "txt" and not about and not name.startswith(".")


def _label_folders(folder: Path, root: Path) -> list[str]:
    """Where the labels of the images in `folder` may lie, the usual places first."""
    inside = folder.relative_to(root).parts if folder.is_relative_to(root) else folder.parts
    base = root if folder.is_relative_to(root) else Path()
    places = []
    for position in reversed(range(len(inside))):
        if inside[position].lower() in ("images", "imgs", "jpegimages"):
            mirrored = base.joinpath(*inside[:position], "labels", *inside[position + 1 :])
            places += [mirrored, *(mirrored.with_name(f"{mirrored.name}{end}") for end in ("-labels", "_labels"))]
    places += [folder, folder / "labels", folder.parent / "labels", root / "labels" / folder.name, root / "labels"]
    return list(dict.fromkeys(os.path.normpath(place) for place in places))


# Label lines


def _read_labels(
    file: str,
    position: int,
    label_of: Mapping[int, int],
    description: _Description,
    rows: AnnotationRows,
    findings: Findings,
) -> None:
    text = Path(file).read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            numbers = [to_number(field) for field in fields]
            class_id = int(numbers[0])
        except (ValueError, OverflowError):
            wanted = "wanted numbers: class, centre x, centre y, width, height"
            findings.error("line", f"{file}: line {number}", f"is '{line.strip()[:80]}'", wanted)
            continue
        if class_id != numbers[0] or class_id not in label_of:
            known = ", ".join(str(known_id) for known_id in list(label_of)[:20])
            findings.error(
                "unknown class",
                f"{file}: line {number}",
                f"has the class id {fields[0]}, but {description.source} names the classes {known}",
                "fix the label, or name the class there",
            )
            continue
        box = _box(numbers[1:], description)
        if box is None:
            findings.error(
                "line",
                f"{file}: line {number}",
                f"has {len(numbers)} numbers",
                "wanted 5 (class, centre x, centre y, width, height), or a class and three or more points x y of a "
                "polygon",
            )
            continue
        rows.append(position, label_of[class_id], box, number)


def _box(numbers: Sequence[float], description: _Description) -> tuple[float, float, float, float] | None:
    """Corners relative to the image, of a box or of a polygon's points; None of any other number of numbers."""
    if len(numbers) == 4 or (description.has_keypoints and len(numbers) > 4):
        x, y, width, height = numbers[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    return None
