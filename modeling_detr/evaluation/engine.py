"""One pass over a dataset: batches → model → predictions → evaluators → report.

Each process evaluates its own batches; afterwards every process has the metrics of the whole dataset.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from modeling_detr.errors_detr import ModelError, PredictionError
from modeling_detr.evaluation.evaluator import Evaluator, PredictionKind
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.losses import LossAverages
from modeling_detr.evaluation.metrics import Metrics
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, batch_to_device
from modeling_detr.precision import ComputeDtype, in_precision
from modeling_detr.segmentation_detr import has_masks
from modeling_detr.structures_detr import DetectionBatch, DetectionIndex, DetectionLabels, DetectionResult, Task


if TYPE_CHECKING:
    from accelerate import Accelerator


def evaluate(
    model: nn.Module,
    batches: Iterable[DetectionBatch],
    processor: DetrTorchvisionImageProcessor,
    index: DetectionIndex,
    accelerator: "Accelerator | None" = None,
    evaluators: Sequence[Evaluator] | None = None,
    *,
    progress: bool = False,
    dtype: ComputeDtype = "float32",
) -> EvaluationReport:
    """Runs a model over a dataset and scores its predictions.

    The model is in evaluation mode during the call. With several processes, the metrics equal those of a single
    process, as long as no image is given to two of them.

    Args:
        model: The model, prepared by Accelerate or not. Its labels must be those of `index`.
        batches: The batches of this process. `labels[i]["image_index"]` is the index of each image in `index.images`;
            with `class_labels`, `boxes` and, for a segmentation model, `masks`, losses are computed too. Pixels in
            uint8 are normalised on the device.
        processor: Normalises pixels and converts outputs to predictions.
        index: The dataset. All of its images count, including those without predictions.
        accelerator: Sets the device and gathers from all processes, which must call this function together. None: a
            single process, on the model's device.
        evaluators: The evaluators to run. They keep their predictions, for use after the call. None: the
            `default_evaluators` for everything that the model predicts and the dataset has.
        progress: Whether to show a progress bar, on the main process and if the output is a terminal.
        dtype: The precision that the model computes in; see `compute_dtype`. AP is usually reported in float32.

    Returns:
        The report, the same on every process.

    Raises:
        ModelError: An evaluator needs masks, but the model predicts none.
        PredictionError: A batch lacks `image_index`, or predictions are invalid (see `CocoEvaluator`).
        ValueError: An evaluator needs an unknown kind of predictions, or two evaluators use the same key or log name.
    """
    started = time.perf_counter()
    # Without DistributedDataParallel: its forward pass is collective, but processes have different batches.
    module: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    if evaluators is None:
        evaluators = default_evaluators(index, _scorable_task(module, index))
    device = accelerator.device if accelerator is not None else next(model.parameters()).device
    predict = _Predictor(module, processor, index, device, {evaluator.needs for evaluator in evaluators}, dtype)
    losses = LossAverages(module)
    with _evaluation_mode(model), torch.inference_mode(), _ProgressBar(index, accelerator, progress) as bar:
        for batch in batches:
            image_indices = _image_indices(batch["labels"])
            predictions = predict(batch, image_indices)
            for evaluator in evaluators:
                evaluator.update(image_indices, predictions[evaluator.needs])
            losses.update(predictions["outputs"], batch["labels"])
            bar.advance(len(image_indices))
    if accelerator is not None:
        losses.gather(accelerator)
        for evaluator in evaluators:
            evaluator.gather(accelerator)
    model_seconds = time.perf_counter() - started
    return EvaluationReport(
        dataset=index.name,
        num_images=losses.num_images,
        results=_compute(evaluators),
        losses=losses.compute(),
        seconds=time.perf_counter() - started,  # includes computing the metrics
        images_per_second=losses.num_images / model_seconds,
    )


def evaluate_predictions(
    predictions: Iterable[tuple[int, DetectionResult]], index: DetectionIndex, evaluators: Sequence[Evaluator]
) -> EvaluationReport:
    """Scores predictions that are there already, as `evaluate` scores those that it makes.

    Args:
        predictions: The index of each image in `index.images`, with its objects: labels are those of `index`, boxes
            xyxy in pixels of the image.
        index: The dataset. All of its images count, including those without predictions.
        evaluators: Evaluators of boxes.

    Raises:
        PredictionError: Predictions are invalid (see `CocoEvaluator`).
    """
    started, num_images = time.perf_counter(), 0
    for image_index, result in predictions:
        for evaluator in evaluators:
            evaluator.update([image_index], [result])
        num_images += 1
    read_seconds = time.perf_counter() - started
    return EvaluationReport(
        dataset=index.name,
        num_images=num_images,
        results=_compute(evaluators),
        losses={},
        seconds=time.perf_counter() - started,
        images_per_second=num_images / read_seconds,
    )


class _Predictor:
    """Runs the model on batches and computes only the kinds of predictions that are needed.

    Raises:
        ModelError: The model predicts no masks, but masks or segments are needed.
        ValueError: A kind of predictions is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: DetrTorchvisionImageProcessor,
        index: DetectionIndex,
        device: torch.device,
        needs: set[PredictionKind],
        dtype: ComputeDtype,
    ) -> None:
        self.model: Any = model
        self.processor = processor
        self.index = index
        self.device = device
        self.needs = needs
        self.dtype = dtype
        self.has_masks = has_masks(model)
        for kind in needs - set(get_args(PredictionKind)):
            raise ValueError(f"needs: got '{kind}', expected one of {', '.join(get_args(PredictionKind))}.")
        if needs & {"masks", "segments"} and not self.has_masks:
            raise ModelError(type(model).__name__, "predicts no masks to score, expected a DetrForSegmentation")

    def __call__(self, batch: DetectionBatch, image_indices: Sequence[int]) -> Mapping[PredictionKind, Any]:
        """The predictions of a batch by kind, always with `outputs`."""
        inputs = batch_to_device(batch, self.device, self.processor.image_mean, self.processor.image_std)
        every_mask = "masks" in self.needs  # panoptic segments need the masks of a few queries only
        if self.has_masks:
            inputs["output_masks"] = every_mask
            if any("masks" not in label for label in inputs.get("labels", ())):
                del inputs["labels"]  # without masks there is no segmentation loss
        sizes = self.index.image_sizes[list(image_indices)].tolist()
        outputs = in_precision(self.model, self.dtype, self.device)(**inputs)
        predictions: dict[PredictionKind, Any] = {"outputs": outputs}
        if "boxes" in self.needs:
            predictions["boxes"] = self.processor.post_process_object_detection(outputs, 0.0, sizes)
        if "masks" in self.needs:
            predictions["masks"] = self.processor.post_process_instance_segmentation(outputs, 0.0, target_sizes=sizes)
        if "segments" in self.needs:
            predict_masks = (
                None
                if every_mask
                else in_precision(partial(self.model.predict_masks, outputs), self.dtype, self.device)
            )
            predictions["segments"] = self.processor.post_process_panoptic_segmentation(
                outputs, target_sizes=sizes, predict_masks=predict_masks
            )
        return predictions


