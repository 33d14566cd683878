import numpy as np
import pytest
import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.explanation import explain, map_points
from modeling_detr.explanation import points as points_module


IMAGE = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 128, "longest_edge": 192})
CENTRES = [(7.5 + 15 * column, 7.5 + 15 * row) for row in range(4) for column in range(6)]


@pytest.fixture(params=["one part", "many parts"])
def model(request, tiny_detector, monkeypatch):
    if request.param == "many parts":
        monkeypatch.setattr(points_module, "NUMBERS_PER_CHUNK", 500)
    return tiny_detector(encoder_layers=2)


def expected(model, processor, points):
    """Attention of points by `explain`, (points, layers and their mean, h, w), each with a maximum of 255."""
    attention = explain(model, processor, IMAGE, threshold=1, methods=(), points=points).point_attention.mean(2)
    return torch.cat([attention, attention.mean(1, keepdim=True)], 1)


def scaled(attention):
    return 255 * attention / attention.amax((-2, -1), keepdim=True)


def test_every_point_has_the_attention_that_explain_gives_it(model):
    found = map_points(model, PROCESSOR, IMAGE)
    assert found.maps.shape == (24, 3, 4, 6)
    assert (found.extent, found.cell_size) == ((4.0, 6.0), 1)
    np.testing.assert_allclose(found.maps, scaled(expected(model, PROCESSOR, CENTRES)), atol=0.51)


def test_padding_is_cut_off(model):
    padded = DetrTorchvisionImageProcessor(**PROCESSOR.to_dict() | {"pad_size": {"height": 256, "width": 256}})
    found = map_points(model, padded, IMAGE)
    assert found.maps.shape == (24, 3, 4, 6)
    assert found.extent == (4.0, 6.0)
    np.testing.assert_allclose(found.maps, scaled(expected(model, padded, CENTRES)[..., :4, :6]), atol=0.51)


def test_cells_are_joined_where_the_maps_would_be_too_large(model):
    found = map_points(model, PROCESSOR, IMAGE, max_numbers=3 * 6 * 6)
    assert found.maps.shape == (6, 3, 2, 3)
    assert (found.extent, found.cell_size) == ((2.0, 3.0), 2)
    whole = expected(model, PROCESSOR, [CENTRES[row * 6 + column] for row in (1, 3) for column in (1, 3, 5)])
    joined = torch.nn.functional.avg_pool2d(whole, 2)
    np.testing.assert_allclose(found.maps, scaled(joined), atol=0.51)
    odd = map_points(model, PROCESSOR, IMAGE, max_numbers=3 * 2 * 2)  # 6 columns in cells of 4: the last one has 2
    assert (odd.maps.shape, odd.extent, odd.cell_size) == ((2, 3, 1, 2), (1.0, 1.5), 4)


def test_a_model_without_an_encoder_has_no_points(tiny_detector):
    model = tiny_detector(encoder_layers=0)
    with pytest.raises(ValueError, match="no encoder layers"):
        map_points(model, PROCESSOR, IMAGE)
    found = explain(model, PROCESSOR, IMAGE, threshold=0)
    assert found.maps["relevance"].shape == (7, 4, 6)
    with pytest.raises(ValueError, match="points: the model has no encoder layers"):
        explain(model, PROCESSOR, IMAGE, points=[(1, 1)])
