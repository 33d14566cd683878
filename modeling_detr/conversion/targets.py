"""What a model can be converted to. `TARGETS` is the table of the kinds, by the name that `detr convert --to` takes.

A plug-in may add one:

    TARGETS["mine"] = ModelTarget("a checkpoint of mine", write_mine)
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
        description: With an article, for messages: "a checkpoint of the original".
        write: Writes model and image processor to a path that must not exist, completely or not at all; returns what
            the user should know, one sentence each.
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
    "ours": ModelTarget("a model of this package", _write_ours),
    "original": ModelTarget("a checkpoint of the original", _write_original),
    "transformers": ModelTarget("a model of Transformers' own DETR", _write_for_transformers),
}
