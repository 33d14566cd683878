"""Dataset formats that are added from outside, as plug-ins would."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from zip_images import open_zip, read_entry

from modeling_detr.commands.data import main
from modeling_detr.data import FORMATS, DetectionDataset, open_dataset, read_image
from modeling_detr.data.annotations import AnnotationRows, clean_annotations
from modeling_detr.data.dataset_format import DatasetFormat, ReadingOption, WrittenDataset
from modeling_detr.data.image_copies import ImageCopies
from modeling_detr.data.image_headers import header_size
from modeling_detr.structures_detr import UNSPLIT, Category, DetectionIndex, ImageRecord
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.setup import open_splits


def read_csv(path, *, findings, task, pixels_from=None):
    """`boxes.csv`: a line `image,class,x0,y0,x1,y1` for each object."""
    lines = [line.split(",") for line in (Path(path) / "boxes.csv").read_text().splitlines()]
    files = sorted({Path(path) / line[0] for line in lines})
    names = sorted({line[1] for line in lines})
    records = [ImageRecord(file.name, str(file), *header_size(str(file))) for file in files]
    first, rows = int(pixels_from or 0), AnnotationRows()
    for number, (file, name, *corners) in enumerate(lines, start=1):
        x0, y0, x1, y1 = (float(text) - first for text in corners)
        rows.append(files.index(Path(path) / file), names.index(name), (x0, y0, x1, y1), number)
    table = clean_annotations(
        image_index=np.array(rows.image_index),
        label=np.array(rows.label),
        boxes_xyxy=rows.boxes,
        image_sizes=np.array([(record.height, record.width) for record in records]),
        describe=lambda row: f"boxes.csv, line {rows.place[row]}",
        findings=findings,
    )
    categories = tuple(Category(label, name) for label, name in enumerate(names))
    splits = {UNSPLIT: np.arange(len(records))}
    return DetectionIndex(Path(path).name, tuple(records), categories, table, splits, tuple(findings.notes))


def write_csv(index, folder, link):
    copies = ImageCopies(index, folder, lambda split: "", link)
    table = index.annotations
    lines = [
        ",".join(map(str, [copies.name[image], index.id2label[label], *box]))
        for image, label, box in zip(
            table.image_index.tolist(), table.label.tolist(), table.boxes_xyxy.tolist(), strict=True
        )
    ]
    (folder / "boxes.csv").write_text("\n".join(lines))
    has_boxes = set(index.annotations.image_index.tolist())
    files = [file if image in has_boxes else None for image, file in enumerate(copies.files)]
    return WrittenDataset(index, files, ["csv has no splits."], keeps_splits=False)


@pytest.fixture
def csv_format(monkeypatch):
    entry = DatasetFormat(
        name="csv",
        find=lambda path: (path / "boxes.csv").is_file(),
        read=read_csv,
        looked_for="boxes.csv",
        options=(ReadingOption("pixels_from", "number of the first pixel", str, ("0", "1")),),
        write=write_csv,
    )
    monkeypatch.setitem(FORMATS, "csv", entry)


@pytest.fixture
def csv_folder(tmp_path, csv_format, coco_folder):
    assert main(["convert", str(coco_folder), str(tmp_path / "csv"), "--to", "csv"]) == 0
    return tmp_path / "csv"


def test_it_is_written_detected_and_read(csv_folder, capsys):
    index = open_dataset(csv_folder)
    assert len(index) == 3  # an image without a box is not in the file
    assert index.id2label == {0: "cat", 1: "dog"}
    assert index.annotations.boxes_xyxy[0].tolist() == [10, 20, 40, 50]
    assert main(["check", str(csv_folder), "--format", "csv"]) == 0
    assert "csv (csv): 3 images, 4 boxes, 2 classes" in capsys.readouterr().out


def test_its_option_is_one_of_open_dataset_and_of_the_commands(csv_folder, coco_folder, capsys):
    index = open_dataset(csv_folder, pixels_from="1")
    assert index.annotations.boxes_xyxy[0].tolist() == [9, 19, 39, 49]
    with pytest.raises(ValueError, match=r"format 'coco' has no option 'pixels_from'; .*\(format='csv'\)"):
        open_dataset(coco_folder, pixels_from="1")
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "number of the first pixel" in capsys.readouterr().out


def test_it_is_converted_to_another_format(csv_folder, tmp_path):
    assert main(["convert", str(csv_folder), str(tmp_path / "yolo"), "--to", "yolo"]) == 0
    assert len(open_dataset(tmp_path / "yolo").annotations) == 4


def test_a_run_can_train_on_it(csv_folder):
    train, evaluation = open_splits(Recipe(data=str(csv_folder), data_format="csv", eval_fraction=0.34))
    assert (len(train), len(evaluation)) == (2, 1)


def test_errors_list_it(csv_format, tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"boxes\.csv \(csv\)"):
        open_dataset(tmp_path)


# A format whose images are entries of a zip file, with the annotations in boxes.json beside them


def read_zip(path, *, findings, task):
    content = json.loads(open_zip(str(path)).read("boxes.json"))
    records, rows = [], AnnotationRows()
    for name, boxes in content.items():
        for number, box in enumerate(boxes):
            rows.append(len(records), 0, box, number)
        place = f"{path}::{name}"
        records.append(ImageRecord(name, place, *header_size(place, read_entry), read_entry))
    table = clean_annotations(
        image_index=np.array(rows.image_index),
        label=np.array(rows.label),
        boxes_xyxy=rows.boxes,
        image_sizes=np.array([(record.height, record.width) for record in records]),
        describe=lambda row: f"box {row}",
        findings=findings,
    )
    splits = {UNSPLIT: np.arange(len(records))}
    return DetectionIndex(Path(path).stem, tuple(records), (Category(0, "cat"),), table, splits, tuple(findings.notes))


@pytest.fixture
def zip_file(tmp_path, monkeypatch, coco_folder):
    entry = DatasetFormat(
        name="zip", find=lambda path: path.suffix == ".zip", read=read_zip, looked_for="a .zip file with boxes.json"
    )
    monkeypatch.setitem(FORMATS, "zip", entry)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(coco_folder / "train" / "a.jpg", "images/a.jpg")
        archive.write(coco_folder / "train" / "b.png", "images/b.png")
        archive.writestr("boxes.json", json.dumps({"images/a.jpg": [[1, 2, 30, 40]], "images/b.png": []}))
    return tmp_path / "data.zip"


def test_images_in_a_zip_are_read_by_spawned_workers(zip_file, coco_folder):
    index = open_dataset(zip_file)
    loader = DataLoader(
        DetectionDataset(index), batch_size=None, num_workers=2, multiprocessing_context="spawn", shuffle=False
    )
    samples = list(loader)
    for sample, name in zip(samples, ("a.jpg", "b.png"), strict=True):
        file = coco_folder / "train" / name
        assert torch.equal(sample["image"], read_image(ImageRecord(name, str(file), *header_size(str(file)))))
    assert samples[0]["target"]["boxes"].tolist() == [[1, 2, 30, 40]]


def test_images_in_a_zip_are_checked_and_converted(zip_file, tmp_path, capsys):
    assert main(["check", str(zip_file)]) == 0
    assert "data (zip): 2 images, 1 box, 1 class" in capsys.readouterr().out
    assert main(["convert", str(zip_file), str(tmp_path / "new"), "--to", "coco"]) == 0
    converted, source = open_dataset(tmp_path / "new"), open_dataset(zip_file)
    for new, old in zip(converted.images, source.images, strict=True):
        assert torch.equal(read_image(new), read_image(old))
    assert converted.annotations.boxes_xyxy.tolist() == [[1, 2, 30, 40]]


def test_an_image_that_is_missing_in_a_zip_is_an_error_of_the_image(zip_file):
    with pytest.raises(OSError, match=r"::images/gone\.jpg: the image cannot be read \(KeyError"):
        read_image(ImageRecord(1, f"{zip_file}::images/gone.jpg", 8, 8, read_entry))
