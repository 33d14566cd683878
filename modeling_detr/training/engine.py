"""Optimizer steps and epochs; the result of a step does not depend on how its images are split.

The loss of a step is a sum over its images, divided by counts of the whole step (its boxes, its class weights). The
counts are known before the forward pass, so each process and each accumulated batch contributes its share, and the
gradient is that of a single process with one large batch.
"""

import contextlib
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.errors_detr import OutOfMemoryError
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.loss_detr import LossNumbers, sum_class_weights
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.distributed import Reduction, any_process, gather_full
from modeling_detr.training.divergence import StepShare, non_finite_loss
from modeling_detr.training.memory import release_memory
from modeling_detr.training.out_of_memory import (
    PartFailure,
    PixelLimit,
    StepStart,
    is_out_of_memory,
    running_statistics,
)
from modeling_detr.training.signals import StopRequested


LossNormalization = Literal["step", "original"]


@dataclass(frozen=True)
class StepOptions:
    """How optimizer steps are computed.

    Attributes:
        batches_per_step: Batches of each process in one step; the last step of an epoch may have fewer.
        loss_normalization: What the losses are divided by; see `step_normalizers`.
        max_pixels: Maximum number of pixels, padding included, in one forward pass; a larger batch is split. None: no
            limit.
        max_grad_norm: A gradient with a larger norm is scaled down to it. 0 disables clipping.
        image_mean: Mean of each channel in [0, 1]; only used for batches that are still uint8.
        image_std: Standard deviation of each channel in [0, 1]; only used for batches that are still uint8.
        seed: Seed of dropout and of the denoising noise.
    """

    batches_per_step: int = 1
    loss_normalization: LossNormalization = "step"
    max_pixels: int | None = None
    max_grad_norm: float = 0.0
    image_mean: Sequence[float] = (0.0, 0.0, 0.0)
    image_std: Sequence[float] = (1.0, 1.0, 1.0)
    seed: int = 0


@dataclass(frozen=True)
class Engine:
    """Everything an optimizer step needs, except its images.

    Attributes:
        model: The training model as prepared by `accelerator`; called like `DetrForObjectDetection`.
        config: The detector's config.
        optimizer: As prepared by `accelerator`.
        scheduler: The learning rate schedule, built on the raw optimizer; it advances by one each step.
        accelerator: All of its processes take each step together.
        options: How the steps are computed.
        limit: The limit of pixels found when a step ran out of memory; a step may lower it.
    """

    model: nn.Module
    config: DetrConfig
    optimizer: Optimizer
    scheduler: LRScheduler
    accelerator: Accelerator
    options: StepOptions = StepOptions()
    limit: PixelLimit = field(default_factory=PixelLimit)

    @functools.cached_property
    def running_statistics(self) -> list[Tensor]:
        """The buffers that a forward pass changes."""
        return running_statistics(self.model)


class StepRequest(NamedTuple):
    """What this process reports along with a step.

    Attributes:
        stop: Whether the run should stop after the step.
        checkpoint: Whether the run should write a checkpoint after the step.
        loader_wait: How long the process waited for its batches, in seconds.
    """

    stop: bool = False
    checkpoint: bool = False
    loader_wait: float = 0.0


class StepResult(NamedTuple):
    """The result of an optimizer step, over all processes.

    Attributes:
        losses: Mean `loss` and unweighted terms.
        grad_norm: Norm of the gradient before clipping.
        num_images: Number of images in the step.
        stop_requested: Whether any process asked to stop.
        checkpoint_requested: Whether any process asked for a checkpoint.
        loader_waits: How long each process waited for its batches, in seconds.
    """

    losses: dict[str, float]
    grad_norm: float
    num_images: int
    stop_requested: bool
    checkpoint_requested: bool = False
    loader_waits: Sequence[float] = ()

    @property
    def loader_wait(self) -> float:
        """The longest wait of a process for its batches, in seconds."""
        return max(self.loader_waits, default=0.0)


# Epochs


