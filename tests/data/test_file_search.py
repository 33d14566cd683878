"""Which file belongs to which record: names of other machines, other spellings, files that are shared or missing."""

import json
import unicodedata
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from export_samples import SAMPLES
from PIL import Image

from modeling_detr.data import open_dataset
from modeling_detr.data.check import check_dataset
from modeling_detr.data.file_names import describe_difference
from modeling_detr.data.findings import Findings
from modeling_detr.data.splits import training_splits
from modeling_detr.errors_detr import DatasetError


NFD = unicodedata.normalize("NFD", "Köln café.png")
NFC = unicodedata.normalize("NFC", NFD)


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), grey, np.uint8)).save(path)
    return path


def coco(file: Path, names: list[str], boxes: list[list[int]] | None = None, first_id: int = 1) -> Path:
    """Write a COCO file with one box for each image; its width is the number of the image."""
    images = [
        {"id": number, "file_name": name, "height": 20, "width": 30} for number, name in enumerate(names, first_id)
    ]
    boxes = boxes or [[0, 0, number + 1, 5] for number in range(len(names))]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": box} for number, box in enumerate(boxes, first_id)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 1, "name": "cat"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def yolo(root: Path, images: list[str], labels: list[str]) -> Path:
    """Write a YOLO dataset with a split train of `images` and the label files `labels`."""
    for name in images:
        picture(root / "images" / "train" / name)
    for name in labels:
        file = root / "labels" / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat]\n")
    return root


