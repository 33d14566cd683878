"""The YOLO format: one text file for each image, with a line `class cx cy width height` for each object.

    data.yaml               names (list or mapping), train, val, test: folders, or lists of images (.txt)
    images/train/a.jpg      labels/train/a.txt
    train/images/a.jpg      train/labels/a.txt
    train/a.jpg             train/a.txt           labels beside the images

Without a YAML file, the class names may be in classes.txt, obj.names or _darknet.labels. Lines with more numbers are
boxes with a confidence, a track id or keypoints, or polygons, which become their enclosing boxes: `yolo_lines`. Images
without a label file are backgrounds; a note reports them if other images in their folder have one. Label files without
an image are reported too. Writes the first layout.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import AnnotationRows, clean_annotations
from modeling_detr.data.contents import SCORE
from modeling_detr.data.dataset_format import BOX_FORMAT_OPTION, BOXES_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.file_search import FileSearch, FolderListings
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.hf_boxes import to_corners
from modeling_detr.data.formats.yolo_description import (
    NAME_FILES,
    Description,
    describe,
    find_yaml,
    find_yolo_file,
)
from modeling_detr.data.formats.yolo_labels import find_label_files, read_labels, relative_path, report_line
from modeling_detr.data.formats.yolo_lines import LINES_OPTION, POLYGONS, Lines, check_convention, report_reading
from modeling_detr.data.formats.yolo_writing import CARRIES, HOLDS, write_yolo
from modeling_detr.data.image_headers import header_sizes
from modeling_detr.data.image_numbers import number_images
from modeling_detr.data.image_paths import image_folders, is_image_name, refuse_outside, walk_folders
from modeling_detr.data.masks import report_absent
from modeling_detr.data.orientation import orient
from modeling_detr.errors_detr import DatasetNotFoundError, DatasetReadError, FileContentError, FileReadError
from modeling_detr.input_files import MAX_LIST_BYTES, read_text
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


_LOOKED_FOR = f"a .yaml file with 'names', or one of {', '.join(NAME_FILES)}"


def read_yolo(
    path: str | Path,
    findings: Findings | None = None,
    images: str | Path | None = None,
    lines: str | None = None,
    box_format: str | None = None,
    boxes: str | None = None,
    masks: bool | Literal["optional"] = False,
) -> DetectionIndex:
    """Read a YOLO dataset. Sizes in pixels come from the headers of the images, after their EXIF orientation.

    Args:
        path: The dataset's folder, or its YAML file.
        findings: Collects problems; None: the first error is raised.
        images: A folder outside the dataset's folder that may contain images and labels.
        lines: What lines of more than five numbers are, `boxes` or `polygons`; None: detected, see `yolo_lines`.
        box_format: One of `BoxFormat`; None: `cxcywh_normalized`, but it is an error if the boxes look otherwise.
        boxes: `stored`: they are relative to the image without its EXIF orientation; None: to the upright one.
        masks: Keep polygons; objects without one are left out, unless it is "optional".

    Raises:
        DatasetNotFoundError: There is no description, no folder of a split, or no label file at all.
        DatasetError: The description or a line of a label file is invalid; the message names file and line.
    """
    file = find_yolo_file(Path(path))
    if file is None:
        raise DatasetNotFoundError(path, "no YOLO dataset", f"expected {_LOOKED_FOR}")
    findings = Findings() if findings is None else findings
    description = describe(file, Path(path), images, findings)
    listings = FolderListings()
    image_paths, splits = _list_images(description, listings, findings)
    refuse_outside(image_paths, [description.folder, images], findings)
    label_files = find_label_files(description, image_paths, listings, findings)
    refuse_outside([file for file in label_files if file], [description.folder, images], findings)

    categories = tuple(Category(class_id, description.names[class_id]) for class_id in sorted(description.names))
    label_of = {category.id: label for label, category in enumerate(categories)}
    records: list[ImageRecord] = []
    rows, long_lines, readable = AnnotationRows(), Lines(outlines=bool(masks)), np.zeros(len(image_paths), np.bool_)
    for index, (image, label_file) in enumerate(zip(image_paths, label_files, strict=True)):
        try:
            height, width = header_sizes(image)[boxes == "stored"]
        except (DatasetReadError, DatasetNotFoundError) as error:
            findings.add("unreadable image", error, image=image)
            continue
        if label_file is not None:
            scale = (1.0, 1.0) if _is_relative(box_format) else (float(width), float(height))
            read_labels(label_file, len(records), scale, label_of, description, rows, long_lines, findings)
        records.append(ImageRecord(relative_path(image, description.root), image, height, width))
        readable[index] = True
    if not readable.all():
        label_files = [file for file, kept in zip(label_files, readable, strict=True) if kept]
        new_index = np.cumsum(readable) - 1
        splits = {name: new_index[members[readable[members]]] for name, members in splits.items()}

    lines = POLYGONS if description.has_polygons and lines is None else lines
    table = _to_table(description, rows, long_lines, lines, box_format, records, label_files, findings, masks)
    no_box = np.zeros(0, np.int64), np.zeros((0, 4))  # relative ones fit any size
    records = orient(records, *no_box, boxes, description.source, findings, measured=range(len(records)))
    return DetectionIndex(
        name=description.root.resolve().name,
        images=number_images(records, splits.values()),
        categories=categories,
        annotations=table,
        splits=splits,
        notes=tuple(findings.notes),
    )


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    lines: str | None = None,
    box_format: str | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    masks: bool | Literal["optional"] = "optional" if task == "conversion" else task == "instance"
    return read_yolo(path, findings, images, lines, box_format, boxes, masks)


def _is_relative(box_format: str | None) -> bool:
    return box_format is None or box_format.endswith("_normalized")


def _to_table(
    description: Description,
    rows: AnnotationRows,
    long_lines: Lines,
    lines: str | None,
    box_format: str | None,
    records: Sequence[ImageRecord],
    label_files: Sequence[str | None],
    findings: Findings,
    masks: bool | Literal["optional"],
) -> AnnotationTable:
    """Decide what all lines are, and build the objects from them; `label_files` has the file of each record."""
    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    image_index = np.array(rows.image_index, dtype=np.int64)

    def describe_row(row: int) -> str:
        return f"{label_files[rows.image_index[row]]}, line {rows.place[row]}"

    written, kind = rows.boxes, (box_format or "cxcywh").partition("_")[0]
    if box_format is None:
        may_be_boxes = long_lines.may_be_boxes(len(written), description.has_keypoints, lines)
        written, kind = check_convention(description.source, written, sizes[image_index], kind, may_be_boxes, findings)
    corners = to_corners(written, np.ones((len(written), 2), np.int64), kind)
    reading = long_lines.decide(corners, description.has_keypoints, lines)
    report_reading(description.source, reading, findings, with_masks=bool(masks))
    invalid = long_lines.enclose(corners, reading)
    for row, count in invalid.items():
        report_line(describe_row(row), count, findings)
    column = long_lines.masks(sizes[image_index], _is_relative(box_format), reading) if masks else None
    maskless = [] if column is None or masks == "optional" else np.flatnonzero(~column.is_present).tolist()
    report_absent(maskless, len(corners), describe_row, findings)
    kept = np.delete(np.arange(len(corners)), [*invalid, *maskless])
    scores = long_lines.scores(len(corners), reading)
    with np.errstate(over="ignore"):  # infinite numbers are reported with the boxes
        boxes_xyxy = corners[kept] * sizes[image_index[kept]][:, [1, 0, 1, 0]]
    return clean_annotations(
        image_index=image_index[kept],
        label=np.array(rows.label, dtype=np.int64)[kept],
        boxes_xyxy=boxes_xyxy,
        image_sizes=sizes,
        describe=lambda row: describe_row(int(kept[row])),
        findings=findings,
        masks=None if column is None else column[kept],
        attributes={} if scores is None else {SCORE: scores[kept]},
    )


# Images


def _list_images(
    description: Description, listings: FolderListings, findings: Findings
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    index_of: dict[str, int] = {}  # an image in two splits is one image
    splits = {}
    for split, places in description.splits.items():
        members = []
        for place in places:
            is_list = place.is_file()
            paths = _from_list(place, description, listings, findings) if is_list else _from_folder(place, listings)
            if not paths:
                message = f"split '{split}' has no images in {place}"
                findings.warn(
                    "empty split",
                    f"{description.source}: {message}.",
                    "it remains empty",
                    [(description.source, message)],
                )
            members += [index_of.setdefault(path, len(index_of)) for path in paths]
        splits[split] = np.unique(np.array(members, dtype=np.int64))
    if not index_of:
        places_text = ", ".join(str(place) for places in description.splits.values() for place in places)
        where = f"in {places_text}" if places_text else "in any split"
        raise DatasetNotFoundError(description.source, f"no images {where}", "correct the split paths")
    return list(index_of), splits


def _from_folder(folder: Path, listings: FolderListings) -> list[str]:
    return [path for place, _ in walk_folders(os.path.normpath(folder)) for path in listings.images(place)]


def _from_list(file: Path, description: Description, listings: FolderListings, findings: Findings) -> list[str]:
    """Find the images that a list names, relative to the list or to the dataset."""
    paths: list[str] = []
    try:
        lines = (
            read_text(file, MAX_LIST_BYTES, "surrogateescape").replace("\r", "\n").split("\n")
        )  # as in the names of files
    except (FileReadError, FileContentError) as error:
        findings.add("unreadable file", error, cause=error)
        return paths
    root, usual = description.root, image_folders(str(file.parent), str(description.root))
    places = [place for place in usual if listings.names(place)]
    search = FileSearch([root, description.images], findings, listings)
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        matches = (search.find(spelling, places, str(file.parent)) for spelling in dict.fromkeys([line, name]))
        match = next((match for match in matches if match.paths), None)
        where = f"{file}, line {number}"
        if match is None or not is_image_name(match.paths[0].rpartition("/")[2]):
            problem = "which is not an image" if match else f"which is not in {root}{search.describe_similar(name)}"
            findings.error(
                "missing image",
                where,
                f"names '{name}', {problem}",
                "correct the path or remove the line",
                raises=DatasetNotFoundError,
            )
        elif match.path is None:
            search.report_ambiguous(match, where, name)
        else:
            paths.append(match.path)
    search.tell("image", file)
    return paths


FORMAT = DatasetFormat(
    name="yolo",
    find=lambda path: find_yaml(path) is not None,
    find_hints=lambda path: find_yolo_file(path) is not None,
    read=_read,
    looked_for="data.yaml",
    evidence="a .yaml file with 'names', or a list of classes beside label files",
    options=(IMAGES_OPTION, LINES_OPTION, BOX_FORMAT_OPTION, BOXES_OPTION),
    tasks=("detection", "instance"),
    write=write_yolo,
    carries=CARRIES,
    holds=HOLDS,
)