def train_one_epoch(
    engine: Engine,
    batches: Iterable[DetectionBatch],
    first_step: int = 0,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    wants_checkpoint: Callable[[], bool] = lambda: False,
) -> Iterator[StepResult]:
    """Take optimizer steps over `batches`, and yield the result of each.

    The random numbers of a step depend only on the seed and the step; those of dropout also on the process, those of
    denoising also on the image. A run resumed in the middle of an epoch therefore continues exactly, and the denoising
    noise does not depend on how a step is split.

    Args:
        engine: Model, optimizer and options.
        batches: This process's batches of the epoch; every process has the same number. A `StopRequested` from them
            ends the epoch after the step whose batches have arrived.
        first_step: Optimizer steps the run has already taken.
        should_stop: Whether this process should stop; called before each step.
        wants_checkpoint: Whether a checkpoint is due in this process; called before each step.

    Raises:
        NonFiniteLossError: See `training_step`.
    """
    engine.model.train()
    iterator = iter(batches)
    group = _next_group(iterator, engine.options.batches_per_step)
    if any_process(engine.accelerator, not group.batches):
        return
    for step in itertools.count(first_step):
        # Fetched before the step, so that a process that cannot load its images can still stop the others after it.
        upcoming = _next_group(iterator, engine.options.batches_per_step)
        torch.manual_seed(step_seed(engine.options.seed, step, engine.accelerator.process_index))
        request = StepRequest(should_stop(), wants_checkpoint(), group.seconds)
        yield training_step(engine, group.batches, step, request)
        if not upcoming.batches:
            return
        group = upcoming


class _Group(NamedTuple):
    """The batches of a step in this process, and the seconds it waited for them."""

    batches: Sequence[DetectionBatch]
    seconds: float


def _next_group(batches: Iterator[DetectionBatch], count: int) -> _Group:
    started = time.perf_counter()
    try:
        group = list(itertools.islice(batches, count))
    except StopRequested:  # an incomplete step is not taken
        group = []
    return _Group(group, time.perf_counter() - started)


def step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of PyTorch's random numbers in a step, counted from 0."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def noise_seed(seed: int, step: int, image_index: int) -> int:
    """Return the seed of the denoising noise of an image, given its index in the dataset."""
    return int(np.random.SeedSequence((seed, step), spawn_key=(image_index,)).generate_state(1, np.uint64)[0])


# One optimizer step


def training_step(
    engine: Engine,
    batches: Sequence[DetectionBatch],
    step: int = 0,
    request: StepRequest = StepRequest(),  # noqa: B008 (immutable)
) -> StepResult:
    """Take one optimizer step over the batches of all processes, which call it together.

    If a part does not fit into memory, it is halved and the step repeated, with the same gradient; `Engine.limit` then
    holds for the following steps. All processes repeat the step, under the same limit.

    Args:
        engine: Model, optimizer and options.
        batches: The batches of this process, each with one forward and backward pass, or several (see
            `StepOptions.max_pixels`).
        step: Index of the step in the run; the denoising noise depends on it.
        request: What this process reports along with the step.

    Raises:
        NonFiniteLossError: A loss or the gradient is not finite. Raised in all processes, before the optimizer steps.
        OutOfMemoryError: A single image does not fit into memory. Raised in all processes; with FSDP a batch that does
            not fit is an error as well, raised in its process.
    """
    accelerator, options = engine.accelerator, engine.options
    dtype = torch.float64 if next(engine.model.parameters()).dtype == torch.float64 else torch.float32
    normalizers = step_normalizers(batches, engine.config, accelerator, dtype, options.loss_normalization)
    losses_of = StepLosses(
        accelerator,
        normalizers.num_boxes,
        options.image_mean,
        options.image_std,
        options.seed,
        step,
        normalizers.num_teacher_boxes,
    )
    parts, losses = _accumulate(engine, batches, normalizers.class_weight_sums, losses_of)
    grad_norm = _clip_gradient(engine)
    table = torch.stack([torch.stack([loss.float() for loss in part.values()]) for part in losses])  # (parts, terms)
    numbers = [_numbers(part, engine.config) for part, _ in parts]
    result = _reduce(accelerator, [*losses[0]], table, numbers, grad_norm, request)

    bad_terms = [name for name, loss in result.losses.items() if name.startswith("loss") and not math.isfinite(loss)]
    suspects = [index for index, row in enumerate(table) if not bool(row.isfinite().all())] if bad_terms else []
    if not bad_terms and not math.isfinite(result.grad_norm) and _scale_is_exhausted(accelerator):
        bad_terms, suspects = ["gradient"], [*range(len(parts))]
    if bad_terms:
        share = StepShare(parts, normalizers.num_boxes, normalizers.num_teacher_boxes)
        limit = engine.options.max_grad_norm
        raise non_finite_loss(bad_terms, share, suspects, engine.model, losses_of, accelerator, limit)
    _advance(engine)
    return result


