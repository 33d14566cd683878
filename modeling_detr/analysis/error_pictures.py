"""The images with the most errors, drawn beside their ground truth, each error marked with its kind."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.analysis.evidence import Evidence, ImageOverlaps, corners
from modeling_detr.analysis.judgement import KINDS, Judgement, judge
from modeling_detr.data import read_image
from modeling_detr.evaluation.coco_engines import ScoredObjects
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.pages import Figure, Figures, Section, Text
from modeling_detr.visualization import draw_prediction, tile


_LONGEST_SIDE = 640  # of each half, in pixels
_RIGHT = ("hit", "found", "")


def error_pictures(evidence: Evidence, count: int, min_score: float) -> list[Section]:
    """Pictures of the images with the most errors.

    Args:
        evidence: What was detected.
        count: How many images, at most.
        min_score: Detections with a lower score do not count.
    """
    judgement = judge(evidence, min_score)
    worst = sorted(evidence.overlaps, key=lambda overlaps: -_num_errors(judgement, overlaps))[:count]
    marked = [MarkedImage(evidence, judgement, overlaps) for overlaps in worst if _num_errors(judgement, overlaps)]
    figures = [*map(_figure, marked)]
    if not figures:
        return []
    legend = (
        f"Left: predicted, with a score of at least {min_score:g}; right: annotated. Errors are dashed, with their "
        "kind after the name of the class. Click a picture to enlarge it."
    )
    return [Section("Images with the most errors", [Text(legend), Figures(figures, "wide")])]


def _num_errors(judgement: Judgement, overlaps: ImageOverlaps) -> int:
    """False detections and missed objects; an object that a false detection explains counts once."""
    false = np.isin(judgement.detections[overlaps.detections], _RIGHT, invert=True).sum()
    return int(false + (judgement.objects[overlaps.objects] == "missed").sum())


class MarkedImage(NamedTuple):
    """An image of which detections and objects are drawn with their kinds."""

    evidence: Evidence
    judgement: Judgement
    overlaps: ImageOverlaps

    @property
    def detections(self) -> NDArray[np.int64]:
        """The rows of the detections that count."""
        rows = self.overlaps.detections
        return rows[np.flatnonzero(self.judgement.detections[rows] != "")]

    @property
    def kinds(self) -> NDArray[np.str_]:
        """What became of each of them."""
        return self.judgement.detections[self.detections]

    @property
    def object_kinds(self) -> NDArray[np.str_]:
        """What became of each object."""
        return self.judgement.objects[self.overlaps.objects]


def draw_marked(images: Sequence[MarkedImage], names: Sequence[str]) -> Image.Image:
    """The detections of one or several models in an image, and what is annotated there.

    Args:
        images: The same image, judged for each model; with several models, annotations are drawn without errors.
        names: A title for each model.
    """
    first = images[0]
    image = read_image(first.evidence.index.images[first.overlaps.image_index])
    parts = [_part(image, one.evidence, one.evidence.scoring.detections, one.detections, one.kinds) for one in images]
    titles = [
        f"{name}: {(one.kinds == 'hit').sum()} right, {(one.kinds != 'hit').sum()} false"
        for name, one in zip(names, images, strict=True)
    ]
    objects, kinds = first.overlaps.objects, first.object_kinds
    if len(images) == 1:
        titles.append(f"annotated: {(kinds == 'found').sum()} found, {(kinds != 'found').sum()} not found")
    else:
        kinds = np.full(len(objects), "found")
        titles.append("annotated")
    parts.append(_part(image, first.evidence, first.evidence.scoring.truth, objects, kinds))
    return tile(parts, columns=len(parts), titles=titles)


def _figure(marked: MarkedImage) -> Figure:
    evidence, names = marked.evidence, marked.evidence.class_names
    is_wrong, is_lost = marked.kinds != "hit", marked.object_kinds == "missed"
    labels = {
        *evidence.scoring.detections.labels[marked.detections[is_wrong]].tolist(),
        *evidence.scoring.truth.labels[marked.overlaps.objects[is_lost]].tolist(),
    }
    kinds = {*marked.kinds[is_wrong].tolist(), *marked.object_kinds[is_lost].tolist()}
    return Figure.of(
        draw_marked([marked], ["predicted"]),
        evidence.image_names[marked.overlaps.image_index],
        longest_side=2 * _LONGEST_SIDE,
        tags={
            "error": [kind for kind in KINDS if kind in kinds],
            "class": [name for label, name in enumerate(names) if label in labels],
        },
    )


def _part(
    image: Any, evidence: Evidence, objects: ScoredObjects, rows: NDArray[np.int64], kinds: NDArray[np.str_]
) -> Image.Image:
    """The image with some objects; those that are neither hits nor found are dashed and have their kind."""
    is_right = np.isin(kinds, _RIGHT)
    prediction: dict[str, object] = {
        "boxes": torch.from_numpy(corners(objects.boxes_xywh[rows])),
        "labels": torch.from_numpy(objects.labels[rows]),
        "is_match": torch.from_numpy(is_right),
        "notes": ["" if right else kind for right, kind in zip(is_right, kinds.tolist(), strict=True)],
    }
    if objects is evidence.scoring.detections:
        prediction["scores"] = torch.from_numpy(objects.scores[rows])
    if objects.masks is not None:
        prediction["masks"] = _decoded([objects.masks[row] for row in rows], to_rgb(image).shape[-2:])
    return draw_prediction(image, prediction, _id2label(evidence.class_names), longest_side=_LONGEST_SIDE)


def _decoded(masks: Sequence[Any], size: Sequence[int]) -> torch.Tensor:
    """Masks (n, H, W) bool from COCO's compressed RLE."""
    from pycocotools import mask as coco_mask

    decoded = [coco_mask.decode(mask).astype(np.bool_) for mask in masks]
    return torch.from_numpy(np.stack(decoded) if decoded else np.zeros((0, *size), np.bool_))


def _id2label(class_names: Sequence[str]) -> Mapping[int, str]:
    return dict(enumerate(class_names))
