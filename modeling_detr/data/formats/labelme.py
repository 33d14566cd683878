"""LabelMe's JSON, one file for each image (https://github.com/wkentaro/labelme); also AnyLabeling's.

    a.json  a.jpg                       beside each other, in any folders
    images/a.jpg  annotations/a.json    or apart; `imagePath` says where, perhaps on another machine

An image that is not there is taken from `imageData` in the JSON. Shapes with the same label and `group_id` are parts
of one object.
"""

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modeling_detr.data.dataset_format import BOXES_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.tool_exports import ToolExport, ends_of, files_with_suffix, sample_files
from modeling_detr.data.image_headers import opened_image
from modeling_detr.errors_detr import DatasetReadError, FileContentError, FileReadError
from modeling_detr.input_files import MAX_LIST_BYTES, read_json
from modeling_detr.structures_detr import DetectionIndex


_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def _is_labelme(path: Path) -> bool:
    return any(_looks_like_labelme(ends_of(file)) for file in sample_files(path, ".json"))


def _looks_like_labelme(text: bytes) -> bool:
    return (
        text.startswith(b"{")
        and b'"shapes"' in text
        and any(key in text for key in (b'"imagePath"', b'"imageData"', b'"imageHeight"'))
    )


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes, noun="shape")
    others: list[Path] = []
    for file in files_with_suffix(Path(path), ".json"):
        try:
            content = read_json(file, MAX_LIST_BYTES)
        except (FileReadError, FileContentError) as error:
            findings.add("unreadable file", error, cause=error)
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            _add(export, file, content)
        else:
            others.append(file)
    if others:
        are = "is no LabelMe file and is" if len(others) == 1 else "are no LabelMe files and are"
        note = f"{counted(len(others), 'JSON file')} {are} left out; the first: {others[0]}."
        each = ((file, "has no list 'shapes'") for file in others)
        findings.warn("no annotations", note, "the file is left out", each)
    return export.index()


def _add(export: ToolExport, file: Path, content: Mapping[str, Any]) -> None:
    written = content.get("imagePath")
    size = content.get("imageHeight"), content.get("imageWidth")
    embedded = _read_embedded if content.get("imageData") else None
    names = [*([written] if isinstance(written, str) and written else []), file.stem]
    image = export.add_image(file, names, folder=file.parent, size=size, embedded=embedded)
    groups: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        if not isinstance(shape, dict):
            export.findings.error(
                "box", f"{file}, shape {number}", f"got {str(shape)[:80]}, expected an object", "fix it"
            )
            continue
        group = shape.get("group_id")
        key = (str(shape.get("label")), f"group {group}" if group is not None else f"shape {number}")
        groups.setdefault(key, []).append((number, shape))
    for members in groups.values():
        with_area = [(number, shape) for number, shape in members if shape.get("shape_type") not in _WITHOUT_AREA]
        number, first = (with_area or members)[0]
        shapes = [shape for _, shape in with_area]
        attributes = _attributes(first)
        export.add_object(image, first.get("label"), number, partial(_read_group, shapes, size), attributes=attributes)


def _attributes(shape: Mapping[str, Any]) -> dict[str, Any]:
    """What a shape says besides its class: flags of LabelMe, and what AnyLabeling adds."""
    attributes = {key: shape[key] for key in ("difficult", "score", "description") if shape.get(key) is not None}
    for written in (shape.get("flags"), shape.get("attributes")):
        attributes |= written if isinstance(written, dict) else {}
    return attributes


def _read_group(shapes: Sequence[Mapping[str, Any]], size: tuple[Any, Any]) -> DrawnShape | None:
    drawn = [_read_shape(shape, size) for shape in shapes]
    return drawn_shapes.join(drawn) if len(drawn) > 1 else drawn[0] if drawn else None


def _read_shape(shape: Mapping[str, Any], size: tuple[Any, Any]) -> DrawnShape:
    points, kind = shape["points"], shape.get("shape_type") or "polygon"
    if kind == "rectangle":
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return drawn_shapes.box(min(xs), min(ys), max(xs), max(ys))
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        return drawn_shapes.ellipse(x, y, radius, radius)
    if kind == "mask" and shape.get("mask"):
        (left, top), _ = points
        with opened_image("mask", io.BytesIO(base64.b64decode(shape["mask"])), "mask") as image:
            return drawn_shapes.mask(np.asarray(image.convert("L")) > 0, left, top, size)
    outline = drawn_shapes.polygon(points)
    return DrawnShape("rotated box", outline.box) if kind == "rotation" else outline


def _read_embedded(path: str) -> io.BytesIO:
    """Read the image inside a LabelMe file."""
    try:
        return io.BytesIO(base64.b64decode(read_json(path, MAX_LIST_BYTES)["imageData"]))
    except (LookupError, TypeError, binascii.Error, ValueError) as error:
        raise DatasetReadError(
            path, f"'imageData' is not an image in base64 ({error})", "add the image file"
        ) from error


FORMAT = DatasetFormat(
    name="labelme",
    find=_is_labelme,
    read=_read,
    looked_for="*.json with 'shapes'",
    evidence=".json files with 'shapes' and 'imagePath' or 'imageData'",
    tasks=("detection", "instance"),
    options=(IMAGES_OPTION, BOXES_OPTION),
)