@dataclass(frozen=True)
class StepLosses:
    """Computes the losses of a part of a step: `losses = step_losses(model, part, class_weight_sum)`.

    Attributes:
        accelerator: Provides the device and the precision.
        num_boxes: Divisor of all losses except the class loss and those of a teacher.
        image_mean: See `StepOptions`.
        image_std: See `StepOptions`.
        seed: Seed of the run.
        step: Index of the step in the run.
        num_teacher_boxes: Divisor of the box losses of a teacher.
    """

    accelerator: Accelerator
    num_boxes: float | Tensor
    image_mean: Sequence[float]
    image_std: Sequence[float]
    seed: int
    step: int
    num_teacher_boxes: float | Tensor = 1.0

    def __call__(self, model: nn.Module, part: DetectionBatch, class_weight_sum: float | Tensor) -> dict[str, Tensor]:
        """Run the forward pass of a part; return `loss` and its unweighted terms.

        Args:
            model: The training model.
            part: A batch or part of one.
            class_weight_sum: Divisor of the class losses.
        """
        inputs = batch_to_device(part, self.accelerator.device, self.image_mean, self.image_std)
        labels = inputs.get("labels", ())
        for label in labels:
            if "image_index" in label:
                label["noise_seed"] = noise_seed(self.seed, self.step, int(label["image_index"]))
        if any("teacher_boxes" in label for label in labels):  # a detector without aids has no such divisor
            inputs["num_teacher_boxes"] = self.num_teacher_boxes
        with self.accelerator.autocast():
            output = model(**inputs, num_boxes=self.num_boxes, class_weight_sum=class_weight_sum)
        return {"loss": output.loss, **output.loss_dict}


_Parts = list[tuple[DetectionBatch, float | Tensor]]  # with the divisor of the class losses of each


def _accumulate(
    engine: Engine,
    batches: Sequence[DetectionBatch],
    class_weight_sums: Sequence[float | Tensor],
    losses_of: StepLosses,
) -> tuple[_Parts, list[dict[str, Tensor]]]:
    """Compute the gradient of a step, in smaller parts if it does not fit; return the parts and the losses of each."""
    accelerator = engine.accelerator
    start = StepStart(accelerator.device, engine.running_statistics)
    while True:
        parts = [
            (part, class_weight_sum)
            for batch, class_weight_sum in zip(batches, class_weight_sums, strict=True)
            for part in engine.limit.split(batch, engine.options.max_pixels)
        ]
        losses, failure = _backward(engine, parts, losses_of)
        failures = [] if failure is None else [failure]
        if accelerator.num_processes > 1 and any_process(accelerator, failure is not None):
            failures = gather_object(failures)
        if not failures:
            return parts, losses
        engine.limit.lower(failures)
        losses.clear()
        engine.optimizer.zero_grad()
        release_memory(accelerator.device)
        start.restore()


