"""The folder of a model from what the user passes: the model's own folder, or that of the run that trained it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from .errors_detr import ModelError, ModelNotFoundError


EXPORTED_MODEL = "model"  # the folder in a run that contains the exported model

_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt")  # of the original's checkpoints
_COPY_AGAIN = "download or copy the model once more; it is damaged"
_ADAPTER_CONFIG = "adapter_config.json"  # PEFT's, in the folder of an adapter


def model_folder(source: str | os.PathLike[str], subfolder: str = "", file: str = CONFIG_NAME) -> str:
    """The folder or Hub id to load a model or its image processor from.

    Args:
        source: The folder of a model, the folder of a run (its exported model is used), or a Hub id.
        subfolder: The option of `from_pretrained`. With it, `source` is returned as it is.
        file: What is to be loaded: `config.json` or `preprocessor_config.json`.

    Raises:
        ModelError: `source` is an original DETR checkpoint.
        ModelNotFoundError: `source` is a folder without the file, such as that of a run that has no model yet; or it
            does not exist and cannot be a Hub id.
    """
    folder = Path(source)
    if not folder.exists() and not _may_be_hub_id(str(source)):
        raise ModelNotFoundError(
            source,
            f"no such folder ({folder.resolve()})",
            "pass a model folder, the folder of a run, or a Hub id such as facebook/detr-resnet-50",
        )
    if folder.is_file() and folder.suffix in _CHECKPOINT_SUFFIXES:
        raise ModelError(
            source, "is a file, expected a folder", f"convert it first: detr convert {folder.name} my_model"
        )
    if subfolder or not folder.is_dir():
        return str(source)
    if (folder / EXPORTED_MODEL / file).is_file():
        return str(folder / EXPORTED_MODEL)
    if any((folder / name).is_file() for name in (file, _ADAPTER_CONFIG)):
        return str(source)
    kind = "model" if file == CONFIG_NAME else "image processor"
    remedy = "a run writes its model after its first evaluation" if (folder / "recipe.yaml").is_file() else ""
    raise ModelNotFoundError(source, f"no {kind} in this folder, expected {file} or {EXPORTED_MODEL}/{file}", remedy)


def _may_be_hub_id(source: str) -> bool:
    """Whether a path that does not exist may be a Hub id, 'name' or 'owner/name', rather than mistyped."""
    path = Path(source)
    if path.is_absolute() or source.count("/") > 1:
        return False
    return "/" not in source or not path.parent.expanduser().is_dir()


def check_weight_files(source: str, subfolder: str = "", named_by_config: object = None) -> None:
    """Checks that the weights of a model on this machine are files of its own folder.

    Args:
        source: A folder or a Hub id; Transformers checks the latter.
        subfolder: The option of `from_pretrained`.
        named_by_config: The key `transformers_weights` of its config.

    Raises:
        ModelError: A list of files (`model.safetensors.index.json`) is malformed, or a file leads outside.
    """
    names: list[object] = [] if named_by_config is None else [named_by_config]
    for path in Path(source, subfolder).glob("*.index*.json"):
        weight_map = _json_object(path).get("weight_map")
        if not isinstance(weight_map, Mapping):
            raise ModelError(path, "has no 'weight_map', expected the file of each weight", _COPY_AGAIN)
        names += weight_map.values()
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(source, f"its weights are in {str(name)[:200]!r}, expected a file of its own folder")


def adapted_model(path: str | os.PathLike[str]) -> str:
    """The model that a PEFT adapter adapts, a folder or a Hub id, from its `adapter_config.json`.

    Raises:
        ModelError: The file is malformed, or does not name a model.
    """
    base = _json_object(Path(path)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(path, f"base_model_name_or_path is {base!r}, expected the model that it adapts")
    return base


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError) as error:
        raise ModelError(path, f"not valid JSON ({error})", _COPY_AGAIN) from error
    if not isinstance(values, dict):
        raise ModelError(path, "holds no keys, expected a JSON object", _COPY_AGAIN)
    return values
