"""The gradient of one optimizer step of a tiny float64 model, however its images are split into batches or processes.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 tests/split_steps.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.aids import TrainingModel, build_training_model
from modeling_detr.training.distributed import keep_buffers_local
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

# where the second process runs out of memory, and in which step
FAILURES = [("forward", 1), ("backward", 1), ("forward", 2), ("backward", 2)]
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


class _Unallocated(torch.autograd.Function):
    """Runs out of memory in the backward pass, when the layers after it have their gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise run_out()


def run_out() -> RuntimeError:
    """The error of PyTorch's allocator on a CPU."""
    return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12")


def fail_above(model: TrainingModel, max_pixels: int, where: str, step: int = 1) -> None:
    """Let a model run out of memory with more pixels, from a step on whose predecessors have one pass each."""
    passes = 0

    def fail(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        pixels = len(output) * output.shape[-2:].numel() * 32**2
        if pixels <= max_pixels or passes < step:
            return output
        if where == "forward":
            raise run_out()
        return _Unallocated.apply(output)

    detector = getattr(model.detector, "detr", model.detector)
    detector.model.input_projection.register_forward_hook(fail)


def gradient_of_step(
    case: str,
    batches: list[DetectionBatch],
    accelerator: Accelerator,
    failure: tuple[int, str, int] | None = None,
    steps: int = 1,
    **options: Any,
) -> tuple[dict[str, Tensor], StepResult]:
    """Return the gradient that reaches the optimizer after all processes' batches, and the result of the step.

    Args:
        case: A key of `CASES`.
        batches: Those of this process in each step.
        accelerator: All of its processes call this together.
        failure: Arguments of `fail_above`; None: the model does not run out of memory.
        steps: Number of steps with the same weights, the last of which counts.
        options: Of the step.
    """
    model = model_of(case)
    if failure is not None:
        fail_above(model, *failure)
    gradient: dict[str, Tensor] = {}

    class Observer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            gradient.update((k, p.grad.clone()) for k, p in model.named_parameters() if p.grad is not None)

    optimizer = Observer([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    prepared_model, prepared = accelerator.prepare(model, optimizer)
    keep_buffers_local(prepared_model)
    step_options = StepOptions(batches_per_step=len(batches), seed=5, **options)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    engine = Engine(prepared_model, model.detector.config, prepared, scheduler, accelerator, step_options)
    *_, result = train_one_epoch(engine, batches * steps, first_step=9)
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
    batch = batch_of(COUNTS["unequal"][half : half + 4], half)
    for where, step in FAILURES:
        failure = (2 * 64 * 64, where, step) if accelerator.process_index == 1 else None
        gradient_and_result = gradient_of_step("plain", [batch], accelerator, failure, steps=step)
        if accelerator.is_main_process:
            torch.save(gradient_and_result, folder / f"{where}, {step}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
