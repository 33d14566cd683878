"""How batches travel from a loader process to the process that trains: through shared memory or through a pipe.

By itself, PyTorch puts every tensor into shared memory. If that is full, it drops the batch, and the receiver waits
forever; and each tensor in flight needs an open file, of which a process may have 1,024. Here only large tensors use
shared memory, and those that do not fit are copied through the pipe, which is slower but always works.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


_SMALL = 2**12  # bytes, a page; copying so few takes less time than opening a file


def prepare_for_transfer(values: Any) -> Any:
    """Return nested mappings and lists with each tensor in shared memory, or ready to be pickled with its values."""
    if isinstance(values, Tensor):
        return _in_shared_memory(values)
    if isinstance(values, Mapping):
        return {name: prepare_for_transfer(value) for name, value in values.items()}
    if isinstance(values, list):
        return [prepare_for_transfer(value) for value in values]
    return values


def bytes_in_shared_memory(values: Any) -> int:
    """Return the bytes of the tensors that `prepare_for_transfer` puts into shared memory, if they fit."""
    if isinstance(values, Tensor):
        return 0 if values.nbytes <= _SMALL else values.nbytes
    if isinstance(values, Mapping):
        return sum(map(bytes_in_shared_memory, values.values()))
    return sum(map(bytes_in_shared_memory, values)) if isinstance(values, list) else 0


def _in_shared_memory(tensor: Tensor) -> "Tensor | _TensorByValue":
    if tensor.nbytes > _SMALL:
        try:
            tensor.share_memory_()
            return tensor
        except RuntimeError:  # it is full, or too many files are open
            pass
    return _TensorByValue(tensor)


class _TensorByValue:
    """A tensor that is pickled with its values and memory layout; unpickling it returns a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        dense = tensor.clone()  # keeps channels last
        self.size, self.stride = dense.shape, dense.stride()
        self.values: NDArray[Any] = dense.as_strided((dense.numel(),), (1,)).numpy()

    def __reduce__(self) -> tuple[object, ...]:
        return _tensor_of, (self.values, self.size, self.stride)


def _tensor_of(values: NDArray[Any], size: torch.Size, stride: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.require(values, requirements="W")).as_strided(size, stride)
