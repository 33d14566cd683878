"""Crowd regions: a dataset that has nothing else is an error, unless the user says what they are."""

import json
from pathlib import Path

import pytest

from modeling_detr.commands import run_command
from modeling_detr.data import open_dataset
from modeling_detr.data.check import check_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.splits import training_splits
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.evaluation.report import EvaluationReport


def _with_crowds(coco_folder: Path, split: str, flag: object) -> None:
    file = coco_folder / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = flag
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("flag", [1, True, "1", 1.0])
def test_a_dataset_of_crowd_regions_only_is_an_error_that_crowds_settles(coco_folder: Path, flag: object) -> None:
    for split in ("train", "val"):
        _with_crowds(coco_folder, split, flag)
    with pytest.raises(ValueError, match=r"every annotation \(4\) is marked as a crowd .*crowds='as_objects'"):
        open_dataset(coco_folder)
    assert check_dataset(coco_folder).errors
    report = check_dataset(coco_folder, reading={"crowds": "as_objects"})
    assert not report.errors
    assert len(training_splits(report.index)[0].annotations) == 3
    assert any("4 crowd regions are read as objects" in note for note in report.index.notes)
    assert open_dataset(coco_folder, crowds="as_crowds").annotations.is_crowd.all()


def test_a_dataset_of_crowd_regions_only_is_converted_as_crowds_but_has_no_clean_copy(
    coco_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        _with_crowds(coco_folder, split, 1)
    index = open_dataset(coco_folder, task="conversion", crowds="as_crowds")
    convert_dataset(index, tmp_path / "copy", "coco")
    assert open_dataset(tmp_path / "copy", crowds="as_crowds").annotations.is_crowd.all()
    assert run_command("data", ["check", str(coco_folder), "--no_html"]) == 1
    assert "a copy without the errors" not in capsys.readouterr().out
    assert run_command("data", ["check", str(coco_folder), "--no_html", "--fix", str(tmp_path / "fixed")]) == 2
    assert not (tmp_path / "fixed").exists()


def test_a_split_of_crowd_regions_only_is_a_finding_and_an_error_in_training(coco_folder: Path) -> None:
    _with_crowds(coco_folder, "val", 1)
    findings = check_dataset(coco_folder).findings
    assert ("crowd regions", "split 'val'") in [(finding.kind, finding.where) for finding in findings]
    with pytest.raises(ValueError, match=r"val.*all 1 annotations are crowd regions.*crowds='as_objects'"):
        training_splits(open_dataset(coco_folder))


def test_a_misspelt_choice_of_a_reading_option_is_an_error(coco_folder: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'as_objects'"):
        open_dataset(coco_folder, crowds="objects")


def test_an_evaluation_without_objects_says_so(coco_folder: Path) -> None:
    _with_crowds(coco_folder, "val", 1)
    evaluator = CocoEvaluator(open_dataset(coco_folder, "val"))
    report = EvaluationReport("val", 2, {"metrics": evaluator.compute()}, {}, 1.0, 2.0)
    assert "AP -" in report.summary()
    assert "no object to find" in report.summary()
    assert "no object to find" in report.to_html()
