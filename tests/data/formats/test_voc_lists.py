"""Lists of VOC datasets in the spellings of different tools, and XML in the encodings of the world."""

import pytest
from PIL import Image

from modeling_detr.data import open_dataset
from modeling_detr.data.check import check_dataset


def _voc(root, stems, label="cat", encoding="utf-8", declared=None):
    for number, stem in enumerate(stems):
        image = root / "JPEGImages" / f"{stem}.jpg"
        file = root / "Annotations" / f"{stem}.xml"
        for place in (image, file):
            place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(image)
        text = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
        text += (
            f"<annotation><size><width>40</width><height>30</height></size><object><name>{label}</name><bndbox>"
            f"<xmin>{number}</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
        )
        file.write_bytes(text.encode(encoding))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    "line",
    [
        "cam 1/a",
        "cam 1/a.jpg",
        "cam 1\\a",
        "./cam 1/a",
        "JPEGImages/cam 1/a.jpg",
        "Annotations/cam 1/a.xml",
        "Cam 1/A",
        "cam%201/a.PNG",
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_list_names_annotations_in_folders(tmp_path, line, end):
    root = _voc(tmp_path, ["cam 1/a", "cam 2/a", "b"])
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(f"\ufeffb{end or chr(10)}{line}{end}".encode())
    index = open_dataset(root, "train")
    assert [record.path.rpartition("JPEGImages/")[2] for record in index.images] == ["b.jpg", "cam 1/a.jpg"]


def test_a_stem_that_is_in_two_folders_is_an_error(tmp_path):
    root = _voc(tmp_path, ["cam1/a", "cam2/a"])
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match=r"train\.txt, line 1: names 'a', but several annotations end with it"):
        open_dataset(root)


def test_a_list_of_two_paths_names_the_annotation(tmp_path):
    root = _voc(tmp_path, ["a", "b"])
    (root / "ImageSets" / "Main" / "train.txt").write_text("JPEGImages/b.jpg Annotations/b.xml")
    assert open_dataset(root).splits["train"].tolist() == [1]


def test_lists_of_classes_only_give_the_splits(tmp_path):
    root = _voc(tmp_path, ["a_0", "a_1", "a_2"])
    for name in ("cat", "dog"):
        (root / "ImageSets" / "Main" / f"{name}_train.txt").write_text("a_1.jpg 1\na_2.jpg -1")
        (root / "ImageSets" / "Main" / f"{name}_val.txt").write_text("a_0.jpg 1")
    splits = open_dataset(root).splits
    assert {name: members.tolist() for name, members in splits.items()} == {"train": [1, 2], "val": [0]}


@pytest.mark.parametrize(
    ("encoding", "declared", "label"),
    [
        ("gbk", "GBK", "猫"),
        ("gbk", "gb2312", "猫"),
        ("cp932", "Shift_JIS", "犬①"),
        ("big5", "Big5", "貓"),
        ("cp949", "EUC-KR", "고양이"),
        ("utf-16", "utf-16", "猫"),
        ("utf-8", "utf-16", "猫"),
        ("utf-8-sig", "UTF-8", "猫"),
        ("latin-1", "ISO-8859-1", "Hündin"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path, encoding, declared, label):
    index = open_dataset(_voc(tmp_path, ["a"], label, encoding, declared))
    assert index.id2label == {0: label}


def test_text_in_utf_16_is_read(yolo_folder):
    (yolo_folder / "data.yaml").unlink()
    (yolo_folder / "classes.txt").write_text("猫\r\ndog\r\n", encoding="utf-16")
    for file in (yolo_folder / "labels" / "train").iterdir():
        file.write_text(file.read_text(), encoding="utf-16")
    index = open_dataset(yolo_folder, "train")
    assert index.id2label == {0: "猫", 1: "dog"}
    assert len(index.annotations) == 3


def test_a_listed_image_without_an_xml_file_has_no_objects_unless_most_lack_one(voc_folder):
    (voc_folder / "Annotations" / "d.xml").unlink()  # CVAT and Datumaro write none for an image without objects
    report = check_dataset(voc_folder)
    assert not report.errors
    assert [record.id for record in report.index.images] == ["a", "b", "c", "d"]
    assert "is in a list, but has no XML file; it is read as an image without objects" in report.to_text()
    for name in "bc":
        (voc_folder / "Annotations" / f"{name}.xml").unlink()
    with pytest.raises(FileNotFoundError, match="there is no annotation file"):
        open_dataset(voc_folder)
