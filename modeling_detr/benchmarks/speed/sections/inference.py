"""The forward pass of images without padding, in the forms in which models are run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_detr.benchmarks.speed.agreement import Outputs, check_agreement, without_tf32
from modeling_detr.benchmarks.speed.contenders import Contenders, build_contenders, coco_config
from modeling_detr.benchmarks.speed.generated_images import MEAN, STD, random_batch
from modeling_detr.benchmarks.speed.measurement import ORIGINAL, OURS, STOCK, TIME, Measurement
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.precision import compute_dtype


class InferenceCase(NamedTuple):
    """A batch of images of one size."""

    images: int
    height: int
    width: int


class Form(NamedTuple):
    """A form in which the contenders are run.

    Attributes:
        context: Makes the context of a forward pass of a contender on a device.
        tolerance: The largest relative difference of logits and boxes.
    """

    context: Callable[[str, torch.device], AbstractContextManager[object]]
    tolerance: float


CASES = (InferenceCase(1, 480, 640), InferenceCase(1, 800, 1066), InferenceCase(4, 480, 640))
QUICK_CASES = (InferenceCase(1, 480, 640), InferenceCase(2, 480, 640))
FORMS = {
    "float32": Form(lambda _contender, _device: nullcontext(), 1e-4),
    "bfloat16 autocast": Form(lambda _contender, device: torch.autocast(device.type, torch.bfloat16), 5e-2),
    "dtype auto beside float32": Form(lambda contender, device: _auto(contender, device), 5e-2),
}
NOTES = (
    "Measured as a user runs the models: in evaluation mode under torch.inference_mode, stock with sdpa attention; "
    "from normalised pixels on the device to logits and boxes.",
    "'dtype auto' is the precision in which `detr predict` and `detr evaluate` run a model on this device; the others "
    "run in float32, as they do unless a user changes it.",
)


def measure(
    settings: SpeedSettings, config: DetrConfig | None = None, cases: Sequence[InferenceCase] | None = None
) -> Iterator[Measurement]:
    """Measures the forward pass in each form, at each size."""
    config = config or coco_config()
    contenders = build_contenders(config, settings)
    for case in cases or (QUICK_CASES if settings.quick else CASES):
        batch = random_batch([(case.height, case.width)] * case.images, 1, config.num_classes)
        pixels = batch_to_device(batch, settings.device, MEAN, STD)["pixel_values"].contiguous()
        for name, form in FORMS.items():
            work = f"{config.backbone}, batch {case.images}, {case.width}x{case.height}, {name}"
            works = _works(contenders, settings, pixels, form)
            with without_tf32():
                outputs = {key: item() for key, item in works.items()}
            differences = check_agreement(work, outputs, form.tolerance)
            samples = settings.time(works, warm_up=settings.device.type != "cpu")
            yield Measurement(work, TIME, samples, differences)


def _works(
    contenders: Contenders, settings: SpeedSettings, pixels: Tensor, form: Form
) -> dict[str, Callable[[], Outputs]]:
    models: dict[str, Callable[[], Outputs]] = {
        OURS: lambda: _named(contenders.ours(pixels)),
        STOCK: lambda: _named(contenders.stock(pixels)),
    }
    if contenders.original is not None and settings.original is not None:
        model = contenders.original.model
        images = settings.original.misc.NestedTensor(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool))

        def original() -> Outputs:
            outputs = model(images)
            return {"logits": outputs["pred_logits"], "boxes": outputs["pred_boxes"]}

        models[ORIGINAL] = original
    return {
        name: partial(_forward, forward, partial(form.context, name, settings.device))
        for name, forward in models.items()
    }


def _forward(forward: Callable[[], Outputs], context: Callable[[], AbstractContextManager[object]]) -> Outputs:
    with torch.inference_mode(), context():
        return forward()


def _auto(contender: str, device: torch.device) -> AbstractContextManager[object]:
    """The precision in which `detr predict` and the pipeline run a model, beside float32 of the others."""
    dtype = compute_dtype("auto", device) if contender == OURS else torch.float32
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _named(output: object) -> Outputs:
    return {"logits": output.logits, "boxes": output.pred_boxes}  # type: ignore[attr-defined]
