import numpy as np
import pytest
from PIL import Image

from modeling_detr.visualization import tile


PICTURES = [Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 30), "green"), Image.new("RGB", (5, 5), "blue")]


def test_pictures_of_one_size_are_tiled_in_rows() -> None:
    pictures = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    sheet = tile(pictures, columns=2)
    assert sheet.size == (48, 28)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((28, 0)) == (0, 128, 0)
    assert sheet.getpixel((19, 27)) == (0, 0, 255)
    assert sheet.getpixel((40, 27)) == (255, 255, 255)  # the last row is not enlarged
    assert tile(pictures[:1], columns=5).size == (20, 10)
    with pytest.raises(ValueError, match="pictures: got 0 with 0 titles, expected at least one"):
        tile([], columns=2)
    with pytest.raises(ValueError, match="pictures: got 3 with 1 titles"):
        tile(PICTURES, columns=2, titles=["one"])


def test_pictures_of_any_shape_fill_the_sheet_without_gaps() -> None:
    wide, tall = Image.new("RGB", (640, 480), "red"), Image.new("RGB", (300, 900), "green")
    sheet = np.asarray(tile([wide, tall, tall, wide, wide, wide], columns=2, width=500))
    assert sheet.shape[1] == 500
    assert (sheet == 255).all(-1).mean() < 0.05  # only the lines between the pictures
    assert not (sheet == 0).all(-1).any()
