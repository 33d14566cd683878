"""The forms in which a model is run: eager in several precisions, compiled, and exported to other runtimes."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeling_detr.benchmarks.speed.agreement import Outputs
from modeling_detr.benchmarks.speed.contenders import Contenders
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, STOCK
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.deployment.checks import OPTIONS_FOR_TIMING
from modeling_detr.deployment.graph import GraphOptions
from modeling_detr.deployment.targets import TARGETS, ExportSettings
from modeling_detr.precision import compute_dtype, emulates_bfloat16
from modeling_detr.runtimes import open_model


Forward = Callable[[Tensor], Outputs]
"""Normalised pixels (B, 3, H, W) → logits and boxes."""

Forwards = Mapping[str, Forward]
"""Contender → its forward pass."""


@dataclass(frozen=True)
class Form:
    """A form in which the contenders are run.

    Attributes:
        prepare: Returns their forward passes.
        tolerance: The largest relative difference of logits and boxes.
        takes_minutes: Whether preparing takes minutes, so that `--quick` leaves it out.
        packages: Modules that have to be installed.
        extra: The extra of this package that installs them.
        on_cpu_only: Whether it runs on the CPU only.
        in_bfloat16: Whether it computes in bfloat16.
    """

    prepare: Callable[[Contenders, SpeedSettings], Forwards]
    tolerance: float
    takes_minutes: bool = False
    packages: Sequence[str] = ()
    extra: str = ""
    on_cpu_only: bool = False
    in_bfloat16: bool = False

    def missing(self, settings: SpeedSettings) -> str:
        """Why it cannot be measured; empty if it can."""
        if settings.quick and self.takes_minutes:
            return "--quick leaves it out, since compiling or exporting takes minutes"
        if self.on_cpu_only and settings.device.type != "cpu":
            return f"exported models are run on the CPU, not on {settings.device.type}"
        if self.in_bfloat16 and (reason := emulates_bfloat16(settings.device.type)):
            return reason
        absent = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if absent:
            return f"needs {', '.join(absent)}; pip install 'modeling-detr[{self.extra}]'"
        return ""


def _plain(_contender: str, _device: torch.device) -> AbstractContextManager[object]:
    return nullcontext()


def _autocast(_contender: str, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16)


def _auto(contender: str, device: torch.device) -> AbstractContextManager[object]:
    """The precision in which `detr predict` and the pipeline run a model, beside float32 of the others."""
    dtype = compute_dtype("auto", device) if contender == OURS else torch.float32
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _eager(
    contenders: Contenders,
    settings: SpeedSettings,
    context: Callable[[str, torch.device], AbstractContextManager[object]] = _plain,
) -> dict[str, Forward]:
    """The models as they are, in the precision of a context."""
    models: dict[str, Forward] = {OURS: _named_by(contenders.ours), STOCK: _named_by(contenders.stock)}
    if contenders.original is not None and settings.original is not None:
        model, nested_tensor = contenders.original.model, settings.original.misc.NestedTensor

        def original(pixels: Tensor) -> Outputs:
            outputs = model(nested_tensor(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool)))
            return {"logits": outputs["pred_logits"], "boxes": outputs["pred_boxes"]}

        models[ORIGINAL] = original
    return {
        name: partial(_forward, forward, partial(context, name, settings.device)) for name, forward in models.items()
    }


def _forward(forward: Forward, context: Callable[[], AbstractContextManager[object]], pixels: Tensor) -> Outputs:
    with torch.inference_mode(), context():
        return forward(pixels)


def _named_by(model: Callable[[Tensor], Any]) -> Forward:
    def forward(pixels: Tensor) -> Outputs:
        output = model(pixels)
        return {"logits": output.logits, "boxes": output.pred_boxes}

    return forward


def _compiled(contenders: Contenders, settings: SpeedSettings) -> dict[str, Forward]:
    """This package's model and stock's, each compiled as a whole; the original's as it is."""
    torch.compiler.reset()
    compiled = {OURS: torch.compile(contenders.ours), STOCK: torch.compile(contenders.stock)}
    return _eager(contenders, settings) | {
        name: partial(_forward, _named_by(model), nullcontext) for name, model in compiled.items()
    }


def _exported(name: str, contenders: Contenders, settings: SpeedSettings) -> dict[str, Forward]:
    """This package's model exported to a runtime, beside the other models as they are."""
    folder = Path(tempfile.mkdtemp(dir=settings.folder))  # kept, since runtimes may read its files later
    written = TARGETS[name].write(contenders.ours, folder, ExportSettings(GraphOptions(pixel_mask=False)))
    export = {
        "runtime": name,
        "file": written.file,
        "inputs": written.inputs,
        "outputs": written.outputs,
        "runtime_options": {**written.runtime_options, **OPTIONS_FOR_TIMING.get(name, {})},
    }
    run = open_model(folder, export, trust_code=True)

    def forward(pixels: Tensor) -> Outputs:
        outputs = run({"pixel_values": pixels.numpy()})
        return {"logits": torch.as_tensor(outputs["logits"]), "boxes": torch.as_tensor(outputs["pred_boxes"])}

    return {**_eager(contenders, settings), OURS: forward}


FORMS: dict[str, Form] = {
    "float32": Form(_eager, 1e-4),
    "bfloat16 autocast": Form(partial(_eager, context=_autocast), 5e-2, in_bfloat16=True),
    "dtype auto beside float32": Form(partial(_eager, context=_auto), 5e-2),
    **{
        f"{name} beside eager": Form(
            partial(_exported, name), 1e-3, True, target.packages, target.extra, on_cpu_only=True
        )
        for name, target in TARGETS.items()
    },
    "torch.compile": Form(_compiled, 1e-4, takes_minutes=True),
}
