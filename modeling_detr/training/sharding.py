"""Weights that several processes hold in parts (FSDP): put together, and dealt out again.

Every process must call these together, since parts travel between them; without FSDP they change nothing.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(values: Any) -> Any:
    """The same dicts and lists with every tensor that lies in parts put together."""
    if isinstance(values, DTensor):
        return values.full_tensor()
    if isinstance(values, Mapping):
        return {name: whole(value) for name, value in values.items()}
    if isinstance(values, list):
        return [whole(value) for value in values]
    return values


def dealt_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` lies: this process's part of it, or itself."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Gives a whole module the weights and buffers of one of the same kind that may lie in parts."""
    target.load_state_dict(whole(source.state_dict()))
