"""COCO's panoptic format (https://cocodataset.org/#format-data): JSON files and folders of PNG files. Read-only.

    annotations/panoptic_train2017.json    annotations/panoptic_train2017/*.png    train2017/*.jpg

Every segment is an object: each thing by itself, each kind of stuff as one region per image. Boxes and areas are taken
from the file. They describe the mask, so a box ends at its last pixel.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling_detr.data.dataset_format import CROWDS_OPTION, DatasetFormat
from modeling_detr.data.file_search import FileSearch
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.coco_annotations import Entries
from modeling_detr.data.formats.coco_files import CocoSplit, holds_segments, json_files, read_files
from modeling_detr.data.image_paths import refuse_outside
from modeling_detr.data.masks import PanopticMasks, ReadMasks, read_segment_ids
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError
from modeling_detr.input_files import read_json
from modeling_detr.structures_detr import DetectionIndex, MaskColumn, PanopticResult, Task


_LOOKED_FOR = "annotations/panoptic_*.json, or other JSON files with 'segments_info', and folders of PNG files"


def find_panoptic_files(path: Path) -> list[Path]:
    """Find the panoptic annotation files of the dataset at `path`, a folder or a JSON file; empty if it has none."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and holds_segments(path) else []
    official = sorted(path.glob("annotations/panoptic_*.json"))
    return official or [file for file in json_files(path) if holds_segments(file)]


def read_panoptic(path: str | Path, require_images: bool = True, findings: Findings | None = None) -> DetectionIndex:
    """Read a COCO panoptic dataset: each annotation file in a folder as one split, or a single JSON file.

    PNG files are searched for in the folder with the name of the JSON file, and in the folders beside it. They are
    read only when masks are needed, or where the JSON file lacks the box of a segment. Crowd regions are kept for
    evaluation. (The original trains on them as if each were a single object.)

    Args:
        path: The dataset's folder, or one annotation file.
        require_images: See `read_coco`.
        findings: Collects problems; None: the first error is raised.

    Raises:
        DatasetNotFoundError: There is no annotation file, or images or PNG files are missing.
        DatasetError: A file has unexpected content; the message names file, entry and remedy.
    """
    path = Path(path)
    files = find_panoptic_files(path)
    if not files:
        raise DatasetNotFoundError(path, "no COCO panoptic annotations", f"expected {_LOOKED_FOR}")
    return read_files(path, files, require_images, findings, objects_of=_segments, read_masks=_read_masks)


def _read(path: str | Path, *, findings: Findings, task: Task) -> DetectionIndex:  # noqa: ARG001
    return read_panoptic(path, findings=findings)


def read_panoptic_predictions(path: str | Path, index: DetectionIndex) -> Iterator[tuple[int, PanopticResult]]:
    """Read the predictions of any model in COCO's panoptic format: a JSON file, and a folder of PNG files beside it.

    Args:
        path: The JSON file, of which only `annotations` is read; the folder has its name, without `.json`.
        index: The dataset that was predicted on, with the same image and category ids.

    Yields:
        The index of each image in `index` and its segments, one image at a time.

    Raises:
        DatasetNotFoundError: A PNG file is missing.
        DatasetError: The file has unexpected content, or belongs to another dataset.
    """
    file = Path(path)
    content = read_json(file)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise DatasetError(file, "no panoptic predictions, expected JSON with a list 'annotations' of objects")
    image_index = {record.id: image for image, record in enumerate(index.images)}
    labels = {category.id: label for label, category in enumerate(index.categories)}
    for annotation in annotations:
        image_id, infos, name = (annotation.get(key) for key in ("image_id", "segments_info", "file_name"))
        where = f"{file}, prediction of image {image_id!r}"
        if not isinstance(image_id, Hashable) or image_id not in image_index:
            raise DatasetError(where, f"{index.name} has no such image", "use the dataset that was predicted on")
        if not _are_segments(infos):
            raise DatasetError(where, "no list 'segments_info' of objects with an integer 'id'")
        for info in infos:
            category_id = info.get("category_id")
            if not isinstance(category_id, Hashable) or category_id not in labels:
                raise DatasetError(where, f"category_id {category_id!r}, which {index.name} does not have")
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise DatasetError(where, f"'file_name' is {name!r}, expected the name of a PNG file without folders")
        segments = read_segment_ids(str(file.with_suffix("") / name))
        yield (
            image_index[image_id],
            {
                "segmentation": torch.from_numpy(segments),
                "segments_info": [{"id": info["id"], "label_id": labels[info["category_id"]]} for info in infos],
            },
        )


