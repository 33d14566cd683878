"""Checks before the first step, so that a run does not fail, or learn nothing, hours later.

The ground truth goes through transform, collator, processor and evaluator as if it were predicted, training samples go
through theirs, and the largest batch through the model. Weights, gradients, buffers and random states are unchanged
afterwards. The main process does this while the others wait; an error stops all of them.
"""

import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_iou

from modeling_detr.data import DetectionDataset, SampleKey
from modeling_detr.data.batch_transfer import bytes_in_shared_memory
from modeling_detr.data.findings import counted
from modeling_detr.data.loaders import BatchLoader
from modeling_detr.data.sampler import planned_sizes
from modeling_detr.errors_detr import DetrError, OutOfMemoryError, PreflightError
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.structures_detr import (
    DetectionBatch,
    DetectionIndex,
    DetectionLabels,
    DetectionResult,
    DetectionSample,
)
from modeling_detr.training.distributed import raise_in_all
from modeling_detr.training.memory import peak_gib, release_memory, reset_peak
from modeling_detr.training.out_of_memory import PartFailure, is_out_of_memory
from modeling_detr.training.setup import PreparedRun


MAX_IMAGES = 500
MAX_SECONDS = 30.0
_MIN_AP = 0.999
_MIN_IOU = 0.95  # at which a box counts as recovered
_MAX_LISTED = 10  # boxes that are listed one by one


@dataclass(frozen=True)
class TruthCheck:
    """The ground truth scored as if it were predicted.

    Attributes:
        ap: Its AP; nan if there are no boxes.
        num_images: Number of images checked.
        num_boxes: Number of boxes checked.
        lost: A sentence for each box that is not recovered.
    """

    ap: float
    num_images: int
    num_boxes: int
    lost: tuple[str, ...]


@dataclass(frozen=True)
class LoadingCheck:
    """The result of loading training images through the transforms.

    Attributes:
        num_images: Number of images.
        most_objects: Largest number of objects of a sample.
        images_per_second: Speed of a single loader process.
    """

    num_images: int
    most_objects: int
    images_per_second: float


def preflight(run: PreparedRun) -> list[str]:
    """Run all checks. All processes call it together.

    Args:
        run: A run that is about to start.

    Returns:
        Lines to print, in the main process; an empty list in the others.

    Raises:
        PreflightError: Training would fail: an image or a label is wrong, or the largest image does not fit into
            memory. Raised in all processes.
    """
    lines: list[str] = []
    error: PreflightError | None = None
    if run.accelerator.is_main_process:
        with unchanged_states(run.model):
            try:
                lines = _check_everything(run)
            except (ValueError, OSError, OutOfMemoryError) as problem:
                error = _with_way_around(problem)
    raise_in_all(error)
    if run.accelerator.num_processes > 1:
        (run.limit.pixels,) = broadcast_object_list([run.limit.pixels])
    run.state.max_pixels = run.limit.pixels
    return lines


def _with_way_around(problem: ValueError | OSError | OutOfMemoryError) -> PreflightError:
    """The error of a check, with the key of the recipe that skips the checks."""
    skip = "to train all the same, skip the checks"
    if isinstance(problem, DetrError):
        remedy = f"{problem.remedy.rstrip('.')}; {skip}" if problem.remedy else skip
        settings = {**problem.settings, "preflight": False}
        return PreflightError(f"preflight: {problem.where}", problem.problem, remedy, settings)
    return PreflightError("preflight", str(problem).rstrip("."), skip, {"preflight": False})


def _check_everything(run: PreparedRun) -> list[str]:
    started = time.monotonic()
    truth = check_truth(run, deadline=started + MAX_SECONDS / 3)
    loading = _check_training_images(run, deadline=started + 2 * MAX_SECONDS / 3)
    batch = largest_batch(run)
    step_seconds, memory = _check_largest_batch(run, batch)
    return [
        *_truth_lines(run, truth),
        f"{loading.num_images} training images after the transforms: labels and boxes are in range",
        _queries_line(run, loading.most_objects),
        memory,
        *_shared_memory_line(run, batch),
        _speed_line(loading, run.recipe.num_workers, len(batch["labels"]), step_seconds),
    ]


# The ground truth


