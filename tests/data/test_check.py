import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from modeling_detr.commands import run_command
from modeling_detr.commands.data import main
from modeling_detr.data.check import check_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.open import open_dataset


def kinds(report, severity):
    return sorted(finding.kind for finding in report.findings if finding.severity == severity)


def test_a_valid_dataset_has_no_errors_and_correct_counts(voc_folder, capsys):
    assert main(["check", str(voc_folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["format"], content["images"], content["boxes"], content["errors"]) == ("voc", 4, 4, 0)
    assert [(entry["name"], entry["boxes"], entry["share"]) for entry in content["classes"]] == [
        ("cat", 2, 0.5),
        ("dog", 2, 0.5),
    ]
    assert content["splits"]["val"] == {"images": 2, "images_without_boxes": 1, "boxes": 1, "crowds": 0}


@pytest.mark.parametrize("damage", ["truncated", "empty", "other size"])
def test_unusable_images_are_errors_and_fix_drops_them(coco_folder, tmp_path, damage, capsys):
    image = coco_folder / "train" / "a.jpg"
    data = image.read_bytes()
    if damage == "other size":
        Image.new("RGB", (33, 44)).save(image)
    else:
        image.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    assert main(["check", str(coco_folder), "--fix", str(tmp_path / "clean")]) == 1
    assert "a.jpg:" in capsys.readouterr().out
    clean = open_dataset(tmp_path / "clean")
    assert (len(clean), len(clean.annotations)) == (3, 2)
    assert main(["check", str(tmp_path / "clean")]) == 0


def test_unknown_classes_and_broken_files_are_errors_with_their_location(yolo_folder, coco_folder):
    label_file = yolo_folder / "labels" / "train" / "a.txt"
    label_file.write_text(label_file.read_text() + "9 .5 .5 .1 .1\n")
    report = check_dataset(yolo_folder)
    assert kinds(report, "error") == ["unknown class"]
    assert report.findings[0].where.endswith("a.txt, line 3")
    (coco_folder / "annotations" / "instances_val.json").write_text("{")
    assert main(["check", str(coco_folder)]) == 1


def test_duplicates_and_leaks_are_warnings(coco_folder, tmp_path):
    file = coco_folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 77})
    file.write_text(json.dumps(content))
    shutil.copy(coco_folder / "train" / "a.jpg", coco_folder / "val" / "d.jpg")
    val = coco_folder / "annotations" / "instances_val.json"
    val.write_text(val.read_text().replace('"height": 64, "width": 48', '"height": 60, "width": 80'))
    report = check_dataset(coco_folder)
    assert report.errors == 0
    assert {"duplicate", "near-duplicate images"} <= {*kinds(report, "warning")}
    assert len(report.index.annotations) == 5
    assert len(report.clean_index().annotations) == 4


def test_a_missing_path_is_an_error_not_an_empty_dataset(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["check", str(tmp_path / "none")])


def test_remedies_name_options_of_the_command(voc_folder, coco_folder, tmp_path, capsys):
    image = voc_folder / "JPEGImages" / "a.jpg"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(image, elsewhere)
    image.symlink_to(elsewhere / "a.jpg")
    assert run_command("data", ["check", str(voc_folder)]) == 1
    assert f"allow its folder (--images {elsewhere})." in capsys.readouterr().out
    assert check_dataset(voc_folder).findings[0].text().endswith(f"(images='{elsewhere}').")
    assert run_command("data", ["check", str(voc_folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["action"].endswith(f"(--images {elsewhere})")
    arguments = ["convert", str(coco_folder), str(tmp_path / "new"), "--to", "voc", "--drop_difficult"]
    assert run_command("data", arguments) == 2
    assert "has no option 'drop_difficult'; drop it, or choose another format (--data_format voc)." in (
        capsys.readouterr().err
    )


def test_a_split_that_unites_others_is_not_a_leak_in_a_converted_dataset(coco_folder, tmp_path):
    index = open_dataset(coco_folder)
    united = replace(index, splits={**index.splits, "trainval": np.arange(len(index))})
    convert_dataset(united, tmp_path / "copy", "coco")
    kinds = {finding.kind for finding in check_dataset(tmp_path / "copy").findings}
    assert not kinds & {"image in several splits", "near-duplicate images"}


@pytest.mark.parametrize(
    ("names", "boxes", "expected"),
    [
        (("RBC", "RBBC"), (400, 2), ["class 'RBBC': has 2 boxes and may be another spelling of 'RBC' (400 boxes)"]),
        (
            ("traffic light", "Traffic_Light"),
            (9, 7),
            ["class 'Traffic_Light': has 7 boxes and may be another spelling of"],
        ),
        (("cat", "cats"), (9, 7), []),  # both are frequent
        (("RBC", "WBC"), (400, 2), []),
        (("size 1", "size 10"), (400, 2), []),
        (("cat", "Cat"), (9, 0), []),  # a class without a box
    ],
)
def test_a_misspelt_class_is_a_warning(tmp_path, names, boxes, expected):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg")
    categories = [{"id": label, "name": name} for label, name in enumerate(names, 1)]
    annotations = [
        {"id": 1000 * label + number, "image_id": 1, "category_id": label, "bbox": [2, 3, 4 + number / 50, 5]}
        for label, count in enumerate(boxes, 1)
        for number in range(count)
    ]
    images = [{"id": 1, "file_name": "a.jpg", "height": 32, "width": 32}]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    findings = [finding for finding in check_dataset(file).findings if finding.kind == "similar class names"]
    assert len(findings) == len(expected)
    for finding, start in zip(findings, expected, strict=True):
        assert finding.text().startswith(start)
        assert finding.text().endswith("if so, rename it in the annotations.")


def test_a_report_with_errors_names_the_command_that_leaves_them_out(voc_folder, capsys):
    assert main(["check", str(voc_folder)]) == 0
    assert "--fix" not in capsys.readouterr().out
    (voc_folder / "JPEGImages" / "a.jpg").write_bytes(b"no image")
    assert main(["check", str(voc_folder)]) == 1
    assert f"detr data check {voc_folder} --fix NEW_FOLDER\n" in capsys.readouterr().out
