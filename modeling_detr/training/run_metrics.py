"""The values of a run for Prometheus: where it is, its speed, losses and metrics, and what a kill would lose."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from modeling_detr import __version__
from modeling_detr.process_metrics import ProcessMetrics
from modeling_detr.training.engine import StepResult
from modeling_detr.training.memory import peak_gib
from modeling_detr.training.setup import PreparedRun


PREFIX = "detr_train_"


class Described(NamedTuple):
    """A value that is reported.

    Attributes:
        text: What it is.
        label: The name of the label that its values differ in; empty: there is one value.
        is_counter: Whether it only grows; its name then gets `_total`.
    """

    text: str
    label: str = ""
    is_counter: bool = False


# Name without prefix → what it is. A value that is not known yet, or not on this machine, is left out.
VALUES = {
    "step": Described("Optimizer steps taken so far."),
    "last_step": Described("The step at which the run ends, if nothing ends it earlier."),
    "epoch": Described("The current epoch, from 1."),
    "last_epoch": Described("The epoch in which the run ends."),
    "last_step_timestamp_seconds": Described("When the last step ended, in seconds since 1970."),
    "images": Described("Images trained on since this start of the run, by all processes.", is_counter=True),
    "images_per_second": Described("Speed since the last entry of the log, of all processes."),
    "loader_wait_ratio": Described("Share of this time in which a process waited for its images, from 0 to 1."),
    "loader_wait_seconds": Described("Time that each process has waited for its images.", "rank", is_counter=True),
    "loss": Described("Mean since the last entry of the log, by term; `loss` is their weighted sum.", "term"),
    "grad_norm": Described("Norm of the gradient before clipping, mean since the last entry of the log."),
    "learning_rate": Described("Learning rate, by group of parameters.", "group"),
    "metric": Described("Metrics of the last evaluation, such as ap, named as in log.jsonl.", "name"),
    "best_score": Described("Best value of the primary metric so far: AP, mask AP or PQ, by task."),
    "checkpoint_age_seconds": Described("Time since the last checkpoint, or the start: what a kill would lose."),
    "memory_peak_bytes": Described("Peak memory of the main process: of tensors on a GPU, otherwise resident."),
    "device_memory_bytes": Described("Memory of its GPU that the main process has reserved."),
    "device_use_ratio": Described("Share of the last moments in which its GPU was computing, from 0 to 1."),
    "info": Described("Always 1; its labels describe the run."),
}
_RATES = {"learning_rate": "transformer", "backbone_learning_rate": "backbone"}  # of the log → group
_LOGGED = {"images_per_second": "images_per_second", "loader_wait": "loader_wait_ratio", "grad_norm": "grad_norm"}


class RunMetrics(ProcessMetrics):
    """The values of a run, and memory and CPU time of its main process.

    The run notes values in one thread, and any other may read them.

    Args:
        facts: What describes the run, such as its folder.
        checkpoint_age: Returns the seconds since the last checkpoint.
        device: The device of the main process.
    """

    def __init__(self, facts: Mapping[str, str], checkpoint_age: Callable[[], float], device: torch.device) -> None:
        super().__init__()
        self._facts = {**facts, "version": __version__}
        self._now: dict[str, Callable[[], float | None]] = {
            "checkpoint_age_seconds": checkpoint_age,
            "memory_peak_bytes": lambda: peak_gib(device) * 2**30,
            "device_memory_bytes": lambda: _reserved(device),
            "device_use_ratio": lambda: _use(device),
        }
        self._values: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()
        self.registry.register(self)

    @classmethod
    def of(cls, run: PreparedRun, checkpoint_age: Callable[[], float]) -> "RunMetrics":
        """The values of a run that starts or continues."""
        state, device = run.state, run.accelerator.device
        facts = {
            "run": run.recipe.run_dir.resolve().name,
            "task": run.recipe.task,
            "device": device.type,
            "processes": str(run.accelerator.num_processes),
        }
        metrics = cls(facts, checkpoint_age, device)
        metrics.note("step", state.step)
        metrics.note("last_step", run.schedule.total_steps)
        metrics.note("epoch", state.epoch + 1)
        metrics.note("last_epoch", run.schedule.epochs)
        metrics.note_evaluation({}, state.best_ap)
        return metrics

    def note(self, name: str, value: float, label: str = "") -> None:
        """Sets a value.

        Args:
            name: A key of `VALUES`.
            value: The value.
            label: The value of its label.
        """
        with self._lock:
            self._values.setdefault(name, {})[label] = value

    def add(self, name: str, amount: float, label: str = "") -> None:
        """Increases a value."""
        with self._lock:
            values = self._values.setdefault(name, {})
            values[label] = values.get(label, 0.0) + amount

    def note_step(self, epoch: int, step: int, result: StepResult) -> None:
        """Notes a step; `epoch` counts from 0."""
        self.note("epoch", epoch + 1)
        self.note("step", step)
        self.note("last_step_timestamp_seconds", time.time())
        self.add("images", result.num_images)
        for rank, seconds in enumerate(result.loader_waits):
            self.add("loader_wait_seconds", seconds, str(rank))

    def note_logged(self, values: Mapping[str, float]) -> None:
        """Notes an entry of the log of kind `"step"`."""
        for name, value in values.items():
            if name in _LOGGED:
                self.note(_LOGGED[name], value)
            elif name in _RATES:
                self.note("learning_rate", value, _RATES[name])
            elif name.startswith("loss"):
                self.note("loss", value, name)

    def note_evaluation(self, metrics: Mapping[str, object], best: float | None) -> None:
        """Notes an evaluation.

        Args:
            metrics: Its values in the log; those that are not numbers are left out.
            best: The best value of the primary metric so far.
        """
        with self._lock:
            numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
            self._values["metric"] = numbers
        if best is not None:
            self.note("best_score", best)

    def collect(self) -> Iterable[Metric]:
        """The values as they are now, for the registry."""
        with self._lock:
            values = {name: dict(by_label) for name, by_label in self._values.items()}
        for name, read in self._now.items():
            value = read()
            if value is not None:
                values[name] = {"": value}
        yield from self._families(values)

    def _families(self, values: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
        for name, described in VALUES.items():
            kind = CounterMetricFamily if described.is_counter else GaugeMetricFamily
            if name == "info":
                family = kind(PREFIX + name, described.text, labels=list(self._facts))
                family.add_metric(list(self._facts.values()), 1.0)
                yield family
            elif name in values:
                family = kind(PREFIX + name, described.text, labels=[described.label] if described.label else [])
                for label, value in values[name].items():
                    family.add_metric([label] if described.label else [], value)
                yield family


def _reserved(device: torch.device) -> float | None:
    return float(torch.cuda.memory_reserved(device)) if device.type == "cuda" else None


def _use(device: torch.device) -> float | None:
    """How busy the GPU is; None if there is none, or what would report it is not installed."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # of NVIDIA's library, which may be missing, of another version, or not allowed in a container
        return None
