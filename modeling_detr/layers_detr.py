"""Linear layers with an initialisation or a precision of their own, and the head for boxes.

They are called, hooked, adapted, quantised and replaced as any other layer of PyTorch.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init


def init_bias(module: nn.Linear | nn.Conv2d, zero: bool = False) -> None:
    """Initialises the bias by PyTorch's default, uniform within 1/√(inputs), or with zeros."""
    if module.bias is not None:
        bound = 0.0 if zero else module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)  # also for zeros: a seed then gives the same weights as before


class XavierInit(NamedTuple):
    """Initialises a linear layer by Xavier's uniform rule with `gain`, the bias with zeros or PyTorch's default."""

    gain: float
    zero_bias: bool

    def __call__(self, layer: nn.Linear) -> None:
        """Draws new weights."""
        init.xavier_uniform_(layer.weight, self.gain)
        init_bias(layer, zero=self.zero_bias)


def xavier_linear(in_features: int, out_features: int, gain: float = 1.0, zero_bias: bool = False) -> nn.Linear:
    """A linear layer with another initialisation; not a class of its own, which quantisation would pass over.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        gain: Factor of Xavier's bound.
        zero_bias: Initialise the bias to 0 instead of PyTorch's default.
    """
    layer = nn.Linear(in_features, out_features)
    layer.init_rule = XavierInit(gain, zero_bias)  # type: ignore[assignment]
    return layer


class HeadLinear(nn.Linear):
    """A linear layer of a head, in float32 at least: half precision shifts boxes of large images by pixels.

    It converts its own weights, so that it can be called, hooked, adapted and replaced as any other layer.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        exact: Compute in float64 in evaluation mode, where the device has it.
    """

    def __init__(self, in_features: int, out_features: int, exact: bool = False) -> None:
        self.exact = exact
        super().__init__(in_features, out_features)

    def forward(self, states: Tensor) -> Tensor:
        """(…, in_features) of any precision → (…, out_features) in float32, or float64 if the states are."""
        output_dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
        exact = self.exact and not self.training and states.device.type != "mps"  # which has no float64
        dtype = torch.float64 if exact else output_dtype
        with torch.autocast(states.device.type, enabled=False):
            output = F.linear(states.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
        return output.to(output_dtype)


class DetrMLPPredictionHead(nn.Module):
    """A multi-layer perceptron with ReLU between its layers, computed in at least float32.

    Original: models/detr.py, `MLP`.

    Args:
        width: Width of the input and the hidden layers.
        output_width: Width of the output.
        num_layers: Number of linear layers.
    """

    def __init__(self, width: int, output_width: int, num_layers: int) -> None:
        super().__init__()
        widths = [width] * num_layers + [output_width]
        self.layers = nn.ModuleList([HeadLinear(i, o) for i, o in pairwise(widths)])

    def forward(self, states: Tensor) -> Tensor:
        """(…, width) → (…, output_width)."""
        *hidden, last = self.layers
        for layer in hidden:
            states = F.relu(layer(states))
        boxes: Tensor = last(states)
        return boxes


def at_least_float32(values: Tensor) -> Tensor:
    """What a layer of another precision, put in a head's place, returns: its numbers in float32 at least."""
    return values if values.dtype == torch.float64 else values.float()
