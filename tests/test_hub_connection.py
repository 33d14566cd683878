import time

import pytest
from hub_server import serving
from huggingface_hub import constants

from modeling_detr.conversion.sources import load_model
from modeling_detr.data import open_dataset
from modeling_detr.errors_detr import DatasetReadError, ModelError, ModelNotFoundError
from modeling_detr.hub_connection import offline_if_unreachable
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.starting_model import build_model


@pytest.fixture
def unreachable_hub(monkeypatch):
    """A Hub whose address refuses connections."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_model_dataset_or_backbone_that_must_be_downloaded_fails_at_once(unreachable_hub):
    config = {"backbone": "resnet18", "freeze_batch_norm": False, "freeze_backbone_stem": False}
    recipe = Recipe(model_config=config, backbone_weights="resnet18.a1_in1k")
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="not in the cache, and the Hub cannot be reached; check the connect"):
        load_model("me/no-such-model")
    with pytest.raises(ModelError, match=r"resnet18\.a1_in1k: cannot be downloaded \(no connection\)") as error:
        build_model(recipe, {0: "cat"})
    assert error.value.settings == {"backbone_weights": "./model.safetensors"}
    with pytest.raises(DatasetReadError, match="could not be loaded from the Hub"):
        open_dataset("me/no-such-dataset")
    assert time.monotonic() - start < 5
    assert not constants.HF_HUB_OFFLINE  # afterwards, the Hub's client is as it was


def test_a_hub_that_answers_is_used(unreachable_hub, monkeypatch):
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with offline_if_unreachable():
            assert not constants.HF_HUB_OFFLINE
