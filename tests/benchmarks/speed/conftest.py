import pytest
import torch

from modeling_detr import DetrConfig
from modeling_detr.benchmarks.speed.settings import SpeedSettings


@pytest.fixture
def settings(tmp_path):
    """Two rounds on the CPU, without the original."""
    return SpeedSettings(tmp_path, torch.device("cpu"), quick=True, rounds=2, seconds=0.0)


@pytest.fixture(scope="session")
def small_config():
    """A DETR that all three projects have, with the original's number of classes."""
    return DetrConfig(
        backbone="resnet18",
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=7,
        num_labels=91,
    )
