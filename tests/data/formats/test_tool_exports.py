"""Exports of annotation tools: every box lies exactly on the colour of its class."""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from export_samples import COLOURS, SAMPLES, SCENES, cvat, label_studio, labelme, paint, supervisely, via, write
from PIL import Image

from modeling_detr.commands.data import main
from modeling_detr.data import FORMATS, DetectionDataset, open_dataset, read_image
from modeling_detr.data.check import check_dataset
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError


def check_colours(index, count: int = 3) -> None:
    """Each box is full of its class's colour, and the pixels around it are not."""
    assert len(index.annotations) == count
    for row, box in enumerate(index.annotations.boxes_xyxy):
        pixels = read_image(index.images[index.annotations.image_index[row]]).permute(1, 2, 0).numpy()
        colour = COLOURS[index.categories[index.annotations.label[row]].name]
        ys, xs = np.nonzero((pixels == colour).all(-1))
        assert box == pytest.approx([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], abs=0.01)


@pytest.fixture(params=SAMPLES)
def sample(request, tmp_path):
    SAMPLES[request.param](tmp_path / "data")
    return request.param.split()[0], tmp_path / "data"


def test_each_is_recognised_as_one_format_and_read(sample):
    name, folder = sample
    assert [entry.name for entry in FORMATS.values() if entry.find(folder)] == [name]
    index = open_dataset(folder)
    check_colours(index)
    assert len(index) == (2 if name == "open_images" else 3)  # whose image without boxes is not in the file