def check_truth(run: PreparedRun, deadline: float) -> TruthCheck:
    """Score the ground truth of evaluation images, through transform, collator, post-processing and evaluator.

    Args:
        run: The run.
        deadline: Value of `time.monotonic()` after which no further image is loaded.
    """
    index, loader = run.eval_index, run.loaders.eval
    image_indices: list[int] = []
    results: list[DetectionResult] = []
    for image_index in _spread(len(index), MAX_IMAGES):
        if image_indices and time.monotonic() > deadline:
            break
        (labels,) = _collate(loader, [loader.dataset[SampleKey(image_index)]])["labels"]
        image_indices.append(image_index)
        results.append(_as_predicted(run, image_index, labels))
    part = _without_empty_boxes(index.select(image_indices))
    truth = part.annotations
    boxes = truth.take(~truth.is_crowd)
    lost: list[str] = []
    for image_index, result in enumerate(results):
        rows = np.flatnonzero(boxes.image_index == image_index)
        path = part.images[image_index].path
        lost += _lost_boxes(path, part.id2label, boxes.boxes_xyxy[rows], boxes.label[rows], result)
    most = int(np.bincount(truth.image_index, minlength=1).max()) if len(truth) else 0
    evaluator = CocoEvaluator(part, (1, 10, max(100, most)))
    evaluator.update(range(len(results)), results)
    return TruthCheck(float(evaluator.compute().ap), len(results), len(boxes), tuple(lost))


def _as_predicted(run: PreparedRun, image_index: int, labels: DetectionLabels) -> DetectionResult:
    """Convert the labels of an image to a prediction: through confident logits and the processor."""
    boxes, classes = labels["boxes"], labels["class_labels"]
    has_area = (boxes[:, 2:] > 0).all(-1)
    boxes, classes = boxes[has_area], classes[has_area]
    if not len(boxes):
        return {"scores": torch.zeros(0), "labels": classes, "boxes": torch.zeros((0, 4))}
    logits = torch.full((1, len(boxes), len(run.eval_index.categories) + 1), -20.0)
    logits[0, torch.arange(len(boxes)), classes] = 20.0
    record = run.eval_index.images[image_index]
    outputs: Any = SimpleNamespace(logits=logits, pred_boxes=boxes[None].float())
    return run.processor.post_process_object_detection(outputs, 0.0, [(record.height, record.width)])[0]


def _without_empty_boxes(index: DetectionIndex) -> DetectionIndex:
    table = index.annotations
    has_area = np.logical_and.reduce(table.boxes_xyxy[:, 2:] > table.boxes_xyxy[:, :2], axis=-1)
    return replace(index, annotations=table.take(has_area))


def _lost_boxes(
    path: str, names: dict[int, str], boxes: NDArray[Any], labels: NDArray[Any], result: DetectionResult
) -> Iterator[str]:
    """Yield a sentence for each true box that is not among the predictions."""
    if not len(boxes):
        return
    truth = torch.from_numpy(boxes).float()
    same_class = torch.from_numpy(labels)[:, None] == result["labels"][None]
    overlap = torch.where(same_class, box_iou(truth, result["boxes"].float()), torch.zeros(()))
    best = overlap.max(1).values if overlap.shape[1] else torch.zeros(len(truth))
    for row in torch.nonzero(best < _MIN_IOU).flatten().tolist():
        corners = [round(number, 2) for number in boxes[row].tolist()]
        yield (
            f"{path}: the {names[int(labels[row])]} at {corners} is not recovered when scored as its own prediction "
            f"(IoU {float(best[row]):.3f}): it is too small for float32, or misplaced"
        )


def _truth_lines(run: PreparedRun, truth: TruthCheck) -> list[str]:
    if not truth.num_boxes:
        return [f"{run.eval_index.name}: no boxes in the {truth.num_images} evaluation images that were checked"]
    lines = [
        f"the ground truth of {truth.num_images} evaluation images, {truth.num_boxes:,} boxes, "
        f"scores AP {truth.ap:.4f}"
    ]
    if not truth.ap >= _MIN_AP:
        lines.append(f"WARNING: that is below {_MIN_AP}; the metrics of this run will be too low")
    lines += [f"WARNING: {sentence}" for sentence in truth.lost[:_MAX_LISTED]]
    if len(truth.lost) > _MAX_LISTED:
        lines.append(f"WARNING: and {len(truth.lost) - _MAX_LISTED} more boxes are not recovered")
    return lines