def voc(file: Path, filename: str = "", path: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    file.write_text(
        f"<annotation><filename>{filename}</filename><path>{path}</path><size><width>30</width><height>20</height>"
        f"</size><object><name>cat</name>{box}</object></annotation>"
    )
    return file


@pytest.mark.parametrize(
    "prefix",
    [
        *("/home/me/data/images/", "C:\\data\\images\\", "C:/data/", "data/", "./", "../old/", "old/../", "../../"),
        *("https://host/bucket/", "file:///data/", "%2Fdata%2F", "\\\\server\\share\\"),
    ],
)
def test_a_path_of_another_machine_is_found_by_its_longest_matching_end(tmp_path, prefix):
    names = [f"cam{camera}/0000.png" for camera in (1, 2)]
    for name in names:
        picture(tmp_path / "images" / name)
    written = [f"{prefix}{name}" if "\\" not in prefix else f"{prefix}{name}".replace("/", "\\") for name in names]
    coco(tmp_path / "annotations.json", written)
    assert [image.path for image in open_dataset(tmp_path).images] == [f"{tmp_path}/images/{name}" for name in names]
    (tmp_path / "annotations.json").unlink()
    (tmp_path / "train.txt").write_text("\r\n".join(written))
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    for name in names:
        (tmp_path / "images" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert [image.path for image in open_dataset(tmp_path).images] == [f"{tmp_path}/images/{name}" for name in names]


@pytest.mark.parametrize("name", ["via", "cvat", "datumaro"])
def test_tools_find_each_image_by_the_longest_matching_end_of_its_path(tmp_path, name):
    SAMPLES[name](tmp_path)
    (file,) = [path for path in tmp_path.rglob("*.*") if path.suffix in (".json", ".xml")]
    text = file.read_text()
    for folder in ("cam1", "cam2"):
        text = text.replace(f'"{folder}/', f'"C:/shots/{folder}/')
    file.write_text(text)
    ends = ["/".join(Path(image.path).parts[-2:]) for image in open_dataset(tmp_path).images]
    assert ends == ["cam1/0000.png", "cam2/0000.png", "cam2/empty.png"]
    file.write_text(text.replace("/cam2/0000", "/cam3/0000"))
    with pytest.raises(ValueError, match=r"may be .*cam1/0000\.png or .*cam2/0000\.png"):
        open_dataset(tmp_path)


def test_another_extension_is_found_in_the_usual_folders_only(tmp_path):
    coco(tmp_path / "annotations.json", ["a.jpg"])
    picture(tmp_path / "masks" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"'a\.jpg' \(.*masks/a\.png differs in extension\), searched"):
        open_dataset(tmp_path)
    picture(tmp_path / "images" / "a.png")
    index = open_dataset(tmp_path)
    assert index.images[0].path == f"{tmp_path}/images/a.png"
    assert "differs in extension" in index.notes[0]


def test_two_files_that_fit_equally_well_are_an_error_that_names_both(tmp_path):
    for camera in (1, 2):
        picture(tmp_path / "coco" / "images" / f"cam{camera}" / "0000.png")
        picture(tmp_path / "voc" / "JPEGImages" / f"cam{camera}" / "0000.png")
    coco(tmp_path / "coco" / "annotations.json", ["old/0000.png"])
    xml = voc(tmp_path / "voc" / "Annotations" / "0000.xml")
    for folder in ("coco", "voc"):
        with pytest.raises(ValueError, match=r"may be .*cam1/0000\.png or .*cam2/0000\.png.* or remove the other"):
            open_dataset(tmp_path / folder)
        report = check_dataset(tmp_path / folder)
        assert "ambiguous name" in {finding.kind for finding in report.findings}
    voc(xml, "0000.png", "D:\\data\\cam2\\0000.png")
    assert open_dataset(tmp_path / "voc").images[0].path.endswith("cam2/0000.png")


def test_an_image_that_only_another_split_has_is_missing(tmp_path):
    for name in ("train/a.png", "val/a.png", "val/b.png"):
        picture(tmp_path / name)
    coco(tmp_path / "annotations" / "instances_train.json", ["a.png", "b.png"])
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images missing, the first is 'b\.png'"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("on_disk", "written", "difference"),
    [
        (NFD, NFC, "accents"),
        (NFC, NFD, "accents"),
        ("Köln.png", quote("Köln.png"), "percent signs"),
        (quote("my photo.png"), "my photo.png", "percent signs"),
        ("0AF.png", "0af.png", "case"),
        (NFD.upper().replace("PNG", "png"), NFC, "accents and case"),
        ("my photo.png", "my+photo.png", "plus signs"),
        ("photo.png", "photo .png", "spaces"),
    ],
)
def test_names_in_another_spelling_are_found_in_all_formats_and_reported(tmp_path, on_disk, written, difference):
    stem = written.removesuffix(".png")
    picture(tmp_path / "coco" / "images" / on_disk)
    coco(tmp_path / "coco" / "annotations.json", [written])
    yolo(tmp_path / "yolo", [on_disk], [f"{stem}.txt"])
    picture(tmp_path / "voc" / "JPEGImages" / on_disk)
    voc(tmp_path / "voc" / "Annotations" / f"{stem}.xml")
    for folder in ("coco", "yolo", "voc"):
        report = check_dataset(tmp_path / folder)
        assert (len(report.index), len(report.index.annotations), report.errors) == (1, 1, 0)
        assert f"differs in {difference}" in report.index.notes[0]
        assert f"1 although they differ in {difference}" in report.to_text()


def test_the_nearest_spelling_wins_and_a_label_file_of_another_image_is_not_taken(tmp_path):
    for grey, name in enumerate(["a b.png", "A b.png", "a%20b.png"]):
        picture(tmp_path / "images" / name, grey)
    coco(tmp_path / "annotations.json", ["x/A b.png", "x/a%20b.png", "x/a b.png"])
    paths = [image.path.rpartition("/")[2] for image in open_dataset(tmp_path).images]
    assert paths == ["A b.png", "a%20b.png", "a b.png"]
    index = open_dataset(yolo(tmp_path / "yolo", ["a.png", "A.png"], ["a.txt"]))
    assert [index.images[image].path[-5:] for image in index.annotations.image_index] == ["a.png"]


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_one_file_of_several_image_ids_is_an_error(tmp_path, prefix):
    picture(tmp_path / "images" / "a.png")
    coco(tmp_path / "annotations.json", ["a.png", f"{prefix}a.png"])
    with pytest.raises(
        ValueError, match=r"annotations\.json: the images 1 and 2 are the same file, .*a\.png; correct"
    ):
        open_dataset(tmp_path)
    assert "one file for several images" in {finding.kind for finding in check_dataset(tmp_path).findings}


def test_splits_may_share_images_unless_their_objects_contradict(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "images" / name)
    coco(tmp_path / "annotations" / "instances_train.json", ["a.png"])
    file = coco(tmp_path / "annotations" / "instances_trainval.json", ["a.png", "b.png"])
    index = open_dataset(tmp_path)
    assert (len(index), {name: members.tolist() for name, members in index.splits.items()}) == (
        2,
        {"train": [0], "trainval": [0, 1]},
    )
    coco(file, ["a.png", "b.png"], first_id=7)  # numbered on its own
    assert len(open_dataset(tmp_path)) == 3
    coco(file, ["a.png", "b.png"], [[5, 5, 9, 9], [0, 0, 2, 5]])
    with pytest.raises(ValueError, match=r"trainval.json: its image 1 and the image 1 in .*_train.json are the same"):
        open_dataset(tmp_path)


def test_one_label_file_for_images_of_two_folders_is_an_error(tmp_path):
    for camera in (1, 2):
        picture(tmp_path / "images" / f"cam{camera}" / "0.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    with pytest.raises(ValueError, match=r"labels/0\.txt: belongs to .*cam1/0\.png and to .*cam2/0\.png"):
        open_dataset(tmp_path)


def test_labels_that_mostly_find_no_image_are_an_error_with_what_differs(tmp_path):
    images = [f"IMG_{number}.png" for number in range(8)]
    root = yolo(tmp_path, images, ["IMG_0.txt", *(f"IMG-{number}.txt" for number in range(1, 8))])
    shown = r"IMG-1\.txt and IMG_1\.png differ in '-' instead of '_'; .*IMG-2\.txt .*IMG-3\.txt"
    with pytest.raises(ValueError, match=rf"7 of 8 label files match no image, and 7 of 8 images .*{shown}"):
        open_dataset(root)
    for file in (root / "labels" / "train").glob("IMG-*"):
        file.rename(file.with_name(f"{file.stem.replace('-', '_')}.png.txt"))
    with pytest.raises(ValueError, match=r"IMG_1\.png\.txt and IMG_1\.png differ in extension"):
        open_dataset(root)
    for file in (root / "labels" / "train").glob("*.png.txt"):
        file.unlink()
    assert len(open_dataset(root).annotations) == 1  # backgrounds are no mistake


def test_splits_that_are_not_there_are_noted_and_errors_repeat_the_note(tmp_path):
    root = yolo(tmp_path / "yolo", ["a.png"], ["a.txt"])
    (root / "data.yaml").write_text("train: images/train\nval: ../valid/images\nnames: [cat]\n")
    for name in ("train/a.png", "val/b.png"):
        picture(tmp_path / "coco" / name)
        coco(tmp_path / "coco" / "annotations" / f"instances_{name[:-6]}.json", [name[-5:]])
    (tmp_path / "coco" / "val" / "b.png").unlink()
    for folder, message in (("yolo", "val is '../valid/images', but"), ("coco", "none of its 1 image is there")):
        index = open_dataset(tmp_path / folder)
        assert list(index.splits) == ["train"]
        assert message in index.notes[0]
        with pytest.raises(DatasetError, match=rf"no split with a usual name for evaluation.*{message}"):
            training_splits(index)
        with pytest.raises(DatasetError, match=rf"has no split 'val'; .*{message}"):
            open_dataset(tmp_path / folder, split="val")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cat]\n")
    with pytest.raises(FileNotFoundError, match=r"train is '\.\./train/images', but .* has no such folder"):
        open_dataset(root)


def test_folders_that_are_links_are_part_of_the_dataset(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "disk" / "images" / name)
    (tmp_path / "disk" / "labels").mkdir()
    (tmp_path / "disk" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "disk" / "labels" / "b.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    for stem in ("a", "b"):
        voc(tmp_path / "xml" / f"{stem}.xml")
    root = tmp_path / "set"
    coco(root / "coco" / "annotations.json", ["a.png", "b.png"])
    (root / "coco" / "images").symlink_to(tmp_path / "disk" / "images")
    (root / "yolo").mkdir(parents=True)
    (root / "yolo" / "data.yaml").write_text("train: train/images\nnames: [cat]\n")
    (root / "yolo" / "train").symlink_to(tmp_path / "disk")
    (root / "voc").mkdir()
    (root / "voc" / "Annotations").symlink_to(tmp_path / "xml")
    (root / "voc" / "JPEGImages").symlink_to(tmp_path / "disk" / "images")
    for folder in ("coco", "yolo", "voc"):
        assert len(open_dataset(root / folder).annotations) == 2
    for escape in ("images/../../secret.png", "../../secret.png", str(tmp_path / "secret.png")):
        picture(tmp_path / "secret.png")
        coco(root / "coco" / "annotations.json", ["a.png", escape])
        with pytest.raises((ValueError, OSError), match=r"is outside the dataset's folder|missing"):
            open_dataset(root / "coco")


def test_a_missing_image_is_reported_with_the_most_similar_file(tmp_path):
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    coco(tmp_path / "annotations.json", ["a.png", "c/b1.jpg"])
    with pytest.raises(FileNotFoundError, match=r"is 'c/b1\.jpg' \(.*images/b\.png differs in '1' instead of ''"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "difference"),
    [
        ("a.png", "/d/A.png", "case"),
        ("x/a.png", "/d/y/a.png", "folder"),
        ("x/a.jpg", "/d/y/A.png", "extension and case and folder"),
        ("x\\a.png", "/x/a.png", "separators"),
        ("img_1.png", "/d/img-1.png", "'_' instead of '-'"),
        ("apple.png", "/d/zebra.png", "the whole name"),
        (NFC, f"/d/{NFD}", "accents"),
    ],
)
def test_differences_of_names_are_described(name, path, difference):
    assert describe_difference(name, path) == difference


def test_findings_can_be_collected_where_names_are_ambiguous(tmp_path):
    for camera in (1, 2):
        picture(tmp_path / "images" / f"cam{camera}" / "0.png")
    coco(tmp_path / "annotations.json", ["0.png"])
    findings = Findings(collects=True)
    assert len(open_dataset(tmp_path, findings=findings)) == 1
    assert findings.broken_images == {"0.png"}