def test_each_is_checked_without_errors_and_the_format_is_explained(sample, capsys):
    name, folder = sample
    assert main(["check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"({name})" in out
    assert f"format {name}, recognised by" in out


def test_each_is_converted_to_coco(sample, tmp_path):
    _, folder = sample
    assert main(["convert", str(folder), str(tmp_path / "coco"), "--to", "coco"]) == 0
    check_colours(open_dataset(tmp_path / "coco"))


@pytest.mark.parametrize("name", ["cvat", "label_studio", "via", "via csv", "via 3", "open_images", "datumaro"])
def test_the_path_of_the_file_is_enough(tmp_path, name):
    SAMPLES[name](tmp_path)
    files = [*tmp_path.glob("*.*"), *tmp_path.glob("annotations/*")]
    (file,) = [path for path in files if path.suffix in (".json", ".xml", ".csv") and "class-" not in path.name]
    check_colours(open_dataset(file))


def test_json_files_of_an_unknown_kind_are_an_error(tmp_path):
    write(tmp_path / "a.json", {"objects": [{"box": [1, 2, 3, 4]}], "file": "a.png"})
    paint(tmp_path / "a.png", (20, 20), [])
    with pytest.raises(DatasetError, match=r"a\.json.*'shapes' \(labelme\)"):
        open_dataset(tmp_path)


def test_the_documentation_lists_exactly_the_formats():
    lines = (Path(__file__).parents[3] / "docs/data.md").read_text().partition("| --- |")[2].splitlines()
    table = [line.split("`")[1] for line in lines[1 : lines.index("", 1)]]
    assert sorted(table) == sorted(FORMATS)


def edited(path: Path, edit) -> Path:
    """Change a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)
    return path


def boxes(index) -> list[list[float]]:
    return index.annotations.boxes_xyxy.round(3).tolist()


def as_png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["cvat", "label_studio", "via"])
def test_files_named_like_splits_are_splits(tmp_path, name):
    SAMPLES[name](tmp_path / "train")
    (file,) = (path for path in (tmp_path / "train").rglob("*") if path.suffix in (".json", ".xml"))
    (tmp_path / "train").rename(tmp_path / "a")
    (tmp_path / "a" / file.name).rename(tmp_path / "a" / f"train{file.suffix}")
    SAMPLES[name](tmp_path / "b")
    (tmp_path / "b" / file.name).rename(tmp_path / "b" / f"my_val{file.suffix}")
    index = open_dataset(tmp_path)
    assert {split: members.tolist() for split, members in index.splits.items()} == {
        "train": [0, 1, 2],
        "val": [3, 4, 5],
    }
    assert list(open_dataset(tmp_path / "b").splits) == ["all"]


# LabelMe


def labelme_file(folder: Path, shapes: list, **changes) -> None:
    paint(folder / "a.png", (60, 80), [])
    content = {"version": "4.5.6", "shapes": shapes, "imagePath": "a.png", "imageHeight": 60, "imageWidth": 80}
    write(folder / "a.json", {**content, **changes})


def test_labelme_shapes_of_all_kinds(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 255
    shapes = [
        ("polygon", [[5, 6], [20, 6], [12, 30.5]], {}),
        (None, [[1, 2], [3, 2], [3, 9]], {}),  # version 3 had polygons only
        ("circle", [[40, 30], [43, 34]], {}),
        ("rotation", [[10, 0], [20, 10], [10, 20], [0, 10]], {"direction": 0.8}),  # X-AnyLabeling
        ("rectangle", [[1, 1], [4, 1], [4, 5], [1, 5]], {}),  # also X-AnyLabeling
        ("mask", [[10, 20], [16, 24]], {"mask": base64.b64encode(as_png(mask)).decode()}),
        ("polygon", [[50, 1], [55, 1], [55, 5]], {"group_id": 7}),
        ("polygon", [[60, 10], [65, 10], [65, 15]], {"group_id": 7}),
        ("point", [[3, 3]], {}),
        ("linestrip", [[3, 3], [9, 9], [9, 12]], {}),
    ]
    labelme_file(
        tmp_path, [{"label": "cat", "points": points, "shape_type": kind, **more} for kind, points, more in shapes]
    )
    index = open_dataset(tmp_path)
    assert boxes(index) == [
        [5, 6, 20, 30.5],
        [1, 2, 3, 9],
        [35, 25, 45, 35],
        [0, 0, 20, 20],
        [1, 1, 4, 5],
        [12, 21, 15, 23],
        [50, 1, 65, 15],
    ]
    assert any("1 circle" in note and "3 polygons" not in note for note in index.notes)
    assert any("2 points and lines are left out" in note for note in index.notes)
    masks = open_dataset(tmp_path, task="instance")
    assert len(masks.annotations) == 5  # a rectangle does not say what is inside
    assert masks.read_masks(0)[3].sum() == 6
    assert DetectionDataset(masks, masks=True)[0]["target"]["masks"].shape == (5, 60, 80)


@pytest.mark.parametrize(
    "written", ["..\\images\\a.png", "../images/a.png", "/home/me/x/images/a.png", "C:\\images\\a.png"]
)
def test_labelme_paths_of_other_machines(tmp_path, written):
    paint(tmp_path / "images/a.png", (60, 80), SCENES["cam1/0000.png"][1])
    paint(tmp_path / "other/a.png", (60, 80), [])
    labelme(tmp_path / "made")
    content = json.loads((tmp_path / "made/cam1/0000.json").read_text())
    write(tmp_path / "data/images/x", "")
    (tmp_path / "images").rename(tmp_path / "data/images2")
    (tmp_path / "data/images/x").unlink()
    (tmp_path / "data/images").rmdir()
    (tmp_path / "data/images2").rename(tmp_path / "data/images")
    (tmp_path / "other").rename(tmp_path / "data/other")
    write(tmp_path / "data/labels/a.json", {**content, "imagePath": written})
    check_colours(open_dataset(tmp_path / "data"), 2)


def test_labelme_labels_in_folders_like_those_of_the_images(tmp_path):
    for split, box in {"train": (1, 2, 30, 20), "val": (5, 6, 9, 30)}.items():
        paint(tmp_path / f"images/{split}/a.png", (60, 80), [("cat", box)])
        shape = {"label": "cat", "points": [box[:2], box[2:]], "shape_type": "rectangle"}
        write(tmp_path / f"labels/{split}/a.json", {"shapes": [shape], "imagePath": "a.png", "imageData": None})
    index = open_dataset(tmp_path)
    check_colours(index, 2)
    assert {name: len(members) for name, members in index.splits.items()} == {"train": 1, "val": 1}


def test_labelme_images_inside_the_json(tmp_path):
    labelme(tmp_path)
    for file in tmp_path.rglob("*.json"):
        image = file.with_suffix(".png")
        data = base64.b64encode(image.read_bytes()).decode()
        edited(file, lambda content, data=data: content.update(imageData=data, imageHeight=None, imageWidth=None))
        image.unlink()
    check_colours(open_dataset(tmp_path))
    assert main(["convert", str(tmp_path), str(tmp_path / "yolo"), "--to", "yolo"]) == 0
    check_colours(open_dataset(tmp_path / "yolo"))


def test_labelme_images_that_are_missing_or_shared_are_errors(tmp_path):
    labelme(tmp_path)
    (tmp_path / "cam2/0000.png").unlink()
    edited(tmp_path / "cam2/0000.json", lambda content: content.update(imagePath="0001.png"))
    edited(tmp_path / "cam2/empty.json", lambda content: content.update(imagePath="../cam1/0000.png"))
    with pytest.raises(DatasetNotFoundError, match=r"0000\.json: 1 of 2 images missing, the first is '0001\.png'"):
        open_dataset(tmp_path / "cam2", images=tmp_path / "cam2")
    kinds = [finding.kind for finding in check_dataset(tmp_path).findings if finding.severity == "error"]
    assert kinds == ["one file for several images"] * 2  # by its stem, cam2/0000.json has cam1/0000.png too


# CVAT


def test_cvat_shapes_of_all_kinds(tmp_path):
    paint(tmp_path / "images/a.png", (60, 80), [])
    shapes = [
        '<polygon label="cat" points="5.00,6.00;20.00,6.00;12.00,30.50" occluded="1"/>',
        '<box label="cat" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90.00"/>',
        '<ellipse label="cat" cx="40" cy="30" rx="10" ry="5" rotation="90"/>',
        '<mask label="cat" rle="1, 2, 3" left="10" top="20" width="3" height="2"/>',
        '<cuboid label="cat" xtl1="1" ytl1="2" xbl1="1" ybl1="9" xtr1="5" ytr1="3" xbr1="5" ybr1="8" xtl2="6" '
        'ytl2="1" xbl2="6" ybl2="7" xtr2="2" ytr2="2" xbr2="2" ybr2="6"/>',
        '<polyline label="cat" points="1,1;2,2"/>',
        '<tag label="cat"/>',
    ]
    image = f'<image id="0" name="a.png" width="80" height="60">{"".join(shapes)}</image>'
    write(tmp_path / "annotations.xml", f"<annotations><meta/>{image}</annotations>")
    index = open_dataset(tmp_path)
    expected = [[5, 6, 20, 30.5], [25, 15, 35, 35], [35, 20, 45, 40], [11, 20, 13, 21], [1, 1, 6, 9]]
    assert boxes(index) == expected
    masks = open_dataset(tmp_path, task="instance")
    assert masks.read_masks(0).sum((1, 2))[2] == 2
    assert len(masks.annotations) == 3


@pytest.mark.parametrize("tag", ["polygon", "mask"])
def test_cvat_outlines_of_one_label_and_group_are_one_object(tmp_path, tag):
    paint(tmp_path / "a.png", (60, 80), [])
    shape = {
        "polygon": lambda x, y: f'points="{x},{y};{x + 5},{y};{x + 5},{y + 4};{x},{y + 4}"',
        "mask": lambda x, y: f'rle="0, 20" left="{x}" top="{y}" width="5" height="4"',
    }[tag]
    shapes = [
        f'<{tag} label="cat" {shape(5, 6)} group_id="1"/>',
        f'<{tag} label="cat" {shape(30, 20)} group_id="1"/>',
        f'<{tag} label="dog" {shape(50, 20)} group_id="1"/>',
        f'<{tag} label="cat" {shape(60, 50)} group_id="0"/>',
        '<box label="cat" xtl="1" ytl="2" xbr="3" ybr="4" group_id="1"/>',
    ]
    image = f'<image id="0" name="a.png" width="80" height="60">{"".join(shapes)}</image>'
    write(tmp_path / "annotations.xml", f"<annotations><meta/>{image}</annotations>")
    assert boxes(open_dataset(tmp_path)) == [[5, 6, 35, 24], [50, 20, 55, 24], [60, 50, 65, 54], [1, 2, 3, 4]]
    assert open_dataset(tmp_path, task="instance").read_masks(0).sum((1, 2)).tolist() == [40, 20, 20]


def test_cvat_objects_with_the_attribute_is_crowd_are_crowd_regions(tmp_path):
    cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    crowd = '<attribute name="is_crowd">true</attribute>'
    file.write_text(file.read_text().replace('<attribute name="colour">x</attribute>', crowd, 1))
    assert open_dataset(tmp_path).annotations.is_crowd.tolist() == [True, False, False]
    assert not open_dataset(tmp_path, crowds="as_objects").annotations.is_crowd.any()


def test_cvat_videos_are_read_by_frame_without_what_is_outside(tmp_path):
    frames = {0: (2, 3, 12, 13), 1: (5, 3, 15, 13), 3: (9, 3, 19, 13)}
    for frame in range(4):
        objects = [("cat", frames[frame])] if frame in frames else []
        paint(tmp_path / f"images/frame_{frame:06d}.PNG", (40, 50), objects)
    boxes_in = "".join(
        f'<box frame="{frame}" outside="0" occluded="0" keyframe="1" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"/>'
        for frame, (x0, y0, x1, y1) in frames.items()
    )
    outside = '<box frame="2" outside="1" occluded="0" keyframe="1" xtl="5" ytl="3" xbr="15" ybr="13"/>'
    size = "<task><original_size><width>50</width><height>40</height></original_size></task>"
    write(
        tmp_path / "annotations.xml",
        f'<annotations><meta>{size}</meta><track id="0" label="cat">{boxes_in}{outside}</track></annotations>',
    )
    index = open_dataset(tmp_path)
    assert len(index) == 4
    check_colours(index)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"annotates a video.*ffmpeg"):
        open_dataset(tmp_path)


def test_cvat_subsets_are_splits(tmp_path):
    cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    text = file.read_text().replace('<image id="0"', '<image subset="Train" id="0"')
    file.write_text(text.replace('<image id="1"', '<image subset="Validation" id="1"'))
    (tmp_path / "images/Train").mkdir()
    (tmp_path / "images/cam1").rename(tmp_path / "images/Train/cam1")
    index = open_dataset(tmp_path)
    assert {name: len(members) for name, members in index.splits.items()} == {"Train": 1, "Validation": 1}
    check_colours(index)


def test_sizes_of_the_stored_image_beside_boxes_of_the_upright_one_are_reported(tmp_path):
    pixels = np.full((90, 120, 3), 128, np.uint8)  # upright, it has 120 x 90 (height x width)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    low = '<box label="cat" xtl="1" ytl="100" xbr="5" ybr="119"/>'  # outside the stored image
    image = f'<image id="0" name="a.png" width="120" height="90">{low}</image>'
    write(tmp_path / "annotations.xml", f"<annotations><meta/>{image}</annotations>")
    index = open_dataset(tmp_path)
    assert boxes(index) == [[1, 100, 5, 119]]
    assert (index.images[0].height, index.images[0].width) == (120, 90)
    assert any("size of the stored image" in note for note in index.notes)


# Label Studio


def task(image: str, *regions: dict, **changes) -> dict:
    result = [{"type": "rectanglelabels", "original_width": 80, "original_height": 60, **region} for region in regions]
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": result}], **changes}


def region(value: dict, name: str = "cat", kind: str = "rectangle") -> dict:
    return {"type": f"{kind}labels", "value": {**value, f"{kind}labels": [name]}}


@pytest.mark.parametrize(
    "written",
    [
        "/data/upload/3/1a2b3c4d-my_shot.png",
        "upload/3/1a2b3c4d-my%20shot.png",
        "/data/local-files/?d=bucket/images/my%20shot.png",
        "s3://bucket/images/my shot.png",
        "https://example.org/images/my%20shot.png?X-Amz-Date=20260101T000000Z&sig=a/b.png",
    ],
)
def test_label_studio_finds_images_by_their_addresses(tmp_path, written):
    objects = [("cat", (8, 6, 40, 30))]
    paint(tmp_path / "images/my shot.png", (60, 80), objects)
    value = {"x": 10, "y": 10, "width": 40, "height": 40}
    write(tmp_path / "export.json", [task(written, region(value))])
    check_colours(open_dataset(tmp_path), 1)


def test_label_studio_shapes_of_all_kinds(tmp_path):
    paint(tmp_path / "a.png", (60, 80), [])
    bits = f"{4 * 60 * 80:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    inside = np.zeros((60, 80, 4), np.uint8)
    inside[10:12, 20:25] = 255
    values = inside.ravel()
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        bits += f"111{stop - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    brush = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    regions = [
        region({"x": 50, "y": 50, "width": 10, "height": 20, "rotation": 90}),
        region({"points": [[10, 10], [20, 10], [20, 50]]}, kind="polygon"),
        region({"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0}, kind="ellipse"),
        region({"format": "rle", "rle": brush}, kind="brush"),
        region({"x": 5, "y": 5, "width": 1}, kind="keypoint"),
        {"id": "r", "type": "rectangle", "value": {"x": 0, "y": 0, "width": 10, "height": 10}},
        {"id": "r", "type": "labels", "value": {"x": 0, "y": 0, "width": 10, "height": 10, "labels": ["dog"]}},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    write(tmp_path / "export.json", [task("a.png", *regions)])
    index = open_dataset(tmp_path)
    assert boxes(index) == [[28, 30, 40, 38], [8, 6, 16, 30], [32, 18, 48, 42], [20, 10, 25, 12], [0, 0, 8, 6]]
    assert index.id2label[int(index.annotations.label[-1])] == "dog"
    assert open_dataset(tmp_path, task="instance").read_masks(0).sum((1, 2))[2] == 10


def test_label_studio_draws_on_the_upright_picture(tmp_path):
    pixels = np.full((90, 120, 3), 128, np.uint8)  # stored lying; upright, it has 90 x 120 pixels
    pixels[10:40, 20:60] = COLOURS["cat"]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    x0, y0, x1, y1 = 90 - 40, 20, 90 - 10, 60
    value = {"x": 100 * x0 / 90, "y": 100 * y0 / 120, "width": 100 * (x1 - x0) / 90, "height": 100 * (y1 - y0) / 120}
    write(tmp_path / "export.json", [task("a.png", {**region(value), "original_width": 120, "original_height": 90})])
    check_colours(open_dataset(tmp_path), 1)


def test_label_studio_chooses_one_finished_annotation(tmp_path):
    label_studio(tmp_path)
    wrong = {"result": [region({"x": 1, "y": 1, "width": 3, "height": 3})], "updated_at": "2030-01-01T00:00:00Z"}

    def edit(tasks):
        tasks[0]["annotations"][0]["ground_truth"] = True
        tasks[0]["annotations"].append(wrong)
        tasks[1]["annotations"].append({**wrong, "was_cancelled": True})
        tasks[2]["annotations"] = []

    edited(tmp_path / "project-1.json", edit)
    index = open_dataset(tmp_path)
    check_colours(index)
    assert len(index) == 2
    assert any("1 task with several annotations" in note for note in index.notes)
    assert any("1 task without a finished annotation" in note for note in index.notes)


def test_label_studio_json_min_and_completions(tmp_path):
    label_studio(tmp_path)
    file = tmp_path / "project-1.json"
    tasks = json.loads(file.read_text())
    write(file, [{"id": entry["id"], "data": entry["data"], "completions": entry["annotations"]} for entry in tasks])
    check_colours(open_dataset(tmp_path))
    minimal = [
        {
            "image": entry["data"]["image"],
            "id": entry["id"],
            "label": [
                {**result["value"], "original_width": 1, "original_height": 1}
                for result in entry["annotations"][0]["result"]
            ],
            "annotator": 1,
            "annotation_id": 5,
        }
        for entry in tasks
    ]
    write(file, minimal)
    check_colours(open_dataset(tmp_path))


# VIA


def test_via_version_1_without_attributes_has_one_class(tmp_path):
    for split in ("train", "val"):
        paint(tmp_path / split / "a.png", (60, 80), [])
        shape = {"name": "polygon", "all_points_x": [5, 20, 12], "all_points_y": [6, 6, 30]}
        regions = {"0": {"shape_attributes": shape, "region_attributes": {}}}
        entry = {"fileref": "", "size": 9, "filename": "a.png", "base64_img_data": "", "regions": regions}
        write(tmp_path / split / "via_region_data.json", {"a.png9": {**entry, "file_attributes": {}}})
    index = open_dataset(tmp_path)
    assert index.id2label == {0: "object"}
    assert {name: len(members) for name, members in index.splits.items()} == {"train": 1, "val": 1}
    assert boxes(index) == [[5, 6, 20, 30]] * 2


def test_via_shapes_and_checkboxes(tmp_path):
    via(tmp_path)
    shapes = [
        {"name": "circle", "cx": 30, "cy": 30, "r": 5.5},
        {"name": "ellipse", "cx": 30, "cy": 30, "rx": 10, "ry": 5, "theta": np.pi / 2},
        {"name": "point", "cx": 3, "cy": 3},
        {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]},
    ]

    def edit(content):
        entry = content["_via_img_metadata"]["cam1/0000.png123"]
        entry["regions"] = [
            {"shape_attributes": shape, "region_attributes": {"label": {"c": True}}} for shape in shapes
        ]
        content["_via_img_metadata"] = {"a": entry}
        content["_via_attributes"]["region"]["label"] = {"type": "checkbox", "options": {"c": "cat", "d": "dog"}}

    edited(tmp_path / "via_project.json", edit)
    index = open_dataset(tmp_path)
    assert index.id2label == {0: "cat"}
    assert boxes(index) == [[24.5, 24.5, 35.5, 35.5], [25, 20, 35, 40]]


def test_via_asks_which_attribute_is_the_class(tmp_path):
    via(tmp_path)

    def edit(content):
        for entry in content["_via_img_metadata"].values():
            for written in entry["regions"]:
                attributes = written["region_attributes"]
                written["region_attributes"] = {"Species_of_it": attributes["label"], "quality": "good"}

    edited(tmp_path / "via_project.json", edit)
    with pytest.raises(DatasetError, match=r"several attributes, Species_of_it, quality.*class_attribute='Species"):
        open_dataset(tmp_path)
    check_colours(open_dataset(tmp_path, class_attribute="Species_of_it"))


# KITTI, Open Images, Datumaro, Supervisely


def test_kitti_classes_may_have_several_words(tmp_path):
    paint(tmp_path / "image_2/0.png", (60, 80), [])
    numbers = "0.00 0 0.00 10 20 40 50 1 1 1 0 0 0 0"
    write(tmp_path / "label_2/0.txt", f"traffic light {numbers}\nred  car {numbers} 0.93\nCar {numbers}\n")
    index = open_dataset(tmp_path)
    assert [category.name for category in index.categories] == ["Car", "red car", "traffic light"]
    assert boxes(index) == [[10, 20, 40, 50]] * 3


def test_kitti_lists_are_splits(tmp_path):
    SAMPLES["kitti"](tmp_path)
    write(tmp_path / "ImageSets/train.txt", "cam1_0000\ncam2_0000\n")
    write(tmp_path / "ImageSets/val.txt", "cam2_empty")
    write(tmp_path / "ImageSets/test.txt", "other\n")
    index = open_dataset(tmp_path)
    assert {name: members.tolist() for name, members in index.splits.items()} == {"train": [0, 1], "val": [2]}
    (tmp_path / "training/label_2/cam1_0000.txt").write_text("Car 1 2 3\n")
    with pytest.raises(DatasetError, match=r"line 1: got 4 fields"):
        open_dataset(tmp_path)


def test_open_images_groups_are_crowds(tmp_path):
    SAMPLES["open_images"](tmp_path)
    index = open_dataset(tmp_path)
    assert index.annotations.is_crowd.tolist() == [False, False, True]
    assert index.splits.keys() == {"train"}
    assert any("1 box left out, because 1 image is not there" in note for note in index.notes)


def test_datumaro_groups_are_one_object(tmp_path):
    SAMPLES["datumaro"](tmp_path)
    polygons = [[1, 1, 5, 1, 5, 5], [20, 20, 30, 20, 30, 30]]
    parts = [{"type": "polygon", "points": points, "label_id": 0, "group": 4} for points in polygons]
    counts = {"type": "mask", "rle": {"counts": [60, 3, 60 * 80 - 63], "size": [60, 80]}, "label_id": 1, "group": 0}
    rotated = {"type": "bbox", "bbox": [20, 20, 20, 10], "label_id": 1, "attributes": {"rotation": 90}}
    others = [{"type": "label", "label_id": 1}, {"type": "polyline", "points": [1, 1, 2, 2], "label_id": 1}]
    edited(
        tmp_path / "annotations/default.json",
        lambda content: content["items"][0].update(annotations=[*parts, counts, rotated, *others]),
    )
    assert boxes(open_dataset(tmp_path))[:3] == [[1, 1, 30, 30], [1, 0, 2, 3], [25, 15, 35, 35]]
    assert open_dataset(tmp_path, task="instance").read_masks(0).sum((1, 2)).tolist()[1:] == [3]


def test_supervisely_bitmaps_and_holes(tmp_path):
    supervisely(tmp_path)
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    data = base64.b64encode(zlib.compress(as_png(mask * 255))).decode()
    square = [[20, 20], [40, 20], [40, 40], [20, 40]]
    hole = [[25, 25], [35, 25], [35, 35], [25, 35]]
    written = [
        {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [10, 20]}},
        {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": square, "interior": [hole]}},
        {"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
    ]
    edited(tmp_path / "cam1/ann/0000.png.json", lambda content: content.update(objects=written))
    assert boxes(open_dataset(tmp_path))[:2] == [[12, 21, 15, 23], [20, 20, 40, 40]]
    assert open_dataset(tmp_path, task="instance").read_masks(0).sum((1, 2)).tolist() == [6, 300]


def test_open_images_that_are_there_under_another_name_are_an_error(tmp_path):
    SAMPLES["open_images"](tmp_path)
    image = next((tmp_path / "train").glob("cam1_*"))
    image.rename(image.with_name(image.name.replace("_", "-")))
    with pytest.raises(DatasetError, match=r"'cam1_0000' and .*cam1-0000\.png differ in '_' instead of '-'"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["via", "via csv", "open_images", "kitti", "datumaro"])
def test_exports_in_utf_16_are_read(tmp_path, name):
    SAMPLES[name](tmp_path)
    for file in (path for path in tmp_path.rglob("*.*") if path.suffix in (".json", ".csv", ".txt")):
        file.write_text(file.read_text(), encoding="utf-16")
    check_colours(open_dataset(tmp_path))
