"""Find and load a model from what the user passes: a model folder, a run, a Hub id, or an original DETR checkpoint.

`SOURCES` is the table of checkpoint kinds that are converted when they are loaded. A plug-in may add one:

    SOURCES["mmdet"] = ModelSource("an MMDetection checkpoint", matches=is_mmdet, fetch=convert_into_cache)
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import PreTrainedConfig
from transformers.utils import logging

from modeling_detr.conversion.checkpoint_files import RELEASED, is_released
from modeling_detr.conversion.original import convert_original, converted_copy
from modeling_detr.errors_detr import DetrError, ModelError, ModelNotFoundError, nearest_name
from modeling_detr.hub_connection import offline_if_unreachable
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.model_folder_detr import model_folder
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.runtimes.exported_detector import ExportedDetector
from modeling_detr.runtimes.manifest import is_exported
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation


@dataclass(frozen=True)
class SourceOption:
    """A keyword argument of `ModelSource.convert` that `detr convert` offers as an option.

    Attributes:
        name: The argument's name.
        type: Its type: `int`, `bool` or `Path`.
        help: A one-line description.
    """

    name: str
    type: type
    help: str


@dataclass(frozen=True)
class ModelSource:
    """A kind of checkpoint that is converted before it is loaded.

    Attributes:
        description: A noun with an article, for messages: "an original DETR checkpoint".
        matches: `matches(source)`: whether what the user passed is of this kind.
        fetch: `fetch(source)`: converts it into a cache, unless it is already there; returns a folder for
            `from_pretrained`.
        convert: `convert(source, folder, **options)`: converts it to a new folder; returns notes for the user, one
            phrase each. None: the model that `fetch` returns is loaded and saved.
        options: The keyword arguments of `convert`.
    """

    description: str
    matches: Callable[[str], bool]
    fetch: Callable[[str], Path]
    convert: Callable[..., list[str]] | None = None
    options: tuple[SourceOption, ...] = ()


def _is_original(source: str) -> bool:
    path = Path(source)
    return (
        path.is_file()
        or path.suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
        or (is_released(source) and not path.exists())
    )


SOURCES: dict[str, ModelSource] = {
    "original": ModelSource(
        "an original DETR checkpoint",
        matches=_is_original,
        fetch=converted_copy,
        convert=convert_original,
        options=(
            SourceOption("labels", Path, "text file with one class name per line"),
            SourceOption("num_labels", int, "number of classes, for a checkpoint without a class head"),
            SourceOption("dilation", bool, "whether the backbone's last stage is dilated (DC5)"),
            SourceOption("encoder_attention_heads", int, "number of heads in the encoder; default: as trained, or 8"),
            SourceOption("decoder_attention_heads", int, "number of heads in the decoder; default: as trained, or 8"),
            SourceOption(
                "ema", bool, "whether to convert the averaged weights (EMA) that the file has beside the last"
            ),
        ),
    ),
}


def find_source(source: str) -> ModelSource | None:
    """The kind of checkpoint in `SOURCES` that matches `source`, or None; the latest additions are tried first."""
    return next((kind for kind in reversed(SOURCES.values()) if kind.matches(source)), None)


def find_model(source: str) -> str:
    """Returns what to pass to `from_pretrained`: a folder or a Hub id.

    Args:
        source: A model folder, the folder of a run (its exported model is used), a Hub id, or a checkpoint of a kind
            in `SOURCES`, which is converted.

    Raises:
        ModelError: `source` is a file that cannot be converted, or an exported model.
        ModelNotFoundError: `source` is a folder without a model, or does not exist and cannot be a Hub id.
        OSError: A released checkpoint cannot be downloaded, or a file cannot be read.
    """
    if is_exported(source):
        problem = "is an exported model, which can only predict: detr predict, detr evaluate"
        raise ModelError(source, problem, "pass the model that it was exported from")
    kind = find_source(source)
    if kind is not None:
        return str(kind.fetch(source))
    return model_folder(source)


@contextlib.contextmanager
def explain_missing_model(source: str) -> Iterator[None]:
    """Replaces Transformers' multi-line error about a missing model with one sentence.

    If the Hub cannot be reached, a model that must be downloaded is an error within seconds.

    Args:
        source: What the user passed.

    Raises:
        ModelNotFoundError: `source` is not a folder, and the Hub did not provide it.
    """
    is_local = Path(source).exists()
    try:
        with contextlib.nullcontext() if is_local else offline_if_unreachable():
            yield
    except OSError as error:
        if Path(source).is_dir() and "preprocessor_config.json" in str(error):
            remedy = "copy it from the model's source, or save a DetrTorchvisionImageProcessor to the folder"
            raise ModelNotFoundError(source, "no preprocessor_config.json", remedy) from error
        if Path(source).is_dir() and "no file named" in str(error):
            remedy = "copy or download the whole folder of the model again"
            raise ModelNotFoundError(
                source, "a config.json but no weights, expected model.safetensors", remedy
            ) from error
        if isinstance(error, DetrError | FileNotFoundError) or is_local:
            raise
        nearest = nearest_name(source, RELEASED) if "/" not in source else None
        if isinstance(error.__cause__, LocalEntryNotFoundError | OfflineModeIsEnabled):
            problem = "no such folder, not in the cache, and the Hub cannot be reached"
            remedy = "check the connection, or download the model elsewhere and pass its folder"
        else:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            problem = f"no such folder, and not available from the Hub ({reason})"
            remedy = ""
        raise ModelNotFoundError(source, problem, f"did you mean '{nearest}'?" if nearest else remedy) from error


def load_model(source: str) -> tuple[Detector, DetrTorchvisionImageProcessor]:
    """Loads a detection or segmentation model, in evaluation mode, and its image processor.

    Args:
        source: See `find_model`.

    Raises:
        ModelError: `source` is a file that cannot be converted.
        OSError: `source` does not exist, has no model or is incomplete.
    """
    with explain_missing_model(source), without_progress_bars():
        folder = find_model(source)
        config, _ = PreTrainedConfig.get_config_dict(folder)
        is_segmenter = DetrForSegmentation.__name__ in str(config.get("architectures"))
        model = (DetrForSegmentation if is_segmenter else DetrForObjectDetection).from_pretrained(folder)
        return model.eval(), DetrTorchvisionImageProcessor.from_pretrained(folder)


def load_detector(source: str, trust_code: bool = False) -> tuple[Detector, DetrTorchvisionImageProcessor]:
    """Loads a model as `load_model` does, or opens an exported one, which can predict but not be trained.

    Args:
        source: See `find_model`; or a folder written by `detr export`.
        trust_code: Open exported models of kinds that can run code, too.

    Raises:
        ModelError: The exported folder is damaged or can run code, or its runtime is not installed; or see
            `load_model`.
        OSError: See `load_model`.
    """
    if not is_exported(source):
        return load_model(source)
    exported = ExportedDetector.from_folder(source, trust_code)
    return cast(Detector, exported), DetrTorchvisionImageProcessor.from_pretrained(source)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the bars that Transformers shows for each file of weights; downloads keep theirs."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
