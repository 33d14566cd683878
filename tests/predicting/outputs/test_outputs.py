"""Each output, written by the command and read by what reads it elsewhere."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from noise_images import picture
from PIL import Image
from pyarrow import parquet
from pycocotools.coco import COCO

from modeling_detr.commands.predict import main
from modeling_detr.data import open_dataset, read_image
from modeling_detr.data.formats import writable_formats


Predict = Callable[..., list[dict]]


@pytest.fixture
def predict(model_folder: Path, tmp_path: Path) -> Predict:
    """Returns a function that writes outputs for two images to `out`, and returns the entries."""
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "sub" / "b.jpg", (40, 50))

    def run(save: str, *options: str) -> list[dict]:
        arguments = [str(model_folder), str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*arguments, "--threshold", "0", "--save", f"json,{save}", *options]) == 0
        entries: list[dict] = json.loads((tmp_path / "out" / "predictions.json").read_text())
        return entries

    return run


def test_json_lines_are_the_entries_of_the_list(predict: Predict, tmp_path: Path) -> None:
    entries = predict("jsonl")
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == entries
    assert not (tmp_path / "out" / "a.png").exists()  # no pictures


def test_csv_has_a_row_for_each_object(predict: Predict, tmp_path: Path) -> None:
    entries = predict("csv")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 14
    assert rows[0]["image"] == entries[0]["image"]
    assert float(rows[0]["x1"]) == pytest.approx(entries[0]["detections"][0]["box_xyxy"][2], abs=0.01)


def test_parquet_has_a_row_for_each_image(predict: Predict, tmp_path: Path) -> None:
    entries = predict("parquet")
    rows = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["image"] for row in rows] == [entry["image"] for entry in entries]
    assert rows[1]["boxes_xyxy"][0] == pytest.approx(entries[1]["detections"][0]["box_xyxy"])
    assert rows[1]["names"] == [found["name"] for found in entries[1]["detections"]]


def test_coco_results_are_read_by_pycocotools(predict: Predict, tmp_path: Path) -> None:
    entries = predict("coco")
    coco = COCO(tmp_path / "out" / "coco_images.json")
    coco.dataset["annotations"] = []
    results = coco.loadRes(str(tmp_path / "out" / "coco_results.json"))
    (image,) = [image for image in coco.dataset["images"] if image["file_name"] == entries[1]["image"]]
    scores = [found["score"] for found in results.imgToAnns[image["id"]]]
    assert scores == [found["score"] for found in entries[1]["detections"]]
    assert {category["name"] for category in coco.dataset["categories"]} == {"disc", "star"}


def test_coco_results_without_objects_are_an_empty_list(model_folder: Path, tmp_path: Path) -> None:
    arguments = [str(model_folder), str(picture(tmp_path / "a.png")), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--threshold", "1", "--save", "coco", "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "out" / "coco_results.json").read_text()) == []


def test_yolo_files_have_the_boxes_in_shares_of_the_image(predict: Predict, tmp_path: Path) -> None:
    entries = predict("yolo")
    rows = np.loadtxt(tmp_path / "out" / "yolo" / "sub" / "b.txt", ndmin=2)
    boxes = np.array([found["box_xyxy"] for found in entries[1]["detections"]]) / [40, 50, 40, 50]
    assert np.allclose(rows[:, 1:3], (boxes[:, :2] + boxes[:, 2:]) / 2, atol=1e-5)
    assert np.allclose(rows[:, 3:5], boxes[:, 2:] - boxes[:, :2], atol=1e-5)
    assert (tmp_path / "out" / "yolo_classes.txt").read_text() == "disc\nstar\n"


def test_voc_files_are_read_as_a_dataset(predict: Predict, tmp_path: Path) -> None:
    predict("voc")
    for image in (tmp_path / "in").rglob("*.*"):
        name = image.relative_to(tmp_path / "in")
        (tmp_path / "out" / "voc" / name).write_bytes(image.read_bytes())
    index = open_dataset(tmp_path / "out" / "voc")
    assert len(index) == 2
    assert [category.name for category in index.categories] == ["star"]  # as in all predictions


def test_crops_are_sorted_by_class(predict: Predict, tmp_path: Path) -> None:
    entries = predict("crops")
    for entry in entries:
        assert len(entry["crops"]) == 7
        for crop, found in zip(entry["crops"], entry["detections"], strict=True):
            assert crop.startswith(f"crops/{found['name']}/")
            with Image.open(tmp_path / "out" / crop) as image:
                assert image.width <= entry["width"]


def test_predictions_become_a_dataset_to_correct(predict: Predict, tmp_path: Path) -> None:
    entries = predict("json", "--as_dataset", str(tmp_path / "coco"), "--to", "coco")
    index = open_dataset(tmp_path / "coco", task="conversion")
    assert len(index) == 2
    assert len(index.annotations) == sum(len(entry["detections"]) for entry in entries)
    scores = sorted(found["score"] for entry in entries for found in entry["detections"])
    assert np.allclose(sorted(index.annotations.attributes["score"]), scores, atol=1e-5)


@pytest.mark.parametrize("to", writable_formats())
def test_a_dataset_of_predictions_is_read_back_as_predicted(model_folder: Path, tmp_path: Path, to: str) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "sub" / "a.png", (40, 50))  # the same name
    turned = Image.Exif()
    turned[0x112] = 6  # a quarter turn
    with Image.open(picture(tmp_path / "in" / "b.jpg", (40, 80))) as image:
        image.save(tmp_path / "in" / "b.jpg", exif=turned)
    folder, options = tmp_path / "dataset", ["--output_dir", str(tmp_path / "out"), "--save", "json"]
    arguments = [str(model_folder), str(tmp_path / "in"), *options, "--threshold", "0", "--device", "cpu"]
    assert main([*arguments, "--as_dataset", str(folder), "--to", to]) == 0
    index = open_dataset(folder, task="conversion")
    read = {}
    for number, record in enumerate(index.images):
        assert read_image(record).shape[1:] == (record.height, record.width)
        rows = index.annotations.image_index == number
        read[record.height, record.width] = np.sort(index.annotations.boxes_xyxy[rows], axis=0)
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert read.keys() == {(entry["height"], entry["width"]) for entry in written} == {(60, 90), (50, 40), (40, 80)}
    for entry in written:
        height, width = entry["height"], entry["width"]
        boxes = np.array([found["box_xyxy"] for found in entry["detections"]]).clip(0, [width, height, width, height])
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        assert len(boxes) > 0
        np.testing.assert_allclose(read[height, width], np.sort(boxes, axis=0), rtol=0, atol=1)  # VOC has whole pixels


def test_what_cannot_be_written_is_an_error_with_the_choices(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--save: got 'jsnol'; did you mean 'jsonl'"):
        main([str(model_folder), str(picture(tmp_path / "a.png")), "--save", "jsnol"])
