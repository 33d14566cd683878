"""What a recipe names, built: the data of a run, its processor, its model, its loaders."""

import contextlib
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, NamedTuple

import timm
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.utils.data import DataLoader

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.sources import explain_missing_model, find_model
from modeling_detr.data import (
    DetectionDataset,
    TrainBatchSampler,
    eval_transform,
    open_dataset,
    train_transform,
)
from modeling_detr.data.labels import adopt_model_labels, with_raw_labels
from modeling_detr.data.loaders import build_eval_loader, build_loader
from modeling_detr.data.splits import training_splits
from modeling_detr.data.transforms import SCALES, SampleTransform
from modeling_detr.errors_detr import RecipeError, did_you_mean
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.pretrained_detr import HeadChange
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.stock_detr import translate_stock_config
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.aids import initialize_new_model
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.signals import leave_stopping_to_parent


_MASK_PARTS = ("bbox_attention.", "mask_head.")


def open_splits(recipe: Recipe) -> tuple[DetectionIndex, DetectionIndex]:
    """The images to train on and those to evaluate on.

    Raises:
        ValueError: There are no such splits, one is empty, or nothing is annotated to train on.
    """
    dataset = open_dataset(
        recipe.data_source,
        format=recipe.data_format,
        task=recipe.task,
        images=recipe.images,
        drop_difficult=recipe.drop_difficult,
        box_format=recipe.box_format,
    )
    dataset = number_labels(recipe, dataset)
    return training_splits(dataset, recipe.train_split, recipe.eval_split, recipe.eval_fraction, recipe.seed)


def number_labels(recipe: Recipe, dataset: DetectionIndex) -> DetectionIndex:
    """The dataset with the labels that the model shall have: those that the model to start from has where it knows
    every class by name, the dataset's own ids if they are wanted, else 0…C-1.

    Raises:
        ValueError: The ids cannot be labels.
        OSError: The model to start from cannot be found or read.
    """
    if recipe.label_ids == "raw":
        return with_raw_labels(dataset)
    if recipe.model is None or recipe.label_mapping or recipe.head_init == "fresh":
        return dataset
    with explain_missing_model(recipe.model), _said_in_plan():
        known = DetrConfig.from_pretrained(find_model(recipe.model)).id2label or {}
    if {category.name for category in dataset.categories} <= {*known.values()}:
        return adopt_model_labels(dataset, {int(label): name for label, name in known.items()})
    return dataset


def build_model(recipe: Recipe, id2label: Mapping[int, str], stuff_labels: Sequence[int] = ()) -> Detector:
    """A new model for the recipe's task, or the one that it starts from, with a class head for `id2label`.

    For a task with masks a detector will do to start from: its mask head begins anew.

    Args:
        recipe: The run.
        id2label: Names of the classes.
        stuff_labels: Those of them that are stuff.

    Raises:
        ValueError: `model_config` does not fit; or a new backbone would stay random because it is frozen; or, for a
            new model, `processor_config` or the transform does not fit.
        OSError: The model to start from cannot be found or read.
    """
    labels: dict[str, Any] = {
        "id2label": dict(id2label),
        "label2id": {name: label for label, name in id2label.items()},
    }
    if recipe.task != "detection":
        labels["stuff_labels"] = list(stuff_labels)
    for key in ("num_labels", "id2label", "label2id", "stuff_labels"):
        if key in recipe.model_config:
            raise ValueError(f"model_config: {key} comes from the dataset; leave it out.")
    torch.manual_seed(recipe.seed)
    if recipe.model is not None:
        model: Detector = _from_pretrained(recipe, recipe.model, {**labels, **recipe.model_config})
    else:
        config = _new_config(recipe, labels)
        # A key of these that is misspelt is told before anything is downloaded.
        _augmentation(recipe, *_edges(build_processor(recipe, config)))
        model = _model_class(recipe)(config)
        detector = model.detr if isinstance(model, DetrForSegmentation) else model
        if recipe.backbone_weights is not None:
            detector.model.load_backbone_weights(recipe.backbone_weights)
        else:
            _refuse_frozen_random_backbone(detector)
        initialize_new_model(detector, recipe)
    if recipe.freeze_detector and isinstance(model, DetrForSegmentation):
        model.detr.requires_grad_(False)
    _freeze(model, recipe.freeze)
    if recipe.backbone_learning_rate == 0:
        for name, parameter in model.named_parameters():
            if "backbone" in name:
                parameter.requires_grad_(False)
    if recipe.gradient_checkpointing:
        # Newer versions of Transformers have renamed it, and warn of the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def compile_parts(model: Detector) -> None:
    """Has torch.compile replace, from its first step on, what takes nearly all of a step's time.

    Matching and loss stay as they are: their shapes change with the objects of a batch. Sizes that change are compiled
    once for all of them, so that images of many sizes do not compile for ever.
    """
    parts = (model.detr if isinstance(model, DetrForSegmentation) else model).model
    for part in (parts.backbone, parts.encoder, parts.decoder):
        part.compile()
    # each part is compiled with and without padding, with and without denoising queries, in training and evaluation
    torch._dynamo.config.recompile_limit = 64


