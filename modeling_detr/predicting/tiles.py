"""Predict for an image in overlapping tiles: for images much larger than those that the model was trained on.

Each tile is predicted as an image of its own, and the whole image once more, for objects that are larger than the
overlap of tiles. What several of these see is then one object. The idea of tiles is that of SAHI (Akyon et al., arXiv
2202.06934). The merge differs: predictions of the same tile are never merged, because a DETR predicts each object
once, and an object that the edge of a tile cuts is put together from its parts if no prediction has it whole.

Shapes: K objects · T predictions of tiles · H, W pixels of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchvision.ops import box_iou

from modeling_detr.structures_detr import DetectionResult


DEFAULT_OVERLAP = 0.2
_SAME_OBJECT = 0.5  # IoU from which on two boxes of different tiles are one object
_PART = 0.7  # share of a cut box inside another box from which on it is a part of that object
_AT_EDGE = 0.01  # of a tile's side: a box that ends this close to an edge is cut by it


class Tile(NamedTuple):
    """A part of an image, in pixels; the ends are outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Tiling:
    """How images are divided.

    Attributes:
        size: Side of the square tiles, in pixels of the image.
        overlap: Share of a tile that it has in common with the next; objects up to this size are seen whole.

    Raises:
        ValueError: A number is out of range.
    """

    size: int
    overlap: float = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"tile: got {self.size}, expected at least 1 pixel.")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap: got {self.overlap}, expected 0 to 0.9.")

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The parts of an image that are predicted: its tiles, row by row, and last the whole image.

        All tiles have the same size; they overlap by at least `overlap`.
        """
        tall, wide = min(self.size, height), min(self.size, width)
        tiles = [
            Tile(left, top, left + wide, top + tall)
            for top in self._starts(height, tall)
            for left in self._starts(width, wide)
        ]
        whole = Tile(0, 0, width, height)
        return tiles if tiles == [whole] else [*tiles, whole]

    def _starts(self, length: int, side: int) -> list[int]:
        """Where tiles begin: evenly spread, from one edge of the image to the other."""
        step = max(1, int(side * (1 - self.overlap)))
        count = -(-(length - side) // step) + 1
        return [0] if count == 1 else [round(number * (length - side) / (count - 1)) for number in range(count)]


def without_small(result: DetectionResult, tiling: Tiling) -> DetectionResult:
    """The objects of the whole image that tiles need not see whole; they see smaller ones, and more exactly.

    Args:
        result: The objects of the whole image.
        tiling: How it is divided.
    """
    sides = result["boxes"][:, 2:] - result["boxes"][:, :2]
    keep = (sides > tiling.overlap * tiling.size).any(-1)
    return cast(DetectionResult, {name: values[keep] for name, values in cast(dict[str, Tensor], result).items()})


def merge_tiles(results: Sequence[DetectionResult], tiles: Sequence[Tile], size: tuple[int, int]) -> DetectionResult:
    """Puts the predictions of tiles together, so that each object occurs once.

    Whole objects come before those that an edge cuts, high scores before low ones. An object is left out if one of
    another tile, with the same class, came before it that overlaps it with an IoU of .5, or has 70 % of a cut one
    inside it. Cut objects on both sides of an edge that continue one another become one.

    Args:
        results: The objects in each tile, in pixels of the tile; boxes (K, 4) xyxy.
        tiles: The tiles.
        size: (height, width) of the image.

    Returns:
        The objects by descending score, in pixels of the image.
    """
    objects = _Objects.of(results, tiles, size)
    by_score = objects.scores.argsort(descending=True, stable=True)
    kept: list[int] = []
    for row in by_score[objects.is_cut[by_score].int().argsort(stable=True)].tolist():
        rivals = [one for one in kept if objects.labels[one] == objects.labels[row]]
        rivals = [one for one in rivals if not objects.tile_of[one] & objects.tile_of[row]]
        if not rivals:
            kept.append(row)
            continue
        overlap = box_iou(objects.boxes[row][None], objects.boxes[rivals])[0]
        touching = overlap.nonzero().flatten()  # a few of many, and only they can be the same object
        if not len(touching):
            kept.append(row)
            continue
        rivals, boxes = [rivals[index] for index in touching.tolist()], objects.boxes[rivals][touching]
        is_same = overlap[touching] >= _SAME_OBJECT
        if bool(objects.is_cut[row]):
            is_same |= _share_inside(objects.boxes[row], boxes) >= _PART
        if bool(is_same.any()):
            objects.tile_of[rivals[int(is_same.int().argmax())]] |= objects.tile_of[row]
            continue
        other = objects.continuation(row, rivals) if bool(objects.is_cut[row]) else None
        if other is None:
            kept.append(row)
        else:
            objects.join(other, row)
    rows = torch.tensor(kept, dtype=torch.int64)
    rows = rows[objects.scores[rows].argsort(descending=True, stable=True)]
    merged: DetectionResult = {
        "scores": objects.scores[rows],
        "labels": objects.labels[rows],
        "boxes": objects.boxes[rows],
    }
    if objects.masks is not None:
        merged["masks"] = objects.merged_masks(rows.tolist(), size)
    return merged


@dataclass
class _Objects:
    """The objects of all tiles, in pixels of the image.

    is_cut: (K,) whether an edge of its tile, inside the image, cuts it. tile_of: the tiles that each was seen in.
    masks: the parts of each mask, with their tiles, as masks of the whole image are large; None: there are no masks.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    is_cut: Tensor
    tile_of: list[set[int]]
    tiles: Sequence[Tile]
    masks: list[list[tuple[Tile, Tensor]]] | None

    @classmethod
    def of(cls, results: Sequence[DetectionResult], tiles: Sequence[Tile], size: tuple[int, int]) -> "_Objects":
        height, width = size
        boxes, cut, tile_of = [], [], []
        masks: list[list[tuple[Tile, Tensor]]] = []
        for number, (result, tile) in enumerate(zip(results, tiles, strict=True)):
            offset = torch.tensor([tile.left, tile.top, tile.left, tile.top], dtype=result["boxes"].dtype)
            boxes.append(result["boxes"] + offset)
            cut.append(_cut_by(boxes[-1], tile, height, width))
            tile_of += [{number} for _ in range(len(result["scores"]))]
            if "masks" in result:
                masks += [[(tile, mask)] for mask in result["masks"]]
        return cls(
            torch.cat([result["scores"] for result in results]),
            torch.cat([result["labels"] for result in results]),
            torch.cat(boxes),
            torch.cat(cut),
            tile_of,
            tiles,
            masks if any("masks" in result for result in results) else None,
        )

    def continuation(self, row: int, rivals: Sequence[int]) -> int | None:
        """The object of `rivals` on the other side of the edge that cuts the object `row`; None: there is none."""
        for other in rivals:
            if not bool(self.is_cut[other]):
                continue
            for one_tile in self.tile_of[row]:
                for other_tile in self.tile_of[other]:
                    shared = _intersection(self.tiles[one_tile], self.tiles[other_tile])
                    if shared is not None and _agree_inside(self.boxes[row], self.boxes[other], shared):
                        return other
        return None

    def join(self, other: int, row: int) -> None:
        """Makes the object `row` a part of `other`."""
        low = torch.minimum(self.boxes[other, :2], self.boxes[row, :2])
        high = torch.maximum(self.boxes[other, 2:], self.boxes[row, 2:])
        self.boxes[other] = torch.cat([low, high])
        self.scores[other] = torch.maximum(self.scores[other], self.scores[row])
        self.tile_of[other] |= self.tile_of[row]
        if self.masks is not None:
            self.masks[other] += self.masks[row]

    def merged_masks(self, rows: Sequence[int], size: tuple[int, int]) -> Tensor:
        """The masks (K, H, W) of some objects."""
        merged = torch.zeros(len(rows), *size, dtype=torch.bool)
        for mask, row in zip(merged, rows, strict=True):
            for tile, part in self.masks[row] if self.masks is not None else ():
                mask[tile.top : tile.bottom, tile.left : tile.right] |= part
        return merged


