"""Reads datasets in COCO's panoptic format (https://cocodataset.org/#format-data): JSON files and folders of PNG.

    annotations/panoptic_train2017.json    annotations/panoptic_train2017/*.png    train2017/*.jpg

Every segment is an object: things one by one, stuff one region an image. Boxes and areas are those in the file, which
are of the mask: a box ends where its last pixel ends.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_detr.data.coco import CocoSplit, Entries, holds_segments, json_files, read_files
from modeling_detr.data.findings import Findings
from modeling_detr.data.image_files import locate_images
from modeling_detr.data.masks import PanopticMasks, ReadMasks, read_segment_ids
from modeling_detr.structures_detr import DetectionIndex, MaskColumn, PanopticResult


def find_panoptic_files(path: Path) -> list[Path]:
    """The panoptic annotation files of the dataset at `path`, a folder or one JSON file; none if it has none."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and holds_segments(path) else []
    official = sorted(path.glob("annotations/panoptic_*.json"))
    return official or [file for file in json_files(path) if holds_segments(file)]


def read_panoptic(path: str | Path, require_images: bool = True, findings: Findings | None = None) -> DetectionIndex:
    """Reads a COCO panoptic dataset: every annotation file of a folder as one split each, or one JSON file.

    PNG files are looked for in the folder named like their JSON, and in those beside it; they are read only when masks
    are asked for, or where the JSON gives no box of a segment. Categories say whether they are things. Crowd regions
    are kept for the evaluation. (The original trains on them as if each were one object.)

    Args:
        path: The dataset's folder, or one annotation file.
        require_images: See `read_coco`.
        findings: Takes what is wrong; None: the first error is raised.

    Raises:
        FileNotFoundError: There is no annotation file, or images or PNG files are missing.
        ValueError: A file is not what it should be; the message names file, entry and remedy.
    """
    path = Path(path)
    files = find_panoptic_files(path)
    if not files:
        raise FileNotFoundError(
            f"{path} holds no COCO panoptic annotations; looked for annotations/panoptic_*.json, and for other JSON "
            f"files in it and its sub-folders with 'segments_info' in them."
        )
    return read_files(path, files, require_images, findings, objects_of=_segments, read_masks=_read_masks)


def read_panoptic_predictions(path: str | Path, index: DetectionIndex) -> Iterator[tuple[int, PanopticResult]]:
    """Reads predictions in COCO's panoptic form, of whatever model: a JSON file and a folder of PNG of the same name.

    Args:
        path: The JSON file; of it only `annotations` are read.
        index: The dataset that they are of, by its own ids of images and categories.

    Yields:
        The position of each image in `index` and its segments, one image at a time.

    Raises:
        FileNotFoundError: A PNG file is missing.
        ValueError: The file is not what it should be, or is not of this dataset.
    """
    file = Path(path)
    try:
        annotations = json.loads(file.read_bytes())["annotations"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: holds no panoptic predictions ({error!r}); wanted JSON with 'annotations'."
        ) from error
    positions = {image.id: position for position, image in enumerate(index.images)}
    labels = {category.id: label for label, category in enumerate(index.categories)}
    for annotation in annotations:
        where = f"{file}: prediction of image {annotation.get('image_id')!r}"
        if annotation.get("image_id") not in positions:
            raise ValueError(f"{where}, which {index.name} does not have; give the dataset that it was made for.")
        for info in annotation["segments_info"]:
            if info["category_id"] not in labels:
                raise ValueError(f"{where} has category_id {info['category_id']}, which {index.name} does not have.")
        segments = read_segment_ids(str(file.with_suffix("") / annotation["file_name"]))
        yield (
            positions[annotation["image_id"]],
            {
                "segmentation": torch.from_numpy(segments),
                "segments_info": [
                    {"id": info["id"], "label_id": labels[info["category_id"]]} for info in annotation["segments_info"]
                ],
            },
        )


def _segments(split: CocoSplit, content: Mapping[str, Any], findings: Findings) -> Entries:
    """One entry a segment, which also says in which PNG it is."""
    image_names = {image.get("id"): str(image.get("file_name", "")) for image in content["images"]}
    written = [
        entry.get("file_name") or Path(image_names.get(entry.get("image_id"), "")).with_suffix(".png").name
        for entry in content["annotations"]
    ]
    folder = split.file.parent
    beside = [child for parent in (folder, split.root) for child in sorted(parent.iterdir()) if child.is_dir()]
    usual = split.file.with_suffix("")
    places = [usual, usual / usual.name, folder, split.root, *beside]
    paths = locate_images(written, [place for place in dict.fromkeys(places) if place.is_dir()])
    segments: list[dict[str, Any]] = []
    for entry, name, png in zip(content["annotations"], written, paths, strict=True):
        if png is None:
            archive = split.file.with_suffix(".zip")
            message = f"the panoptic image '{name}' is missing"
            remedy = f"unpack {archive} there" if archive.is_file() else f"put it into {usual}"
            findings.error("missing image", f"{split.file}:", message, remedy, raises=FileNotFoundError)
            continue
        infos = entry.get("segments_info")
        if not isinstance(infos, list) or not all(isinstance(info, dict) and "id" in info for info in infos):
            message = f"has no list 'segments_info' of objects with an 'id'; got {sorted(entry)}"
            where = f"{split.file}: annotation of image {entry.get('image_id')!r}"
            findings.error("image entry", where, message, "write the segments of its PNG there")
            continue
        own = [{**info, "image_id": entry.get("image_id"), "png": png} for info in infos]
        if any(not info.get("bbox") or 0 in info["bbox"][2:] for info in own):
            try:
                own = _measured(own, png)
            except OSError as error:
                findings.unreadable_image(png, error)
        segments += own
    return segments


def _measured(segments: list[dict[str, Any]], png: str) -> list[dict[str, Any]]:
    """The segments with box and area from their pixels."""
    identifiers = read_segment_ids(png)
    measured = []
    for segment in segments:
        rows, columns = np.nonzero(identifiers == segment["id"])
        if len(rows):
            left, top = int(columns.min()), int(rows.min())
            box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
            segment = {**segment, "bbox": box, "area": len(rows)}
        measured.append(segment)
    return measured


def _read_masks(
    entries: Entries,
    sizes: NDArray[np.int64],  # noqa: ARG001
    describe: Callable[[int], str],  # noqa: ARG001
    findings: Findings,  # noqa: ARG001
) -> ReadMasks:
    files = {png: number for number, png in enumerate(dict.fromkeys(entry["png"] for entry in entries))}
    source = PanopticMasks(
        files=tuple(files),
        file=np.array([files[entry["png"]] for entry in entries], dtype=np.int64),
        segment=np.array([entry["id"] for entry in entries], dtype=np.int64),
    )
    return MaskColumn.of(source, len(entries)), []
