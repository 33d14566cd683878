"""Mosaics: four images in one, so that a step on few images sees more objects, sizes and neighbours.

Papers: YOLOv4 (arXiv 2004.10934), sec. 3.3. YOLOX (2107.08430), sec. 2.1, ends the training on plain images, which are
what the model will see. DEIM (2412.04234) has mosaics give more queries of a DETR a target ("dense one-to-one").

A mosaic has the size that the plain sample of its first image would have, so that batches are planned as without
mosaics. Each tile is a part of the sample that the policy would make of its image, at a smaller scale.

H, W pixels of the mosaic · N objects of all tiles.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchvision import tv_tensors

from modeling_detr.data.augmentation.geometry import Crop, GeometryPlan, take_objects
from modeling_detr.data.teacher_objects import ANNOTATED
from modeling_detr.structures_detr import DetectionSample, DetectionTarget


class MosaicLayout(NamedTuple):
    """What a mosaic consists of: the regions of its tiles, and the images of all but the first."""

    tiles: Sequence[Crop]
    partners: Sequence[int]


@dataclass(frozen=True)
class Mosaic:
    """Which samples are mosaics, and what they look like.

    Attributes:
        probability: Share of the samples that are mosaics, in [0, 1].
        num_epochs: Number of epochs with mosaics; all later ones are plain. None: all epochs have mosaics.
        min_scale: Smallest scale of a tile, relative to the plain sample of its image.
        max_scale: Largest such scale, unless the image is too small to fill its tile.
        margin: Smallest distance of the point where the tiles meet from the edges, as a share of the side.
        min_visibility: Objects of which the box has less than this share of its area in the tile are dropped.
    """

    probability: float = 0.5
    num_epochs: int | None = None
    min_scale: float = 0.5
    max_scale: float = 1.0
    margin: float = 0.25
    min_visibility: float = 0.25

    def in_epoch(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, has mosaics."""
        return self.probability > 0 and (self.num_epochs is None or epoch < self.num_epochs)

    def draw(
        self, image_index: int, num_images: int, size: tuple[int, int], generator: random.Random
    ) -> "MosaicLayout | None":
        """Draw whether a sample is a mosaic, and its layout; None: it is not.

        Args:
            image_index: The image of the first tile.
            num_images: Number of images of the dataset.
            size: Height and width of the sample, in pixels.
            generator: Source of the random numbers.
        """
        if generator.random() >= self.probability:
            return None
        rows, columns = (
            round(generator.uniform(self.margin, 1 - self.margin) * side) or min(1, side) for side in size
        )
        height, width = size
        tiles = [
            Crop(top, left, tile_height, tile_width)
            for top, tile_height in ((0, rows), (rows, height - rows))
            for left, tile_width in ((0, columns), (columns, width - columns))
            if tile_height and tile_width
        ]
        drawn = generator.sample(range(num_images), min(num_images, len(tiles)))
        partners = [index for index in drawn if index != image_index][: len(tiles) - 1]
        partners += generator.choices(range(num_images), k=len(tiles) - 1 - len(partners))
        return MosaicLayout(tiles, partners)

    def plan_tile(
        self, plan: GeometryPlan, size: tuple[int, int], tile: Crop, generator: random.Random
    ) -> GeometryPlan:
        """Plan a tile: a random part of the sample that `plan` makes, at a random scale, that fills the tile.

        Args:
            plan: The plan of the plain sample of the image.
            size: Height and width of the image, in pixels.
            tile: The region of the mosaic.
            generator: Source of the random numbers.
        """
        view = plan.crop or Crop(0, 0, *size)
        least = max(self.min_scale, tile.height / plan.height, tile.width / plan.width)
        scale = generator.uniform(least, max(least, self.max_scale))
        spans = []
        for start, side, shown, length in (
            (view.top, view.height, plan.height, tile.height),
            (view.left, view.width, plan.width, tile.width),
        ):
            part = min(side, max(1, round(side * length / (scale * shown))))
            spans.append((start + generator.randint(0, side - part), part))
        (top, part_height), (left, part_width) = spans
        return plan._replace(height=tile.height, width=tile.width, crop=Crop(top, left, part_height, part_width))


def compose(
    samples: Sequence[DetectionSample], tiles: Sequence[Crop], stuff_labels: Collection[int] = ()
) -> DetectionSample:
    """Put samples, each of the size of its tile, into one.

    Args:
        samples: A sample for each tile; the target keeps the `image_index` of the first.
        tiles: Regions that cover the mosaic.
        stuff_labels: Labels of stuff, of which an image has one region each: those of the tiles are joined.
    """
    height = max(tile.top + tile.height for tile in tiles)
    width = max(tile.left + tile.width for tile in tiles)
    # channels last in memory, as the decoder returns images
    image = torch.empty((height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    targets = [sample["target"] for sample in samples]
    boxes = []
    for sample, tile in zip(samples, tiles, strict=True):
        image[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = sample["image"]
        shift = torch.tensor([tile.left, tile.top, tile.left, tile.top], dtype=torch.float32)
        boxes.append(sample["target"]["boxes"].as_subclass(Tensor) + shift)
    target: DetectionTarget = {
        "boxes": tv_tensors.BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=(height, width)),
        "class_labels": torch.cat([one["class_labels"] for one in targets]),
        "area": torch.cat([one["area"] for one in targets]),
        "image_index": targets[0]["image_index"],
    }
    if "teacher_scores" in targets[0]:
        target["teacher_scores"] = torch.cat([one["teacher_scores"] for one in targets])
    if "masks" in targets[0]:
        target["masks"] = tv_tensors.Mask(_compose_masks([one["masks"] for one in targets], tiles, height, width))
    return {"image": tv_tensors.Image(image), "target": _join_stuff(target, stuff_labels)}


def _compose_masks(masks: Sequence[Tensor], tiles: Sequence[Crop], height: int, width: int) -> Tensor:
    """Put the masks of each tile (n, h, w) into masks (N, H, W)."""
    composed = torch.zeros((sum(map(len, masks)), height, width), dtype=torch.bool)
    start = 0
    for part, tile in zip(masks, tiles, strict=True):
        rows = composed[start : start + len(part)]
        rows[:, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = part.as_subclass(Tensor)
        start += len(part)
    return composed


def _join_stuff(target: DetectionTarget, stuff_labels: Collection[int]) -> DetectionTarget:
    """Join the regions of each class of stuff into one object, at the place of the first."""
    labels = target["class_labels"].tolist()
    if "teacher_scores" in target:  # the objects of a teacher are no regions of the annotation
        annotated = (target["teacher_scores"] == ANNOTATED).tolist()
        labels = [label if is_annotated else None for label, is_annotated in zip(labels, annotated, strict=True)]
    keep = torch.ones(len(labels), dtype=torch.bool)
    boxes, area = target["boxes"].as_subclass(Tensor).clone(), target["area"].clone()
    for label in {*labels} & {*stuff_labels}:
        rows = [row for row, other in enumerate(labels) if other == label]
        first, *others = rows
        keep[others] = False
        boxes[first] = torch.cat([boxes[rows, :2].amin(0), boxes[rows, 2:].amax(0)])
        area[first] = area[rows].sum()
        if "masks" in target:
            target["masks"][first] = target["masks"].as_subclass(Tensor)[rows].any(0)
    if bool(keep.all()):
        return target
    joined = {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"]), "area": area}
    return take_objects(cast(DetectionTarget, joined), keep)
