"""Predict for the frames of a video, one batch after the other."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from accelerate import PartialState
from tqdm import tqdm

from modeling_detr.atomic_output import output_stem, replaced_file
from modeling_detr.errors_detr import VideoError
from modeling_detr.predicting.detector import Detector
from modeling_detr.predicting.result import Prediction
from modeling_detr.predicting.score_rules import ScoreRules
from modeling_detr.predicting.tiles import Tiling
from modeling_detr.predicting.video.reading import Frame, VideoReader
from modeling_detr.predicting.video.writing import VideoWriter, video_suffix


@dataclass(frozen=True)
class PredictedVideo:
    """What was done with a video.

    Attributes:
        source: The video.
        frames: Number of frames.
        found: Number of objects or segments in all frames.
        written: The files.
        problem: Why it ended early; empty if it did not. A stream or a camera ends by Ctrl-C, which is no problem.
        was_interrupted: Whether a signal ended it.
    """

    source: str
    frames: int
    found: int
    written: tuple[Path, ...]
    problem: str
    was_interrupted: bool


@dataclass(frozen=True)
class VideoOptions:
    """How videos are predicted.

    Attributes:
        rules: Which predictions count.
        draws: Whether an annotated video is written.
        batch_size: Frames, or tiles, that are computed at once.
        tiling: How frames are divided into tiles; None: not at all.
    """

    rules: ScoreRules
    draws: bool = True
    batch_size: int = 1
    tiling: Tiling | None = None


def predict_video(
    detector: Detector, source: str, name: str, output_dir: Path, options: VideoOptions
) -> PredictedVideo:
    """Predicts for a video; shows a bar in a terminal.

    Writes `NAME.frames.jsonl`, a line for each frame with its number, time and predictions, and the annotated video.
    If the video ends early, or a signal ends it, both hold what was done until then.

    Args:
        detector: The model.
        source: The video; see `VideoReader`.
        name: The name of the files, without suffix.
        output_dir: The folder of the results.
        options: How it is predicted.

    Raises:
        VideoError: The video cannot be opened, or has no frames.
        OutputError: A file cannot be written.
    """
    lines = output_dir / f"{name}.frames.jsonl"
    written = [lines]
    with VideoReader(source) as reader, ExitStack() as files:
        text = files.enter_context(files.enter_context(replaced_file(lines)).open("w", encoding="utf-8"))
        writer = None
        if options.draws:
            drawn = output_dir / f"{name}{video_suffix(reader)}"
            writer = files.enter_context(VideoWriter(files.enter_context(replaced_file(drawn)), reader))
            written.append(drawn)
        run = _VideoRun(detector, source, options, text, writer)
        was_interrupted = run.predict(reader)
        if not run.frames:
            _refuse_empty(source, reader.problem, was_interrupted)
        problem = reader.problem
        if was_interrupted and not reader.is_live:
            problem = f"interrupted after {run.frames} frames"
    return PredictedVideo(source, run.frames, run.found, tuple(written), problem, was_interrupted)


def predict_videos(
    detector: Detector,
    sources: Sequence[str],
    output_dir: Path,
    options: VideoOptions,
    processes: PartialState | None = None,
) -> Iterator[PredictedVideo | VideoError]:
    """Predicts for the videos of this process, until a signal ends one; yields an error of one that cannot be read.

    Args:
        detector: The model.
        sources: All videos.
        output_dir: The folder of the results.
        options: How they are predicted.
        processes: The processes that share the videos; None: one.

    Raises:
        OutputError: A file cannot be written.
    """
    count, first = (1, 0) if processes is None else (processes.num_processes, processes.process_index)
    for source, name in [*zip(sources, video_names(sources), strict=True)][first::count]:
        try:
            done = predict_video(detector, source, name, output_dir, options)
        except VideoError as error:
            yield error
            continue
        yield done
        if done.was_interrupted:
            break


def _refuse_empty(source: str, problem: str, was_interrupted: bool) -> None:
    if was_interrupted:
        raise KeyboardInterrupt
    raise VideoError(
        source, f"has no frames{f', {problem}' if problem else ''}", "check the file, or convert it to MP4"
    )


def video_names(sources: Sequence[str]) -> list[str]:
    """What the files about each video are named, without suffix."""
    names: list[str] = []
    for source in sources:
        place = PurePosixPath(source.replace("\\", "/").partition("?")[0]).name.replace(":", "_")
        stem = name = output_stem(place) or "video"
        number = 2
        while name.casefold() in (taken.casefold() for taken in names):
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


class _VideoRun:
    """The frames of one video on their way to the model and to the files."""

    def __init__(
        self, detector: Detector, source: str, options: VideoOptions, lines: TextIO, writer: VideoWriter | None
    ) -> None:
        self.detector, self.source, self.options = detector, source, options
        self.lines, self.writer = lines, writer
        self.frames = self.found = 0

    def predict(self, reader: VideoReader) -> bool:
        """Predicts for all frames; returns whether a signal ended it."""
        with tqdm(total=reader.num_frames, desc=self.source, unit="frame", dynamic_ncols=True, disable=None) as bar:
            try:
                for batch in self._batches(reader):
                    self._predict(batch)
                    bar.update(len(batch))
            except (KeyboardInterrupt, SystemExit):
                return True
        return False

    def _batches(self, reader: VideoReader) -> Iterator[list[Frame]]:
        """Frames of equal size; sound is written as it comes."""
        batch: list[Frame] = []
        for item in reader:
            if not isinstance(item, Frame):
                if self.writer is not None:
                    self.writer.add_sound(item)
                continue
            if batch and batch[0].pixels.shape != item.pixels.shape:
                yield batch
                batch = []
            batch.append(item)
            if len(batch) == self.options.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _predict(self, batch: Sequence[Frame]) -> None:
        images = [frame.pixels for frame in batch]
        predictions = self.detector.predict_images(
            images, self.options.rules, batch_size=self.options.batch_size, tiling=self.options.tiling
        )
        for frame, prediction in zip(batch, predictions, strict=True):
            self._write(frame, prediction)

    def _write(self, frame: Frame, prediction: Prediction) -> None:
        content: dict[str, Any] = {"frame": self.frames, "seconds": round(frame.seconds, 6), **prediction.to_dict()}
        self.lines.write(json.dumps(content, ensure_ascii=False) + "\n")
        if self.writer is not None:
            self.writer.add_frame(prediction.draw(), frame.pts)
        self.frames += 1
        self.found += len(prediction)
