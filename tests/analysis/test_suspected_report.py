import json
from dataclasses import replace

import pytest
from evidence_cases import evidence_on, index_of

from modeling_detr.analysis.suspected_labels import suspected_labels
from modeling_detr.analysis.suspected_report import save_suspected, suspected_section
from modeling_detr.data import open_dataset
from modeling_detr.pages import Page


BOX, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
OBJECTS = [(0, 0, BOX), (1, 0, BOX)]
DETECTIONS = [(0, 0, BOX, 0.9), (0, 1, FAR, 0.8), (1, 1, BOX, 0.9)]  # one is not annotated, one has another class


def test_the_coco_file_has_the_labels_and_what_the_model_suggests(with_files, tmp_path):
    evidence = with_files(OBJECTS, DETECTIONS, num_images=3)
    path = save_suspected(evidence, suspected_labels(evidence), tmp_path, {10, 11})
    written = json.loads(path.read_text())
    assert [image["id"] for image in written["images"]] == [0, 1]  # not the image without doubts
    as_annotated, doubted, added = sorted(written["annotations"], key=lambda one: len(one))[0], None, None
    doubted = next(one for one in written["annotations"] if one.get("suspicion") == "wrong class")
    added = next(one for one in written["annotations"] if one.get("suspicion") == "not annotated")
    assert "suspicion" not in as_annotated
    assert (doubted["category_id"], doubted["suggested_category_id"], doubted["image_id"]) == (10, 11, 1)
    assert (added["category_id"], added["bbox"], added["image_id"]) == (11, [60, 60, 30, 30], 0)
    assert len(open_dataset(path).annotations) == 3  # a tool can open it beside the images


def test_suggestions_of_classes_that_the_dataset_lacks_are_left_out(with_files, tmp_path):
    evidence = with_files(OBJECTS, DETECTIONS, num_images=3)
    written = json.loads(save_suspected(evidence, suspected_labels(evidence), tmp_path, {10}).read_text())
    assert {one["category_id"] for one in written["annotations"]} == {10}
    assert not any("suggested_category_id" in one for one in written["annotations"])


def test_the_page_has_pictures_and_escaped_names(with_files):
    evidence = with_files(OBJECTS, DETECTIONS, num_images=2, names=("cat", "<b>dog</b>"))
    html = Page("labels", suspected_section(evidence, suspected_labels(evidence), 1)).to_html()
    assert html.count("<figure") == 1
    assert "<b>dog" not in html


def test_no_suspected_labels_have_no_section(with_files):
    evidence = with_files(OBJECTS, [(0, 0, BOX, 0.9), (1, 0, BOX, 0.9)], num_images=2)
    assert suspected_section(evidence, suspected_labels(evidence), 5) == []


@pytest.fixture
def in_two_splits():
    """A dataset whose two splits use the same ids and file names, with an object each that nobody annotated."""
    index = index_of([], 2)
    images = tuple(replace(index.images[0], id=1, path=f"/data/{split}/1.png") for split in "ab")
    return evidence_on(replace(index, images=images), [(0, 0, BOX, 0.9), (1, 0, FAR, 0.9)])


def test_images_of_two_splits_with_the_same_id_and_name_are_told_apart(in_two_splits, tmp_path):
    path = save_suspected(in_two_splits, suspected_labels(in_two_splits), tmp_path, {10, 11})
    written = json.loads(path.read_text())
    assert {image["id"]: image["file_name"] for image in written["images"]} == {1: "a/1.png", 2: "b/1.png"}
    assert {one["image_id"]: one["bbox"][0] for one in written["annotations"]} == {1: 10, 2: 60}


def test_suggested_boxes_end_at_the_edge_of_the_image(hand_made, tmp_path):
    detections = [(0, 1, (-30.0, 10.0, 50.0, 50.0), 0.9), (0, 0, (60.0, 60.0, 130.0, 110.0), 0.9)]
    evidence = hand_made([(0, 0, (0.0, 10.0, 50.0, 50.0))], detections)
    written = json.loads(save_suspected(evidence, suspected_labels(evidence), tmp_path, {10, 11}).read_text())
    doubted, added = written["annotations"]
    assert (doubted["suggested_bbox"], added["bbox"]) == ([0, 10, 50, 40], [60, 60, 40, 40])
