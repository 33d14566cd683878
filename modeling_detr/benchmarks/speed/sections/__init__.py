"""The sections of `detr benchmark speed`, one file each. To add one, write a file and add a line to `SECTIONS`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from modeling_detr.benchmarks.speed.measurement import Measurement, SectionResult
from modeling_detr.benchmarks.speed.sections import (
    epoch,
    evaluation,
    growth,
    inference,
    loader,
    loss,
    padding,
    startup,
    step,
)
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.errors_detr import BenchmarkError, did_you_mean


class Section(NamedTuple):
    """A section.

    Attributes:
        summary: What it measures, for the help.
        measure: Yields the measurements. A `BenchmarkError` ends the section.
        notes: What a reader has to know about the contenders, one sentence each.
    """

    summary: str
    measure: Callable[[SpeedSettings], Iterator[Measurement]]
    notes: Sequence[str] = ()


SECTIONS: dict[str, Section] = {
    "loss": Section("matcher and loss, forward and backward", loss.measure, loss.NOTES),
    "loader": Section("reading and augmenting JPEG files", loader.measure, loader.NOTES),
    "padding": Section("share of padding in the batches", padding.measure, padding.NOTES),
    "step": Section("optimizer step", step.measure, step.NOTES),
    "epoch": Section("training from JPEG files", epoch.measure, epoch.NOTES),
    "inference": Section("forward pass of images", inference.measure, inference.NOTES),
    "evaluation": Section("COCO metrics", evaluation.measure, evaluation.NOTES),
    "growth": Section("time and memory as the work grows", growth.measure, growth.NOTES),
    "startup": Section("imports and `detr --help`", startup.measure, startup.NOTES),
}


def parse_sections(text: str | None) -> list[str]:
    """The names of sections in a list such as `loss,step`, in their order; None: all.

    Raises:
        BenchmarkError: A section does not exist.
    """
    if text is None:
        return [*SECTIONS]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SECTIONS:
            raise BenchmarkError("--sections", f"unknown section '{name}'", did_you_mean(name, SECTIONS))
    if not names:
        raise BenchmarkError("--sections", "names no section", f"choose from {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def run_sections(names: Sequence[str], settings: SpeedSettings) -> Iterator[SectionResult]:
    """Measures sections one after the other. One that would compare different results is refused, with the reason."""
    sections: Mapping[str, Section] = SECTIONS
    for name in names:
        started = time.perf_counter()
        measurements: list[Measurement] = []
        refused = ""
        skipped: list[str] = []
        try:
            for measurement in sections[name].measure(replace(settings, skip=skipped.append)):
                measurements.append(measurement)
                settings.report(f"{name}: {measurement.work}")
        except BenchmarkError as error:
            refused = error.to_text()
        except RuntimeError as error:  # of PyTorch, such as too little memory; the other sections may fit
            refused = f"{type(error).__name__}: {error}"
        yield SectionResult(name, measurements, sections[name].notes, refused, skipped, time.perf_counter() - started)
