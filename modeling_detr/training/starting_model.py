"""The model that a run starts from, new or pretrained: its class head, processor and frozen parameters."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from modeling_detr.backbone_detr import is_weights_file
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.sources import explain_missing_model, find_model, without_progress_bars
from modeling_detr.errors_detr import RecipeError, did_you_mean
from modeling_detr.hub_connection import offline_if_unreachable
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.pretrained_detr import HeadChange
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.stock_detr import translate_stock_config
from modeling_detr.training.aids import initialize_new_model
from modeling_detr.training.recipe import Recipe


_MASK_PARTS = ("bbox_attention.", "mask_head.")
_TYPE_NAMES = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_LABEL_KEYS = ("num_labels", "id2label", "label2id", "stuff_labels")


def build_model(
    recipe: Recipe, id2label: Mapping[int, str], stuff_labels: Sequence[int] = (), *, resumes: bool = False
) -> Detector:
    """Build a new model for the recipe's task, or load the one to start from, with a class head for `id2label`.

    A task with masks may start from a detector; its mask head is then new.

    Args:
        recipe: The recipe.
        id2label: Names of the classes.
        stuff_labels: Labels that are stuff.
        resumes: Whether a checkpoint replaces all weights afterwards; `backbone_weights` are then not loaded.

    Raises:
        ValueError: `model_config` or `freeze` does not fit, or the backbone of a new model would stay random.
        OSError: The model to start from cannot be found or read.
    """
    labels = _label_settings(recipe, id2label, stuff_labels)
    torch.manual_seed(recipe.seed)
    if recipe.model is not None:
        model = _load_model(recipe, recipe.model, {**labels, **recipe.model_config})
    else:
        model = _model_class(recipe)(new_config(recipe, id2label, stuff_labels))
        detector = without_mask_head(model)
        if recipe.backbone_weights is None:
            _refuse_frozen_random_backbone(detector)
        elif not resumes:  # the checkpoint has these weights, and their file may be gone
            _load_backbone_weights(detector, recipe.backbone_weights)
        initialize_new_model(detector, recipe)
    if not recipe.freeze_detector:
        model.config.trained_without_mask = False  # from now on it is trained with masks
    _freeze_parts(model, recipe)
    if recipe.gradient_checkpointing:
        # newer versions of Transformers have renamed it, and warn about the old name
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def _load_backbone_weights(detector: DetrForObjectDetection, source: str) -> None:
    with offline_if_unreachable() if not is_weights_file(source) else contextlib.nullcontext():
        detector.model.load_backbone_weights(source)


def new_config(recipe: Recipe, id2label: Mapping[int, str], stuff_labels: Sequence[int] = ()) -> DetrConfig:
    """Return the config of a new model.

    Raises:
        RecipeError: `model_config` does not fit.
    """
    try:
        return DetrConfig(**recipe.model_config, **_label_settings(recipe, id2label, stuff_labels))
    except RecipeError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise _model_config_error(recipe.model_config, error) from error


def _model_config_error(model_config: Mapping[str, Any], error: Exception) -> RecipeError:
    """The error of a config, under the key of the recipe that causes it."""
    known = DetrConfig.own_keys()
    for key in model_config:
        if key not in known and f"'{key}'" in str(error):
            return RecipeError(f"model_config.{key}", "unknown key", did_you_mean(key, known))
    reason = str(error.__cause__ or error) if isinstance(error, StrictDataclassError) else str(error)
    if match := re.match(r"Field '(\w+)' expected (\w+), got", reason):
        key, expected = match[1], _TYPE_NAMES.get(match[2], match[2])
        return RecipeError(f"model_config.{key}", f"got {model_config.get(key)!r}, expected {expected}")
    return RecipeError("model_config", " ".join(reason.split()).rstrip("."))


def build_processor(recipe: Recipe, config: DetrConfig) -> DetrTorchvisionImageProcessor:
    """Load the processor of the model to start from, or build one with the mean and std of the backbone.

    Raises:
        RecipeError: `processor_config` has an unknown key or an invalid value.
        OSError: The processor of the model to start from cannot be found or read.
    """
    if recipe.model is not None:
        with explain_missing_model(recipe.model):
            return DetrTorchvisionImageProcessor.from_pretrained(find_model(recipe.model), **recipe.processor_config)
    pretrained = timm.get_pretrained_cfg(_timm_name(recipe, config), allow_unregistered=True)
    normalization = {"image_mean": list(pretrained.mean), "image_std": list(pretrained.std)} if pretrained else {}
    try:
        return DetrTorchvisionImageProcessor(**{**normalization, **recipe.processor_config})
    except (TypeError, ValueError) as error:
        raise RecipeError("processor_config", str(error).rstrip(".")) from error


def without_mask_head(model: Detector) -> DetrForObjectDetection:
    """Return the detector inside a segmentation model, or the detector itself."""
    return model.detr if isinstance(model, DetrForSegmentation) else model


def compile_parts(model: Detector) -> None:
    """Compile backbone, encoder and decoder, which take nearly all the time of a step, at their first use.

    Matching and loss are not compiled, since their shapes change with the objects of a batch. One
    compilation covers all image sizes.
    """
    parts = without_mask_head(model).model
    for part in (parts.backbone, parts.encoder, parts.decoder):
        part.compile()
    # each part is compiled with and without padding, with and without denoising queries, in training and evaluation
    torch._dynamo.config.recompile_limit = 64


def head_note(recipe: Recipe, id2label: Mapping[int, str]) -> str | None:
    """Describe what happens to the class head of the model to start from; None for a new model."""
    if recipe.model is None:
        return None
    old_config = load_config(recipe.model)
    num_queries = recipe.model_config.get("num_queries", old_config.num_queries)
    new = DetrConfig(id2label=dict(id2label), num_queries=num_queries)
    change = HeadChange.between(old_config, new, recipe.label_mapping)
    if recipe.head_init == "fresh" and len(change.old_names) != len(change.new_names):
        return (
            f"new class head: {recipe.model} has {len(change.old_names)} classes and the dataset "
            f"{len(change.new_names)}; all other weights are kept"
        )
    if recipe.head_init == "fresh" and change.classes_change:
        return (
            f"the class head of {recipe.model} is kept, but the names or the order of its {len(change.old_names)} "
            f"classes differ from the dataset's, so it has to learn them"
        )
    changes = "; ".join(change.sentences())
    return f"{recipe.model}: {changes or 'the class head is kept; it has all classes of the dataset'}"


def load_config(source: str) -> DetrConfig:
    """Load the config of a model that a recipe names.

    Raises:
        OSError: The model cannot be found or read.
    """
    with explain_missing_model(source), _quiet_loading():
        return DetrConfig.from_pretrained(find_model(source))


def _label_settings(recipe: Recipe, id2label: Mapping[int, str], stuff_labels: Sequence[int]) -> dict[str, Any]:
    for key in _LABEL_KEYS:
        if key in recipe.model_config:
            raise RecipeError("model_config", f"{key} comes from the dataset", f"remove {key}")
    settings: dict[str, Any] = {
        "id2label": dict(id2label),
        "label2id": {name: label for label, name in id2label.items()},
    }
    if recipe.task != "detection":
        settings["stuff_labels"] = list(stuff_labels)
    return settings


def _model_class(recipe: Recipe) -> type[Detector]:
    return DetrForObjectDetection if recipe.task == "detection" else DetrForSegmentation


def _load_model(recipe: Recipe, source: str, settings: Mapping[str, Any]) -> Detector:
    """Load a model with a class head for the dataset and all other weights as they are."""
    model: Detector
    with explain_missing_model(source), _quiet_loading(), without_progress_bars():
        model, info = _model_class(recipe).from_pretrained(
            find_model(source),
            **settings,
            ignore_mismatched_sizes=True,
            head_init=recipe.head_init,
            label_mapping=recipe.label_mapping,
            output_loading_info=True,
        )
    _check_loaded_weights(source, model, info)
    return model


def _check_loaded_weights(source: str, model: Detector, info: Mapping[str, Any]) -> None:
    """Check that loading a model lost no weights but those of its class head.

    Args:
        source: The model to start from.
        model: The loaded model.
        info: The loading info of `from_pretrained`.

    Raises:
        ValueError: Weights were lost.
    """
    new = {name for name, *_ in info["mismatched_keys"]} | {*info["missing_keys"]}
    mask_parts = {name for name, _ in model.named_parameters() if name.startswith(_MASK_PARTS)}
    if mask_parts <= info["missing_keys"]:  # a detector, which has no mask head yet
        new -= mask_parts
    lost = sorted(name for name in new if "class_labels_classifier." not in name)
    if lost:
        raise ValueError(
            f"{source}: {len(lost)} weights are missing or have another shape with this model_config, first "
            f"'{lost[0]}', and would be random; remove the keys that change shapes, or train a new model."
        )
    unused = sorted(info["unexpected_keys"])
    if unused and all(name.startswith(_MASK_PARTS) for name in unused):
        raise ValueError(
            f"{source} is a segmentation model; task 'detection' would discard its mask head. Use --task panoptic or "
            f"--task instance, or save it as a DetrForObjectDetection first."
        )
    if unused:
        raise ValueError(
            f"{source}: {len(unused)} weights have no place in this model_config, first '{unused[0]}', and would be "
            f"lost; remove the keys that leave parts out, or train a new model."
        )


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hide log messages about loading; the plan contains the information."""
    loggers = [logging.getLogger(name) for name in (HeadChange.__module__, translate_stock_config.__module__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _timm_name(recipe: Recipe, config: DetrConfig) -> str:
    """The backbone's name, with the tag of its weights if `backbone_weights` has one: mean and std depend on it."""
    source = recipe.backbone_weights or ""
    if is_weights_file(source):
        return config.backbone
    return source if source.split(".")[0] == config.backbone.split(".")[0] else config.backbone


# Frozen parameters


def _freeze_parts(model: Detector, recipe: Recipe) -> None:
    """Freeze the parts that the recipe selects.

    Raises:
        RecipeError: A pattern of `freeze` matches no parameter.
    """
    if recipe.freeze_detector and isinstance(model, DetrForSegmentation):
        model.detr.requires_grad_(False)
    _freeze(model, recipe.freeze)
    if recipe.backbone_learning_rate == 0:
        for name, parameter in model.named_parameters():
            if "backbone" in name:
                parameter.requires_grad_(False)


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    r"""Freeze the parameters that match a pattern.

    A pattern is a glob of the whole name or its first parts, such as `model.backbone` or `*.self_attn`; if it matches
    nothing, a regular expression of some parts of the name, such as `layers\.[01]`.

    Raises:
        RecipeError: A pattern matches no parameter.
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
    """Return the first two and three parts of dotted names, each once."""
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for depth in (2, 3) for name in names))


def _refuse_frozen_random_backbone(model: DetrForObjectDetection) -> None:
    """Refuse a random backbone that is frozen or has frozen batch norms: it would silently learn nothing."""
    config = model.config
    frozen = [key for key in ("freeze_batch_norm", "freeze_backbone_stem") if getattr(config, key)]
    if frozen:
        raise RecipeError(
            "model",
            f"not set, and {' and '.join(frozen)} would freeze a random backbone",
            "set model to a trained DETR (such as facebook/detr-resnet-50, or the folder of a run), or "
            f"backbone_weights to ImageNet weights ({config.backbone}, or a file), or "
            f"{' and '.join(f'model_config.{key}' for key in frozen)} to false",
        )
