import numpy as np
import pytest
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.commands import run_command
from modeling_detr.commands.slots import main


PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
NAMES = {0: "<b>disc</b>", 1: "star"}


@pytest.fixture(scope="module")
def inputs(tiny_detector, tmp_path_factory):
    """A model's folder and 'shapes', of which two images are used."""
    folder = tmp_path_factory.mktemp("slots") / "model"
    tiny_detector(num_labels=2, id2label=NAMES).save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return [str(folder), "shapes", "--max_images", "2", "--device", "cpu"]


def test_picture_page_and_arrays_are_written(inputs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*inputs, "--output_dir", str(out), "--threshold", "0", "--num_slots", "3"]) == 0
    assert {path.name for path in out.iterdir()} == {"slots.png", "slots.html", "slots.npz"}
    arrays = np.load(out / "slots.npz")
    assert arrays["boxes"].shape == (2, 7, 4)
    assert arrays["num_detections"].tolist() == [2] * 7
    page = (out / "slots.html").read_text()
    assert "3 slots" in page
    assert "&lt;b&gt;disc" in page
    assert "<b>disc" not in page
    with Image.open(out / "slots.png") as picture:
        assert picture.width > picture.height
    printed = capsys.readouterr().out
    assert "0 of 7 slots never fire (score ≥ 0)\n" in printed
    assert main([*inputs, "--output_dir", str(out), "--threshold", "1"]) == 0  # nothing fires
    assert "7 of 7 slots never fire (score ≥ 1): 0, 1, 2, 3, 4, 5, 6\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "2"], "--threshold: got 2, expected a score from 0 to 1."),
        (["--num_slots", "0"], "--num_slots: got 0, expected at least 1."),
        (["--max_images", "0"], "--max_images: got 0, expected at least 1."),
        (["--split", "vall"], "has no split 'vall'; its splits are: train, val; choose one of them."),
    ],
)
def test_a_wrong_option_is_explained(inputs, tmp_path, capsys, options, message):
    assert run_command("slots", [*inputs, "--output_dir", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
