"""Frames of a video file, a camera or a stream, upright, with the time at which each is shown."""

import glob
import importlib.util
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from modeling_detr.data.findings import counted
from modeling_detr.data.image_headers import MAX_PIXELS
from modeling_detr.errors_detr import VideoError
from modeling_detr.input_files import require_file
from modeling_detr.predicting.inputs.files import split_pattern


SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv"),
    *(".ogv", ".3gp", ".mjpeg", ".m3u8"),
)
STREAMS = ("rtsp://", "rtmp://", "rtmps://", "srt://", "udp://")
CAMERA = "camera:"

TIMEOUT = (15.0, 20.0)  # seconds to open, and without a packet; of streams
_UNFINISHED_PLAYLIST = {"live_start_index": "0", "m3u8_hold_counters": "3"}  # all of it, and not to wait for more
_MISSING_SECONDS = 1.0  # before its declared end at which a file has been cut off
_DEFAULT_RATE = Fraction(30)


def is_video(text: str) -> bool:
    """Whether an input is a video, a stream (`rtsp://…`) or a camera (`camera:0`)."""
    if text.startswith((*STREAMS, CAMERA)):
        return True
    try:
        path = urlsplit(text).path if text.startswith(("http://", "https://")) else text
    except ValueError:  # no URL; reported as an image
        return False
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def find_videos(text: str) -> list[str]:
    """The videos that an input stands for: itself, or the files of a pattern; none if it is no video.

    Raises:
        ValueError: No file matches the pattern.
        OSError: There is no such file, or it is a folder, a pipe or a device.
    """
    if not is_video(text):
        return []
    if "://" in text or text.startswith(CAMERA):
        return [text]
    if not glob.has_magic(text) or Path(text).exists():
        require_file(Path(text))
        return [text]
    root, pattern = split_pattern(text)
    videos = sorted(str(file) for file in root.glob(pattern) if file.is_file())
    if not videos:
        raise ValueError(f"{text}: no video matches this pattern.")
    return videos


def left_out_videos(text: str) -> str:
    """What to say about an input that is a folder with videos, of which only the images are taken; empty if none."""
    folder = Path(text)
    videos = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    if not videos:
        return ""
    patterns = sorted({f"'{folder / '**' / '*'}{file.suffix}'" for file in videos})
    return f"{folder}: {counted(len(videos), 'video')} left out; to predict for videos, pass {' '.join(patterns)}"


class Frame(NamedTuple):
    """A frame.

    pixels: (3, H, W) uint8 RGB. pts: when it is shown, in units of the video's `time_base`. seconds: the same in
    seconds.
    """

    pixels: Tensor
    pts: int
    seconds: float


