"""The losses of an evaluation: those of all images as one batch, however they were split."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.loss_detr import LossNumbers
from modeling_detr.structures_detr import DetectionLabels


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
    """Collects losses: call `update` for each batch, then `gather`, then `compute`.

    The mean of means depends on the batch size: a box in a batch of few boxes would count more than one in a batch of
    many. So sums and the numbers they are divided by are collected apart, and divided at the end.

    Args:
        model: A detector, whose `loss_weights` and `config` say how its loss is made up. The losses of a model without
            `loss_weights` are averaged over images.
    """

    def __init__(self, model: nn.Module) -> None:
        self.num_images = 0
        self._weights: Mapping[str, float] = getattr(model, "loss_weights", {})
        self._config = cast(DetrConfig, model.config) if self._weights else None
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._numbers = LossNumbers()

    def update(self, outputs: LossOutput, labels: Sequence[DetectionLabels]) -> None:
        """Adds the losses of a batch."""
        self.num_images += len(labels)
        if outputs.loss is None:
            return
        numbers = self._numbers_of(labels)
        terms = {"loss": outputs.loss, **(outputs.loss_dict or {})}
        for name, value in zip(terms, torch.stack([*terms.values()]).tolist(), strict=True):
            self._sums[name] += value * numbers.divisor(name)
        self._numbers += numbers

    def gather(self, accelerator: "Accelerator") -> None:
        """Merges the losses of all processes into each of them. All processes call it together."""
        if accelerator.num_processes == 1:
            return
        from accelerate.utils import gather_object

        # As objects, not tensors: a process without batches does not know the names of the losses.
        gathered: list[tuple[dict[str, float], LossNumbers, int]] = gather_object(
            [(dict(self._sums), self._numbers, self.num_images)]
        )
        self._sums = defaultdict(float)
        for sums, _, _ in gathered:
            for name, value in sums.items():
                self._sums[name] += value
        self._numbers = sum((numbers for _, numbers, _ in gathered), LossNumbers())
        self.num_images = sum(num_images for _, _, num_images in gathered)

    def compute(self) -> dict[str, float]:
        """Name → loss of all images as one batch; empty if no batch had labels."""
        means = {name: self._numbers.mean(name, total) for name, total in self._sums.items()}
        if means and self._weights:
            weights = {name: self._weights.get(_without_layer(name)) for name in means}
            means["loss"] = sum(weight * means[name] for name, weight in weights.items() if weight is not None)
        return means

    def _numbers_of(self, labels: Sequence[DetectionLabels]) -> LossNumbers:
        if self._config is None:
            return LossNumbers(*[len(labels)] * 4)
        return LossNumbers.of(labels, self._config.num_queries, float(self._config.eos_coefficient))


def _without_layer(name: str) -> str:
    """The name of a term without the number of its decoder layer."""
    return re.sub(r"_\d+$", "", name)
