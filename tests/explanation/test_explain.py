import pytest
import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.explanation import METHODS, explain
from modeling_detr.prediction import predict_objects


IMAGE = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def test_the_detections_are_those_of_predict(tiny_detector):
    model = tiny_detector()
    found = explain(model, PROCESSOR, IMAGE, threshold=0.0, points=[(0, 0), (89, 59)])
    expected = predict_objects(model, PROCESSOR, IMAGE, threshold=0.0)
    for name in ("scores", "labels", "boxes"):
        torch.testing.assert_close(getattr(found, name), expected[name].to(getattr(found, name).dtype))
    assert sorted(found.queries.tolist()) == list(range(7))
    assert found.cross_attention.shape == (7, 2, 4, 2, 3)
    assert found.point_attention.shape == (2, 1, 4, 2, 3)
    assert {name: map_.shape for name, map_ in found.maps.items()} == dict.fromkeys(METHODS, (7, 2, 3))
    assert all((map_ >= 0).all() for map_ in found.maps.values())
    assert found.on_image(found.maps["attention"]).shape == (7, 60, 90)


def test_without_detections_there_are_no_maps_and_no_error(tiny_detector):
    found = explain(tiny_detector(), PROCESSOR, IMAGE, threshold=1.0)
    assert len(found.scores) == 0
    assert found.on_image(found.maps["attention"]).shape == (0, 60, 90)


def test_sdpa_and_eager_give_the_same_maps(tiny_detector):
    results = []
    for implementation in ("sdpa", "eager"):
        model = tiny_detector()
        model.set_attn_implementation(implementation)
        results.append(explain(model, PROCESSOR, IMAGE, threshold=0.0, points=[(30, 30)]).arrays())
    for name, array in results[0].items():
        torch.testing.assert_close(array, results[1][name], rtol=1e-4, atol=1e-6)


def test_a_model_with_masks_is_explained_by_its_detector(tiny_segmenter):
    model = tiny_segmenter(certain_label=1)
    found = explain(model, PROCESSOR, IMAGE)
    whole = explain(model.detr, PROCESSOR, IMAGE)
    assert found.labels.tolist() == [1] * 7
    for name, array in found.arrays().items():
        torch.testing.assert_close(array, whole.arrays()[name])


def test_padding_is_cut_from_the_map_on_the_image(tiny_detector):
    """The processor pads to a square; what is drawn over the image covers the image only."""
    processor = DetrTorchvisionImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}, pad_size={"height": 192, "width": 192}
    )
    found = explain(tiny_detector(), processor, IMAGE, threshold=0.0, points=[(89, 59)])
    assert (found.processed_size, found.canvas_size) == ((64, 96), (192, 192))
    left_to_right = torch.arange(6.0).expand(6, 6)
    on_image = found.on_image(left_to_right)
    assert on_image.shape == (60, 90)
    assert on_image[30, 0] == 0
    assert 2.2 < on_image[30, -1] < 2.6  # the image ends where half of the canvas does
    assert found.point_attention[..., 2:, :].max() == found.point_attention[..., 3:].max() == 0


def test_the_cell_of_a_point_covers_it(tiny_detector):
    model = tiny_detector()
    with torch.no_grad():
        everywhere = [(x, y) for y in (5, 50) for x in (5, 45, 85)]  # the centres of 2 x 3 cells, in order
        found = explain(model, PROCESSOR, IMAGE, threshold=1.0, methods=(), points=everywhere)
        inputs = PROCESSOR(IMAGE)
        expected = model(**inputs, output_attentions=True).encoder_attentions[0][0]
    torch.testing.assert_close(found.point_attention[:, 0].flatten(2), expected.transpose(0, 1), rtol=0, atol=1e-6)
    assert len(found.queries) == 0


@pytest.mark.parametrize("point", [(90, 0), (0, 60), (-1, 0), (float("nan"), 0)])
def test_a_point_outside_the_image_is_an_error(tiny_detector, point):
    with pytest.raises(ValueError, match="expected a point inside the image of 90x60 pixels"):
        explain(tiny_detector(), PROCESSOR, IMAGE, points=[point])


def test_an_unknown_method_is_an_error(tiny_detector):
    with pytest.raises(ValueError, match="methods: unknown method 'rolout'; did you mean 'rollout'"):
        explain(tiny_detector(), PROCESSOR, IMAGE, methods=["rolout"])
