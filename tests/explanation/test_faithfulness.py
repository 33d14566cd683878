import pytest
import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.explanation import explain, measure_faithfulness, num_runs
from modeling_detr.explanation.faithfulness import CurveReader


IMAGE = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@pytest.fixture
def planted():
    """An image whose score is the share of a bright quarter that is left; the rest is noise without effect."""
    pixels = torch.randn(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    region = torch.zeros(40, 60, dtype=torch.bool)
    region[10:30, 15:45] = True
    pixels[:, :, region] = torch.sign(pixels[:, :, region])

    def score(changed):
        return (changed == pixels).all(1)[0][region].float().mean()[None]

    return CurveReader(score, pixels, steps=20), region


def test_the_region_that_matters_has_the_areas_that_follow_from_its_size(planted):
    reader, region = planted
    curves = reader.read(region.float())
    torch.testing.assert_close(curves.deletion[0, :6], torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0]))
    assert curves.deletion[0, 5:].max() == 0
    torch.testing.assert_close(curves.insertion[0, :6], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1]))
    areas = curves.areas()
    assert areas.deletion.item() == pytest.approx(0.25 / 2)
    assert areas.insertion.item() == pytest.approx(1 - 0.25 / 2)


def test_the_opposite_map_has_the_opposite_areas(planted):
    reader, region = planted
    areas = reader.read(1 - region.float()).areas()
    assert areas.deletion.item() == pytest.approx(1 - 0.25 / 2)
    assert areas.insertion.item() == pytest.approx(0.25 / 2)


def test_random_maps_have_areas_of_a_half(planted):
    reader, _ = planted
    generator = torch.Generator().manual_seed(1)
    areas = reader.read(torch.rand(40, 60, generator=generator)).areas()
    assert areas.deletion.item() == pytest.approx(0.5, abs=0.02)
    assert areas.insertion.item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("pad", [None, {"height": 192, "width": 192}], ids=["whole", "padded"])
def test_curves_start_and_end_at_the_score_of_the_whole_image(tiny_detector, pad):
    processor = PROCESSOR if pad is None else DetrTorchvisionImageProcessor(**PROCESSOR.to_dict() | {"pad_size": pad})
    model = tiny_detector()
    explanation = explain(model, processor, IMAGE, threshold=0.0, methods=["attention", "rollout"])
    runs: list[int] = []
    found = measure_faithfulness(model, processor, IMAGE, explanation, steps=2, num_random=3, progress=runs.append)
    assert sum(runs) == num_runs(explanation, steps=2, num_random=3)
    assert {name: curves.deletion.shape for name, curves in found.methods.items()} == {
        "attention": (7, 3),
        "rollout": (7, 3),
    }
    assert found.random.insertion.shape == (3, 7, 3)
    for curves in (*found.methods.values(), found.random):
        torch.testing.assert_close(curves.deletion[..., 0], curves.insertion[..., -1])
        # the query of a detection has its score and its box; another one may do better
        assert (curves.deletion[..., 0] >= explanation.scores - 1e-5).all()
    again = measure_faithfulness(model, processor, IMAGE, explanation, steps=2, num_random=3)
    torch.testing.assert_close(again.random.deletion, found.random.deletion, rtol=0, atol=0)


def test_an_image_without_detections_has_no_curves(tiny_detector):
    model = tiny_detector()
    explanation = explain(model, PROCESSOR, IMAGE, threshold=1.0)
    found = measure_faithfulness(model, PROCESSOR, IMAGE, explanation, steps=1, num_random=0)
    assert {curves.areas().deletion.shape for curves in found.methods.values()} == {(0,)}
    assert found.random.deletion.shape == (0, 0, 2)
