import json
from dataclasses import replace

import pytest
from evidence_cases import evidence_on, index_of

from modeling_detr.analysis.comparison import Comparison
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.pages import Page


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
OBJECTS = [(number, 0, BOX) for number in range(4)]


def test_more_hits_are_better(with_files):
    before = with_files(OBJECTS, [(0, 0, BOX, 0.9), (3, 0, BOX, 0.8)], num_images=4)
    after = with_files(OBJECTS, [(number, 0, BOX, 0.9) for number in range(3)], num_images=4)
    comparison = Comparison.of(before, after, 0.5, samples=20)
    assert comparison.differences["ap"].value == pytest.approx(
        after.evaluator.compute().ap - before.evaluator.compute().ap, abs=1e-12
    )
    assert [(one.image_index, one.change) for one in comparison.images] == [(1, -1), (2, -1), (3, 1)]
    assert comparison.text(("old", "new")).splitlines()[-1] == "2 images better, 1 worse"
    json.dumps(comparison.as_dict(), allow_nan=False)
    html = Page("comparison", comparison.sections(("old", "new"), 8)).to_html()
    assert html.count("<figure") == 3


def test_equal_models_do_not_differ(with_files):
    evidence = with_files(OBJECTS, [(0, 0, BOX, 0.9)], num_images=4)
    comparison = Comparison.of(evidence, evidence, 0.5, samples=20)
    assert comparison.images == []
    text = comparison.text(("a", "a"))
    assert "+0.000 (95% interval +0.000 to +0.000)" in text
    assert "chance" not in text


def test_names_are_escaped(with_files):
    evidence = with_files(OBJECTS, [(0, 0, BOX, 0.9)], num_images=4, names=("<i>cat", "dog"))
    comparison = Comparison.of(evidence, evidence, 0.5, samples=5)
    html = Page("comparison", comparison.sections(("<b>", "new"), 8)).to_html()
    assert "<i>cat" not in html
    assert "<b>" not in html


def test_detections_in_the_labels_of_the_dataset_are_of_the_same_image_and_class():
    index = index_of([(0, 0, BOX), (1, 1, BOX)], 2)
    index = replace(index, images=tuple(replace(image, id=1) for image in index.images))  # as in two splits
    labels = adopt_model_labels(index, {0: "bird", 1: "dog", 2: "cat"})
    found = evidence_on(labels, [(0, 2, BOX, 0.9), (1, 1, BOX, 0.8), (1, 0, BOX, 0.7)]).in_labels_of(index)
    assert found.evaluator.compute().ap == pytest.approx(1)
    assert len(found.scoring.detections.labels) == 2  # without the bird
