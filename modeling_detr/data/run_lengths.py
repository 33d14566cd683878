"""Check COCO's compressed run-length encoding, which pycocotools' C code decodes without checking its length.

A run is a number of pixels, background and object in turn, column by column. It is written as one or more characters
with 5 bits each, the lowest first, and from the fourth run on as the difference to the run before the previous one.
"""

import numpy as np
from numpy.typing import NDArray


_BLOCK = 1 << 20  # characters checked at a time
_MAX_CHARACTERS = 6  # of a run: 29 bits and a sign, more than an image has pixels


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
