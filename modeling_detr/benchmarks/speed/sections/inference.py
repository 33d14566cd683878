"""The forward pass of images without padding, in the forms in which models are run."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from modeling_detr.benchmarks.speed.agreement import check_agreement, without_tf32
from modeling_detr.benchmarks.speed.contenders import build_contenders, coco_config
from modeling_detr.benchmarks.speed.generated_images import MEAN, STD, random_batch
from modeling_detr.benchmarks.speed.inference_forms import FORMS, Form, Forwards
from modeling_detr.benchmarks.speed.measurement import TIME, Measurement
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.image_processing_detr import batch_to_device


class InferenceCase(NamedTuple):
    """A batch of images of one size."""

    images: int
    height: int
    width: int


CASES = (InferenceCase(1, 480, 640), InferenceCase(1, 800, 1066), InferenceCase(4, 480, 640))
QUICK_CASES = (InferenceCase(1, 480, 640), InferenceCase(2, 480, 640))
_CASES_OF_SLOW_FORMS = 2  # compiled for each
NOTES = (
    "Measured as a user runs the models: in evaluation mode under torch.inference_mode, stock with sdpa attention; "
    "from normalised pixels on the device to logits and boxes.",
    "'dtype auto' is the precision in which `detr predict` and `detr evaluate` run a model on this device; the others "
    "run in float32, as they do unless a user changes it.",
    "'torch.compile' is applied to this package's model and stock's, not to the original's. Exported models are this "
    "package's in float32, on the CPU, with the runtime's own number of threads, beside the others as they are.",
)


def measure(
    settings: SpeedSettings,
    config: DetrConfig | None = None,
    cases: Sequence[InferenceCase] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> Iterator[Measurement]:
    """Measures the forward pass in each form, at each size."""
    config = config or coco_config()
    contenders = build_contenders(config, settings)
    cases = cases or (QUICK_CASES if settings.quick else CASES)
    for name, form in (FORMS if forms is None else forms).items():
        if missing := form.missing(settings):
            settings.skip(f"{name}: {missing}")
            continue
        forwards: Forwards = {}
        for case in cases[:_CASES_OF_SLOW_FORMS] if form.takes_minutes else cases:
            work = f"{config.backbone}, batch {case.images}, {case.width}x{case.height}, {name}"
            batch = random_batch([(case.height, case.width)] * case.images, 1, config.num_classes)
            pixels = batch_to_device(batch, settings.device, MEAN, STD)["pixel_values"].contiguous()
            try:
                forwards = forwards or form.prepare(contenders, settings)
                with without_tf32():
                    outputs = {key: forward(pixels) for key, forward in forwards.items()}
            except Exception as error:  # compilers and exporters raise whatever a machine or a model leads to
                if not form.takes_minutes:
                    raise
                settings.skip(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
                break
            differences = check_agreement(work, outputs, form.tolerance)
            works: dict[str, Work] = {key: partial(forward, pixels) for key, forward in forwards.items()}
            samples = settings.time(works, warm_up=settings.device.type != "cpu")
            yield Measurement(work, TIME, samples, differences)
