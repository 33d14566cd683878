"""The numbers in tests/reference as Python objects: what the original computed, and our models with its weights."""

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation
from modeling_detr.conversion import original_to_ours
from modeling_detr.segmentation_detr import Detector


REFERENCE = Path(__file__).resolve().parent / "reference"
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # images, which are not part of the repository

needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs the real images in ../shared/data")

_OPTIONS = {
    "backbone": ("backbone",),
    "dilation": ("dilation",),
    "enc_layers": ("encoder_layers",),
    "dec_layers": ("decoder_layers",),
    "dim_feedforward": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "hidden_dim": ("d_model",),
    "nheads": ("encoder_attention_heads", "decoder_attention_heads"),
    "num_queries": ("num_queries",),
    "pre_norm": ("pre_norm",),
    "position_embedding": ("position_embedding_type",),
    "eos_coef": ("eos_coefficient",),
    "dropout": ("dropout", "attention_dropout", "activation_dropout"),
}  # `masks` and `dataset_file` decide the kind of model


@functools.cache
def _seeded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded_weights", REFERENCE / "seeded_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.lru_cache(maxsize=1)  # tests of one case follow each other; 40 million random numbers take seconds
def _seeded_weights(variant: str, seed: int) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = _seeded().seeded_state_dict(REFERENCE / "manifests" / f"{variant}.json", seed)
    return weights


@dataclass
class Case:
    """One golden file: the original's options, seeds and results."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return bool(self.values["options"].get("masks"))

    def model(self, **changes: Any) -> Detector:
        """Our model with the case's weights, in evaluation mode; unused weights are an error."""
        options = {ours: value for key, value in self.values["options"].items() for ours in _OPTIONS.get(key, ())}
        kind = DetrForSegmentation if self.has_masks else DetrForObjectDetection
        model = kind(DetrConfig(**{**options, "num_labels": self.values["num_classes"], **changes}))
        model.load_state_dict(original_to_ours(self.original_weights()), strict=True)
        return model.eval()

    def original_weights(self) -> dict[str, Tensor]:
        """The case's weights under the original's names."""
        return dict(_seeded_weights(self.values["variant"], self.values["seed"]))

    def images(self, seeds: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """The padded batch and its mask."""
        seeds = self.values["image_seeds"] if seeds is None else seeds
        images = [_seeded().seeded_image(*size, seed) for size, seed in zip(self.values["sizes"], seeds, strict=True)]
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        pixel_values = torch.zeros(len(images), 3, height, width)
        pixel_mask = torch.zeros(len(images), height, width, dtype=torch.int64)
        for row, image in enumerate(images):
            pixel_values[row, :, : image.shape[1], : image.shape[2]] = image
            pixel_mask[row, : image.shape[1], : image.shape[2]] = 1
        return pixel_values, pixel_mask

    def labels(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
        """The targets under our names."""
        seed = self.values["target_seed"] if seed is None else seed
        targets = _seeded().seeded_targets(
            self.values["sizes"], self.values["counts"], self.values["num_classes"], seed, self.has_masks
        )
        return [
            {"class_labels": target["labels"], "boxes": target["boxes"].to(dtype)}
            | ({"masks": target["masks"]} if self.has_masks else {})
            for target in targets
        ]


def load_case(name: str) -> Case:
    """Load a golden case by its name, e.g. `tiny-r18`."""
    golden = REFERENCE / "golden"
    tensors = golden / f"{name}.safetensors"
    return Case(json.loads((golden / f"{name}.json").read_text()), load_file(tensors) if tensors.exists() else {})
