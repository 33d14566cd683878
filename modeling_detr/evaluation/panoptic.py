"""Panoptic quality, by the rules of COCO's own tool, and predictions in its format of results.

Panoptic quality (https://arxiv.org/abs/1801.00868): a predicted and a true segment of one class match if their
intersection over union is above one half, which no pixel can belong to twice. PQ is the IoU of the matches over the
segments of both sides; SQ is the mean IoU of the matches; RQ is F1 of finding segments; PQ = SQ · RQ.

G true segments · P predicted segments of one image · C classes · H, W pixels.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.evaluation.coco import nan_to_none
from modeling_detr.structures_detr import DetectionIndex, PanopticResult


if TYPE_CHECKING:
    from accelerate import Accelerator


_IOU_UNIT = 2**53  # every float64 above one half is a multiple of its inverse, so sums of IoU are exact in any order


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Figures of one class, in [0, 1]; nan where there is nothing to match.

    Attributes:
        pq: Panoptic quality.
        sq: Segmentation quality; 0 without a match.
        rq: Recognition quality.
        true_positives: Matches.
        false_positives: Predicted segments without a match, those that are mostly void or crowd not counted.
        false_negatives: True segments without a match, crowd regions not counted.
        is_thing: Whether the class is one of things.
    """

    pq: float
    sq: float
    rq: float
    true_positives: int
    false_positives: int
    false_negatives: int
    is_thing: bool


