"""Read predictions in COCO's results format, as `detr evaluate` and most other detectors write them.

    [{"image_id": 42, "category_id": 18, "bbox": [258.2, 41.3, 348.3, 243.8], "score": 0.236}, ...]

A `bbox` is left, top, width and height in pixels. K rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.errors_detr import PredictionError
from modeling_detr.input_files import read_json
from modeling_detr.structures_detr import DetectionIndex, ImageRecord


_EXPECTED = "expected COCO's results format, a list of {image_id, category_id, bbox, score}"
_EVALUATE = "`detr evaluate MODEL DATASET --split SPLIT` writes such a file"


@dataclass(frozen=True, eq=False)
class ResultRows:
    """The rows of a results file.

    Attributes:
        image_ids: K ids of images.
        category_ids: (K,) int64.
        boxes_xyxy: (K, 4) float64, corners in pixels; unchecked, so they may be NaN.
        scores: (K,) float64; unchecked.
        file_names: K names of the images' files, which some tools add; None if a row has none.
        have_masks: Whether a row has a mask.
    """

    image_ids: Sequence[int | str]
    category_ids: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    file_names: Sequence[str] | None
    have_masks: bool

    def __len__(self) -> int:
        return len(self.scores)


def read_results(path: str | Path) -> ResultRows:
    """Read a results file; a million rows take a few seconds.

    Raises:
        FileMissingError: It does not exist.
        PredictionError: It has another format, or no rows; the message names the row.
    """
    rows = read_json(path)
    _check_is_results(path, rows)
    try:
        boxes = _numbers([row["bbox"] for row in rows])
        scores = _numbers([row["score"] for row in rows])
        categories = _numbers([row["category_id"] for row in rows])
        image_ids = [row["image_id"] for row in rows]
        if boxes.shape != (len(rows), 4) or scores.ndim != 1 or categories.ndim != 1:
            raise ValueError
        if {*map(type, image_ids)} - {int, str} or not (categories == np.floor(categories)).all():
            raise ValueError
        if not (np.abs(categories) < 2**53).all():
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        _raise_for_first_wrong_row(path, rows)
        raise  # no row is wrong by itself
    boxes[:, 2:] += boxes[:, :2]
    names = [row.get("file_name") for row in rows]
    return ResultRows(
        image_ids=image_ids,
        category_ids=categories.astype(np.int64),
        boxes_xyxy=boxes,
        scores=scores,
        file_names=names if all(isinstance(name, str) for name in names) else None,
        have_masks=any("segmentation" in row for row in rows),
    )


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    """Convert numbers, or lists of numbers, to an array; unlike NumPy, refuse text and booleans."""
    array = np.array(values)
    if array.dtype.kind not in "iuf":
        raise TypeError
    return array.astype(np.float64)


def _check_is_results(path: str | Path, values: object) -> None:
    """Raise an error unless `values` is a list of objects that may be results."""
    if isinstance(values, Mapping) and {"images", "annotations"} <= {*values}:
        raise PredictionError(path, f"is a COCO dataset, {_EXPECTED}", _EVALUATE)
    if not isinstance(values, list):
        keys = f" with the keys {', '.join(map(str, [*values][:8]))}" if isinstance(values, Mapping) and values else ""
        raise PredictionError(path, f"contains a {type(values).__name__}{keys}, {_EXPECTED}", _EVALUATE)
    if not values:
        raise PredictionError(path, "is an empty list: it has no predictions", _EVALUATE)
    first = values[0]
    if isinstance(first, Mapping) and "detections" in first:
        raise PredictionError(path, f"is the list of `detr predict`, {_EXPECTED}", _EVALUATE)
    if isinstance(first, Mapping) and "segments_info" in first:
        raise PredictionError(path, f"has panoptic segments, {_EXPECTED}", _EVALUATE)


def _raise_for_first_wrong_row(path: str | Path, rows: Sequence[object]) -> None:
    for number, row in enumerate(rows, start=1):
        problem = _problem(row)
        if problem:
            raise PredictionError(f"{path}, row {number:,} of {len(rows):,}", problem)


def _problem(row: object) -> str | None:
    """What is wrong with a row; None if nothing is."""
    if not isinstance(row, Mapping):
        return f"is a {type(row).__name__}, expected an object with image_id, category_id, bbox and score"
    if "bbox" not in row and "segmentation" in row:
        return (
            "has a mask but no bbox, expected [x, y, width, height]; `detr evaluate` writes boxes to predictions.json"
        )
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in row:
            return f"has no {key}; it has {', '.join(map(str, row)) or 'nothing'}"
    image_id, category, box, score = (row[key] for key in ("image_id", "category_id", "bbox", "score"))
    if type(image_id) not in (int, str):
        return f"image_id is {image_id!r}, expected an integer or a text"
    if not _is_number(category) or not float(category).is_integer() or abs(category) >= 2**53:
        return f"category_id is {category!r}, expected an integer"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox is {box!r}, expected four numbers [x, y, width, height] in pixels"
    return None if _is_number(score) else f"score is {score!r}, expected a number"


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


# The images of the rows


def match_images(rows: ResultRows, index: DetectionIndex) -> NDArray[np.int64]:
    """Find the images of the rows, (K,) indices in `index.images`; -1 if the dataset has no such image.

    Rows with a `file_name` are matched by it. The others are matched by the ids that the dataset has in COCO files;
    or, if this finds more images, by file names without extension (`7` is `0007.jpg`), which some tools use as ids.
    """
    if rows.file_names is not None:
        found = _look_up(rows.file_names, _by_name(index.images))
        if (found >= 0).any():
            return found
    by_id = _look_up(rows.image_ids, _by_id(index.images))
    by_name = _look_up(rows.image_ids, _by_name(index.images))
    return by_name if len(np.unique(by_name[by_name >= 0])) > len(np.unique(by_id[by_id >= 0])) else by_id


def _look_up(keys: Sequence[int | str], index_of: Mapping[int | str, int]) -> NDArray[np.int64]:
    return np.fromiter((index_of.get(key, -1) for key in keys), np.int64, len(keys))


def _by_id(images: Sequence[ImageRecord]) -> dict[int | str, int]:
    """Each id, as a number and as text, and the index of its image."""
    return _unique(
        [(key, number) for number, image in enumerate(images) for key in (image.coco_id, str(image.coco_id))]
    )


def _by_name(images: Sequence[ImageRecord]) -> dict[int | str, int]:
    """The path of each file, its name, its stem, and the number that the stem may be, and the index of its image."""
    pairs: list[tuple[int | str, int]] = []
    for number, image in enumerate(images):
        path = PurePosixPath(Path(image.path).as_posix())
        pairs += [(name, number) for name in {image.path, str(path), path.name, path.stem}]
        if path.stem.isascii() and path.stem.isdigit() and len(path.stem) < 19:
            pairs.append((int(path.stem), number))
    return _unique(pairs)


def _unique(pairs: Sequence[tuple[int | str, int]]) -> dict[int | str, int]:
    """Drop the keys that several images share."""
    index_of: dict[int | str, int] = {}
    shared: set[int | str] = set()
    for key, number in pairs:
        if index_of.setdefault(key, number) != number:
            shared.add(key)
    return {key: number for key, number in index_of.items() if key not in shared}
