"""An optimizer step: forward, loss, backward, clipping, AdamW."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from modeling_detr.benchmarks.speed.agreement import check_agreement
from modeling_detr.benchmarks.speed.contenders import build_contenders, coco_config
from modeling_detr.benchmarks.speed.generated_images import random_batch
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, STOCK, TIME, Measurement
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.training import Trainings, build_trainings
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.precision import emulates_bfloat16
from modeling_detr.structures_detr import DetectionBatch


class StepCase(NamedTuple):
    """A batch of images of one size."""

    images: int
    height: int
    width: int


CASES = (StepCase(2, 480, 480),)
GPU_CASES = (StepCase(2, 800, 1066), StepCase(16, 640, 800))
# Without and with autocast: of loss and gradients in float64, and of the loss in bfloat16
TOLERANCE = {False: 1e-5, True: 2e-2}
NOTES = (
    "Compared are the loss of all decoder layers and gradients, without dropout and in float64; measured with "
    "dropout .1, which stock applies in other places.",
    "Stock's own auxiliary_loss computes other predictions, since it passes normed states on to the next decoder "
    "layer, and its backbone trains the stem and the first stage. Here, its modules compute the original's loss, and "
    "these layers are frozen as in the original.",
    "The original has no mixed precision, so it is not in the rows of bfloat16.",
)


def measure(
    settings: SpeedSettings, config: DetrConfig | None = None, cases: Sequence[StepCase] | None = None
) -> Iterator[Measurement]:
    """Measures steps of a model in float32 and, if the device computes in bfloat16, under autocast."""
    config = config or coco_config()
    cases = cases or (CASES if settings.device.type == "cpu" else GPU_CASES)
    precisions = [False, True]
    if reason := emulates_bfloat16(settings.device.type):
        settings.skip(f"bfloat16: {reason}")
        precisions.remove(True)
    for case in cases:
        trainings = build_trainings(build_contenders(config, settings), settings)
        name = f"{config.backbone}, batch {case.images}, {case.width}x{case.height}"
        batch = random_batch([(case.height, case.width)] * case.images, 7, config.num_classes)
        # compared before any step, after which the weights differ
        agreed = {
            autocast: check_agreement(name, trainings.outputs(batch, autocast), TOLERANCE[autocast])
            for autocast in precisions
        }
        for autocast, differences in agreed.items():
            work = f"{name}, {'bfloat16' if autocast else 'float32'}"
            yield Measurement(work, TIME, _time(trainings, batch, autocast, settings), differences)


def _time(
    trainings: Trainings, batch: DetectionBatch, autocast: bool, settings: SpeedSettings
) -> dict[str, list[float]]:
    def our_step() -> None:
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=autocast):
            trainings.ours.step(batch)

    works = {OURS: our_step, STOCK: trainings.stock.prepared_step(batch, autocast)}
    if trainings.original is not None and not autocast:
        works[ORIGINAL] = trainings.original.prepared_step(batch)
    return settings.time(works)
