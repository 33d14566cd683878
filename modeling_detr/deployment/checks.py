"""The checks of an exported model: its outputs, its metrics and its speed beside those of the model it came from."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.deployment.graph import DetectorGraph, GraphOptions, example_inputs
from modeling_detr.evaluation.evaluator import Evaluator
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.prediction import predict_objects, predict_segments, task_of
from modeling_detr.runtimes import RunModel
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.structures_detr import DetectionIndex, DetectionResult, Task


RunOnImage = Callable[[NDArray[np.uint8]], DetectionResult]
"""From an RGB image (H, W, 3) to all detections, without a threshold."""

MAX_AP_DROP = {"float32": 0.002, "float16": 0.002, "bfloat16": 0.002, "int8": 0.01, "int8_static": 0.01}
# Output → largest difference between a float32 export and the model; logits of masks have values of up to about 100
_MAX_DIFFERENCES = {
    "logits": 1e-3,
    "scores": 1e-3,
    "pred_boxes": 1e-4,
    "boxes": 0.1,
    "labels": math.inf,
    "pred_masks": 2e-2,
}
# Otherwise the threads of ONNX Runtime go on for some time after each image, and take the cores from PyTorch
OPTIONS_FOR_TIMING = {"onnx": {"session.intra_op.allow_spinning": "0"}}
_TIMED_RUNS = 5


@dataclass(frozen=True)
class MetricPair:
    """A metric of the model and of the exported one."""

    name: str
    model: float
    exported: float

    @property
    def drop(self) -> float:
        """By how much the exported model is worse."""
        return self.model - self.exported


@dataclass(frozen=True)
class Checks:
    """What was measured.

    Attributes:
        precision: That of the exported model.
        differences: Output → largest difference from the model's, on batches of one and three images of several
            sizes, with and without padding; NaN if values or shapes are wrong.
        metrics: The metrics on the images of a dataset, each model with its own path from the image to the boxes.
        images: Number of these images.
        model_ms: Time per image of the model, in milliseconds: the median, from pixels to boxes.
        exported_ms: The same of the exported model, measured in turn.
        model_bytes: Size of the model's weights.
        exported_bytes: Size of the exported files.
    """

    precision: str
    differences: Mapping[str, float]
    metrics: Sequence[MetricPair]
    images: int
    model_ms: float
    exported_ms: float
    model_bytes: int
    exported_bytes: int

    def problems(self, max_ap_drop: float) -> list[str]:
        """Why the exported model should not be used, one phrase each."""
        problems = [
            f"the metric {pair.name} falls by {pair.drop:.4f}, expected at most {max_ap_drop:g}"
            for pair in self.metrics
            if not pair.drop <= max_ap_drop and not math.isnan(pair.model)
        ]
        for name, difference in self.differences.items():
            if math.isnan(difference):
                problems.append(f"{name} is not finite, or of another shape than the model's")
            elif self.precision == "float32" and difference > _MAX_DIFFERENCES.get(name, math.inf):
                problems.append(f"{name} differs by {difference:.2g}, expected at most {_MAX_DIFFERENCES[name]:g}")
        return problems

    def table(self) -> str:
        """All numbers as a table for the terminal."""
        rows = [("", "model", "exported", "difference")]
        rows += [(f"largest difference: {name}", "", "", f"{value:.2g}") for name, value in self.differences.items()]
        rows += [
            (
                f"{pair.name} ({self.images} images)",
                f"{pair.model:.4f}",
                f"{pair.exported:.4f}",
                f"{round(-pair.drop, 4) + 0.0:+.4f}",
            )
            for pair in self.metrics
        ]
        rows.append(("ms per image", f"{self.model_ms:.1f}", f"{self.exported_ms:.1f}", _ratio(self)))
        sizes = self.model_bytes / 1e6, self.exported_bytes / 1e6
        rows.append(("size in MB", f"{sizes[0]:.1f}", f"{sizes[1]:.1f}", f"{100 * sizes[1] / sizes[0]:.0f} %"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
                ]
            )
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON, which has no NaN."""
        values = asdict(self)
        values["metrics"] = [
            {key: None if value != value else value for key, value in one.items()} for one in values["metrics"]
        ]
        return values


def _ratio(checks: Checks) -> str:
    return f"{checks.model_ms / checks.exported_ms:.2f}x as fast"


