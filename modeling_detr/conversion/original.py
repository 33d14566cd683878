"""Convert checkpoints of the original DETR (facebookresearch/detr) to model folders, and models back."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor, nn

from modeling_detr.atomic_output import new_file, new_folder, replace_text
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.checkpoint_files import Checkpoint, find_checkpoint, read_checkpoint
from modeling_detr.conversion.coco_labels import LAST_THING, coco_id2label
from modeling_detr.conversion.original_architecture import Architecture, check_parameters, read_architecture
from modeling_detr.conversion.original_names import original_to_ours, ours_to_original
from modeling_detr.errors_detr import ModelError, OutputError, printable
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.input_files import read_text
from modeling_detr.markup import code_span, markdown_text
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation
from modeling_detr.stock_detr import RESNETS


_logger = logging.getLogger(__name__)

RECORD = "conversion.json"  # file in a converted model's folder that names its source


# From the original


def convert_original(
    source: str | Path,
    target: Path,
    *,
    labels: Path | Sequence[str] | None = None,
    num_labels: int | None = None,
    dilation: bool | None = None,
    encoder_attention_heads: int | None = None,
    decoder_attention_heads: int | None = None,
    ema: bool | None = None,
) -> list[str]:
    """Converts an original DETR checkpoint to a folder for `from_pretrained`: weights, config, processor, record.

    Args:
        source: A file with the weights (`.pth`, `.pt`, `.ckpt`, `.bin`, `.safetensors`), or the name of a released
            model, which is downloaded.
        target: The folder to write; it must not exist.
        labels: Class names, or a text file with one name per line; None: COCO's names for 91 or 250 classes,
            otherwise LABEL_0, LABEL_1, ….
        num_labels: Number of classes, for a checkpoint without a class head; a new head is created.
        dilation: Whether the backbone's last stage is dilated (DC5); None: as trained, or not dilated.
        encoder_attention_heads: None: as trained, or 8.
        decoder_attention_heads: None: as trained, or 8.
        ema: Whether to convert the averaged weights that the file has beside the last ones.

    Returns:
        What was read, assumed and created, one phrase each.

    Raises:
        ModelNotFoundError: The file does not exist.
        ModelDownloadError: The released model cannot be downloaded.
        ModelError: The file is not an original DETR checkpoint, is truncated or would run code, or has another number
            of classes.
        OutputExistsError: `target` exists.
        OSError: The file cannot be read, or `target` cannot be written.
    """
    with new_folder(target) as folder:
        names = read_labels(labels) if isinstance(labels, Path) else labels
        checkpoint = read_checkpoint(find_checkpoint(source), averaged=bool(ema))
        heads = {
            "encoder_attention_heads": encoder_attention_heads,
            "decoder_attention_heads": decoder_attention_heads,
        }
        architecture = read_architecture(checkpoint, {"dilation": dilation, **heads})
        num_labels, created = _num_labels(checkpoint.path, architecture, num_labels, names)
        label_keys = _label_keys(num_labels, names, architecture.has_masks)
        try:
            config = DetrConfig(**architecture.config, **label_keys)
        except ValueError as error:
            raise ModelError(checkpoint.path, f"its architecture is not that of a DETR: {error}") from error
        model_class = DetrForSegmentation if architecture.has_masks else DetrForObjectDetection
        with torch.device("meta"):
            model = model_class(config)
        check_parameters(checkpoint, model, without_head=architecture.num_labels is None)
        model.save_pretrained(folder, state_dict=_our_weights(checkpoint, architecture, num_labels))
        DetrTorchvisionImageProcessor().save_pretrained(folder)
        assumed = [f"assumed {sentence}" for sentence in architecture.assumed]
        notes = [f"read {model_class.__name__}, {_summary(config)}", *checkpoint.notes, *created, *assumed]
        record = {"source": checkpoint.path.name, "sha256": checkpoint.sha256, "notes": notes}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        replace_text(folder / "README.md", _model_card(checkpoint, model_class.__name__, notes))
    return notes


def converted_copy(source: str) -> Path:
    """Converts an original DETR checkpoint once into Hugging Face's cache; returns the folder for `from_pretrained`.

    A checkpoint without a class head gets one for a single unnamed class; pass the classes to `from_pretrained` to
    replace it. Assumptions about the architecture are logged.

    Args:
        source: See `convert_original`, which also lists the errors.
    """
    file = find_checkpoint(source)
    checkpoint = read_checkpoint(file)
    folder = Path(HF_HOME, "modeling_detr", f"{file.stem}-{checkpoint.sha256[:12]}")
    if not folder.is_dir():
        has_head = read_architecture(checkpoint).num_labels is not None
        del checkpoint
        try:
            notes = convert_original(file, folder, num_labels=None if has_head else 1)
        except FileExistsError:
            if not folder.is_dir():
                raise
            return folder  # another process has converted it in the meantime
        except OutputError as error:
            remedy = f"set HF_HOME to a folder that can be written, or run `detr convert {source} FOLDER`"
            raise OutputError(error.where, error.problem, remedy) from error
        _logger.warning("%s", printable(f"{file}: {'; '.join(notes)}; cached in {folder}."))
    return folder


def read_labels(path: Path) -> list[str]:
    """Reads class names from a text file, one per line.

    Raises:
        ModelError: A line is empty, or a name is repeated.
        OSError: The file cannot be read.
    """
    names = [line.strip() for line in read_text(path).strip().splitlines()]
    earlier = set[str]()
    for number, name in enumerate(names, start=1):
        if not name:
            raise ModelError(f"{path}, line {number}", "empty line, expected one class name per line")
        if name in earlier and name != "N/A":
            raise ModelError(f"{path}, line {number}", f"duplicate name '{name}', expected a unique name on each line")
        earlier.add(name)
    return names


def _our_weights(checkpoint: Checkpoint, architecture: Architecture, num_labels: int) -> dict[str, Tensor]:
    """The weights under our names, with a new class head if the checkpoint has none."""
    weights = original_to_ours(checkpoint.weights)
    # Tensors that share storage cannot be saved, so they are copied; all others stay on disk.
    sharing = Counter(tensor.untyped_storage().data_ptr() for tensor in weights.values())
    for name, tensor in weights.items():
        if sharing[tensor.untyped_storage().data_ptr()] > 1:
            weights[name] = tensor.clone()
    if architecture.num_labels is None:
        head = nn.Linear(architecture.config["d_model"], num_labels + 1)
        prefix = ("detr." if architecture.has_masks else "") + "class_labels_classifier."
        weights.update({prefix + name: tensor for name, tensor in head.state_dict().items()})
    return weights


def _num_labels(
    path: Path, architecture: Architecture, requested: int | None, names: Sequence[str] | None
) -> tuple[int, list[str]]:
    """The number of classes of the converted model, and a note if a new class head is created."""
    num_labels, created = architecture.num_labels, []
    if num_labels is not None:
        if requested is not None and requested != num_labels:
            raise ModelError(
                path,
                f"its class head has {num_labels} classes, but num_labels is {requested}",
                "convert it without num_labels and change the classes when loading it, which keeps the weights of "
                "classes with the same name: from_pretrained(…, id2label=…, ignore_mismatched_sizes=True) or "
                "'detr train --model'",
            )
    else:
        num_labels = requested or len(names or ())
        if not num_labels:
            raise ModelError(path, "no class head ('class_embed')", "set num_labels or labels to create a new one")
        created = [f"created a new class head for {num_labels} classes, because the checkpoint has none"]
    if names is not None and len(names) != num_labels:
        raise ModelError("labels", f"expected {num_labels} class names, got {len(names)}")
    return num_labels, created


def _label_keys(num_labels: int, names: Sequence[str] | None, has_masks: bool) -> dict[str, Any]:
    """The keys of `DetrConfig` that name the classes and list the stuff classes."""
    id2label = dict(enumerate(names)) if names is not None else coco_id2label(num_labels)
    keys: dict[str, Any] = {"num_labels": num_labels}
    if id2label is not None:
        keys = {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
    if has_masks and names is None and num_labels == len(coco_id2label(250) or {}):
        keys["stuff_labels"] = list(range(LAST_THING + 1, num_labels))
    return keys


def _summary(config: DetrConfig) -> str:
    parts = [
        f"{config.backbone}{' with dilation' if config.dilation else ''}",
        f"{config.encoder_layers} + {config.decoder_layers} layers of width {config.d_model}",
        f"{config.encoder_attention_heads} heads",
        f"{config.num_queries} queries",
        f"{config.num_labels} classes",
        *(["pre-norm"] if config.pre_norm else []),
        f"{config.position_embedding_type} positions",
    ]
    return ", ".join(parts)


def _model_card(checkpoint: Checkpoint, model_class: str, notes: Sequence[str]) -> str:
    lines = "\n".join(f"- {markdown_text(sentence)}" for sentence in notes)
    return (
        "---\nlibrary_name: transformers\ntags: [object-detection, detr]\n---\n\n"
        f"# {markdown_text(checkpoint.path.stem)}\n\n"
        f"Converted from the checkpoint {code_span(checkpoint.path.name)} of the original DETR (SHA-256 "
        f"`{checkpoint.sha256}`):\n\n{lines}\n\n```python\nfrom modeling_detr import {model_class}\n\n"
        f'model = {model_class}.from_pretrained("…")\n```\n'
    )


# To the original


def export_original(model: Detector, target: Path) -> list[str]:
    """Writes a `.pth` file that the original loads with a strict `load_state_dict`.

    Args:
        model: A model of this package.
        target: The file to write; it must not exist.

    Returns:
        The original's command-line options for this network, and what to change in its source.

    Raises:
        ModelError: The original does not support the model; the message lists why.
        OutputExistsError: `target` exists.
        OSError: `target` cannot be written.
    """
    config = model.config
    unsupported = unsupported_by_original(config)
    if unsupported:
        raise ModelError(
            model.name_or_path or type(model).__name__, f"not supported by the original DETR: {', '.join(unsupported)}"
        )
    with new_file(target) as path, path.open("wb") as file:  # given a path, PyTorch hides the cause of a write error
        torch.save({"model": ours_to_original(model.state_dict())}, file)
    words = original_options(config) + ["--masks"] * isinstance(model, DetrForSegmentation)
    return [
        f"build it in the original with {' '.join(words)}",
        f"set num_classes = {config.num_labels} in models/detr.py of the original",
    ]


def original_options(config: DetrConfig) -> list[str]:
    """The words of the original's command line that build the network of a config, without its masks."""
    values = {
        "--backbone": config.backbone.split(".")[0],
        "--hidden_dim": config.d_model,
        "--nheads": config.encoder_attention_heads,
        "--enc_layers": config.encoder_layers,
        "--dec_layers": config.decoder_layers,
        "--dim_feedforward": config.encoder_ffn_dim,
        "--num_queries": config.num_queries,
        "--position_embedding": config.position_embedding_type,
    }
    flags = {"--dilation": config.dilation, "--pre_norm": config.pre_norm}
    words = [word for option, value in values.items() for word in (option, str(value))]
    return words + [flag for flag, is_on in flags.items() if is_on]


