"""Hugging Face `datasets`: saved, parquet, every box format, images that stay in their rows."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_detr.data import DetectionDataset, open_dataset
from modeling_detr.data.findings import Findings
from modeling_detr.data.formats.hf import read_hf_dataset
from modeling_detr.errors_detr import DatasetNotFoundError


SIZES = [(60, 80), (50, 40), (40, 40)]  # height, width
CORNERS = [[(10, 20, 40, 50), (0, 0, 80, 60)], [(5.5, 6.25, 20, 30), (30, 40, 40, 50)], []]
CLASSES = [[0, 1], [1, 0], []]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def written_as(box: tuple[float, ...], size: tuple[int, int], box_format: str) -> list[float]:
    x0, y0, x1, y1 = box
    kind, _, normalized = box_format.partition("_")
    numbers = {
        "xyxy": [x0, y0, x1, y1],
        "xywh": [x0, y0, x1 - x0, y1 - y0],
        "cxcywh": [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
    }[kind]
    height, width = size
    scale = (width, height, width, height) if normalized else (1, 1, 1, 1)
    return [number / by for number, by in zip(numbers, scale, strict=True)]


def rows(box_format: str = "xywh", **columns: Any) -> datasets.Dataset:
    objects = [
        {"bbox": [written_as(box, size, box_format) for box in boxes], "category": classes}
        for size, boxes, classes in zip(SIZES, CORNERS, CLASSES, strict=True)
    ]
    content = {
        "image_id": [7, 2**40, 9],
        "image": [{"bytes": png(*size), "path": None} for size in SIZES],
        "objects": objects,
        **columns,
    }
    category = datasets.List(datasets.ClassLabel(names=["cat", "dog", "never"]))
    features = {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "objects": {"bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)), "category": category},
        **{name: datasets.Value("int64") for name in columns},
    }
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def check_boxes(index: Any) -> None:
    expected = [box for boxes in CORNERS for box in boxes]
    np.testing.assert_allclose(index.annotations.boxes_xyxy, expected, atol=1e-9)
    assert index.annotations.label.tolist() == [0, 1, 1, 0]
    assert index.annotations.image_index.tolist() == [0, 0, 1, 1]


def test_a_saved_dataset_is_found_with_its_splits_classes_ids_and_pixels(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": rows(), "validation": rows()}).save_to_disk(tmp_path / "saved")

    index = open_dataset(tmp_path / "saved")

    assert {name: len(members) for name, members in index.splits.items()} == {"train": 3, "validation": 3}
    assert [category.name for category in index.categories] == ["cat", "dog", "never"]
    assert [image.id for image in index.images[:3]] == [7, 2**40, 9]
    check_boxes(index.split("validation"))
    sample = DetectionDataset(index)[1]
    assert sample["image"].shape == (3, 50, 40)
    np.testing.assert_array_equal(
        sample["image"].permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(png(50, 40))))
    )


@pytest.mark.parametrize("files", [["train-00000-of-00002", "train-00001-of-00002", "test"], ["train/0", "train/1"]])
def test_parquet_shards_are_splits_by_their_names(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        rows().to_parquet(tmp_path / "data" / f"{name}.parquet")

    index = open_dataset(tmp_path)

    assert len(index.splits["train"]) == 6
    assert len(DetectionDataset(index)[5]["target"]["boxes"]) == 0


@pytest.mark.parametrize(
    "box_format", ["xywh", "xyxy", "cxcywh", "xywh_normalized", "xyxy_normalized", "cxcywh_normalized"]
)
@pytest.mark.parametrize("named", [True, False])
def test_the_box_format_is_given_or_inferred_and_reported(tmp_path: Path, box_format: str, named: bool) -> None:
    rows(box_format).to_parquet(tmp_path / "all.parquet")

    index = open_dataset(tmp_path / "all.parquet", box_format=box_format if named else None)

    check_boxes(index)
    assert any(box_format.partition("_")[0] in note for note in index.notes)


def test_the_box_format_follows_from_field_names(tmp_path: Path) -> None:
    keys = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        [
            {"box": dict(zip(keys, map(float, box), strict=True)), "label": "cd"[kind]}
            for box, kind in zip(*pair, strict=True)
        ]
        for pair in zip(CORNERS, CLASSES, strict=True)
    ]
    content = {"image": [{"bytes": png(*size), "path": None} for size in SIZES], "objects": objects}
    datasets.Dataset.from_dict(content).cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")

    index = open_dataset(tmp_path)

    check_boxes(index)
    assert [category.name for category in index.categories] == ["c", "d"]


def test_flat_columns_are_read_if_there_is_no_objects_column(tmp_path: Path) -> None:
    content = {
        "image": [{"bytes": png(*size), "path": None} for size in SIZES],
        "bboxes": [[written_as(box, (1, 1), "xywh") for box in boxes] for boxes in CORNERS],
        "labels": [[3 + 4 * kind for kind in kinds] for kinds in CLASSES],
    }
    datasets.Dataset.from_dict(content).to_parquet(tmp_path / "a.parquet")

    index = open_dataset(tmp_path)

    check_boxes(index)
    assert [(category.id, category.name) for category in index.categories] == [(3, "3"), (7, "7")]


def test_a_flat_list_of_boxes_is_read_if_it_has_four_numbers_per_object(tmp_path: Path) -> None:
    content = {
        "image": [{"bytes": png(*size), "path": None} for size in SIZES[:2]],
        "bbox": [[1, 2, 10, 12, 3, 4, 5, 6], []],
        "category": [["cat", "dog"], []],
    }
    datasets.Dataset.from_dict(content).to_parquet(tmp_path / "a.parquet")
    table = open_dataset(tmp_path, box_format="xywh").annotations
    assert table.boxes_xyxy.tolist() == [[1, 2, 11, 14], [3, 4, 8, 10]]
    content["bbox"] = [[1, 2, 10, 12, 3], []]
    datasets.Dataset.from_dict(content).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 0: 'bbox' has 5 numbers for 2 objects, expected four numbers per obj"):
        open_dataset(tmp_path, box_format="xywh")


def test_wrong_sizes_missing_images_and_unknown_classes_are_reported_with_their_row(tmp_path: Path) -> None:
    wrong = rows(height=[60, 999, 40], width=[80, 40, 40]).to_list()
    wrong[0]["objects"]["category"][1] = -1
    wrong[2]["image"]["bytes"] = b"no image"
    features = rows(height=[0, 0, 0], width=[0, 0, 0]).features
    datasets.Dataset.from_list(wrong, features=features).save_to_disk(tmp_path / "d")
    findings = Findings(collects=True)

    index = read_hf_dataset(tmp_path / "d", findings)

    assert [(image.height, image.width) for image in index.images] == SIZES[:2]
    assert len(index.annotations) == 3
    kinds = {finding.kind: finding for finding in findings.items}
    assert {*kinds} == {"unknown class", "image size", "unreadable image"}
    assert "object 1 of row 0 (image 7)" in kinds["unknown class"].where
    with pytest.raises(ValueError, match="object 1 of row 0"):
        read_hf_dataset(tmp_path / "d")


def test_a_folder_without_a_dataset_is_one_clear_error(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"no image column; the columns are text"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="box_format: got 'yolo'; expected one of xywh"):
        open_dataset(tmp_path, box_format="yolo")


def test_a_name_that_the_hub_does_not_provide_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="nobody/nothing: no such file or folder, and it could not be loaded"):
        open_dataset("nobody/nothing")


@pytest.mark.parametrize("name", ["pandas", "csv"])
def test_a_builder_of_datasets_is_no_dataset_and_does_not_read_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("image,objects\n1,2\n")
    with pytest.raises(DatasetNotFoundError, match=f"^{name}: a builder of `datasets`, not a dataset; expected"):
        open_dataset(name, format="hf")


def test_a_row_whose_image_is_a_file_outside_is_an_error_unless_its_folder_is_allowed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "elsewhere", tmp_path / "data"
    objects = [{"bbox": [[1, 2, 10, 10]], "category": ["cat"]}]
    for folder in (outside, inside):
        folder.mkdir()
        (folder / "a.png").write_bytes(png(20, 30))
        content = {"image": [{"bytes": None, "path": str(folder / "a.png")}], "objects": objects}
        rows = datasets.Dataset.from_dict(content)
        image = {
            "bytes": datasets.Value("binary"),
            "path": datasets.Value("string"),
        }  # an Image is saved with its bytes
        rows = rows.cast(datasets.Features({**rows.features, "image": image}))
        datasets.DatasetDict({"train": rows}).save_to_disk(inside if folder == inside else tmp_path / "other")
    assert len(open_dataset(inside)) == 1
    with pytest.raises(ValueError, match=r"elsewhere/a\.png: is outside .*\(images='.*elsewhere'\)"):
        open_dataset(tmp_path / "other")
    assert len(open_dataset(tmp_path / "other", images=outside)) == 1