def _segments(split: CocoSplit, content: Mapping[str, Any], findings: Findings) -> Entries:
    """Return one entry for each segment, with the path of its PNG file."""
    segments: list[dict[str, Any]] = []
    names, paths = _locate_pngs(split, content, findings)
    refuse_outside([png for png in paths if png is not None], [split.root], findings)
    for entry, name, png in zip(content["annotations"], names, paths, strict=True):
        if png is None:
            archive, folder = split.file.with_suffix(".zip"), split.file.with_suffix("")
            message = f"the panoptic image '{name}' is missing"
            remedy = f"unpack {archive}" if archive.is_file() else f"put it into {folder}"
            findings.error("missing image", split.file, message, remedy, raises=DatasetNotFoundError)
            continue
        infos = entry.get("segments_info")
        if not _are_segments(infos):
            message = f"no list 'segments_info' of objects with an integer 'id', got {infos!r}"
            where = f"{split.file}, annotation of image {entry.get('image_id')!r}"
            findings.error("image entry", where, message, "list the segments of its PNG file in 'segments_info'")
            continue
        of_image = [{**info, "image_id": entry.get("image_id"), "png": png} for info in infos]
        if any(_lacks_box(info) for info in of_image):
            try:
                of_image = _measured(of_image, png)
            except (DatasetNotFoundError, DatasetReadError) as error:
                findings.add("unreadable image", error, image=png)
        segments += of_image
    return segments


def _are_segments(infos: object) -> bool:
    """Whether `infos` is a list of objects with ids that a PNG file can hold."""
    return isinstance(infos, list) and all(
        isinstance(info, dict) and type(info.get("id")) is int and abs(info["id"]) < 2**31 for info in infos
    )


def _lacks_box(info: Mapping[str, Any]) -> bool:
    box = info.get("bbox")
    return not box or (isinstance(box, list) and 0 in box[2:])


def _locate_pngs(
    split: CocoSplit, content: Mapping[str, Any], findings: Findings
) -> tuple[list[str], list[str | None]]:
    """Find the name of each annotation's PNG file and its path, None where the file is missing."""
    image_names = {
        image["id"]: str(image.get("file_name")) for image in content["images"] if type(image.get("id")) in (int, str)
    }
    names = []
    for entry in content["annotations"]:
        name, image_id = entry.get("file_name"), entry.get("image_id")
        if not isinstance(name, str) or not name:
            image_name = image_names.get(image_id, "") if isinstance(image_id, Hashable) else ""
            name = f"{Path(image_name).stem}.png"
        names.append(name)
    folder = split.file.parent
    beside = [child for parent in (folder, split.root) for child in sorted(parent.iterdir()) if child.is_dir()]
    usual = split.file.with_suffix("")
    places = dict.fromkeys([usual, usual / usual.name, folder, split.root, *beside])
    search = FileSearch([split.root], findings, split=split.name, by_stem=False)
    folders, paths = [str(place) for place in places if place.is_dir()], []
    for name, entry in zip(names, content["annotations"], strict=True):
        match = search.find(name, folders, str(folder))
        if len(match.paths) > 1:
            where = f"{split.file}, annotation of image {entry.get('image_id')!r}"
            search.report_ambiguous(match, where, name)
        paths.append(match.path)
    search.tell("panoptic PNG file", split.file)
    return names, paths


def _measured(segments: list[dict[str, Any]], png: str) -> list[dict[str, Any]]:
    """Measure box and area of the segments from their pixels."""
    segment_ids = read_segment_ids(png)
    measured = []
    for segment in segments:
        rows, columns = np.nonzero(segment_ids == segment["id"])
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
    files = {png: index for index, png in enumerate(dict.fromkeys(entry["png"] for entry in entries))}
    source = PanopticMasks(
        files=tuple(files),
        file=np.array([files[entry["png"]] for entry in entries], dtype=np.int64),
        segment=np.array([entry["id"] for entry in entries], dtype=np.int64),
    )
    return MaskColumn.of(source, len(entries)), []


FORMAT = DatasetFormat(
    name="coco_panoptic",
    find=lambda path: bool(find_panoptic_files(path)),
    read=_read,
    looked_for="panoptic_*.json",
    evidence="JSON files with 'segments_info'",
    tasks=("detection", "instance", "panoptic"),
    options=(CROWDS_OPTION,),
    defers_to=("coco",),
)
