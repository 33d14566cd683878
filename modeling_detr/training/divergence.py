"""A step that is not finite: which images it came from, and its error."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from modeling_detr.data.collate import split_batch
from modeling_detr.structures_detr import DetectionBatch


class StepShare(NamedTuple):
    """What one process contributes to an optimizer step.

    parts: What passes through the model at once, batches or parts of them, each with what its class losses are
        divided by.
    num_boxes: What all other losses are divided by.
    """

    parts: Sequence[tuple[DetectionBatch, float | Tensor]]
    num_boxes: float | Tensor


class NonFiniteLossError(ArithmeticError):
    """A loss or the gradient became NaN or infinite; the optimizer has not moved.

    Attributes:
        terms: The names of what is not finite.
        image_indices: Positions in the dataset of the images it came from, of all processes.
        finding: What running each image alone has shown.
        share: What this process contributed to the step, if it may have come from there.
    """

    def __init__(
        self,
        terms: Sequence[str],
        image_indices: Sequence[int],
        finding: str,
        share: StepShare | None = None,
        *,
        where: str = "a step",
        images: str = "",
        remedy: str = "",
    ) -> None:
        seen = images or f"images at {', '.join(map(str, image_indices)) or 'unknown positions'}"
        super().__init__(
            f"{where}: not finite: {', '.join(terms)}. The optimizer has not moved. {finding} Images: {seen}.{remedy}"
        )
        self.terms = tuple(terms)
        self.image_indices = tuple(image_indices)
        self.finding = finding
        self.share = share


def non_finite_loss(
    terms: Sequence[str],
    share: StepShare,
    suspects: Sequence[int],
    model: nn.Module,
    losses_of: Callable[[nn.Module, DetectionBatch, float | Tensor], dict[str, Tensor]],
    accelerator: Accelerator,
) -> NonFiniteLossError:
    """Finds out which images a step that is not finite came from; all processes call it together.

    Args:
        terms: What is not finite.
        share: What this process contributed.
        suspects: Which parts of that it may have come from.
        model: As prepared by `accelerator`.
        losses_of: Computes the losses of a part, with what its class losses are divided by.
        accelerator: The processes'.
    """
    parts = [share.parts[number] for number in suspects]
    images = [index for part, _ in parts for index in image_indices(part)]
    number = sum(len(part["labels"]) for part, _ in share.parts)
    culprits: list[int] = []
    tried = accelerator.distributed_type != DistributedType.FSDP  # there a forward pass takes all processes
    if tried:
        module = accelerator.unwrap_model(model)
        try:
            with torch.compiler.set_stance("force_eager"):  # nothing is compiled for batches of one
                culprits = [
                    index
                    for part, class_weight_sum in parts
                    for image in split_batch(part, max_pixels=1)
                    if not is_finite(module, losses_of(module, image, class_weight_sum))
                    for index in image_indices(image)
                ]
        except RuntimeError:  # such as no memory left: that must not hide what has happened
            tried = False
    if accelerator.num_processes > 1:
        images, culprits = gather_object(images), gather_object(culprits)
        number, tried = sum(gather_object([number])), all(gather_object([tried]))
    finding = _finding(len(culprits), number) if tried else "It came from a batch of the images named here."
    return NonFiniteLossError(terms, culprits or images, finding, share if suspects else None)


def _finding(culprits: int, images: int) -> str:
    """What it means that so many of a step's images bring it about alone."""
    slower = "lower the rates, clip the gradient more (max_grad_norm), or do without mixed precision"
    if culprits == 0:
        return f"No image does it alone, so it is the weights that have become too large: {slower}."
    if culprits == images > 1:
        return f"Every image does it alone, so it is the weights that have diverged: {slower}."
    return "Each of the images named here does it alone: look at the files and at their boxes."


def is_finite(module: nn.Module, losses: Mapping[str, Tensor]) -> bool:
    """Whether losses and their gradient are; that of the parameters stays as it is."""
    if not all(bool(loss.isfinite().all()) for loss in losses.values()):
        return False
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses["loss"], trained, allow_unused=True)
    return all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def image_indices(part: DetectionBatch) -> list[int]:
    """Positions in the dataset of a part's images, where they are known."""
    return [int(label["image_index"]) for label in part["labels"] if "image_index" in label]