class VideoReader:
    """A video that is open. Iterating yields its frames; `problem` then says why it ended early.

    Args:
        source: A file, a URL, a stream or `camera:NUMBER`.

    Attributes:
        audio: The stream of its sound, in PyAV; None: it has none.
        time_base: The unit of its times, in seconds.
        rate: Frames a second, on average.
        num_frames: How many frames it says it has; None: that is not known.
        problem: Why it ended early; empty if it did not.

    Raises:
        VideoError: It cannot be opened, or PyAV is not installed.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._av = require_av()
        self._container = self._open()
        try:
            self._stream = self._container.streams.video[0]
            self.audio = self._container.streams.audio[0] if self._container.streams.audio else None
        except IndexError as error:
            self._container.close()
            raise VideoError(source, "has no video, only other streams", "pass a video") from error
        self._check_size()
        self._stream.thread_type = "AUTO"
        self.time_base = self._stream.time_base or Fraction(1, 90_000)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE
        self.num_frames: int | None = self._stream.frames or self._estimated_frames()
        self.problem = ""
        self._last_seconds = 0.0
        self._broken = 0
        self._ends_broken = False

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame | Any]:
        """Yield the frames, and between them the packets of sound as PyAV has them."""
        end_of_sound = 0.0
        streams = [self._stream] if self.audio is None else [self._stream, self.audio]
        try:
            for packet in self._container.demux(*streams):
                if packet.stream is not self._stream:
                    if packet.dts is not None:
                        end_of_sound = float(packet.dts * packet.time_base)
                        yield packet
                    continue
                yield from self._decode(packet)
        except self._av.error.FFmpegError as error:  # of a connection, or of a damaged file
            self.problem = f"ended early: {_reason(error)}"
            return
        self.problem = self._missing_end(end_of_sound) or self._damage()

    @property
    def is_live(self) -> bool:
        """Whether it has no end of its own."""
        return self.source.startswith((*STREAMS, CAMERA)) or ("://" in self.source and self._is_open_playlist)

    @property
    def _is_open_playlist(self) -> bool:
        """Whether it is a playlist to which segments are still added, or that was never finished."""
        return self._container.format.name == "hls" and self._container.duration is None

    def _missing_end(self, end_of_sound: float) -> str:
        """How one sees that it should have gone on; empty if one does not."""
        if self.is_live:
            return f"the stream ended, or sent nothing for {TIMEOUT[1]:.0f} seconds"
        if self._is_open_playlist:
            return "the playlist has no end (#EXT-X-ENDLIST), so the video may go on"
        if self._container.duration is not None:
            # Sound may be longer than the pictures; a file that was cut off lacks the end of both
            declared = self._container.duration / self._av.time_base
            missing = declared - max(self._last_seconds, end_of_sound)
            if missing > max(_MISSING_SECONDS, 3 / float(self.rate)):
                return f"ended after {self._last_seconds:.1f} of {declared:.1f} seconds"
        return ""

    def _damage(self) -> str:
        """What is damaged; empty if nothing is."""
        if not self._broken:
            return ""
        places = "1 place is" if self._broken == 1 else f"{self._broken} places are"
        end = "; its last frame is, so it was probably cut off" if self._ends_broken else ""
        return f"{places} damaged or missing{end}"

    def _decode(self, packet: Any) -> Iterator[Frame]:
        self._broken += packet.is_corrupt
        try:
            decoded = packet.decode()
        except self._av.error.FFmpegError:
            self._broken += 1  # as players do, go on with the next packet
            return
        for frame in decoded:
            self._broken += frame.is_corrupt
            self._ends_broken = frame.is_corrupt
            pts = frame.pts if frame.pts is not None else round((self._last_seconds + 1 / self.rate) / self.time_base)
            self._last_seconds = float(pts * self.time_base)
            yield Frame(_upright(frame), pts, self._last_seconds)

    def _open(self) -> Any:
        source, options = self.source, {}
        if source.startswith(CAMERA):
            options = _camera(source.removeprefix(CAMERA))
        elif "://" not in source:
            require_file(Path(source))
            is_playlist = source.lower().endswith(".m3u8")
            options = {"file": source, "options": _UNFINISHED_PLAYLIST if is_playlist else {}}
        else:
            options = {"file": source, "timeout": TIMEOUT}
        try:
            return self._av.open(**options)
        except (self._av.error.FFmpegError, ValueError) as error:
            remedy = "check the address" if "://" in source else "check the file, or convert it to MP4"
            if source.startswith(CAMERA):
                remedy = "check that the camera is connected and not in use, or choose another: camera:1"
            raise VideoError(source, f"cannot be opened as a video ({_reason(error)})", remedy) from error

    def _check_size(self) -> None:
        width, height = self._stream.width, self._stream.height
        if not 0 < width * height <= MAX_PIXELS:
            self._container.close()
            problem = f"has frames of {width}x{height} pixels (width x height), expected 1 to {MAX_PIXELS:,} in all"
            raise VideoError(self.source, problem, "convert it to a smaller size")

    def _estimated_frames(self) -> int | None:
        if self.is_live or self._container.duration is None:
            return None
        return round(float(self._container.duration / self._av.time_base * self.rate))


def require_av() -> Any:
    """The module of PyAV.

    Raises:
        VideoError: It is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise VideoError("videos", "need PyAV, which is not installed", "pip install 'modeling-detr[video]'")
    import av

    return av


def _camera(number: str) -> dict[str, Any]:
    """How FFmpeg opens a camera of this machine."""
    if sys.platform == "darwin":
        return {"file": number or "0", "format": "avfoundation", "timeout": TIMEOUT}
    if sys.platform == "win32":
        return {"file": f"video={number}", "format": "dshow", "timeout": TIMEOUT}
    device = number if number.startswith("/") else f"/dev/video{number or 0}"
    return {"file": device, "format": "v4l2", "timeout": TIMEOUT}


def _upright(frame: Any) -> Tensor:
    """The pixels (3, H, W) of a frame of PyAV, turned as its metadata says."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round((frame.rotation or 0) / 90) % 4  # counter-clockwise
    if turns:
        pixels = np.ascontiguousarray(np.rot90(pixels, turns))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
