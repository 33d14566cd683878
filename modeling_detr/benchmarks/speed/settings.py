"""The settings of a benchmark run, which all sections get."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modeling_detr.benchmarks.speed.original_checkout import OriginalCheckout
from modeling_detr.benchmarks.speed.timing import Stopwatch, Work, time_in_turn


@dataclass(frozen=True)
class SpeedSettings:
    """The settings of a run.

    Attributes:
        folder: A folder for generated images and converted models, which is removed afterwards.
        device: Where models run.
        threads: Threads of PyTorch on the CPU.
        quick: Whether to measure less work, and in fewer rounds.
        rounds: Largest number of rounds of each measurement.
        seconds: No further round of a measurement starts after this time; there are at least three rounds.
        original: The checkout of the original; None: it is not measured.
        report: Called with a line about the progress.
        skip: Called with what a section leaves out, and why.
    """

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    quick: bool = False
    rounds: int = 9
    seconds: float = 60.0
    original: OriginalCheckout | None = None
    report: Callable[[str], None] = lambda line: None  # noqa: ARG005
    skip: Callable[[str], None] = lambda line: None  # noqa: ARG005

    @property
    def stopwatch(self) -> Stopwatch:
        """The clock of work on the device."""
        return Stopwatch(self.device, self.threads)

    @property
    def host_stopwatch(self) -> Stopwatch:
        """The clock of work that is done on the CPU in any case, by one thread."""
        return Stopwatch(torch.device("cpu"))

    def time(self, works: Mapping[str, Work], warm_up: bool = True) -> dict[str, list[float]]:
        """Measures works on the device in turn; see `time_in_turn`."""
        return time_in_turn(works, self.stopwatch, self.rounds, self.seconds, warm_up)

    def time_on_host(self, works: Mapping[str, Work], warm_up: bool = True) -> dict[str, list[float]]:
        """Measures works on the CPU in turn; see `time_in_turn`."""
        return time_in_turn(works, self.host_stopwatch, self.rounds, self.seconds, warm_up)
