import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from modeling_detr.errors_detr import ModelError
from modeling_detr.predicting import Detector, Tiling
from modeling_detr.predicting.tiles import Tile, merge_tiles, without_small
from modeling_detr.structures_detr import DetectionResult


Box = tuple[float, float, float, float]


def seen(objects: Sequence[tuple[int, Box]], tile: Tile, score: float = 0.9) -> DetectionResult:
    """What a perfect model sees of objects (label, box in pixels of the image) in a tile: the visible parts."""
    labels, boxes = [], []
    for label, (x0, y0, x1, y1) in objects:
        box = max(x0, tile.left), max(y0, tile.top), min(x1, tile.right), min(y1, tile.bottom)
        if box[2] - box[0] > 3 and box[3] - box[1] > 3:
            labels.append(label)
            boxes.append([box[0] - tile.left, box[1] - tile.top, box[2] - tile.left, box[3] - tile.top])
    return {
        "scores": torch.full((len(labels),), score),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }


def merged(objects: Sequence[tuple[int, Box]], tiling: Tiling, size: tuple[int, int], whole: bool) -> list[tuple]:
    tiles = tiling.tiles(*size)
    if not whole:
        tiles = tiles[:-1]
    results = [seen(objects, tile) for tile in tiles]
    if whole:
        results[-1] = without_small(results[-1], tiling)
    found = merge_tiles(results, tiles, size)
    return sorted(zip(found["labels"].tolist(), map(tuple, found["boxes"].tolist()), strict=True))


@pytest.mark.parametrize("size", [(100, 100), (100, 101), (257, 1000), (999, 350)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_image_and_overlap(size: tuple[int, int], overlap: float) -> None:
    tiles = Tiling(100, overlap).tiles(*size)
    covered = torch.zeros(size)
    for tile in tiles[:-1] or tiles:
        assert (tile.right - tile.left, tile.bottom - tile.top) == (100, 100)
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert covered.min() >= 1
    assert tiles[-1] == (0, 0, size[1], size[0])
    starts = sorted({tile.left for tile in tiles[:-1]})
    assert all(later - earlier <= 100 * (1 - overlap) + 1 for earlier, later in itertools.pairwise(starts))


def test_an_image_that_fits_into_a_tile_is_not_divided() -> None:
    assert Tiling(100).tiles(80, 100) == [(0, 0, 100, 80)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("whole", [True, False])
def test_objects_up_to_the_overlap_occur_once_wherever_they_are(seed: int, whole: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    objects = []
    for _ in range(30):
        side = torch.rand(2, generator=generator) * 30 + 8
        corner = torch.rand(2, generator=generator) * (torch.tensor([600.0, 400.0]) - side)
        box = torch.cat([corner, corner + side])
        label = int(torch.randint(0, 3, (), generator=generator))
        others = torch.tensor([there for other, there in objects if other == label]).reshape(-1, 4)
        apart = ((box[:2] > others[:, 2:] + 2) | (box[2:] < others[:, :2] - 2)).any(-1)
        if bool(apart.all()):
            objects.append((label, tuple(box.tolist())))
    found = merged(objects, Tiling(200, 0.2), (400, 600), whole)
    assert len(found) == len(objects)
    for (label, box), (expected, truth) in zip(found, sorted(objects), strict=True):
        assert label == expected
        assert box == pytest.approx(truth, abs=1e-3)


@pytest.mark.parametrize("whole", [True, False])
def test_an_object_over_several_tiles_is_put_together(whole: bool) -> None:
    wide = (0, (50.0, 90.0, 560.0, 120.0))
    assert merged([wide], Tiling(200, 0.2), (200, 600), whole) == [(0, pytest.approx(wide[1], abs=1e-3))]


def test_neighbours_and_other_classes_are_not_joined() -> None:
    objects = [(0, (100.0, 50.0, 180.0, 90.0)), (0, (182.0, 50.0, 300.0, 90.0)), (1, (100.0, 50.0, 180.0, 90.0))]
    assert len(merged(objects, Tiling(200, 0.2), (200, 400), whole=True)) == 3


def test_objects_of_one_tile_are_never_merged() -> None:
    tile = Tile(0, 0, 100, 100)
    twice = seen([(0, (10.0, 10.0, 40.0, 40.0)), (0, (11.0, 10.0, 41.0, 40.0))], tile)
    assert len(merge_tiles([twice], [tile], (100, 100))["scores"]) == 2


def test_masks_are_put_together() -> None:
    tiling, box = Tiling(40, 0.25), (10.0, 10.0, 90.0, 30.0)
    tiles = tiling.tiles(40, 100)[:-1]
    results = []
    for tile in tiles:
        result = seen([(0, box)], tile)
        mask = torch.zeros(1, 40, 40, dtype=torch.bool)
        x0, y0, x1, y1 = result["boxes"][0].int().tolist()
        mask[0, y0:y1, x0:x1] = True
        results.append({**result, "masks": mask})
    found = merge_tiles(results, tiles, (40, 100))  # type: ignore[arg-type]
    assert found["masks"].shape == (1, 40, 100)
    assert int(found["masks"].sum()) == 80 * 20


@pytest.mark.parametrize(("size", "overlap"), [(0, 0.2), (100, -0.1), (100, 1.0)])
def test_impossible_tiles_are_an_error(size: int, overlap: float) -> None:
    with pytest.raises(ValueError, match=r"(tile|overlap): got"):
        Tiling(size, overlap)


def test_a_detector_predicts_in_tiles(model_folder: Path) -> None:
    detector = Detector.from_pretrained(model_folder, device="cpu")
    image = torch.randint(0, 256, (3, 60, 150), dtype=torch.uint8)
    small = detector(image, tiling=Tiling(150), threshold=0.0)
    assert torch.equal(small.boxes, detector(image, threshold=0.0).boxes)
    tiled = detector(image, tiling=Tiling(60), threshold=0.0, batch_size=2)
    assert 0 < len(tiled) <= 5 * 7
    assert tiled.scores.tolist() == sorted(tiled.scores.tolist(), reverse=True)


def test_panoptic_segments_cannot_be_merged(tiny_segmenter, model_folder: Path) -> None:
    processor = Detector.from_pretrained(model_folder).processor
    panoptic = Detector(tiny_segmenter(stuff_labels=[1]), processor)
    with pytest.raises(ModelError, match="panoptic segments, which cannot be merged from tiles"):
        panoptic(torch.zeros(3, 60, 90, dtype=torch.uint8), tiling=Tiling(60))
