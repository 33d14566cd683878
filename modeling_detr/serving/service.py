"""A model that answers requests: what is accepted, prepared, computed and counted."""

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import Request
from PIL import Image
from starlette.requests import ClientDisconnect

from modeling_detr.errors_detr import DetrError
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.predicting import Detector
from modeling_detr.predicting.score_rules import BEST, ScoreRules, Threshold, listed_names
from modeling_detr.prediction import task_of
from modeling_detr.serving.answer import answer_as_json
from modeling_detr.serving.batcher import Batcher
from modeling_detr.serving.body import BodyReader, Classes, Upload, stopping
from modeling_detr.serving.images import PreparedImage, SentImage, prepare_image
from modeling_detr.serving.limits import Limits
from modeling_detr.serving.metrics import Metrics
from modeling_detr.serving.refusal import CLIENT_GONE, Refusal


WARM_UP_SIZE = (480, 640)
_MOST_PREPARING = 4  # images that are decoded at a time
_LONGEST_WAIT = 60  # seconds that a client is told to wait


class Service:
    """A model that answers requests.

    Args:
        detector: The model.
        limits: What is accepted.
        batch_size: Images that are computed at once, at most.
        batch_wait: Seconds that an image waits for others of its size.
        warm_up_size: (height, width) of the image that the model predicts for before it is ready.

    Attributes:
        is_ready: Whether the model has predicted for an image.
        is_stopping: Whether new requests are refused.
        failure: Why the model cannot predict at all; None if it can.
        active: Number of requests for predictions that were not refused and are not answered yet.
    """

    def __init__(
        self,
        detector: Detector,
        limits: Limits | None = None,
        *,
        batch_size: int = 8,
        batch_wait: float = 0.005,
        warm_up_size: tuple[int, int] = WARM_UP_SIZE,
    ) -> None:
        self.detector, self.limits = detector, limits or Limits()
        self.warm_up_size = warm_up_size
        self.metrics = Metrics()
        self.batcher = Batcher(detector, batch_size, batch_wait, self.metrics)
        self.is_ready = self.is_stopping = False
        self.failure: Exception | None = None
        self.active = 0
        self._waiting = 0
        self._bodies = BodyReader(self.limits)
        self._pool = ThreadPoolExecutor(min(_MOST_PREPARING, os.cpu_count() or 1), "prepare")
        self.metrics.follow_queue(lambda: self._waiting)

    async def run(self) -> None:
        """Predicts for an image, then for those of clients, until it is cancelled."""
        try:
            pixels = to_rgb(Image.new("RGB", self.warm_up_size[::-1], (127, 127, 127)))
            await self.batcher.warm_up(PreparedImage(dict(self.detector.processor(pixels)), self.warm_up_size))
            self.is_ready = True
            await self.batcher.run()
        except Exception as error:  # no later request would end better
            self.failure, self.is_stopping = error, True

    def stop(self) -> None:
        """Refuses new requests and those that have not been received yet; what was accepted is still answered."""
        self.is_stopping = True
        self._bodies.stop()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.batcher.close()

    def description(self) -> dict[str, Any]:
        """The model, for clients."""
        return {
            "model": self.detector.source,
            "task": task_of(self.detector.model),
            "classes": list(self.detector.class_names.values()),
            "device": str(self.detector.model.device),
            "dtype": self.detector.dtype,
        }

    def health(self) -> tuple[bool, str]:
        """Whether requests are answered, and a word for it."""
        if self.is_stopping:
            return False, "stopping"
        return self.is_ready, "ready" if self.is_ready else "starting"

    async def predict(self, request: Request, threshold: str | None, classes: Sequence[str] | None) -> bytes:
        """Answers a request.

        Args:
            request: The request, whose body is not read yet.
            threshold: The threshold in its address, used if the body has none.
            classes: The classes in its address, used if the body has none.

        Returns:
            The predictions as JSON.

        Raises:
            Refusal: The request is refused.
        """
        started = asyncio.get_running_loop().time()
        self._admit(0)
        self.active += 1
        try:
            return await self._predict(request, threshold, classes, started)
        finally:
            self.active -= 1

    async def _predict(
        self, request: Request, threshold: str | None, classes: Sequence[str] | None, started: float
    ) -> bytes:
        try:
            upload, size = await self._bodies.read(request)
        except ClientDisconnect as error:
            raise _client_gone() from error
        try:
            rules = await self._rules(upload, threshold, classes)
            self._admit(len(upload.images))
            self._waiting += len(upload.images)
            try:
                content = await self._within_time(request, self._answer(upload.images, rules, started))
            finally:
                self._waiting -= len(upload.images)
        finally:
            self._bodies.release(size)
        self.metrics.note_predictions(len(upload.images), asyncio.get_running_loop().time() - started)
        return content

    def _admit(self, images: int) -> None:
        """Refuses a request of so many images if there is no room for them."""
        if self.is_stopping:
            raise stopping()
        if self._waiting + max(1, images) > self.limits.queue_size:
            problem = f"is busy: {self._waiting} images are waiting, of at most {self.limits.queue_size}"
            raise Refusal(
                503, "the server", problem, "send the request again later", retry_after=self._seconds_to_wait()
            )

    def _seconds_to_wait(self) -> int:
        return min(_LONGEST_WAIT, max(1, math.ceil(self._waiting * self.batcher.seconds_per_image)))

    async def _rules(self, upload: Upload, threshold: str | None, classes: Sequence[str] | None) -> ScoreRules:
        """Which predictions count; values in the body go before those in the address."""
        chosen = _threshold(upload.threshold if upload.threshold is not None else threshold)
        names = _listed(upload.classes if upload.classes is not None else classes)
        if chosen == BEST:  # reads a file, which may be on the Hub
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._rules_of, chosen, names)
        return self._rules_of(chosen, names)

    def _rules_of(self, threshold: Threshold | None, classes: Sequence[str] | None) -> ScoreRules:
        try:
            return ScoreRules.of(
                self.detector.source,
                self.detector.model.config.class_names,
                threshold=threshold,
                classes=classes,
                is_panoptic=self.detector.is_panoptic,
            )
        except (DetrError, OSError) as error:
            where, problem = (
                (error.where, error.problem) if isinstance(error, DetrError) else ("threshold", str(error))
            )
            remedy = error.remedy_with_settings() if isinstance(error, DetrError) else ""
            raise Refusal(422, where, problem, remedy) from error

    async def _within_time(self, request: Request, work: Any) -> bytes:
        """The result of `work`, unless it takes too long or the client goes away; then it is cancelled."""
        task: asyncio.Task[bytes] = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnection(request))
        try:
            async with asyncio.timeout(self.limits.timeout):
                await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _client_gone()
            return task.result()
        except TimeoutError as error:
            problem = f"was not answered within {self.limits.timeout:g} seconds"
            remedy = "send it again later, or start the server with a larger --timeout"
            raise Refusal(503, "the request", problem, remedy, retry_after=self._seconds_to_wait()) from error
        finally:
            task.cancel()
            gone.cancel()

    async def _answer(self, images: Sequence[SentImage], rules: ScoreRules, started: float) -> bytes:
        loop = asyncio.get_running_loop()
        received = loop.time() - started
        prepare = partial(prepare_image, processor=self.detector.processor, max_pixels=self.limits.max_pixels)
        prepared = await asyncio.gather(*(loop.run_in_executor(self._pool, prepare, image) for image in images))
        ready = loop.time() - started
        try:
            computed = await asyncio.gather(*(self.batcher.compute(image, rules) for image in prepared))
        except DetrError as error:  # such as an image larger than an exported model takes
            raise Refusal(422, error.where, error.problem, error.remedy_with_settings()) from error
        seconds = {
            "receive": received,
            "prepare": ready - received,
            "wait": max(one.waited for one in computed),
            "model": max(one.seconds for one in computed),
        }
        predictions = [one.prediction for one in computed]
        return await loop.run_in_executor(self._pool, answer_as_json, self.detector.source, predictions, seconds)


def _threshold(sent: float | str | Mapping[str, float] | None) -> Threshold | None:
    """The threshold that a client has sent, checked."""
    if sent is None:
        return None
    if sent == BEST:
        return "best"
    if isinstance(sent, Mapping):
        return {name: _score(value) for name, value in sent.items()}
    return _score(sent)


def _score(sent: float | str) -> float:
    try:
        value = float(sent)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise Refusal(422, "threshold", f"got '{str(sent)[:40]}'", f"expected a score from 0 to 1, or {BEST}")
    return value


def _listed(sent: Classes | Sequence[str] | None) -> list[str] | None:
    """The names of classes: a list in JSON as it is, texts cut at commas."""
    if sent is None:
        return None
    if isinstance(sent, str):
        return listed_names(sent)
    return list(sent)


def _client_gone() -> Refusal:
    return Refusal(CLIENT_GONE, "the client", "has closed the connection")


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
