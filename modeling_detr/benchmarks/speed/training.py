"""One optimizer step of each contender, as it trains: its own loop, optimizer and clipping."""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modeling_detr.benchmarks.speed.agreement import Outputs, without_tf32
from modeling_detr.benchmarks.speed.contenders import Contenders, Original, Stock
from modeling_detr.benchmarks.speed.generated_images import MEAN, STD
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, STOCK
from modeling_detr.benchmarks.speed.original_checkout import OriginalCheckout
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.engine import Engine, StepOptions, train_one_epoch, training_step
from modeling_detr.training.optimization import build_lr_scheduler, build_optimizer


_RATES = {"learning_rate": 1e-4, "backbone_learning_rate": 1e-5, "weight_decay": 1e-4}
_MAX_GRAD_NORM = 0.1
# Ends of the names of parameters whose gradients are compared, name in all three: the deepest is that of the backbone
_GRADIENTS = {
    "gradient of the class head": ("class_labels_classifier.weight", "class_embed.weight"),
    "gradient of the input projection": ("input_projection.weight", "input_proj.weight"),
    "gradient of the backbone": ("layer2.0.conv1.weight",),
}


class OurTraining:
    """This package's engine, which normalises pixels on the device."""

    def __init__(self, model: DetrForObjectDetection, device: torch.device) -> None:
        self.model, self.device = model, device
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # which Accelerate uses
        optimizer = build_optimizer(model, **_RATES)
        accelerator = Accelerator(cpu=device.type == "cpu")
        prepared_model, prepared = accelerator.prepare(model, optimizer)
        scheduler = build_lr_scheduler(optimizer, "constant", total_steps=1000)
        options = StepOptions(max_grad_norm=_MAX_GRAD_NORM, image_mean=MEAN, image_std=STD)
        self.engine = Engine(prepared_model, model.config, prepared, scheduler, accelerator, options)

    def outputs(self, batch: DetectionBatch, autocast: bool = False) -> Outputs:
        """Loss and gradients without dropout."""
        inputs = _as_compared(batch_to_device(batch, self.device, MEAN, STD), autocast)
        return _loss_and_gradients(self.model, lambda: self.model(**inputs).loss, self.device, autocast)

    def step(self, batch: DetectionBatch) -> None:
        """One optimizer step."""
        self.model.train()
        training_step(self.engine, [batch])

    def epoch(self, loader: Iterable[DetectionBatch]) -> None:
        """Steps over all batches."""
        for _ in train_one_epoch(self.engine, loader):
            pass


