"""The formats that a model can be written in: `TARGETS`, by the name that `detr convert --to` takes.

A plug-in may add one:

    TARGETS["onnx"] = ModelTarget("an ONNX file", write_onnx)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.atomic_output import new_folder
from modeling_detr.conversion.original import export_original
from modeling_detr.conversion.transformers import save_for_transformers
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.segmentation_detr import Detector


@dataclass(frozen=True)
class ModelTarget:
    """A kind of file or folder that a model can be written as.

    Attributes:
        description: A noun with an article, for messages: "an original DETR checkpoint".
        write: `write(model, processor, path)`: writes to a path that must not exist, completely or not at all;
            returns notes for the user, one phrase each.
    """

    description: str
    write: Callable[[Detector, DetrTorchvisionImageProcessor, Path], list[str]]


def _write_ours(model: Detector, processor: DetrTorchvisionImageProcessor, target: Path) -> list[str]:
    with new_folder(target) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return []


def _write_original(model: Detector, _: DetrTorchvisionImageProcessor, target: Path) -> list[str]:
    return export_original(model, target)


def _write_for_transformers(model: Detector, processor: DetrTorchvisionImageProcessor, target: Path) -> list[str]:
    with new_folder(target) as folder:
        save_for_transformers(model, processor, folder)
    return []


TARGETS: dict[str, ModelTarget] = {
    "ours": ModelTarget("a modeling_detr model", _write_ours),
    "original": ModelTarget("an original DETR checkpoint", _write_original),
    "transformers": ModelTarget("a model for Transformers' own DETR", _write_for_transformers),
}