def _backward(
    engine: Engine, parts: _Parts, losses_of: StepLosses
) -> tuple[list[dict[str, Tensor]], PartFailure | None]:
    """Accumulate the gradient of all parts; return the losses of each, by name in sorted order.

    Returns:
        The losses, and the part that did not fit into memory, if there is one; the gradient is then incomplete.
    """
    accelerator = engine.accelerator
    # Distributed training averages gradients over processes, and Accelerate divides by its accumulation steps. Undo
    # both, since the loss is already this part's share of the loss of the whole step.
    factor = accelerator.num_processes * accelerator.gradient_accumulation_steps
    all_losses: list[dict[str, Tensor]] = []
    reduction, failure = Reduction(engine.model), None
    for index, (part, class_weight_sum) in enumerate(parts):
        is_last = index == len(parts) - 1
        if is_last:
            reduction.begin()
        try:
            with contextlib.nullcontext() if is_last else accelerator.no_sync(engine.model):
                losses = losses_of(engine.model, part, class_weight_sum)
                accelerator.backward(losses["loss"] * factor)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = PartFailure.of(part, error)
            if accelerator.distributed_type == DistributedType.FSDP:
                raise _failure_with_shards(failure) from error
            break
        all_losses.append({name: losses[name].detach() for name in sorted(losses)})
    if failure is not None:  # after the `except` block: its error refers to all tensors of the failed part
        losses = {}
        release_memory(accelerator.device)
        reduction.complete()
    return all_losses, failure


def _failure_with_shards(failure: PartFailure) -> OutOfMemoryError:
    """The error of a part that does not fit with FSDP, whose processes exchange weights within each part."""
    return OutOfMemoryError(
        "a training step",
        f"{failure} does not fit into memory ({failure.reason})",
        "use a smaller batch_size, with more gradient_accumulation_steps",
        image_indices=failure.image_indices,
    )


def _clip_gradient(engine: Engine) -> Tensor:
    """Scale the gradient down to the maximum norm; return its norm before clipping."""
    parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
    engine.accelerator.unscale_gradients()
    max_norm = engine.options.max_grad_norm if engine.options.max_grad_norm > 0 else math.inf
    return cast(Tensor, gather_full(nn.utils.clip_grad_norm_(parameters, max_norm)))


def _reduce(
    accelerator: Accelerator,
    names: Sequence[str],
    losses: Tensor,
    numbers: Sequence[LossNumbers],
    grad_norm: Tensor,
    request: StepRequest,
) -> StepResult:
    """Compute the result of a step over all processes, with one reduction and one copy to the host. (Apart from the
    matching costs, this is the step's only copy from the device.)

    Args:
        accelerator: All of its processes call this together.
        names: Names of the terms.
        losses: (parts of this process, terms).
        numbers: What the logged terms of each part are means over.
        grad_norm: Norm of the gradient.
        request: What this process reports.
    """
    # a loss is already the part's share of the step's; an error percentage or a count is a mean over the part
    factors = [[1.0 if name.startswith("loss") else part.divisor(name) for name in names] for part in numbers]
    total = sum(numbers, LossNumbers())
    waits = [0.0] * accelerator.num_processes  # one slot per process, since the reduction is a sum
    waits[accelerator.process_index] = request.loader_wait
    extra = losses.new_tensor([float(request.stop), float(request.checkpoint), total.images, total.matched, *waits])
    sums = (losses * losses.new_tensor(factors)).sum(0)
    reduced = cast(Tensor, accelerator.reduce(torch.cat([sums, extra]), "sum"))
    values = torch.cat([reduced, grad_norm.detach().float()[None]]).tolist()
    totals, (stops, checkpoints, images, matched, *waits, norm) = values[: len(names)], values[len(names) :]
    total = LossNumbers(images=int(images), matched=int(matched))
    means = {
        name: value if name.startswith("loss") else total.mean(name, value)
        for name, value in zip(names, totals, strict=True)
    }
    return StepResult(means, norm, total.images, stops > 0, checkpoints > 0, waits)


def _numbers(part: DetectionBatch, config: DetrConfig) -> LossNumbers:
    return LossNumbers.of(part["labels"], config.num_queries, float(config.eos_coefficient))


