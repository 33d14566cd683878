"""Label Studio's JSON and JSON-MIN (https://labelstud.io/guide/export), and its older `completions`.

    export.json  images/…        a list of tasks, with the images in any folders beside it

Coordinates are percentages of the upright image. Images are found by the path in the task: `/data/local-files/?d=…`,
`/data/upload/…` and URLs, with or without the eight characters and hyphen that an upload puts before the name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.dataset_format import BOXES_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.label_studio_writing import CARRIES, HOLDS, write_label_studio
from modeling_detr.data.formats.object_attributes import attribute_name
from modeling_detr.data.formats.tool_exports import ToolExport, ends_of, files_with_suffix, sample_files
from modeling_detr.data.image_headers import MAX_PIXELS
from modeling_detr.data.image_paths import is_image_name
from modeling_detr.errors_detr import FileContentError, FileReadError
from modeling_detr.input_files import MAX_JSON_BYTES, read_json
from modeling_detr.structures_detr import DetectionIndex


_LABELS = re.compile(rb'"(rectangle|polygon|ellipse|brush|keypoint)labels"')
_IMAGE_KEYS = ("image", "img", "photo", "picture", "url", "ocr")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
_CONTROLS = ("choices", "text", "number", "rating", "taxonomy", "datetime")  # of a region, besides its labels
_MAX_BRUSH_BYTES = 1 << 20


def _is_label_studio(path: Path) -> bool:
    return any(_looks_like_label_studio(ends_of(file)) for file in sample_files(path, ".json"))


def _looks_like_label_studio(text: bytes) -> bool:
    has_tasks = b'"data"' in text and b'"result"' in text and (b'"annotations"' in text or b'"completions"' in text)
    return text[:1] in (b"[", b"{") and b'"categories"' not in text and (has_tasks or _LABELS.search(text) is not None)


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes, noun="region")
    skipped: list[str] = []
    several: list[str] = []
    for file in files_with_suffix(Path(path), ".json"):
        if not _looks_like_label_studio(ends_of(file)):
            continue
        try:
            content = read_json(file, MAX_JSON_BYTES)
        except (FileReadError, FileContentError) as error:
            findings.add("unreadable file", error, cause=error)
            continue
        tasks = content if isinstance(content, list) else [content]
        latest = {task.get("id"): task for task in tasks if _is_minimal(task)}  # one entry for each annotation
        for number, task in enumerate(tasks, start=1):
            if _is_minimal(task) and latest[task.get("id")] is not task:
                several.append(f"{file}, task {task.get('id')}")
            else:
                _read_task(export, file, number, task, skipped, several)
    _note(skipped, "task without a finished annotation", "tasks without a finished annotation", "left out", findings)
    _note(several, "task with several annotations", "tasks with several annotations", "read by one of them", findings)
    return export.index()


def _note(places: Sequence[str], one: str, many: str, action: str, findings: Findings) -> None:
    if places:
        are = "is" if len(places) == 1 else "are"
        note = f"{counted(len(places), one, many)} {are} {action}; the first: {places[0]}."
        findings.warn("no annotations", note, f"it is {action}", ((place, one) for place in places))


# Tasks


def _is_minimal(task: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a task is one of JSON-MIN, with an id."""
    return isinstance(task, dict) and "annotation_id" in task and isinstance(task.get("id"), int | str)


def _read_task(
    export: ToolExport, file: Path, number: int, task: object, skipped: list[str], several: list[str]
) -> None:
    where = f"{file}, task {task.get('id', f'number {number}') if isinstance(task, dict) else number}"
    data = _data_of(task) if isinstance(task, dict) else None
    name = _image_value(data) if data is not None else None
    if not isinstance(task, dict) or data is None or name is None:
        message = f"got {str(task)[:80]}, expected a task whose 'data' names an image"
        export.findings.error("image entry", where, message, "correct or remove it")
        return
    finished = _finished(task)
    if not finished:
        skipped.append(where)
        return
    if len(finished) > 1:
        several.append(where)
    image = export.add_image(where, _names(name, task.get("file_upload")), file=file)
    size = export.size(image, _written_size(finished[-1]))
    if size is None:
        return  # missing, which is reported with the others
    for region, (labels, value) in enumerate(_regions(finished[-1]), start=1):
        label = labels[0] if labels else None
        if len(labels) > 1:
            export.leave_out(image, region, "further label of a region", f"'{label}' is used")
        export.add_object(image, label, region, partial(_read_shape, value, size), attributes=_attributes(value))


