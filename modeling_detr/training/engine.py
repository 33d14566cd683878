"""The training loop: optimizer steps that mean the same however they are split, and epochs of them.

A step's loss is a sum over all its images divided by numbers of the whole step (its boxes, its class weights). Those
are known before the forward pass, so each process and each accumulated batch adds its share, and the gradient is that
of one process with one large batch.
"""

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.data.collate import split_batch
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.loss_detr import sum_class_weights
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.divergence import StepShare, non_finite_loss
from modeling_detr.training.sharding import whole


# One optimizer step


LossNormalization = Literal["step", "original"]


class StepNormalizers(NamedTuple):
    """What the losses of one optimizer step are divided by.

    num_images: images of the step, over all processes.
    num_boxes: boxes of the step, at least 1; under 'original' at least as many as it has batches.
    class_weight_sums: one for each batch of this process. The class weights of all queries of the step, see
        `sum_class_weights`; under 'original' those of the batch alone, times the number of batches.
    """

    num_images: float | Tensor
    num_boxes: float | Tensor
    class_weight_sums: list[float | Tensor]


class StepResult(NamedTuple):
    """What one optimizer step did: means over all processes of `loss` and the unweighted terms, the norm of the
    gradient before clipping, images seen, whether some process was asked to stop or wants a checkpoint, and how many
    seconds the process that waited longest waited for its batches."""

    losses: dict[str, float]
    grad_norm: float
    num_images: int
    stop_requested: bool
    checkpoint_requested: bool = False
    loader_wait: float = 0.0


def step_normalizers(
    batches: Sequence[DetectionBatch],
    config: DetrConfig,
    accelerator: Accelerator,
    dtype: torch.dtype = torch.float32,
    loss_normalization: LossNormalization = "step",
) -> StepNormalizers:
    """Counts images and boxes of a step over its batches and over all processes, without a host synchronisation.

    Args:
        batches: Those of this process.
        config: The detector's.
        accelerator: Its processes all call this together.
        dtype: What losses are computed in. Counts are added up as whole numbers.
        loss_normalization: 'step': a batch's losses are its share of means over the whole step. 'original': a batch's
            class loss is the mean over its own queries, and the boxes' are divided by the mean number of boxes in a
            batch, at least 1; the step's are the means of both over the batches of all processes. (The original has
            one batch a process and does not accumulate; here accumulated batches count as those of processes do.)
    """
    eos, num_queries = float(config.eos_coefficient), config.num_queries
    counts = [[len(label["class_labels"]) for label in batch["labels"]] for batch in batches]  # of each batch's images
    matched = [sum(min(count, num_queries) for count in own) for own in counts]
    totals = [sum(map(len, counts)), sum(map(sum, counts)), sum(matched), len(batches)]
    num_images, num_boxes, num_matched, num_batches = _sum_over_processes(totals, accelerator, dtype)

    if loss_normalization == "original":
        sums = [
            num_batches * sum_class_weights(len(own), own_matched, num_queries, eos)
            for own, own_matched in zip(counts, matched, strict=True)
        ]
        return StepNormalizers(num_images, _at_least(num_batches, num_boxes), sums)
    whole = sum_class_weights(num_images, num_matched, num_queries, eos)
    return StepNormalizers(num_images, _at_least(1.0, num_boxes), [whole] * len(batches))


def _sum_over_processes(counts: Sequence[int], accelerator: Accelerator, dtype: torch.dtype) -> list[float | Tensor]:
    """Numbers where there is one process, else tensors on the device, which nobody waits for."""
    if accelerator.num_processes == 1:
        return [float(count) for count in counts]
    total = cast(Tensor, accelerator.reduce(torch.tensor(counts, device=accelerator.device), "sum"))
    return list(total.to(dtype))


def _at_least(smallest: float | Tensor, value: float | Tensor) -> float | Tensor:
    return value.clamp(min=smallest) if isinstance(value, Tensor) else max(smallest, value)


