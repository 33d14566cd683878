"""Datumaro's own JSON (https://github.com/open-edge-platform/datumaro), which CVAT and Geti export too.

    annotations/train.json  images/train/a.jpg     a file for each subset, with the images in folders named like it

Annotations of one group and class are parts of one object, unless several of them are boxes.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modeling_detr.data.dataset_format import BOXES_OPTION, CROWDS_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.tool_exports import ToolExport, ends_of, files_with_suffix, sample_files
from modeling_detr.data.formats.written_values import to_flag
from modeling_detr.errors_detr import FileContentError, FileReadError
from modeling_detr.input_files import MAX_JSON_BYTES, read_json
from modeling_detr.structures_detr import DetectionIndex


_NOT_ATTRIBUTES = ("is_crowd", "rotation", "id", "track_id", "keyframe", "outside")  # read as such, or bookkeeping


def _is_datumaro(path: Path) -> bool:
    return any(_looks_like_datumaro(ends_of(file)) for file in sample_files(path, ".json"))


def _looks_like_datumaro(text: bytes) -> bool:
    if not text.startswith(b"{") or b'"items"' not in text:
        return False
    return b'"dm_format_version"' in text or re.search(rb'"categories"\s*:\s*\{\s*"label"\s*:\s*\{', text) is not None


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes, noun="annotation")
    for file in files_with_suffix(Path(path), ".json"):
        if not _looks_like_datumaro(ends_of(file)):
            continue
        try:
            content = read_json(file, MAX_JSON_BYTES)
        except (FileReadError, FileContentError) as error:
            findings.add("unreadable file", error, cause=error)
            continue
        _read_subset(export, file, content)
    return export.index()


def _read_subset(export: ToolExport, file: Path, content: Any) -> None:
    try:
        labels = [entry["name"] for entry in content["categories"]["label"]["labels"]]
        items = [(item["id"], item.get("annotations") or [], item) for item in content["items"]]
    except (LookupError, TypeError, AttributeError) as error:
        message = f"no list of labels or items ({type(error).__name__}: {str(error)[:80]})"
        export.findings.error("unreadable file", file, message, "export it again")
        return
    export.list_classes(labels)
    for item_id, annotations, item in items:
        where = f"{file}, item {str(item_id)[:200]!r}"
        described = item.get("image") or item.get("media") or {}
        written = described.get("path") if isinstance(described, dict) else None
        size = described.get("size") if isinstance(described, dict) else None
        names = [name for name in (written, item_id) if isinstance(name, str) and name]
        if not names or not isinstance(annotations, list):
            export.findings.error("image entry", where, "no id and image, or no list of annotations", "remove it")
            continue
        image = export.add_image(
            where,
            [name for written in names for name in (f"{file.stem}/{written}", written)],
            folder=file.parent,
            size=(size[0], size[1]) if isinstance(size, list) and len(size) == 2 else None,
            split=file.stem,
        )
        for number, members in _objects(annotations):
            _add(export, image, number, members, labels)


def _objects(annotations: Sequence[Any]) -> list[tuple[int, list[Mapping[str, Any]]]]:
    """The annotations of each object, with the number of the first."""
    groups: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for number, entry in enumerate(annotations, start=1):
        if isinstance(entry, dict):
            group = entry.get("group")
            key = str(entry.get("label_id")), f"group {group}" if group else f"annotation {number}"
            groups.setdefault(key, []).append((number, entry))
    objects = []
    for members in groups.values():
        with_area = [(number, entry) for number, entry in members if str(entry.get("type")) in _SHAPES]
        boxes = [entry for _, entry in members if entry.get("type") == "bbox"]
        if len(boxes) > 1 or not with_area:
            objects += [(number, [entry]) for number, entry in members]
        else:
            objects.append((with_area[0][0], [entry for _, entry in with_area]))
    return objects


def _add(
    export: ToolExport, image: int, number: int, members: Sequence[Mapping[str, Any]], labels: Sequence[Any]
) -> None:
    first = members[0]
    if first.get("type") in ("label", "caption"):
        export.leave_out(image, number, "label of a whole image", "is not an object")
        return
    label_id, attributes = first.get("label_id"), first.get("attributes")
    name = labels[label_id] if isinstance(label_id, int) and 0 <= label_id < len(labels) else None
    attributes = attributes if isinstance(attributes, dict) else {}
    is_crowd = to_flag(attributes.get("is_crowd"))
    others = {key: value for key, value in attributes.items() if key not in _NOT_ATTRIBUTES}
    export.add_object(image, name, number, partial(_read_shapes, members), is_crowd, others)


def _read_shapes(members: Sequence[Mapping[str, Any]]) -> DrawnShape | None:
    drawn = [_SHAPES[entry["type"]](entry) for entry in members if entry["type"] in _SHAPES]
    return drawn_shapes.join(drawn) if len(drawn) > 1 else drawn[0] if drawn else None


def _box(entry: Mapping[str, Any]) -> DrawnShape:
    x, y, width, height = entry["bbox"]
    return drawn_shapes.rotated_box(
        x, y, width, height, (entry.get("attributes") or {}).get("rotation") or 0, "centre"
    )


def _rotated_box(entry: Mapping[str, Any]) -> DrawnShape:
    x, y, width, height, degrees = entry["points"] if entry.get("points") else entry["rotated_bbox"]
    return drawn_shapes.rotated_box(x - width / 2, y - height / 2, width, height, degrees, "centre")


def _polygon(entry: Mapping[str, Any]) -> DrawnShape:
    points = entry["points"]
    return drawn_shapes.polygon([*zip(points[::2], points[1::2], strict=True)])


def _ellipse(entry: Mapping[str, Any]) -> DrawnShape:
    x0, y0, x1, y1 = entry["points"]
    return drawn_shapes.ellipse((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2)


def _mask(entry: Mapping[str, Any]) -> DrawnShape:
    return drawn_shapes.run_lengths(entry["rle"])


_SHAPES = {"bbox": _box, "rotated_bbox": _rotated_box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask}

FORMAT = DatasetFormat(
    name="datumaro",
    find=_is_datumaro,
    read=_read,
    looked_for="*.json with 'items'",
    evidence=".json files with 'dm_format_version', or with 'categories' of labels and 'items'",
    tasks=("detection", "instance"),
    options=(IMAGES_OPTION, BOXES_OPTION, CROWDS_OPTION),
)
