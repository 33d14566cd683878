"""What several test files share: a DETR small enough for a test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_detr import DetrConfig, DetrForObjectDetection


torch.set_num_threads(1)  # as many tests as cores run at a time; threads that share a core wait for each other

TINY = {
    "backbone": "resnet10t",
    "backbone_kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 7,
    "num_labels": 5,
}


@pytest.fixture
def tiny_config() -> Callable[..., DetrConfig]:
    """Makes the config of a tiny DETR, with changes."""
    return lambda **changes: DetrConfig(**{**TINY, **changes})


@pytest.fixture
def tiny_detector(tiny_config: Callable[..., DetrConfig]) -> Callable[..., DetrForObjectDetection]:
    """Makes a tiny DETR with random weights, the same each time."""

    def make(**changes: Any) -> DetrForObjectDetection:
        torch.manual_seed(0)
        return DetrForObjectDetection(tiny_config(**changes)).eval()

    return make
