"""Images of several requests, computed together by one thread.

A batch has images of one size, since padding changes predictions. An image waits until its batch is full, or for a few
milliseconds, or as long as the model is busy with others.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_detr.predicting import Detector, Prediction
from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.serving.images import PreparedImage
from modeling_detr.serving.metrics import Metrics


_WEIGHT = 0.2  # of the latest batch in the mean time per image

_Key = tuple[object, ...]


class Computed(NamedTuple):
    """A prediction and what it took: seconds until the batch started, and seconds of the batch."""

    prediction: Prediction
    waited: float
    seconds: float


@dataclass(eq=False)
class _Job:
    image: PreparedImage
    rules: ScoreRules
    arrived: float
    computed: asyncio.Future[Computed]


class Batcher:
    """Computes images in batches.

    Args:
        detector: The model.
        batch_size: Images that are computed at once, at most.
        wait: Seconds that an image waits for others of its size while the model is idle.
        metrics: Where batches are counted.
    """

    def __init__(self, detector: Detector, batch_size: int, wait: float, metrics: Metrics) -> None:
        self.detector, self.batch_size, self.wait, self.metrics = detector, batch_size, wait, metrics
        self.seconds_per_image = 0.0
        self._jobs: dict[_Key, deque[_Job]] = {}
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")

    async def compute(self, image: PreparedImage, rules: ScoreRules) -> Computed:
        """Predicts for an image; if this is cancelled before its batch starts, the image is left out.

        Args:
            image: The image.
            rules: Which predictions count.

        Raises:
            Exception: Whatever the model raises.
        """
        loop = asyncio.get_running_loop()
        job = _Job(image, rules, loop.time(), loop.create_future())
        # the threshold of panoptic segments decides which queries compete for the pixels, so it belongs to the batch
        key = (image.shape, rules.lowest if self.detector.is_panoptic else None)
        self._jobs.setdefault(key, deque()).append(job)
        self._arrived.set()
        return await job.computed

    async def warm_up(self, image: PreparedImage) -> None:
        """Predicts for an image before those of clients, whose first one would take longer."""
        loop = asyncio.get_running_loop()
        rules = ScoreRules(torch.zeros(len(self.detector.class_names), dtype=torch.float64))
        job = _Job(image, rules, loop.time(), loop.create_future())
        (result,) = await loop.run_in_executor(self._thread, self._predict, [job])
        if isinstance(result, Exception):
            raise result

    async def run(self) -> None:
        """Computes what arrives, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            jobs = await self._next_batch()
            started = loop.time()
            results = await loop.run_in_executor(self._thread, self._predict, jobs)
            seconds = loop.time() - started
            self.metrics.note_batch(len(jobs), seconds)
            self._note_pace(seconds / len(jobs))
            for job, result in zip(jobs, results, strict=True):
                if job.computed.done():  # the client has gone
                    continue
                if isinstance(result, Exception):
                    job.computed.set_exception(result)
                else:
                    job.computed.set_result(Computed(result, started - job.arrived, seconds))
            del jobs, results, job, result  # not kept until the next images arrive

    def close(self) -> None:
        """Ends the thread, once its batch is done."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _next_batch(self) -> list[_Job]:
        """Waits for images, and then until a batch is full or its oldest image has waited long enough."""
        loop = asyncio.get_running_loop()
        while True:
            self._arrived.clear()
            self._drop_cancelled()
            pause = None
            if self._jobs:
                oldest = min(self._jobs, key=lambda key: self._jobs[key][0].arrived)
                pause = self._jobs[oldest][0].arrived + self.wait - loop.time()
                full = next((key for key, jobs in self._jobs.items() if len(jobs) >= self.batch_size), None)
                ready = oldest if pause <= 0 else full
                if ready is not None:
                    return self._take(ready)
            try:
                async with asyncio.timeout(pause):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    def _drop_cancelled(self) -> None:
        waiting = {key: deque(job for job in jobs if not job.computed.done()) for key, jobs in self._jobs.items()}
        self._jobs = {key: jobs for key, jobs in waiting.items() if jobs}

    def _take(self, key: _Key) -> list[_Job]:
        jobs = self._jobs[key]
        taken = [jobs.popleft() for _ in range(min(self.batch_size, len(jobs)))]
        if not jobs:
            del self._jobs[key]
        return taken

    def _note_pace(self, seconds: float) -> None:
        earlier = self.seconds_per_image
        self.seconds_per_image = seconds if earlier == 0 else (1 - _WEIGHT) * earlier + _WEIGHT * seconds

    # In the model's thread

    def _predict(self, jobs: Sequence[_Job]) -> list[Prediction | Exception]:
        """The prediction of each image, or why there is none; an image that fails does not cost the others theirs."""
        try:
            return [*self._predict_together(jobs)]
        except Exception as error:
            return [error] if len(jobs) == 1 else [self._predict([job])[0] for job in jobs]

    def _predict_together(self, jobs: Sequence[_Job]) -> list[Prediction]:
        images = [job.image for job in jobs]
        sizes = [image.size for image in images]
        names = self.detector.class_names
        results = self.detector.predict_batch(_joined(images), sizes, _lowest([job.rules for job in jobs]))
        apply = ScoreRules.of_segments if self.detector.is_panoptic else ScoreRules.of_objects
        return [
            Prediction(apply(job.rules, result), names, size)
            for job, result, size in zip(jobs, results, sizes, strict=True)
        ]


def _joined(images: Sequence[PreparedImage]) -> dict[str, Tensor]:
    return {name: torch.cat([image.inputs[name] for image in images]) for name in images[0].inputs}


def _lowest(rules: Sequence[ScoreRules]) -> ScoreRules:
    """Rules by which everything counts that counts for one of several."""
    lowest = min(1.0, *(one.lowest for one in rules))
    return ScoreRules(torch.full_like(rules[0].by_label, lowest))
