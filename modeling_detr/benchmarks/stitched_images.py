"""What tiles are worth: images of a dataset are stitched together, and a model looks at the whole and at tiles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_detr.analysis.error_kinds import error_kinds
from modeling_detr.analysis.evidence import Evidence
from modeling_detr.data.image_decoding import read_image
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.predicting import Detector, Tiling
from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex, ImageRecord


_LOWEST = 0.05  # score of the predictions that are scored


@dataclass(frozen=True)
class TileScores:
    """How a model did in one way of looking at images.

    Attributes:
        name: The way.
        images: Number of images.
        ap: COCO's AP, from 0 to 1.
        ap50: At IoU .5.
        duplicates: Points of AP50 that second detections of an object cost (TIDE).
        num_duplicates: How many there are, with a score of at least .05.
    """

    name: str
    images: int
    ap: float
    ap50: float
    duplicates: float
    num_duplicates: int


def score_tiles(detector: Detector, index: DetectionIndex, grid: int, tiling: Tiling) -> Iterator[TileScores]:
    """Scores the images by themselves, stitched ones as a whole, and stitched ones in tiles.

    Args:
        detector: The model.
        index: The images, with the classes of the model in its order.
        grid: Images on a side of a stitched one.
        tiling: How stitched images are divided.
    """
    stitched = stitch(index, grid)
    by_class = torch.full((len(index.categories),), _LOWEST, dtype=torch.float64)
    score = partial(_score, detector, rules=ScoreRules(by_class))
    yield score("images by themselves", index, tiling=None)
    yield score(f"{grid} x {grid} images in one, as a whole", stitched, tiling=None)
    yield score(f"the same, in tiles of {tiling.size} pixels", stitched, tiling=tiling)


def stitch(index: DetectionIndex, grid: int) -> DetectionIndex:
    """Images in a grid, with all their objects; images that do not fill the last grid are left out.

    Each image is at the top left of a cell, and all cells of a grid have the size of its largest image.
    """
    records, rows_of, offsets = [], [], []
    image_index: list[int] = []
    for number in range(len(index) // grid**2):
        members = [*range(number * grid**2, (number + 1) * grid**2)]
        height, width = (max(getattr(index.images[one], side) for one in members) for side in ("height", "width"))
        reader = partial(_stitched_pixels, [index.images[one] for one in members], grid, height, width)
        records.append(ImageRecord(number, f"stitched/{number}.png", grid * height, grid * width, reader))
        for cell, member in enumerate(members):
            rows = index.annotation_rows(member)
            left, top = cell % grid * width, cell // grid * height
            rows_of.append(np.arange(rows.start, rows.stop))
            offsets += [[left, top, left, top]] * (rows.stop - rows.start)
            image_index += [number] * (rows.stop - rows.start)
    table = index.annotations.take(np.concatenate([np.zeros(0, np.int64), *rows_of]))
    moved = AnnotationTable(
        np.array(image_index, np.int64),
        table.label,
        table.boxes_xyxy + np.array(offsets, np.float64).reshape(-1, 4),
        table.area,
        table.is_crowd,
    )
    return DetectionIndex(f"{index.name}, stitched", tuple(records), index.categories, moved)


def _stitched_pixels(
    images: Sequence[ImageRecord], grid: int, height: int, width: int, _path: str
) -> NDArray[np.uint8]:
    canvas = np.zeros((grid * height, grid * width, 3), np.uint8)
    for cell, record in enumerate(images):
        top, left = cell // grid * height, cell % grid * width
        canvas[top : top + record.height, left : left + record.width] = read_image(record).permute(1, 2, 0).numpy()
    return canvas


def _score(
    detector: Detector, name: str, index: DetectionIndex, *, rules: ScoreRules, tiling: Tiling | None
) -> TileScores:
    evaluator = CocoEvaluator(index)
    images: Iterator[Tensor] = (read_image(record).as_subclass(Tensor) for record in index.images)
    for number, found in enumerate(detector.predict_images(images, rules, tiling=tiling, keep_image=False)):
        evaluator.update([number], [found.objects])
    metrics = evaluator.compute()
    errors = error_kinds(Evidence(evaluator))
    return TileScores(
        name, len(index), metrics.ap, metrics.ap50, errors.points["duplicate"], errors.counts["duplicate"]
    )
