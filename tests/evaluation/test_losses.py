"""The loss of an evaluation is that of all images as one batch, however they are split."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrTorchvisionImageProcessor
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.structures_detr import (
    AnnotationTable,
    Category,
    DetectionBatch,
    DetectionIndex,
    DetectionLabels,
    ImageRecord,
)


COUNTS = [3, 0, 9, 1, 0, 0, 12, 2, 1, 5]  # objects in each image; some have none, some more than there are queries
SIZE = 64
INDEX = DetectionIndex(
    name="noise",
    images=tuple(ImageRecord(number, "", SIZE, SIZE) for number in range(len(COUNTS))),
    categories=tuple(Category(number, str(number)) for number in range(5)),
    annotations=AnnotationTable(
        image_index=np.array([0]),
        label=np.array([0]),
        boxes_xyxy=np.array([[0.0, 0, 9, 9]]),
        area=np.array([81.0]),
        is_crowd=np.array([False]),
    ),
)


def labels_of(image: int) -> DetectionLabels:
    generator = torch.Generator().manual_seed(image)
    count = COUNTS[image]
    return {
        "class_labels": torch.randint(5, (count,), generator=generator),
        "boxes": 0.3 + 0.2 * torch.rand(count, 4, generator=generator),
        "masks": torch.rand(count, SIZE, SIZE, generator=generator) < 0.4,
        "image_index": torch.tensor(image),
    }


def batch_of(images: range) -> DetectionBatch:
    pixels = [torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(image)) for image in images]
    mask = torch.ones(len(images), SIZE, SIZE, dtype=torch.int64)
    return {"pixel_values": torch.stack(pixels), "pixel_mask": mask, "labels": [labels_of(image) for image in images]}


def batches_of(batch_size: int) -> list[DetectionBatch]:
    starts = range(0, len(COUNTS), batch_size)
    return [batch_of(range(start, min(start + batch_size, len(COUNTS)))) for start in starts]


def model_of(kind: type[Any]) -> Any:
    torch.manual_seed(0)
    config = DetrConfig(
        backbone="resnet10t",
        backbone_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8},
        d_model=128 if kind is DetrForSegmentation else 32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=7,
        num_labels=5,
        bbox_loss_coefficient=4.0,
        mask_loss_coefficient=3.0,
    )
    return kind(config).eval()


def as_one_batch(model: Any) -> dict[str, float]:
    """Return the model's own loss of all images, which the golden numbers hold to the original's."""
    with torch.no_grad():
        (batch,) = batches_of(len(COUNTS))
        output = model(**batch)
    return {"loss": float(output.loss), **{name: float(value) for name, value in output.loss_dict.items()}}


def losses_of(model: Any, batches: list[DetectionBatch], accelerator: Any = None) -> dict[str, float]:
    report = evaluate(model, batches, DetrTorchvisionImageProcessor(), INDEX, accelerator, evaluators=[])
    return dict(report.losses)


@pytest.mark.parametrize("kind", [DetrForObjectDetection, DetrForSegmentation])
def test_the_batch_size_does_not_change_the_losses(kind: type[Any]) -> None:
    model = model_of(kind)
    expected = as_one_batch(model)
    assert {"loss", "loss_ce_0", "loss_giou", "cardinality_error_0", "class_error"} <= expected.keys()
    for batch_size in (1, 3, 7, 10):
        assert losses_of(model, batches_of(batch_size)) == pytest.approx(expected, rel=1e-5), batch_size


@pytest.mark.parametrize("num_processes", [2, 3, 11])
def test_the_number_of_processes_does_not_change_the_losses(
    gather_with: Callable[..., None], num_processes: int
) -> None:
    model = model_of(DetrForObjectDetection)
    accelerator: Any = SimpleNamespace(num_processes=num_processes, device=torch.device("cpu"), is_main_process=True)
    batches = batches_of(1)
    shares = [batches[process::num_processes] for process in range(num_processes)]  # one of eleven has no batch
    gather_with(*[lambda share=share: losses_of(model, share, accelerator) for share in shares[1:]])
    assert losses_of(model, shares[0], accelerator) == pytest.approx(as_one_batch(model), rel=1e-5)


def test_images_without_objects_have_losses_too() -> None:
    model = model_of(DetrForObjectDetection)
    empty = batch_of(range(4, 6))
    losses = losses_of(model, [empty])
    assert losses["loss_bbox"] == 0
    assert losses["class_error"] == 100
    assert losses["loss"] == pytest.approx(model(**empty).loss.item(), rel=1e-5)