def _model_class(recipe: Recipe) -> type[Detector]:
    return DetrForObjectDetection if recipe.task == "detection" else DetrForSegmentation


def _from_pretrained(recipe: Recipe, source: str, changes: Mapping[str, Any]) -> Detector:
    """The model at `source` with a class head for the dataset, and everything else as it was."""
    model: Detector
    with explain_missing_model(source), _said_in_plan():
        model, info = _model_class(recipe).from_pretrained(
            find_model(source),
            **changes,
            ignore_mismatched_sizes=True,
            head_init=recipe.head_init,
            label_mapping=recipe.label_mapping,
            output_loading_info=True,
        )
    mismatched = {name for name, *_ in info["mismatched_keys"]} | {*info["missing_keys"]}
    mask_parts = {name for name, _ in model.named_parameters() if name.startswith(_MASK_PARTS)}
    if mask_parts <= info["missing_keys"]:  # a detector, which has no masks yet
        mismatched -= mask_parts
    lost = sorted(name for name in mismatched if "class_labels_classifier." not in name)
    if lost:
        raise ValueError(
            f"{source}: with this model_config {len(lost)} of its weights have another shape or are not there, first "
            f"'{lost[0]}'; they would start anew. Leave out the keys that change shapes, or begin a new model."
        )
    unused = sorted(info["unexpected_keys"])
    if unused and all(name.startswith(_MASK_PARTS) for name in unused):
        raise ValueError(
            f"{source} segments, and with the task 'detection' its mask head would be lost; say --task panoptic or "
            f"--task instance, or save it as a DetrForObjectDetection first."
        )
    if unused:
        raise ValueError(
            f"{source}: with this model_config {len(unused)} of its weights have no place, first '{unused[0]}'; they "
            f"would be lost. Leave out the keys that take parts away, or begin a new model."
        )
    return model


def head_note(recipe: Recipe, id2label: Mapping[int, str]) -> str | None:
    """What becomes of the class head of the model that the recipe starts from; None for a new model."""
    if recipe.model is None:
        return None
    with explain_missing_model(recipe.model), _said_in_plan():
        there = DetrConfig.from_pretrained(find_model(recipe.model))
    num_queries = recipe.model_config.get("num_queries", there.num_queries)
    wanted = DetrConfig(id2label=dict(id2label), num_queries=num_queries)
    change = HeadChange.between(there, wanted, recipe.label_mapping)
    if recipe.head_init == "fresh" and len(change.old_names) != len(change.new_names):
        return (
            f"the class head starts anew: {recipe.model} has {len(change.old_names)} classes, the dataset "
            f"{len(change.new_names)}; everything else is kept"
        )
    if recipe.head_init == "fresh" and change.classes_change:
        return (
            f"the class head of {recipe.model} is kept, but its {len(change.old_names)} classes have other names than "
            f"those of the dataset or another order: it has to learn them anew"
        )
    return f"{recipe.model}: " + (
        "; ".join(change.sentences()) or "the class head is kept, its classes are the dataset's"
    )


@contextlib.contextmanager
def _said_in_plan() -> Iterator[None]:
    """Keeps what loading logs from the screen: the plan says it."""
    loggers = [logging.getLogger(name) for name in (HeadChange.__module__, translate_stock_config.__module__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def build_processor(recipe: Recipe, config: DetrConfig) -> DetrTorchvisionImageProcessor:
    """The processor of the model that the recipe starts from, or a new one with the mean and std of the backbone.

    Raises:
        ValueError: `processor_config` has an unknown key or a value that makes no sense.
        OSError: The processor of the model to start from cannot be found or read.
    """
    if recipe.model is not None:
        with explain_missing_model(recipe.model):
            return DetrTorchvisionImageProcessor.from_pretrained(find_model(recipe.model), **recipe.processor_config)
    pretrained = timm.get_pretrained_cfg(_timm_name(recipe, config), allow_unregistered=True)
    normalisation = {"image_mean": list(pretrained.mean), "image_std": list(pretrained.std)} if pretrained else {}
    try:
        return DetrTorchvisionImageProcessor(**{**normalisation, **recipe.processor_config})
    except (TypeError, ValueError) as error:
        raise ValueError(f"processor_config: {error}") from error


def _timm_name(recipe: Recipe, config: DetrConfig) -> str:
    """The backbone's name, with the tag of its weights if those are named by one: tags differ in mean and std."""
    source = recipe.backbone_weights or ""
    return source if source.split(".")[0] == config.backbone.split(".")[0] else config.backbone


def _new_config(recipe: Recipe, labels: Mapping[str, Any]) -> DetrConfig:
    try:
        return DetrConfig(**recipe.model_config, **labels)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"model_config: {' '.join(str(error).split())}") from error


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    r"""Stops the parameters that a pattern names: a glob of the whole name or its first parts, as `model.backbone` or
    `*.self_attn`; or, where that names none, a regular expression of some of its parts, as `layers\.[01]`.

    Raises:
        ValueError: A pattern names no parameter.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        named = [name for name in parameters if any(fnmatchcase(name, glob) for glob in (pattern, f"{pattern}.*"))]
        if not named:
            with contextlib.suppress(re.error):
                expression = re.compile(rf"(?:^|\.)(?:{pattern})(?:\.|$)")
                named = [name for name in parameters if expression.search(name)]
        if not named:
            raise RecipeError(
                "freeze",
                f"no parameter matches '{pattern}', expected a glob or a regular expression of parameter names",
                did_you_mean(pattern, _parts(parameters)),
            )
        for name in named:
            parameters[name].requires_grad_(False)


def _parts(names: Iterable[str]) -> list[str]:
    """The first two and three parts of dotted names, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for depth in (2, 3) for name in names))