def _data_of(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a task shows. In files of cloud storage, an annotation contains its task; in JSON-MIN, all is one level."""
    owner = task["task"] if isinstance(task.get("task"), dict) else task
    data = owner.get("data", task)
    return data if isinstance(data, dict) else None


def _image_value(data: Mapping[str, Any]) -> str | None:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    likely = [value for value in texts.values() if any(is_image_name(Path(name).name) for name in _names(value, None))]
    return next((texts[key] for key in _IMAGE_KEYS if key in texts), likely[0] if likely else None)


def _names(value: str, uploaded: object) -> list[str]:
    """The names under which an image may be found: as written, and without what an upload has changed."""
    path = value.partition("://")[2] or value
    if "?d=" in path:
        path = unquote(path.partition("?d=")[2].partition("&")[0])
    elif path != value:
        path = unquote(path.partition("?")[0])
    names = [path, *([uploaded] if isinstance(uploaded, str) and uploaded else [])]
    for name in list(names):
        folder, _, last = name.rpartition("/")
        plain = _UPLOAD_PREFIX.sub("", last)
        names += [f"{folder}/{plain}", f"{folder}/{plain.replace('_', ' ')}"]
    return names


def _finished(task: Mapping[str, Any]) -> list[Sequence[Any]]:
    """The results of a task's annotations, the one to be used at the end: of the ground truth, or the latest."""
    if "result" in task:  # a file of cloud storage
        return [task["result"]] if isinstance(task["result"], list) else []
    annotations = task.get("annotations", task.get("completions"))
    if "data" not in task:  # JSON-MIN: lists of regions under the names of their controls
        regions = [value for value in task.values() if isinstance(value, list)]
        return [[{"value": region} for value in regions for region in value if isinstance(region, dict)]]
    annotations = [entry for entry in annotations if isinstance(entry, dict)] if isinstance(annotations, list) else []
    kept = [entry for entry in annotations if not entry.get("was_cancelled") and isinstance(entry.get("result"), list)]
    kept.sort(key=lambda entry: (bool(entry.get("ground_truth")), str(entry.get("updated_at") or "")))
    return [entry["result"] for entry in kept]


def _regions(results: Sequence[Any]) -> Iterator[tuple[list[str], Mapping[str, Any]]]:
    """Yield labels and geometry of each region. Results with one id describe one region (a rectangle, its label)."""
    regions: dict[object, tuple[list[str], dict[str, Any]]] = {}
    for number, result in enumerate(results):
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict):
            continue
        identity = result.get("id") if isinstance(result.get("id"), str) else number
        labels, geometry = regions.setdefault(identity, ([], {}))
        for key, written in value.items():
            if key.endswith("labels") and isinstance(written, list):
                labels += [label for label in written if isinstance(label, str) and label not in labels]
            else:
                geometry[key] = written
    for labels, geometry in regions.values():
        if {"x", "points", "rle", "vertices", "sequence"} & set(geometry):  # not a choice or text about the image
            yield labels, geometry


def _attributes(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a region says besides its class: choices, such as `occluded`, and other controls."""
    choices = value.get("choices")
    marks = [choice for choice in choices if isinstance(choice, str)] if isinstance(choices, list) else []
    known = {choice: True for choice in marks if attribute_name(choice)}
    others = {key: value[key] for key in _CONTROLS if value.get(key)}
    return known | ({key: entry for key, entry in others.items() if key != "choices"} if known else others)


def _written_size(results: Sequence[Any]) -> tuple[object, object]:
    """Height and width of the image in the browser, which each region repeats."""
    written = (
        (place.get("original_height"), place.get("original_width"))
        for result in results
        if isinstance(result, dict)
        for place in (result, result.get("value"))  # JSON-MIN has it among the geometry
        if isinstance(place, dict)
    )
    return next((size for size in written if None not in size), (None, None))


# Shapes


def _read_shape(value: Mapping[str, Any], size: tuple[int, int]) -> DrawnShape | None:
    height, width = size
    if "rle" in value:
        return _read_brush(value["rle"], size)
    if "points" in value:
        return drawn_shapes.polygon([(float(x) / 100 * width, float(y) / 100 * height) for x, y in value["points"]])
    if "x" not in value or not {"radiusX", "height"} & set(value):
        return None
    x, y = float(value["x"]) / 100 * width, float(value["y"]) / 100 * height
    degrees = value.get("rotation") or 0
    if "radiusX" in value:
        radius_x, radius_y = float(value["radiusX"]) / 100 * width, float(value["radiusY"]) / 100 * height
        return drawn_shapes.ellipse(x, y, radius_x, radius_y, degrees)
    sides = float(value["width"]) / 100 * width, float(value["height"]) / 100 * height
    return drawn_shapes.rotated_box(x, y, *sides, degrees, "corner")


def _read_brush(codes: Sequence[int], size: tuple[int, int]) -> DrawnShape:
    """Decode a brush: run lengths of RGBA pixels, packed as bits (rle-pack of https://github.com/thi-ng/umbrella)."""
    if len(codes) > _MAX_BRUSH_BYTES:
        raise ValueError(f"more than {_MAX_BRUSH_BYTES:,} bytes of run lengths")
    bits = np.unpackbits(np.array(codes, dtype=np.uint8))
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("the run lengths end too early")
        return int.from_bytes(np.packbits(bits[place - count : place]).tobytes()) >> (-count % 8)

    total, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    height, width = size
    if total != 4 * height * width or total > 4 * MAX_PIXELS or word != 8:
        raise ValueError(f"run lengths of {total:,} values, expected 4 x {width} x {height}")
    pixels: NDArray[np.uint8] = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        if is_run:
            pixels[done : done + length] = read(8)
        else:
            if place + 8 * length > len(bits):
                raise ValueError("the run lengths end too early")
            values = np.packbits(bits[place : place + 8 * length])
            pixels[done : done + length] = values[: total - done]
            place += 8 * length
        done += length
    return drawn_shapes.mask(pixels.reshape(height, width, 4)[..., 3] > 0, 0, 0, size)


FORMAT = DatasetFormat(
    name="label_studio",
    find=_is_label_studio,
    read=_read,
    looked_for="*.json with 'data' and 'annotations'",
    evidence=".json files of tasks with 'data' and 'annotations', or with 'rectanglelabels' and the like",
    tasks=("detection", "instance"),
    options=(IMAGES_OPTION, BOXES_OPTION),
    write=write_label_studio,
    carries=CARRIES,
    holds=HOLDS,
)
