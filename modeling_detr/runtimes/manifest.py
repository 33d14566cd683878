"""`export.json`: what a folder written by `detr export` contains, and how its model is run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from modeling_detr.atomic_output import replace_text
from modeling_detr.errors_detr import ModelError
from modeling_detr.input_files import read_json


MANIFEST = "export.json"
FORMAT_VERSION = 1

_EXPORT_AGAIN = "export the model again"


@dataclass(frozen=True)
class Manifest:
    """The content of `export.json`.

    Attributes:
        runtime: Key of `RUNTIMES`.
        file: Name of the model's file in the folder.
        task: `detection`, `instance` or `panoptic`.
        precision: Such as `float32` or `int8`.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        labels: Name of each class.
        stuff_labels: Classes whose segments are merged.
        fixed_size: (height, width) of every batch; None: any.
        runtime_options: Options that the runtime is started with.
        preprocessing: How an image becomes `pixel_values`, for the script in the folder.
        versions: Package → version that the folder was written with.
        checks: How the outputs and the AP compare with the model's.
        format_version: Version of this format.
    """

    runtime: str
    file: str
    task: str
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    stuff_labels: tuple[int, ...] = ()
    fixed_size: tuple[int, int] | None = None
    runtime_options: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Writes `export.json`."""
        replace_text(folder / MANIFEST, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads the `export.json` of a folder.

        Raises:
            ModelError: The file is malformed, or was written by a newer version of this package.
            FileReadError: It cannot be read.
        """
        path = folder / MANIFEST
        values = read_json(path)
        if not isinstance(values, dict):
            raise ModelError(path, "holds no keys, expected a JSON object", _EXPORT_AGAIN)
        if values.get("format_version") != FORMAT_VERSION:
            problem = f"has format_version {values.get('format_version')!r}, expected {FORMAT_VERSION}"
            raise ModelError(path, problem, f"{_EXPORT_AGAIN} with this version, or update modeling_detr")
        missing = [name for name in ("runtime", "file", "task", "inputs", "outputs", "labels") if name not in values]
        if missing:
            raise ModelError(path, f"has no '{missing[0]}'", _EXPORT_AGAIN)
        for name, expected in _TYPES.items():
            if not _fits(values.get(name, expected[1]), expected):
                raise ModelError(path, f"{name} is {str(values[name])[:80]!r}", _EXPORT_AGAIN)
        if problem := _problem_of(values):
            raise ModelError(path, problem, _EXPORT_AGAIN)
        known = {one.name for one in fields(cls)}
        kept = {name: _as_tuple(value) for name, value in values.items() if name in known}
        return cls(**{"precision": "float32", **kept})


_MAX_SIDE = 16384  # of a fixed size, in pixels
_INPUTS = {"pixel_values", "pixel_mask", "score_threshold", "image_sizes"}
_OUTPUTS = ({"logits", "pred_boxes"}, {"scores", "labels", "boxes"})
# Key → (type of the value or of the entries of a list, an example)
_TYPES: dict[str, tuple[type, Any]] = {
    "runtime": (str, ""),
    "file": (str, ""),
    "task": (str, ""),
    "precision": (str, ""),
    "inputs": (str, []),
    "outputs": (str, []),
    "labels": (str, []),
    "stuff_labels": (int, []),
    "runtime_options": (str, {}),
    "preprocessing": (object, {}),
}


def _problem_of(values: Mapping[str, Any]) -> str:
    """What is wrong with values of the right types; empty if nothing is."""
    size, labels = values.get("fixed_size"), values["labels"]
    if size is not None and not (_fits(size, (int, [])) and len(size) == 2 and all(0 < s <= _MAX_SIDE for s in size)):
        return f"fixed_size is {str(size)[:80]!r}, expected a height and a width of at most {_MAX_SIDE} pixels"
    if Path(values["file"]).name != values["file"]:
        return f"file is '{values['file'][:80]}', expected a file of the folder"
    if not set(values["inputs"]) <= _INPUTS or "pixel_values" not in values["inputs"]:
        return f"inputs are {', '.join(values['inputs'])[:80]!r}, expected pixel_values and some of {sorted(_INPUTS)}"
    if not any(outputs <= set(values["outputs"]) for outputs in _OUTPUTS):
        return f"outputs are {', '.join(values['outputs'])[:80]!r}, expected logits and pred_boxes among them"
    if ("pred_masks" in values["outputs"]) != ("mask_queries" in values["outputs"]):
        return "outputs have only one of pred_masks and mask_queries"
    if any(not 0 <= label < len(labels) for label in values.get("stuff_labels", ())):
        return f"stuff_labels are {str(values['stuff_labels'])[:80]}, expected numbers of the {len(labels)} labels"
    return ""


def _fits(value: Any, expected: tuple[type, Any]) -> bool:
    kind, example = expected
    if isinstance(example, list):
        return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
    if isinstance(example, dict):
        return isinstance(value, dict) and all(isinstance(entry, kind) for entry in value.values())
    return isinstance(value, kind)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def is_exported(source: str | Path) -> bool:
    """Whether a path is a folder written by `detr export`."""
    return (Path(source) / MANIFEST).is_file()
