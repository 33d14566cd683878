"""Outlines of masks, for formats that hold one polygon for each object.

A polygon with several parts or holes is written as one line that visits all of them and comes back the same way. Where
the line goes and returns it encloses nothing, so by the even-odd rule, by which pycocotools and OpenCV fill polygons,
the mask stays the same.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from modeling_detr.coco_masks_detr import decode_coco_mask
from modeling_detr.data.masks import Segmentation, segmentations
from modeling_detr.structures_detr import DetectionIndex


Outline = NDArray[np.float64]  # (P, 2), x and y of its points in pixels, the last one followed by the first

_SAME = 0.01  # of the pixels of a mask may differ, because lines that go and return are rounded to pixels


def is_one_polygon(polygons: list[list[float]], height: int, width: int) -> bool:
    """Whether a mask is a single polygon in the image."""
    return len(polygons) == 1 and _is_inside(np.array(polygons[0]).reshape(-1, 2), height, width)


def _is_inside(outline: Outline, height: int, width: int) -> bool:
    return bool(((outline >= 0) & (outline <= (width, height))).all())


def outlines_of(segmentation: Segmentation, height: int, width: int) -> list[Outline]:
    """The outlines of a mask; none if it is empty.

    Polygons are returned as they are. Those that overlap, by which an even-odd polygon would get a hole, or leave the
    image, and RLE, are outlined along their pixels.

    Args:
        segmentation: The mask as COCO writes it.
        height: Height of the image.
        width: Width of the image.
    """
    if isinstance(segmentation, list):
        outlines = [np.array(polygon).reshape(-1, 2) for polygon in segmentation]
        if is_one_polygon(segmentation, height, width):
            return outlines
        if all(_is_inside(outline, height, width) for outline in outlines):
            inside = decode_coco_mask(segmentation, height, width)
            other = decode_coco_mask([joined(outlines).ravel().tolist()], height, width)
            if np.count_nonzero(inside != other) <= _SAME * np.count_nonzero(inside):
                return outlines
    return pixel_outlines(decode_coco_mask(segmentation, height, width).view(np.bool_))


def object_outlines(index: DetectionIndex, image: int) -> tuple[list[Outline | None], int]:
    """The polygon of each object of an image, None without a mask; also return how many have several parts."""
    record, masks = index.images[image], index.annotations.masks
    rows = index.annotation_rows(image)
    if masks is None:
        return [None] * (rows.stop - rows.start), 0
    height, width = record.height, record.width
    written = segmentations(masks[rows], height, width)
    parts = [[] if mask is None else outlines_of(mask, height, width) for mask in written]
    return [joined(outlines) if outlines else None for outlines in parts], sum(len(outlines) > 1 for outlines in parts)


def pixel_outlines(mask: NDArray[np.bool_]) -> list[Outline]:
    """The outlines of the regions of a mask (H, W) and of their holes, along the edges of the pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.int8)
    # Edges from point to point, with the inside on their right.
    down, across = np.diff(inside, axis=0), np.diff(inside, axis=1)
    next_of: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for steps, (x_step, y_step) in ((down, (1, 0)), (across, (0, 1))):
        for y, x in np.argwhere(steps).tolist():
            ends = [(x - x_step, y - y_step), (x, y)]
            start, end = ends if (steps[y, x] > 0) == (y_step == 0) else reversed(ends)
            next_of.setdefault(start, []).append(end)
    outlines = []
    while next_of:
        points = [next(iter(next_of))]
        while len(points) == 1 or points[-1] != points[0]:
            following = next_of[points[-1]]
            points.append(following.pop())
            if not following:
                del next_of[points[-2]]
        points.pop()
        outlines.append(_corners(np.array(points, dtype=np.float64)) + np.array([left, top]))
    return outlines


def _corners(points: Outline) -> Outline:
    """Drop the points of an outline at which it goes straight on."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns: Outline = points[(before != after).any(1)]
    return turns


def joined(outlines: list[Outline]) -> Outline:
    """One polygon with the same inside, by the even-odd rule: each outline is reached from the nearest point."""
    whole, *others = sorted(outlines, key=len, reverse=True)
    for other in others:
        distances, nearest = cKDTree(whole).query(other)
        there = int(np.argmin(distances))
        here = int(nearest[there])
        visit = np.roll(other, -there, axis=0)
        whole = np.concatenate([whole[: here + 1], visit, visit[:1], whole[here:]])
    return whole
