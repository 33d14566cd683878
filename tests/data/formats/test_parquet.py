import dataclasses
import json

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from modeling_detr.data import open_dataset, read_image
from modeling_detr.data.contents import CONTENTS
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.formats import parquet
from modeling_detr.data.formats.parquet import exact_sizes
from modeling_detr.errors_detr import DatasetError, DatasetReadError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rich(coco_folder):
    """Everything that a COCO file can say: ids with gaps, polygons, RLE, a crowd region, areas, marks, scores."""
    file = coco_folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    for entry in content["images"]:
        entry["id"] += 1000
    content["categories"] = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    box = {"image_id": 1001, "category_id": 7}
    runs = {"size": [60, 80], "counts": [610, 20, 4170]}
    content["annotations"] = [
        box | {"id": 1, "bbox": [0.1, 0.2, 20.3, 10.7], "segmentation": [[0.1, 0.2, 20, 0.5, 20, 10]], "area": 77.7},
        box | {"id": 2, "bbox": [10, 10, 1, 20], "segmentation": runs, "iscrowd": 1},
        box | {"id": 3, "bbox": [1 / 3, 2 / 3, 11, 7], "category_id": 90, "difficult": 1, "score": 0.1},
    ]
    file.write_text(json.dumps(content))
    file = coco_folder / "annotations/instances_val.json"
    (entry,) = (val := json.loads(file.read_text()))["annotations"]
    entry |= {"category_id": 7, "segmentation": [[1, 2, 3, 2, 3, 4]]}
    file.write_text(json.dumps(val | {"categories": content["categories"]}))
    return coco_folder


def assert_equal(after, before):
    assert after.categories == before.categories
    assert {name: members.tolist() for name, members in after.splits.items()} == {
        name: members.tolist() for name, members in before.splits.items()
    }
    for record, other in zip(after.images, before.images, strict=True):
        assert (record.id, record.number, record.height, record.width) == (
            other.id, other.number, other.height, other.width
        )  # fmt: skip
        assert record.path.rpartition("/")[2] == other.path.rpartition("/")[2]
        assert (read_image(record) == read_image(other)).all()
    table, expected = after.annotations, before.annotations
    for name in ("image_index", "label", "boxes_xyxy", "area", "is_crowd"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))
    assert table.attributes.keys() == expected.attributes.keys()
    for name, values in expected.attributes.items():
        np.testing.assert_array_equal(table.attributes[name], values)
    has_masks = expected.masks is not None and expected.masks.is_present.any()
    assert (table.masks is not None) == has_masks
    for image in range(len(before) if has_masks else 0):
        np.testing.assert_array_equal(after.read_masks(image), before.read_masks(image))


def test_nothing_is_lost_there_and_back(rich, tmp_path):
    before = open_dataset(rich, task="conversion")
    written = convert_dataset(before, tmp_path / "packed", "parquet")
    assert written.largest_difference == 0
    assert written.notes == ()
    packed = open_dataset(tmp_path / "packed", task="conversion")
    assert_equal(packed, before)
    convert_dataset(packed, tmp_path / "back", "coco")
    assert_equal(open_dataset(tmp_path / "back", task="conversion"), before)
    assert (tmp_path / "back/train/a.jpg").read_bytes() == (rich / "train/a.jpg").read_bytes()


@pytest.mark.parametrize("source", ["voc_folder", "yolo_folder", "hf_folder"])
def test_other_formats_are_packed_too(source, request, tmp_path):
    before = open_dataset(request.getfixturevalue(source), task="conversion")
    convert_dataset(before, tmp_path / "packed", "parquet")
    assert_equal(open_dataset(tmp_path / "packed", task="conversion"), before)


def test_it_is_an_image_dataset_of_datasets(rich, tmp_path):
    convert_dataset(open_dataset(rich, task="conversion"), tmp_path / "packed", "parquet")
    loaded = datasets.load_dataset(str(tmp_path / "packed"))
    row = loaded["train"][0]
    assert isinstance(row["image"], Image.Image)
    assert row["objects"]["bbox"][0] == pytest.approx([0.1, 0.2, 20.3, 10.7])
    assert loaded["train"].features["objects"]["category"].feature.names == ["cat", "dog"]
    index = open_dataset(tmp_path / "packed", format="hf", box_format="xywh")  # as files that others wrote
    assert len(index.annotations) == len(open_dataset(rich).annotations)


def test_masks_are_read_for_the_task_that_needs_them(rich, tmp_path):
    convert_dataset(open_dataset(rich, task="conversion"), tmp_path / "packed", "parquet")
    assert open_dataset(tmp_path / "packed").annotations.masks is None
    after, before = (open_dataset(folder, task="instance") for folder in (tmp_path / "packed", rich))
    assert len(after.annotations) == len(before.annotations) == 3  # without the object that has no mask
    for image in range(len(before)):
        np.testing.assert_array_equal(after.read_masks(image), before.read_masks(image))


