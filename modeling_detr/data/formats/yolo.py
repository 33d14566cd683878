"""The YOLO format: one text file for each image, with a line `class cx cy width height` for each object.

    data.yaml               names (list or mapping), train, val, test: folders, or lists of images (.txt)
    images/train/a.jpg      labels/train/a.txt
    train/images/a.jpg      train/labels/a.txt
    train/a.jpg             train/a.txt           labels beside the images

Without a YAML file, the class names may be in classes.txt, obj.names or _darknet.labels. A line with more numbers is a
polygon, which is replaced by its bounding box. Images without a label file are backgrounds; a note reports them if
other images in their folder have one. Label files without an image are reported too. Writes the first layout.
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
from modeling_detr.data.dataset_format import IMAGES_OPTION, DatasetFormat, WrittenDataset
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.format_limits import warn_of_stuff, without_crowds
from modeling_detr.data.image_copies import UNLISTED, ImageCopies
from modeling_detr.data.image_headers import header_size
from modeling_detr.data.image_paths import FolderListings, is_image_name, is_split_name, refuse_outside
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError
from modeling_detr.structures_detr import UNSPLIT, Category, DetectionIndex, ImageRecord, Task


_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_OTHER_KEYS = ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels")  # of data.yaml, not splits
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "classes.names")
_LOOKED_FOR = f"a .yaml file with 'names', or one of {', '.join(_NAME_FILES)}"


@dataclass(frozen=True)
class _Description:
    """The description of a dataset: its YAML file, or its list of class names.

    Attributes:
        source: The file.
        folder: The dataset's folder, which contains the file.
        root: The folder that split paths are relative to.
        names: Class id in the label files → name.
        splits: Split → its folders or image lists.
        has_keypoints: Whether label lines continue with keypoints after the box.
    """

    source: Path
    folder: Path
    root: Path
    names: dict[int, str]
    splits: dict[str, list[Path]]
    has_keypoints: bool = False


def find_yolo_file(path: Path) -> Path | None:
    """Find the YAML file or list of class names of the YOLO dataset at `path`; None if there is none."""
    return _find_yaml(path) or _find_class_names(path)


def _find_yaml(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")], key=lambda file: (file.stem != "data", file.name))
    for file in files:
        content = _load_yaml(file, strict=False)
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            return file
    return None


def _find_class_names(path: Path) -> Path | None:
    if path.is_file():
        return None
    folders = [path, path / "labels", *(child for child in sorted(path.glob("*")) if is_split_name(child.name))]
    return next((folder / name for folder in folders for name in _NAME_FILES if (folder / name).is_file()), None)


def read_yolo(path: str | Path, findings: Findings | None = None, images: str | Path | None = None) -> DetectionIndex:
    """Read a YOLO dataset. Sizes in pixels come from the headers of the images, after their EXIF orientation.

    Args:
        path: The dataset's folder, or its YAML file.
        findings: Collects problems; None: the first error is raised.
        images: A folder outside the dataset's folder that may contain images and labels.

    Raises:
        DatasetNotFoundError: There is no description, no folder of a split, or no label file at all.
        DatasetError: The description or a line of a label file is invalid; the message names file and line.
    """
    file = find_yolo_file(Path(path))
    if file is None:
        raise DatasetNotFoundError(path, "no YOLO dataset", f"expected {_LOOKED_FOR}")
    findings = Findings() if findings is None else findings
    description = _describe(file, Path(path), images, findings)
    listings = FolderListings()
    image_paths, splits = _list_images(description, listings, findings)
    refuse_outside(image_paths, [description.folder, images], findings)
    label_files = _find_label_files(description, image_paths, listings, findings)
    refuse_outside([file for file in label_files if file], [description.folder, images], findings)

    categories = tuple(Category(class_id, description.names[class_id]) for class_id in sorted(description.names))
    label_of = {category.id: label for label, category in enumerate(categories)}
    records: list[ImageRecord] = []
    rows, readable = AnnotationRows(), np.zeros(len(image_paths), np.bool_)
    for index, (image, label_file) in enumerate(zip(image_paths, label_files, strict=True)):
        try:
            height, width = header_size(image)
        except DatasetReadError as error:
            findings.add("unreadable image", error, image=image)
            continue
        if label_file is not None:
            _read_labels(label_file, len(records), label_of, description, rows, findings)
        records.append(ImageRecord(_relative(image, description.root), image, height, width))
        readable[index] = True
    if not readable.all():
        label_files = [file for file, kept in zip(label_files, readable, strict=True) if kept]
        new_index = np.cumsum(readable) - 1
        splits = {name: new_index[members[readable[members]]] for name, members in splits.items()}

    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    image_index = np.array(rows.image_index, dtype=np.int64)
    table = clean_annotations(
        image_index=image_index,
        label=np.array(rows.label, dtype=np.int64),
        boxes_xyxy=rows.boxes * sizes[image_index][:, [1, 0, 1, 0]],
        image_sizes=sizes,
        describe=lambda row: f"{label_files[rows.image_index[row]]}, line {rows.place[row]}",
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


def _read(path: str | Path, *, findings: Findings, task: Task, images: str | Path | None = None) -> DetectionIndex:  # noqa: ARG001
    return read_yolo(path, findings, images)


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


# The description


def _load_yaml(file: Path, strict: bool = True) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if strict:
            raise DatasetError(file, f"not valid YAML ({' '.join(str(error).split())})", "correct the file") from error
        return None


def _describe(file: Path, path: Path, images: str | Path | None, findings: Findings) -> _Description:
    if file.suffix.lower() not in (".yaml", ".yml"):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        names = {class_id: line.strip() for class_id, line in enumerate(lines) if line.strip()}
        return _Description(file, path, path, names, _splits_by_folder(path))

    content = _load_yaml(file)
    if not isinstance(content, dict):
        raise DatasetError(file, f"got a {type(content).__name__}, expected a mapping with 'names' and 'train'")
    root = _root(file, content.get("path"), images, findings)
    splits = {}
    for key in _SPLIT_KEYS:
        values = content.get(key)
        if values:
            values = values if isinstance(values, list) else [values]
            places = [_split_place(file, key, str(value), root, images, findings) for value in values]
            splits[key] = [place for place in places if place is not None]
    if not splits:
        splits = _splits_by_folder(root)
    return _Description(file, file.parent, root, _names(file, content, findings), splits, "kpt_shape" in content)


def _names(file: Path, content: Mapping[str, Any], findings: Findings) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None and isinstance(count, int):
        return {class_id: f"class_{class_id}" for class_id in range(count)}
    try:
        result = {int(class_id): str(name) for class_id, name in names.items()} if names else {}
    except (AttributeError, TypeError, ValueError):
        raise DatasetError(
            file, f"'names': got {names!r}, expected a list of class names, or a mapping from class id to name"
        ) from None
    if not result:
        raise DatasetError(file, "no 'names'", "list the classes under 'names:'")
    if count is not None and count != len(result):
        message = f"nc is {count}, but 'names' lists {counted(len(result), 'class', 'classes')}"
        findings.error("category", file, message, "make them agree")
    return result


def _root(file: Path, path: Any, images: str | Path | None, findings: Findings) -> Path:
    """Find the folder that 'path:' names, relative to the file or to the working directory; else the file's own."""
    if path is None:
        return file.parent
    written = Path(str(path)).expanduser()
    for candidate in (written if written.is_absolute() else file.parent / written, written):
        if candidate.is_dir():
            inside = refuse_outside([f"{candidate}/"], [file.parent, images], findings, f"{file}, 'path: {path}'")
            return candidate if inside else file.parent
    if str(path) not in ("", "."):
        message = f"'path: {path}' does not exist"
        used = f"{file.parent} is used instead"
        findings.warn("path", f"{file}: {message}; {used}.", used, [(file, message)])
    return file.parent


