"""One pass over a dataset: batches → model → detections, masks, segments → COCO's figures.

Shapes: B images of a batch · H, W pixels. Each process goes through its own batches; afterwards all have the figures
of the whole dataset.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from modeling_detr.evaluation.coco import CocoEvaluator
from modeling_detr.evaluation.panoptic import PanopticEvaluator
from modeling_detr.evaluation.queries import QueryStatistics
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, batch_to_device
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.structures_detr import (
    DetectionBatch,
    DetectionIndex,
    DetectionLabels,
    DetectionResult,
    PanopticResult,
    Task,
)


if TYPE_CHECKING:
    from accelerate import Accelerator


def evaluate(
    model: nn.Module,
    batches: Iterable[DetectionBatch],
    processor: DetrTorchvisionImageProcessor,
    index: DetectionIndex,
    accelerator: "Accelerator | None" = None,
    *,
    task: Task | None = None,
    evaluator: CocoEvaluator | None = None,
    mask_evaluator: CocoEvaluator | None = None,
    panoptic_evaluator: PanopticEvaluator | None = None,
    progress: bool = False,
) -> EvaluationReport:
    """Judges a model on a dataset: its boxes, and as the task wants its masks and panoptic segments.

    The model is put into evaluation mode and back. The metrics of several processes are those of one that sees every
    batch, as long as no batch goes to two of them in different company.

    Args:
        model: A model, prepared by Accelerate or not; its labels are those of `index`.
        batches: This process' batches. `labels[i]["image_index"]` says which image of `index` each is; with
            `class_labels`, `boxes` and what else the model learns from (`masks`) the losses are computed too. Pixels
            may still be uint8: they are then normalised on the device.
        processor: Normalises, and turns outputs into detections.
        index: The dataset; all of its images count.
        accelerator: Says on which device to work and gathers from all processes; every process must call this then.
            None: one process, on the model's device.
        task: What is judged: `detection` (boxes), `instance` (masks too) or `panoptic` (segments too). None: all that
            the model predicts and the dataset has; panoptic segments are judged where it has stuff.
        evaluator: Collects the boxes, for who wants them afterwards. None: one of its own.
        mask_evaluator: Collects the masks: `CocoEvaluator(index, masks=True)`. None: one of its own, if the task has
            masks.
        panoptic_evaluator: Judges the panoptic segments. None: one of its own, if the task has them. Given with the
            task `detection`, it spares the masks of the queries that no segment is made of.
        progress: Show a bar, in the main process and if the output is a terminal.

    Returns:
        The figures, the same in every process.

    Raises:
        ValueError: A batch does not say which images it holds, or predictions make no sense (see `CocoEvaluator`).
    """
    started = time.perf_counter()
    # Not through DistributedDataParallel: its forward is collective, and processes differ in their batches.
    module: Any = model.module if isinstance(model, DistributedDataParallel) else model
    evaluator = CocoEvaluator(index) if evaluator is None else evaluator
    task = _task(module, index) if task is None else task
    if task != "detection":
        mask_evaluator = CocoEvaluator(index, masks=True) if mask_evaluator is None else mask_evaluator
    if task == "panoptic":
        panoptic_evaluator = PanopticEvaluator(index) if panoptic_evaluator is None else panoptic_evaluator
    segments = mask_evaluator is not None or panoptic_evaluator is not None
    if segments and not hasattr(module, "predict_masks"):
        raise ValueError(f"A {type(module).__name__} predicts no masks to judge; wanted a DetrForSegmentation.")
    device = accelerator.device if accelerator is not None else next(model.parameters()).device
    shows_bar = progress and (accelerator is None or accelerator.is_main_process)
    loss_sums: defaultdict[str, float | Tensor] = defaultdict(float)
    num_images = 0
    queries = QueryStatistics(index)
    bar = tqdm(
        total=len(index.images),
        desc=f"evaluate {index.name}",
        unit="image",
        leave=False,
        dynamic_ncols=True,
        disable=None if shows_bar else True,
    )
    num_processes = 1 if accelerator is None else accelerator.num_processes
    with _evaluation_mode(model), torch.inference_mode(), bar:
        for batch in batches:
            positions = _image_positions(batch["labels"])
            inputs = batch_to_device(batch, device, processor.image_mean, processor.image_std)
            if hasattr(module, "predict_masks") and any("masks" not in label for label in inputs.get("labels", ())):
                del inputs["labels"]  # without masks there is no loss of segmentation
            # Of masks every one is judged; panoptic segments are made of a few queries'.
            outputs = module(**inputs, **({"output_masks": mask_evaluator is not None} if segments else {}))
            queries.update(positions, outputs.logits, outputs.pred_boxes)
            sizes = [(index.images[position].height, index.images[position].width) for position in positions]
            detections = processor.post_process_object_detection(outputs, 0.0, sizes)
            evaluator.update(positions, detections)
            if mask_evaluator is not None:
                instances = processor.post_process_instance_segmentation(outputs, 0.0, target_sizes=sizes)
                mask_evaluator.update(positions, instances)
            if panoptic_evaluator is not None:
                predict_masks = None if mask_evaluator is not None else partial(module.predict_masks, outputs)
                panoptic = processor.post_process_panoptic_segmentation(
                    outputs, target_sizes=sizes, predict_masks=predict_masks
                )
                panoptic_evaluator.update(positions, panoptic)
            num_images += len(positions)
            bar.update(min(len(positions) * num_processes, len(index.images) - bar.n))  # the others are about as far
            if outputs.loss is not None:
                for name, loss in {"loss": outputs.loss, **outputs.loss_dict}.items():
                    loss_sums[name] += loss * len(positions)  # stays on the device: no wait for it here
    sums = {name: float(total) for name, total in loss_sums.items()}
    if accelerator is not None and accelerator.num_processes > 1:
        sums, num_images = _sum_over_processes(sums, num_images)
        for one in (evaluator, mask_evaluator, panoptic_evaluator, queries):
            if one is not None:
                one.gather(accelerator)
    model_seconds = time.perf_counter() - started
    metrics = evaluator.compute()
    return EvaluationReport(
        dataset=index.name,
        num_images=num_images,
        metrics=metrics,
        losses={name: total / num_images for name, total in sums.items()},
        seconds=time.perf_counter() - started,
        images_per_second=num_images / model_seconds,
        mask_metrics=mask_evaluator.compute() if mask_evaluator is not None else None,
        panoptic=panoptic_evaluator.compute() if panoptic_evaluator is not None else None,
        queries=queries.compute(),
    )


def _task(module: nn.Module, index: DetectionIndex) -> Task:
    """All that can be judged."""
    if not hasattr(module, "predict_masks") or index.annotations.masks is None:
        return "detection"
    return "instance" if all(category.is_thing for category in index.categories) else "panoptic"


def find_objects(
    model: nn.Module,
    processor: DetrTorchvisionImageProcessor,
    inputs: Mapping[str, Any],
    size: tuple[int, int],
    threshold: float,
) -> DetectionResult:
    """The objects in one image, with their masks if the model makes some.

    Args:
        model: In evaluation mode.
        processor: What made `inputs`.
        inputs: A batch of one image, on the model's device.
        size: `(height, width)` of the original image.
        threshold: Objects of a lower score are left out, and their masks not computed.
    """
    with torch.inference_mode():
        if not isinstance(model, DetrForSegmentation):
            return processor.post_process_object_detection(model(**inputs), threshold, [size])[0]
        outputs = model(**inputs, output_masks=False)
        masks = partial(model.predict_masks, outputs)
        (found,) = processor.post_process_instance_segmentation(
            outputs, threshold, target_sizes=[size], predict_masks=masks
        )
    return {key: found[key] for key in ("scores", "labels", "boxes", "masks")}  # type: ignore[return-value]


def find_segments(
    model: DetrForSegmentation,
    processor: DetrTorchvisionImageProcessor,
    inputs: Mapping[str, Any],
    size: tuple[int, int],
    threshold: float = 0.85,
) -> PanopticResult:
    """The panoptic segments of one image; see `find_objects`."""
    with torch.inference_mode():
        outputs = model(**inputs, output_masks=False)
        masks = partial(model.predict_masks, outputs)
        return processor.post_process_panoptic_segmentation(
            outputs, threshold, target_sizes=[size], predict_masks=masks
        )[0]


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts; afterwards every module is in the mode that it was in."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _image_positions(labels: Sequence[DetectionLabels]) -> list[int]:
    for label in labels:
        if "image_index" not in label:
            raise ValueError(
                f"A batch does not say which images it holds: labels have {sorted(label)}, wanted 'image_index' too."
            )
    return [int(label["image_index"]) for label in labels]


def _sum_over_processes(sums: dict[str, float], num_images: int) -> tuple[dict[str, float], int]:
    from accelerate.utils import gather_object

    # Objects, not tensors: a process without a batch of its own does not know the names of the losses.
    gathered: list[tuple[dict[str, float], int]] = gather_object([(sums, num_images)])
    total: defaultdict[str, float] = defaultdict(float)
    for one_sums, _ in gathered:
        for name, value in one_sums.items():
            total[name] += value
    return dict(total), sum(one_images for _, one_images in gathered)
