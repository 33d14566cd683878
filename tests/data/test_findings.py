"""Collecting findings: a reader continues after errors, and reports each with its location."""

import json

import pytest

from modeling_detr.data.findings import Findings
from modeling_detr.data.open import open_dataset
from modeling_detr.errors_detr import DatasetReadError


def collect(path):
    findings = Findings(collects=True)
    return open_dataset(path, findings=findings), findings


def places(findings, kind):
    return [f"{found.where}: {found.message}" for found in findings.items if found.kind == kind]


def test_strict_findings_raise_the_first_error():
    with pytest.raises(DatasetReadError, match=r"^a\.txt, line 3: is odd; correct it \(format='voc'\)\.$"):
        Findings().error("line", "a.txt, line 3", "is odd", "correct it", {"format": "voc"}, raises=DatasetReadError)
    findings = Findings(collects=True)
    findings.error("line", "a.txt, line 3", "is odd", "correct it", {"format": "voc"})
    (finding,) = findings.items
    assert str(finding) == "a.txt, line 3: is odd; correct it (format='voc')."
    assert finding.text(lambda name, value: f"--{name} {value}") == "a.txt, line 3: is odd; correct it (--format voc)."


def test_all_errors_of_a_coco_file_are_collected(coco_folder):
    file = coco_folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 77
    content["annotations"][1]["bbox"] = [1, "x", 3, 4]
    content["annotations"] += [{**content["annotations"][2], "id": 9, "category_id": [1]}]
    content["images"] += [
        {**content["images"][1], "file_name": "twin.png"},
        {"id": 5, "file_name": "gone.jpg", "height": 9, "width": 9},
    ]
    file.write_text(json.dumps(content))
    index, findings = collect(coco_folder)
    assert len(index.annotations) == 2  # the third of train, one of val
    assert [place.partition(".json, ")[2][:42] for place in places(findings, "unknown class")] == [
        "annotation 0 of image 1: got category_id 7",
        "annotation 9 of image 2: got category_id [",
    ]
    assert "annotation 1 of image 1: got bbox [1, 'x', 3, 4]" in places(findings, "box")[0]
    assert "2 images have the id 2" in places(findings, "duplicate id")[0]
    assert "'gone.jpg' is missing" in places(findings, "missing image")[0]
    assert {found.severity for found in findings.items} == {"error"}


def test_all_errors_of_yolo_labels_and_images_are_collected(yolo_folder):
    label_file = yolo_folder / "labels" / "train" / "a.txt"
    label_file.write_text(label_file.read_text() + "7 .5 .5 .1 .1\nhello\n0 .5 .5 .1\n")
    (yolo_folder / "images" / "val" / "c.jpg").write_bytes(b"")
    index, findings = collect(yolo_folder)
    assert (len(index), len(index.annotations)) == (3, 4)
    assert {name: members.tolist() for name, members in index.splits.items()} == {"train": [0, 1], "val": [2]}
    assert [found.where.rpartition("/")[2] for found in findings.items if found.kind != "no label file"] == [
        "a.txt, line 3",
        "a.txt, line 4",
        "a.txt, line 5",
        "c.jpg",
    ]


def test_all_errors_of_voc_files_are_collected(voc_folder, edit):
    edit(voc_folder / "Annotations" / "a.xml", "<name>cat</name>", "<name></name>")
    (voc_folder / "Annotations" / "b.xml").write_text("<annotation><object>")
    (voc_folder / "JPEGImages" / "c.jpg").unlink()
    index, findings = collect(voc_folder)
    assert (len(index), len(index.annotations)) == (2, 2)
    assert sorted(found.kind for found in findings.items if found.severity == "error") == [
        "missing image",
        "unknown class",
        "unreadable file",
    ]


def test_every_case_of_a_warning_has_a_location_and_they_share_one_note(yolo_folder):
    label_file = yolo_folder / "labels" / "train" / "a.txt"
    label_file.write_text(label_file.read_text() + "0 .5 .5 0 .1\n0 .5 .5 .1 0\n1 .9 .9 .4 .1\n")
    index, findings = collect(yolo_folder)
    assert [found.where.rpartition("/")[2] for found in findings.items if found.kind == "zero area"] == [
        "a.txt, line 3",
        "a.txt, line 4",
    ]
    assert [note for note in index.notes if note.startswith("2 boxes have zero area")]
    assert [found.action for found in findings.items if found.kind == "past the edge"] == [
        "the box is clipped to the image"
    ]
