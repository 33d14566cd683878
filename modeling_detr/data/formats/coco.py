"""The COCO format for boxes and instance masks (https://cocodataset.org/#format-data).

Reads single JSON files and folders in three layouts:

    annotations/instances_train2017.json    train/_annotations.coco.json    annotations.json
    train2017/*.jpg                         train/*.jpg                     images/*.jpg

Writes the first layout, with the images in SPLIT/.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from modeling_detr.data.contents import CONTENTS, SCORE
from modeling_detr.data.dataset_format import (
    BOX_FORMAT_OPTION,
    BOXES_OPTION,
    CROWDS_OPTION,
    IMAGES_OPTION,
    DatasetFormat,
    Purpose,
    WrittenDataset,
)
from modeling_detr.data.findings import Findings
from modeling_detr.data.format_limits import refuse_shared_names, warn_of_stuff
from modeling_detr.data.formats.coco_files import holds_segments, json_files, mapped, read_files, split_name_of
from modeling_detr.data.formats.json_lists import write_list
from modeling_detr.data.image_copies import ImageCopies
from modeling_detr.data.image_numbers import have_coco_ids, number_images
from modeling_detr.data.masks import read_segmentations, segmentations
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError
from modeling_detr.structures_detr import DetectionIndex


_ROBOFLOW_NAME = "_annotations.coco.json"
_LOOKED_FOR = "annotations/instances_*.json, or other JSON files with 'images', 'annotations' and 'categories'"


def find_coco_files(path: Path) -> list[Path]:
    """Find the annotation files of the dataset at `path`, a folder or a JSON file; empty if it has another format."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and not holds_segments(path) else []
    official = sorted(path.glob("annotations/instances_*.json"))
    return official or [file for file in json_files(path) if _looks_like_coco(file)]


def _looks_like_coco(file: Path) -> bool:
    """Whether a file is meant to be a COCO file of boxes, decided without parsing what may be hundreds of MB.

    A file that lacks one of the lists counts too, so that the reader reports it instead of skipping it.
    """
    if file.name.lower() == _ROBOFLOW_NAME:
        return True
    if holds_segments(file):
        return False
    with mapped(file) as text:
        if any(text.find(key) < 0 for key in (b'"images"', b'"categories"')):
            return False
        return text.find(b'"annotations"') >= 0 or text.find(b'"file_name"') >= 0


