"""Panoptic quality as COCO's own tool computes it, and predictions in COCO's panoptic format.

Panoptic quality (https://arxiv.org/abs/1801.00868): a predicted and a true segment of the same class match if their
intersection over union is above one half, so a segment has at most one match. SQ is the mean IoU of the matches, RQ
the F1 score of matching segments, and PQ = SQ · RQ.

Shapes: G true segments · P predicted segments of one image · C classes · H, W pixels.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from modeling_detr.atomic_output import output_stem, replace_text, synced_file
from modeling_detr.errors_detr import DatasetError, PredictionError
from modeling_detr.evaluation.evaluators.checks import check_label_range, pair_with_images
from modeling_detr.evaluation.metrics import Metric, Metrics, MetricTable, unique_class_names
from modeling_detr.output_errors import check_folder
from modeling_detr.structures_detr import DetectionIndex, PanopticResult


if TYPE_CHECKING:
    from accelerate import Accelerator


_IOU_UNIT = 2**53  # float64 values from 0.5 to 1 are multiples of 2**-53, so sums of these units are exact


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """Metrics of one class, in [0, 1]; NaN if it has neither true nor predicted segments.

    Attributes:
        pq: Panoptic quality.
        sq: Segmentation quality; 0 without a match.
        rq: Recognition quality.
        true_positives: Matches.
        false_positives: Predicted segments without a match, except those that are mostly void or crowd.
        false_negatives: True segments without a match, except crowd regions.
        is_thing: Whether the class is a thing class.
    """

    pq: float
    sq: float
    rq: float
    true_positives: int
    false_positives: int
    false_negatives: int
    is_thing: bool


@dataclass(frozen=True, slots=True)
class PanopticMetrics(Metrics):
    """PQ, SQ and RQ in [0, 1], averaged over the classes that have segments; NaN if there are none.

    Attributes:
        pq: Panoptic quality of all classes.
        sq: Segmentation quality.
        rq: Recognition quality.
        pq_things: PQ of the thing classes.
        sq_things: SQ of the thing classes.
        rq_things: RQ of the thing classes.
        pq_stuff: PQ of the stuff classes.
        sq_stuff: SQ of the stuff classes.
        rq_stuff: RQ of the stuff classes.
        num_classes: Number of classes in the averages.
        num_things: How many of those are thing classes.
        num_stuff: How many of those are stuff classes.
        per_class: Class name → its metrics, in the order of the labels.
    """

    key: ClassVar[str] = "panoptic"
    priority: ClassVar[int] = 3

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

    def headline(self) -> tuple[Metric, ...]:
        """PQ."""
        return (Metric("pq", "PQ", self.pq),)

    def model_card_metrics(self) -> tuple[Metric, ...]:
        """PQ, SQ and RQ."""
        return (*self.headline(), Metric("sq", "SQ", self.sq), Metric("rq", "RQ", self.rq))

    def log_values(self) -> dict[str, object]:
        """PQ, SQ and RQ of all, thing and stuff classes."""
        return {name: value for name, value in self.as_dict().items() if name.startswith(("pq", "sq", "rq"))}

    def tables(self) -> tuple[MetricTable, MetricTable]:
        """PQ, SQ and RQ of all, thing and stuff classes, and of every class that has segments."""
        overall = [
            ("all", self.pq, self.sq, self.rq, self.num_classes),
            ("things", self.pq_things, self.sq_things, self.rq_things, self.num_things),
            ("stuff", self.pq_stuff, self.sq_stuff, self.rq_stuff, self.num_stuff),
        ]
        classes = [
            (
                name,
                "thing" if quality.is_thing else "stuff",
                *(quality.pq, quality.sq, quality.rq),
                *(quality.true_positives, quality.false_positives, quality.false_negatives),
            )
            for name, quality in self.per_class.items()
            if not math.isnan(quality.pq)
        ]
        columns = ("class", "kind", "PQ", "SQ", "RQ", "matched", "wrong", "missed")
        return (
            MetricTable("Panoptic quality", ("kind", "PQ", "SQ", "RQ", "classes"), overall),
            MetricTable("Panoptic quality by class", columns, classes),
        )


class PanopticEvaluator:
    """Scores panoptic predictions as they arrive: call `update` for each batch, then `gather`, then `compute`.

    It keeps sums per class and one flag per image, so memory barely grows with the number of images. Void pixels and
    crowd regions are treated as in COCO's tool: an unmatched segment is not a false positive if more than half of it
    lies in void or in a crowd region of its class. All images of the index count: all segments of an image without a
    prediction are missed.

    Args:
        index: The dataset, with masks that do not overlap; its labels are those of the predictions.
        save_to: Folder for the predictions as COCO's PNG files; None: predictions are not saved. See `save_json`.

    Raises:
        DatasetError: The dataset has no masks.
    """

    needs: Literal["segments"] = "segments"

    def __init__(self, index: DetectionIndex, save_to: Path | None = None) -> None:
        if index.annotations.masks is None:
            raise DatasetError(
                index.name,
                "has no masks, which panoptic quality needs",
                "open it for a task with masks",
                {"task": "panoptic"},
            )
        self.index = index
        self.save_to = save_to
        num_classes = len(index.categories)
        self._counts = np.zeros((3, num_classes), np.int64)  # true positives, false positives, false negatives
        self._iou_units = [0] * num_classes
        self._seen = np.zeros(len(index), np.bool_)
        self._saved: dict[int, dict[str, Any]] = {}
        self._file_names = _file_names(index)

    def update(self, image_indices: Sequence[int], results: Sequence[PanopticResult]) -> None:
        """Scores the predictions for some images; an image that has already been scored is skipped.

        Args:
            image_indices: The index of each image in `index.images`.
            results: The prediction for each, at the size of the original image. Pixels whose id is not in
                `segments_info` are void.

        Raises:
            PredictionError: `image_indices` and `results` differ in length, or a prediction does not fit the dataset;
                the message names the image.
        """
        for image_index, result in pair_with_images(self.index, image_indices, results):
            if self._seen[image_index]:
                continue
            segments, labels = self._checked(image_index, result)
            self._score(image_index, segments, labels)
            self._seen[image_index] = True
            if self.save_to is not None:
                self._saved[image_index] = self._save(image_index, segments, labels, result, self.save_to)

    def _checked(self, image_index: int, result: PanopticResult) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The prediction as a map (H, W) of segments 1…P, 0 = void, and the label of each segment (P,)."""
        record = self.index.images[image_index]
        where = f"{self.index.name}, prediction of image {record.id}"
        infos = result["segments_info"]
        segment_ids = np.array([int(info["id"]) for info in infos], dtype=np.int64)
        labels = np.array([int(info["label_id"]) for info in infos], dtype=np.int64)
        pixels = torch.as_tensor(result["segmentation"]).detach().cpu().numpy().astype(np.int64)
        if pixels.shape != (record.height, record.width):
            raise PredictionError(
                where,
                f"segmentation has shape {pixels.shape}, expected the size of the image, "
                f"{(record.height, record.width)} (height, width)",
            )
        if len(np.unique(segment_ids)) < len(segment_ids):
            raise PredictionError(where, f"got segment ids {segment_ids.tolist()}, expected unique ids")
        check_label_range(labels, len(self.index.categories), where)
        order = np.argsort(segment_ids)
        rank = np.append(order + 1, 0)[np.searchsorted(segment_ids[order], pixels)]  # pixels above every id are void
        segments = np.where(np.append(segment_ids, -1)[rank - 1] == pixels, rank, 0)
        areas = np.bincount(segments.ravel(), minlength=len(labels) + 1)[1:]
        if not areas.all():
            segment_id = segment_ids[int(np.argmin(areas))]
            raise PredictionError(where, f"segment {segment_id} has no pixels", "leave it out of segments_info")
        return segments, labels

    def _score(self, image_index: int, segments: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Adds the matches and errors of one image to the sums. Original: panopticapi, `pq_compute_single_core`."""
        rows = self.index.annotation_rows(image_index)
        true_labels, is_crowd = self.index.annotations.label[rows], self.index.annotations.is_crowd[rows]
        true_segments = self.index.read_panoptic(image_index)["segmentation"].numpy()
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

        excused = void.copy()
        crowd_of = {int(true_labels[row]): row for row in np.flatnonzero(is_crowd)}  # if a class has several, the last
        for column, label in enumerate(labels.tolist()):
            if label in crowd_of:
                excused[column] += common[crowd_of[label], column]
        wrong = ~matched & (excused <= 0.5 * areas)
        for row, counted in enumerate((labels[matched], labels[wrong], true_labels[~matched_true & ~is_crowd])):
            self._counts[row] += np.bincount(counted, minlength=self._counts.shape[1])

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the sums of all processes into each of them. All processes call it together.

        Raises:
            PredictionError: An image was scored by several processes and would count several times.
        """
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        parts = gather_object([(self._counts, self._iou_units, self._seen, self._saved)])
        times_seen = np.sum([seen for _, _, seen, _ in parts], axis=0)
        if (times_seen > 1).any():
            twice = self.index.images[int(np.argmax(times_seen > 1))].id
            raise PredictionError(
                self.index.name,
                f"image {twice} was scored by several processes",
                "give each image to one of them, as EvalBatchSampler does; for a loader prepared by Accelerate, set "
                "even_batches=False",
            )
        self._counts = np.sum([counts for counts, _, _, _ in parts], axis=0)
        self._iou_units = [sum(units) for units in zip(*(part[1] for part in parts), strict=True)]
        self._seen = times_seen > 0
        self._saved = {image_index: entry for part in parts for image_index, entry in part[3].items()}

    def compute(self) -> PanopticMetrics:
        """Computes the metrics of all predictions so far."""
        table = self.index.annotations
        missed = table.label[~table.is_crowd & ~self._seen[table.image_index]]
        true_positives, false_positives, false_negatives = self._counts
        false_negatives = false_negatives + np.bincount(missed, minlength=len(self._iou_units))
        per_class = {
            name: _class_quality(
                self._iou_units[label] / _IOU_UNIT,
                int(true_positives[label]),
                int(false_positives[label]),
                int(false_negatives[label]),
                self.index.categories[label].is_thing,
            )
            for label, name in enumerate(unique_class_names(self.index))
        }
        classes = [quality for quality in per_class.values() if not math.isnan(quality.pq)]
        things = [quality for quality in classes if quality.is_thing]
        stuff = [quality for quality in classes if not quality.is_thing]
        return PanopticMetrics(
            *_means(classes), *_means(things), *_means(stuff), len(classes), len(things), len(stuff), per_class
        )

    def _save(
        self,
        image_index: int,
        segments: NDArray[np.int64],
        labels: NDArray[np.int64],
        result: PanopticResult,
        folder: Path,
    ) -> dict[str, Any]:
        """Writes the PNG of one image and returns its entry for the JSON file."""
        name = self._file_names[image_index]
        with synced_file(folder / name) as file:
            Image.fromarray(segment_colours(segments)).save(file)
        infos = []
        for segment_id, (label, info) in enumerate(
            zip(labels.tolist(), result["segments_info"], strict=True), start=1
        ):
            rows, columns = np.nonzero(segments == segment_id)
            left, top = int(columns.min()), int(rows.min())
            category = self.index.categories[label]
            entry = {
                "id": segment_id,
                "category_id": category.id,
                "isthing": int(category.is_thing),
                "iscrowd": 0,
                "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                "area": len(rows),
            }
            infos.append(entry | ({"score": float(info["score"])} if info.get("score") is not None else {}))
        return {"image_id": self.index.images[image_index].coco_id, "file_name": name, "segments_info": infos}

    def to_coco_panoptic(self) -> dict[str, Any]:
        """The saved predictions in COCO's panoptic format, with the ids of the dataset.

        COCO's tool needs only `annotations`; `images` and `categories` make it a dataset that can be opened.
        """
        annotations = [self._saved[image_index] for image_index in sorted(self._saved)]
        images = [self.index.images[image_index] for image_index in sorted(self._saved)]
        return {
            "images": [
                {"id": image.coco_id, "file_name": Path(image.path).name, "height": image.height, "width": image.width}
                for image in images
            ],
            "annotations": annotations,
            "categories": [
                {"id": category.id, "name": category.name, "isthing": int(category.is_thing)}
                for category in self.index.categories
            ],
        }

    def start_saving(self, folder: Path) -> None:
        """Saves predictions to `predictions_panoptic/` and `predictions_panoptic.json` in `folder`."""
        self.save_to = folder / "predictions_panoptic"
        check_folder(folder, files=[f"{self.save_to.name}.json"], folders=[self.save_to.name])

    def save(self, category_ids: Collection[int]) -> list[Path]:  # noqa: ARG002 (segments of other classes stay)
        """Writes the JSON file; see `save_json`."""
        return [self.save_json()]

    def save_json(self) -> Path:
        """Writes the JSON file beside the folder of PNG files, under the folder's name, where COCO's tool expects it.

        Raises:
            ValueError: No predictions were saved, because `save_to` is None.
        """
        if self.save_to is None:
            raise ValueError(
                "save_to: not set, so no predictions were saved; use PanopticEvaluator(index, save_to=…)."
            )
        file = self.save_to.with_name(f"{self.save_to.name}.json")
        replace_text(file, json.dumps(self.to_coco_panoptic()))
        return file


def segment_colours(segments: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Encodes a map (H, W) of segment ids as the colours (H, W, 3) of COCO's PNG files."""
    colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1)
    return colours.astype(np.uint8)


def _class_quality(iou_sum: float, tp: int, fp: int, fn: int, is_thing: bool) -> ClassQuality:
    """PQ, SQ and RQ of a class from the IoU of its matches and its true and false positives and false negatives."""
    if tp + fp + fn == 0:
        return ClassQuality(math.nan, math.nan, math.nan, tp, fp, fn, is_thing)
    denominator = tp + 0.5 * fp + 0.5 * fn
    return ClassQuality(
        pq=iou_sum / denominator,
        sq=iou_sum / tp if tp else 0.0,
        rq=tp / denominator,
        true_positives=tp,
        false_positives=fp,
        false_negatives=fn,
        is_thing=is_thing,
    )


def _means(classes: Sequence[ClassQuality]) -> tuple[float, float, float]:
    """Mean PQ, SQ and RQ; NaN if there are no classes."""
    if not classes:
        return math.nan, math.nan, math.nan
    count = len(classes)
    return (
        sum(quality.pq for quality in classes) / count,
        sum(quality.sq for quality in classes) / count,
        sum(quality.rq for quality in classes) / count,
    )


def _file_names(index: DetectionIndex) -> list[str]:
    """The name of each image's PNG: the image's name, plus its index if several images share that name.

    Names that a file system may take for the same, because it ignores case, count as shared.
    """
    stems = [output_stem(image.path) for image in index.images]
    counts = Counter(map(_folded, stems))
    taken = {name for name, count in counts.items() if count == 1}
    names = []
    for image_index, stem in enumerate(stems):
        name = stem
        if counts[_folded(stem)] > 1:
            name = f"{stem}_{image_index}"
            while _folded(name) in taken:
                name = f"{name}_{image_index}"
            taken.add(_folded(name))
        names.append(f"{name}.png")
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
