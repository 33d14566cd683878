"""Export of a run's best model: `model/` with weights, processor and model card, and the push to the Hub."""

import shlex
from pathlib import Path
from typing import Any, Protocol

import yaml
from huggingface_hub import HfApi, get_token

from modeling_detr.atomic_output import replace_text, replaced_folder
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.sources import without_progress_bars
from modeling_detr.endpoint_files import OF_MODEL, write_endpoint_files
from modeling_detr.errors_detr import printable
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.markup import code_block, code_span, markdown_text, python_string
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.checkpointing import TrainingState
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import MODEL


class Savable(Protocol):
    """An object that saves itself into a folder: a model or an image processor."""

    def save_pretrained(self, save_directory: Path, /) -> Any:
        """Write the files that `from_pretrained` reads."""


def export_model(run_dir: Path, detector: Savable, processor: Savable, model_card: str) -> Path:
    """Write `model/`: weights and config, processor, model card, and the files that serve it.

    An existing `model/` is replaced as a whole.

    Returns:
        The folder, for `from_pretrained`.

    Raises:
        OutputError: It cannot be written; the existing folder is unchanged.
    """
    folder = run_dir / MODEL
    with replaced_folder(folder) as hidden:
        with without_progress_bars():
            detector.save_pretrained(hidden)
        processor.save_pretrained(hidden)
        replace_text(hidden / "README.md", model_card)
        write_endpoint_files(hidden, OF_MODEL)
    return folder


# The Hub


class PushError(OSError):
    """A push failed; the message says how to push the model later."""


def push_notes(recipe: Recipe) -> list[str]:
    """Notes for the plan about the push at the end of the run."""
    if recipe.push_to_hub is None:
        return []
    notes = [f"the best model is pushed to {recipe.push_to_hub} at the end"]
    if get_token() is None:
        notes.append("not logged in to the Hub: run `hf auth login` before the run ends, or set HF_TOKEN")
    return notes


def push_model(folder: Path, repository: str, private: bool, message: str) -> str:
    """Upload the folder of a model in one commit. The repository is created if it does not exist.

    Args:
        folder: The folder written by `export_model`.
        repository: `owner/name`.
        private: Whether a new repository is private.
        message: The commit message.

    Returns:
        The URL of the repository.

    Raises:
        PushError: The push failed, for example because of a missing token, missing permissions or the network.
    """
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # of many kinds, from client and network; none of them loses the run
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PushError(
            f"{repository}: the push failed ({reason}). Nothing is lost: the model is in {folder}. Push it later: "
            f"hf upload {repository} {shlex.quote(str(folder))}"
        ) from error
    return str(url)


# The model card


_TEMPLATE = """\
---
{metadata}---

# {title}

A DETR (DEtection TRansformer, [Carion et al. 2020](https://arxiv.org/abs/2005.12872)) with backbone {backbone} and
{num_queries} queries, trained with modeling_detr and the recipe below.

It {does}: {classes}.

## Use

```python
import torch
from PIL import Image
from modeling_detr import {model_class}, DetrTorchvisionImageProcessor

model = {model_class}.from_pretrained({place}).eval()
processor = DetrTorchvisionImageProcessor.from_pretrained({place})

image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image))
{reading}```

Without modeling_detr installed, the code stored with the weights does the same (the classes of `transformers`
with the same names cannot load it):

```python
from transformers import AutoImageProcessor, {auto_class}

model = {auto_class}.from_pretrained({place}, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained({place}, trust_remote_code=True)
```

## Results

Measured on {eval_name} ({num_eval_images:,} images) after epoch {epoch} ({steps:,} optimizer steps).

{metrics}

## Data

Trained on {train_name}: {num_images:,} images, {num_boxes:,} boxes.

## Recipe

{recipe}"""


_READ_OBJECTS = """\
result = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(image.height, image.width)])[0]
for score, label, box in zip(result["scores"], result["labels"], result["boxes"]):
    print(f"{model.config.id2label[label.item()]} {score:.2f} at {box.tolist()}")  # x0, y0, x1, y1 in pixels
"""
_READ_INSTANCES = """\
result = processor.post_process_instance_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
for score, label, mask in zip(result["scores"], result["labels"], result["masks"]):  # masks (height, width) bool
    print(f"{model.config.id2label[label.item()]} {score:.2f}, {int(mask.sum())} pixels")
"""
_READ_SEGMENTS = """\
result = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(image.height, image.width)])[0]
for segment in result["segments_info"]:  # result["segmentation"] (height, width) holds the id of each pixel
    pixels = int((result["segmentation"] == segment["id"]).sum())
    print(f"{model.config.id2label[segment['label_id']]} {segment['score']:.2f}, {pixels} pixels")
"""


def model_card(
    recipe: Recipe, config: DetrConfig, train_index: DetectionIndex, report: EvaluationReport, state: TrainingState
) -> str:
    """Return the model card as Markdown, with the Hub's metadata at the top.

    Args:
        recipe: The resolved recipe.
        config: The model's config.
        train_index: The training images.
        report: The evaluation of the model.
        state: The state of the run at that evaluation.
    """
    metrics = [
        {"type": metric.hub_type or metric.name, "name": metric.name, "value": round(metric.value, 4)}
        for result in report.results.values()
        for metric in result.model_card_metrics()
    ]
    segments = recipe.task != "detection"
    task = "image-segmentation" if segments else "object-detection"
    reading = {"detection": _READ_OBJECTS, "instance": _READ_INSTANCES, "panoptic": _READ_SEGMENTS}[recipe.task]
    metadata = {
        "library_name": "modeling_detr",
        "pipeline_tag": task,
        "tags": ["detr", task, "vision"],
        "model-index": [
            {
                "name": printable(recipe.run_dir.name),
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {
                            "type": "segmentation" if segments else "detection",
                            "name": printable(report.dataset),
                        },
                        "metrics": metrics,
                    }
                ],
            }
        ],
    }
    return _TEMPLATE.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        title=markdown_text(recipe.run_dir.name),
        backbone=code_span(config.backbone),
        num_queries=config.num_queries,
        does="segments" if segments else "detects",
        model_class="DetrForSegmentation" if segments else "DetrForObjectDetection",
        auto_class="AutoModelForUniversalSegmentation" if segments else "AutoModelForObjectDetection",
        reading=reading,
        classes=", ".join(map(markdown_text, train_index.id2label.values())),
        place=python_string(recipe.push_to_hub or Path(recipe.run_dir, "model")),
        eval_name=markdown_text(report.dataset),
        num_eval_images=report.num_images,
        epoch=state.epoch + 1,
        steps=state.step,
        metrics=report.metrics_table(),
        train_name=markdown_text(train_index.name),
        num_images=len(train_index),
        num_boxes=len(train_index.annotations),
        recipe=code_block(recipe.to_yaml(), "yaml"),
    )
