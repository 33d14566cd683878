"""The label of each class."""

import numpy as np
import pytest

from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.structures_detr import AnnotationTable, Category, DetectionIndex, ImageRecord


def shapes_index() -> DetectionIndex:
    boxes = np.array([[10.0, 10, 50, 60], [20, 20, 60, 70], [5, 5, 45, 55]])
    return DetectionIndex(
        name="shapes",
        images=tuple(ImageRecord(number, f"{number}.png", 100, 100) for number in range(3)),
        categories=(Category(1, "disc"), Category(5, "star")),
        annotations=AnnotationTable(
            np.arange(3), np.array([0, 1, 0]), boxes, np.full(3, 2000.0), np.zeros(3, dtype=bool)
        ),
    )


def test_classes_are_matched_by_name() -> None:
    adopted = adopt_model_labels(shapes_index(), {0: "star", 1: "N/A", 2: "disc", 3: "N/A"})
    assert [category.name for category in adopted.categories] == ["star", "N/A", "disc", "N/A"]
    assert [category.id for category in adopted.categories][::2] == [5, 1]
    assert len({category.id for category in adopted.categories}) == 4
    assert adopted.annotations.label.tolist() == [2, 0, 2]
    metrics = CocoEvaluator(adopted).compute()
    assert list(metrics.per_class) == ["star", "N/A (label 1)", "disc", "N/A (label 3)"]
    assert metrics.ap == 0


def test_classes_missing_from_the_dataset_are_stuff_if_they_are_for_the_model() -> None:
    adopted = adopt_model_labels(shapes_index(), {0: "star", 1: "sky", 2: "disc"}, stuff_labels=[1, 2])
    assert [category.is_thing for category in adopted.categories] == [True, False, True]


def test_a_dataset_with_the_models_classes_is_returned_unchanged() -> None:
    index = shapes_index()
    assert adopt_model_labels(index, index.id2label) is index


def test_a_class_that_the_model_does_not_have_is_an_error() -> None:
    message = r"shapes: has classes that the model does not have: disc \(did you mean 'disk'\?\); .* has disk, star"
    with pytest.raises(ValueError, match=message):
        adopt_model_labels(shapes_index(), {0: "disk", 1: "star"})


def test_the_suggestion_stands_beside_the_class_that_it_is_for() -> None:
    with pytest.raises(ValueError, match=r"does not have: disc \(did you mean 'disk'\?\), star; the model has disk"):
        adopt_model_labels(shapes_index(), {0: "disk"})
