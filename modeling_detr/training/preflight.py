"""What is tried before the first step, so that a run does not fail, or learn nothing, hours later.

The ground truth goes through transform, collator, processor and evaluator as if it were predicted, training samples
through theirs, and the largest batch through the model. Weights, gradients, buffers and random states stay as they
are. The main process does it while the others wait; all of them stop if it finds an error.
"""

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torchvision.ops import box_iou

from modeling_detr.data import DetectionDataset, SampleKey
from modeling_detr.data.sampler import planned_sizes
from modeling_detr.evaluation.coco import CocoEvaluator
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.structures_detr import DetectionBatch, DetectionLabels, DetectionResult


if TYPE_CHECKING:
    from modeling_detr.training.trainer import Trainer


MOST_IMAGES = 500
MOST_SECONDS = 30.0
_LEAST_AP = 0.999
_SAME_BOX = 0.95  # IoU at which a box finds itself
_NAMED = 10  # boxes that are named one by one


@dataclass(frozen=True)
class TruthCheck:
    """The ground truth judged as if it were predicted.

    Attributes:
        ap: Its AP; nan if there is no box.
        num_images: Images looked at.
        num_boxes: Boxes looked at.
        lost: A sentence for each box that does not find itself.
    """

    ap: float
    num_images: int
    num_boxes: int
    lost: tuple[str, ...]


def preflight(trainer: "Trainer") -> list[str]:
    """Tries everything; every process must call it.

    Args:
        trainer: A run that is about to begin.

    Returns:
        A few lines for the plan, in the main process; none in the others.

    Raises:
        ValueError: Training would fail: an image or label is wrong, or the largest batch does not fit. In all
            processes.
    """
    lines: list[str] = []
    error: str | None = None
    if trainer.accelerator.is_main_process:
        with _states_untouched(trainer.model):
            try:
                lines = _try_everything(trainer)
            except (ValueError, OSError) as problem:
                error = f"preflight: {problem} (--preflight false skips this check.)"
    errors = [message for message in gather_object([error]) if message is not None]
    if errors:
        raise ValueError(errors[0])
    return lines


def _try_everything(trainer: "Trainer") -> list[str]:
    deadline = time.monotonic() + MOST_SECONDS
    loaders, recipe = trainer.loaders, trainer.recipe
    lines = []
    truth = check_truth(trainer, deadline - 2 * MOST_SECONDS / 3)
    lines.append(
        f"the ground truth of {truth.num_images} evaluation images, {truth.num_boxes} boxes, scores AP {truth.ap:.4f}"
        if truth.num_boxes
        else f"{trainer.eval_index.name}: no box in the {truth.num_images} evaluation images that were looked at"
    )
    if truth.num_boxes and not truth.ap >= _LEAST_AP:
        lines.append(f"WARNING: that is less than {_LEAST_AP}; figures of this run will be too low")
    lines += [f"WARNING: {sentence}" for sentence in truth.lost[:_NAMED]]
    if len(truth.lost) > _NAMED:
        lines.append(f"WARNING: and {len(truth.lost) - _NAMED} more boxes do not find themselves")

    # Labels and boxes in range: the collator says which image has one that is not.
    seconds, number, most_objects = 0.0, 0, 0
    for position in _spread(len(loaders.train_sampler.dataset), MOST_IMAGES):
        started = time.monotonic()
        if started > deadline - MOST_SECONDS / 3 and number:
            break
        _collate(loaders.train, [loaders.train_sampler.dataset[SampleKey(position)]])
        seconds, number = seconds + time.monotonic() - started, number + 1
    table = trainer.train_index.annotations
    if len(table):
        most_objects = int(np.bincount(table.image_index[~table.is_crowd], minlength=1).max())
    queries = int(trainer.detector.config.num_queries)
    fits = "" if most_objects <= queries else "; those beyond take no part: raise model_config.num_queries"
    lines.append(f"{number} training images after the transforms: labels and boxes are in range")
    lines.append(f"at most {most_objects} objects an image, {queries} queries{fits}")

    batch = largest_batch(trainer)
    step_seconds, memory = _try_batch(trainer, batch)
    lines.append(memory)
    rate = number / max(seconds, 1e-9) * max(1, recipe.num_workers)
    speed = f"loading gives about {rate:.0f} images a second"
    if step_seconds is not None:
        wanted = len(batch["labels"]) / step_seconds
        slow = "" if rate >= wanted else ": the loader is slower, raise num_workers"
        speed += f", a step takes {wanted:.0f}{slow}"
    lines.append(speed)
    return lines