@dataclass(frozen=True, slots=True)
class PanopticMetrics:
    """PQ, SQ and RQ in [0, 1], means over the classes that there is something to match of; nan if there are none.

    Attributes:
        pq: Panoptic quality of all classes.
        sq: Segmentation quality.
        rq: Recognition quality.
        pq_things: Of the classes of things.
        sq_things: Of the classes of things.
        rq_things: Of the classes of things.
        pq_stuff: Of the classes of stuff.
        sq_stuff: Of the classes of stuff.
        rq_stuff: Of the classes of stuff.
        num_classes: Classes in the means.
        num_things: Of those, things.
        num_stuff: Of those, stuff.
        per_class: Class name → its figures, in the order of the labels.
    """

    pq: float
    sq: float
    rq: float
    pq_things: float
    sq_things: float
    rq_things: float
    pq_stuff: float
    sq_stuff: float
    rq_stuff: float
    num_classes: int
    num_things: int
    num_stuff: int
    per_class: Mapping[str, ClassQuality]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers for JSON, nan as None."""
        plain: dict[str, Any] = nan_to_none(dataclasses.asdict(self))
        return plain


class PanopticEvaluator:
    """Judges panoptic predictions as they come: `update` for each batch, `gather`, `compute`.

    What is kept are sums for each class, not the images: memory does not grow with their number (but for one bit of
    which have been seen). Void pixels and crowd regions are treated as by COCO's tool: an unmatched segment of which
    more than half lies in void, or in a crowd region of its class, is no mistake. All images of the index count: one
    without a prediction has missed all its segments.

    Args:
        index: The dataset, with masks that do not overlap; its labels are those of the predictions.
        save_to: A folder for the predictions, as COCO's PNG files; None: they are not kept. See `save_json`.

    Raises:
        ValueError: The dataset has no masks.
    """

    def __init__(self, index: DetectionIndex, save_to: Path | None = None) -> None:
        if index.annotations.masks is None:
            raise ValueError(f"{index.name} has no masks to judge segments by; open it with task='panoptic'.")
        self.index = index
        self.save_to = save_to
        num_classes = len(index.categories)
        self._counts = np.zeros((3, num_classes), np.int64)  # true positives, false positives, false negatives
        self._iou_units = [0] * num_classes
        self._seen = np.zeros(len(index), np.bool_)
        self._written: dict[int, dict[str, Any]] = {}
        self._file_names = _file_names(index) if save_to is not None else []

    def update(self, image_indices: Sequence[int], results: Sequence[PanopticResult]) -> None:
        """Takes the predictions of some images; those of an image that has been judged are passed by.

        Args:
            image_indices: The position of each image in `index.images`.
            results: The prediction of each, at the size of the original image. Pixels whose id is none of its
                `segments_info` are void.

        Raises:
            ValueError: The two do not fit each other, or a prediction is none of this dataset; the message says which.
        """
        if len(image_indices) != len(results):
            raise ValueError(f"{len(image_indices)} image indices for {len(results)} results; wanted one each.")
        for position, result in zip(map(int, image_indices), results, strict=True):
            if not 0 <= position < len(self.index):
                raise ValueError(
                    f"{self.index.name} has {len(self.index)} images, but a result is of image {position}."
                )
            if self._seen[position]:
                continue
            segments, labels = self._checked(position, result)
            self._judge(position, segments, labels)
            self._seen[position] = True
            if self.save_to is not None:
                self._written[position] = self._write(position, segments, labels, result, self.save_to)

    def _checked(self, position: int, result: PanopticResult) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The prediction as numbers 1…P of segments (H, W), 0 = void, and the label of each (P,)."""
        record = self.index.images[position]
        where = f"Prediction of image {record.id} of {self.index.name}"
        infos = result["segments_info"]
        identifiers = np.array([int(info["id"]) for info in infos], dtype=np.int64)
        labels = np.array([int(info["label_id"]) for info in infos], dtype=np.int64)
        pixels = torch.as_tensor(result["segmentation"]).detach().cpu().numpy().astype(np.int64)
        if pixels.shape != (record.height, record.width):
            raise ValueError(
                f"{where}: segmentation of shape {pixels.shape}; wanted the image's own size "
                f"{(record.height, record.width)} (height, width)."
            )
        if len(np.unique(identifiers)) < len(identifiers):
            raise ValueError(f"{where}: two segments have one id; got {identifiers.tolist()}.")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.index.categories):
            raise ValueError(
                f"{where}: label_id {labels.min()}…{labels.max()}, but the dataset has {len(self.index.categories)} "
                f"classes (0-{len(self.index.categories) - 1})."
            )
        order = np.argsort(identifiers)
        place = np.searchsorted(identifiers[order], pixels)
        rank = np.append(order + 1, 0)[place]  # what is above every id is void
        segments = np.where(np.append(identifiers, -1)[rank - 1] == pixels, rank, 0)
        areas = np.bincount(segments.ravel(), minlength=len(labels) + 1)[1:]
        if not areas.all():
            raise ValueError(f"{where}: segment {identifiers[int(np.argmin(areas))]} has no pixel; leave it out.")
        return segments, labels

    def _judge(self, position: int, segments: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Adds matches and mistakes of one image to the sums. Original: panopticapi, `pq_compute_single_core`."""
        rows = self.index.annotation_rows(position)
        true_labels, is_crowd = self.index.annotations.label[rows], self.index.annotations.is_crowd[rows]
        true_segments = self.index.read_panoptic(position)["segmentation"].numpy()
        shape = len(true_labels) + 1, len(labels) + 1
        overlap = np.bincount((true_segments * shape[1] + segments).ravel(), minlength=shape[0] * shape[1])
        overlap = overlap.reshape(shape)  # (G + 1, P + 1) pixels; row and column 0 are void
        true_areas, areas = overlap.sum(1)[1:], overlap.sum(0)[1:]
        void, common = overlap[0, 1:], overlap[1:, 1:]

        union = true_areas[:, None] + areas - common - void
        iou = common / np.maximum(union, 1)
        matches = (iou > 0.5) & (true_labels[:, None] == labels) & ~is_crowd[:, None]
        for row, column in np.argwhere(matches).tolist():
            self._iou_units[int(labels[column])] += round(iou[row, column] * _IOU_UNIT)
        matched_true, matched = matches.any(1), matches.any(0)

        forgiven = void.copy()
        crowd_of = {int(true_labels[row]): row for row in np.flatnonzero(is_crowd)}  # of several of a class, the last
        for column, label in enumerate(labels.tolist()):
            if label in crowd_of:
                forgiven[column] += common[crowd_of[label], column]
        mistaken = ~matched & (forgiven <= 0.5 * areas)
        for row, counted in enumerate((labels[matched], labels[mistaken], true_labels[~matched_true & ~is_crowd])):
            self._counts[row] += np.bincount(counted, minlength=self._counts.shape[1])

    def gather(self, accelerator: "Accelerator") -> None:
        """Adds up the sums of all processes; afterwards each has them all. Every process must call it.

        Raises:
            ValueError: An image was judged by several processes, which sums cannot undo.
        """
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        parts = gather_object([(self._counts, self._iou_units, self._seen, self._written)])
        times_seen = np.sum([seen for _, _, seen, _ in parts], axis=0)
        if (times_seen > 1).any():
            twice = self.index.images[int(np.argmax(times_seen > 1))].id
            raise ValueError(
                f"Image {twice} of {self.index.name} was judged by several processes; deal each image to one of them "
                f"(EvalBatchSampler does; with a loader prepared by Accelerate, even_batches=False)."
            )
        self._counts = np.sum([counts for counts, _, _, _ in parts], axis=0)
        self._iou_units = [sum(units) for units in zip(*(part[1] for part in parts), strict=True)]
        self._seen = times_seen > 0
        self._written = {position: entry for part in parts for position, entry in part[3].items()}

    def compute(self) -> PanopticMetrics:
        """The figures for what has been collected."""
        table = self.index.annotations
        missed = table.label[~table.is_crowd & ~self._seen[table.image_index]]
        true_positives, false_positives, false_negatives = self._counts
        false_negatives = false_negatives + np.bincount(missed, minlength=len(self._iou_units))
        names = [category.name for category in self.index.categories]
        per_class = {}
        for label, category in enumerate(self.index.categories):
            tp, fp, fn = int(true_positives[label]), int(false_positives[label]), int(false_negatives[label])
            iou = self._iou_units[label] / _IOU_UNIT
            found, there = tp + 0.5 * fp + 0.5 * fn, tp + fp + fn > 0
            name = category.name if names.count(category.name) == 1 else f"{category.name} (label {label})"
            per_class[name] = ClassQuality(
                pq=iou / found if there else math.nan,
                sq=(iou / tp if tp else 0.0) if there else math.nan,
                rq=tp / found if there else math.nan,
                true_positives=tp,
                false_positives=fp,
                false_negatives=fn,
                is_thing=category.is_thing,
            )
        classes = [one for one in per_class.values() if not math.isnan(one.pq)]
        things, stuff = [one for one in classes if one.is_thing], [one for one in classes if not one.is_thing]
        return PanopticMetrics(
            *_means(classes), *_means(things), *_means(stuff), len(classes), len(things), len(stuff), per_class
        )

    def _write(
        self,
        position: int,
        segments: NDArray[np.int64],
        labels: NDArray[np.int64],
        result: PanopticResult,
        folder: Path,
    ) -> dict[str, Any]:
        """Writes the PNG of one image, and returns its entry of the JSON file."""
        name = self._file_names[position]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(segment_colours(segments)).save(folder / name)
        infos = []
        for number, (label, info) in enumerate(zip(labels.tolist(), result["segments_info"], strict=True), start=1):
            rows, columns = np.nonzero(segments == number)
            left, top = int(columns.min()), int(rows.min())
            category = self.index.categories[label]
            entry = {
                "id": number,
                "category_id": category.id,
                "isthing": int(category.is_thing),
                "iscrowd": 0,
                "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                "area": len(rows),
            }
            infos.append(entry | ({"score": float(info["score"])} if info.get("score") is not None else {}))
        return {"image_id": self.index.images[position].id, "file_name": name, "segments_info": infos}

    def to_coco_panoptic(self) -> dict[str, Any]:
        """The predictions in COCO's panoptic format, with the dataset's own ids of images and categories.

        COCO's tool needs `annotations` alone; with `images` and `categories` it is a dataset that can be opened.
        """
        written = [self._written[position] for position in sorted(self._written)]
        images = [self.index.images[position] for position in sorted(self._written)]
        return {
            "images": [
                {"id": image.id, "file_name": Path(image.path).name, "height": image.height, "width": image.width}
                for image in images
            ],
            "annotations": written,
            "categories": [
                {"id": category.id, "name": category.name, "isthing": int(category.is_thing)}
                for category in self.index.categories
            ],
        }

    def save_json(self) -> Path:
        """Writes the JSON file beside the folder of PNG files, under its name, as COCO's tool looks for it.

        Raises:
            ValueError: The predictions are not kept.
        """
        if self.save_to is None:
            raise ValueError("The predictions are not kept; say where to with PanopticEvaluator(index, save_to=…).")
        self.save_to.mkdir(parents=True, exist_ok=True)
        file = self.save_to.with_name(f"{self.save_to.name}.json")
        file.write_text(json.dumps(self.to_coco_panoptic()), encoding="utf-8")
        return file


def segment_colours(segments: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The ids of a map (H, W) as COCO writes them in the colours (H, W, 3) of a PNG."""
    colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1)
    return colours.astype(np.uint8)


def _means(classes: Sequence[ClassQuality]) -> tuple[float, float, float]:
    """Mean PQ, SQ and RQ; nan if there are no classes."""
    if not classes:
        return math.nan, math.nan, math.nan
    number = len(classes)
    return (
        sum(one.pq for one in classes) / number,
        sum(one.sq for one in classes) / number,
        sum(one.rq for one in classes) / number,
    )


def _file_names(index: DetectionIndex) -> list[str]:
    """What the PNG of each image is called: as the image; with its position too where several have that name."""
    stems = [Path(image.path).stem for image in index.images]
    times = Counter(stems)
    return [f"{stem}.png" if times[stem] == 1 else f"{stem}_{number}.png" for number, stem in enumerate(stems)]
