"""Videos are made with PyAV, predicted by the command, and read again."""

import json
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from noise_images import picture

from modeling_detr.commands.predict import main
from modeling_detr.predicting import Detector, Prediction
from modeling_detr.predicting.video import reading
from modeling_detr.predicting.video.reading import Frame, VideoReader, find_videos, is_video
from modeling_detr.predicting.video.run import video_names


SIZE = (64, 96)  # height, width


def write_video(
    path: Path,
    frames: int = 20,
    *,
    sound: str = "",
    sound_seconds: float | None = None,
    times: list[int] | None = None,
    noise: bool = False,
    codec: str = "mpeg4",
    **options,
) -> Path:
    """Writes frames that become brighter, 10 a second, or at `times` in hundredths of seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        audio = container.add_stream(sound, rate=44_100, layout="mono") if sound else None
        for number in range(frames):
            pixels = np.full((*SIZE, 3), 6 * number, np.uint8)
            if noise:  # for frames of many bytes
                pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
            pixels[:10, :10] = (255, 0, 0)  # the top left corner
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times[number] if times else 10 * number), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            for number in range(int((sound_seconds or frames / 10) * 44_100) // 1024):
                wave = np.sin(np.arange(1024) / 20)[None].astype(np.float32)
                sample = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                sample.sample_rate, sample.pts = 44_100, 1024 * number
                container.mux(audio.encode(sample))
            container.mux(audio.encode(None))
    return path


def frames_of(path: Path) -> tuple[list[Frame], VideoReader]:
    with VideoReader(str(path)) as reader:
        return [item for item in reader if isinstance(item, Frame)], reader


@pytest.fixture
def predict(model_folder: Path, tmp_path: Path) -> Callable[..., int]:
    """Returns a function that runs the command, with `out` as its output folder."""

    def run(*arguments: object) -> int:
        options = ["--output_dir", str(tmp_path / "out"), "--device", "cpu", "--threshold", "0"]
        return main([str(model_folder), *map(str, arguments), *options])

    return run


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_frame_has_a_line_and_a_picture_at_its_time(predict, tmp_path: Path) -> None:
    times = [0, 10, 15, 40, 41, 90, 100, 110, 111, 150]  # a variable frame rate
    video = write_video(tmp_path / "clip.mp4", 10, times=times)
    assert predict(video, "--batch_size", "3") == 0
    lines = lines_of(tmp_path / "out" / "clip.frames.jsonl")
    assert [line["frame"] for line in lines] == [*range(10)]
    assert [line["seconds"] for line in lines] == pytest.approx([time / 100 for time in times])
    assert all(len(line["detections"]) == 7 for line in lines)
    drawn, _ = frames_of(tmp_path / "out" / "clip.mp4")
    assert [frame.seconds for frame in drawn] == pytest.approx([time / 100 for time in times], abs=1e-3)
    assert tuple(drawn[0].pixels.shape) == (3, 480, 720)


def test_frames_are_predicted_like_images(model_folder: Path, predict, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", 4)
    predict(video, "--save", "json")
    frames, _ = frames_of(video)
    prediction = Detector.from_pretrained(model_folder, device="cpu")(frames[2].pixels, threshold=0.0)
    assert isinstance(prediction, Prediction)
    line = lines_of(tmp_path / "out" / "clip.frames.jsonl")[2]
    assert np.allclose([one["box_xyxy"] for one in line["detections"]], prediction.boxes, atol=1e-4)
    assert not (tmp_path / "out" / "clip.mp4").exists()


def test_sound_that_is_longer_than_the_pictures_is_no_damage(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mov", 10, sound="aac", sound_seconds=4)
    frames, reader = frames_of(video)
    assert len(frames) == 10
    assert reader.problem == ""


@pytest.mark.parametrize(("sound", "suffix"), [("aac", ".mp4"), ("pcm_s16le", ".mkv")])
def test_sound_is_copied(predict, tmp_path: Path, sound: str, suffix: str) -> None:
    video = write_video(tmp_path / f"clip{suffix.replace('mp4', 'mov')}", 20, sound=sound)
    assert predict(video) == 0
    packets = []
    for path in (video, tmp_path / "out" / f"clip{suffix}"):
        with av.open(str(path)) as container:
            audio = container.streams.audio[0]
            found = [packet for packet in container.demux(audio) if packet.size]
            packets.append([(float(packet.pts * packet.time_base), bytes(packet)) for packet in found])
    assert [content for _, content in packets[0]] == [content for _, content in packets[1]]
    assert [time for time, _ in packets[0]] == pytest.approx([time for time, _ in packets[1]], abs=1e-3)


@pytest.mark.parametrize(("turned", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_a_video_of_a_phone_is_turned_upright(tmp_path: Path, turned: int, corner: tuple[int, int]) -> None:
    plain = write_video(tmp_path / "plain.mp4", 3)
    path = tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(turned)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    frames, _ = frames_of(path)
    height, width = frames[0].pixels.shape[1:]
    assert (height, width) == (SIZE if turned == 180 else SIZE[::-1])
    row, column = (4 if edge == 0 else side - 5 for edge, side in zip(corner, (height, width), strict=True))
    assert frames[0].pixels[0, row, column] > 200  # the red one


def test_a_video_that_is_cut_off_keeps_what_was_done(predict, tmp_path: Path, capsys) -> None:
    video = write_video(tmp_path / "clip.mkv", 40)
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    assert predict(video) == 1
    lines = lines_of(tmp_path / "out" / "clip.frames.jsonl")
    assert 5 < len(lines) < 40
    drawn, _ = frames_of(tmp_path / "out" / "clip.mp4")
    assert len(drawn) == len(lines)
    assert "what was done is kept" in capsys.readouterr().err


@pytest.mark.parametrize("rest", [0, 50])  # bytes of a packet of 188
def test_a_transport_stream_that_is_cut_off_is_noticed(tmp_path: Path, rest: int) -> None:
    video = write_video(tmp_path / "clip.ts", 20, noise=True)
    assert frames_of(video)[1].problem == ""
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2 // 188 * 188 + rest])
    frames, reader = frames_of(video)
    assert 5 < len(frames) < 15  # its length is nowhere declared
    assert reader.problem == "1 place is damaged or missing; its last frame is, so it was probably cut off"


def test_a_hole_in_a_transport_stream_is_noticed(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.ts", 20, noise=True)
    content = bytearray(video.read_bytes())
    middle = len(content) // 2 // 188 * 188
    del content[middle : middle + 40 * 188]
    video.write_bytes(content)
    assert "damaged or missing" in frames_of(video)[1].problem


@pytest.fixture
def playlist(tmp_path: Path) -> Path:
    """A video in segments of a second, without the end of its list."""
    options = {"hls_time": "1", "hls_list_size": "0"}
    path = write_video(tmp_path / "hls" / "clip.m3u8", 40, codec="libx264", options=options)
    assert frames_of(path)[1].problem == ""
    text = path.read_text()
    path.write_text(text.replace("#EXT-X-ENDLIST\n", ""))
    assert path.read_text() != text
    return path


def test_a_playlist_without_an_end_is_read_as_far_as_it_goes(predict, playlist: Path, tmp_path: Path, capsys) -> None:
    assert predict(playlist, "--batch_size", "8") == 1
    assert len(lines_of(tmp_path / "out" / "clip.frames.jsonl")) == 40
    assert len(frames_of(tmp_path / "out" / "clip.mp4")[0]) == 40
    assert "the playlist has no end (#EXT-X-ENDLIST)" in capsys.readouterr().err


def test_a_stream_that_breaks_keeps_what_was_done(
    predict, playlist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(reading, "TIMEOUT", (20.0, 2.0))
    handler = partial(SimpleHTTPRequestHandler, directory=playlist.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = predict(f"http://127.0.0.1:{server.server_port}/clip.m3u8", "--batch_size", "8")
        server.shutdown()
    assert code == 1
    lines = lines_of(tmp_path / "out" / "clip.frames.jsonl")
    assert 5 < len(lines) == len(frames_of(tmp_path / "out" / "clip.mp4")[0])
    error = capsys.readouterr().err
    assert "the stream ended, or sent nothing for 2 seconds; what was done is kept" in error


def test_ctrl_c_keeps_what_was_done(predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    video, calls = write_video(tmp_path / "clip.mp4", 20), []
    predict_batch = Detector.predict_batch

    def interrupted(detector, *batch):
        calls.append(batch)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return predict_batch(detector, *batch)

    monkeypatch.setattr(Detector, "predict_batch", interrupted)
    assert predict(video, write_video(tmp_path / "other.mp4", 3)) == 1
    assert len(lines_of(tmp_path / "out" / "clip.frames.jsonl")) == 7
    assert len(frames_of(tmp_path / "out" / "clip.mp4")[0]) == 7
    assert "interrupted after 7 frames" in capsys.readouterr().err
    assert not (tmp_path / "out" / "other.mp4").exists()


def test_a_video_without_frames_costs_itself_only(predict, tmp_path: Path, capsys) -> None:
    empty = write_video(tmp_path / "empty.mkv", 20)
    with av.open(str(empty)) as container:
        first = next(packet for packet in container.demux(video=0) if packet.size)
        head = first.pos
    empty.write_bytes(empty.read_bytes()[:head])
    assert predict(empty, write_video(tmp_path / "clip.mp4", 3)) == 1
    assert "empty.mkv: has no frames, ended after 0.0 of" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.mp4", "clip.frames.jsonl"}


def test_ctrl_c_before_the_first_frame_leaves_nothing(predict, tmp_path: Path, monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "predict_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(write_video(tmp_path / "clip.mp4", 3))
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_video_that_does_not_exist_is_noticed_before_predicting(predict, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        predict(write_video(tmp_path / "clip.mp4", 3), tmp_path / "nowhere.mp4")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_video_costs_itself_only(predict, tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video" * 100)
    assert predict(tmp_path / "broken.mp4", write_video(tmp_path / "clip.mp4", 3)) == 1
    assert "broken.mp4: cannot be opened as a video" in capsys.readouterr().err
    assert len(lines_of(tmp_path / "out" / "clip.frames.jsonl")) == 3


def test_images_and_videos_go_together(predict, tmp_path: Path) -> None:
    assert predict(picture(tmp_path / "a.png"), write_video(tmp_path / "clip.mp4", 3)) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a.png",
        "predictions.json",
        "clip.mp4",
        "clip.frames.jsonl",
    }


def test_outputs_that_videos_do_not_have_are_an_error(predict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--save: got 'csv', expected pictures or jsonl"):
        predict(write_video(tmp_path / "clip.mp4", 3), "--save", "csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.MP4", True),
        ("rtsp://camera/1", True),
        ("camera:0", True),
        ("https://x.org/a.mp4?b=1", True),
        ("a.jpg", False),
    ],
)
def test_videos_are_told_from_images(text: str, expected: bool) -> None:
    assert is_video(text) == expected


def test_videos_of_a_pattern_are_found(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / name, 2) for name in ("a.mp4", "sub/b.mp4")]
    assert find_videos(f"{tmp_path}/**/*.mp4") == [str(path) for path in paths]
    with pytest.raises(ValueError, match="no video matches"):
        find_videos(f"{tmp_path}/*.avi")


def test_videos_with_the_same_name_have_files_of_their_own() -> None:
    sources = ["a/clip.mp4", "b/Clip.avi", "rtsp://host/live", "camera:0", "http://x/clip.mp4?token=1"]
    assert video_names(sources) == ["clip", "Clip_2", "live", "camera_0", "clip_3"]