def unsupported_by_original(config: DetrConfig) -> list[str]:
    """The features of a model that the original does not support, one phrase each."""
    unsupported = []
    if config.backbone.split(".")[0] not in RESNETS.values():
        unsupported.append(f"backbone '{config.backbone}' (only {', '.join(RESNETS.values())})")
    if config.backbone_kwargs:
        unsupported.append(f"backbone_kwargs ({', '.join(config.backbone_kwargs)})")
    if config.out_indices is not None and list(config.out_indices)[-1] not in (-1, 4):
        unsupported.append(f"out_indices {list(config.out_indices)} (only the last feature map)")
    for key in ("attention_heads", "ffn_dim"):
        encoder, decoder = getattr(config, f"encoder_{key}"), getattr(config, f"decoder_{key}")
        if encoder != decoder:
            unsupported.append(f"encoder_{key} {encoder} with decoder_{key} {decoder} (must be equal)")
    if config.activation_function != "relu":
        unsupported.append(f"activation_function '{config.activation_function}' (only relu)")
    return unsupported + unsupported_positions(config)


def unsupported_positions(config: DetrConfig) -> list[str]:
    """Position-embedding settings that neither the original nor Transformers' own DETR supports, one phrase each."""
    if config.position_embedding_type == "sine" and config.position_temperature != 10_000:
        return [f"position_temperature {config.position_temperature:g} (only 10,000)"]
    if config.position_embedding_type == "learned" and config.learned_position_grid != 50:
        return [f"learned_position_grid {config.learned_position_grid} (only 50)"]
    return []
