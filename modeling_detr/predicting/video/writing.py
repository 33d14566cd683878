"""Write an annotated video: drawn frames at the times of the original ones, and its sound, copied unchanged."""

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from modeling_detr.errors_detr import VideoError
from modeling_detr.predicting.video.reading import VideoReader, require_av


_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that PyAV was built with
_SOUND_OF_MP4 = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_FORMATS = {".mp4": "mp4", ".mkv": "matroska"}
WRITTEN_SUFFIXES = (*_FORMATS,)
_QUALITY = {"crf": "20", "preset": "veryfast"}  # of libx264; hardly visible loss


def video_suffix(reader: VideoReader) -> str:
    """The suffix of the written file: MP4, or Matroska if MP4 cannot hold the sound."""
    return ".mp4" if reader.audio is None or reader.audio.codec_context.name in _SOUND_OF_MP4 else ".mkv"


class VideoWriter:
    """A video that is being written.

    Args:
        path: The file.
        reader: The video whose frames are drawn; its times, rate and sound are kept.

    Raises:
        VideoError: PyAV has no encoder for video.
    """

    def __init__(self, path: Path, reader: VideoReader) -> None:
        self._av = require_av()
        encoder = next((name for name in _ENCODERS if name in self._av.codecs_available), None)
        if encoder is None:
            raise VideoError(path, "this PyAV has no encoder for video", "pip install --force-reinstall av")
        self._container = self._av.open(str(path), "w", format=_FORMATS[video_suffix(reader)])
        self._stream = self._container.add_stream(encoder, rate=Fraction(reader.rate).limit_denominator(65_535))
        self._stream.codec_context.time_base = reader.time_base
        self._stream.pix_fmt = "yuv420p"  # what every player shows
        self._stream.options = _QUALITY if encoder == "libx264" else {}
        self._audio = None if reader.audio is None else self._container.add_stream_from_template(reader.audio)
        self._time_base = reader.time_base
        self._size: tuple[int, int] | None = None
        self._early_sound: list[Any] = []
        self._last = -(1 << 62)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            if self._size is not None and (error_type is None or issubclass(error_type, KeyboardInterrupt)):
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def add_frame(self, picture: Image.Image, pts: int) -> None:
        """Add a drawn frame.

        Args:
            picture: RGB; cut to even sides, which the encoder needs.
            pts: When it is shown; times that do not increase are moved.
        """
        pixels = np.asarray(picture)
        if self._size is None:
            self._size = self._stream.height, self._stream.width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
        if pixels.shape[:2] != self._size:  # of a stream that changes its size
            pixels = np.asarray(picture.resize((self._size[1], self._size[0])))
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels[: self._size[0], : self._size[1]]), format="rgb24"
        )
        self._last = max(pts, self._last + 1)
        frame.pts, frame.time_base = self._last, self._time_base
        self._container.mux(self._stream.encode(frame))
        while self._early_sound:
            self._container.mux(self._early_sound.pop(0))

    def add_sound(self, packet: Any) -> None:
        """Add a packet of sound, as the reader yields it."""
        packet.stream = self._audio
        if self._size is None:
            self._early_sound.append(packet)  # the file begins with the size of the frames
        else:
            self._container.mux(packet)
