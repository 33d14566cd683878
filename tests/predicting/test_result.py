import json
from pathlib import Path

import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from modeling_detr.predicting import Prediction
from modeling_detr.predicting.result import counted_by_class


@pytest.fixture
def prediction() -> Prediction:
    image = torch.arange(3 * 40 * 60, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(3, 40, 60)
    return Prediction(
        {
            "scores": torch.tensor([0.9, 0.6]),
            "labels": torch.tensor([1, 0]),
            "boxes": torch.tensor([[10.0, 5.0, 30.0, 25.0], [-5.0, 30.0, 70.0, 50.0]]),
        },
        {0: "disc", 1: "star"},
        (40, 60),
        image,
        "a.png",
    )


def test_it_reads_like_a_list_of_objects(prediction: Prediction) -> None:
    assert len(prediction) == 2
    assert prediction.names == ["star", "disc"]
    first, second = prediction
    assert (first.name, first.score, first.box_xyxy) == ("star", pytest.approx(0.9), (10.0, 5.0, 30.0, 25.0))
    assert second.mask is None
    assert prediction[0] == first
    assert prediction[-1] == second
    assert repr(prediction) == "<2 objects in a.png: star 1, disc 1>"


def test_the_most_frequent_classes_are_counted_first() -> None:
    assert counted_by_class("abbccc") == "c 3, b 2, a 1"
    assert counted_by_class("abcdefgh") == "a 1, b 1, c 1, d 1, e 1, f 1, …"
    assert counted_by_class([]) == ""


def test_its_values_survive_json(prediction: Prediction) -> None:
    read = json.loads(json.dumps(prediction.to_dict()))
    assert (read["height"], read["width"]) == (40, 60)
    assert read["detections"][0] == {
        "label": 1,
        "name": "star",
        "score": pytest.approx(0.9),
        "box_xyxy": [10.0, 5.0, 30.0, 25.0],
    }


def test_crops_are_inside_the_image(prediction: Prediction) -> None:
    crops = prediction.crop()
    assert [crop.size for crop in crops] == [(20, 20), (60, 10)]
    assert crops[0].getpixel((0, 0)) == tuple(prediction.image[:, 5, 10].tolist())
    assert prediction.crop(margin=0.5)[0].size == (40, 35)


def test_it_is_drawn_and_saved(prediction: Prediction, tmp_path: Path) -> None:
    assert prediction.save(tmp_path / "new" / "a.jpg").stat().st_size > 0


@pytest.mark.parametrize("name", ["drawn", "drawn.xyz"])
def test_a_name_without_the_suffix_of_an_image_is_an_error(prediction: Prediction, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: has no suffix of an image format"):
        prediction.save(tmp_path / name)


def test_a_notebook_shows_it_as_a_picture(prediction: Prediction) -> None:
    formats, _ = DisplayFormatter().format(prediction)
    assert formats["image/png"].startswith(b"\x89PNG")


def test_without_its_image_it_cannot_be_drawn(prediction: Prediction) -> None:
    bare = Prediction(prediction.result, prediction.class_names, prediction.size)
    assert "image/png" not in DisplayFormatter().format(bare)[0]
    with pytest.raises(ValueError, match="the prediction has no image"):
        bare.draw()


def test_segments_have_no_boxes_and_objects_no_segments(prediction: Prediction) -> None:
    with pytest.raises(AttributeError, match="predicts no panoptic segments"):
        _ = prediction.segments
    map_of_ids = torch.zeros(4, 4, dtype=torch.int64)
    map_of_ids[:2] = 1
    panoptic = Prediction(
        {"segmentation": map_of_ids, "segments_info": [{"id": 1, "label_id": 0, "score": 0.9}]}, {0: "disc"}, (4, 4)
    )
    assert repr(panoptic) == "<1 segment: disc 1>"
    assert panoptic.to_dict()["segments"] == [{"id": 1, "label": 0, "name": "disc", "score": 0.9, "area": 8}]
    with pytest.raises(AttributeError, match="has no boxes"):
        _ = panoptic.boxes
