"""Write a dataset in the YOLO format."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from modeling_detr.data.contents import SCORE, without_contents
from modeling_detr.data.dataset_format import WrittenDataset
from modeling_detr.data.findings import counted, first_items
from modeling_detr.data.format_limits import note_moved_boxes, warn_of_stuff
from modeling_detr.data.formats.yolo_description import OTHER_KEYS, POLYGON_TASK
from modeling_detr.data.image_copies import UNLISTED, ImageCopies
from modeling_detr.data.image_paths import is_split_name
from modeling_detr.data.mask_outlines import object_outlines
from modeling_detr.structures_detr import UNSPLIT, DetectionIndex


CARRIES: frozenset[str] = frozenset(["masks", "score"])
HOLDS = "a class and a box or a polygon, with or without a score"


def write_yolo(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    """Write a dataset into `folder`; see `DatasetFormat`."""
    notes = warn_of_stuff(index)
    ids = [category.id for category in index.categories]
    if ids != list(range(len(ids))):
        notes.append(
            f"yolo numbers classes from 0: the ids {_span(ids)} become {_span([*range(len(ids))])}, in this order."
        )
    scores = index.annotations.attributes.get(SCORE)
    if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
        count = counted(int((~np.isnan(scores)).sum()), "score")
        notes.append(f"{count} not written: yolo needs one from 0 to 1 on every line.")
        index = without_contents(index, [SCORE])
    copies = ImageCopies(index, folder, lambda split: f"images/{split}", link)
    index = _write_labels(index, folder, copies, notes)
    description: dict[str, object] = {
        **_write_splits(folder, copies, notes),
        **({} if index.annotations.masks is None else {"task": POLYGON_TASK}),
        "nc": len(index.categories),
        "names": {label: category.name for label, category in enumerate(index.categories)},
    }
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    only_splits = UNLISTED in copies.splits and bool(index.splits)  # only images of a split are read back
    files = [
        None if only_splits and home == UNLISTED else file
        for home, file in zip(copies.home, copies.files, strict=True)
    ]
    return WrittenDataset(index, files, notes + copies.notes, keeps_splits=False)


def _write_labels(index: DetectionIndex, folder: Path, copies: ImageCopies, notes: list[str]) -> DetectionIndex:
    """Write the label files; return the dataset with the boxes around its polygons, the only ones that are written."""
    table, boxes = index.annotations, index.annotations.boxes_xyxy.copy()
    scores, several, drawn = table.attributes.get(SCORE), 0, 0
    for image, record in enumerate(index.images):
        rows = index.annotation_rows(image)
        size = np.array([record.width, record.height])
        shapes: list[NDArray[np.float64]] = []
        if table.masks is None:
            relative = boxes[rows].reshape(-1, 2, 2) / size
            shapes += [*np.stack([relative.mean(1), relative[:, 1] - relative[:, 0]], axis=1)]
        else:
            outlines, of_parts = object_outlines(index, image)
            several, drawn = several + of_parts, drawn + sum(outline is None for outline in outlines)
            for row, outline in zip(range(rows.start, rows.stop), outlines, strict=True):
                outline = boxes[row][[[0, 1], [2, 1], [2, 3], [0, 3]]] if outline is None else outline
                boxes[row] = *outline.min(0), *outline.max(0)
                shapes.append(outline / size)
        ends = [""] * len(shapes) if scores is None else [f" {score:.6g}" for score in scores[rows].tolist()]
        lines = [
            f"{label} {' '.join(f'{number:.10f}' for number in shape.ravel().tolist())}{end}\n"
            for label, shape, end in zip(table.label[rows].tolist(), shapes, ends, strict=True)
        ]
        place = folder / "labels" / copies.home[image] / f"{Path(copies.name[image]).stem}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(lines), encoding="utf-8")  # empty if there are no objects
    if several:
        notes.append(
            f"{counted(several, 'mask')} of several parts or with holes: yolo has one polygon for each object, which "
            f"visits all of them by lines that enclose nothing."
        )
    if drawn:
        notes.append(f"{counted(drawn, 'object')} without a mask written as the corners of the box.")
    notes += note_moved_boxes(index, boxes, "yolo")
    return replace(index, annotations=replace(table, boxes_xyxy=boxes))


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
    return (
        f"{min(ids)}-{max(ids)}" if len(ids) > 1 and ids == list(range(min(ids), max(ids) + 1)) else first_items(ids)
    )