def test_an_image_annotated_without_its_orientation_keeps_its_pixels(rich, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(rich / "train/a.jpg") as image:
        image.save(rich / "train/a.jpg", exif=exif)
    before = open_dataset(rich, boxes="stored", task="conversion")
    convert_dataset(before, tmp_path / "packed", "parquet")
    after = open_dataset(tmp_path / "packed", task="conversion")
    assert (read_image(after.images[0]) == read_image(before.images[0])).all()


def test_large_splits_are_several_files_with_any_name_of_a_split(rich, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "SHARD_BYTES", 1)
    monkeypatch.setattr(parquet, "ROWS", 1)
    before = open_dataset(rich, task="conversion")
    before = dataclasses.replace(before, splits={"fold/1": np.arange(3), "val": np.arange(3, 4)})
    convert_dataset(before, tmp_path / "packed", "parquet")
    assert sorted(file.name for file in (tmp_path / "packed/data").iterdir()) == [
        *(f"fold_1-0000{shard}-of-00003.parquet" for shard in range(3)),
        "val-00000-of-00001.parquet",
    ]
    assert_equal(open_dataset(tmp_path / "packed", task="conversion"), before)


def test_files_of_another_dataset_and_spoilt_entries_are_errors(rich, tmp_path):
    convert_dataset(open_dataset(rich), tmp_path / "packed", "parquet")
    file = tmp_path / "packed/data/train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(file)
    content = table.to_pylist()
    content[0]["objects"]["category"][0] = 5
    pyarrow.parquet.write_table(table.from_pylist(content, schema=table.schema), file)
    with pytest.raises(DatasetError, match=r"train\], object 0 of row 0 \(image 1001\): got class 5, expected 0 to 1"):
        open_dataset(tmp_path / "packed")
    other = {**table.schema.metadata, parquet.KEY: b'{"split": "train", "categories": []}'}
    pyarrow.parquet.write_table(table.replace_schema_metadata(other), file)
    with pytest.raises(DatasetReadError, match="its classes differ"):
        open_dataset(tmp_path / "packed")


def test_a_file_that_is_missing_is_named(rich, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "SHARD_BYTES", 1)
    monkeypatch.setattr(parquet, "ROWS", 1)
    convert_dataset(open_dataset(rich), tmp_path / "packed", "parquet")
    (tmp_path / "packed/data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DatasetReadError, match=r"train-00001-of-00002\.parquet: is missing"):
        open_dataset(tmp_path / "packed")


def test_a_row_with_the_path_of_a_file_in_place_of_an_image_is_an_error(rich, tmp_path):
    convert_dataset(open_dataset(rich), tmp_path / "packed", "parquet")
    file = tmp_path / "packed/data/train-00000-of-00001.parquet"
    table = pyarrow.parquet.read_table(file)
    content = table.to_pylist()
    content[0]["image"] = {"bytes": None, "path": str(rich / "train/a.jpg")}
    pyarrow.parquet.write_table(table.from_pylist(content, schema=table.schema), file)
    with pytest.raises(DatasetError, match=r"row 0 \(image 1001\): no image"):
        open_dataset(tmp_path / "packed")


@pytest.mark.parametrize(("own", "message"), [(2**70, "has more than 64 bits"), ("\ud800", "is not valid Unicode")])
def test_ids_that_parquet_cannot_hold_are_errors(own, message, rich, tmp_path):
    index = open_dataset(rich)
    index = dataclasses.replace(index, images=[dataclasses.replace(index.images[0], id=own), *index.images[1:]])
    with pytest.raises(DatasetError, match=message):
        convert_dataset(index, tmp_path / "packed", "parquet")


def test_a_dataset_without_classes_is_packed(rich, tmp_path):
    for file in (rich / "annotations").iterdir():
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"categories": [], "annotations": []}))
    convert_dataset(open_dataset(rich), tmp_path / "packed", "parquet")
    assert_equal(open_dataset(tmp_path / "packed"), open_dataset(rich))


def test_sizes_of_boxes_give_back_their_corners():
    start, size = np.random.default_rng(0).uniform(0, 5000, (2, 10_000, 2))
    corners = np.concatenate([start, start + size], axis=1)  # as COCO's boxes are read
    assert (corners[:, 2:] - corners[:, :2] != size).any()
    assert (start + exact_sizes(corners) == corners[:, 2:]).all()


def test_it_carries_all_contents():
    assert parquet.FORMAT.carries == {*CONTENTS}
