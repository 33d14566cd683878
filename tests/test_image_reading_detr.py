"""Files that others have written in place of images."""

import os

import numpy as np
import pytest
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor


EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture(scope="module")
def processor():
    return DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@pytest.mark.timeout(20)
def test_a_pipe_device_or_program_is_no_image(processor, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # reading it would wait for ever
    (tmp_path / "program.png").write_text(EPS)  # Pillow would run Ghostscript on it
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="is a folder, a pipe or a device, expected a file"):
            processor(path)
    with pytest.raises(ValueError, match="got an EPS program"):
        processor(tmp_path / "program.png")


@pytest.mark.timeout(20)
def test_a_panoptic_file_that_is_no_image_is_named(processor, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "program.png").write_text(EPS)
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    for name in ("pipe.png", "program.png", "damaged.png", "a\0b.png", "a" * 5000):
        annotation = {"file_name": name, "segments_info": []}
        with pytest.raises(ValueError, match="image 0: file_name '"):
            processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation, masks_path=tmp_path)


def test_a_panoptic_file_of_another_size_is_an_error(processor, tmp_path):
    """Its boxes were taken for boxes of the image."""
    Image.new("RGB", (10, 10), (7, 0, 0)).save(tmp_path / "1.png")
    annotation = {"file_name": "1.png", "segments_info": [{"id": 7, "category_id": 1}]}
    with pytest.raises(ValueError, match=r"image 0: 1.png has 10x10 pixels, expected 80x60"):
        processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation, masks_path=tmp_path)


@pytest.mark.parametrize("segments", [5, [5], [{}], [{"id": "7", "category_id": 1}], [{"id": [7], "category_id": 1}]])
def test_malformed_segments_are_an_error(processor, tmp_path, segments):
    Image.new("RGB", (80, 60), (7, 0, 0)).save(tmp_path / "1.png")
    annotation = {"file_name": "1.png", "segments_info": segments}
    with pytest.raises(ValueError, match=r"image 0: .*expected"):
        processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation, masks_path=tmp_path)


def test_a_grey_panoptic_file_has_its_grey_levels_as_ids(processor, tmp_path):
    """As a dataset's; they were multiplied, so the image had no objects."""
    Image.new("L", (80, 60), 7).save(tmp_path / "1.png")
    annotation = {"file_name": "1.png", "segments_info": [{"id": 7, "category_id": 1}]}
    (labels,) = processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation, masks_path=tmp_path)["labels"]
    assert labels["class_labels"].tolist() == [1]


@pytest.mark.parametrize("keys", [{"area": "x"}, {"area": float("nan")}, {"category_id": 10**30}])
def test_numbers_of_an_annotation_are_checked(processor, keys):
    annotation = {"annotations": [{"bbox": [1, 1, 9, 9], "category_id": 1, **keys}]}
    with pytest.raises(ValueError, match=r"image 0: annotation 0 has (area|category_id) .*expected"):
        processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation)


def test_an_area_of_none_is_that_of_the_box(processor):
    """As in rows of pandas and `datasets`."""
    annotation = {"annotations": [{"bbox": [1, 1, 9, 9], "category_id": 1, "area": None}]}
    image = np.zeros((60, 80, 3), np.uint8)
    assert processor(image, annotations=annotation, do_resize=False)["labels"][0]["area"].tolist() == [81]


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": 20_000, "width": 20_000}},
        {"size": {"shortest_edge": 10**30}},
        {"pad_size": {"height": 20_000, "width": 20_000}},
        {"rescale_factor": 0},
        {"rescale_factor": float("nan")},
        {"rescale_factor": "x"},
        {"image_mean": float("inf")},
        {"image_std": float("nan")},
        {"resample": 99},
    ],
)
def test_absurd_options_of_a_saved_processor_are_refused_at_once(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: .*expected"):
        DetrTorchvisionImageProcessor.from_dict(options)(np.zeros((60, 80, 3), np.uint8))


def test_a_long_strip_does_not_fill_the_memory(processor):
    with pytest.raises(ValueError, match=r"would be resized to 48000000x800.*limit the longest edge"):
        processor(np.zeros((1, 60_000, 3), np.uint8), size={"shortest_edge": 800, "longest_edge": None})