def _split_place(
    file: Path, key: str, value: str, root: Path, images: str | Path | None, findings: Findings
) -> Path | None:
    """Locate a split of the YAML file: as written if that is in the root, else its last parts in the root, else as
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
    if straight.is_file() and not refuse_outside([str(straight)], [file.parent, images], findings):
        return None  # a list of images outside; it is not opened
    if straight.exists():
        return straight  # a folder outside: an error for its images unless they are allowed
    findings.error(
        "missing file",
        file,
        f"{key} is '{value}', but neither {straight} nor a trailing part of it inside {root} exists",
        f"set 'path' to the dataset's folder, and '{key}' to a folder of images or a list of them",
        raises=DatasetNotFoundError,
    )
    return None


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


# Images and label files


def _list_images(
    description: _Description, listings: FolderListings, findings: Findings
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    index_of: dict[str, int] = {}  # an image in two splits is one image
    splits = {}
    for split, places in description.splits.items():
        members = []
        for place in places:
            is_list = place.is_file()
            paths = _from_list(place, description.root, findings) if is_list else _from_folder(place, listings)
            if not paths:
                message = f"split '{split}' has no images in {place}"
                findings.warn(
                    "empty split",
                    f"{description.source}: {message}.",
                    "it remains empty",
                    [(description.source, message)],
                )
            members += [index_of.setdefault(path, len(index_of)) for path in paths]
        splits[split] = np.unique(np.array(members, dtype=np.int64))
    if not index_of:
        places_text = ", ".join(str(place) for places in description.splits.values() for place in places)
        raise DatasetNotFoundError(description.source, f"no images in {places_text}", "correct the split paths")
    return list(index_of), splits


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
            problem = f"which is not in {root}" if path is None else "which is not an image"
            findings.error(
                "missing image",
                f"{file}, line {number}",
                f"names '{name}', {problem}",
                "correct the path or remove the line",
                raises=DatasetNotFoundError,
            )
            continue
        paths.append(os.path.normpath(path))
    return paths


def _find_label_files(
    description: _Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> list[str | None]:
    """Find the label file of each image, None for backgrounds. Label files for one image folder are in one folder."""
    label_folder = _choose_label_folders(description, images, listings, findings)
    files: list[str | None] = []
    for image in images:
        folder, _, name = image.rpartition("/")
        place = label_folder[folder]
        files.append(_find_label_file(place, folder, name.rpartition(".")[0], listings) if place else None)
    _note_images_without_labels(description, images, files, label_folder, findings)
    _note_labels_without_images(description, label_folder, files, listings, findings)
    return files


def _choose_label_folders(
    description: _Description, images: Sequence[str], listings: FolderListings, findings: Findings
) -> dict[str, str | None]:
    """Choose, for each folder of images, the folder with most of their label files; None if there are none."""
    stems_of: dict[str, list[str]] = {}
    for image in images:
        folder, _, name = image.rpartition("/")
        stems_of.setdefault(folder, []).append(name.rpartition(".")[0])
    label_folder: dict[str, str | None] = {}
    searched: list[str] = []
    for folder, stems in stems_of.items():
        candidates = _label_folders(Path(folder), description.root)
        counts = [
            sum(listings.find(candidate, f"{stem}.txt") is not None for stem in stems) for candidate in candidates
        ]
        best = int(np.argmax(counts))
        label_folder[folder] = candidates[best] if counts[best] else None
        searched += candidates
        if not counts[best]:
            note = f"no label files for {counted(len(stems), 'image')} in {folder}, treated as background."
            message = f"no label files for its {counted(len(stems), 'image')}"
            findings.warn("no label file", note, "treated as background", [(folder, message)])
    if not any(label_folder.values()):
        raise DatasetNotFoundError(
            description.source,
            f"no image has a label file, searched {', '.join(dict.fromkeys(searched))}",
            "name label files like their images (a.jpg, a.txt), in 'labels' if the images are in a folder 'images'",
        )
    return label_folder


def _find_label_file(place: str, folder: str, stem: str, listings: FolderListings) -> str | None:
    """Find the label file of an image; otherwise one whose name differs only in case and belongs
    to no other image."""
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
        have = "has no label file and is treated as background"
        if len(bare) > 1:
            have = "have no label file and are treated as backgrounds"
        findings.warn(
            "no label file",
            f"{len(bare)} of {total[folder]} images in {_relative(folder, description.root)} {have}; the first: "
            f"{bare[0]}.",
            "treated as background",
            ((image, "has no label file, though others in its folder have one") for image in bare),
        )


def _note_labels_without_images(
    description: _Description,
    label_folder: Mapping[str, str | None],
    files: Sequence[str | None],
    listings: FolderListings,
    findings: Findings,
) -> None:
    """Note label files that match no image, whether or not the image is in a split."""
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
            belong = "belongs to no image and is" if len(lost) == 1 else "belong to no image and are"
            findings.warn(
                "label file without image",
                f"{counted(len(lost), 'label file')} in {_relative(place, description.root)} {belong} left out; the "
                f"first: {place}/{lost[0]}.",
                "the file is left out",
                ((f"{place}/{name}", "belongs to no image") for name in lost),
            )


def _may_be_labels(name: str) -> bool:
    """Whether a text file may contain labels: not a list of classes or images, and not a readme or license."""
    stem, _, suffix = name.rpartition(".")
    about = name in _NAME_FILES or is_split_name(stem) or stem.lower().startswith(("readme", "license"))
    return suffix.lower() == "txt" and not about and not name.startswith(".")


def _label_folders(folder: Path, root: Path) -> list[str]:
    """List the folders that may contain the labels of the images in `folder`, the most common ones first."""
    inside = folder.relative_to(root).parts if folder.is_relative_to(root) else folder.parts
    base = root if folder.is_relative_to(root) else Path()
    places = []
    for depth in reversed(range(len(inside))):
        if inside[depth].lower() in ("images", "imgs", "jpegimages"):
            mirrored = base.joinpath(*inside[:depth], "labels", *inside[depth + 1 :])
            places += [mirrored, *(mirrored.with_name(f"{mirrored.name}{end}") for end in ("-labels", "_labels"))]
    places += [folder, folder / "labels", folder.parent / "labels", root / "labels" / folder.name, root / "labels"]
    return list(dict.fromkeys(os.path.normpath(place) for place in places))


# Label lines


def _read_labels(
    file: str,
    image_index: int,
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
            message = f"got '{line.strip()[:80]}', expected numbers: class, centre x, centre y, width, height"
            findings.error("line", f"{file}, line {number}", message, "correct or remove the line")
            continue
        if class_id != numbers[0] or class_id not in label_of:
            findings.error(
                "unknown class",
                f"{file}, line {number}",
                f"got class id {fields[0]}, expected one of those in {description.source}: {first_items(label_of)}",
                "correct the label, or add the class to that file",
            )
            continue
        box = _box(numbers[1:], description)
        if box is None:
            findings.error(
                "line",
                f"{file}, line {number}",
                f"got {counted(len(numbers), 'number')}, expected 5 (class, centre x, centre y, width, height), or a "
                f"class and the coordinates x y of at least three polygon points",
                "correct or remove the line",
            )
            continue
        rows.append(image_index, label_of[class_id], box, number)


def _box(numbers: Sequence[float], description: _Description) -> tuple[float, float, float, float] | None:
    """Return the corners of a box or polygon, relative to the image; None if there are too few or too many numbers."""
    if len(numbers) == 4 or (description.has_keypoints and len(numbers) > 4):
        x, y, width, height = numbers[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    return None


# Writing


def _write(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    notes = warn_of_stuff(index)
    index, lost = without_crowds(index, "yolo")
    notes += lost
    ids = [category.id for category in index.categories]
    if ids != list(range(len(ids))):
        notes.append(f"yolo numbers classes from 0: the ids {_span(ids)} become 0-{len(ids) - 1}, in this order.")
    copies = ImageCopies(index, folder, lambda split: f"images/{split}", link)
    _write_labels(index, folder, copies)
    description: dict[str, object] = {
        **_write_splits(folder, copies, notes),
        "nc": len(index.categories),
        "names": {label: category.name for label, category in enumerate(index.categories)},
    }
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    readable = None
    if UNLISTED in copies.splits and index.splits:  # only images of a split are read back
        readable = index.select(np.concatenate([*index.splits.values()]))
    return WrittenDataset(index, notes + copies.notes, keeps_splits=False, readable=readable)


def _write_labels(index: DetectionIndex, folder: Path, copies: ImageCopies) -> None:
    table = index.annotations
    for image, record in enumerate(index.images):
        rows = index.annotation_rows(image)
        corners = table.boxes_xyxy[rows] / np.array([record.width, record.height] * 2)
        centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        lines = [
            f"{label} {x:.10f} {y:.10f} {width:.10f} {height:.10f}\n"
            for label, (x, y), (width, height) in zip(
                table.label[rows].tolist(), centres.tolist(), sizes.tolist(), strict=True
            )
        ]
        place = folder / "labels" / copies.home[image] / f"{Path(copies.name[image]).stem}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(lines), encoding="utf-8")  # empty if there are no objects


def _write_splits(folder: Path, copies: ImageCopies, notes: list[str]) -> dict[str, str]:
    """Write lists of images where splits need them; return the folder or list of each key of data.yaml."""
    if [*copies.splits] == [UNSPLIT]:
        return {}  # without splits, all images are read
    description: dict[str, str] = {}
    for split, members in copies.splits.items():
        key = _split_key(split, [*copies.splits])
        if key != split:
            notes.append(f"the split '{split}' is named '{key}', as YOLO tools expect.")
        if split == UNLISTED:
            notes.append(f"{counted(len(members), 'image')} in no split, written to images/{UNLISTED}.")
        elif len(members) and sum(home == split for home in copies.home) == len(members):
            description[key] = f"images/{split}"
        else:
            listed = [f"./images/{copies.home[image]}/{copies.name[image]}\n" for image in members.tolist()]
            (folder / f"{split}.txt").write_text("".join(listed), encoding="utf-8")
            description[key] = f"{split}.txt"
    return description


def _split_key(split: str, splits: Sequence[str]) -> str:
    """Return `train`, `val` or `test` if only this split's name stands for it, otherwise the name itself."""
    for key, words in {"train": ("train",), "val": ("val", "dev", "eval"), "test": ("test",)}.items():
        alike = [name for name in splits if is_split_name(name) and name.lower().startswith(words)]
        if split in alike and split.lower() != "trainval":
            alike = [name for name in alike if name.lower() != "trainval"]
            return key if len(alike) == 1 else split
    return f"{split}_split" if split in _OTHER_KEYS else split


def _span(ids: Sequence[int]) -> str:
    return f"{min(ids)}-{max(ids)}" if ids == list(range(min(ids), max(ids) + 1)) else first_items(ids)


FORMAT = DatasetFormat(
    name="yolo",
    find=lambda path: _find_yaml(path) is not None,
    find_hints=lambda path: _find_class_names(path) is not None,
    read=_read,
    looked_for=_LOOKED_FOR,
    options=(IMAGES_OPTION,),
    write=_write,
)
