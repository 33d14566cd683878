"""How time and memory grow with images, batches, queries, objects, classes and datasets.

To add work, write a function in `growing_works.py` and add a `Series` to `SERIES`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from modeling_detr.benchmarks.speed import growing_works as works
from modeling_detr.benchmarks.speed.measurement import MEMORY, OURS, TIME, Growth, Measurement, Quantity
from modeling_detr.benchmarks.speed.peak_memory import can_measure, peak_memory
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.benchmarks.speed.timing import Work


@dataclass(frozen=True)
class Series:
    """The same work at several sizes.

    Attributes:
        work: What is done.
        axis: What grows.
        sizes: How many there are, ascending.
        prepare: Prepares the work of a size.
        quick: The sizes with `--quick`; empty: all.
        time: The largest exponent of time that is expected: 1 for time in proportion to the size, 2 for its square.
        memory: That of peak memory.
        reason: Why.
        on_host: Whether the work is done on the CPU in any case.
    """

    work: str
    axis: str
    sizes: Sequence[int]
    prepare: works.Prepare
    quick: Sequence[int] = ()
    time: float = 1
    memory: float = 1
    reason: str = "all of it is done once for each"
    on_host: bool = False


_QUERIES = (100, 300, 900)
_OBJECTS = (10, 100, 1000)
_CLASSES = (100, 1000, 10_000)
_IMAGES = (12_000, 120_000, 1_200_000)
_QUICK_IMAGES = (6000, 60_000)
_TRAINING_ATTENTION = "attention computes all pairs; with dropout, PyTorch's kernel for CPUs keeps them"
_COSTS = "costs are computed for each pair of an object and a query of its image"

SERIES = (
    Series(
        "training step",
        "pixels of an image",
        (256**2, 512**2, 1024**2, 2048**2),
        works.step_of_pixels,
        quick=(256**2, 768**2),
        time=2,
        memory=2,
        reason=f"convolutions are linear; {_TRAINING_ATTENTION}",
    ),
    Series("training step", "images of a batch", (2, 4, 8, 16), works.step_of_batch, quick=(2, 8)),
    Series("inference", "images of a batch", (2, 4, 8, 16), works.inference_of_batch, quick=(2, 8)),
    Series(
        "encoder layer, inference",
        "tokens",
        (1024, 2048, 4096, 8192),
        works.encoder_of_tokens,
        quick=(1024, 2048),
        time=2,
        reason="attention computes all pairs of tokens, in blocks",
    ),
    Series(
        "encoder layer, training",
        "tokens",
        (1024, 2048, 4096),
        works.encoder_step_of_tokens,
        quick=(1024, 2048),
        time=2,
        memory=2,
        reason=_TRAINING_ATTENTION,
    ),
    Series(
        "decoder layers, training",
        "queries",
        _QUERIES,
        works.decoder_step_of_queries,
        time=2,
        memory=2,
        reason=_TRAINING_ATTENTION,
    ),
    Series("matching and loss", "queries", _QUERIES, works.loss_of_queries, reason=_COSTS),
    Series(
        "matching and loss",
        "objects of an image",
        _OBJECTS,
        works.loss_of_objects,
        quick=(10, 100, 500),
        time=2,
        reason=f"{_COSTS}; assigning N objects to Q queries takes up to N² Q",
    ),
    Series("matching and loss", "images of a batch", (4, 16, 64), works.loss_of_images),
    Series("matching and loss", "classes", _CLASSES, works.loss_of_classes),
    Series("heads and post-processing", "classes", _CLASSES, works.detections_of_classes),
    Series("augmenting an image", "objects of an image", _OBJECTS, works.sample_of_objects, on_host=True),
    Series("COCO metrics", "images", (100, 1000, 10_000), works.metrics_of_images, quick=(100, 1000), on_host=True),
    Series("COCO metrics", "objects of an image", _OBJECTS, works.metrics_of_objects, on_host=True),
    Series("COCO metrics", "classes", _CLASSES, works.metrics_of_classes, on_host=True),
    Series("reading COCO annotations", "images", _IMAGES, works.reading_of_images, _QUICK_IMAGES, on_host=True),
    Series("planning an epoch", "images", _IMAGES, works.epoch_of_images, _QUICK_IMAGES, on_host=True),
    Series("planning an evaluation", "images", _IMAGES, works.evaluation_of_images, _QUICK_IMAGES, on_host=True),
)
NOTES = (
    "Models are as small as the growth allows: a ResNet-18, a transformer 64 wide, one encoder and two decoder "
    "layers. Steps are forward and backward passes.",
    "The exponent is the slope of cost over size, both logarithmic, between the two largest sizes: 1 is linear, 2 "
    "quadratic. Caches and fixed costs change it by a few tenths; half more than expected is marked.",
    "Memory is the peak of what a piece of work holds beyond what was in use before. On a CPU, it is resident memory "
    "of the process, without what Python keeps of earlier small objects and uses again.",
)


def measure(settings: SpeedSettings, series: Sequence[Series] = SERIES) -> Iterator[Measurement]:
    """Measures time at all sizes of a series in turn, then the peak of memory at each size once."""
    unmeasured: set[str] = set()
    for entry in series:
        sizes = entry.quick if settings.quick and entry.quick else entry.sizes
        prepared = {size: entry.prepare(settings, size) for size in sizes}
        prepared[min(sizes)]()  # what is imported or built at the first call
        for size, seconds in _seconds(entry, prepared, settings).items():
            yield _measurement(entry, size, TIME, entry.time, seconds)
        device = torch.device("cpu") if entry.on_host else settings.device
        if not can_measure(device):
            unmeasured.add(device.type)
        else:
            for size, work in prepared.items():
                yield _measurement(entry, size, MEMORY, entry.memory, [float(peak_memory(work, device))])
    for kind in sorted(unmeasured):
        settings.skip(f"memory on '{kind}': it is measured on GPUs of CUDA, and on the CPU under Linux")


def _seconds(entry: Series, prepared: Mapping[int, Work], settings: SpeedSettings) -> dict[int, list[float]]:
    time = settings.time_on_host if entry.on_host else settings.time
    samples = time({str(size): work for size, work in prepared.items()}, warm_up=False)
    return {size: samples[str(size)] for size in prepared}


def _measurement(
    entry: Series, size: int, quantity: Quantity, expected: float, samples: Sequence[float]
) -> Measurement:
    growth = Growth(entry.work, entry.axis, size, expected, entry.reason)
    name = f"{entry.work}, {size:,} {entry.axis}{', peak memory' if quantity == MEMORY else ''}"
    return Measurement(name, quantity, {OURS: samples}, growth=growth)
