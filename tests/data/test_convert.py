import contextlib
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from modeling_detr.data import convert
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.formats import writable_formats
from modeling_detr.data.image_copies import file_name_of, file_names_of
from modeling_detr.data.open import open_dataset
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator


def by_name(index):
    table = index.annotations
    return sorted(
        (index.images[image].path.rpartition("/")[2], index.categories[label].name, *np.round(box, 2).tolist())
        for image, label, box in zip(table.image_index, table.label, table.boxes_xyxy, strict=True)
    )


@pytest.mark.parametrize("to", writable_formats())
@pytest.mark.parametrize("source", ["coco_folder", "yolo_folder", "voc_folder"])
def test_every_format_becomes_every_other_split_by_split(source, to, tmp_path, request):
    before = open_dataset(request.getfixturevalue(source))
    written = convert_dataset(before, tmp_path / "new", to)
    after = open_dataset(tmp_path / "new")
    assert (written.images, written.boxes) == (4, 4)
    assert by_name(after) == by_name(before)
    for split in ("train", "val"):
        assert by_name(after.split(split)) == by_name(before.split(split))


@pytest.mark.parametrize("source", ["coco_folder", "yolo_folder", "voc_folder", "hf_folder"])
def test_saved_predictions_score_the_same_on_the_converted_dataset(source, tmp_path, request):
    index = open_dataset(request.getfixturevalue(source))
    convert_dataset(index, tmp_path / "new", "coco")
    judged = 0
    for split in ("train", "val"):
        evaluator = CocoEvaluator(index.split(split))
        for image, record in enumerate(evaluator.index.images):
            boxes = evaluator.index.annotations.boxes_xyxy[evaluator.index.annotation_rows(image)] + 1.5
            labels = evaluator.index.annotations.label[evaluator.index.annotation_rows(image)]
            extra = torch.tensor([[0.0, 0.0, record.width / 2, record.height / 2]], dtype=torch.float64)
            result = {
                "scores": torch.linspace(0.9, 0.1, len(boxes) + 1),
                "labels": torch.cat([torch.tensor([0]), torch.from_numpy(labels)]),
                "boxes": torch.cat([extra, torch.from_numpy(boxes)]),
            }
            evaluator.update([image], [result])
        evaluator.start_saving(tmp_path)
        (file,) = evaluator.save({category.id for category in index.categories})
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(tmp_path / "new" / "annotations" / f"instances_{split}.json")
            judge = COCOeval(truth, truth.loadRes(str(file)), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        metrics = evaluator.compute()
        assert [metrics.ap, metrics.ap50] == pytest.approx(judge.stats[:2].tolist(), abs=1e-6)
        judged += metrics.ap > 0
    assert judged


def test_overlapping_splits_and_equal_names_in_other_folders_are_kept(tmp_path, coco_folder):
    (coco_folder / "val" / "d.jpg").rename(coco_folder / "val" / "a.jpg")
    file = coco_folder / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("d.jpg", "a.jpg"))
    index = open_dataset(coco_folder)
    index = dataclasses.replace(index, splits={**index.splits, "trainval": np.arange(4)})
    for to in ("coco", "yolo", "voc"):
        convert_dataset(index, tmp_path / f"new_{to}", to)
    assert {name: len(members) for name, members in open_dataset(tmp_path / "new_voc").splits.items()} == {
        "train": 2,
        "trainval": 4,
        "val": 2,
    }
    assert len(open_dataset(tmp_path / "new_yolo")) == 4
    assert len(open_dataset(tmp_path / "new_coco").split("trainval").annotations) == 4


def test_an_existing_target_is_an_error_and_an_interruption_leaves_nothing_behind(coco_folder, tmp_path, monkeypatch):
    index = open_dataset(coco_folder)
    with pytest.raises(FileExistsError, match="exists"):
        convert_dataset(index, coco_folder, "voc")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "open_dataset", interrupted)
    (tmp_path / "place").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(index, tmp_path / "place" / "new", "voc")
    assert not [*(tmp_path / "place").iterdir()]


def test_crowds_are_dropped_if_the_format_has_none(coco_folder, tmp_path):
    index = open_dataset(coco_folder)
    crowd = np.array([True, False, False, False])
    index = dataclasses.replace(index, annotations=dataclasses.replace(index.annotations, is_crowd=crowd))
    notes = convert_dataset(index, tmp_path / "yolo", "yolo").notes
    assert [
        note for note in notes if note.startswith("1 crowd region and 4 image ids are not written: yolo holds a class")
    ]
    assert convert_dataset(index, tmp_path / "new", "coco").boxes == 4
    assert open_dataset(tmp_path / "new").annotations.is_crowd.sum() == 1


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_boxes_of_stuff_classes_are_reported(to, tmp_path):
    index = open_dataset("shapes?size=32&train=2&val=0&panoptic=true")
    notes = convert_dataset(index, tmp_path / to, to).notes
    assert "2 boxes of stuff (ground) written as things." in notes


