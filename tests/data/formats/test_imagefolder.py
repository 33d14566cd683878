"""Images with metadata.jsonl, .csv or .parquet, as `datasets` and AutoTrain write them."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from modeling_detr.data import open_dataset


def _write(folder: Path, suffix: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = []
    for number in range(2):
        (folder / "cam").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 90)).save(folder / "cam" / f"{number}.png")
        objects = {"bbox": [[7, 24, 15, 40], [66 + number, 19, 23, 44]], "category": ["cat", "dog"]}
        rows.append({"file_name": f"cam/{number}.png", "objects": objects})
    if suffix == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "csv":
        _write_csv(folder / "metadata.csv", [(row["file_name"], str(row["objects"])) for row in rows])
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "metadata.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("splits", [("train", "validation"), ("",)])
def test_images_with_metadata_are_read(tmp_path, monkeypatch, suffix, splits):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in splits:
        _write(tmp_path / "data" / split, suffix)
    index = open_dataset(tmp_path / "data")
    assert {name: len(members) for name, members in index.splits.items()} == dict.fromkeys(
        (split or "all" for split in splits), 2
    )
    assert index.id2label == {0: "cat", 1: "dog"}
    assert index.annotations.boxes_xyxy[3].tolist() == [67, 19, 90, 63]


def test_one_table_names_the_images_of_all_splits_in_any_spelling(tmp_path):
    pytest.importorskip("datasets")
    for name in ("train/A b.png", "test/c.png", "test/extra.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (120, 90)).save(tmp_path / name)
    rows = [("D:\\set\\train\\a%20b.png", f"[7, 24, 15, {height}]", "cat") for height in (40, 41)]
    _write_csv(tmp_path / "metadata.csv", [*rows, ("test/c.png", "[]", "[]")], ("bbox", "category"))
    index = open_dataset(tmp_path)
    assert {name: members.tolist() for name, members in index.splits.items()} == {"train": [0], "test": [1]}
    assert [image.path for image in index.images] == [f"{tmp_path}/train/A b.png", f"{tmp_path}/test/c.png"]
    assert index.annotations.boxes_xyxy.tolist() == [[7, 24, 22, 64], [7, 24, 22, 65]]
    assert any("1 image is in no row" in note for note in index.notes)
    (tmp_path / "test/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 image missing, the first is 'test/c\.png'"):
        open_dataset(tmp_path)


def _write_csv(file: Path, rows: list[tuple[str, ...]], columns: tuple[str, ...] = ("objects",)) -> None:
    with file.open("w", encoding="utf-16", newline="") as stream:
        csv.writer(stream).writerows([("file_name", *columns), *rows])


def test_two_rows_of_one_file_that_are_no_single_boxes_are_an_error(tmp_path):
    _write(tmp_path, "jsonl")
    text = (tmp_path / "metadata.jsonl").read_text()
    (tmp_path / "metadata.jsonl").write_text(text.replace("1.png", "0.png"))
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2: 'cam/0\.png' is in an earlier row"):
        open_dataset(tmp_path)


def test_other_metadata_does_not_make_a_dataset_of_datasets(coco_folder):
    (coco_folder / "metadata.jsonl").write_text('{"licence": "none"}\n')
    assert len(open_dataset(coco_folder)) == 4
