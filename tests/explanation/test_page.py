import numpy as np
import pytest
import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.explanation import explain, explanation_page, map_points, measure_faithfulness
from modeling_detr.pages import Chart, Heat, Table


IMAGE = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
NAMES = {label: f"<script>alert({label})</script>" for label in range(5)}


@pytest.fixture
def model(tiny_detector):
    return tiny_detector()


def heats(page):
    """The maps of detections and of points."""
    return [block for section in page.sections for block in section.blocks if isinstance(block, Heat)]


def test_each_detection_has_its_maps_and_curves(model):
    explanation = explain(model, PROCESSOR, IMAGE, threshold=0, points=[(89, 0)])
    faithfulness = measure_faithfulness(model, PROCESSOR, IMAGE, explanation, steps=2, num_random=3)
    page = explanation_page(IMAGE, explanation, NAMES, faithfulness, map_points(model, PROCESSOR, IMAGE))
    detections, points = heats(page)
    assert detections.maps.shape == (7, 3, 2, 3)
    for index, name in enumerate(detections.layers):
        map_ = explanation.maps[name]
        expected = (255 * map_ / map_.amax((-2, -1), keepdim=True)).round()
        np.testing.assert_array_equal(detections.maps[:, index], expected)
    for index, found in enumerate(detections.objects):
        (table,) = (block for block in found.blocks if isinstance(block, Table))
        areas = faithfulness.methods["rollout"].areas()
        assert table.rows[1] == ("rollout", areas.deletion[index].item(), areas.insertion[index].item())
        random = [area[:, index].mean().item() for area in faithfulness.random.areas()]
        assert table.rows[3][1:] == pytest.approx(random)
        deletion, insertion = (block for block in found.blocks if isinstance(block, Chart))
        assert [line.name for line in deletion.lines] == ["random"] * 3 + ["attention", "rollout", "relevance"]
        assert insertion.lines[-1].values == faithfulness.methods["relevance"].insertion[index].tolist()
    assert points.start_point == pytest.approx((0, 89 / 90 * 3))
    assert (points.layers, points.start_layer) == (["layer 1", "mean of layers"], 0)
    html = page.to_html()
    assert "&lt;script&gt;alert(" in html
    assert "<script>alert" not in html


def test_a_page_without_curves_detections_methods_or_points_is_made(model):
    explanation = explain(model, PROCESSOR, IMAGE, threshold=0)
    (heat,) = heats(explanation_page(IMAGE, explanation, NAMES))
    assert not any(isinstance(block, Chart) for found in heat.objects for block in found.blocks)
    points = map_points(model, PROCESSOR, IMAGE)
    x, y = explanation.boxes[0].view(2, 2).mean(0).tolist()
    (_, of_points) = heats(explanation_page(IMAGE, explanation, NAMES, points=points))
    assert of_points.start_point == pytest.approx((y / 60 * 2, x / 90 * 3))  # the middle of the first detection
    none = explain(model, PROCESSOR, IMAGE, threshold=1)
    (of_points,) = heats(explanation_page(IMAGE, none, NAMES, points=points))
    assert of_points.start_point == (1, 1.5)
    without_maps = explain(model, PROCESSOR, IMAGE, threshold=0, methods=())
    assert heats(explanation_page(IMAGE, without_maps, NAMES)) == []