def read_coco(
    path: str | Path,
    require_images: bool = True,
    findings: Findings | None = None,
    masks: bool | Literal["optional"] = False,
    images: str | Path | None = None,
    box_format: str | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    """Read a COCO dataset: each annotation file in a folder as one split, or a single JSON file.

    Labels are dense, in ascending order of the category ids over all files. An annotation without `iscrowd` is not a
    crowd region; one without `area` gets the area of its box. A category without boxes is dropped if another one has
    the same name, or if its id is 0 and it is the `supercategory` of all others (as in Roboflow exports). The file
    of a test split may lack 'annotations'; the split then has no boxes.

    Args:
        path: The dataset's folder, or one annotation file.
        require_images: False: images may be missing; `ImageRecord.path` is then the file name as written.
        findings: Collects problems; None: the first error is raised.
        masks: Keep the segmentations (polygons or RLE); annotations without one are left out, unless it is "optional".
        images: Folder of the images, inside or outside the dataset's folder; None: the usual places inside.
        box_format: `xywh` as in COCO, or `xyxy` for files with corners; None: `xywh`, but it is an error if the boxes
            look like corners.
        boxes: `upright` or `stored`: the image that the boxes were drawn on, with or without its EXIF orientation;
            None: the one with the size in the file, unless boxes exceed it and fit the other.

    Raises:
        DatasetNotFoundError: There is no annotation file, or images are missing.
        DatasetError: A file has unexpected content; the message names file, entry and remedy.
    """
    if box_format not in (None, "xywh", "xyxy"):
        raise DatasetError("box_format", f"got '{box_format}'", "COCO files can be read as xywh or xyxy")
    path = Path(path)
    files = find_coco_files(path)
    if not files:
        raise DatasetNotFoundError(path, "no COCO annotations", f"expected {_LOOKED_FOR}")
    read_masks = partial(read_segmentations, optional=masks == "optional") if masks else None
    return read_files(
        path,
        files,
        require_images,
        findings,
        read_masks=read_masks,
        images_folder=images,
        box_format=box_format,
        drawn_on=boxes,
    )


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    box_format: str | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    masks: bool | Literal["optional"] = "optional" if task == "conversion" else task == "instance"
    return read_coco(path, findings=findings, masks=masks, images=images, box_format=box_format, boxes=boxes)


# Writing


def _write(index: DetectionIndex, folder: Path, link: bool) -> WrittenDataset:
    refuse_shared_names(index, "coco")
    notes = warn_of_stuff(index)
    copies = ImageCopies(index, folder, lambda split: split, link)
    images = index.images
    if not have_coco_ids(images, copies.splits.values()):
        images = number_images(images, (), always=True)
    if any(image.number is not None for image in images):
        notes.append("coco needs integer image ids that are unique within a split: images are numbered from 1.")
    categories = [{"id": category.id, "name": category.name} for category in index.categories]
    (folder / "annotations").mkdir(exist_ok=True)
    numbered = replace(index, images=images)
    for split, members in copies.splits.items():
        with (folder / "annotations" / f"instances_{split}.json").open("w", encoding="utf-8") as file:
            file.write('{"images": ')
            write_list(file, (_image_entry(numbered, split, image, copies) for image in members.tolist()))
            file.write(',\n"annotations": ')
            write_list(file, (entry for image in members.tolist() for entry in _annotations(numbered, image)))
            file.write(',\n"categories": ' + json.dumps(categories, ensure_ascii=False) + "}\n")
    return WrittenDataset(index, copies.files, notes + copies.notes, exact_masks=True)


def _image_entry(index: DetectionIndex, split: str, image: int, copies: ImageCopies) -> dict[str, object]:
    record, home, name = index.images[image], copies.home[image], copies.name[image]
    is_plain = home == split == split_name_of(f"instances_{split}")  # the split is read back by its name
    return {
        "id": record.coco_id,
        "file_name": name if is_plain else f"{home}/{name}",
        "height": record.height,
        "width": record.width,
    }


def _annotations(index: DetectionIndex, image: int) -> Iterator[dict[str, object]]:
    table, rows, record = index.annotations, index.annotation_rows(image), index.images[image]
    masks = None if table.masks is None else segmentations(table.masks[rows], record.height, record.width)
    corners = table.boxes_xyxy[rows].tolist()
    for place, (row, (x0, y0, x1, y1)) in enumerate(zip(range(rows.start, rows.stop), corners, strict=True)):
        entry: dict[str, object] = {
            "id": row + 1,
            "image_id": record.coco_id,
            "category_id": index.categories[int(table.label[row])].id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": float(table.area[row]),
            "iscrowd": int(table.is_crowd[row]),
        }
        if masks is not None and masks[place] is not None:
            entry["segmentation"] = masks[place]
        for name, values in table.attributes.items():
            value = float(values[row])
            if not math.isnan(value):
                entry[name] = value if name == SCORE else int(value)
        if entry.get("difficult"):
            entry["ignore"] = 1  # what MMDetection writes, and leaves out of training
        yield entry


FORMAT = DatasetFormat(
    name="coco",
    find=lambda path: bool(find_coco_files(path)) and (path.is_dir() or _looks_like_coco(path)),
    find_hints=lambda path: bool(find_coco_files(path)),  # a JSON file of no other format, for its error
    read=_read,
    looked_for="instances_*.json",
    evidence="JSON files with 'images', 'annotations' and 'categories'",
    tasks=("detection", "instance"),
    options=(IMAGES_OPTION, BOX_FORMAT_OPTION, BOXES_OPTION, CROWDS_OPTION),
    write=_write,
    carries=frozenset(CONTENTS),
)
