"""CVAT's XML (https://docs.cvat.ai/docs/manual/advanced/xml_format/), for images and for videos.

    annotations.xml    images/a.jpg                   "CVAT for images": an <image> for each image
    annotations.xml    images/frame_000000.PNG        "CVAT for video": a <track> for each object, in numbered frames

Videos are read from their frames as image files: those of the export, or extracted with `ffmpeg -start_number 0`.
A frame without visible objects is an image without objects.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from modeling_detr.data.dataset_format import BOXES_OPTION, CROWDS_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.cvat_writing import CARRIES, HOLDS, write_cvat
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.tool_exports import ToolExport, ends_of, files_with_suffix, sample_files
from modeling_detr.data.formats.written_values import to_flag
from modeling_detr.data.image_headers import MAX_PIXELS
from modeling_detr.data.image_paths import is_image_name, walk_folders
from modeling_detr.errors_detr import DatasetNotFoundError, FileContentError, FileReadError
from modeling_detr.input_files import iterate_xml
from modeling_detr.structures_detr import DetectionIndex


_IGNORED = ("tag", "attribute")
_WITHOUT_AREA = ("points", "polyline", "skeleton")
_OUTLINES = ("polygon", "mask", "ellipse")


def _is_cvat(path: Path) -> bool:
    return any(_looks_like_cvat(ends_of(file)) for file in sample_files(path, ".xml"))


def _looks_like_cvat(text: bytes) -> bool:
    return (
        re.search(rb"<annotations[\s>]", text) is not None
        and re.search(rb"<(image|track|meta)[\s>]", text) is not None
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
    folders = [export.root, *([Path(images)] if images else [])]
    for file in files_with_suffix(Path(path), ".xml"):
        try:
            if _looks_like_cvat(ends_of(file)):
                _read_file(export, file, folders)
        except (FileReadError, FileContentError) as error:
            findings.add("unreadable file", error, cause=error)
    return export.index()


def _read_file(export: ToolExport, file: Path, folders: list[Path]) -> None:
    size: tuple[str | None, str | None] = (None, None)
    frames: dict[int, int] | None = None  # frame of a video → index of its image
    for number, element in enumerate(iterate_xml(file), start=1):
        if element.tag == "meta":
            export.list_classes(label.text or "" for label in element.iterfind(".//labels/label/name"))
            size = element.findtext(".//original_size/height"), element.findtext(".//original_size/width")
        elif element.tag == "image":
            _read_image(export, file, element)
        elif element.tag == "track":
            frames = _list_frames(export, file, folders, size) if frames is None else frames
            _read_track(export, file, number, element, frames, size)


# Images


def _read_image(export: ToolExport, file: Path, element: Element) -> None:
    size = element.get("height"), element.get("width")
    name, subset = element.get("name") or "", element.get("subset")
    image = export.add_image(
        f"{file}, image {element.get('id', '?')} ({name})",
        [f"{subset}/{name}", name] if subset and not name.startswith(f"{subset}/") else [name],
        file=file,
        size=size,
        split=subset or None,
    )
    parts: dict[object, tuple[int, list[Element]]] = {}  # of each object: outlines of one label and group are one
    for number, shape in enumerate(element, start=1):
        group = shape.get("group_id") or "0"
        is_part = shape.tag in _OUTLINES and group != "0"
        parts.setdefault((shape.get("label"), group) if is_part else number, (number, []))[1].append(shape)
    for number, shapes in parts.values():
        _add(export, image, shapes[0].get("label"), number, shapes, size)


def _add(
    export: ToolExport,
    image: int,
    label: str | None,
    number: int,
    shapes: Sequence[Element],
    size: tuple[str | None, str | None],
) -> None:
    tag = shapes[0].tag
    if tag == "tag":
        export.leave_out(image, number, "tag of a whole image", "is not an object")
    elif tag not in _IGNORED:
        attributes = {entry.get("name", ""): (entry.text or "").strip() for entry in shapes[0].iterfind("attribute")}
        attributes["occluded"] = shapes[0].get("occluded", "")
        is_crowd = to_flag(attributes.pop("is_crowd", None))  # as in CVAT's own export to COCO
        export.add_object(image, label, number, partial(_read_object, shapes, size), is_crowd, attributes)


def _read_object(shapes: Sequence[Element], size: tuple[str | None, str | None]) -> DrawnShape | None:
    drawn = [_read_shape(shape.tag, shape.attrib, size) for shape in shapes]
    return drawn_shapes.join([shape for shape in drawn if shape is not None]) if len(drawn) > 1 else drawn[0]


def _read_shape(tag: str, written: Mapping[str, str], size: tuple[str | None, str | None]) -> DrawnShape | None:
    if tag == "box":
        x0, y0, x1, y1 = (float(written[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return drawn_shapes.rotated_box(x0, y0, x1 - x0, y1 - y0, written.get("rotation") or 0, "centre")
    if tag == "polygon":
        return drawn_shapes.polygon([point.split(",") for point in written["points"].split(";") if point.strip()])
    if tag == "ellipse":
        x, y, radius_x, radius_y = (written[key] for key in ("cx", "cy", "rx", "ry"))
        return drawn_shapes.ellipse(x, y, radius_x, radius_y, written.get("rotation") or 0)
    if tag == "cuboid":
        corners = [
            (value, written[f"y{key[1:]}"]) for key, value in written.items() if re.fullmatch(r"x[tb][lr]\d", key)
        ]
        return DrawnShape("cuboid", drawn_shapes.polygon(corners).box)
    if tag == "mask":
        return _read_mask(written, size)
    if tag in _WITHOUT_AREA:
        return None
    raise ValueError(f"a <{tag}> is not known")


def _read_mask(written: Mapping[str, str], size: tuple[str | None, str | None]) -> DrawnShape:
    """Read run lengths along the rows of a part of the image, the first of them outside the object."""
    width, height = int(written["width"]), int(written["height"])
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"a mask of {width}x{height} pixels")
    runs = np.array(written["rle"].split(","), dtype=np.int64)
    if (runs < 0).any() or int(np.minimum(runs, MAX_PIXELS + 1).sum()) != width * height:
        raise ValueError("the runs do not cover exactly the mask")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return drawn_shapes.mask(inside, written["left"], written["top"], (int(size[0] or 0), int(size[1] or 0)))


# Videos


def _list_frames(
    export: ToolExport, file: Path, folders: list[Path], size: tuple[str | None, str | None]
) -> dict[int, int]:
    """Add the frames of a video, image files whose names end in a number, nearest to its XML file."""
    for folder in dict.fromkeys([file.parent / "images", file.parent, *folders]):
        paths: dict[int, Path] = {}
        for place, names in walk_folders(folder):
            for name in filter(is_image_name, names):
                digits = re.search(r"(\d{1,9})\.\w+$", name)
                if digits is not None:
                    paths.setdefault(int(digits[1]), Path(place) / name)
        if paths:
            return {
                frame: export.add_image(f"{file}, frame {frame}", [path.name], folder=path.parent, size=size)
                for frame, path in sorted(paths.items())
            }
    raise DatasetNotFoundError(
        file,
        "annotates a video, and its frames are not there as image files",
        "export it with images, or extract its frames: ffmpeg -i VIDEO -start_number 0 images/frame_%06d.png",
    )


def _read_track(
    export: ToolExport,
    file: Path,
    number: int,
    track: Element,
    frames: Mapping[int, int],
    size: tuple[str | None, str | None],
) -> None:
    for shape in track:
        if shape.tag in _IGNORED or shape.get("outside") == "1":  # not visible in this frame
            continue
        frame = shape.get("frame", "")
        image = frames.get(int(frame)) if frame.isdecimal() and len(frame) < 10 else None
        if image is None:
            export.findings.error(
                "missing image",
                f"{file}, track {track.get('id', number)}",
                f"is in frame {frame or '?'}, of which there is no image file",
                "add the frame, named with its number, or remove the track",
                raises=DatasetNotFoundError,
            )
            continue
        _add(export, image, track.get("label"), number, [shape], size)


FORMAT = DatasetFormat(
    name="cvat",
    find=_is_cvat,
    read=_read,
    looked_for="annotations.xml",
    evidence=".xml files that begin with <annotations> and have <image> or <track>",
    tasks=("detection", "instance"),
    options=(IMAGES_OPTION, BOXES_OPTION, CROWDS_OPTION),
    write=write_cvat,
    carries=CARRIES,
    holds=HOLDS,
)
