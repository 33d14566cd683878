"""The README.md that lies beside exported weights: what the model sees, how it was trained, how well it does."""

from pathlib import Path

import yaml

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.checkpointing import TrainingState
from modeling_detr.training.recipe import Recipe


_TEMPLATE = """\
---
{metadata}---

# {name}

A DETR (DEtection TRansformer, [Carion et al. 2020](https://arxiv.org/abs/2005.12872)) with the backbone `{backbone}`
and {num_queries} queries, trained with modeling_detr by the recipe below.

It {does}: {classes}.

## Use

```python
import torch
from PIL import Image
from modeling_detr import {model_class}, DetrTorchvisionImageProcessor

model = {model_class}.from_pretrained("{place}").eval()
processor = DetrTorchvisionImageProcessor.from_pretrained("{place}")

image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image))
{reading}```

Where modeling_detr is not installed, the code beside the weights does the same:

```python
from transformers import AutoImageProcessor, {auto_class}

model = {auto_class}.from_pretrained("{place}", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("{place}", trust_remote_code=True)
```

## Results

Measured on {eval_name} ({num_eval_images:,} images) after epoch {epoch} ({steps:,} optimizer steps).

{metrics}

## Data

Trained on {train_name}: {num_images:,} images, {num_boxes:,} boxes.

## Recipe

```yaml
{recipe}```
"""


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
for segment in result["segments_info"]:  # result["segmentation"] (height, width) says to which one each pixel belongs
    pixels = int((result["segmentation"] == segment["id"]).sum())
    print(f"{model.config.id2label[segment['label_id']]} {segment['score']:.2f}, {pixels} pixels")
"""


def model_card(
    recipe: Recipe, config: DetrConfig, train_index: DetectionIndex, report: EvaluationReport, state: TrainingState
) -> str:
    """The card as Markdown, with the Hub's metadata at its head.

    Args:
        recipe: The resolved recipe.
        config: The model's.
        train_index: What it was trained on.
        report: What was measured.
        state: When that was.
    """
    figures = [("mAP", "AP", report.metrics.ap), ("mAP", "AP50", report.metrics.ap50)]
    if report.mask_metrics is not None:
        figures.append(("mAP", "mask AP", report.mask_metrics.ap))
    if report.panoptic is not None:
        figures += [
            (figure, figure, value)
            for figure, value in (("PQ", report.panoptic.pq), ("SQ", report.panoptic.sq), ("RQ", report.panoptic.rq))
        ]
    segments = len(figures) > 2
    task = "image-segmentation" if segments else "object-detection"
    reading = _READ_OBJECTS if not segments else _READ_INSTANCES if report.panoptic is None else _READ_SEGMENTS
    metadata = {
        "library_name": "modeling_detr",
        "pipeline_tag": task,
        "tags": ["detr", task, "vision"],
        "model-index": [
            {
                "name": recipe.run_dir.name,
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"type": "segmentation" if segments else "detection", "name": report.dataset},
                        "metrics": [
                            {"type": kind, "name": name, "value": round(value, 4)} for kind, name, value in figures
                        ],
                    }
                ],
            }
        ],
    }
    return _TEMPLATE.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=recipe.run_dir.name,
        backbone=config.backbone,
        num_queries=config.num_queries,
        does="segments" if segments else "detects",
        model_class="DetrForSegmentation" if segments else "DetrForObjectDetection",
        auto_class="AutoModelForUniversalSegmentation" if segments else "AutoModelForObjectDetection",
        reading=reading,
        classes=", ".join(train_index.id2label.values()),
        place=recipe.push_to_hub or Path(recipe.run_dir, "model"),
        eval_name=report.dataset,
        num_eval_images=report.num_images,
        epoch=state.epoch + 1,
        steps=state.step,
        metrics=report.metrics_table(),
        train_name=train_index.name,
        num_images=len(train_index),
        num_boxes=len(train_index.annotations),
        recipe=recipe.to_yaml(),
    )
