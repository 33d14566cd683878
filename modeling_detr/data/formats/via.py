"""VGG Image Annotator (https://www.robots.ox.ac.uk/~vgg/software/via): projects and exports of versions 1, 2 and 3.

    train/via_region_data.json  train/a.jpg     JSON or CSV with the images beside it, or in any folders

The class of a region is one of its attributes: the only one, or one with a usual name (label, class, type, …), or else
the option `class_attribute`. If no region has attributes, all are of one class, "object".
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modeling_detr.data.dataset_format import BOXES_OPTION, IMAGES_OPTION, DatasetFormat, Purpose, ReadingOption
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.drawn_shapes import DrawnShape
from modeling_detr.data.formats.tool_exports import ToolExport, ends_of, files_with_suffix, sample_files
from modeling_detr.errors_detr import DatasetError, FileContentError, FileReadError
from modeling_detr.input_files import MAX_JSON_BYTES, MAX_LIST_BYTES, read_json, read_text
from modeling_detr.structures_detr import DetectionIndex


_USUAL = ("label", "class", "classname", "category", "name", "type", "object", "objectname", "species")
_SHAPES_3 = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon", 8: "extreme"}
_WITHOUT_AREA = ("point", "line", "polyline")


@dataclass(frozen=True, slots=True)
class _Region:
    shape: Any  # as in version 2: {"name": "rect", "x": …}
    attributes: Any  # name → value


@dataclass(frozen=True, slots=True)
class _Annotated:
    file: Path
    name: str
    regions: Sequence[_Region]


def _is_via(path: Path) -> bool:
    return any(_looks_like_json(ends_of(file)) for file in sample_files(path, ".json")) or any(
        _looks_like_csv(ends_of(file)) for file in sample_files(path, ".csv")
    )


def _looks_like_json(text: bytes) -> bool:
    version_2 = b'"_via_img_metadata"' in text or all(key in text for key in (b'"filename"', b'"regions"'))
    version_3 = all(key in text for key in (b'"project"', b'"fid_list"', b'"vid"'))
    return text.startswith(b"{") and ((version_2 and b'"asset"' not in text) or version_3)


def _looks_like_csv(text: bytes) -> bool:
    return b"region_shape_attributes" in text or b"spatial_coordinates" in text


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
    class_attribute: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes, noun="region")
    annotated: list[_Annotated] = []
    for suffix, looks_right, read in ((".json", _looks_like_json, _read_json), (".csv", _looks_like_csv, _read_csv)):
        files = [file for file in files_with_suffix(Path(path), suffix) if looks_right(ends_of(file))]
        if annotated and files:
            note = f"{counted(len(files), 'CSV file')} beside JSON files left out; the first: {files[0]}."
            findings.warn(
                "no annotations", note, "the file is left out", ((file, "beside JSON files") for file in files)
            )
            break
        for file in files:
            try:
                annotated += read(file)
            except (FileReadError, FileContentError) as error:
                findings.add("unreadable file", error, cause=error)
            except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
                message = f"not as VIA writes it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                findings.error("unreadable file", file, message, "export it again")
    key = _class_attribute(export, annotated, class_attribute)
    for entry in annotated:
        image = export.add_image(f"{entry.file}, {entry.name}", [entry.name], file=entry.file)
        for number, region in enumerate(entry.regions, start=1):
            name = "object" if key is None else _value(region.attributes, key)
            written = region.attributes if isinstance(region.attributes, dict) else {}
            others = {name: _value(written, name) for name in written if name != key}
            export.add_object(image, name, number, partial(_read_shape, region.shape), attributes=others)
    return export.index()


# The class


def _class_attribute(export: ToolExport, annotated: Sequence[_Annotated], chosen: str | None) -> str | None:
    """The attribute with the classes; None if no region has any."""
    used: Counter[str] = Counter()
    for region in (region for entry in annotated for region in entry.regions):
        if isinstance(region.attributes, dict):
            used.update(key for key in region.attributes if _value(region.attributes, key))
    if chosen is not None:
        if chosen not in used:
            raise DatasetError("class_attribute", f"got '{chosen}'", f"the regions have {first_items(used) or 'none'}")
        return chosen
    if not used:
        if any(entry.regions for entry in annotated):
            export.findings.notes.append("No region has attributes: all are of one class, 'object'.")
        return None
    usual = [key for key in used if "".join(filter(str.isalnum, key)).lower() in _USUAL]
    likely = [*used] if len(used) == 1 else usual
    if len(likely) != 1:
        raise DatasetError(
            export.root,
            f"the regions have several attributes, {first_items(used)}, and any may be the class",
            "choose one",
            {"class_attribute": used.most_common(1)[0][0]},
        )
    if len(used) > 1:
        export.findings.notes.append(f"Of {first_items(used)}, the attribute '{likely[0]}' is the class.")
    return likely[0]


def _value(attributes: Any, key: str) -> str | None:
    """The value of an attribute; of a checkbox, the only one that is ticked."""
    value = attributes.get(key) if isinstance(attributes, dict) else None
    if isinstance(value, dict):
        ticked = [name for name, is_ticked in value.items() if is_ticked]
        value = ticked[0] if len(ticked) == 1 else None
    return str(value).strip() if isinstance(value, str | int | float) else None


# Files


def _read_json(file: Path) -> Iterator[_Annotated]:
    content = read_json(file, MAX_JSON_BYTES)
    if "view" in content and "metadata" in content:
        yield from _read_version_3(file, content)
        return
    options = {
        key: entry["options"]
        for key, entry in content.get("_via_attributes", {}).get("region", {}).items()
        if isinstance(entry.get("options"), dict)
    }
    for entry in content.get("_via_img_metadata", content).values():
        regions = entry["regions"]
        regions = regions.values() if isinstance(regions, dict) else regions  # in version 1
        yield _Annotated(
            file,
            str(entry["filename"]),
            [_Region(region["shape_attributes"], _named(region["region_attributes"], options)) for region in regions],
        )


def _named(attributes: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Attributes with the texts of the chosen options in place of their ids."""
    named: dict[str, Any] = {}
    for key, value in attributes.items():
        texts = options.get(key, {})
        if isinstance(value, dict):
            named[key] = {texts.get(option) or option: is_ticked for option, is_ticked in value.items()}
        else:
            named[key] = (texts.get(value) or value) if isinstance(value, str) else value
    return named


