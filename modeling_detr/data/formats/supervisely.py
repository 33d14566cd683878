"""Supervisely's projects (https://docs.supervisely.com/data-organization/00_ann_format_navi), also from Dataset Ninja.

meta.json  train/img/a.jpg  train/ann/a.jpg.json     a folder for each dataset; those named like splits are splits
"""

import base64
import io
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modeling_detr.data.dataset_format import BOXES_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.tool_exports import ToolExport, ends_of, files_with_suffix, sample_files
from modeling_detr.data.image_headers import opened_image
from modeling_detr.errors_detr import FileContentError, FileReadError
from modeling_detr.input_files import MAX_LIST_BYTES, read_json
from modeling_detr.structures_detr import DetectionIndex


_MAX_PNG_BYTES = 64 << 20  # of a bitmap, decompressed
_WITHOUT_AREA = ("point", "line", "polyline", "graph")


def _is_supervisely(path: Path) -> bool:
    return any(_looks_like_supervisely(file) for file in sample_files(path, ".json"))


def _looks_like_supervisely(file: Path) -> bool:
    text = ends_of(file)
    return (
        text.startswith(b"{")
        and all(key in text for key in (b'"size"', b'"objects"', b'"height"'))
        and (b'"classTitle"' in text or file.parent.name == "ann")
    )


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes)
    for file in files_with_suffix(Path(path), ".json"):
        if file.name != "meta.json" and not _looks_like_supervisely(file):
            continue
        try:
            content = read_json(file, MAX_LIST_BYTES)
        except (FileReadError, FileContentError) as error:
            findings.add("unreadable file", error, cause=error)
            continue
        if file.name == "meta.json":
            classes = content.get("classes") if isinstance(content, dict) else None
            export.list_classes(entry.get("title") for entry in classes or () if isinstance(entry, dict))
        elif isinstance(content, dict) and isinstance(content.get("objects"), list):
            _add(export, file, content)
        else:
            findings.error("unreadable file", file, "no list 'objects'", "export it again")
    return export.index()


def _add(export: ToolExport, file: Path, content: Mapping[str, Any]) -> None:
    name = file.stem  # with the image's suffix; without it in old projects
    written = content.get("size")
    size = (written.get("height"), written.get("width")) if isinstance(written, dict) else None
    image = export.add_image(file, [name], folder=file.parent, size=size)
    for number, entry in enumerate(content["objects"], start=1):
        if isinstance(entry, dict):
            title = entry.get("classTitle")
            shape = partial(_read_shape, entry, size or (0, 0), export.masks)
            export.add_object(image, title, number, shape, attributes=_attributes(entry))
        else:
            message = f"got {str(entry)[:80]}, expected an object"
            export.findings.error("box", f"{file}, object {number}", message, "correct or remove it")


def _attributes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The tags of an object, some of which have a value, and its description."""
    tags = entry.get("tags")
    attributes: dict[str, Any] = {"description": entry.get("description")}
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, dict) and isinstance(tag.get("name"), str):
            attributes[tag["name"]] = True if tag.get("value") is None else tag["value"]
    return attributes


def _read_shape(entry: Mapping[str, Any], size: tuple[Any, Any], with_holes: bool) -> DrawnShape | None:
    kind = entry.get("geometryType") or entry.get("shape") or ("bitmap" if entry.get("bitmap") else "polygon")
    if kind in _WITHOUT_AREA:
        return None
    if kind in ("bitmap", "alpha_mask"):
        return _read_bitmap(entry["bitmap"], size)
    points = entry["points"]
    exterior = points["exterior"] if isinstance(points, dict) else points  # a list in cuboids
    if kind == "polygon" and len(exterior) > 2:  # two points are a rectangle of an old project
        shape = drawn_shapes.polygon(exterior)
        holes = points.get("interior") if isinstance(points, dict) else None
        return drawn_shapes.without_holes(shape, holes, size) if holes and with_holes else shape
    outline = drawn_shapes.polygon(exterior)
    return DrawnShape("box" if kind in ("rectangle", "polygon") else str(kind), outline.box)


def _read_bitmap(bitmap: Mapping[str, Any], size: tuple[Any, Any]) -> DrawnShape:
    """Read a part of a mask: a PNG image, compressed once more and in base64."""
    left, top = bitmap["origin"]
    reader = zlib.decompressobj()
    try:
        png = reader.decompress(base64.b64decode(bitmap["data"]), _MAX_PNG_BYTES)
    except zlib.error as error:
        raise ValueError(f"not a compressed bitmap ({error})") from error
    with opened_image("bitmap", io.BytesIO(png), "bitmap") as image:
        inside = np.asarray(image.getchannel("A") if "A" in image.getbands() else image.convert("L")) > 0
    return drawn_shapes.mask(inside, left, top, (int(size[0]), int(size[1])))


FORMAT = DatasetFormat(
    name="supervisely",
    find=_is_supervisely,
    read=_read,
    looked_for="ann/*.json",
    evidence="folders ann/ with .json files that have 'size' and 'objects'",
    tasks=("detection", "instance"),
    options=(IMAGES_OPTION, BOXES_OPTION),
)