def _refuse_frozen_random_backbone(model: DetrForObjectDetection) -> None:
    """Random weights under frozen batch norm, or frozen random weights, learn nothing, without a sign of it."""
    config = model.config
    frozen = [key for key in ("freeze_batch_norm", "freeze_backbone_stem") if getattr(config, key)]
    if frozen:
        raise ValueError(
            f"model_config: the backbone '{config.backbone}' begins with random weights, and {' and '.join(frozen)} "
            f"would keep them so. Give backbone_weights (a timm name such as {config.backbone}, or a file), or set "
            f"{' and '.join(f'model_config.{key}: false' for key in frozen)}."
        )


class Loaders(NamedTuple):
    """What a run reads `DetectionBatch`es from; pixels are still uint8 and are normalised on the device."""

    train: DataLoader[Any]
    train_sampler: TrainBatchSampler
    eval: DataLoader[Any]


def build_loaders(
    recipe: Recipe,
    train_index: DetectionIndex,
    eval_index: DetectionIndex,
    processor: DetrTorchvisionImageProcessor,
    accelerator: Accelerator,
) -> Loaders:
    """Builds the loaders of this process.

    Raises:
        ValueError: The transform does not exist or its options do not fit; or the processor's size has no edges.
    """
    shortest_edge, longest_edge = _edges(processor)
    masks = recipe.task != "detection"
    train_set = DetectionDataset(
        train_index,
        _augmentation(recipe, shortest_edge, longest_edge),
        recipe.seed,
        masks=masks,
        no_flip_classes=recipe.no_flip_classes,
    )
    train_sampler = TrainBatchSampler(
        train_set,
        recipe.batch_size,
        accumulation=recipe.gradient_accumulation_steps,
        batching=recipe.batching,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    return Loaders(
        train=build_loader(
            train_set,
            train_sampler,
            processor,
            num_workers=recipe.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=prepare_worker,
        ),
        train_sampler=train_sampler,
        eval=build_eval_loader(
            eval_index,
            eval_transform(shortest_edge, longest_edge),
            processor,
            accelerator,
            batch_size=recipe.eval_batch_size or recipe.batch_size,
            masks=masks,
            max_pixels=recipe.max_pixels_per_batch,
            num_workers=recipe.num_workers,
            worker_init_fn=prepare_worker,
        ),
    )


def prepare_worker(_number: int) -> None:
    """A loader process computes with one thread, and stays until the process that it loads for has ended the run."""
    torch.set_num_threads(1)
    leave_stopping_to_parent()
    sys.excepthook = _say_nothing_of_broken_connections


def _say_nothing_of_broken_connections(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A run that stops while it takes a batch breaks the connection over which its loader hands that out."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _edges(processor: DetrTorchvisionImageProcessor) -> tuple[int, int | None]:
    size = dict(processor.size)
    if not size.get("shortest_edge"):
        raise ValueError(
            f"processor_config: the size {size} has no shortest_edge; training wants a size such as "
            f"{{shortest_edge: 800, longest_edge: 1333}}."
        )
    return int(size["shortest_edge"]), size.get("longest_edge")


def _augmentation(recipe: Recipe, shortest_edge: int, longest_edge: int | None) -> SampleTransform:
    """The training transform; the sizes of the built-in policies follow the processor's unless they are given."""
    options = dict(recipe.transform_options)
    if recipe.transform in ("original", "light", "none"):
        proportions = SCALES if recipe.transform == "original" else (max(SCALES),)
        options.setdefault("scales", [round(scale * shortest_edge / max(SCALES)) for scale in proportions])
        options.setdefault("longest_edge", longest_edge)
    return train_transform(recipe.transform, **options)
