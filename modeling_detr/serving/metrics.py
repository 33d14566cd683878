"""What the server counts, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from modeling_detr.process_metrics import ProcessMetrics


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics(ProcessMetrics):
    """The counters of one server, with memory and CPU time of its process."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self._requests = Counter(
            "detr_requests", "Requests, by address and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "detr_predict_seconds", "From a request to its predictions.", buckets=_SECONDS, registry=registry
        )
        self._images = Counter("detr_images", "Images with predictions.", registry=registry)
        self._queue = Gauge("detr_queue_images", "Images that are accepted and not answered yet.", registry=registry)
        self._batches = Histogram(
            "detr_batch_images", "Images that were computed together.", buckets=_BATCHES, registry=registry
        )
        self._model = Histogram("detr_model_seconds", "Of a batch in the model.", buckets=_SECONDS, registry=registry)

    def follow_queue(self, length: Callable[[], int]) -> None:
        """Sets what the length of the queue is read from."""
        self._queue.set_function(lambda: float(length()))

    def note_request(self, path: str, status: int) -> None:
        """Counts a request."""
        self._requests.labels(path, str(status)).inc()

    def note_predictions(self, images: int, seconds: float) -> None:
        """Counts a request that was answered with predictions."""
        self._images.inc(images)
        self._seconds.observe(seconds)

    def note_batch(self, images: int, seconds: float) -> None:
        """Counts a batch."""
        self._batches.observe(images)
        self._model.observe(seconds)
