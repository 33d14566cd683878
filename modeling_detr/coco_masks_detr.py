"""COCO's masks: polygons and RLE (run-length encoding), checked before pycocotools decodes them.

Its C code would crash or fill the memory at run lengths that do not cover their image, and at points far outside.

In compressed RLE a run is a number of pixels, background and object in turn, column by column. It is written as one or
more characters with 5 bits each, the lowest first, and from the fourth run on as the difference to the run before the
previous one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


try:  # needed only for masks
    from pycocotools import mask as coco_mask
except ImportError:
    coco_mask = None

MAX_POLYGONS = 10_000  # of a mask; they are merged one by one
MAX_OUTLINE = 1_000_000  # pixels, of a mask's polygons; pycocotools takes about 100 bytes for each

_BLOCK = 1 << 20  # characters checked at a time
_MAX_CHARACTERS = 6  # of a run: 29 bits and a sign, more than an image has pixels


def decode_coco_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Decodes the `segmentation` of a COCO annotation to a mask (H, W): polygons or RLE, compressed or not.

    Raises:
        TypeError, ValueError, KeyError, IndexError, OverflowError: It is malformed, or too large to decode.
    """
    if coco_mask is None:
        raise ImportError("return_segmentation_masks: needs pycocotools; pip install pycocotools.")
    if isinstance(segmentation, Mapping):
        counts = compressed_run_lengths(segmentation, height, width)
        whole, num_pixels = np.array([[0, len(counts)]]), np.array([height * width])
        if not counts or invalid_run_lengths(counts, whole, num_pixels).any():
            raise ValueError("the runs do not cover exactly the image")
        runs: Any = {"size": [height, width], "counts": counts}
    else:
        if len(segmentation or ()) > MAX_POLYGONS:
            raise ValueError(f"more than {MAX_POLYGONS:,} polygons")
        polygons = [
            np.asarray(polygon[: len(polygon) // 2 * 2], dtype=np.float64)
            for polygon in segmentation or ()
            if len(polygon) >= 6  # fewer than three points have no inside
        ]
        if not outline_length(polygons) < MAX_OUTLINE:  # also for NaN
            raise ValueError(f"points that are not finite, or an outline of {MAX_OUTLINE:,} pixels or more")
        runs = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    mask: NDArray[np.uint8] = coco_mask.decode(runs)
    return mask


def outline_length(polygons: Iterable[NDArray[np.float64]]) -> float:
    """The length of polygons x, y, x, y, …, and of the way to them from the corner of the image, in pixels."""
    total = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for polygon in polygons:
            points = polygon.reshape(-1, 2)
            steps = np.abs(points - np.roll(points, 1, axis=0)).max(-1)
            total = max(total, float(np.abs(points).max())) + float(steps.sum())
    return total


def compressed_run_lengths(segmentation: Mapping[str, Any], height: int, width: int) -> bytes:
    """Converts RLE to COCO's compressed form.

    Raises:
        KeyError: A part is missing.
        TypeError: A part has the wrong type.
        ValueError: They do not match the size of the image.
    """
    size, counts = [int(side) for side in segmentation["size"]], segmentation["counts"]
    if size != [height, width]:
        given = "x".join(map(str, reversed(size)))
        raise ValueError(f"size {given}, but the image is {width}x{height} (width x height)")
    if isinstance(counts, str):
        return counts.encode("ascii")
    if isinstance(counts, bytes):
        return counts
    if not isinstance(counts, list) or not all(
        (type(count) is int or isinstance(count, np.integer)) and count >= 0 for count in counts
    ):
        raise TypeError("the counts are no list of integers, or negative")
    if sum(counts) != height * width:
        raise ValueError(f"the counts add up to {sum(counts)}, but the image has {height * width} pixels")
    compressed: bytes = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)["counts"]
    return compressed


def invalid_run_lengths(text: bytes, spans: NDArray[np.int64], num_pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark encodings (R,) that are malformed or do not cover exactly their image.

    Args:
        text: All encodings, one after the other.
        spans: (R, 2) where each begins and ends in `text`; none is empty.
        num_pixels: (R,) number of pixels of each image.
    """
    invalid = np.zeros(len(spans), np.bool_)
    characters = np.frombuffer(text, np.uint8)
    first = 0
    while first < len(spans):
        stop = int(np.searchsorted(spans[:, 1], spans[first, 0] + _BLOCK, side="right"))
        rows = slice(first, max(stop, first + 1))
        block = characters[spans[rows][0, 0] : spans[rows][-1, 1]]
        invalid[rows] = _invalid(block, spans[rows, 0] - spans[first, 0], num_pixels[rows])
        first = rows.stop
    return invalid


def _invalid(
    characters: NDArray[np.uint8], starts: NDArray[np.int64], num_pixels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    codes = characters.astype(np.int64) - 48
    invalid: NDArray[np.bool_] = np.logical_or.reduceat((codes < 0) | (codes > 63), starts)
    ends_run = (codes & 32) == 0
    invalid |= ~ends_run[np.append(starts[1:], len(codes)) - 1]

    begins_run = np.append(True, ends_run[:-1])
    begins_run[starts] = True
    begins = np.flatnonzero(begins_run)
    lengths = np.diff(np.append(begins, len(codes)))
    first_run = np.searchsorted(begins, starts)  # of each row
    invalid |= np.maximum.reduceat(lengths, first_run) > _MAX_CHARACTERS

    places = np.minimum(np.arange(len(codes)) - np.repeat(begins, lengths), _MAX_CHARACTERS)
    numbers = np.add.reduceat((codes & 31) << 5 * places, begins)
    is_negative = (codes[begins + lengths - 1] & 16) > 0
    numbers -= is_negative.astype(np.int64) << 5 * np.minimum(lengths, _MAX_CHARACTERS)

    runs_of_row = np.diff(np.append(first_run, len(begins)))
    place_in_row = np.arange(len(begins)) - np.repeat(first_run, runs_of_row)
    runs = np.where(place_in_row == 0, numbers, 0)
    for parity in (0, 1):
        in_chain = (place_in_row % 2 == parity) & (place_in_row > 0)
        total = np.cumsum(np.where(in_chain, numbers, 0))
        before_row = np.append(0, total)[first_run]
        runs += np.where(in_chain, total - np.repeat(before_row, runs_of_row), 0)
    invalid |= np.minimum.reduceat(runs, first_run) < 0
    invalid |= np.add.reduceat(runs, first_run) != num_pixels
    return invalid
