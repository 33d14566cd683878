"""A step that runs out of memory: how it is recognised, what it is reset to, and the limit under which it is repeated.

A part of a step (see `StepOptions.max_pixels`) that does not fit is halved, and the whole step is repeated in parts of
at most that size. The losses of all parts are divided by counts of the whole step, so the gradient stays the same up
to rounding. Random states are reset, so the step is the one that a run with this limit takes from the start.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from modeling_detr.data.batch import split_batch
from modeling_detr.errors_detr import OutOfMemoryError
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.divergence import image_indices


_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, whose error does not say that memory is why
    "could not create a memory object",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


@dataclass(frozen=True)
class PartFailure:
    """A part of a step that did not fit into memory.

    Attributes:
        num_images: Its images.
        height: Their height, padding included.
        width: Their width, padding included.
        image_indices: Their indices in the dataset.
        reason: What the allocator says.
    """

    num_images: int
    height: int
    width: int
    image_indices: tuple[int, ...]
    reason: str

    @classmethod
    def of(cls, part: DetectionBatch, error: BaseException) -> "PartFailure":
        """Describe a part and the error that it raised."""
        num_images, _, height, width = part["pixel_values"].shape
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        return cls(num_images, height, width, tuple(image_indices(part)), reason)

    @property
    def half(self) -> int:
        """Pixels of half of its images, rounded up."""
        return (self.num_images + 1) // 2 * self.height * self.width

    def __str__(self) -> str:
        images = "an image" if self.num_images == 1 else f"{self.num_images} images"
        return f"{images} of {self.width}x{self.height} (width x height)"


class PixelLimit:
    """The largest number of pixels in one forward pass that has been found to fit into memory.

    Attributes:
        pixels: The limit; None as long as no step has run out of memory.
        cause: The largest part that did not fit since the last report; None if there is none.
    """

    def __init__(self, pixels: int | None = None) -> None:
        self.pixels = pixels
        self.cause: PartFailure | None = None

    def split(self, batch: DetectionBatch, max_pixels: int | None) -> list[DetectionBatch]:
        """Split a batch into parts within this limit and another one, if there is one."""
        limits = [limit for limit in (self.pixels, max_pixels) if limit is not None]
        return split_batch(batch, min(limits)) if limits else [batch]

    def lower(self, failures: Sequence[PartFailure]) -> None:
        """Halve the parts that did not fit.

        Args:
            failures: At least one; of several processes, those of all of them, so that they have the same limit.

        Raises:
            OutOfMemoryError: One is a single image.
        """
        for failure in failures:
            if failure.num_images == 1:
                raise OutOfMemoryError(
                    "a training step",
                    f"{failure} does not fit into memory ({failure.reason})",
                    "make images smaller (processor_config.size, scales in transform_options), or save memory with "
                    "gradient_checkpointing or mixed_precision bf16",
                    image_indices=failure.image_indices,
                )
        smallest = min(failures, key=lambda failure: failure.half)
        self.pixels = smallest.half if self.pixels is None else min(self.pixels, smallest.half)
        self.cause = self.cause or max(failures, key=lambda failure: failure.num_images)

    def report(self) -> str | None:
        """Say what did not fit since the last report, and how to avoid the attempt that fails; None: all has fit."""
        if self.pixels is None or self.cause is None:
            return None
        cause, self.cause = f"{self.cause} did not fit into memory", None
        return (
            f"{cause}: at most {self.pixels:,} pixels pass through the model at once from now on. Images and gradient "
            f"of a step stay the same. --max_pixels_per_batch {self.pixels} saves the failed attempt next time"
        )


class StepStart:
    """What a step changes before its gradient is complete: random states, and statistics of batch norms.

    Args:
        device: The device of the run.
        statistics: The buffers to restore; see `running_statistics`.
    """

    def __init__(self, device: torch.device, statistics: Sequence[Tensor]) -> None:
        self._device = device
        self._random_state = torch.get_rng_state()
        self._device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._statistics = [(buffer, buffer.clone()) for buffer in statistics]

    def restore(self) -> None:
        """Go back to the start of the step. Gradients are not included."""
        torch.set_rng_state(self._random_state)
        if self._device_state is not None:
            torch.cuda.set_rng_state(self._device_state, self._device)
        for buffer, value in self._statistics:
            buffer.copy_(value)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that a forward pass in training mode changes: running means and variances of batch norms."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