def check_truth(trainer: "Trainer", deadline: float) -> TruthCheck:
    """Judges the ground truth of evaluation images, through transform, collator, post-processing and evaluator.

    Args:
        trainer: The run.
        deadline: Of `time.monotonic`, when no further image is begun.
    """
    index, loader = trainer.eval_index, trainer.loaders.eval
    positions: list[int] = []
    results: list[DetectionResult] = []
    num_labels = len(index.categories)
    for position in _spread(len(index), MOST_IMAGES):
        if positions and time.monotonic() > deadline:
            break
        (labels,) = _collate(loader, [loader.dataset[SampleKey(position)]])["labels"]
        positions.append(position)
        results.append(_as_predicted(trainer, position, labels, num_labels))
    part = index.select(positions)
    table = part.annotations
    with_area = np.logical_and.reduce(table.boxes_xyxy[:, 2:] > table.boxes_xyxy[:, :2], axis=-1)
    part = replace(part, annotations=table.take(with_area))
    truth = part.annotations
    real = truth.take(~truth.is_crowd)
    lost: list[str] = []
    for number, result in enumerate(results):
        rows = np.flatnonzero(real.image_index == number)
        lost += _lost_boxes(part.images[number].path, part.id2label, real.boxes_xyxy[rows], real.label[rows], result)
    most = int(np.bincount(truth.image_index, minlength=1).max()) if len(truth) else 0
    evaluator = CocoEvaluator(part, (1, 10, max(100, most)))
    evaluator.update(range(len(results)), results)
    return TruthCheck(float(evaluator.compute().ap), len(results), len(real), tuple(lost))


def _as_predicted(trainer: "Trainer", position: int, labels: DetectionLabels, num_labels: int) -> DetectionResult:
    """The labels of an image as the processor gives them back, from logits that are sure of them."""
    boxes, classes = labels["boxes"], labels["class_labels"]
    sized = (boxes[:, 2:] > 0).all(-1)
    boxes, classes = boxes[sized], classes[sized]
    logits = torch.full((1, len(boxes), num_labels + 1), -20.0)
    logits[0, torch.arange(len(boxes)), classes] = 20.0
    record = trainer.eval_index.images[position]
    outputs: Any = SimpleNamespace(logits=logits, pred_boxes=boxes[None].float())
    if not len(boxes):
        return {"scores": torch.zeros(0), "labels": classes, "boxes": torch.zeros((0, 4))}
    return trainer.processor.post_process_object_detection(outputs, 0.0, [(record.height, record.width)])[0]


def _lost_boxes(
    path: str, names: dict[int, str], boxes: np.ndarray, labels: np.ndarray, result: DetectionResult
) -> Iterator[str]:
    if not len(boxes):
        return
    truth = torch.from_numpy(boxes).float()
    same = torch.from_numpy(labels)[:, None] == result["labels"][None]
    overlap = torch.where(same, box_iou(truth, result["boxes"].float()), torch.zeros(()))
    best = overlap.max(1).values if overlap.shape[1] else torch.zeros(len(truth))
    for row in torch.nonzero(best < _SAME_BOX).flatten().tolist():
        corners = [round(number, 2) for number in boxes[row].tolist()]
        yield (
            f"{path}: the {names[int(labels[row])]} at {corners} does not find itself (IoU {float(best[row]):.3f}): "
            f"too small for float32, or out of place"
        )


