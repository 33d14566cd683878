"""Pascal VOC: coordinates as written, layouts, lists of images, and errors."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from modeling_detr.data import open_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.errors_detr import DatasetError


def test_coordinates_are_as_written_and_difficult_objects_are_boxes(voc_folder):
    index = open_dataset(voc_folder)
    assert index.annotations.boxes_xyxy[:2].tolist() == [[10, 20, 40, 50], [0, 0, 80, 60]]
    assert "objects marked as difficult, used like all others (set drop_difficult" in index.notes[0]
    assert [record.id for record in index.images] == ["a", "b", "c", "d"]


def test_an_image_in_no_list_belongs_to_the_dataset(voc_folder):
    (voc_folder / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    index = open_dataset(voc_folder)
    assert len(index) == 4
    assert {name: members.tolist() for name, members in index.splits.items()} == {"train": [0, 1], "val": [2]}


def test_xml_beside_images_in_split_folders_is_read(voc_folder):
    for split, stems in (("train", "ab"), ("valid", "cd")):
        (voc_folder / split).mkdir()
        for stem in stems:
            shutil.move(voc_folder / "Annotations" / f"{stem}.xml", voc_folder / split)
            shutil.move(next((voc_folder / "JPEGImages").glob(f"{stem}.*")), voc_folder / split)
    shutil.rmtree(voc_folder / "ImageSets")
    index = open_dataset(voc_folder)
    assert {name: members.tolist() for name, members in index.splits.items()} == {"train": [0, 1], "valid": [2, 3]}
    assert len(index.annotations) == 4


def test_xml_beside_images_without_splits_is_read(voc_folder):
    for folder in ("Annotations", "JPEGImages"):
        for file in (voc_folder / folder).iterdir():
            shutil.move(file, voc_folder / file.name)
    shutil.rmtree(voc_folder / "ImageSets")
    assert {name: len(members) for name, members in open_dataset(voc_folder).splits.items()} == {"all": 4}


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ("<polygon><pt><x>10</x><y>20</y></pt><pt><x>40.5</x><y>9</y></pt><pt><x>5</x><y>50</y></pt></polygon>", None),
        ("<polygon><x1>10</x1><y1>20</y1><x2>40.5</x2><y2>9</y2><x3>5</x3><y3>50</y3></polygon>", None),
        ("<robndbox><cx>30</cx><cy>25</cy><w>20</w><h>6</h><angle>1.5707963</angle></robndbox>", [27, 15, 33, 35]),
    ],
)
def test_objects_with_another_shape_are_read_as_enclosing_boxes(voc_folder, shape, box):
    file = voc_folder / "Annotations" / "a.xml"
    file.write_text(re.sub("<bndbox>.*?</bndbox>", shape, file.read_text(), count=1, flags=re.DOTALL))
    index = open_dataset(voc_folder)
    assert index.annotations.boxes_xyxy[0].round(3).tolist() == (box or [5, 9, 40.5, 50])
    assert any("read as enclosing boxes" in note for note in index.notes)


def test_objects_that_labelme_has_marked_as_deleted_are_left_out(voc_folder, edit):
    edit(voc_folder / "Annotations" / "a.xml", "<name>cat</name>", "<name>gone</name><deleted>1</deleted>")
    index = open_dataset(voc_folder)
    assert len(index.annotations) == 3
    assert "gone" not in index.id2label.values()


def test_parts_of_an_object_are_not_objects(voc_folder, edit):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    edit(voc_folder / "Annotations" / "a.xml", "<name>cat</name>", f"<name>cat</name>{part}")
    index = open_dataset(voc_folder)
    assert len(index.annotations) == 4
    assert index.annotations.boxes_xyxy[0].tolist() == [10, 20, 40, 50]


def test_an_image_is_found_by_the_name_of_its_xml_then_by_its_filename_tag(voc_folder, edit):
    edit(voc_folder / "Annotations" / "a.xml", "a.jpg", "c.jpg")
    assert Path(open_dataset(voc_folder).images[0].path).name == "a.jpg"
    shutil.move(voc_folder / "Annotations" / "a.xml", voc_folder / "Annotations" / "x.xml")
    shutil.rmtree(voc_folder / "ImageSets")
    with pytest.raises(ValueError, match=r"x.xml: its image, .*c.jpg, is also that of .*c.xml; remove one"):
        open_dataset(voc_folder)
    (voc_folder / "Annotations" / "c.xml").unlink()
    assert Path(open_dataset(voc_folder).images[-1].path).name == "c.jpg"


def test_a_missing_size_is_read_from_the_image_and_reported(voc_folder, edit):
    edit(voc_folder / "Annotations" / "a.xml", "<width>80</width>", "<width>0</width>")
    index = open_dataset(voc_folder)
    assert (index.images[0].height, index.images[0].width) == (60, 80)
    assert [note for note in index.notes if "1 XML file without the size of the image; the first: " in note]


def test_images_without_xml_and_unrelated_xml_are_dropped_and_reported(voc_folder):
    (voc_folder / "Annotations" / "d.xml").unlink()
    (voc_folder / "ImageSets" / "Main" / "val.txt").write_text("c\n")
    (voc_folder / "ImageSets" / "Main" / "cat_val.txt").unlink()
    (voc_folder / "Annotations" / "about.xml").write_text("<readme/>")
    index = open_dataset(voc_folder)
    assert len(index) == 3
    notes = "\n".join(index.notes)
    assert "1 image has no XML file" in notes
    assert "about.xml begins with <readme>" in notes


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("a.xml", "<xmin>10</xmin>", "<xmin>ten</xmin>", r"a.xml, object 1 \(cat\): xmin is 'ten', expected"),
        ("a.xml", "<name>dog</name>", "<name> </name>", r"a.xml, object 2: no <name>"),
        ("a.xml", "bndbox>", "box>", r"a.xml: not well-formed XML"),
        ("a.xml", "<width>80", "<width>wide", r"a.xml: <width> of the image is 'wide'"),
    ],
)
def test_errors_are_named(voc_folder, edit, file, old, new, message):
    edit(voc_folder / "Annotations" / file, old, new)
    with pytest.raises(ValueError, match=message):
        open_dataset(voc_folder)


def test_missing_files_are_named(voc_folder):
    (voc_folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nz\n")
    with pytest.raises(FileNotFoundError, match=r"train.txt, line 3: names 'z', but there is no .* file z.xml"):
        open_dataset(voc_folder)
    (voc_folder / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.xml: 1 of 4 images missing, the first is 'a', .*JPEGImages"):
        open_dataset(voc_folder)


def test_the_filename_tag_decides_between_images_with_the_same_stem(voc_folder, edit):
    shutil.copy(voc_folder / "JPEGImages" / "b.png", voc_folder / "JPEGImages" / "a.png")
    index = open_dataset(voc_folder)
    assert Path(index.images[0].path).name == "a.jpg"
    edit(voc_folder / "Annotations" / "a.xml", "a.jpg", "a")
    with pytest.raises(ValueError, match=r"a.xml: its image may be .*a.jpg or .*a.png, and <filename> is 'a'"):
        open_dataset(voc_folder)


def test_a_class_name_that_xml_cannot_contain_is_named_before_anything_is_written(voc_folder, tmp_path):
    index = open_dataset(voc_folder)
    categories = tuple(dataclasses.replace(category, name=f"{category.name}\x1b[2J") for category in index.categories)
    with pytest.raises(DatasetError, match=r"class 'cat\\u001b\[2J' has control characters, which the XML of voc"):
        convert_dataset(dataclasses.replace(index, categories=categories), tmp_path / "copy", "voc")
    assert not (tmp_path / "copy").exists()
