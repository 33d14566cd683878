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

It detects: {classes}.

## Use

```python
import torch
from PIL import Image
from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor

model = DetrForObjectDetection.from_pretrained("{place}").eval()
processor = DetrTorchvisionImageProcessor.from_pretrained("{place}")

image = Image.open("image.jpg")
with torch.no_grad():
    outputs = model(**processor(image))
result = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(image.height, image.width)])[0]
for score, label, box in zip(result["scores"], result["labels"], result["boxes"]):
    print(f"{{model.config.id2label[label.item()]}} {{score:.2f}} at {{box.tolist()}}")  # x0, y0, x1, y1 in pixels
```

Where modeling_detr is not installed, the code beside the weights does the same:

```python
from transformers import AutoImageProcessor, AutoModelForObjectDetection

model = AutoModelForObjectDetection.from_pretrained("{place}", trust_remote_code=True).eval()
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
    metadata = {
        "library_name": "modeling_detr",
        "pipeline_tag": "object-detection",
        "tags": ["detr", "object-detection", "vision"],
        "model-index": [
            {
                "name": recipe.run_dir.name,
                "results": [
                    {
                        "task": {"type": "object-detection"},
                        "dataset": {"type": "detection", "name": report.dataset},
                        "metrics": [
                            {"type": "mAP", "name": name, "value": round(value, 4)}
                            for name, value in (("AP", report.metrics.ap), ("AP50", report.metrics.ap50))
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
