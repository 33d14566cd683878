"""Writes a dataset in the format of COCO, YOLO or Pascal VOC, split by split, with its images.

Everything is first written into a folder beside the target, read back and compared; only then it gets its name. So
what is interrupted leaves no target behind.

    coco   annotations/instances_SPLIT.json   SPLIT/*.jpg
    yolo   data.yaml   images/SPLIT/*.jpg     labels/SPLIT/*.txt
    voc    Annotations/*.xml   JPEGImages/*.jpg   ImageSets/Main/SPLIT.txt
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args
from xml.sax.saxutils import escape

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.data.image_files import header_size, is_split_name
from modeling_detr.data.images import read_image
from modeling_detr.data.open import open_dataset
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex


Format = Literal["coco", "yolo", "voc"]
TOLERANCE = 0.01  # pixels that a box may move
_UNLISTED = "unlisted"  # the images that are in no split


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        images: Images in the target.
        boxes: Boxes in the target, those of crowds included.
        largest_difference: Between the boxes written and those read back, in pixels.
        notes: What the format cannot carry, one sentence each.
    """

    images: int
    boxes: int
    largest_difference: float
    notes: tuple[str, ...]


def convert_dataset(index: DetectionIndex, target: str | Path, to: Format, *, link: bool = False) -> Conversion:
    """Writes `index` to the folder `target`, which must not exist yet.

    Args:
        index: The dataset.
        target: The new folder.
        to: Its format.
        link: Give the image files a second name (a hard link) instead of copying them; where the disk cannot, they
            are copied.

    Raises:
        FileExistsError: `target` exists.
        ValueError: There is no such format, the format cannot hold the dataset, or an image has not the size that its
            annotations say.
        OSError: An image cannot be read, or something cannot be written.
    """
    target = Path(target)
    if to not in get_args(Format):
        raise ValueError(f"There is no format '{to}' to write; wanted one of {', '.join(get_args(Format))}.")
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; give a folder that does not, or remove it.")
    _refuse_namesakes(index, to)
    notes: list[str] = []
    index = _without_what_cannot_be_carried(index, to, notes)
    with _whole_or_not_at_all(target) as folder:
        files = _Files(index, folder, to, link)
        _WRITERS[to](index, folder, files, notes)
        notes += files.notes
        difference = _read_back(index, folder, to)
    return Conversion(len(index), len(index.annotations), difference, tuple(notes))


@contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` if all goes well, and is removed otherwise."""
    folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _refuse_namesakes(index: DetectionIndex, to: Format) -> None:
    names = [category.name for category in index.categories]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None and to != "yolo":
        raise ValueError(f"{index.name}: two classes are named '{twice}', which {to} cannot tell apart; rename one.")
    if to == "voc" and not all(name.strip() for name in names):
        raise ValueError(f"{index.name}: a class has no name, which VOC cannot write; name it.")


def _without_what_cannot_be_carried(index: DetectionIndex, to: Format, notes: list[str]) -> DetectionIndex:
    table = index.annotations
    stuff = {label for label, category in enumerate(index.categories) if not category.is_thing}
    boxes_of_stuff = int(np.isin(table.label, [*stuff]).sum())
    if boxes_of_stuff:
        names = ", ".join(index.categories[label].name for label in sorted(stuff))
        notes.append(f"{boxes_of_stuff} boxes are of stuff ({names}), which is written like things.")
    if to == "coco":
        return index
    crowds = int(table.is_crowd.sum())
    if crowds:
        notes.append(f"{to} has no crowd regions: {crowds} are left out, since as boxes they would be trained on.")
        table = table.take(~table.is_crowd)
    own = (table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]).prod(-1)
    others = int((np.abs(table.area - own) > np.maximum(1e-3 * own, 1e-3)).sum())
    if others:
        notes.append(f"{to} has no areas: {others} that are not their box's are lost.")
    if any(isinstance(image.id, int) for image in index.images):
        notes.append(f"{to} has no image ids: they become the files' names.")
    ids = [category.id for category in index.categories]
    if to == "yolo" and ids != list(range(len(ids))):
        notes.append(f"yolo counts classes from 0: the ids {_span(ids)} become 0-{len(ids) - 1}, in that order.")
    if to == "voc":
        used = {int(label) for label in np.unique(table.label)}
        unused = [category.name for label, category in enumerate(index.categories) if label not in used]
        if unused:
            notes.append(f"voc has no list of classes: those without a box are lost ({', '.join(unused)}).")
        notes.append("voc has no class ids: readers number the classes by name.")
    return replace(index, annotations=table)


def _span(ids: Sequence[int]) -> str:
    return f"{min(ids)}-{max(ids)}" if ids == list(range(min(ids), max(ids) + 1)) else ", ".join(map(str, ids[:20]))


# Images


class _Files:
    """Where each image goes: into the folder of the smallest split that it is in, under a name that no other has.

    Attributes:
        home: Split of each image.
        name: File name of each image.
        notes: Which images had to be written anew.
    """

    def __init__(self, index: DetectionIndex, folder: Path, to: Format, link: bool) -> None:
        self.home = [_UNLISTED] * len(index)
        self.name: list[str] = []
        self.notes: list[str] = []
        for split in sorted(index.splits, key=lambda name: (-len(index.splits[name]), name)):
            for position in index.splits[split].tolist():
                self.home[position] = split.replace("/", "_")
        taken: set[tuple[str, str]] = set()
        rewritten = []
        for position, record in enumerate(index.images):
            shared = "" if to == "voc" else self.home[position]  # VOC has one folder for all
            source = Path(record.path)
            whole = source.is_file() and header_size(record.path) == (record.height, record.width)
            stem, suffix = (source.stem, source.suffix) if whole else (source.stem or f"image_{position}", ".png")
            for candidate in (stem, f"{source.parent.name}_{stem}".lstrip("_"), f"{stem}_{position}"):
                if (shared, candidate.lower()) not in taken and not ("?" in candidate or "/" in candidate):
                    stem = candidate
                    break
            else:
                stem = f"image_{position}"
            taken.add((shared, stem.lower()))
            self.name.append(f"{stem}{suffix}")
            place = self.place(folder, to, position)
            place.parent.mkdir(parents=True, exist_ok=True)
            if whole:
                _copy(source, place, link)
            else:
                Image.fromarray(read_image(record).permute(1, 2, 0).numpy()).save(place)
                if source.is_file():
                    rewritten.append(record.path)
        if rewritten:
            self.notes.append(
                f"{len(rewritten)} images were annotated as they are stored, not as their EXIF orientation says, and "
                f"are written anew as PNG; the first: {rewritten[0]}."
            )

    def place(self, folder: Path, to: Format, position: int) -> Path:
        """The path of an image in the target."""
        name = self.name[position]
        if to == "voc":
            return folder / "JPEGImages" / name
        return (folder / "images" if to == "yolo" else folder) / self.home[position] / name

    def splits(self, index: DetectionIndex) -> dict[str, NDArray[np.int64]]:
        """The splits to write; the images of none have one of their own."""
        splits = {name.replace("/", "_"): members for name, members in index.splits.items()}
        unlisted = np.flatnonzero([home == _UNLISTED for home in self.home])
        if len(unlisted):
            splits[_UNLISTED] = unlisted
        return splits


def _copy(source: Path, place: Path, link: bool) -> None:
    if link:
        try:
            os.link(source.resolve(), place)
            return
        except OSError:  # another disk, or one without links
            pass
    shutil.copyfile(source, place)


# Formats


def _write_coco(index: DetectionIndex, folder: Path, files: _Files, notes: list[str]) -> None:
    splits = files.splits(index)
    ids = {name: [index.images[position].id for position in members.tolist()] for name, members in splits.items()}
    own_ids = all(isinstance(record.id, int) for record in index.images)
    own_ids = own_ids and all(len({*members}) == len(members) for members in ids.values())
    if not own_ids:
        notes.append("coco wants numbers as image ids, each once in a split: images are numbered from 1.")
    table = index.annotations
    if table.masks is not None:
        notes.append("masks are not written.")
    sides = table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]
    categories = [{"id": category.id, "name": category.name} for category in index.categories]
    (folder / "annotations").mkdir(exist_ok=True)
    for split, members in splits.items():
        images, annotations = [], []
        for position in members.tolist():
            record = index.images[position]
            image_id = record.id if own_ids else position + 1
            home, name = files.home[position], files.name[position]
            images.append(
                {
                    "id": image_id,
                    "file_name": name if home == split else f"{home}/{name}",
                    "height": record.height,
                    "width": record.width,
                }
            )
            rows = index.annotation_rows(position)
            for row in range(rows.start, rows.stop):
                annotations.append(
                    {
                        "id": row + 1,
                        "image_id": image_id,
                        "category_id": index.categories[int(table.label[row])].id,
                        "bbox": [*table.boxes_xyxy[row, :2].tolist(), *sides[row].tolist()],
                        "area": float(table.area[row]),
                        "iscrowd": int(table.is_crowd[row]),
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")


def _write_yolo(index: DetectionIndex, folder: Path, files: _Files, notes: list[str]) -> None:
    table = index.annotations
    if table.masks is not None:
        notes.append("masks are not written.")
    for position, record in enumerate(index.images):
        rows = index.annotation_rows(position)
        corners = table.boxes_xyxy[rows] / np.array([record.width, record.height] * 2)
        centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        lines = [
            f"{label} {x:.10f} {y:.10f} {width:.10f} {height:.10f}\n"
            for label, (x, y), (width, height) in zip(
                table.label[rows].tolist(), centres.tolist(), sizes.tolist(), strict=True
            )
        ]
        place = folder / "labels" / files.home[position] / f"{Path(files.name[position]).stem}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(lines), encoding="utf-8")  # an empty file says that there is nothing
    description: dict[str, object] = {}
    splits = files.splits(index)
    for split, members in splits.items():
        key = _yolo_key(split, [*splits])
        if key != split:
            notes.append(f"the split '{split}' is called '{key}', as programs for yolo want it.")
        if [*splits] == [UNSPLIT]:
            break  # none to name: every image counts
        if split == _UNLISTED:
            notes.append(f"{len(members)} images are in no split; they lie in images/{_UNLISTED}.")
        elif len(members) and sum(home == split for home in files.home) == len(members):
            description[key] = f"images/{split}"
        else:
            listed = [f"./images/{files.home[position]}/{files.name[position]}\n" for position in members.tolist()]
            (folder / f"{split}.txt").write_text("".join(listed), encoding="utf-8")
            description[key] = f"{split}.txt"
    description |= {
        "nc": len(index.categories),
        "names": {label: category.name for label, category in enumerate(index.categories)},
    }
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _yolo_key(split: str, splits: Sequence[str]) -> str:
    """`train`, `val` or `test` for a split whose name says so, if no other one's does."""
    for key, words in {"train": ("train",), "val": ("val", "dev", "eval"), "test": ("test",)}.items():
        alike = [name for name in splits if is_split_name(name) and name.lower().startswith(words)]
        if split in alike and split.lower() != "trainval":
            alike = [name for name in alike if name.lower() != "trainval"]
            return key if len(alike) == 1 else split
    return split


def _write_voc(index: DetectionIndex, folder: Path, files: _Files, notes: list[str]) -> None:
    table = index.annotations
    if table.masks is not None:
        notes.append("masks are not written.")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for position, record in enumerate(index.images):
        name = files.name[position]
        rows = index.annotation_rows(position)
        objects = "".join(
            f"  <object>\n    <name>{escape(index.categories[label].name)}</name>\n    <difficult>0</difficult>\n"
            f"    <bndbox><xmin>{x0:.10g}</xmin><ymin>{y0:.10g}</ymin><xmax>{x1:.10g}</xmax><ymax>{y1:.10g}</ymax>"
            f"</bndbox>\n  </object>\n"
            for label, (x0, y0, x1, y1) in zip(
                table.label[rows].tolist(), table.boxes_xyxy[rows].tolist(), strict=True
            )
        )
        (folder / "Annotations" / f"{Path(name).stem}.xml").write_text(
            f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{escape(name)}</filename>\n"
            f"  <size><width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>\n"
            f"{objects}</annotation>\n",
            encoding="utf-8",
        )
    for split, members in files.splits(index).items():
        if split != _UNLISTED:
            lines = [f"{Path(files.name[position]).stem}\n" for position in members.tolist()]
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


_WRITERS: Mapping[str, Callable[[DetectionIndex, Path, _Files, list[str]], None]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
}


# Reading back


def _read_back(index: DetectionIndex, folder: Path, to: Format) -> float:
    """Reads what was written and compares every box; returns the largest difference of a coordinate in pixels.

    Raises:
        ValueError: Images, classes or boxes are not the same. That is a fault of this package.
    """
    written = open_dataset(folder, format=to)
    expected = _boxes_by_split(index)
    found = _boxes_by_split(written)
    names = [split for split in found if split in expected] if to != "yolo" else []
    pairs = [(expected[name], found[name]) for name in names] or [
        (_all_boxes(index, {*range(len(index))}), _all_boxes(written, {*range(len(written))}))
    ]
    if to == "yolo" and _has_unlisted(index):
        listed = {position for members in index.splits.values() for position in members.tolist()}
        pairs = [(_all_boxes(index, listed), _all_boxes(written, {*range(len(written))}))]
    largest = 0.0
    for before, after in pairs:
        if len(before) != len(after) or [name for name, _ in before] != [name for name, _ in after]:
            raise ValueError(
                f"what was written as {to} has {len(after)} boxes, not the {len(before)} of {index.name}, or of other "
                f"classes; please report this."
            )
        if before:
            difference = np.abs(np.array([box for _, box in before]) - np.array([box for _, box in after])).max()
            largest = max(largest, float(difference))
    if largest > TOLERANCE:
        raise ValueError(f"what was written as {to} differs by {largest:.3g} pixels; please report this.")
    return largest


def _has_unlisted(index: DetectionIndex) -> bool:
    listed = {position for members in index.splits.values() for position in members.tolist()}
    return len(listed) < len(index)


def _boxes_by_split(index: DetectionIndex) -> dict[str, list[tuple[str, list[float]]]]:
    return {name.replace("/", "_"): _all_boxes(index, {*members.tolist()}) for name, members in index.splits.items()}


def _all_boxes(index: DetectionIndex, positions: set[int]) -> list[tuple[str, list[float]]]:
    """Class and corners of every box of these images, in an order that does not depend on the format."""
    table = index.annotations
    return sorted(
        (index.categories[label].name.strip(), [round(number, 6) for number in box])
        for position, label, box in zip(
            table.image_index.tolist(), table.label.tolist(), table.boxes_xyxy.tolist(), strict=True
        )
        if position in positions
    )
