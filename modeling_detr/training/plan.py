"""The plan: a summary of what a run will do, printed before its first step."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from accelerate.utils import DistributedType
from torch import nn

from modeling_detr.backbone_detr import FrozenBatchNorm2d
from modeling_detr.conversion.transformers import unsupported_by_stock
from modeling_detr.data.findings import counted
from modeling_detr.errors_detr import printable
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.capacity import capacity_notes, mosaic_note
from modeling_detr.training.expectations import too_short_note
from modeling_detr.training.optimization import num_parameters
from modeling_detr.training.setup import PreparedRun, rate_factor


# Part of the model → modules with its parameters, in the order of the forward pass; all others are "others".
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
_MAX_NAMES = 4
_MAX_CLASSES = 100  # more than COCO has


def plan(run: PreparedRun) -> str:
    """Return the plan: data, classes, steps, what trains at which rate, where it runs, and notes."""
    recipe, weights = run.recipe, run.weights
    lines = [
        f"train     {_describe(run.train_index)}",
        f"evaluate  {_describe(run.eval_index)}",
        f"classes   {_class_counts(run.train_index)}",
        f"sizes     {_describe_sizes(run)}",
        *_describe_mosaics(run),
        f"steps     {_describe_steps(run)}",
        *_parts_table(run),
        f"schedule  {_describe_schedule(run)}",
    ]
    if weights.average is not None:
        lines.append(f"average   decay {recipe.ema_decay:g}; the averaged weights are evaluated and exported")
    if recipe.loss_normalization == "original":
        lines.append("losses    each batch's class loss is divided by its own class weights, as in the original")
    lines.append(f"runs on   {_describe_processes(run)}")
    resumed = f", resumed from {run.checkpoint} at step {run.state.step}" if run.checkpoint else ""
    lines.append(f"run       {recipe.run_dir}{resumed}")
    model = run.accelerator.unwrap_model(run.model)
    limits = capacity_notes(run.train_index, model, recipe.batch_size, _largest_image(run))
    absent = _absent_classes(run.train_index)
    notes = [*run.train_index.notes, *run.eval_index.notes, *run.notes, *limits]
    surplus = mosaic_note(run.loaders.train_sampler.dataset, weights.detector.config.num_queries)
    too_short = too_short_note(recipe, run.schedule.total_steps) if run.steps_are_known else None
    notes += [note for note in (surplus, absent, too_short) if note is not None]
    notes += _conversion_notes(run)
    return "\n".join(map(printable, [*lines, *(f"note      {note}" for note in dict.fromkeys(notes))]))


def _conversion_notes(run: PreparedRun) -> list[str]:
    """Notes on what keeps the trained model from loading in Transformers' own DETR, while it can still be changed."""
    unsupported = ", ".join(unsupported_by_stock(run.weights.detector))
    if not unsupported:
        return []
    return [
        f"detr convert --to transformers cannot convert this model ({unsupported}); see 'Small models that convert' "
        "in docs/checkpoints.md"
    ]


def _describe(index: DetectionIndex) -> str:
    num_boxes, num_crowds = len(index.annotations), int(index.annotations.is_crowd.sum())
    crowds = f" ({counted(num_crowds, 'crowd region')})" if num_crowds else ""
    return f"{index.name}: {counted(len(index), 'image')}, {counted(num_boxes, 'box', 'boxes')}{crowds}"


def _class_counts(index: DetectionIndex) -> str:
    counts = np.bincount(index.annotations.label, minlength=len(index.id2label))
    shown = [*index.id2label]
    if len(shown) > _MAX_CLASSES:
        shown = np.argsort(-counts, kind="stable")[:_MAX_CLASSES].tolist()
    listed = ", ".join(f"{index.id2label[label]} {counts[label]:,}" for label in shown)
    more = len(counts) - len(shown)
    return f"{len(counts):,}, most frequent {listed}, and {more:,} more" if more else listed


def _largest_image(run: PreparedRun) -> tuple[int, int]:
    """Return height and width of an image in landscape format that is as large as the processor allows."""
    size = run.processor.size
    if not run.processor.do_resize:
        sizes = run.train_index.image_sizes
        height, width = sizes[sizes.prod(axis=1).argmax()].tolist()
        return height, width
    height = size.shortest_edge or size.height or size.max_height
    return int(height), int(size.longest_edge or size.width or size.max_width or height)


def _absent_classes(index: DetectionIndex) -> str | None:
    """Return a note if classes have no boxes to train on."""
    counts = np.bincount(index.annotations.label, minlength=len(index.id2label))
    absent = [name for label, name in index.id2label.items() if not counts[label]]
    if not absent:
        return None
    more = f" and {len(absent) - _MAX_NAMES} more" if len(absent) > _MAX_NAMES else ""
    return f"classes without a box to train on, which cannot be learnt: {', '.join(absent[:_MAX_NAMES])}{more}"


def _describe_sizes(run: PreparedRun) -> str:
    """Return the size of images in evaluation and prediction, which augmentation varies."""
    size, recipe = run.processor.size, run.recipe
    source = " (from the model)" if recipe.model and "size" not in recipe.processor_config else ""
    if not run.processor.do_resize:
        return "images keep their size"
    edges = [f"{name.replace('_', ' ')} {value}" for name, value in sorted(dict(size).items(), reverse=True) if value]
    return f"{', '.join(edges)} pixels{source}; augmentation '{recipe.transform}'"