def training_step(
    model: nn.Module,
    batches: Sequence[DetectionBatch],
    config: DetrConfig,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accelerator: Accelerator,
    *,
    loss_normalization: LossNormalization = "step",
    max_pixels: int | None = None,
    max_grad_norm: float = 0.0,
    image_mean: Sequence[float] = (0.0, 0.0, 0.0),
    image_std: Sequence[float] = (1.0, 1.0, 1.0),
    noise_seeds: Callable[[int], int] | None = None,
    stop_requested: bool = False,
    checkpoint_requested: bool = False,
    loader_wait: float = 0.0,
) -> StepResult:
    """One optimizer step over `batches` of this process and of all others.

    Args:
        model: The training model as prepared by `accelerator`; called like `DetrForObjectDetection`.
        batches: What this process contributes, one forward and backward pass each, or several, see `max_pixels`.
        config: The detector's.
        optimizer: As prepared by `accelerator`.
        scheduler: Built on the raw optimizer; it moves on by one.
        accelerator: Its processes all call this together.
        loss_normalization: What losses are divided by, see `step_normalizers`.
        max_pixels: Most pixels that pass through the model at once; a batch with more is taken in parts.
        max_grad_norm: The gradient is scaled down to this norm; 0: left as it is.
        image_mean: For batches that are still uint8: mean of each channel, in units of [0, 1].
        image_std: For batches that are still uint8: standard deviation of each channel.
        noise_seeds: Position of an image in the dataset → the seed of what denoising draws for it. None: that follows
            PyTorch's global random numbers.
        stop_requested: Whether this process was asked to stop; the result tells whether any was.
        checkpoint_requested: Whether this process wants a checkpoint; the result tells whether any does.
        loader_wait: Seconds that this process waited for `batches`; the result has the longest wait.

    Raises:
        NonFiniteLossError: On all processes, before the optimizer moves.
    """
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    normalizers = step_normalizers(batches, config, accelerator, dtype, loss_normalization)
    parts = [
        (part, class_weight_sum)
        for batch, class_weight_sum in zip(batches, normalizers.class_weight_sums, strict=True)
        for part in ([batch] if max_pixels is None else split_batch(batch, max_pixels))
    ]
    losses_of = partial(
        part_losses,
        num_boxes=normalizers.num_boxes,
        accelerator=accelerator,
        image_mean=image_mean,
        image_std=image_std,
        noise_seeds=noise_seeds,
    )
    outcomes: list[dict[str, Tensor]] = []
    for position, (part, class_weight_sum) in enumerate(parts):
        last = position == len(parts) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            losses = losses_of(model, part, class_weight_sum)
            # Distributed training averages gradients over processes and Accelerate divides by its accumulation steps;
            # the loss is already this batch's share of the whole step's.
            factor = accelerator.num_processes * accelerator.gradient_accumulation_steps
            accelerator.backward(losses["loss"] * factor)
        outcomes.append({name: loss.detach() for name, loss in losses.items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    accelerator.unscale_gradients()
    most = max_grad_norm if max_grad_norm > 0 else math.inf
    grad_norm = cast(Tensor, whole(nn.utils.clip_grad_norm_(parameters, most)))

    # Beside the matching costs the only copy from the device: everything that is to be known, in a single vector.
    names = sorted(outcomes[0])
    local = torch.stack([torch.stack([outcome[name].float() for name in names]) for outcome in outcomes])
    waits = [0.0] * accelerator.num_processes  # a place for each, since the only reduction is a sum
    waits[accelerator.process_index] = loader_wait
    extra = local.new_tensor([float(stop_requested), float(checkpoint_requested), len(outcomes), *waits])
    reduced = cast(Tensor, accelerator.reduce(torch.cat([local.sum(0), extra]), "sum"))
    num_images = torch.as_tensor(normalizers.num_images, dtype=torch.float32, device=reduced.device)
    values = torch.cat([reduced, num_images[None], grad_norm.detach().float()[None]]).tolist()
    totals, (stops, checkpoints, num_batches, *waits, images, norm) = values[: len(names)], values[len(names) :]
    means = {
        # shares of the step add up; errors in percent and counts are means over the batches
        name: total if name.startswith("loss") else total / num_batches
        for name, total in zip(names, totals, strict=True)
    }
    bad_terms = [name for name, value in means.items() if name.startswith("loss") and not math.isfinite(value)]
    if not bad_terms and not math.isfinite(norm) and _scale_is_spent(accelerator):
        bad_terms = ["gradient"]
    if bad_terms:
        suspects = [number for number, row in enumerate(local) if not bool(row.isfinite().all())]
        if bad_terms == ["gradient"]:
            suspects = [*range(len(parts))]
        share = StepShare(parts, normalizers.num_boxes)
        raise non_finite_loss(bad_terms, share, suspects, model, losses_of, accelerator)
    optimizer.step()
    if getattr(optimizer, "step_was_skipped", False):  # by a gradient scaler, which looks for a better scale
        with warnings.catch_warnings():  # PyTorch warns if the very first step is skipped
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step()  # the rates are a function of the steps, of which this is one
    else:
        scheduler.step()
    optimizer.zero_grad()
    return StepResult(means, norm, int(images), stops > 0, checkpoints > 0, max(waits))


def part_losses(
    model: nn.Module,
    part: DetectionBatch,
    class_weight_sum: float | Tensor,
    *,
    num_boxes: float | Tensor,
    accelerator: Accelerator,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    noise_seeds: Callable[[int], int] | None,
) -> dict[str, Tensor]:
    """The forward pass of one part of a `StepShare`: `loss` and its unweighted terms; see `training_step`."""
    inputs = batch_to_device(part, accelerator.device, image_mean, image_std)
    if noise_seeds is not None:
        for label in inputs.get("labels", ()):
            if "image_index" in label:
                label["noise_seed"] = noise_seeds(int(label["image_index"]))
    with accelerator.autocast():
        output = model(**inputs, num_boxes=num_boxes, class_weight_sum=class_weight_sum)
    return {"loss": output.loss, **output.loss_dict}


def _scale_is_spent(accelerator: Accelerator) -> bool:
    """Whether no gradient scaler could still make the gradient finite: it skips such steps and halves its scale, which
    cures an overflow long before 1, and nothing else ever."""
    return accelerator.scaler is None or accelerator.scaler.get_scale() <= 1.0


# One epoch


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[DetectionBatch],
    config: DetrConfig,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accelerator: Accelerator,
    *,
    batches_per_step: int = 1,
    loss_normalization: LossNormalization = "step",
    max_pixels: int | None = None,
    max_grad_norm: float = 0.0,
    image_mean: Sequence[float] = (0.0, 0.0, 0.0),
    image_std: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    first_step: int = 0,
    stop: Callable[[], bool] = lambda: False,
    checkpoint: Callable[[], bool] = lambda: False,
) -> Iterator[StepResult]:
    """Takes one optimizer step after the other over `batches`, and yields what each did.

    Random numbers of a step depend on `seed` and the step alone, those of dropout on the process too and those of
    denoising on the image: a run that is resumed in the middle goes on as if nothing had happened, and denoising is
    the same however a step is split.

    Args:
        model: See `training_step`.
        batches: This process's batches of the epoch, as many as every other process has.
        config: The detector's.
        optimizer: See `training_step`.
        scheduler: See there.
        accelerator: See there.
        batches_per_step: Batches of each process in one optimizer step; the last step takes what is left.
        loss_normalization: See `step_normalizers`.
        max_pixels: See `training_step`.
        max_grad_norm: See `training_step`.
        image_mean: See there.
        image_std: See there.
        seed: The run's.
        first_step: Optimizer steps that the run has taken before.
        stop: Whether this process was asked to stop; asked before every step.
        checkpoint: Whether this process wants a checkpoint; asked before every step.

    Raises:
        NonFiniteLossError: See `training_step`.
    """
    model.train()
    iterator = iter(batches)
    for step in itertools.count(first_step):
        began = time.perf_counter()
        group = list(itertools.islice(iterator, batches_per_step))
        loader_wait = time.perf_counter() - began
        if not group:
            return
        torch.manual_seed(step_seed(seed, step, accelerator.process_index))
        yield training_step(
            model,
            group,
            config,
            optimizer,
            scheduler,
            accelerator,
            loss_normalization=loss_normalization,
            max_pixels=max_pixels,
            max_grad_norm=max_grad_norm,
            image_mean=image_mean,
            image_std=image_std,
            noise_seeds=partial(noise_seed, seed, step),
            stop_requested=stop(),
            checkpoint_requested=checkpoint(),
            loader_wait=loader_wait,
        )


def step_seed(seed: int, step: int, process: int) -> int:
    """What PyTorch's random numbers of a step, counted from 0, are seeded with."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0])


def noise_seed(seed: int, step: int, image: int) -> int:
    """What denoising's random numbers for an image, by its position in the dataset, are seeded with."""
    return int(np.random.SeedSequence((seed, step), spawn_key=(image,)).generate_state(1, np.uint64)[0])