def _read_version_3(file: Path, content: Mapping[str, Any]) -> Iterator[_Annotated]:
    regions: dict[str, list[_Region]] = {view: [] for view in content["view"]}
    for entry in content["metadata"].values():
        if entry["xy"] and entry["vid"] in regions:
            regions[entry["vid"]].append(_region_3(entry["xy"], entry["av"], content["attribute"]))
    for view, members in regions.items():
        for file_id in content["view"][view]["fid_list"]:
            described = content["file"][file_id]
            yield _Annotated(file, str(described["fname"] or described["src"]), members)


def _region_3(xy: Sequence[Any], chosen: Mapping[str, Any], described: Mapping[str, Any]) -> _Region:
    names = {key: str(described.get(key, {}).get("aname", key)) for key in chosen}
    options = {names[key]: described.get(key, {}).get("options") or {} for key in chosen}
    return _Region(list(xy), _named({names[key]: value for key, value in chosen.items()}, options))


def _read_csv(file: Path) -> Iterator[_Annotated]:
    lines = read_text(file, MAX_LIST_BYTES).splitlines()
    comments = dict(line[1:].partition("=")[::2] for line in lines if line.startswith("#") and "=" in line)
    comments = {key.strip(): value.strip() for key, value in comments.items()}
    regions: dict[str, list[_Region]] = {}
    if "CSV_HEADER" in comments:  # version 3
        described = json.loads(comments.get("ATTRIBUTE", "{}"))
        for row in csv.reader(line for line in lines if line.strip() and not line.startswith("#")):
            _, names, _, _, xy, chosen = row[:6]
            for name in json.loads(names):
                members = regions.setdefault(name, [])
                if json.loads(xy):
                    members.append(_region_3(json.loads(xy), json.loads(chosen), described))
    else:
        header, *rows = csv.reader(lines)
        place = {name.strip().lstrip("#"): index for index, name in enumerate(header)}
        for row in filter(None, rows):
            members = regions.setdefault(row[place["filename"]], [])
            shape = json.loads(row[place["region_shape_attributes"]] or "{}")
            if shape:
                members.append(_Region(shape, json.loads(row[place["region_attributes"]] or "{}")))
    yield from (_Annotated(file, name, members) for name, members in regions.items())


# Shapes


def _read_shape(shape: Any) -> DrawnShape | None:
    kind, numbers = (_SHAPES_3.get(shape[0]), shape[1:]) if isinstance(shape, list) else (shape["name"], None)
    if kind in _WITHOUT_AREA:
        return None
    if kind == "rect":
        x, y, width, height = numbers or (shape[key] for key in ("x", "y", "width", "height"))
        return drawn_shapes.box(x, y, x + width, y + height)
    if kind == "circle":
        x, y, radius = numbers or (shape[key] for key in ("cx", "cy", "r"))
        return drawn_shapes.ellipse(x, y, radius, radius)
    if kind == "ellipse":
        x, y, radius_x, radius_y = numbers or (shape[key] for key in ("cx", "cy", "rx", "ry"))
        theta = 0 if numbers else float(shape.get("theta") or 0)
        return drawn_shapes.ellipse(x, y, radius_x, radius_y, math.degrees(theta))
    if kind in ("polygon", "extreme"):
        points = (
            zip(numbers[::2], numbers[1::2], strict=True)
            if numbers
            else zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        )
        outline = drawn_shapes.polygon([*points])
        return outline if kind == "polygon" else DrawnShape("box", outline.box)
    raise ValueError(f"a shape of kind {str(kind)[:80]!r} is not known")


FORMAT = DatasetFormat(
    name="via",
    find=_is_via,
    read=_read,
    looked_for="via_*.json",
    evidence=".json files with '_via_img_metadata' or 'shape_attributes', or .csv files with region_shape_attributes",
    tasks=("detection", "instance"),
    options=(
        IMAGES_OPTION,
        BOXES_OPTION,
        ReadingOption("class_attribute", "attribute of the regions of VIA that is their class", str),
    ),
)
