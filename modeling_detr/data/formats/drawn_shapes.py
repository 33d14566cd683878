"""Shapes as people draw them in annotation tools: their enclosing boxes, and their outlines for masks.

Coordinates are pixels; y points down, so that positive angles turn clockwise, as in all these tools.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_detr.coco_masks_detr import compressed_run_lengths, decode_coco_mask, invalid_run_lengths
from modeling_detr.data.image_headers import MAX_PIXELS


Box = tuple[float, float, float, float]  # corners
Point = tuple[float, float]

_OUTLINE_POINTS = 64  # of an ellipse


@dataclass(frozen=True, slots=True)
class DrawnShape:
    """A shape and its enclosing box.

    Attributes:
        kind: What it is, for messages; "box" if nothing is lost by using `box` alone.
        box: The smallest box around it.
        segmentation: COCO's polygons or run lengths of its inside; None for boxes, which do not say what is inside.
    """

    kind: str
    box: Box
    segmentation: Sequence[Sequence[float]] | Mapping[str, Any] | None = None


def box(x0: object, y0: object, x1: object, y1: object) -> DrawnShape:
    """A box from two opposite corners, in any order."""
    corners = np.array([[_number(x0), _number(y0)], [_number(x1), _number(y1)]])
    return DrawnShape("box", _enclosing(corners))


def rotated_box(left: object, top: object, width: object, height: object, degrees: object, about: str) -> DrawnShape:
    """A box that is turned about its `centre` or its top left `corner`."""
    x, y, w, h, angle = (_number(value) for value in (left, top, width, height, degrees))
    if angle % 360 == 0:
        return box(x, y, x + w, y + h)
    corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
    pivot = corners.mean(0) if about == "centre" else corners[0]
    return DrawnShape("rotated box", _enclosing(_turned(corners - pivot, angle) + pivot))


def polygon(points: Sequence[Sequence[object]]) -> DrawnShape:
    """A polygon from points (x, y)."""
    corners = _points(points)
    return DrawnShape("polygon", _enclosing(corners), [corners.ravel().tolist()])


def ellipse(x: object, y: object, radius_x: object, radius_y: object, degrees: object = 0) -> DrawnShape:
    """An ellipse from its centre and radii, turned about its centre; a circle if both radii are equal."""
    centre, radii = np.array([_number(x), _number(y)]), np.abs([_number(radius_x), _number(radius_y)])
    angle = math.radians(_number(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    half = np.array([math.hypot(radii[0] * cosine, radii[1] * sine), math.hypot(radii[0] * sine, radii[1] * cosine)])
    around = np.linspace(0, 2 * math.pi, _OUTLINE_POINTS, endpoint=False)
    outline = _turned(np.stack([np.cos(around), np.sin(around)], axis=-1) * radii, math.degrees(angle)) + centre
    kind = "circle" if radii[0] == radii[1] else "ellipse"
    return DrawnShape(kind, _enclosing(np.stack([centre - half, centre + half])), [outline.ravel().tolist()])


def mask(inside: NDArray[np.bool_], left: object, top: object, size: tuple[int, int]) -> DrawnShape:
    """A mask (h, w) whose top left pixel is at (left, top) of an image of `size` (height, width)."""
    from pycocotools import mask as coco_mask

    x, y = int(_number(left)), int(_number(top))
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        raise ValueError("an empty mask")
    corners: Box = (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
    height, width = size
    if not (0 < height * width <= MAX_PIXELS and x >= 0 and y >= 0):
        raise ValueError("a mask outside the image")
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside[: max(0, height - y), : max(0, width - x)]
    return DrawnShape("mask", corners, coco_mask.encode(whole))


def without_holes(shape: DrawnShape, holes: Sequence[Sequence[Sequence[object]]], size: tuple[Any, Any]) -> DrawnShape:
    """A polygon with holes, in an image of `size` (height, width)."""
    height, width = (int(_number(side)) for side in size)
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a mask of {width}x{height} pixels")
    inside = decode_coco_mask(shape.segmentation, height, width).astype(np.bool_)
    for hole in holes:
        inside &= ~decode_coco_mask(polygon(hole).segmentation, height, width).astype(np.bool_)
    return DrawnShape(shape.kind, shape.box, mask(inside, 0, 0, (height, width)).segmentation)


def run_lengths(written: Mapping[str, Any]) -> DrawnShape:
    """A mask of a whole image as COCO's run lengths, compressed or not."""
    from pycocotools import mask as coco_mask

    height, width = (int(_number(side)) for side in written["size"])
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a mask of {width}x{height} pixels")
    counts = compressed_run_lengths(written, height, width)
    if not counts or invalid_run_lengths(counts, np.array([[0, len(counts)]]), np.array([height * width])).any():
        raise ValueError("the runs do not cover exactly the image")
    compressed = {"size": [height, width], "counts": counts}
    x, y, w, h = coco_mask.toBbox(compressed).tolist()
    return DrawnShape("mask", (x, y, x + w, y + h), compressed)


def join(shapes: Sequence[DrawnShape]) -> DrawnShape:
    """Several shapes that are parts of one object, or describe all of it; boxes add nothing to its inside."""
    boxes = np.array([shape.box for shape in shapes])
    insides = [shape.segmentation for shape in shapes if shape.segmentation is not None]
    whole = insides[0] if len(insides) == 1 else _union(insides)
    kind = "group" if len(insides) > 1 or not insides else next(shape.kind for shape in shapes if shape.kind != "box")
    return DrawnShape(kind, (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()), whole or None)


def _union(insides: Sequence[Sequence[Sequence[float]] | Mapping[str, Any]]) -> Any:
    """All polygons, or one mask if there is a mask among them."""
    sizes = [inside["size"] for inside in insides if isinstance(inside, Mapping)]
    if not sizes:
        return [polygon for inside in insides for polygon in inside]
    height, width = sizes[0]
    whole = np.zeros((height, width), np.bool_)
    for inside in insides:
        whole |= decode_coco_mask(inside, height, width).astype(np.bool_)
    return mask(whole, 0, 0, (height, width)).segmentation


def visible_box(outline: Sequence[float], height: int, width: int) -> Box | None:
    """The box around the part of a polygon x, y, x, y, … that is in the image; None if there is none.

    It may be smaller than the part of the polygon's box in the image: a circle about a point outside is narrower at
    the edge than at its middle.
    """
    points = np.array(outline, dtype=np.float64).reshape(-1, 2)
    for axis, sign, limit in ((0, 1, 0), (1, 1, 0), (0, -1, -width), (1, -1, -height)):
        inside = sign * points[:, axis] - limit  # ≥ 0 where a point is on the right side of this edge of the image
        clipped = []
        for place in range(len(points)):
            before = inside[place - 1]
            if (before < 0) != (inside[place] < 0):
                share = before / (before - inside[place])
                clipped.append(points[place - 1] + share * (points[place] - points[place - 1]))
            if inside[place] >= 0:
                clipped.append(points[place])
        if not clipped:
            return None
        points = np.array(clipped)
    return _enclosing(points)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"got {str(value)[:80]!r}, expected a number")
    return float(value)


def _points(points: Sequence[Sequence[object]]) -> NDArray[np.float64]:
    if not isinstance(points, list | tuple) or not points:
        raise ValueError("no points")
    return np.array([(_number(x), _number(y)) for x, y, *_ in points])


def _enclosing(points: NDArray[np.float64]) -> Box:
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    return x0, y0, x1, y1


def _turned(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: NDArray[np.float64] = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned
