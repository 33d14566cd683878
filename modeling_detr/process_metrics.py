"""What a process reports to Prometheus, in its text format; needs the package prometheus-client."""

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


class ProcessMetrics:
    """Memory, CPU time and open files of this process, to which subclasses add.

    Attributes:
        registry: What is reported.
        kind: The media type of the text.
    """

    kind = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def to_text(self) -> bytes:
        """All values, as they are now."""
        return generate_latest(self.registry)
