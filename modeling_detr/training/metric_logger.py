"""What a run tells while it runs: a progress bar or a line an epoch, `log.jsonl`, and the trackers of Accelerate.

`log.jsonl` has one JSON object a line. `"kind": "step"` holds the rates, and the means of all loss terms and of the
gradient norm since the entry before; `"kind": "epoch"` the means over the epoch and, if it was evaluated, the metrics.
Both say how it goes: `images_per_second`, `loader_wait` (share of the time, 0 to 1) and `memory_gib`, see `Pace`.
`"kind": "warning"` has a `text`: an evaluation has shown that training goes wrong.
"""

import contextlib
import json
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tqdm import tqdm

from modeling_detr.atomic_output import replace_text, replaced_file
from modeling_detr.evaluation.metrics import Metric
from modeling_detr.training.run_folder import LOG, TRACKERS
from modeling_detr.training.trackers import log_images


# The most wanted first: a narrow terminal cuts the end off
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
_LONG_WAIT = 0.2  # of the time; the loader then holds training up


class MetricLogger:
    """Writes a run's log on the main process; on the others every method does nothing.

    Args:
        run_dir: The run's folder.
        accelerator: Its trackers, if it has any, must have been started.
        total_steps: Optimizer steps of the whole run.
        epochs: Epochs of the whole run.
        first_step: Steps that earlier starts of the run have taken.
    """

    def __init__(
        self, run_dir: Path, accelerator: Accelerator, *, total_steps: int, epochs: int, first_step: int = 0
    ) -> None:
        self.path = run_dir / LOG
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.epochs = epochs
        self.bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}
        self._pace: list[str] = []
        self._started, self._first_step = time.monotonic(), first_step
        if not accelerator.is_main_process:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        if _shows_a_bar():
            # the average speed, evaluations and checkpoints included; a recent one would jump after each of them
            self.bar = tqdm(total=total_steps, initial=first_step, dynamic_ncols=True, smoothing=0, bar_format=_BAR)

    def advance(self, epoch: int, loss: float) -> None:
        """Moves the bar by one optimizer step."""
        if self.bar is not None:
            self._shown |= {"loss": f"{loss:.3f}"}
            shown = [f"{name} {figure}" for name, figure in self._shown.items()]
            self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)
            self.bar.set_postfix_str(", ".join(shown + self._pace), refresh=False)
            self.bar.update()

    def step(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Logs an entry of kind `"step"`: means since the one before, rates, and the figures of a `Pace`."""
        if self.accelerator.is_main_process:
            self._append({"kind": "step", "epoch": epoch + 1, "step": step, **values})
            self._pace = _pace_in_words(values)
            self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def epoch(
        self,
        epoch: int,
        step: int,
        averages: Mapping[str, float],
        metrics: Mapping[str, Any],
        headline: Sequence[Metric] = (),
    ) -> None:
        """Logs an entry of kind `"epoch"`, and prints its line unless a terminal shows the bar and nothing else.

        Args:
            epoch: From 0.
            step: Optimizer steps taken in all.
            averages: Means over the epoch, and the figures of a `Pace`.
            metrics: What the evaluation measured; empty if the epoch was not evaluated.
            headline: The metrics that the line of the epoch shows; the bar shows the first one.
        """
        if not self.accelerator.is_main_process:
            return
        self._append({"kind": "epoch", "epoch": epoch + 1, "step": step, **averages, **metrics})
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log({f"eval/{name}": value for name, value in numbers.items()}, step=step)
        parts = [f"epoch {epoch + 1}/{self.epochs}", f"step {step}/{self.total_steps}", f"loss {averages['loss']:.3f}"]
        shown = {metric.name: f"{metric.value:.3f}" for metric in headline if not math.isnan(metric.value)}
        self._shown |= dict(list(shown.items())[:1])
        parts += [f"{name} {value}" for name, value in shown.items()]
        parts += _pace_in_words(averages, with_remedy=True)
        if step < self.total_steps:
            parts.append(f"{self._time_left(step)} left")
        if self.bar is None or not sys.stdout.isatty():
            self.message(" · ".join(parts))

    def images(self, name: str, pictures: Sequence[NDArray[np.uint8]], step: int) -> None:
        """Hands pictures, (H, W, 3) each, to every tracker that takes pictures."""
        if not self.accelerator.is_main_process or not pictures:
            return
        log_images(self.accelerator, {f"{name}/{index}": picture for index, picture in enumerate(pictures)}, step)

    def warning(self, epoch: int, step: int, text: str) -> None:
        """Logs an entry of kind `"warning"`, and prints it."""
        if self.accelerator.is_main_process:
            self._append({"kind": "warning", "epoch": epoch + 1, "step": step, "text": text})
            self.message(f"warning: {text}")

    def message(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def flush(self) -> None:
        """Has TensorBoard write what it holds back, so that a kill costs nothing that a checkpoint has seen."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.flush()

    def close(self) -> None:
        """Ends bar and trackers."""
        if self.bar is not None:
            self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _plain(value) for name, value in entry.items()}) + "\n")

    def _time_left(self, step: int) -> str:
        seconds = (time.monotonic() - self._started) / max(1, step - self._first_step) * (self.total_steps - step)
        hours, minutes = divmod(math.ceil(seconds / 60), 60)
        return f"{hours}:{minutes:02d} h" if hours else f"{minutes} min"


