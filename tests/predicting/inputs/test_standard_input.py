import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from noise_images import picture

from modeling_detr.predicting.inputs import InputImage, find_inputs


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that finds the images on a standard input."""

    def find(content: bytes) -> list[InputImage]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        return find_inputs(["-"])

    return find


def test_an_image_is_read(read, tmp_path: Path) -> None:
    (image,) = read(picture(tmp_path / "a.png").read_bytes())
    assert (image.name, image.source, tuple(image.read().shape)) == ("stdin.png", "-", (3, 60, 90))


def test_another_image_is_another_state(read, tmp_path: Path) -> None:
    contents = [picture(tmp_path / f"{side}.png", (side, 60)).read_bytes() for side in (60, 60, 70)]
    states = [image.state() for content in contents for image in read(content)]
    assert states[0] == states[1] != states[2]


@pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"])
def test_paths_in_lines_are_read_also_if_they_are_not_utf_8(read, tmp_path: Path, separator: bytes) -> None:
    paths = [picture(tmp_path / name) for name in ("a b.png", "\udcff.png")]
    images = read(separator.join(str(path).encode("utf-8", "surrogateescape") for path in paths) + separator)
    assert [image.source for image in images] == [str(path) for path in paths]


def test_an_empty_input_is_an_error(read) -> None:
    with pytest.raises(ValueError, match="standard input is empty"):
        read(b"")


def test_what_is_neither_is_an_error(read) -> None:
    with pytest.raises(ValueError, match="no such image or folder"):
        read(b"%PDF-1.4 not an image")
    with pytest.raises(ValueError, match="neither an image that can be read nor paths") as error:
        read(bytes(range(1, 200)))
    assert len(str(error.value)) < 100


def test_a_closed_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        find_inputs(["-"])
