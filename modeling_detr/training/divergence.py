"""Steps whose loss or gradient is not finite: the error, and the search for the images that cause it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from modeling_detr.data.batch import split_batch
from modeling_detr.structures_detr import DetectionBatch


class StepShare(NamedTuple):
    """What one process contributes to an optimizer step.

    Attributes:
        parts: Batches, or parts of them, that pass through the model at once, each with the divisor of its class
            losses.
        num_boxes: Divisor of all other losses, except those of a teacher.
        num_teacher_boxes: Divisor of the box losses of a teacher.
    """

    parts: Sequence[tuple[DetectionBatch, float | Tensor]]
    num_boxes: float | Tensor
    num_teacher_boxes: float | Tensor = 1.0


class NonFiniteLossError(ArithmeticError):
    """A loss or the gradient became NaN or infinite; the optimizer has not stepped.

    Attributes:
        terms: Names of the losses that are not finite, or "gradient".
        image_indices: Indices in the dataset of the images that cause it, over all processes.
        finding: Result of running each image by itself, as a sentence.
        share: What this process contributed to the step; None if its losses are finite.
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
        images = images or ", ".join(map(str, image_indices)) or "unknown"
        super().__init__(
            f"{where}: not finite: {_shown_terms(terms)}. The weights have not been updated. {finding} "
            f"Images: {images}.{remedy}"
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
    max_grad_norm: float = 0.0,
) -> NonFiniteLossError:
    """Return the error for a step that is not finite, with the images that cause it. All processes call it together.

    Args:
        terms: Names of the losses that are not finite, or "gradient".
        share: What this process contributed.
        suspects: Indices of the parts that may cause it.
        model: The training model as prepared by `accelerator`.
        losses_of: Computes the losses of a part, given the divisor of its class losses.
        accelerator: The accelerator of the run.
        max_grad_norm: The run's limit of the gradient's norm; 0 if gradients are not clipped.
    """
    parts = [share.parts[index] for index in suspects]
    images = [index for part, _ in parts for index in image_indices(part)]
    num_images = sum(len(part["labels"]) for part, _ in share.parts)
    culprits: list[int] = []
    tried = accelerator.distributed_type != DistributedType.FSDP  # under FSDP, a forward pass needs all processes
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
        except RuntimeError:  # such as running out of memory, which must not hide the non-finite loss
            tried = False
    if accelerator.num_processes > 1:
        images, culprits = gather_object(images), gather_object(culprits)
        num_images, tried = sum(gather_object([num_images])), all(gather_object([tried]))
    remedy = _remedy_of_divergence(max_grad_norm, accelerator.mixed_precision)
    finding = _finding(len(culprits), num_images, remedy) if tried else "The cause is in a batch of the images listed."
    return NonFiniteLossError(terms, culprits or images, finding, share if suspects else None)


def _remedy_of_divergence(max_grad_norm: float, mixed_precision: str) -> str:
    """What may keep the weights from diverging and has not been tried in this run."""
    clipping = "a lower max_grad_norm" if max_grad_norm > 0 else "clipping gradients with max_grad_norm 0.1"
    if mixed_precision == "no":
        return f"try lower learning rates or {clipping}"
    return f"try lower learning rates, {clipping}, or full precision"


def _shown_terms(terms: Sequence[str]) -> str:
    """The losses that are not finite; many terms, such as those of all decoder layers, are only counted."""
    if "loss" in terms and len(terms) > 4:
        return f"loss and {len(terms) - 1} of its terms"
    return ", ".join(terms)


def _finding(num_culprits: int, num_images: int, remedy: str) -> str:
    """Interpret how many of a step's images reproduce the failure by themselves."""
    if num_culprits == 0:
        return f"No single image reproduces this, so the weights have probably diverged: {remedy}."
    if num_culprits == num_images > 1:
        return f"Every image reproduces this by itself, so the weights have diverged: {remedy}."
    return "Each image listed reproduces the failure by itself: check the file and its boxes."


def is_finite(module: nn.Module, losses: Mapping[str, Tensor]) -> bool:
    """Whether losses and their gradient are finite. The gradients stored in the parameters are unchanged."""
    if not all(bool(loss.isfinite().all()) for loss in losses.values()):
        return False
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(losses["loss"], trained, allow_unused=True)
    return all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def image_indices(part: DetectionBatch) -> list[int]:
    """Return the dataset indices of a part's images; images whose labels have no index are left out."""
    return [int(label["image_index"]) for label in part["labels"] if "image_index" in label]
