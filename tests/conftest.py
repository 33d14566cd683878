"""What several test files share: DETRs small enough for a test, and an end of child processes."""

import gc
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation, DetrTorchvisionImageProcessor


# As many tests run at a time as there are cores; threads that share a core slow each other down
torch.set_num_threads(1)

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
# The mask head halves the width four times and splits its channels into groups of 8.
TINY_WITH_MASKS = TINY | {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., DetrConfig]:
    """Returns a function that makes the config of a tiny DETR, with any options changed."""
    return lambda **changes: DetrConfig(**{**TINY, **changes})


@pytest.fixture(scope="session")
def tiny_detector(tiny_config: Callable[..., DetrConfig]) -> Callable[..., DetrForObjectDetection]:
    """Returns a function that makes a tiny DETR with random weights, the same ones each time."""

    def make(**changes: Any) -> DetrForObjectDetection:
        torch.manual_seed(0)
        return DetrForObjectDetection(tiny_config(**changes)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_segmenter() -> Callable[..., DetrForSegmentation]:
    """Returns a function that makes a tiny DETR with masks and random weights, the same ones each time."""

    def make(certain_label: int | None = None, **changes: Any) -> DetrForSegmentation:
        torch.manual_seed(0)
        model = DetrForSegmentation(DetrConfig(**{**TINY_WITH_MASKS, **changes})).eval()
        if certain_label is not None:  # every query predicts it
            with torch.no_grad():
                model.detr.class_labels_classifier.bias[certain_label] = 9.0
        return model

    return make


@pytest.fixture
def no_child_processes():
    """End the child processes of earlier tests, such as loaders that wait for garbage collection."""
    gc.collect()
    _kill_children()
    yield
    _kill_children()


def _kill_children() -> None:
    forkserver._forkserver._stop()  # of prepared runs; multiprocessing does not expect that it is killed
    resource_tracker._resource_tracker._stop()
    for process in psutil.Process().children():
        process.kill()
        process.wait()


@pytest.fixture
def model_folder(tiny_detector: Callable[..., DetrForObjectDetection], tmp_path: Path) -> Path:
    """A saved model of two classes, in a run's folder."""
    folder = tmp_path / "run" / "model"
    tiny_detector(num_labels=2, id2label={0: "disc", 1: "star"}).save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder
