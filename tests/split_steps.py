"""The gradient of one optimizer step of a tiny float64 model, however its images are split into batches or processes.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 tests/split_steps.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.aids import TrainingModel, build_training_model
from modeling_detr.training.engine import Engine, LossNormalization, StepOptions, StepResult, train_one_epoch


# name → whether there are masks, whether the detector is frozen, training aids
CASES: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "plain": (False, False, {}),
    "encoder": (False, False, {"encoder_supervision": True}),
    "denoising": (False, False, {"denoising_groups": 2}),
    "teacher": (False, False, {"teacher": "predictions.json", "teacher_weight": 0.5}),
    "masks": (True, False, {"encoder_supervision": True, "denoising_groups": 2}),
    "masks of a frozen detector": (True, True, {}),
}
# boxes in each of eight images: more than there are queries, none in the second half, and in between
COUNTS = {"no box in one half": [3, 0, 9, 1, 0, 0, 0, 0], "unequal": [1, 0, 0, 2, 5, 9, 0, 4], "none": [0] * 8}
TEACHER_COUNTS = [0, 2, 0, 9, 0, 0, 1, 0]  # boxes of a teacher in these images

SPLIT_OVER_PROCESSES: list[tuple[str, str, LossNormalization]] = [
    *((case, name, "step") for case in CASES for name in ("no box in one half", "unequal")),
    *(("plain", name, "original") for name in COUNTS),
]


def model_of(case: str) -> TrainingModel:
    """Make a model without dropout; its weights are the same each time."""
    masks, frozen, aids = CASES[case]
    torch.manual_seed(0)
    config = DetrConfig(
        backbone="resnet10t",
        backbone_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8},
        d_model=128 if masks else 32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=7,
        num_labels=5,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    detector = (DetrForSegmentation if masks else DetrForObjectDetection)(config).double()
    if frozen:
        detector.detr.requires_grad_(False)
    return build_training_model(detector, **aids).double()


def batch_of(counts: list[int], first_index: int = 0, size: int = 64) -> DetectionBatch:
    """Make a batch of images with the given numbers of boxes and masks; an image depends on its index only."""
    images, labels = [], []
    for index, count in enumerate(counts, start=first_index):
        generator = torch.Generator().manual_seed(index)
        taught = TEACHER_COUNTS[index]
        images.append(torch.randn(3, size, size, generator=generator, dtype=torch.float64))
        labels.append(
            {
                "class_labels": torch.randint(5, (count,), generator=generator),
                "boxes": 0.3 + 0.2 * torch.rand(count, 4, generator=generator, dtype=torch.float64),
                "masks": torch.rand(count, size, size, generator=generator) < 0.4,
                "image_index": torch.tensor(index),
                "teacher_labels": torch.randint(5, (taught,), generator=generator),
                "teacher_boxes": 0.3 + 0.2 * torch.rand(taught, 4, generator=generator, dtype=torch.float64),
                "teacher_scores": torch.rand(taught, generator=generator),
            }
        )
    mask = torch.ones(len(counts), size, size, dtype=torch.int64)
    return {"pixel_values": torch.stack(images), "pixel_mask": mask, "labels": labels}


def gradient_of_step(
    case: str, batches: list[DetectionBatch], accelerator: Accelerator, **options: Any
) -> tuple[dict[str, Tensor], StepResult]:
    """Return the gradient that reaches the optimizer after all processes' batches, and the result of the step."""
    model = model_of(case)
    gradient: dict[str, Tensor] = {}

    class Observer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            gradient.update((k, p.grad.clone()) for k, p in model.named_parameters() if p.grad is not None)

    optimizer = Observer([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    prepared_model, prepared = accelerator.prepare(model, optimizer)
    step_options = StepOptions(batches_per_step=len(batches), seed=5, **options)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    engine = Engine(prepared_model, model.detector.config, prepared, scheduler, accelerator, step_options)
    (result,) = train_one_epoch(engine, batches, first_step=9)
    return gradient, result


def main(folder: Path) -> None:
    """Compute all cases, half of the images on each process, and save the gradients in `folder`."""
    accelerator = Accelerator(cpu=True)
    half = 4 * accelerator.process_index
    for case, name, normalization in SPLIT_OVER_PROCESSES:
        batch = batch_of(COUNTS[name][half : half + 4], half)
        gradient_and_result = gradient_of_step(case, [batch], accelerator, loss_normalization=normalization)
        if accelerator.is_main_process:
            torch.save(gradient_and_result, folder / f"{case}, {name}, {normalization}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