def output_differences(
    model: Detector, options: GraphOptions, run: RunModel, outputs: Sequence[str]
) -> dict[str, float]:
    """The largest difference of each output; NaN if a value or a shape is wrong.

    Args:
        model: The model.
        options: How it was exported.
        run: The exported model.
        outputs: Names of the outputs.
    """
    graph = DetectorGraph(model, options)
    largest = dict.fromkeys((name for name in outputs if name != "mask_queries"), 0.0)
    for batch in example_inputs(options, model.config.num_channels, isinstance(model, DetrForSegmentation)):
        with torch.inference_mode():
            expected = graph(**{name: torch.from_numpy(values) for name, values in batch.items()})
        got = run(batch)
        for name in largest:
            largest[name] = float(np.maximum(largest[name], _difference(expected[name].numpy(), got[name])))
    return largest


def _difference(expected: np.ndarray, got: np.ndarray) -> float:
    if expected.shape != got.shape or not np.isfinite(got).all():
        return math.nan
    return float(np.abs(expected.astype(np.float64) - got).max(initial=0))


def score_both(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    exported: Detector,
    exported_processor: DetrTorchvisionImageProcessor,
    run: RunOnImage,
    index: DetectionIndex,
) -> tuple[list[MetricPair], list[tuple[float, float]]]:
    """Scores both models on the same images, one image after the other.

    Args:
        model: The model.
        processor: Its processor.
        exported: The exported model, for masks and segments.
        exported_processor: Its processor.
        run: The exported model with its own path from pixels to boxes.
        index: The images, with the classes of the model.

    Returns:
        The metrics, and the seconds that each model took for the objects of each image.
    """
    task: Task = task_of(model) if index.annotations.masks is not None else "detection"
    scored = _evaluators(index, task), _evaluators(index, task)
    needs = {evaluator.needs for evaluator in scored[0]}
    seconds = []
    dataset = DetectionDataset(index)
    for image in tqdm(range(len(index)), desc="compare", unit="image", leave=False, disable=None):
        pixels = dataset[image]["image"]
        times = [time.perf_counter()]
        objects = predict_objects(model, processor, pixels, 0.0)
        times.append(time.perf_counter())
        exported_objects = run(pixels.permute(1, 2, 0).numpy())
        times.append(time.perf_counter())
        seconds.append((times[1] - times[0], times[2] - times[1]))
        predictions: list[dict[str, Any]] = [{"boxes": objects, "masks": objects}, {"boxes": exported_objects}]
        if "masks" in needs:
            predictions[1]["masks"] = predict_objects(exported, exported_processor, pixels, 0.0)
        if "segments" in needs:
            predictions[0]["segments"] = predict_segments(cast(DetrForSegmentation, model), processor, pixels)
            predictions[1]["segments"] = predict_segments(
                cast(DetrForSegmentation, exported), exported_processor, pixels
            )
        for evaluators, predicted in zip(scored, predictions, strict=True):
            for evaluator in evaluators:
                evaluator.update([image], [predicted[evaluator.needs]])
    pairs = zip(_headlines(scored[0]), _headlines(scored[1]), strict=True)
    return [MetricPair(name, one, other) for (name, one), (_, other) in pairs], seconds


def _evaluators(index: DetectionIndex, task: Task) -> list[Evaluator]:
    """Those that score predictions; others look at outputs that an exported model does not have."""
    return [evaluator for evaluator in default_evaluators(index, task) if evaluator.needs != "outputs"]


def _headlines(evaluators: Sequence[Evaluator]) -> list[tuple[str, float]]:
    return [(metric.name, metric.value) for evaluator in evaluators for metric in evaluator.compute().headline()[:2]]


def time_both(
    model: Detector, processor: DetrTorchvisionImageProcessor, run: RunOnImage, size: tuple[int, int] = (480, 640)
) -> list[tuple[float, float]]:
    """The seconds that each model takes for an image of noise, in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    seconds = []
    for _ in range(_TIMED_RUNS + 1):
        times = [time.perf_counter()]
        predict_objects(model, processor, pixels, 0.5)
        times.append(time.perf_counter())
        run(pixels)
        times.append(time.perf_counter())
        seconds.append((times[1] - times[0], times[2] - times[1]))
    return seconds


def medians_ms(seconds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The median of each model, in milliseconds, without the first image, which warms up."""
    kept = seconds[1:] or seconds
    return (
        1000 * statistics.median(one for one, _ in kept),
        1000 * statistics.median(other for _, other in kept),
    )


def folder_bytes(folder: Path) -> int:
    """The size of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
