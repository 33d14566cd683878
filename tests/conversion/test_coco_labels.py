"""The names of the original's labels, compared with COCO's own list of categories."""

import json

import pytest
from reference_cases import REFERENCE

from modeling_detr.conversion.coco_labels import LAST_THING, coco_id2label


@pytest.mark.parametrize("num_labels", [91, 250])
def test_names_are_those_of_cocos_categories(num_labels):
    categories = json.loads((REFERENCE / "golden" / "panoptic_quality" / "ground_truth.json").read_text())[
        "categories"
    ]
    names = {entry["id"]: entry["name"] for entry in categories if entry["id"] < num_labels}
    id2label = coco_id2label(num_labels)
    assert list(id2label) == list(range(num_labels))
    assert {label: name for label, name in id2label.items() if name != "N/A"} == names
    assert max(entry["id"] for entry in categories if entry["isthing"]) == LAST_THING


def test_other_numbers_of_classes_have_no_names():
    assert coco_id2label(20) is None