def _shows_a_bar() -> bool:
    """Whether stderr is a terminal that a bar can be drawn on: tqdm draws none where it has no size."""
    with contextlib.suppress(OSError):  # what only behaves like one is not asked
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).lines > 0
    return True


def _pace_in_words(pace: Mapping[str, float], with_remedy: bool = False) -> list[str]:
    """The figures of a `Pace` as a person wants them: of the wait for the loaders only what holds training up."""
    words = [f"{pace['images_per_second']:.1f} images/s", f"{pace['memory_gib']:.1f} GiB"]
    if pace["loader_wait"] > _LONG_WAIT:
        words.append(f"loader wait {pace['loader_wait']:.0%}" + (": raise num_workers" if with_remedy else ""))
    return words


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a `log.jsonl`; what a kill or a power cut has left at its end is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def read_original_log(path: Path) -> list[dict[str, Any]]:
    """The epochs of the original's `log.txt`, as entries of ours: terms before their weights, AP and PQ of its test.

    Raises:
        ValueError: The file is not such a log.
    """
    entries = []
    for line in read_log(path):
        if "epoch" not in line or "train_loss" not in line:
            raise ValueError(f"{path}: got no log of the original; wanted a JSON object with train_loss on each line.")
        terms = {name.removeprefix("train_"): value for name, value in line.items() if name.startswith("train_")}
        unweighted = {name: terms.get(f"{name}_unscaled", value) for name, value in terms.items()}
        losses = {name: value for name, value in unweighted.items() if not name.endswith("_unscaled")}
        metrics = {
            f"{kind}ap{threshold}": line[name][number]
            for name, kind in (("test_coco_eval_bbox", ""), ("test_coco_eval_masks", "mask_"))
            for number, threshold in enumerate(("", "50"))
            if line.get(name)
        }
        for name, ours in (("test_PQ_all", "pq"), ("test_PQ_th", "pq_things")):
            if line.get(name):
                metrics[ours] = line[name]["pq"]
        entries.append({"kind": "epoch", "epoch": line["epoch"] + 1, **losses, **metrics})
    return entries


def drop_later_entries(run_dir: Path, step: int, closed_step: int) -> None:
    """Removes what earlier starts of a run have logged past the point that it goes on from, since it will come again.

    Args:
        run_dir: The run's folder, with `log.jsonl` and what TensorBoard has.
        step: Optimizer steps taken at that point.
        closed_step: If it is `step`, the evaluation after that step has been logged already and stays.
    """

    def stays(entry_step: int, of_a_step: bool) -> bool:
        return entry_step < step or (entry_step == step and (of_a_step or closed_step == step))

    log = run_dir / LOG
    if log.exists():
        kept = [entry for entry in read_log(log) if stays(entry["step"], entry["kind"] == "step")]
        replace_text(log, "".join(json.dumps(entry) + "\n" for entry in kept))
    for path in sorted((run_dir / TRACKERS).rglob("events.out.tfevents.*")):
        _rewrite_events(path, stays)


def _rewrite_events(path: Path, stays: Callable[[int, bool], bool]) -> None:
    """Leaves of a TensorBoard file the events that stay, byte for byte, up to where it is damaged.

    Each is an eight-byte length, its checksum of four bytes, an `Event`, and the event's checksum of four bytes.
    """
    data, kept, position = path.read_bytes(), [], 0
    while position + 12 <= len(data):
        length, checksum = struct.unpack_from("<QI", data, position)
        end = position + 16 + length
        if end > len(data) or checksum != masked_crc32c(data[position : position + 8]):
            break  # cut off by a kill, or the file system's zeros after a power cut
        try:
            event = Event.FromString(data[position + 12 : end - 4])
        except DecodeError:
            break
        of_a_step = all(value.tag.startswith("train/") for value in event.summary.value)
        if stays(event.step, of_a_step):
            kept.append(data[position:end])
        position = end
    with replaced_file(path) as partial:
        partial.write_bytes(b"".join(kept))


def _plain(value: Any) -> Any:
    """Numbers rounded to what they are worth, NaN and infinity as null, so that every line is JSON."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return value
