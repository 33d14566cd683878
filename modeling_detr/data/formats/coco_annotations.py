"""Read the annotations of a COCO file as columns. Only a column that fails to convert is examined entry by entry."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.annotations import clean_annotations, to_number
from modeling_detr.data.findings import Findings, counted, first_items
from modeling_detr.data.formats.object_attributes import (
    attribute_columns,
    attribute_name,
    named_attributes,
    unused_attributes,
)
from modeling_detr.data.formats.written_values import meaning_of_id, to_flag
from modeling_detr.data.masks import ReadMasks, boxes_of_segmentations
from modeling_detr.data.orientation import orient
from modeling_detr.structures_detr import AnnotationTable, ImageRecord


_KEYS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "attributes", "png"}
_NORMALIZED_LIMIT = 1.5  # boxes relative to the image end at 1, or slightly past it
_CORNERS_SHARE = 0.9  # of the boxes must fit into their images as corners to be taken for corners

Entries = Sequence[Mapping[str, Any]]  # objects of a JSON file
MaskReader = Callable[[Entries, NDArray[np.int64], Callable[[int], str], Findings], ReadMasks]


def read_annotations(
    file: Path,
    entries: Entries,
    records: Sequence[ImageRecord],
    label_of: Mapping[Any, int],
    findings: Findings,
    read_masks: MaskReader | None,
    box_format: str | None = None,
    drawn_on: str | None = None,
) -> tuple[list[ImageRecord], AnnotationTable]:
    """Read the annotations of one file; return its images, in the orientation of the boxes, and its objects.

    Args:
        file: The file, for messages.
        entries: Its annotations.
        records: Its images; `image_index` of the result refers to them.
        label_of: Category id, as written in the file → dense label.
        findings: Reports problems.
        read_masks: Reads the masks, see `coco_files.read_files`; None: masks are not read.
        box_format: See `coco.read_coco`.
        drawn_on: See `boxes` of `coco.read_coco`.
    """
    entries, image_index = _of_listed_images(file, entries, records, findings)
    label, unknown = _labels(file, entries, label_of, findings)
    entries, image_index, label = _without(unknown, entries, image_index, label)
    boxes, faulty = _read_boxes(file, entries, findings)
    entries, image_index, label = _without(faulty, entries, image_index, label)
    boxless = [row for row, entry in enumerate(entries) if lacks_box(entry)]
    if boxless:
        around = _boxes_of_masks(file, entries, boxless, image_index, records, box_format, findings)
        boxes[boxless] = np.where(np.isnan(around), boxes[boxless], around)
    corners = boxes if box_format == "xyxy" else boxes + np.pad(boxes[:, :2], [(0, 0), (2, 0)])
    records = orient(records, image_index, corners, drawn_on, file, findings)
    sizes = np.array([(record.height, record.width) for record in records], dtype=np.int64).reshape(-1, 2)
    masks = None
    if read_masks is not None:
        masks, maskless = read_masks(entries, sizes[image_index], _describer(file, entries), findings)
        entries, image_index, label = _without(maskless, entries, image_index, label)
        boxes = np.delete(boxes, maskless, axis=0)
    _check_normalized(file, boxes, sizes[image_index], findings)
    if box_format != "xyxy":
        _check_corners(file, boxes, sizes[image_index], findings, is_error=box_format is None)
        boxes[:, 2:] += boxes[:, :2]  # COCO writes x, y, width, height
    table = clean_annotations(
        image_index=image_index,
        label=label,
        boxes_xyxy=boxes,
        area=_read_areas(file, entries, findings),
        is_crowd=np.array([to_flag(entry.get("iscrowd")) for entry in entries], dtype=np.bool_),
        image_sizes=sizes,
        describe=_describer(file, entries),
        findings=findings,
        masks=masks,
        attributes=_read_attributes(file, entries, findings),
    )
    return records, table


def _describer(file: Path, entries: Entries) -> Callable[[int], str]:
    """Return a function that names a row of `entries` in messages."""

    def describe(row: int) -> str:
        entry = entries[row]
        return f"{file}, annotation {entry.get('id', f'number {row}')} of image {entry.get('image_id')!r}"

    return describe


# Which entries belong to the dataset


def _of_listed_images(
    file: Path, entries: Entries, records: Sequence[ImageRecord], findings: Findings
) -> tuple[Entries, NDArray[np.int64]]:
    """Select the entries whose image is in the file; also return the index of each one's image."""
    index_of: dict[Any, int] = {record.id: index for index, record in enumerate(records)}
    indices = _indices(file, "image_id", entries, index_of, findings)
    image_index = np.array(indices, dtype=np.int64)
    unlisted = np.flatnonzero(image_index < 0)
    if not len(unlisted):
        return entries, image_index
    describe = _describer(file, entries)
    belong = "annotation belongs to an image" if len(unlisted) == 1 else "annotations belong to images"
    are = "is" if len(unlisted) == 1 else "are"
    findings.warn(
        "no such image",
        f"{len(unlisted)} {belong} that the file does not list and {are} left out; the first: "
        f"{describe(int(unlisted[0]))}.",
        "the annotation is left out",
        ((describe(int(row)), "the file does not list its image") for row in unlisted),
    )
    entries = [entry for entry, index in zip(entries, indices, strict=True) if index >= 0]
    return entries, image_index[image_index >= 0]


