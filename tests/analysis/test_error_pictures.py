import json
import re

from modeling_detr.analysis.error_pictures import error_pictures
from modeling_detr.pages import Page


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


def test_images_with_errors_come_with_their_kinds_and_classes(with_files):
    objects = [(0, 0, BOX), (1, 0, BOX), (2, 0, BOX)]
    detections = [(0, 0, BOX, 0.9), (1, 1, BOX, 0.9), (1, 0, FAR, 0.8), (2, 0, BOX, 0.3)]
    (section,) = error_pictures(with_files(objects, detections, num_images=3), 10, 0.5)
    _, figures = section.blocks
    assert [figure.caption for figure in figures.figures] == ["1.png", "2.png"]  # the first has no error
    assert [dict(figure.tags) for figure in figures.figures] == [
        {"error": ["class", "background"], "class": ["cat", "dog"]},
        {"error": ["missed"], "class": ["cat"]},
    ]


def test_tags_are_escaped(with_files):
    evidence = with_files([(0, 0, BOX)], [], names=('cat" onload="alert(1)', "dog"))
    html = Page("errors", error_pictures(evidence, 1, 0.5)).to_html()
    (tags,) = re.findall(r'data-tags="([^"]*)"', html)
    assert "alert" in tags
    assert 'onload="alert' not in html
    assert json.loads(tags.replace("&#34;", '"')) == {"error": ["missed"], "class": ['cat" onload="alert(1)']}


def test_a_model_without_errors_has_no_pictures(with_files):
    assert error_pictures(with_files([(0, 0, BOX)], [(0, 0, BOX, 0.9)]), 10, 0.5) == []