def _cut_by(boxes: Tensor, tile: Tile, height: int, width: int) -> Tensor:
    """Whether an edge of the tile that is inside the image cuts each box (K, 4); (K,) bool."""
    across, down = _AT_EDGE * (tile.right - tile.left), _AT_EDGE * (tile.bottom - tile.top)
    left, top, right, bottom = boxes.unbind(-1)
    return (
        ((left <= tile.left + across) & (tile.left > 0))
        | ((top <= tile.top + down) & (tile.top > 0))
        | ((right >= tile.right - across) & (tile.right < width))
        | ((bottom >= tile.bottom - down) & (tile.bottom < height))
    )


def _share_inside(box: Tensor, others: Tensor) -> Tensor:
    """The share of a box (4,) that is inside each of others (K, 4)."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    area = (box[2:] - box[:2]).clamp(min=1e-6).prod()
    return (high - low).clamp(min=0).prod(-1) / area


def _intersection(one: Tile, other: Tile) -> Tensor | None:
    """The pixels (4,) xyxy that two tiles share; None: none."""
    left, top = max(one.left, other.left), max(one.top, other.top)
    right, bottom = min(one.right, other.right), min(one.bottom, other.bottom)
    return torch.tensor([left, top, right, bottom]) if left < right and top < bottom else None


def _agree_inside(one: Tensor, other: Tensor, shared: Tensor) -> bool:
    """Whether two boxes (4,) look the same in the pixels that both of their tiles see."""
    first, second = (
        torch.cat([torch.maximum(box[:2], shared[:2]), torch.minimum(box[2:], shared[2:])])[None]
        for box in (one, other)
    )
    if bool((first[:, 2:] <= first[:, :2]).any() or (second[:, 2:] <= second[:, :2]).any()):
        return False
    return float(box_iou(first, second)) >= _SAME_OBJECT
