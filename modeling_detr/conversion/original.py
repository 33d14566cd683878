"""Checkpoints of the original (facebookresearch/detr) ↔ ours.

The names of parameters differ in three ways: parts are called otherwise, the original's attention keeps its three
input projections in one matrix, and its backbone carries torchvision's names, which are timm's. What the network is,
is read off the weights; what they cannot tell comes from the options that the checkpoint was trained with, from the
name of a released file, or from the caller.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn

from modeling_detr.atomic_output import new_file, new_folder
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.checkpoint_files import (
    Checkpoint,
    find_checkpoint,
    read_checkpoint,
    released_name_of,
)
from modeling_detr.conversion.coco_labels import LAST_THING, coco_id2label
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation


_logger = logging.getLogger(__name__)

RECORD = "conversion.json"  # where a converted model came from

# The original's beginnings of names and ours; # is the number of a layer. A panoptic checkpoint has all but the mask
# head under `detr.`, here and there.
_NAMES = (
    ("backbone.0.body.", "model.backbone.conv_encoder.model."),
    ("backbone.1.row_embed.", "model.backbone.position_embedding.row_embeddings."),
    ("backbone.1.col_embed.", "model.backbone.position_embedding.column_embeddings."),
    ("input_proj.", "model.input_projection."),
    ("query_embed.", "model.query_position_embeddings."),
    ("class_embed.", "class_labels_classifier."),
    ("bbox_embed.", "bbox_predictor."),
    ("transformer.encoder.norm.", "model.encoder.layernorm."),
    ("transformer.encoder.layers.#.norm1.", "model.encoder.layers.#.self_attn_layer_norm."),
    ("transformer.encoder.layers.#.norm2.", "model.encoder.layers.#.final_layer_norm."),
    ("transformer.encoder.layers.#.linear1.", "model.encoder.layers.#.fc1."),
    ("transformer.encoder.layers.#.linear2.", "model.encoder.layers.#.fc2."),
    ("transformer.encoder.layers.#.self_attn.", "model.encoder.layers.#.self_attn."),
    ("transformer.decoder.norm.", "model.decoder.layernorm."),
    ("transformer.decoder.layers.#.norm1.", "model.decoder.layers.#.self_attn_layer_norm."),
    ("transformer.decoder.layers.#.norm2.", "model.decoder.layers.#.encoder_attn_layer_norm."),
    ("transformer.decoder.layers.#.norm3.", "model.decoder.layers.#.final_layer_norm."),
    ("transformer.decoder.layers.#.linear1.", "model.decoder.layers.#.fc1."),
    ("transformer.decoder.layers.#.linear2.", "model.decoder.layers.#.fc2."),
    ("transformer.decoder.layers.#.self_attn.", "model.decoder.layers.#.self_attn."),
    ("transformer.decoder.layers.#.multihead_attn.", "model.decoder.layers.#.encoder_attn."),
)

# Blocks of each stage, and whether they are bottlenecks → the backbone
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

# Options of the original's command line that decide the function or its loss, and what they are called here
_OPTIONS = {
    "dilation": ("dilation",),
    "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
    "dropout": ("dropout", "attention_dropout", "activation_dropout"),
    "aux_loss": ("auxiliary_loss",),
    "set_cost_class": ("class_cost",),
    "set_cost_bbox": ("bbox_cost",),
    "set_cost_giou": ("giou_cost",),
    "bbox_loss_coef": ("bbox_loss_coefficient",),
    "giou_loss_coef": ("giou_loss_coefficient",),
    "mask_loss_coef": ("mask_loss_coefficient",),
    "dice_loss_coef": ("dice_loss_coefficient",),
    "eos_coef": ("eos_coefficient",),
}

_EXAMPLES: dict[str, bool | int] = {"dilation": False, "aux_loss": True, "nheads": 8}  # the others are real numbers


# Names


def _renamed(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """`name` with its beginning as the pair of it says; as it is if there is none."""
    inner = name.removeprefix("detr.")
    prefix = name[: len(name) - len(inner)]
    for before, after in pairs:
        if match := re.match(re.escape(before).replace(r"\#", r"(\d+)"), inner):
            number = match[1] if match.groups() else ""
            return prefix + after.replace("#", number) + inner[match.end() :]
    return name


def original_name_to_ours(name: str) -> tuple[str, ...]:
    """Our name or names for one parameter of the original: three, in the order query, key, value, for `in_proj_…`."""
    ours = _renamed(name, _NAMES)
    if match := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", ours):
        return tuple(f"{match[1]}.{projection}_proj.{match[2]}" for projection in "qkv")
    return (ours,)


def our_name_to_original(name: str) -> str:
    """The original's name for one parameter of ours; the three projections of an attention have one together."""
    theirs = _renamed(name, [(ours, theirs) for theirs, ours in _NAMES])
    return re.sub(r"\.[qkv]_proj\.(weight|bias)$", r".in_proj_\1", theirs)