def largest_batch(trainer: "Trainer") -> DetectionBatch:
    """The images that the first epoch makes largest, as one batch; of random batches, padded to any image's sides."""
    dataset: DetectionDataset = trainer.loaders.train_sampler.dataset
    positions = np.array(_spread(len(dataset), 10 * MOST_IMAGES), dtype=np.int64)
    sizes = planned_sizes(dataset, positions, epoch=0)
    order = np.argsort(-sizes.prod(1), kind="stable")[: trainer.recipe.batch_size]
    batch = _collate(trainer.loaders.train, [dataset[SampleKey(int(positions[row]))] for row in order])
    height, width = batch["pixel_values"].shape[-2:]
    if trainer.recipe.batching == "random":
        pad = (0, max(0, int(sizes[:, 1].max()) - width), 0, max(0, int(sizes[:, 0].max()) - height))
        batch["pixel_values"] = nn.functional.pad(batch["pixel_values"], pad)
        batch["pixel_mask"] = nn.functional.pad(batch["pixel_mask"], pad)
    return batch


def _try_batch(trainer: "Trainer", batch: DetectionBatch) -> tuple[float | None, str]:
    images, _, height, width = batch["pixel_values"].shape
    what = f"the largest batch, {images} images of {height}x{width} (height x width)"
    if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return None, f"{what}: not tried, since here all processes would have to take part"
    if trainer.accelerator.device.type == "cpu":
        needed, free = estimated_bytes(trainer, batch), _free_bytes()
        text = f"{what}, takes about {needed / 2**30:.1f} GiB of memory (estimated)"
        if free is None:
            return None, text
        short = "WARNING: " if needed > free else ""
        return None, f"{short}{text}; {free / 2**30:.1f} GiB are free"
    try:
        real_step(trainer, batch)  # the first one chooses kernels
        seconds = real_step(trainer, batch)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{what} does not fit into the memory of {trainer.accelerator.device}: "
            f"{str(error).partition('. ')[0]}; lower batch_size (and raise gradient_accumulation_steps), the sizes, "
            f"or set gradient_checkpointing."
        ) from error
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return seconds, f"{what}, fits: {peak:.1f} GiB at most, in {seconds:.2f} s"


def real_step(trainer: "Trainer", batch: DetectionBatch) -> float:
    """Forward and backward pass of a batch, with room for the optimizer's states; returns the seconds it took."""
    device = trainer.accelerator.device
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    model.train()
    started = time.monotonic()
    inputs = batch_to_device(batch, device, trainer.processor.image_mean, trainer.processor.image_std)
    with trainer.accelerator.autocast():
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
def estimated_bytes(trainer: "Trainer", batch: DetectionBatch) -> float:
    """What a step of `batch` takes: what one small image's forward pass keeps for the backward pass, scaled up by
    pixels, and weights, gradients and the optimizer's two states."""
    images, _, height, width = batch["pixel_values"].shape
    shrink = max(1.0, ((height * width) / 256**2) ** 0.5)
    small = [max(64, round(side / shrink)) for side in (height, width)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    detector = trainer.detector
    detector.eval()  # no running statistics, no random numbers
    device = next(detector.parameters()).device
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = detector(pixel_values=torch.zeros(1, 3, *small, device=device))
    del outputs
    weights = {parameter.data_ptr() for parameter in detector.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    scale = images * height * width / (small[0] * small[1])
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


@contextmanager
def _states_untouched(model: nn.Module) -> Iterator[None]:
    """Random states, modes, buffers and gradients are afterwards what they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (whoever draws from it)
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


def _spread(number: int, most: int) -> list[int]:
    """At most `most` of `number` positions, evenly spread."""
    return sorted({*np.linspace(0, number - 1, min(number, most)).astype(np.int64).tolist()}) if number else []


def _collate(loader: Any, samples: Sequence[Any]) -> DetectionBatch:
    batch: DetectionBatch = loader.collate_fn(samples)
    return batch
