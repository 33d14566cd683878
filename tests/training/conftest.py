from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from modeling_detr.training.recipe import Recipe


TINY_MODEL = {
    "backbone": "resnet10t",
    "backbone_kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "out_indices": [3],
    "freeze_batch_norm": False,
    "freeze_backbone_stem": False,
    "num_queries": 6,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leave curves and pictures of errors, which take half the time of a run, out of the page at its end."""
    if "with_plots" not in request.keywords:
        monkeypatch.setattr("modeling_detr.training.report_page.curve_section", lambda run_dir: [])
        monkeypatch.setattr("modeling_detr.training.report_page.error_pictures", lambda *arguments: [])


@pytest.fixture
def tiny_recipe(tmp_path: Path):
    """Returns a function that makes the recipe of a run of a second or two, with any keys changed."""

    def make(**changes: Any) -> Recipe:
        keys: dict[str, Any] = {
            "data": "shapes?size=64&train=20&val=4",
            "output_dir": str(tmp_path / "run"),
            "model_config": TINY_MODEL,
            "processor_config": {"size": {"shortest_edge": 64, "longest_edge": 64}},
            "transform": "light",
            "batch_size": 4,
            "num_workers": 0,
            "epochs": 2,
            "learning_rate": 1e-3,
            "backbone_learning_rate": 1e-3,
            "max_grad_norm": 1.0,
            "lr_schedule": "cosine",
            "log_every_steps": 2,
            "num_images_to_log": 1,
        }
        return Recipe(**(keys | changes))

    return make