def original_to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's state dict under our names, `in_proj_…` cut in three. No tensor is copied."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        names = original_name_to_ours(name)
        converted.update(zip(names, tensor.chunk(len(names)), strict=True))
    return converted


def ours_to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the original's names, without the counters that its frozen batch norms do not have."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        if not name.endswith(_COUNTER):
            parts.setdefault(our_name_to_original(name), {})[name] = tensor
    converted = {}
    for theirs, tensors in parts.items():
        ordered = [tensors[ours] for ours in original_name_to_ours(theirs)]
        converted[theirs] = ordered[0] if len(ordered) == 1 else torch.cat(ordered)
    return converted


_COUNTER = ".num_batches_tracked"


# The network behind the weights


@dataclass
class Architecture:
    """What a checkpoint of the original is.

    Attributes:
        config: Keys of `DetrConfig` but those of the labels.
        num_labels: C; None if the class head was deleted from the checkpoint.
        has_masks: Whether it is panoptic.
        assumed: What neither weights nor options told, one sentence each.
    """

    config: dict[str, Any]
    num_labels: int | None
    has_masks: bool
    assumed: list[str] = field(default_factory=list)


def read_architecture(checkpoint: Checkpoint, given: Mapping[str, Any] | None = None) -> Architecture:
    """Reads the network off the weights.

    Args:
        checkpoint: The original's.
        given: Keys of `DetrConfig` that the caller knows: `dilation`, `encoder_attention_heads`,
            `decoder_attention_heads`. They win over everything else.

    Raises:
        ValueError: Something is missing without which it is no DETR; or what is given contradicts the weights.
    """
    weights = checkpoint.weights
    has_masks = any(name.startswith(("mask_head.", "bbox_attention.")) for name in weights)
    prefix = "detr." if has_masks else ""

    def shape(name: str) -> tuple[int, ...]:
        """Of a matrix, as all that are asked for should be."""
        if prefix + name not in weights:
            raise ValueError(
                f"{checkpoint.path}: no checkpoint of the original DETR: it has no '{prefix}{name}'. Its parameters "
                f"begin with {_listed(weights)}."
            )
        found = tuple(weights[prefix + name].shape)
        if len(found) != 2:
            raise ValueError(f"{checkpoint.path}: '{prefix}{name}' has shape {found}; wanted a matrix.")
        return found

    def count(pattern: str) -> int:
        numbers = {int(match[1]) for name in weights if (match := re.match(re.escape(prefix) + pattern, name))}
        return max(numbers, default=-1) + 1

    num_queries, width = shape("query_embed.weight")
    encoder_layers, decoder_layers = (
        count(rf"transformer\.{part}\.layers\.(\d+)\.") for part in ("encoder", "decoder")
    )
    stages = tuple(count(rf"backbone\.0\.body\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottleneck = f"{prefix}backbone.0.body.layer1.0.conv3.weight" in weights
    if (stages, bottleneck) not in _RESNETS:
        raise ValueError(
            f"{checkpoint.path}: the backbone is none of torchvision's ResNets: stages of {stages} blocks, which "
            f"{'are' if bottleneck else 'are not'} bottlenecks; known are {', '.join(_RESNETS.values())}."
        )
    config: dict[str, Any] = {
        "backbone": _RESNETS[stages, bottleneck],
        "num_queries": num_queries,
        "d_model": width,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "decoder_ffn_dim": shape("transformer.decoder.layers.0.linear1.weight")[0],
        "pre_norm": f"{prefix}transformer.encoder.norm.weight" in weights,
    }
    config["encoder_ffn_dim"] = (
        shape("transformer.encoder.layers.0.linear1.weight")[0] if encoder_layers else config["decoder_ffn_dim"]
    )
    if f"{prefix}backbone.1.row_embed.weight" in weights:
        config["position_embedding_type"] = "learned"
        config["learned_position_grid"] = shape("backbone.1.row_embed.weight")[0]
    for option, keys in _OPTIONS.items():
        if option in checkpoint.options:
            config.update(dict.fromkeys(keys, _number(checkpoint, option)))
    assumed = _complete(config, checkpoint, has_masks, given or {})
    has_head = any(name.startswith(f"{prefix}class_embed.") for name in weights)
    num_labels = shape("class_embed.weight")[0] - 1 if has_head else None
    return Architecture(config, num_labels, has_masks, assumed)


def _number(checkpoint: Checkpoint, option: str) -> bool | int | float:
    """An option that the checkpoint was trained with, of the type that the original's command line gives it."""
    value, example = checkpoint.options[option], _EXAMPLES.get(option, 0.1)
    wanted = (int, float) if isinstance(example, float) else (type(example),)
    if type(value) not in wanted:
        raise ValueError(
            f"{checkpoint.path}: among its options '{option}' is {value!r}; wanted a number of type "
            f"{type(example).__name__}. It is damaged, or of a changed DETR."
        )
    return cast(bool | int | float, value)


def _complete(config: dict[str, Any], checkpoint: Checkpoint, has_masks: bool, given: Mapping[str, Any]) -> list[str]:
    """Adds to `config` what the weights do not tell; returns a sentence for each guess."""
    assumed = []
    released = released_name_of(checkpoint.path)
    if "dilation" not in config:
        config["dilation"] = released is not None and "-dc5" in released
        if released is None:
            assumed.append("no dilation in the backbone (DC5), which weights do not tell; --dilation true if it had")
        else:
            yes_no = "" if config["dilation"] else "no "
            assumed.append(f"{yes_no}dilation in the backbone, by the name of the released {released}")
    if "encoder_attention_heads" not in config:
        heads = 8
        if has_masks and "mask_head.lay1.weight" in checkpoint.weights:  # its input: the width and one map a head
            heads = len(checkpoint.weights["mask_head.lay1.weight"]) - config["d_model"]
        elif released is None:
            assumed.append(
                "8 attention heads, which weights do not tell; --encoder_attention_heads N "
                "--decoder_attention_heads N if it had others"
            )
        config["encoder_attention_heads"] = config["decoder_attention_heads"] = heads
    config.update({key: value for key, value in given.items() if value is not None})
    return [
        sentence for sentence in assumed if not any(f"--{key}" in sentence for key in given if given[key] is not None)
    ]


def _check_names(checkpoint: Checkpoint, model: nn.Module, without_head: bool) -> None:
    """Every parameter of the model is in the checkpoint, in its shape and as real numbers, and nothing else is.

    Raises:
        ValueError: It is not so; the message names the first of those at fault under the original's name.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(_COUNTER):
            continue
        theirs = our_name_to_original(name)
        rows, *rest = tensor.shape
        wanted[theirs] = (wanted[theirs][0] + rows if theirs in wanted else rows, *rest)
    if without_head:
        wanted = {name: shape for name, shape in wanted.items() if ".class_embed." not in f".{name}"}
    there = checkpoint.weights
    faults = [
        (sorted(wanted.keys() - there.keys()), "lacks"),
        (sorted(there.keys() - wanted.keys()), "has besides what a DETR of this architecture has"),
    ]
    for names, verb in faults:
        if names:
            raise ValueError(
                f"{checkpoint.path}: the checkpoint {verb} {_listed(names)}. It is damaged, or of a changed DETR, "
                f"which cannot be converted."
            )
    for name, shape in wanted.items():
        if tuple(there[name].shape) != shape:
            raise ValueError(
                f"{checkpoint.path}: '{name}' has shape {tuple(there[name].shape)}; wanted {shape}, by the shapes of "
                f"the others."
            )
        if not there[name].is_floating_point() or there[name].layout != torch.strided:
            raise ValueError(
                f"{checkpoint.path}: '{name}' is of {there[name].dtype}, {there[name].layout}; wanted real numbers in "
                f"a dense tensor."
            )


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    shown = ", ".join(f"'{name}'" for name in list(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# Converting


def convert_original(
    source: str | Path,
    target: Path,
    *,
    num_labels: int | None = None,
    names: Sequence[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes a checkpoint of the original as a folder for `from_pretrained`: weights, config, processor, record.

    Args:
        source: A `.pth` file, or the name of a released model, which is downloaded.
        target: The folder to write; it must not be there.
        num_labels: Number of classes, for a checkpoint whose class head was deleted: it gets a new one.
        names: Name of each class; None: COCO's for 91 and 250 classes, else none.
        given: See `read_architecture`.

    Returns:
        What was read, assumed and made, one sentence each.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `target` is there.
        OSError: The file cannot be read or downloaded, or `target` not be written.
        ValueError: It is no checkpoint of the original, or not whole, or wants to run code; or classes do not fit.
    """
    with new_folder(target) as folder:
        checkpoint = read_checkpoint(find_checkpoint(source))
        architecture = read_architecture(checkpoint, given)
        num_labels, said = _num_labels(checkpoint.path, architecture, num_labels, names)
        config = DetrConfig(**architecture.config, **_labels(num_labels, names, architecture.has_masks))
        kind = DetrForSegmentation if architecture.has_masks else DetrForObjectDetection
        with torch.device("meta"):
            model = kind(config)
        _check_names(checkpoint, model, without_head=architecture.num_labels is None)

        # Parts of one storage cannot be written as such: those are copied, everything else stays where it lies.
        weights = original_to_ours(checkpoint.weights)
        parts = Counter(tensor.untyped_storage().data_ptr() for tensor in weights.values())
        for name, tensor in weights.items():
            if parts[tensor.untyped_storage().data_ptr()] > 1:
                weights[name] = tensor.clone()
        if architecture.num_labels is None:
            head = nn.Linear(config.d_model, num_labels + 1)
            prefix = ("detr." if architecture.has_masks else "") + "class_labels_classifier."
            weights.update({prefix + name: tensor for name, tensor in head.state_dict().items()})
        model.save_pretrained(folder, state_dict=weights)
        DetrTorchvisionImageProcessor().save_pretrained(folder)
        said = [
            f"read {kind.__name__}, {_summary(config)}",
            *said,
            *(f"assumed {one}" for one in architecture.assumed),
        ]
        record = {"source": checkpoint.path.name, "sha256": checkpoint.sha256, "notes": said}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(checkpoint, kind.__name__, said), encoding="utf-8")
    return said


def converted_copy(source: str) -> Path:
    """A checkpoint of the original as a folder for `from_pretrained`, converted once and kept in Hugging Face's cache.

    One whose class head was deleted gets one for a single class without a name: whoever loads it says which classes
    there are. What is assumed of the network is logged.

    Args:
        source: See `convert_original`, like what is raised.
    """
    file = find_checkpoint(source)
    checkpoint = read_checkpoint(file)
    folder = Path(HF_HOME, "modeling_detr", f"{file.stem}-{checkpoint.sha256[:12]}")
    if not folder.is_dir():
        has_head = read_architecture(checkpoint).num_labels is not None
        del checkpoint
        try:
            said = convert_original(file, folder, num_labels=None if has_head else 1)
        except FileExistsError:
            if not folder.is_dir():
                raise
            return folder  # another process was faster
        _logger.warning("%s: %s; kept in %s.", file, "; ".join(said), folder)
    return folder


def _num_labels(
    path: Path, architecture: Architecture, given: int | None, names: Sequence[str] | None
) -> tuple[int, list[str]]:
    """How many classes the converted model has, and what is to be said of it."""
    there = architecture.num_labels
    if there is None:
        wanted = given or (len(names) if names else None)
        if wanted is None:
            raise ValueError(
                f"{path}: its class head ('class_embed') was deleted; say for how many classes it gets a new one: "
                f"--num_labels N, or --labels NAMES.txt."
            )
    else:
        wanted = there
        if given is not None and given != there:
            raise ValueError(
                f"{path}: its class head has {there} classes, --num_labels says {given}. Convert it as it is, and "
                f"change the classes when it is loaded: from_pretrained(…, id2label=…, ignore_mismatched_sizes=True), "
                f"or 'detr train --model'; that keeps the rows that still have a meaning."
            )
    if names is not None and len(names) != wanted:
        raise ValueError(f"--labels has {len(names)} names for {wanted} classes; wanted one a line for each class.")
    return wanted, [f"made a new class head for {wanted} classes, since the file has none"] if there is None else []


def _labels(num_labels: int, names: Sequence[str] | None, has_masks: bool) -> dict[str, Any]:
    """The keys of a config that say what classes are called, and which of them are stuff."""
    id2label = dict(enumerate(names)) if names is not None else coco_id2label(num_labels)
    labels: dict[str, Any] = {"num_labels": num_labels}
    if id2label is not None:
        labels = {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
    if has_masks and names is None and num_labels == len(coco_id2label(250) or {}):
        labels["stuff_labels"] = list(range(LAST_THING + 1, num_labels))
    return labels


def _summary(config: DetrConfig) -> str:
    parts = [
        f"{config.backbone}{' with dilation' if config.dilation else ''}",
        f"{config.encoder_layers} + {config.decoder_layers} layers of width {config.d_model}",
        f"{config.encoder_attention_heads} heads",
        f"{config.num_queries} queries",
        f"{config.num_labels} classes",
    ]
    return ", ".join(
        [*parts, *(["norm first"] if config.pre_norm else []), f"{config.position_embedding_type} positions"]
    )


def _card(checkpoint: Checkpoint, kind: str, said: Sequence[str]) -> str:
    lines = "\n".join(f"- {sentence}" for sentence in said)
    return (
        f"---\nlibrary_name: transformers\ntags: [object-detection, detr]\n---\n\n# {checkpoint.path.stem}\n\n"
        f"Converted from the checkpoint `{checkpoint.path.name}` of the original DETR (SHA-256 "
        f"`{checkpoint.sha256}`):\n\n{lines}\n\n```python\nfrom modeling_detr import {kind}\n\n"
        f'model = {kind}.from_pretrained("…")\n```\n'
    )


def export_original(model: Detector, target: Path) -> list[str]:
    """Writes a `.pth` that the original's `load_state_dict` takes strictly.

    Args:
        model: One of ours.
        target: The file to write; it must not be there.

    Returns:
        With which options the original builds this network, and what to change in its source.

    Raises:
        FileExistsError: `target` is there.
        ValueError: The original cannot build such a network; the message says what it lacks.
    """
    config = model.config
    lacking = _what_the_original_lacks(config)
    if lacking:
        raise ValueError(f"The original cannot compute this model: it has no {'; no '.join(lacking)}.")
    has_masks = isinstance(model, DetrForSegmentation)
    with new_file(target) as path, path.open("wb") as file:  # given a path, PyTorch hides why it cannot write
        torch.save({"model": ours_to_original(model.state_dict())}, file)
    options = [
        f"--backbone {config.backbone}",
        f"--hidden_dim {config.d_model}",
        f"--nheads {config.encoder_attention_heads}",
        f"--enc_layers {config.encoder_layers}",
        f"--dec_layers {config.decoder_layers}",
        f"--dim_feedforward {config.encoder_ffn_dim}",
        f"--num_queries {config.num_queries}",
        *(["--dilation"] if config.dilation else []),
        *(["--pre_norm"] if config.pre_norm else []),
        *(["--position_embedding learned"] if config.position_embedding_type == "learned" else []),
        *(["--masks"] if has_masks else []),
    ]
    return [
        f"the original builds it with {' '.join(options)}",
        f"and with num_classes = {config.num_labels} in its models/detr.py",
    ]


def _what_the_original_lacks(config: DetrConfig) -> list[str]:
    lacking = []
    if config.backbone.split(".")[0] not in _RESNETS.values():
        lacking.append(f"backbone '{config.backbone}' (it has {', '.join(_RESNETS.values())})")
    if config.backbone_kwargs:
        lacking.append(f"backbone_kwargs ({', '.join(config.backbone_kwargs)})")
    if config.out_indices is not None and list(config.out_indices)[-1] not in (-1, 4):
        lacking.append(f"choice of the backbone's maps (out_indices {list(config.out_indices)})")
    for what in ("attention_heads", "ffn_dim"):
        encoder, decoder = getattr(config, f"encoder_{what}"), getattr(config, f"decoder_{what}")
        if encoder != decoder:
            lacking.append(f"{what} that differ between encoder ({encoder}) and decoder ({decoder})")
    if config.activation_function != "relu":
        lacking.append(f"activation '{config.activation_function}'")
    if config.position_embedding_type == "sine" and config.position_temperature != 10_000:
        lacking.append(f"position_temperature, which is {config.position_temperature:g} and not 10,000")
    if config.position_embedding_type == "learned" and config.learned_position_grid != 50:
        lacking.append(f"learned_position_grid, which is {config.learned_position_grid} and not 50")
    return lacking
