from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.benchmarks.stitched_images import score_tiles, stitch
from modeling_detr.commands import run_command
from modeling_detr.data import open_dataset
from modeling_detr.data.image_decoding import read_image
from modeling_detr.predicting import Detector, Tiling


INDEX = open_dataset("shapes?size=32&train=1&val=9", split="val")


def test_stitched_images_have_all_pixels_and_objects_of_their_parts() -> None:
    stitched = stitch(INDEX, 2)
    assert len(stitched) == 2
    pixels = read_image(stitched.images[1]).as_subclass(Tensor)
    parts = [read_image(record).as_subclass(Tensor) for record in INDEX.images[4:8]]
    assert torch.equal(pixels, torch.cat([torch.cat(parts[:2], 2), torch.cat(parts[2:], 2)], 1))
    found = stitched.annotations.take(stitched.annotation_rows(1))
    expected = [INDEX.annotations.take(INDEX.annotation_rows(image)) for image in range(4, 8)]
    assert np.array_equal(found.label, np.concatenate([part.label for part in expected]))
    corners = [(0, 0), (32, 0), (0, 32), (32, 32)]
    shift = [[x, y, x, y] for part, (x, y) in zip(expected, corners, strict=True) for _ in range(len(part))]
    assert np.allclose(found.boxes_xyxy, np.concatenate([part.boxes_xyxy for part in expected]) + shift)


@pytest.fixture
def folder(tiny_detector, tmp_path: Path) -> Path:
    """A saved model of the classes of `shapes`."""
    tiny_detector(num_labels=len(INDEX.categories), id2label=INDEX.id2label).save_pretrained(tmp_path)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 32, "longest_edge": 32}).save_pretrained(tmp_path)
    return tmp_path


def test_images_that_fit_into_a_tile_score_as_by_themselves(folder: Path) -> None:
    alone, whole, tiled = score_tiles(Detector.from_pretrained(folder, device="cpu"), INDEX, 1, Tiling(32))
    assert (alone.ap, alone.num_duplicates) == (whole.ap, whole.num_duplicates) == (tiled.ap, tiled.num_duplicates)
    assert [alone.images, tiled.images] == [9, 9]


def test_the_command_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder), "shapes?size=32&train=1&val=4", "--split", "val", "--tile", "32", "--grid", "2"]
    assert run_command("benchmark", ["tiles", *arguments, "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split("|")[2].strip() for row in rows] == ["4", "1", "1"]
