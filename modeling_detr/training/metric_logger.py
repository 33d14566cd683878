"""The log of a run: its display, `log.jsonl`, and Accelerate's trackers.

`log.jsonl` has one JSON object per line, of the `kind`

- `"step"`: learning rates, and the means of all loss terms and of the gradient norm since the previous entry;
- `"epoch"`: the means over the epoch and, if it was evaluated, the metrics;
- `"warning"`: a `text`, if an evaluation indicates that training is going wrong.

The first two also have `images`, the images that the run has trained on so far, `seconds`, its duration so far, and
`images_per_second`, `loader_wait` (share of the time, 0 to 1) and `memory_gib` (the peak so far); see `Pace`.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from modeling_detr.atomic_output import make_folder, replace_text, replaced_file, sync, sync_tree
from modeling_detr.errors_detr import FileContentError
from modeling_detr.evaluation.metrics import Metric
from modeling_detr.input_files import MAX_LIST_BYTES, parse_json, read_text
from modeling_detr.output_errors import explained_output
from modeling_detr.training.display import Display, EpochSummary
from modeling_detr.training.run_folder import LOG, TRACKERS
from modeling_detr.training.trackers import log_images


_PROGRESS = ("images", "seconds")


class MetricLogger:
    """Writes the log of a run on the main process; the others only print warnings of their own.

    Args:
        run_dir: The folder of the run.
        accelerator: Its trackers, if any, must have been started.
        display: Shows the progress.
    """

    def __init__(self, run_dir: Path, accelerator: Accelerator, display: Display) -> None:
        self.path = run_dir / LOG
        self.accelerator = accelerator
        self.display = display
        if accelerator.is_main_process:
            make_folder(run_dir)

    def advance(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        """Show one more optimizer step; `epoch` counts from 0, `step_in_epoch` from 1."""
        if self.accelerator.is_main_process:
            self.display.advance(epoch + 1, step_in_epoch, loss)

    def step(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Log an entry of kind `"step"`.

        Args:
            epoch: From 0.
            step: Optimizer steps taken so far.
            values: Means since the previous entry, learning rates, the values of a `Pace`, and images and seconds so
                far, which the trackers do not get.
        """
        if self.accelerator.is_main_process:
            self._append({"kind": "step", "epoch": epoch + 1, "step": step, **values})
            self.display.show_pace(values)
            tracked = {f"train/{name}": value for name, value in values.items() if name not in _PROGRESS}
            self.accelerator.log(tracked, step=step)

    def epoch(
        self,
        epoch: int,
        step: int,
        averages: Mapping[str, float],
        metrics: Mapping[str, Any],
        headline: Sequence[Metric] = (),
    ) -> None:
        """Log an entry of kind `"epoch"`, and print its line.

        Args:
            epoch: From 0.
            step: Optimizer steps taken so far.
            averages: Means over the epoch, and the values of `Pace.take`.
            metrics: Results of the evaluation; empty if the epoch was not evaluated.
            headline: Metrics shown in the line of the epoch.
        """
        if not self.accelerator.is_main_process:
            return
        self._append({"kind": "epoch", "epoch": epoch + 1, "step": step, **averages, **metrics})
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log({f"eval/{name}": value for name, value in numbers.items()}, step=step)
        self.display.epoch(EpochSummary(epoch + 1, step, averages["loss"], headline, averages))

    def images(self, name: str, pictures: Sequence[NDArray[np.uint8]], step: int) -> None:
        """Send pictures, (H, W, 3) each, to every tracker that supports images."""
        if not self.accelerator.is_main_process or not pictures:
            return
        log_images(self.accelerator, {f"{name}/{index}": picture for index, picture in enumerate(pictures)}, step)

    def warning(self, epoch: int, step: int, text: str, *, of_this_process: bool = False) -> None:
        """Log an entry of kind `"warning"`, and print it.

        Args:
            epoch: From 0.
            step: Optimizer steps taken so far.
            text: The warning.
            of_this_process: Whether only this process knows it. Others than the main process print it, too.
        """
        if self.accelerator.is_main_process:
            self._append({"kind": "warning", "epoch": epoch + 1, "step": step, "text": text})
        if self.accelerator.is_main_process or of_this_process:
            self.display.warning(text)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self.accelerator.is_main_process:
            self.display.message(text)

    def flush(self) -> None:
        """Sync log and trackers' files to disk: a kill or a power cut loses nothing from before a checkpoint."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                with explained_output(self.path.with_name(TRACKERS)):
                    tracker.writer.flush()
        self._sync()

    def close(self) -> None:
        """Close the display and the trackers."""
        self.display.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self._sync()

    def _sync(self) -> None:
        if self.accelerator.is_main_process:
            sync_tree(self.path.with_name(TRACKERS))
            if self.path.exists():
                sync(self.path)
            sync(self.path.parent)

    def _append(self, entry: Mapping[str, Any]) -> None:
        with explained_output(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _plain(value) for name, value in entry.items()}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a `log.jsonl`, up to a line that a kill or a power cut left incomplete."""
    entries = []
    for line in read_text(path, MAX_LIST_BYTES, errors="replace").splitlines():
        try:
            entry = parse_json(path, line)
        except FileContentError:
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    return entries


