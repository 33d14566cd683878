"""Opens a dataset, whatever its format."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from modeling_detr.data.coco import find_coco_files, read_coco
from modeling_detr.data.findings import Findings
from modeling_detr.data.hf_datasets import find_hf_files, is_hub_id, read_hf_dataset
from modeling_detr.data.labels import only_things
from modeling_detr.data.panoptic import find_panoptic_files, read_panoptic
from modeling_detr.data.shapes import is_shapes, read_shapes
from modeling_detr.data.voc import is_voc, read_voc
from modeling_detr.data.yolo import find_yolo_file, read_yolo
from modeling_detr.structures_detr import DetectionIndex, Task


# Format → what finds such a dataset at a path (something true), and what reads it.
_READERS: dict[str, tuple[Callable[[Path], object], Callable[..., DetectionIndex]]] = {
    "coco": (find_coco_files, read_coco),
    "yolo": (find_yolo_file, read_yolo),
    "voc": (is_voc, read_voc),
    "coco_panoptic": (find_panoptic_files, read_panoptic),
    "hf": (find_hf_files, read_hf_dataset),
}
FORMATS = tuple(_READERS)
_FORMATS_OF = {  # the formats that an option of reading means something to
    "images": ("coco", "yolo", "voc"),
    "drop_difficult": ("voc",),
    "box_format": ("hf",),
}


def open_dataset(
    path: str | Path,
    split: str | None = None,
    format: str | None = None,  # noqa: A002 (the word that users know)
    findings: Findings | None = None,
    task: Task = "detection",
    *,
    images: str | Path | None = None,
    drop_difficult: bool = False,
    box_format: str | None = None,
) -> DetectionIndex:
    """Opens a dataset: COCO, COCO panoptic, YOLO, Pascal VOC, of Hugging Face's `datasets`, or the built-in shapes.

    Args:
        path: The dataset's folder; a COCO annotation file (.json); a YOLO description (.yaml); a parquet file; the
            name of a dataset on the Hub (owner/name); or `shapes`, with options as in
            `shapes?size=128&train=8000&val=400&seed=0&panoptic=true`. Where a folder holds nothing but one other
            folder, that one is looked into.
        split: Name of a split, several joined by `+` (`train+val`), or None for every image. The classes and their
            labels are those of the whole dataset, whichever split is chosen.
        format: `coco`, `coco_panoptic`, `yolo`, `voc` or `hf` (of `datasets`); None: found out. Of a folder with both
            of COCO's, the task `panoptic` takes the panoptic files, the others take the instances.
        findings: Takes what is wrong, each with its place (`detr data check`); None: the first error is raised.
        task: What it is opened for: `detection` (boxes), `instance` (things with their masks) or `panoptic` (every
            pixel belongs to a thing or to stuff).
        images: A folder that images lie in, which may be outside the dataset's; without it such images are refused.
        drop_difficult: Leave out objects that Pascal VOC marks as difficult.
        box_format: Convention of the boxes in a dataset of `datasets`, see `hf_datasets.BoxFormat`; None: found out.

    Returns:
        The index of its images and annotations; `notes` say what was left out or changed.

    Raises:
        FileNotFoundError: Nothing is there, or images or labels are missing.
        ValueError: The format cannot be told or has not what the task needs, there is no such split, or a file is not
            what it should be.
    """
    if task not in get_args(Task):
        raise ValueError(f"There is no task '{task}'; wanted one of {', '.join(get_args(Task))}.")
    if is_shapes(path):
        index = read_shapes(str(path), panoptic=task == "panoptic")
    else:
        given: dict[str, Any] = {"images": images, "drop_difficult": drop_difficult or None, "box_format": box_format}
        options = {name: value for name, value in given.items() if value is not None}
        if images is not None and not Path(images).is_dir():
            raise FileNotFoundError(f"--images {images}: there is no such folder; wanted the one that images lie in.")
        index = _open_files(Path(path).expanduser(), format, findings, task, options)
    if task == "instance" and not all(category.is_thing for category in index.categories):
        index = only_things(index)
    return index if split is None else index.split(split)


def _open_files(
    path: Path, chosen: str | None, findings: Findings | None, task: Task, options: Mapping[str, Any]
) -> DetectionIndex:
    if chosen is not None and chosen not in _READERS:
        raise ValueError(f"There is no dataset format '{chosen}'; wanted one of {', '.join(_READERS)}.")
    on_hub = chosen in (None, "hf") and is_hub_id(path)
    if not path.exists() and not on_hub and not (chosen == "hf" and len(path.parts) == 1):
        raise FileNotFoundError(
            f"There is no dataset at {path} ({path.resolve()}); wanted a folder in COCO, YOLO or Pascal VOC format, a "
            f"COCO .json, a YOLO .yaml, a folder or .parquet of `datasets`, a name on the Hub (owner/name), or the "
            f"built-in 'shapes'."
        )
    if chosen is not None or on_hub:
        return _read(chosen or "hf", path, findings, task, options)
    place: Path | None = path
    while place is not None:
        fitting = [name for name, (finds, _) in _READERS.items() if finds(place)]
        if len(fitting) > 1 and "yolo" in fitting and not _has_yaml(place):
            fitting.remove("yolo")  # a classes.txt alone says little beside the annotations of another format
        if {"coco", "coco_panoptic"} <= {*fitting}:  # two views of the same images
            fitting.remove("coco" if task == "panoptic" else "coco_panoptic")
        if len(fitting) > 1:
            raise ValueError(
                f"{place} could be read as {' or as '.join(fitting)}; say which with "
                f"--data_format {fitting[0]} (format= in Python), or give the path of the annotation file (.json) or "
                f"description (.yaml) itself."
            )
        if fitting:
            return _read(fitting[0], place, findings, task, options)
        place = _only_folder(place)
    raise ValueError(_what_was_looked_for(path))


def _read(name: str, path: Path, findings: Findings | None, task: Task, options: Mapping[str, Any]) -> DetectionIndex:
    for option in options:
        if name not in _FORMATS_OF[option]:
            raise ValueError(
                f"{path} was taken for the format '{name}', to which {option} means nothing; leave it out, or say "
                f"--data_format {_FORMATS_OF[option][0]} (format= in Python)."
            )
    if findings is not None:
        findings.format = name
    fitting = {
        "instance": "COCO with segmentations, COCO panoptic, or the built-in shapes",
        "panoptic": "COCO panoptic (annotations/panoptic_*.json with folders of PNG), or the built-in shapes",
    }
    if task != "detection" and name != "coco_panoptic" and (name, task) != ("coco", "instance"):
        raise ValueError(
            f"{path} was taken for the format '{name}', which has not what the task '{task}' needs; wanted "
            f"{fitting[task]}, or another task."
        )
    if (name, task) == ("coco", "instance"):
        return read_coco(path, findings=findings, masks=True, **options)
    return _READERS[name][1](path, findings=findings, **options)


def _has_yaml(path: Path) -> bool:
    file = find_yolo_file(path)
    return file is not None and file.suffix.lower() in (".yaml", ".yml")


def _only_folder(path: Path) -> Path | None:
    """The one folder in `path`, where archives are often unpacked to; None if there are none or several."""
    if not path.is_dir():
        return None
    with os.scandir(path) as entries:
        folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return Path(folders[0].path) if len(folders) == 1 else None


def _what_was_looked_for(path: Path) -> str:
    if path.is_file():
        return f"{path} is no dataset; wanted a folder, a COCO annotation file (.json) or a YOLO description (.yaml)."
    entries = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
    shown = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
    return (
        f"{path} is in no format that is known. Looked for COCO: annotations/instances_*.json or "
        f"panoptic_*.json, or JSON files with 'images', 'annotations' and 'categories' in it or its sub-folders; "
        f"YOLO: a .yaml file with 'names', or classes.txt; Pascal VOC: .xml files that begin with <annotation>; "
        f"datasets: dataset_dict.json or state.json of save_to_disk, or .parquet files. "
        f"It holds: {shown or 'nothing'}."
    )