def _describe_mosaics(run: PreparedRun) -> list[str]:
    mosaic, num_epochs = run.loaders.train_sampler.dataset.mosaic, run.schedule.epochs
    if mosaic is None:
        return []
    if mosaic.num_epochs == 0:
        return ["mosaics   none: close_mosaic_share leaves no epoch for them"]
    when = "in all epochs" if mosaic.num_epochs == num_epochs else f"until epoch {mosaic.num_epochs} of {num_epochs}"
    return [f"mosaics   {mosaic.probability:.0%} of the samples, {when}"]


def _describe_steps(run: PreparedRun) -> str:
    recipe, schedule = run.recipe, run.schedule
    amount = f"{schedule.total_steps:,}" if run.steps_are_known else f"what fits into {recipe.minutes:g} minutes"
    epochs = f", {counted(schedule.epochs, 'epoch')}" if run.steps_are_known else "; measured before the first step"
    processes = counted(run.accelerator.num_processes, "process", "processes")
    return (
        f"{amount} of {run.loaders.train_sampler.step_size} images ({recipe.batch_size} x "
        f"{recipe.gradient_accumulation_steps} accumulated x {processes}), "
        f"{schedule.steps_per_epoch:,} per epoch{epochs}"
    )


def _describe_schedule(run: PreparedRun) -> str:
    recipe = run.recipe
    parts: list[str] = [recipe.lr_schedule]
    if recipe.lr_schedule == "step":
        every = recipe.lr_drop_steps
        interval = f"{recipe.lr_drop_epochs} epochs" if every is None else f"{every:,} steps"
        parts.append(f"drop to a tenth every {interval}")
    if run.schedule.warmup_steps:
        parts.append(f"{run.schedule.warmup_steps} steps of warm-up")
    if recipe.scale_lr:
        factor = rate_factor(recipe, run.loaders.train_sampler.step_size)
        parts.append(f"rates x {factor:.3g}, scaled by the images per step")
    return ", ".join(parts)


def _describe_processes(run: PreparedRun) -> str:
    accelerator = run.accelerator
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    precision = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    loaders = counted(run.recipe.num_workers, "loader process", "loader processes")
    return (
        f"{accelerator.device.type}, {counted(accelerator.num_processes, 'process', 'processes')}, "
        + ("each with a shard of the model (FSDP), " if is_sharded else "")
        + f"precision {precision}, {loaders} each"
        + (", compiled" if run.recipe.compile else "")
        + ("" if run.recipe.max_memory_gb is None else f", at most {run.recipe.max_memory_gb:g} GiB of memory each")
    )


# What trains


def _parts_table(run: PreparedRun) -> list[str]:
    """Return a line for each part of the model: parameters, how many of them train, the rate; and what is frozen."""
    parameters = {
        name.removeprefix("detector."): parameter
        for name, parameter in run.accelerator.unwrap_model(run.model).named_parameters()
    }
    names_of = _names_by_part(run.accelerator.unwrap_model(run.model))
    rates = {id(one): group["initial_lr"] for group in run.raw_optimizer.param_groups for one in group["params"]}

    rows, frozen = [("part", "parameters", "train", "rate")], []
    for part, names in {**names_of, "all": list(parameters)}.items():
        trained = [parameters[name] for name in names if parameters[name].requires_grad]
        counts = f"{num_parameters(parameters[name] for name in names):,}", f"{num_parameters(trained):,}"
        part_rates = ", ".join(f"{rate:g}" for rate in sorted({rates[id(one)] for one in trained}))
        if part == "all":
            rows.append((part, *counts, ""))
        elif names:
            rows.append((part, *counts, part_rates or "-"))
            frozen += _frozen(part, names, parameters, run.weights.detector)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"{part:<{widths[0]}}  {count:>{widths[1]}}  {train:>{widths[2]}}  {rate:>{widths[3]}}".rstrip()
        for part, count, train, rate in rows
    ]
    table = [f"{'parts' if index == 0 else '':<10}{line}" for index, line in enumerate(lines)]
    return [*table, f"frozen    {', '.join(dict.fromkeys(frozen))}"] if frozen else table


def _names_by_part(model: nn.Module) -> dict[str, list[str]]:
    """Return the parameter names of each part of a training model, without their prefix "detector."."""
    names_of: dict[str, list[str]] = {part: [] for part in (*_PARTS, "aids", "others")}
    for name, _ in model.named_parameters():
        parts = (part for part, places in _PARTS.items() if any(f".{place}." in f".{name}." for place in places))
        part = next(parts, "others") if name.startswith("detector.") else "aids"
        names_of[part].append(name.removeprefix("detector."))
    return names_of


def _frozen(part: str, names: Sequence[str], parameters: Mapping[str, nn.Parameter], detector: nn.Module) -> list[str]:
    """Return which modules of a part are frozen, in as few names as possible."""
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}

    def is_frozen(glob: str) -> bool:
        return frozen.issuperset(name for name in parameters if fnmatchcase(f"{name}.", f"{glob}.*"))

    globs: dict[str, None] = {}  # in the notation of the key `freeze`, where layers.* is all layers
    for name in names:
        pieces = name.split(".") if name in frozen else []
        prefixes = (".".join(pieces[:depth]) for depth in range(1, len(pieces) + 1))
        prefix = next((prefix for prefix in prefixes if is_frozen(prefix)), None)
        if prefix is not None:
            all_layers = re.sub(r"\.\d+(?=\.|$)", ".*", prefix)
            globs[all_layers if is_frozen(all_layers) else prefix] = None
    listed = [*globs][:_MAX_NAMES]
    if len(globs) > len(listed):
        listed.append(f"{len(globs) - len(listed)} more")
    num_norms = sum(isinstance(module, FrozenBatchNorm2d) for module in detector.modules())
    if part == "backbone" and num_norms:
        listed.append(f"{num_norms} batch norms")
    return listed
