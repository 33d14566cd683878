"""How a run gets on: images a second, the wait for its loaders, memory."""

import time

import psutil
import torch

from modeling_detr.training.engine import StepResult


class Pace:
    """Counts steps of training, and says of those since it was last asked how they went.

    Args:
        device: Where the run computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._waited = 0, 0.0
        self._since = time.monotonic()

    def add(self, step: StepResult) -> None:
        """Counts a step."""
        self._images += step.num_images
        self._waited += step.loader_wait

    def take(self) -> dict[str, float]:
        """`images_per_second`; `loader_wait`, the share (0 to 1) of the time in which the step waited for its images;
        and `memory_gib`, see there. The next ones begin anew."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        figures = {
            "images_per_second": self._images / seconds,
            "loader_wait": min(1.0, self._waited / seconds),
            "memory_gib": memory_gib(self._device),
        }
        self._images, self._waited, self._since = 0, 0.0, now
        return figures


def memory_gib(device: torch.device) -> float:
    """GiB that this process takes: of a GPU the most that its tensors have ever had, else its resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
