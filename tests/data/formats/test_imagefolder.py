"""Images with metadata.jsonl or metadata.parquet, as `datasets` and AutoTrain write them."""

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
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "metadata.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
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


def test_other_metadata_does_not_make_a_dataset_of_datasets(coco_folder):
    (coco_folder / "metadata.jsonl").write_text('{"licence": "none"}\n')
    assert len(open_dataset(coco_folder)) == 4
