"""Where labels go: near their object, within the picture, on no other label and preferably on no small object.

Shapes: P places · T labels that have their place · K objects; all in picture pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modeling_detr.visualization.colours import Colour


Places = Callable[[float, float], list[tuple[float, float]]]
"""Width and height of a label → its possible top left corners, the best first."""

_MOST_HIDDEN = 0.4  # of the area of an object


@dataclass(frozen=True)
class Label:
    """The name and score of an object.

    Attributes:
        name: The name of its class.
        score: Its score; None for ground truth.
        colour: The colour of its class.
        places: See `Places`.
    """

    name: str
    score: float | None
    colour: Colour
    places: Places


def around_box(box: tuple[float, float, float, float]) -> Places:
    """Places at the edges of a box (x0, y0, x1, y1): above it, in its upper corners, below it, at its sides."""
    x0, y0, x1, y1 = box

    def places(width: float, height: float) -> list[tuple[float, float]]:
        left, right, centre = x0, x1 - width, (x0 + x1 - width) / 2
        above, below, top, bottom, middle = y0 - height, y1, y0, y1 - height, (y0 + y1 - height) / 2
        sides = [(x1, top), (x0 - width, top), (x1, bottom), (x0 - width, bottom), (x1, middle), (x0 - width, middle)]
        corners = [(x, y) for y in (above, top, below, bottom) for x in (left, right, centre)]
        return [*corners, *sides]

    return places


def around_point(x: float, y: float) -> Places:
    """Places on a point and near it."""

    def places(width: float, height: float) -> list[tuple[float, float]]:
        shifts = [
            (0, 0),
            (0, -1),
            (0, 1),
            (-0.5, 0),
            (0.5, 0),
            (-0.5, -1),
            (0.5, -1),
            (-0.5, 1),
            (0.5, 1),
            (0, -2),
            (0, 2),
        ]
        return [(x + (right - 0.5) * width, y + (down - 0.5) * height) for right, down in shifts]

    return places


def free_place(
    places: list[tuple[float, float]],
    size: tuple[float, float],
    picture_size: tuple[int, int],
    taken: NDArray[np.float64],
    objects: NDArray[np.float64],
) -> tuple[int, int] | None:
    """The first place where a label overlaps no other, preferably one where it hides no small object.

    Args:
        places: Top left corners; those beyond the edge are moved into the picture.
        size: (width, height) of the label.
        picture_size: (width, height).
        taken: (T, 4) xyxy of the labels that have their place.
        objects: (K, 4) xyxy of the objects.

    Returns:
        x and y of the label's top left corner; None if there is no free place.
    """
    corners = np.clip(np.round(places), 0, np.maximum(0, np.subtract(picture_size, size)))  # (P, 2)
    boxes = np.concatenate([corners, corners + size], axis=1)
    is_free = (_overlaps(boxes, taken) == 0).all(1)
    if not is_free.any():
        return None
    areas = np.maximum((objects[:, 2:] - objects[:, :2]).prod(1), 1)
    hides = (_overlaps(boxes, objects) > _MOST_HIDDEN * areas).any(1)
    best = np.flatnonzero(is_free & ~hides if (is_free & ~hides).any() else is_free)[0]
    return int(corners[best, 0]), int(corners[best, 1])


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that each of P boxes shares with each of K others, (P, K)."""
    widths = np.minimum(boxes[:, None, 2], others[:, 2]) - np.maximum(boxes[:, None, 0], others[:, 0])
    heights = np.minimum(boxes[:, None, 3], others[:, 3]) - np.maximum(boxes[:, None, 1], others[:, 1])
    shared: NDArray[np.float64] = np.maximum(widths, 0) * np.maximum(heights, 0)
    return shared
