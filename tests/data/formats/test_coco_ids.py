"""Ids of COCO files, written as text in one list and as numbers in the other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_detr.data import open_dataset


def _rewrite(folder: Path, lists: tuple[str, ...], key: str, write: Callable[[int], object]) -> None:
    for file in (folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        for name in lists:
            content[name] = [{**entry, key: write(entry[key])} for entry in content[name]]
        file.write_text(json.dumps(content))


@pytest.mark.parametrize("write", [str, float, lambda number: f"{number}.0", lambda number: f"0{number}"])
@pytest.mark.parametrize(
    ("name", "key"),
    [("images", "id"), ("annotations", "image_id"), ("annotations", "category_id"), ("categories", "id")],
)
def test_ids_are_matched_by_value(coco_folder, write, name, key):
    if name == "categories" and write not in (str, float):
        write = str  # text such as 1.0 is no id of a category
    expected = open_dataset(coco_folder)
    _rewrite(coco_folder, (name,), key, write)
    index = open_dataset(coco_folder)
    assert index.annotations.label.tolist() == expected.annotations.label.tolist()
    assert index.annotations.image_index.tolist() == expected.annotations.image_index.tolist()


def test_an_id_that_may_mean_two_images_matches_none(coco_folder):
    file = coco_folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["id"], content["images"][1]["id"] = "1", "01"
    file.write_text(json.dumps(content))
    index = open_dataset(coco_folder, "train")
    assert len(index.annotations) == 0
    assert any("3 annotations belong to images that the file does not list" in note for note in index.notes)
