"""What a run says before its first step: data, classes, steps, rates, what is frozen, where it runs."""

from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import DistributedType
from torch import nn

from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.optimization import num_parameters
from modeling_detr.training.recipe import Recipe


if TYPE_CHECKING:
    from modeling_detr.training.trainer import Trainer


def plan(trainer: "Trainer") -> str:
    """What is about to happen, a line a subject, and a note for everything that a person should know of."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    names = trainer.train_index.id2label
    counts = [int((trainer.train_index.annotations.label == label).sum()) for label in names]
    lines = [
        f"train     {_describe(trainer.train_index)}",
        f"evaluate  {_describe(trainer.eval_index)}",
        "classes   " + ", ".join(f"{names[label]} {count:,}" for label, count in enumerate(counts)),
        f"steps     {trainer.total_steps:,} of {trainer.loaders.train_sampler.step_size} images "
        f"({recipe.batch_size} x {recipe.gradient_accumulation_steps} accumulated x "
        f"{accelerator.num_processes} processes), {trainer.steps_per_epoch:,} an epoch, {recipe.epochs} epochs"
        + (f", at most {recipe.max_steps:,} steps" if recipe.max_steps else ""),
        *(
            f"rate      {group['initial_lr']:g} for {group['name']}: "
            f"{num_parameters(group['params']):,} parameters in {len(group['params'])} tensors"
            for group in trainer.raw_optimizer.param_groups
        ),
        f"schedule  {recipe.lr_schedule}"
        + (f", a tenth every {_drops(recipe)}" if recipe.lr_schedule == "step" else "")
        + (f", {trainer.warmup_steps} steps of warm-up" if trainer.warmup_steps else "")
        + (f", rates x {trainer.rate_factor:.3g} for the images of a step" if recipe.scale_lr else ""),
        *([f"average   of the weights, decay {recipe.ema_decay:g}: it is evaluated and kept"] if trainer.ema else []),
        *(
            ["losses    each batch's class loss is divided by its own class weights, as in the original"]
            if recipe.loss_normalization == "original"
            else []
        ),
        f"frozen    {_frozen_summary(trainer.detector)}",
        f"runs on   {accelerator.device.type}, {accelerator.num_processes} process(es), "
        + ("each with a part of the model (FSDP), " if accelerator.distributed_type == DistributedType.FSDP else "")
        + f"precision {accelerator.mixed_precision}, {recipe.num_workers} loader processes each"
        + (", compiled" if recipe.compile else ""),
        f"run       {trainer.run_dir}"
        + (f", resumed from {trainer.checkpoint} at step {trainer.state.step}" if trainer.checkpoint else ""),
    ]
    notes = dict.fromkeys(
        [
            *trainer.train_index.notes,
            *trainer.eval_index.notes,
            *trainer.notes,
            *_surplus_note(trainer.train_index, trainer.detector.config.num_queries),
        ]
    )
    return "\n".join(lines + [f"note      {note}" for note in notes])


def _drops(recipe: Recipe) -> str:
    return f"{recipe.lr_drop_epochs} epochs" if recipe.lr_drop_steps is None else f"{recipe.lr_drop_steps:,} steps"


def _describe(index: DetectionIndex) -> str:
    boxes, crowds = len(index.annotations), int(index.annotations.is_crowd.sum())
    return f"{index.name}: {len(index):,} images, {boxes:,} boxes" + (f" ({crowds:,} of crowds)" if crowds else "")


def _surplus_note(index: DetectionIndex, num_queries: int) -> list[str]:
    counts = np.bincount(index.annotations.image_index[~index.annotations.is_crowd], minlength=len(index))
    surplus = np.maximum(counts - num_queries, 0)
    if not surplus.any():
        return []
    return [
        f"{int((surplus > 0).sum()):,} images hold more objects than the model has queries ({num_queries}), up to "
        f"{int(counts.max())}; {int(surplus.sum()):,} objects take no part. Raise model_config.num_queries for them."
    ]


def _frozen_summary(model: nn.Module) -> str:
    """Which modules do not train, as few names as say it, and how many parameters that are."""
    parameters = dict(model.named_parameters())
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    if not frozen:
        return "nothing"
    prefixes: list[str] = []
    for name in sorted(frozen):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            prefix = ".".join(parts[:depth])
            members = [other for other in parameters if other == prefix or other.startswith(f"{prefix}.")]
            if frozen.issuperset(members):
                prefixes.append(prefix)
                break
    count = num_parameters(parameters[name] for name in frozen)
    return f"{', '.join(dict.fromkeys(prefixes))} ({count:,} parameters)"