class _ProgressBar:
    """A bar that counts the images of all processes, assuming that they all advance at the same speed."""

    def __init__(self, index: DetectionIndex, accelerator: "Accelerator | None", shown: bool) -> None:
        self.num_images = len(index)
        self.num_processes = 1 if accelerator is None else accelerator.num_processes
        shown = shown and (accelerator is None or accelerator.is_main_process)
        self.bar = tqdm(
            total=self.num_images,
            desc=f"evaluate {index.name}",
            unit="image",
            leave=False,
            dynamic_ncols=True,
            disable=None if shown else True,  # None: disabled unless the output is a terminal
        )

    def advance(self, num_images: int) -> None:
        """Moves the bar by a batch of this process."""
        self.bar.update(min(num_images * self.num_processes, self.num_images - self.bar.n))

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.close()


def _scorable_task(model: nn.Module, index: DetectionIndex) -> Task:
    """The richest task that both the model and the dataset support."""
    if not has_masks(model) or index.annotations.masks is None:
        return "detection"
    return "instance" if all(category.is_thing for category in index.categories) else "panoptic"


def _compute(evaluators: Iterable[Evaluator]) -> dict[str, Metrics]:
    results: dict[str, Metrics] = {}
    logged: dict[str, str] = {}  # name in the log → key of the metrics
    for evaluator in evaluators:
        metrics = evaluator.compute()
        where = type(metrics).__name__
        if metrics.key in results:
            raise ValueError(f"{where}: the key '{metrics.key}' is already used by another evaluator.")
        for name in metrics.log_values():
            if name in logged:
                raise ValueError(f"{where}: logs '{name}', which the evaluator '{logged[name]}' logs already.")
            logged[name] = metrics.key
        results[metrics.key] = metrics
    return results


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode; afterwards restores the mode of every module."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _image_indices(labels: Sequence[DetectionLabels]) -> list[int]:
    for label in labels:
        if "image_index" not in label:
            raise PredictionError(
                "labels of a batch", f"got the keys {sorted(label)}, expected 'image_index' among them"
            )
    return [int(label["image_index"]) for label in labels]
