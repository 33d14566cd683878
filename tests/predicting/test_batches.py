from pathlib import Path

import pytest
import torch
from noise_images import picture

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.predicting.batches import PreparedBatch, PreparedBatches
from modeling_detr.predicting.inputs import InputImage


PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def images(folder: Path, sizes: list[tuple[int, int]]) -> list[InputImage]:
    paths = [picture(folder / f"{number}.png", size) for number, size in enumerate(sizes)]
    return [InputImage(path.name, str(path)) for path in paths]


def prepared(found: list[InputImage], **options: int) -> list[PreparedBatch]:
    return [*PreparedBatches(found, range(len(found)), PROCESSOR, **options)]


def test_batches_have_images_of_one_size_and_no_padding(tmp_path: Path) -> None:
    found = images(tmp_path, [(90, 60), (60, 90), (90, 60), (90, 60), (60, 90), (50, 50)])
    batches = prepared(found, batch_size=2)
    assert [batch.images for batch in batches] == [[0, 2], [1, 4], [3], [5]]
    for batch in batches:
        for image, pixels in zip(batch.images, batch.inputs["pixel_values"], strict=True):
            assert torch.equal(pixels, PROCESSOR(found[image].source)["pixel_values"][0])
        assert bool(batch.inputs["pixel_mask"].all())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_costs_itself_only(tmp_path: Path, num_workers: int) -> None:
    found = images(tmp_path, [(90, 60)] * 4)
    content = Path(found[1].source).read_bytes()
    Path(found[1].source).write_bytes(content[:2000])  # its header can be read
    Path(found[2].source).unlink()
    batches = prepared(found, batch_size=4, num_workers=num_workers)
    assert [batch.images for batch in batches if batch.images] == [[0, 3]]
    unreadable = {image: reason for batch in batches for image, reason in batch.unreadable.items()}
    assert unreadable.keys() == {1, 2}
    assert "No such file" in unreadable[2]


def test_an_image_with_another_size_than_its_header_says_is_a_batch_by_itself(tmp_path: Path) -> None:
    found = images(tmp_path, [(90, 60), (90, 60)])
    batches = PreparedBatches(found, range(2), PROCESSOR, batch_size=2)
    picture(Path(found[1].source), (60, 90))  # it was replaced after the batches were planned
    assert [batch.images for batch in batches] == [[0], [1]]


def test_original_images_are_left_out_if_nothing_needs_them(tmp_path: Path) -> None:
    found = images(tmp_path, [(90, 60)])
    (batch,) = PreparedBatches(found, [0], PROCESSOR, keep_pixels=False)
    assert batch.pixels is None
    assert batch.sizes == [(60, 90)]
