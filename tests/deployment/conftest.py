"""A small detector as an ONNX file, and batches to run it on."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim


SIZES = {"d_model": 64, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}


class LogitsAndBoxes(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask):
        outputs = self.model(pixel_values, pixel_mask)
        return outputs.logits, outputs.pred_boxes


@pytest.fixture(scope="session")
def batches():
    random = np.random.default_rng(0)
    made = []
    for images, height, width in ((2, 70, 99), (1, 64, 64), (3, 96, 65)):
        mask = np.ones((images, height, width), np.int64)
        mask[0, :, width - 20 :] = 0
        pixels = random.standard_normal((images, 3, height, width), np.float32) * mask[:, None].astype(np.float32)
        made.append({"pixel_values": pixels, "pixel_mask": mask})
    return made


@pytest.fixture(scope="session")
def onnx_file(tiny_detector, batches, tmp_path_factory):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="needs the ONNX packages: pip install 'modeling-detr[export]'")
    model = LogitsAndBoxes(tiny_detector(**SIZES))
    model.model.class_labels_classifier.exact = False
    sample = {name: torch.from_numpy(values) for name, values in batches[0].items()}
    shapes = {
        "pixel_values": dict.fromkeys((0, 2, 3), Dim.DYNAMIC),
        "pixel_mask": dict.fromkeys((0, 1, 2), Dim.DYNAMIC),
    }
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            model,
            (),
            kwargs=sample,
            dynamo=True,
            dynamic_shapes=shapes,
            output_names=["logits", "pred_boxes"],
            verbose=False,
        )
    program.save(path)
    return path
