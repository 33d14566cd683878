"""One DETR three times, with the same weights: this package's, Transformers' own ("stock") and the original's."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrForObjectDetection as StockDetr
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.utils import logging

from modeling_detr.benchmarks.speed.original_checkout import NUM_LABELS
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.conversion.original_names import ours_to_original
from modeling_detr.conversion.transformers import save_for_transformers
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.structures_detr import DetectionLabels


_FROZEN_STAGES = ("conv1.", "bn1.", "layer1.")  # of the backbone, by the original


@dataclass(frozen=True)
class Original:
    """The original's model and criterion."""

    model: nn.Module
    criterion: Any

    def loss(self, samples: Any, targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """The weighted loss of a batch, its `NestedTensor` and targets, as its training computes it."""
        return original_loss(self.criterion, self.model(samples), targets)


def original_loss(criterion: Any, outputs: Any, targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """The weighted sum of the terms of the original's criterion."""
    terms, weights = criterion(outputs, targets), criterion.weight_dict
    return sum((terms[name] * weights[name] for name in terms if name in weights), torch.zeros(()))


class Stock(nn.Module):
    """Stock's modules, with a loss of every decoder layer that equals the original's.

    Stock's own `auxiliary_loss` passes normed states on to the next decoder layer, so that the model computes other
    predictions than without. Here, states are normed after the decoder.
    """

    def __init__(self, detector: StockDetr) -> None:
        super().__init__()
        self.detector = detector
        self.config = copy.deepcopy(detector.config)
        self.config.auxiliary_loss = True  # for the loss function only
        self._states: list[Tensor] = []
        for layer in detector.model.decoder.layers:
            layer.register_forward_hook(self._record)
        for name, parameter in detector.model.backbone.named_parameters():
            if name.rpartition("model.")[2].startswith(_FROZEN_STAGES):
                parameter.requires_grad_(False)

    def _record(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._states.append(output[0] if isinstance(output, tuple) else output)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, labels: Sequence[DetectionLabels]) -> Tensor:
        """The weighted loss of a batch."""
        self._states.clear()
        self.detector.model(pixel_values, pixel_mask)
        layers = self.detector.model.decoder.layernorm(torch.stack(self._states))
        self._states.clear()
        logits = self.detector.class_labels_classifier(layers)
        boxes = self.detector.bbox_predictor(layers).sigmoid()
        return stock_loss(logits, boxes, labels, self.config)


def stock_loss(logits: Tensor, boxes: Tensor, labels: Sequence[DetectionLabels], config: Any) -> Tensor:
    """Stock's loss of (L, B, Q, C + 1) logits and (L, B, Q, 4) boxes; `config` is stock's with `auxiliary_loss`."""
    loss: Tensor = ForObjectDetectionLoss(logits[-1], labels, logits.device, boxes[-1], config, logits, boxes)[0]
    return loss


@dataclass(frozen=True)
class Contenders:
    """The models, with the same weights, on the device, in evaluation mode; `original` is None without a checkout."""

    ours: DetrForObjectDetection
    stock: StockDetr
    original: Original | None


def coco_config(**keys: Any) -> DetrConfig:
    """The config of a model with COCO's classes, R50 unless keys change it; the original has no other number."""
    return DetrConfig(**{"num_labels": NUM_LABELS, **keys})


def build_contenders(config: DetrConfig, settings: SpeedSettings, *, seed: int = 0) -> Contenders:
    """Builds the models.

    Args:
        config: The config of this package's model.
        settings: Device and checkout.
        seed: Seed of the weights.

    Raises:
        ModelError: Stock does not support the model.
        BenchmarkError: The original does not support it.
    """
    ours = DetrForObjectDetection(config)
    draw_weights(ours, seed)
    stock = _stock_of(ours, settings.folder)
    original = None
    if settings.original is not None:
        original = Original(*settings.original.build(config, str(settings.device)))
        original.model.load_state_dict(ours_to_original(ours.state_dict()))
        original.model.eval()
    for model in (ours, stock):
        nn.Module.to(model, settings.device).eval()
    return Contenders(ours, stock, original)


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Draws weights for which outputs show every part of the model, and values stay of the order of 1.

    Initial weights would not do: biases are zero, and batch norms change nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            last_norm = ".bn3." in name and name.endswith("weight")  # of a residual branch
            tensor.copy_((1 + 0.1 * noise.abs()) * (0.3 if last_norm else 1.0))
        elif tensor.ndim == 1:
            tensor.copy_(0.1 * noise)
        elif tensor.ndim == 4:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        elif "query" in name and "proj" not in name:
            tensor.copy_(noise)
        else:
            tensor.copy_(noise * (1 / tensor.shape[-1]) ** 0.5)


def _stock_of(ours: DetrForObjectDetection, folder: Path) -> StockDetr:
    """Stock's model with the weights of ours, by way of a folder in which they are converted."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory(dir=folder) as converted:
            save_for_transformers(ours, None, Path(converted))
            stock: StockDetr = StockDetr.from_pretrained(converted, attn_implementation="sdpa")
    finally:
        if shown:
            logging.enable_progress_bar()
    return stock