def _labels(
    file: Path, entries: Entries, label_of: Mapping[Any, int], findings: Findings
) -> tuple[NDArray[np.int64], list[int]]:
    """Return the label of each entry, and the rows whose category is not in the dataset."""
    indices = _indices(file, "category_id", entries, label_of, findings)
    unknown = [row for row, index in enumerate(indices) if index < 0]
    describe = _describer(file, entries)
    for row in unknown:
        if "category_id" not in entries[row]:
            findings.error("unknown class", describe(row), "has no category_id", "add it, or remove the annotation")
            continue
        findings.error(
            "unknown class",
            describe(row),
            f"got category_id {entries[row].get('category_id')!r}, expected one of the dataset's categories: "
            f"{first_items(label_of)}",
            "add the category to the file's 'categories', or correct the annotation",
        )
    return np.array(indices, dtype=np.int64), unknown


def _indices(file: Path, key: str, entries: Entries, index_of: Mapping[Any, int], findings: Findings) -> list[int]:
    """Look up ids, which may have any type; -1 for unknown ones.

    An id written as text in one list and as a number in the other is found if it means only one.
    """
    ids = [entry.get(key) for entry in entries]
    try:
        indices = [index_of.get(value, -1) for value in ids]
    except TypeError:  # a list or an object instead of an id
        indices = [index_of.get(value, -1) if isinstance(value, Hashable) else -1 for value in ids]
    unknown = [row for row, index in enumerate(indices) if index < 0]
    if not unknown:
        return indices
    meanings: dict[object, set[int]] = {}
    for written, index in index_of.items():
        meanings.setdefault(meaning_of_id(written), set()).add(index)
    matched = []
    for row in unknown:
        candidates = meanings.get(meaning_of_id(ids[row]), set())
        if len(candidates) == 1:
            (indices[row],) = candidates
            matched.append(row)
    if matched:
        message = f"{counted(len(matched), key, f'{key}s')} written as text for a number, or the reverse"
        note = f"{file}: {message}; matched by value; the first: {ids[matched[0]]!r}."
        findings.warn("type of ids", note, "matched by value", [(file, message)])
    return indices


def _without(rows: Sequence[int], entries: Entries, *columns: NDArray[np.int64]) -> tuple[Any, ...]:
    if not rows:
        return entries, *columns
    dropped = set(rows)
    kept = [entry for row, entry in enumerate(entries) if row not in dropped]
    return kept, *(np.delete(column, rows) for column in columns)


# Boxes and areas


def lacks_box(entry: Mapping[str, Any]) -> bool:
    """Whether an annotation has no box of its own, an empty one, or one of zeros, as tools write for masks."""
    box = entry.get("bbox")
    return not box or (isinstance(box, list) and not any(box))


def _read_boxes(file: Path, entries: Entries, findings: Findings) -> tuple[NDArray[np.float64], list[int]]:
    """Read boxes (A, 4) as written, NaN where missing, without faulty rows; also return the faulty rows."""
    try:
        written = [entry["bbox"] for entry in entries]
        if set(map(type, written)) <= {list} and set(map(len, written)) <= {4}:
            return np.fromiter(chain.from_iterable(written), np.float64, 4 * len(written)).reshape(-1, 4), []
    except (KeyError, TypeError, ValueError, OverflowError):
        pass  # one of them is not four numbers: the loop below finds it
    describe = _describer(file, entries)
    boxes, faulty = np.full((len(entries), 4), np.nan), []
    for row, entry in enumerate(entries):
        box = entry.get("bbox")
        if box is None or box == []:
            continue
        try:
            boxes[row] = _four_numbers(box)
        except (TypeError, ValueError, OverflowError):
            message = f"got bbox {box!r}, expected four numbers [x, y, width, height] in pixels"
            findings.error("box", describe(row), message, "correct it, or remove the annotation")
            faulty.append(row)
    return np.delete(boxes, faulty, axis=0), faulty


