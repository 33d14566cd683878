"""Write a dataset in the YOLO format."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from modeling_detr.data.dataset_format import WrittenDataset
from modeling_detr.data.findings import counted, first_items
from modeling_detr.data.format_limits import warn_of_stuff, without_crowds
from modeling_detr.data.formats.yolo_description import OTHER_KEYS
from modeling_detr.data.image_copies import UNLISTED, ImageCopies
from modeling_detr.data.image_paths import is_split_name
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex


def write_yolo(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    """Write a dataset into `folder`; see `DatasetFormat`."""
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
    return f"{split}_split" if split in OTHER_KEYS else split


def _span(ids: Sequence[int]) -> str:
    return f"{min(ids)}-{max(ids)}" if ids == list(range(min(ids), max(ids) + 1)) else first_items(ids)
