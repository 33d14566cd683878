"""The average losses of an evaluation, from batches with labels."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor


if TYPE_CHECKING:
    from accelerate import Accelerator


class LossOutput(Protocol):
    """The part of a model's output that holds its losses; both are None if the batch had no labels."""

    @property
    def loss(self) -> Tensor | None:
        """The weighted sum of the terms."""

    @property
    def loss_dict(self) -> Mapping[str, Tensor] | None:
        """Name → unweighted term."""


class LossAverages:
    """Collects losses: call `update` for each batch, then `gather`, then `compute`."""

    def __init__(self) -> None:
        self.num_images = 0
        self._sums: defaultdict[str, float | Tensor] = defaultdict(float)

    def update(self, outputs: LossOutput, num_images: int) -> None:
        """Adds the losses of a batch of `num_images` images; they stay on the device, to avoid a synchronisation."""
        self.num_images += num_images
        if outputs.loss is not None:
            for name, loss in {"loss": outputs.loss, **(outputs.loss_dict or {})}.items():
                self._sums[name] += loss * num_images

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the losses of all processes into each of them. All processes call it together."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        # As objects, not tensors: a process without batches does not know the names of the losses.
        sums = {name: float(total) for name, total in self._sums.items()}
        gathered: list[tuple[dict[str, float], int]] = gather_object([(sums, self.num_images)])
        self._sums = defaultdict(float)
        for process_sums, _ in gathered:
            for name, value in process_sums.items():
                self._sums[name] += value
        self.num_images = sum(num_images for _, num_images in gathered)

    def compute(self) -> dict[str, float]:
        """Name → average over the images; empty if no batch had labels."""
        return {name: float(total) / self.num_images for name, total in self._sums.items()}
