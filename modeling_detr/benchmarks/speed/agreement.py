"""The comparison of outputs before times: contenders that compute different results are not measured."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modeling_detr.benchmarks.speed.measurement import OURS
from modeling_detr.errors_detr import BenchmarkError


Outputs = Mapping[str, Tensor | float]


def check_agreement(work: str, outputs: Mapping[str, Outputs], tolerance: float) -> dict[str, float]:
    """Compares the outputs of all contenders with those of this package.

    Args:
        work: The work, for the message.
        outputs: Contender → name of an output → its value. Compared are the names that a contender has.
        tolerance: The largest difference allowed, relative to the largest value of this package's output.

    Returns:
        Contender → its largest relative difference.

    Raises:
        BenchmarkError: An output differs by more, has another shape, or is not finite.
    """
    differences = {}
    for contender, values in outputs.items():
        if contender == OURS:
            continue
        worst = 0.0
        for name, value in values.items():
            difference = relative_difference(outputs[OURS][name], value)
            if not difference <= tolerance:  # NaN is a difference, too
                raise BenchmarkError(
                    work,
                    f"{name} of {contender} differs from that of {OURS} by {difference:.2g} of its largest value, "
                    f"expected at most {tolerance:g}; times of different results are not compared",
                )
            worst = max(worst, difference)
        differences[contender] = worst
    return differences


@contextmanager
def without_tf32() -> Iterator[None]:
    """Computes products and convolutions on a GPU in full float32, in which the contenders are compared: TF32 rounds
    to three digits, differently for each order of the same sums."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, allowed, strict=True):
            backend.allow_tf32 = value


def relative_difference(expected: Tensor | float, value: Tensor | float) -> float:
    """The largest difference of two outputs, relative to the largest value of the first; infinite if their shapes
    differ or one is not finite."""
    first, second = (torch.as_tensor(output).detach().cpu().double() for output in (expected, value))
    if first.shape != second.shape or not bool(first.isfinite().all() & second.isfinite().all()):
        return math.inf
    if first.numel() == 0:
        return 0.0
    return float((first - second).abs().max() / first.abs().max().clamp(min=1e-12))
