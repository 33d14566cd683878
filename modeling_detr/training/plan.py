"""What a run says before its first step: data, classes, steps, rates, what is frozen, where it runs."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import DistributedType
from torch import nn

from modeling_detr.backbone_detr import FrozenBatchNorm2d
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.optimization import num_parameters
from modeling_detr.training.recipe import Recipe


if TYPE_CHECKING:
    from modeling_detr.training.trainer import Trainer


# Part of the model → where its parameters lie, in the order of the walk through it; what lies nowhere is "others".
_PARTS = {
    "backbone": ("backbone.conv_encoder",),
    "positions": ("backbone.position_embedding",),
    "input projection": ("input_projection",),
    "encoder": ("model.encoder",),
    "decoder": ("model.decoder",),
    "queries": ("query_position_embeddings",),
    "heads": ("class_labels_classifier", "bbox_predictor"),
    "mask head": ("bbox_attention", "mask_head"),
}
_MOST_NAMES = 4


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
        *_parts_table(trainer),
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


def _parts_table(trainer: "Trainer") -> list[str]:
    """A line for each part of the model: its parameters, how many of them train, at which rate, and what is frozen."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = {name.removeprefix("detector."): parameter for name, parameter in model.named_parameters()}
    rates = {id(one): group["initial_lr"] for group in trainer.raw_optimizer.param_groups for one in group["params"]}
    names_of: dict[str, list[str]] = {part: [] for part in (*_PARTS, "aids", "others")}
    of_aids = {name for name, _ in model.named_parameters() if not name.startswith("detector.")}
    for name in parameters:
        if name in of_aids:
            names_of["aids"].append(name)
            continue
        found = (part for part, places in _PARTS.items() if any(f".{place}." in f".{name}." for place in places))
        names_of[next(found, "others")].append(name)

    rows = [("part", "parameters", "train", "rate", "")]
    for part, names in {**names_of, "all": list(parameters)}.items():
        train = [parameters[name] for name in names if parameters[name].requires_grad]
        counts = f"{num_parameters(parameters[name] for name in names):,}", f"{num_parameters(train):,}"
        part_rates = ", ".join(f"{rate:g}" for rate in sorted({rates[id(one)] for one in train}))
        if part == "all":
            rows.append((part, *counts, "", ""))
        elif names:
            rows.append((part, *counts, part_rates or "-", _frozen(part, names, parameters, trainer.detector)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{part:<{widths[0]}}  {count:>{widths[1]}}  {train:>{widths[2]}}  {rate:>{widths[3]}}  {frozen}".rstrip()
        for part, count, train, rate, frozen in rows
    ]
    return [f"{'parts' if number == 0 else '':<10}{line}" for number, line in enumerate(lines)]


def _frozen(part: str, names: Sequence[str], parameters: Mapping[str, nn.Parameter], detector: nn.Module) -> str:
    """Which modules of a part do not train, as few names as say it; "" if all do."""
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}

    def is_frozen(glob: str) -> bool:
        return frozen.issuperset(name for name in parameters if fnmatchcase(f"{name}.", f"{glob}.*"))

    globs: dict[str, None] = {}  # in the words of `freeze`: all layers are layers.*
    for name in names:
        pieces = name.split(".") if name in frozen else []
        prefixes = (".".join(pieces[:depth]) for depth in range(1, len(pieces) + 1))
        prefix = next((prefix for prefix in prefixes if is_frozen(prefix)), None)
        if prefix is not None:
            of_all_layers = re.sub(r"\.\d+(?=\.|$)", ".*", prefix)
            globs[of_all_layers if is_frozen(of_all_layers) else prefix] = None
    said = [*globs][:_MOST_NAMES]
    if len(globs) > len(said):
        said.append(f"{len(globs) - len(said)} more")
    norms = sum(isinstance(module, FrozenBatchNorm2d) for module in detector.modules()) if part == "backbone" else 0
    if norms:
        said.append(f"{norms} batch norms")
    return f"frozen: {', '.join(said)}" if said else ""
