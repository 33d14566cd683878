"""A run of `detr predict`: images → batches → model → outputs, with a journal from which an interrupted run goes on.

Several processes, started by Accelerate, share the images.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from modeling_detr.errors_detr import printable
from modeling_detr.output_errors import explained_output
from modeling_detr.predicting.detector import Detector
from modeling_detr.predicting.image_pass import ImagePass, described_failure
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import Entry, Journal
from modeling_detr.predicting.outputs import OUTPUTS, Output
from modeling_detr.predicting.result import Prediction
from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.predicting.tiles import Tiling


@dataclass(frozen=True)
class FinishedRun:
    """What a run has done.

    Attributes:
        images: Number of images with predictions.
        found: Class → number of its objects or segments.
        unreadable: Path or URL → reason, of the images that could not be read.
    """

    images: int
    found: Counter[str]
    unreadable: Mapping[str, str]


class PredictionRun:
    """Predicts for many images.

    Args:
        detector: The model.
        rules: Which predictions count.
        images: The images.
        outputs: What is written, by name.
        journal: What is done already, and where progress is kept.
        batch_size: Images of equal size, or tiles, that are computed at once.
        tiling: How images are divided into tiles; None: not at all.
        num_workers: Processes that read and prepare the images; 0: this one.
    """

    def __init__(
        self,
        detector: Detector,
        rules: ScoreRules,
        images: Sequence[InputImage],
        outputs: Mapping[str, Output],
        journal: Journal,
        *,
        batch_size: int = 1,
        tiling: Tiling | None = None,
        num_workers: int = 0,
    ) -> None:
        self.detector, self.rules, self.images = detector, rules, images
        self.outputs, self.journal = outputs, journal
        self.image_pass = ImagePass(detector, rules, batch_size, tiling, num_workers)
        self.needs_pixels = any(name in OUTPUTS and OUTPUTS[name].needs_pixels for name in outputs)

    def open(self, settings: Mapping[str, Any], processes: PartialState | None = None) -> int:
        """Starts the run, or continues it where it was interrupted; returns the number of images that are done.

        Args:
            settings: What decides the predictions; a run continues with the same only.
            processes: The processes that share the images; None: one.

        Raises:
            OutputError: Another run is in the folder, or it cannot be written.
        """
        with nullcontext() if processes is None else processes.main_process_first():
            is_main = processes is None or processes.is_main_process
            self.journal.open(settings, is_main=is_main)
            if is_main:
                self._remove_outdated()
        return sum(map(self._is_done, self.images))

    def predict(self, processes: PartialState | None = None) -> None:
        """Predicts for the images of this process that are not done; shows a bar in a terminal. The run is open.

        Args:
            processes: The processes that share the images; None: one.

        Raises:
            OutputError: Something cannot be written.
            LoaderError: A loader process was killed.
        """
        count = 1 if processes is None else processes.num_processes
        share = range(0 if processes is None else processes.process_index, len(self.images), count)
        # Shares of what is left could overlap or leave gaps: each process sees another state of the journal
        own = [index for index in share if not self._is_done(self.images[index])]
        is_main = processes is None or processes.is_main_process
        try:
            with tqdm(
                total=len(self.images),
                initial=min((len(share) - len(own)) * count, len(self.images)),
                desc="predict",
                unit="image",
                dynamic_ncols=True,
                disable=None if is_main else True,  # None: disabled unless the output is a terminal
            ) as bar:
                for index, predicted in self.image_pass.predictions(self.images, own, keep_pixels=self.needs_pixels):
                    self._write(self.images[index], predicted)
                    bar.update(min(count, len(self.images) - int(bar.n)))
        finally:
            self.journal.flush()

    def finish(self) -> FinishedRun:
        """Writes what is about all images, once all processes are done, and counts."""
        self.journal.read()
        for output in self.outputs.values():
            output.finish(self.entries)
        images, found = 0, Counter[str]()
        for entry in self.entries():
            images += 1
            found.update(one["name"] for one in entry["segments" if self.detector.is_panoptic else "detections"])
        return FinishedRun(images, found, self.journal.failures([image.source for image in self.images]))

    def entries(self) -> Iterator[Entry]:
        """The entries of the images that are done, in the order of the images."""
        return self.journal.entries([image.source for image in self.images])

    def _is_done(self, image: InputImage) -> bool:
        return self.journal.is_done(image.source, image.state())

    def _remove_outdated(self) -> None:
        """Removes files of images that have changed, have got another name or are gone since they were predicted."""
        states = {image.source: image.state() for image in self.images}
        known = self.journal.images
        outdated = [name for name in known if not self.journal.is_done(name, states.get(name, ()))]
        if not outdated:
            return
        folder = self.journal.folder.parent.resolve()
        kept = {*self._files_of({*known}.difference(outdated))}
        for file in {*self._files_of(outdated)} - kept:
            place = (folder / file).resolve()
            if place.is_relative_to(folder):
                with explained_output(place):
                    place.unlink(missing_ok=True)

    def _files_of(self, images: Iterable[str]) -> Iterator[str]:
        for entry in self.journal.entries([*images]):
            for output in self.outputs.values():
                yield from output.files_of(entry)

    def _write(self, image: InputImage, predicted: Prediction | str) -> None:
        """Writes what is about an image: its prediction, or why it could not be read."""
        if isinstance(predicted, str):
            tqdm.write(printable(described_failure(image.source, predicted)), file=sys.stderr)
            self.journal.add({"image": image.source, "error": predicted})
            return
        content = predicted.to_dict()
        written: dict[str, Any] = {}
        for output in self.outputs.values():
            written |= output.add(image, predicted) or {}
        found: dict[str, Any] = {key: content.pop(key) for key in ("detections", "segments") if key in content}
        self.journal.add({"image": image.source, **content, **written, **found}, image.state())