HOSTILE = [
    "..",
    ".",
    "",
    "../../x",
    "a/b",
    "a_b",
    "a\\b",
    "C:",
    "C:\\x",
    "nul",
    "CON.txt",
    "x\0y",
    ".hidden",
    "A_B",
    "\n",
]


@pytest.mark.parametrize("name", [*HOSTILE, "…/../..", "x" * 400, "ä" * 300, "\udcff", "a. ", "~"])
def test_any_text_becomes_one_valid_part_of_a_path(name):
    valid = file_name_of(name)
    assert Path("folder", valid).parent == Path("folder")
    assert Path("folder", valid).resolve().parent == Path("folder").resolve()
    assert not re.search(r'[/\\:*?"<>|\x00-\x1f]', valid)
    assert valid.strip(" .") == valid
    assert 0 < len(valid.encode()) <= 200
    assert valid.lower().partition(".")[0] not in ("con", "nul")
    assert file_name_of(valid) == valid


def test_names_stay_unique_after_replacement_and_valid_ones_are_kept():
    names = file_names_of(HOSTILE)
    assert [*names] == HOSTILE
    assert len({name.lower() for name in names.values()}) == len(HOSTILE)
    assert names["a_b"] == "a_b"


@pytest.mark.parametrize("to", writable_formats())
@pytest.mark.parametrize("split", HOSTILE)
def test_a_split_with_a_hostile_name_is_written_inside_the_target(coco_folder, tmp_path, split, to):
    index = open_dataset(coco_folder)
    every = np.arange(4)
    index = dataclasses.replace(
        index, splits={split: every[:2], "train": every[2:]} if to != "yolo" else {split: every}
    )
    (tmp_path / "place" / "inner").mkdir(parents=True)
    before = {file for file in tmp_path.rglob("*") if file.name != "new"}
    convert_dataset(index, tmp_path / "place" / "inner" / "new", to)
    outside = {file for file in tmp_path.rglob("*") if "new" not in file.relative_to(tmp_path).parts}
    assert outside == before
    assert by_name(open_dataset(tmp_path / "place" / "inner" / "new")) == by_name(index)


@pytest.mark.parametrize("to", ["coco", "voc"])
def test_a_voc_list_whose_name_is_two_dots_does_not_write_outside(voc_folder, tmp_path, to):
    (voc_folder / "ImageSets" / "Main" / "train.txt").rename(voc_folder / "ImageSets" / "Main" / "...txt")
    index = open_dataset(voc_folder)
    assert ".." in index.splits
    before = {*tmp_path.iterdir()}
    convert_dataset(index, tmp_path / "new", to)
    assert {*tmp_path.iterdir()} - before == {tmp_path / "new"}


@pytest.mark.parametrize("to", writable_formats())
def test_hostile_names_of_images_and_classes_stay_names(coco_folder, tmp_path, to):
    names = ["..\\..\\x.jpg", "nul.png", "a\nb.jpg", "a_b.jpg"]
    index = open_dataset(coco_folder)
    records = []
    for record, name in zip(index.images, names, strict=True):
        file = Path(record.path).rename(coco_folder / name)
        records.append(dataclasses.replace(record, path=str(file)))
    categories = [dataclasses.replace(category, name=f"../../{category.name}") for category in index.categories]
    index = dataclasses.replace(index, images=tuple(records), categories=tuple(categories))
    convert_dataset(index, tmp_path / "new", to)
    assert not [*tmp_path.parent.glob("x.*")]
    images = [file.name for file in (tmp_path / "new").rglob("*") if file.suffix in (".jpg", ".png")]
    if to == "parquet":
        images = [Path(record.path).name for record in open_dataset(tmp_path / "new").images]
    assert len(images) == 4
    assert not [name for name in images if "\\" in name or "\n" in name or name == "nul.png"]


def test_a_split_named_like_another_key_of_data_yaml_does_not_replace_it(coco_folder, tmp_path):
    index = dataclasses.replace(open_dataset(coco_folder), splits={"path": np.arange(4)})
    convert_dataset(index, tmp_path / "new", "yolo")
    assert "path:" not in (tmp_path / "new" / "data.yaml").read_text()
