from pathlib import Path

import pytest
import timm
import torch
from launched_runs import RECIPE
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def backbone_weights(tmp_path_factory) -> Path:
    """Weights of the tiny backbone under timm's names, as a pretrained one would be."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", channels=(8, 8, 16, 16), stem_width=8)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def config(tmp_path, backbone_weights) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{RECIPE}backbone_weights: {backbone_weights}\noutput_dir: {tmp_path / 'run'}\n")
    return path