def _advance(engine: Engine) -> None:
    """Update the weights and the learning rates."""
    engine.optimizer.step()
    if getattr(engine.optimizer, "step_was_skipped", False):  # by a gradient scaler that lowers its scale
        with warnings.catch_warnings():  # PyTorch warns if the very first step was skipped
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            engine.scheduler.step()  # the rates follow the step count, which includes skipped steps
    else:
        engine.scheduler.step()
    engine.optimizer.zero_grad()


def _scale_is_exhausted(accelerator: Accelerator) -> bool:
    """Whether no lower gradient scale could make the gradient finite.

    A gradient scaler skips a step that overflows and halves its scale; overflows disappear long before scale 1.
    """
    return accelerator.scaler is None or accelerator.scaler.get_scale() <= 1.0


# Divisors of the losses


class StepNormalizers(NamedTuple):
    """The divisors of the losses of an optimizer step.

    Attributes:
        num_images: Images of the step, over all processes.
        num_boxes: Boxes of the step, at least 1; with 'original' at least the number of batches.
        class_weight_sums: One for each batch of this process. The class weights of all queries of the step, see
            `sum_class_weights`; with 'original' those of the batch alone, times the number of batches.
        num_teacher_boxes: Boxes of a teacher in the step, at least 1; with 'original' at least the number of batches.
    """

    num_images: float | Tensor
    num_boxes: float | Tensor
    class_weight_sums: list[float | Tensor]
    num_teacher_boxes: float | Tensor


def step_normalizers(
    batches: Sequence[DetectionBatch],
    config: DetrConfig,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
    loss_normalization: LossNormalization = "step",
) -> StepNormalizers:
    """Count images and boxes of a step over its batches and all processes, without a host synchronisation.

    Args:
        batches: The batches of this process.
        config: The detector's config.
        accelerator: All of its processes call this together.
        dtype: Data type of the losses. Counts are summed as integers.
        loss_normalization: 'step': the losses of a batch are its share of the means over the whole step.
            'original': the class loss of a batch is the mean over its own queries, and box losses are divided by the
            mean number of boxes per batch, at least 1; the losses of the step are means over the batches of all
            processes. (The original has one batch per process and does not accumulate; here an accumulated batch
            counts as a process's.)
    """
    eos, num_queries = float(config.eos_coefficient), config.num_queries
    counts = [[len(label["class_labels"]) for label in batch["labels"]] for batch in batches]  # boxes of each image
    matched = [sum(min(count, num_queries) for count in batch_counts) for batch_counts in counts]
    taught = sum(len(label.get("teacher_labels", ())) for batch in batches for label in batch["labels"])
    totals = [sum(map(len, counts)), sum(map(sum, counts)), sum(matched), len(batches), taught]
    num_images, num_boxes, num_matched, num_batches, num_taught = _sum_over_processes(totals, accelerator, dtype)

    if loss_normalization == "original":
        sums = [
            num_batches * sum_class_weights(len(batch_counts), batch_matched, num_queries, eos)
            for batch_counts, batch_matched in zip(counts, matched, strict=True)
        ]
        return StepNormalizers(num_images, _at_least(num_batches, num_boxes), sums, _at_least(num_batches, num_taught))
    step_sum = sum_class_weights(num_images, num_matched, num_queries, eos)
    sums = [step_sum] * len(batches)
    return StepNormalizers(num_images, _at_least(1.0, num_boxes), sums, _at_least(1.0, num_taught))


def _sum_over_processes(counts: Sequence[int], accelerator: Accelerator, dtype: torch.dtype) -> list[float | Tensor]:
    """Return floats for a single process, and tensors on the device otherwise, so that the host need not wait."""
    if accelerator.num_processes == 1:
        return [float(count) for count in counts]
    total = cast(Tensor, accelerator.reduce(torch.tensor(counts, device=accelerator.device), "sum"))
    return list(total.to(dtype))


def _at_least(smallest: float | Tensor, value: float | Tensor) -> float | Tensor:
    return value.clamp(min=smallest) if isinstance(value, Tensor) else max(smallest, value)