def read_original_log(path: Path) -> list[dict[str, Any]]:
    """Read the original's `log.txt` as entries of kind `"epoch"`: unweighted loss terms, AP and PQ.

    Raises:
        ValueError: The file is not a log of the original.
    """
    entries = []
    for line in read_log(path):
        if "epoch" not in line or "train_loss" not in line:
            raise ValueError(f"{path}: not a log of the original, expected a JSON object with train_loss per line.")
        terms = {name.removeprefix("train_"): value for name, value in line.items() if name.startswith("train_")}
        unweighted = {name: terms.get(f"{name}_unscaled", value) for name, value in terms.items()}
        losses = {name: value for name, value in unweighted.items() if not name.endswith("_unscaled")}
        if "lr" in losses:
            losses["learning_rate"] = losses.pop("lr")
        metrics = {
            f"{prefix}ap{threshold}": line[name][index]
            for name, prefix in (("test_coco_eval_bbox", ""), ("test_coco_eval_masks", "mask_"))
            for index, threshold in enumerate(("", "50"))
            if line.get(name)
        }
        for name, ours in (("test_PQ_all", "pq"), ("test_PQ_th", "pq_things")):
            if line.get(name):
                metrics[ours] = line[name]["pq"]
        entries.append({"kind": "epoch", "epoch": line["epoch"] + 1, **losses, **metrics})
    return entries


def drop_later_entries(run_dir: Path, step: int, closed_step: int) -> None:
    """Remove log entries from after the point at which a run resumes, since they will be logged again.

    Args:
        run_dir: The folder of the run, with `log.jsonl` and TensorBoard's files.
        step: Optimizer steps taken at that point.
        closed_step: If equal to `step`, the evaluation after that step has been logged and its entries are kept.
    """

    def is_kept(entry_step: int, is_step_entry: bool) -> bool:
        return entry_step < step or (entry_step == step and (is_step_entry or closed_step == step))

    log = run_dir / LOG
    if log.exists():
        kept = [entry for entry in read_log(log) if is_kept(entry["step"], entry["kind"] == "step")]
        replace_text(log, "".join(json.dumps(entry) + "\n" for entry in kept))
    for path in sorted((run_dir / TRACKERS).rglob("events.out.tfevents.*")):
        _rewrite_events(path, is_kept)


def _rewrite_events(path: Path, is_kept: Callable[[int, bool], bool]) -> None:
    """Keep only the selected events of a TensorBoard file, byte for byte, up to where it is damaged.

    A record is an eight-byte length, its four-byte checksum, an `Event`, and its four-byte checksum.
    """
    data, kept, position = path.read_bytes(), [], 0
    while position + 12 <= len(data):
        length, checksum = struct.unpack_from("<QI", data, position)
        end = position + 16 + length
        if end > len(data) or checksum != masked_crc32c(data[position : position + 8]):
            break  # cut off by a kill, or zeros of the file system after a power cut
        try:
            event = Event.FromString(data[position + 12 : end - 4])
        except DecodeError:
            break
        is_step_entry = all(value.tag.startswith("train/") for value in event.summary.value)
        if is_kept(event.step, is_step_entry):
            kept.append(data[position:end])
        position = end
    with replaced_file(path) as partial:
        partial.write_bytes(b"".join(kept))


def _plain(value: Any) -> Any:
    """Round numbers to 7 digits and replace NaN and infinity with None, so that every line is valid JSON."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return value