def _boxes_of_masks(
    file: Path,
    entries: Entries,
    rows: Sequence[int],
    image_index: NDArray[np.int64],
    records: Sequence[ImageRecord],
    box_format: str | None,
    findings: Findings,
) -> NDArray[np.float64]:
    """Return boxes (n, 4) around the masks of rows without a box, as the file writes boxes; NaN without a mask."""
    members = [entries[row] for row in rows]
    sizes = np.array([(records[image].height, records[image].width) for image in image_index[list(rows)].tolist()])
    boxes = boxes_of_segmentations(members, sizes.reshape(-1, 2), _describer(file, members), findings)
    count = int(np.isfinite(boxes[:, 0]).sum())
    if count:
        message = f"{counted(count, 'annotation')} without 'bbox'"
        note = f"{file}: {message}; the boxes are those around the masks."
        findings.warn("no box", note, "the box around the mask is used", [(file, message)])
    if box_format == "xyxy":
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _four_numbers(box: object) -> tuple[float, float, float, float]:
    if not isinstance(box, list):
        raise TypeError
    x, y, width, height = (to_number(number) if isinstance(number, str) else float(number) for number in box)
    return x, y, width, height


def _read_areas(file: Path, entries: Entries, findings: Findings) -> NDArray[np.float64]:
    """Read areas (A,) as written, NaN where missing."""
    try:
        written = np.array([entry.get("area") for entry in entries], dtype=np.float64)
        if written.ndim == 1:
            return written
    except (TypeError, ValueError, OverflowError):
        pass  # one of them is not a number: the loop below finds it
    describe = _describer(file, entries)
    areas = np.full(len(entries), np.nan)
    for row, entry in enumerate(entries):
        area = entry.get("area")
        if area is None:
            continue
        try:
            areas[row] = float(area)
        except (TypeError, ValueError, OverflowError):
            message = f"got area {area!r}, expected a number of square pixels"
            findings.error("area", describe(row), message, "correct or remove it")
    return areas


def _read_attributes(file: Path, entries: Entries, findings: Findings) -> dict[str, NDArray[np.float64]]:
    """Read attributes, which CVAT and Datumaro write in a mapping of their own, and others beside the box.

    An object to `ignore` is a difficult one, as MMDetection writes those of Pascal VOC.
    """
    keys = Counter(chain.from_iterable(entries))
    nested = [entry["attributes"] for entry in entries if isinstance(entry.get("attributes"), dict)]
    unused = Counter({key: count for key, count in keys.items() if key not in _KEYS and attribute_name(key) is None})
    unused.update(name for attributes in nested for name in unused_attributes(attributes))
    if unused:
        names = [f"{str(name)[:80]} ({count:,})" for name, count in unused.most_common()]
        findings.facts.append(f"{file.name}: keys of annotations that are not used: {first_items(names, 8)}")
        findings.notes.append(f"{file}: keys of annotations that are not used: {first_items(names, 8)}.")
    if not nested and not any(map(attribute_name, keys)):
        return {}
    return attribute_columns([named_attributes(entry, entry.get("attributes")) for entry in entries])


def _check_normalized(file: Path, boxes: NDArray[np.float64], sizes: NDArray[np.int64], findings: Findings) -> None:
    """Report boxes relative to the image, which would pass as tiny boxes in its corner.

    Integers are taken as pixels, however small.
    """
    rows = np.isfinite(boxes).all(axis=-1)
    written = boxes[rows]
    if not len(written) or (sizes[rows] <= _NORMALIZED_LIMIT).any() or (written == np.floor(written)).all():
        return
    if written.min() >= 0 and written.max() <= _NORMALIZED_LIMIT:
        findings.error(
            "normalised boxes",
            file,
            f"the boxes look normalised (largest value {written.max():.4g}), expected x, y, width, height in pixels",
            "multiply them by the width and height of the image",
        )


def _check_corners(
    file: Path, boxes: NDArray[np.float64], sizes: NDArray[np.int64], findings: Findings, *, is_error: bool
) -> None:
    """Report boxes that are corners instead of x, y, width, height: many would end far outside.

    Args:
        file: The file, for messages.
        boxes: Its boxes (A, 4) as written.
        sizes: Height and width (A, 2) of their images.
        findings: Reports the problem.
        is_error: Whether boxes that also fit as corners are an error; otherwise a warning.
    """
    limits = sizes[:, ::-1] + 1.0  # one more pixel may be rounding
    past = np.any(boxes[:, :2] + boxes[:, 2:] > limits, axis=-1)
    if past.sum() <= len(boxes) / 3:
        return
    extend = "extends" if past.sum() == 1 else "extend"
    message = f"{int(past.sum())} of {counted(len(boxes), 'box', 'boxes')} {extend} past the edge of the image"
    fit = np.all((boxes[:, 2:] >= boxes[:, :2]) & (boxes[:, 2:] <= limits), axis=-1)
    if is_error and fit.mean() >= _CORNERS_SHARE:
        findings.error(
            "corners",
            file,
            f"{message}; the boxes look like corners, expected x, y, width, height",
            "to read them as corners, set box_format to xyxy; if they are correct, set it to xywh",
            {"box_format": "xyxy"},
        )
        return
    findings.warn(
        "corners",
        f"{file}: {message}; check that boxes are x, y, width, height, not corners.",
        "they are clipped; if they are corners, convert them to x, y, width, height",
        [(file, message)],
    )