# Training images


def _check_training_images(run: PreparedRun, deadline: float) -> LoadingCheck:
    """Load training images.

    Raises:
        ValueError: A label or box is out of range; the message names the image.
        OSError: An image cannot be read.
    """
    dataset = run.loaders.train_sampler.dataset
    seconds, num_images, most = 0.0, 0, 0
    for image_index in _spread(len(dataset), MAX_IMAGES):
        started = time.monotonic()
        if started > deadline and num_images:
            break
        (labels,) = _collate(run.loaders.train, [dataset[SampleKey(image_index)]])["labels"]
        most = max(most, len(labels["class_labels"]))
        seconds, num_images = seconds + time.monotonic() - started, num_images + 1
    return LoadingCheck(num_images, most, num_images / max(seconds, 1e-9))


def _queries_line(run: PreparedRun, most_loaded: int) -> str:
    table = run.train_index.annotations
    most = int(np.bincount(table.image_index[~table.is_crowd], minlength=1).max()) if len(table) else 0
    num_queries = int(run.weights.detector.config.num_queries)
    in_mosaics = f" ({most_loaded} in mosaics)" if most_loaded > most else ""
    fits = max(most, most_loaded) <= num_queries
    surplus = "" if fits else "; surplus objects are not trained on: raise model_config.num_queries"
    return f"at most {counted(most, 'object')} per image{in_mosaics}, {num_queries} queries{surplus}"


def _speed_line(loading: LoadingCheck, num_workers: int, batch_size: int, step_seconds: float | None) -> str:
    rate = loading.images_per_second * max(1, num_workers)
    if step_seconds is None:
        return f"loading provides about {rate:.0f} images per second"
    needed = batch_size / step_seconds
    slow = "" if rate >= needed else "; loading is the bottleneck: raise num_workers"
    return f"loading provides about {rate:.0f} images per second, training needs {needed:.0f}{slow}"


def _shared_memory_line(run: PreparedRun, batch: DetectionBatch) -> list[str]:
    """Compare the batches that loader processes keep ready with the free shared memory, where there is a limit."""
    num_workers, shared_memory = run.recipe.num_workers, Path("/dev/shm")
    if num_workers == 0 or not shared_memory.is_dir():
        return []
    ready = num_workers * (run.loaders.train.prefetch_factor or 1) + 2 * run.recipe.gradient_accumulation_steps
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed, free = (
        processes * ready * bytes_in_shared_memory(batch) / 2**20,
        shutil.disk_usage(shared_memory).free / 2**20,
    )
    text = f"batches that are ready take at most {needed:.0f} MiB of shared memory"
    if needed <= free:
        return [f"{text}; {free:.0f} MiB are free"]
    return [
        f"WARNING: {text}, but {shared_memory} has {free:.0f} MiB free: those that do not fit are copied, which is "
        f"slower; start the container with --shm-size={2 * needed:.0f}m or --ipc=host, or lower num_workers"
    ]


# The largest batch


def largest_batch(run: PreparedRun) -> DetectionBatch:
    """Return the largest images of the first epoch as one batch; with random batching, padded to the largest sides."""
    dataset: DetectionDataset = run.loaders.train_sampler.dataset
    image_indices = np.array(_spread(len(dataset), 10 * MAX_IMAGES), dtype=np.int64)
    sizes = planned_sizes(dataset, image_indices, epoch=0)
    order = np.argsort(-sizes.prod(1), kind="stable")[: run.recipe.batch_size]
    batch = _collate(run.loaders.train, [dataset[SampleKey(int(image_indices[row]))] for row in order])
    height, width = batch["pixel_values"].shape[-2:]
    if run.recipe.batching == "random":
        pad = (0, max(0, int(sizes[:, 1].max()) - width), 0, max(0, int(sizes[:, 0].max()) - height))
        batch["pixel_values"] = nn.functional.pad(batch["pixel_values"], pad)
        batch["pixel_mask"] = nn.functional.pad(batch["pixel_mask"], pad)
    return batch