class StockTraining:
    """Stock's modules, with the settings that Transformers' Trainer has by default."""

    def __init__(self, contenders: Contenders, device: torch.device) -> None:
        self.model, self.device = Stock(contenders.stock), device
        fused = device.type in ("cpu", "cuda")
        parameters: list[nn.Parameter] = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=fused)

    def outputs(self, batch: DetectionBatch, autocast: bool = False) -> Outputs:
        """Loss and gradients without dropout."""
        pixel_values, padding, labels = _as_compared(_normalised(batch, self.device), autocast)
        mask = (~padding).long()
        return _loss_and_gradients(self.model, lambda: self.model(pixel_values, mask, labels), self.device, autocast)

    def prepared_step(self, batch: DetectionBatch, autocast: bool) -> Callable[[], object]:
        """A step on a batch whose pixels have been normalised, as stock's processor does."""
        pixel_values, padding, labels = _normalised(batch, self.device)
        mask = (~padding).long()

        def step() -> None:
            self.model.train()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                loss = self.model(pixel_values, mask, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()  # for its log

        return step


class OriginalTraining:
    """The original's `engine.train_one_epoch`, with the optimizer of its `main`."""

    def __init__(self, original: Original, checkout: OriginalCheckout, device: torch.device) -> None:
        self.original, self.checkout, self.device = original, checkout, device
        named = [pair for pair in original.model.named_parameters() if pair[1].requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for name, parameter in named if "backbone" not in name]},
            {"params": [parameter for name, parameter in named if "backbone" in name], "lr": 1e-5},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)

    def _inputs(self, normalised: Any) -> tuple[Any, list[dict[str, Tensor]]]:
        pixel_values, padding, labels = normalised
        targets = [{"labels": label["class_labels"], "boxes": label["boxes"]} for label in labels]
        return self.checkout.misc.NestedTensor(pixel_values, padding), targets

    def outputs(self, batch: DetectionBatch) -> Outputs:
        """Loss and gradients without dropout."""
        samples, targets = self._inputs(_as_compared(_normalised(batch, self.device), autocast=False))
        modules = nn.ModuleList([self.original.model, self.original.criterion])
        return _loss_and_gradients(modules, lambda: self.original.loss(samples, targets), self.device)

    def prepared_step(self, batch: DetectionBatch) -> Callable[[], object]:
        """A step on a batch whose pixels have been normalised, as the original's loader does."""
        batches = [self._inputs(_normalised(batch, self.device))]
        return lambda: self.epoch(batches)

    def epoch(self, loader: Iterable[Any]) -> None:
        """Steps over all batches."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.checkout.engine.train_one_epoch(
                self.original.model, self.original.criterion, loader, self.optimizer, self.device, 0, _MAX_GRAD_NORM
            )


@dataclass(frozen=True)
class Trainings:
    """The contenders, ready to train; `original` is None without a checkout."""

    ours: OurTraining
    stock: StockTraining
    original: OriginalTraining | None

    def outputs(self, batch: DetectionBatch, autocast: bool = False) -> dict[str, Outputs]:
        """Contender → loss and number of trainable parameters, without autocast also gradients, all in float64.

        In float32, rounding would hide errors: a gradient in the backbone may be .8 % of the largest from its value in
        float64. The original does not train under autocast.
        """
        with without_tf32():
            outputs = {OURS: self.ours.outputs(batch, autocast), STOCK: self.stock.outputs(batch, autocast)}
            if self.original is not None and not autocast:
                outputs[ORIGINAL] = self.original.outputs(batch)
        return outputs


def build_trainings(contenders: Contenders, settings: SpeedSettings) -> Trainings:
    """Gives each model its optimizer."""
    device, original = settings.device, None
    if contenders.original is not None and settings.original is not None:
        original = OriginalTraining(contenders.original, settings.original, device)
    return Trainings(OurTraining(contenders.ours, device), StockTraining(contenders, device), original)


def _normalised(batch: DetectionBatch, device: torch.device) -> tuple[Tensor, Tensor, list[Any]]:
    """Normalised pixels (B, 3, H, W), padding (B, H, W) bool, and labels, on the device."""
    inputs = batch_to_device(batch, device, MEAN, STD)
    # in the order in memory of their loaders
    return inputs["pixel_values"].contiguous(), ~batch["pixel_mask"].to(device, torch.bool), inputs["labels"]


def _as_compared(inputs: Any, autocast: bool) -> Any:
    """The inputs in float64, unless they are for autocast."""
    if autocast:
        return inputs
    if isinstance(inputs, Mapping):
        return {name: _as_compared(value, autocast) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(_as_compared(value, autocast) for value in inputs)
    return inputs.double() if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs


def _loss_and_gradients(
    model: nn.Module, loss_of: Callable[[], Tensor], device: torch.device, autocast: bool = False
) -> Outputs:
    model.eval()
    model.zero_grad()
    if not autocast:
        model.double()
        torch.set_default_dtype(torch.float64)  # of tensors that stock makes on the way
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = loss_of()
        loss.backward()
        outputs: dict[str, Tensor | float] = {"loss": loss.detach()}
        for name, ends in _GRADIENTS.items():
            gradient = _parameter(model, ends).grad
            if gradient is not None and not autocast:  # gradients in bfloat16 show its rounding only
                outputs[name] = gradient.clone()
    finally:  # what is measured next has the weights as they were: each float32 is a float64
        torch.set_default_dtype(torch.float32)
        model.zero_grad()
        model.float()
    trainable = (parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {**outputs, "the number of trainable parameters": float(sum(trainable))}


def _parameter(model: nn.Module, ends: Sequence[str]) -> nn.Parameter:
    return next(parameter for name, parameter in model.named_parameters() if name.endswith(tuple(ends)))
