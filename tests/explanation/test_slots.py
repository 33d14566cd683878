import pytest
import torch

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.explanation import Slots, collect_slots
from modeling_detr.prediction import predict_objects


IMAGES = torch.randint(0, 256, (3, 3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


def test_every_box_of_every_slot_is_that_of_predict(tiny_detector):
    model = tiny_detector()
    found = collect_slots(model, PROCESSOR, iter(IMAGES))
    assert found.boxes.shape == (3, 7, 4)
    for image, boxes, scores, labels in zip(IMAGES, found.boxes, found.scores, found.labels, strict=True):
        expected = predict_objects(model, PROCESSOR, image, threshold=0.0)
        order = scores.argsort(descending=True)
        torch.testing.assert_close(scores[order], expected["scores"])
        assert labels[order].tolist() == expected["labels"].tolist()
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1)
        torch.testing.assert_close((corners * torch.tensor([90, 60, 90, 60]))[order], expected["boxes"])


def test_a_model_with_masks_shows_its_detector(tiny_segmenter):
    model = tiny_segmenter(certain_label=1)
    found = collect_slots(model, PROCESSOR, IMAGES[:1])
    torch.testing.assert_close(found.boxes, collect_slots(model.detr, PROCESSOR, IMAGES[:1]).boxes)
    assert found.statistics().top_label.tolist() == [1] * 7


def test_a_slot_that_stays_in_place_is_specialised_and_one_that_never_fires_is_counted():
    """Slot 0 stays at one place in two sizes, slot 1 is anywhere in one size and never fires."""
    places = torch.tensor([[[0.5, 0.5], [0.1, 0.5]], [[0.5, 0.5], [0.9, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    sizes = torch.tensor([[[0.2, 0.2], [0.4, 0.4]], [[0.6, 0.6], [0.4, 0.4]], [[0.4, 0.4], [0.4, 0.4]]])
    scores = torch.tensor([[0.9, 0.4], [0.5, 0.3], [0.1, 0.0]])
    labels = torch.tensor([[2, 0], [2, 1], [0, 0]])
    found = Slots(torch.cat([places, sizes], -1), scores, labels).statistics(threshold=0.5)
    assert found.num_detections.tolist() == [2, 0]
    assert found.top_label.tolist() == [2, -1]
    assert found.top_label_share[0] == 1
    assert found.top_label_share[1].isnan()
    torch.testing.assert_close(found.place_specialisation, torch.tensor([1.0, -1.0]))  # variances 0, 2v of v
    torch.testing.assert_close(found.size_specialisation, torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(found.mean_box[0], torch.tensor([0.5, 0.5, 0.4, 0.4]))


def test_no_images_and_training_mode_are_errors(tiny_detector):
    with pytest.raises(ValueError, match="images: got none, expected at least one"):
        collect_slots(tiny_detector(), PROCESSOR, [])
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        collect_slots(tiny_detector().train(), PROCESSOR, IMAGES)
