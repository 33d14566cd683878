import json

import pytest

from modeling_detr.analysis.comparison import Comparison
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
    assert "may be chance" in comparison.text(("a", "a"))


def test_names_are_escaped(with_files):
    evidence = with_files(OBJECTS, [(0, 0, BOX, 0.9)], num_images=4, names=("<i>cat", "dog"))
    comparison = Comparison.of(evidence, evidence, 0.5, samples=5)
    html = Page("comparison", comparison.sections(("<b>", "new"), 8)).to_html()
    assert "<i>cat" not in html
    assert "<b>" not in html
