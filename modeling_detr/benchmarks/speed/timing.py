"""Timing of several contenders in turn, in one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


Work = Callable[[], object]
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Stopwatch:
    """Measures the seconds that a piece of work takes.

    On one thread of a CPU these are seconds of process time, which other processes hardly disturb. With several
    threads, which also burn time while they wait for each other, and on other devices it is the time on the clock,
    until the device has finished.

    Attributes:
        device: Where the work is done.
        threads: The number of threads on the CPU.
    """

    device: torch.device
    threads: int = 1

    @property
    def name(self) -> str:
        """What is measured."""
        return "CPU time of the process" if self._is_process_time else "time on the clock"

    @property
    def _is_process_time(self) -> bool:
        return self.device.type == "cpu" and self.threads == 1

    def __call__(self, work: Work) -> float:
        """Does the work, and returns its seconds."""
        clock = time.process_time if self._is_process_time else time.perf_counter
        self.synchronize()
        started = clock()
        work()
        self.synchronize()
        return clock() - started

    def synchronize(self) -> None:
        """Waits until the device has finished."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize(self.device)


def time_in_turn(
    works: Mapping[str, Work],
    stopwatch: Callable[[Work], float],
    rounds: int,
    seconds: float,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Measures all contenders in each round, a different one first each time.

    Args:
        works: Contender → its work.
        stopwatch: Does the work and returns its seconds.
        rounds: The number of rounds.
        seconds: No round starts after this time, unless there are fewer than three.
        warm_up: Whether everything is done once before.

    Returns:
        Contender → its seconds in each round.
    """
    names = [*works]
    if warm_up:
        for work in works.values():
            stopwatch(work)
    samples: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name in _rotated(names, number):
            samples[name].append(stopwatch(works[name]))
    return samples


def _rotated(names: Sequence[str], number: int) -> list[str]:
    first = number % max(1, len(names))
    return [*names[first:], *names[:first]]
