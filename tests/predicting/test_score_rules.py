import numpy as np
import pytest
import torch

from modeling_detr.errors_detr import ModelError
from modeling_detr.predicting.score_rules import OTHERS, ScoreRules
from modeling_detr.structures_detr import DetectionResult


OBJECTS: DetectionResult = {
    "scores": torch.tensor([0.9, 0.6, 0.4]),
    "labels": torch.tensor([1, 0, 1]),
    "boxes": torch.arange(12.0).reshape(3, 4),
}


def rules(**options: object) -> ScoreRules:
    return ScoreRules.of("runs/mine", ["cat", "dog"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.9, 0.6]),
        ({"threshold": 0.0}, [0.9, 0.6, 0.4]),
        ({"threshold": {"dog": 0.3}}, [0.9, 0.6, 0.4]),
        ({"threshold": {"dog": 0.3, OTHERS: 0.7}}, [0.9, 0.4]),
        ({"classes": ["cat"], "threshold": 0.0}, [0.6]),
        ({"classes": "cat", "threshold": 0.0}, [0.6]),
        ({"classes": "cat, dog"}, [0.9, 0.6]),
        ({"threshold": np.float32(0.7)}, [0.9]),
        ({"threshold": torch.tensor(0.7)}, [0.9]),
        ({"threshold": 0}, [0.9, 0.6, 0.4]),
        ({"classes": []}, []),
    ],
)
def test_objects_count_by_their_score_and_class(options: dict[str, object], kept: list[float]) -> None:
    result = rules(**options).of_objects(OBJECTS)
    assert result["scores"].tolist() == pytest.approx(kept)
    assert len(result["boxes"]) == len(result["labels"]) == len(kept)


@pytest.mark.parametrize("options", [{"classes": ["cat", "dgo"]}, {"threshold": {"dgo": 0.3}}])
def test_an_unknown_class_is_an_error(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="has no class 'dgo'; did you mean 'dog'"):
        rules(**options)


def test_the_label_of_a_class_is_not_its_name() -> None:
    with pytest.raises(ModelError, match="has no class '0'; expected one of cat, dog"):
        rules(classes=[0])


@pytest.mark.parametrize("threshold", [1.5, -0.1, 50, float("nan"), "high", [0.5, 0.5], {"cat": 2}, {OTHERS: "high"}])
def test_a_threshold_that_is_no_score_is_an_error(threshold: object) -> None:
    with pytest.raises(ValueError, match="expected a score from 0 to 1, or 'best'"):
        rules(threshold=threshold)


@pytest.mark.parametrize("options", [{"threshold": "best"}, {"threshold": {"cat": 0.3}}, {"calibrated": True}])
def test_panoptic_segments_have_one_threshold(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="predicts panoptic segments"):
        rules(is_panoptic=True, **options)


def test_segments_of_other_classes_become_empty_space() -> None:
    found = rules(is_panoptic=True, classes=["dog"]).of_segments(
        {
            "segmentation": torch.tensor([[4, 4, 7]]),
            "segments_info": [{"id": 4, "label_id": 0, "score": 0.9}, {"id": 7, "label_id": 1, "score": 0.9}],
        }
    )
    assert found["segmentation"].tolist() == [[0, 0, 1]]
    assert found["segments_info"] == [{"id": 1, "label_id": 1, "score": 0.9}]
