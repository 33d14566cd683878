"""The built-in dataset `shapes`, whose images are drawn on demand (`shape_scenes`)."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling_detr.data.dataset_format import DatasetFormat
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.shape_scenes import (
    GROUND,
    coverage,
    draw_scene,
    is_shapes,
    parse_image_path,
    parse_options,
    render,
)
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord, MaskColumn, Task


@dataclass(frozen=True, slots=True, eq=False)
class ShapeMasks:
    """The visible part of each shape, drawn on demand.

    Attributes:
        paths: Virtual path of each image.
        image: (A,) int64, index into `paths`.
        shape: (A,) int64, index into the scene's shapes; `GROUND` for the rest of the image.
    """

    paths: tuple[str, ...]
    image: NDArray[np.int64]
    shape: NDArray[np.int64]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Draw the masks (n, size, size) bool. A pixel belongs to the uppermost shape that covers half of it."""
        if len(rows) == 0:
            return np.zeros((0, 0, 0), np.bool_)
        options, scene, _ = parse_image_path(self.paths[self.image[rows[0]]])
        seen = np.full((options.size, options.size), GROUND, np.int64)
        for index, shape in enumerate(scene.shapes):
            inside, top, left = coverage(shape.outline(), options.size, options.size)
            seen[top : top + inside.shape[0], left : left + inside.shape[1]][inside >= 128] = index
        masks: NDArray[np.bool_] = seen == self.shape[rows][:, None, None]
        return masks


def read_shapes(path: str = "shapes", panoptic: bool = False) -> DetectionIndex:
    """Create the dataset with the options in `path`: `shapes?size=128&train=8000&val=400&seed=0&classes=circle,star`.

    Masks are the visible part of a shape; boxes enclose the whole shape.

    Args:
        path: `shapes`, with or without options.
        panoptic: Make the ground a class, like the option `panoptic=true`.

    Raises:
        DatasetError: An option is unknown or has an invalid value.
    """
    options = parse_options(path)
    options = replace(options, panoptic=options.panoptic or panoptic)
    images: list[ImageRecord] = []
    labels, boxes, image_index, shape_index = [], [], [], []
    splits = {}
    for split, count in (("train", options.train), ("val", options.val)):
        splits[split] = np.arange(len(images), len(images) + count)
        for number in range(count):
            scene = draw_scene(options.size, options.seed, split, number, options.kinds, options.side)
            for index, shape in enumerate(scene.shapes):
                labels.append(options.kinds.index(shape.kind))
                boxes.append(shape.box)
                image_index.append(len(images))
                shape_index.append(index)
            if options.panoptic:
                labels.append(len(options.classes))
                boxes.append((0.0, 0.0, float(options.size), float(options.size)))
                image_index.append(len(images))
                shape_index.append(GROUND)
            file = f"{options.prefix()}/{split}/{number:06d}.png"
            images.append(ImageRecord(len(images), file, options.size, options.size, render))
    boxes_xyxy = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    categories = [Category(label, name) for label, name in enumerate(options.classes)]
    if options.panoptic:
        categories.append(Category(len(categories), "ground", is_thing=False))
    masks = ShapeMasks(
        tuple(image.path for image in images),
        np.array(image_index, dtype=np.int64),
        np.array(shape_index, dtype=np.int64),
    )
    return DetectionIndex(
        name="shapes",
        images=tuple(images),
        categories=tuple(categories),
        annotations=AnnotationTable(
            image_index=np.array(image_index, dtype=np.int64),
            label=np.array(labels, dtype=np.int64),
            boxes_xyxy=boxes_xyxy,
            area=(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1),
            is_crowd=np.zeros(len(labels), dtype=np.bool_),
            masks=MaskColumn.of(masks, len(labels)),
        ),
        splits=splits,
    )


def _read(path: str | Path, *, findings: Findings, task: Task) -> DetectionIndex:  # noqa: ARG001
    return read_shapes(str(path), panoptic=task == "panoptic")


FORMAT = DatasetFormat(
    name="shapes",
    find=lambda _: False,
    read=_read,
    looked_for="the name 'shapes'",
    evidence="the name 'shapes'",
    tasks=("detection", "instance", "panoptic"),
    is_name=lambda text, _: is_shapes(text),
)