def _check_largest_batch(run: PreparedRun, batch: DetectionBatch) -> tuple[float | None, str]:
    """Train on the largest batch on an accelerator or with `max_memory_gb`, or estimate its memory on a CPU.

    Returns:
        Seconds of a step, None if none was taken or it was split, and the line to print.

    Raises:
        OutOfMemoryError: One image does not fit into memory.
    """
    num_images, _, height, width = batch["pixel_values"].shape
    name = f"the largest batch, {num_images} images of {width}x{height} (width x height)"
    if run.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return None, f"{name}: not tried, since it would need all processes"
    if run.accelerator.device.type == "cpu" and run.recipe.max_memory_gb is None:
        needed, free = estimated_bytes(run, _largest_part(run, batch)), _free_bytes()
        text = f"{name}, needs about {needed / 2**30:.1f} GiB of memory (estimated)"
        if free is None:
            return None, text
        return None, f"{'WARNING: ' if needed > free else ''}{text}; {free / 2**30:.1f} GiB are free"
    part, seconds = _fitting_part(run, batch)
    peak = f"at most {peak_gib(run.accelerator.device):.1f} GiB"
    split = run.limit.report()
    if split is not None:
        return None, f"WARNING: {split}; {peak}"
    parts = "" if part is batch else f" in parts of at most {len(part['labels'])} images"
    return None if parts else seconds, f"{name}, fits{parts}: {peak}, in {seconds:.2f} s"


def _fitting_part(run: PreparedRun, batch: DetectionBatch) -> tuple[DetectionBatch, float]:
    """Train on the largest part of a batch, and halve it until it fits; return it, and the seconds that it takes."""
    device = run.accelerator.device
    while True:
        part = _largest_part(run, batch)
        reset_peak(device)
        try:
            real_step(run, part)  # the first one selects kernels
            return part, real_step(run, part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = PartFailure.of(part, error)
        for parameter in run.model.parameters():
            parameter.grad = None
        release_memory(device)
        run.limit.lower([failure])


def _largest_part(run: PreparedRun, batch: DetectionBatch) -> DetectionBatch:
    """The largest part of a batch that passes through the model at once."""
    parts = run.limit.split(batch, run.recipe.max_pixels_per_batch)
    return max(parts, key=lambda part: part["pixel_values"].numel())


def real_step(run: PreparedRun, batch: DetectionBatch) -> float:
    """Run forward and backward pass of a batch, with memory for the optimizer's state; return the seconds."""
    device = run.accelerator.device
    model = run.accelerator.unwrap_model(run.model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    model.train()
    started = time.monotonic()
    inputs = batch_to_device(batch, device, run.processor.image_mean, run.processor.image_std)
    with run.accelerator.autocast():
        loss = model(**inputs).loss
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.monotonic() - started
    for parameter in parameters:
        parameter.grad = None
    del states, loss, inputs
    return seconds


@torch.enable_grad()
def estimated_bytes(run: PreparedRun, batch: DetectionBatch) -> float:
    """Estimate the memory of a step: what one small image keeps for the backward pass, scaled up by pixels, plus
    weights, gradients and the optimizer's state."""
    num_images, _, height, width = batch["pixel_values"].shape
    shrink = max(1.0, ((height * width) / 256**2) ** 0.5)
    small = [max(64, round(side / shrink)) for side in (height, width)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    detector = run.weights.detector
    detector.eval()  # evaluation mode: no running statistics, no random numbers
    device = next(detector.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = detector(pixel_values=torch.zeros(1, 3, *small, device=device))
    del outputs
    weights = {parameter.data_ptr() for parameter in detector.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    scale = num_images * height * width / (small[0] * small[1])
    fixed = sum(parameter.numel() * parameter.element_size() for parameter in detector.parameters())
    return float(activations * scale + 4.0 * fixed)


def _free_bytes() -> float | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return None


# Shared pieces


@contextmanager
def unchanged_states(model: nn.Module) -> Iterator[None]:
    """Restore random states, modes, buffers and gradients after the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (other libraries draw from it)
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spread."""
    return sorted({*np.linspace(0, count - 1, min(count, most)).astype(np.int64).tolist()}) if count else []


def _collate(loader: BatchLoader, samples: Sequence[DetectionSample]) -> DetectionBatch:
    batch: DetectionBatch = loader.collate_fn(list(samples))
    loader.count_unreadable(batch)
    return batch
