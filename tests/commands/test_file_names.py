"""Files with unusual names, or names that are not UTF-8, are found, read, drawn, listed and written like any other."""

import html
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor, visualization
from modeling_detr.commands import run_command
from modeling_detr.data import open_dataset
from modeling_detr.data.file_search import FileSearch
from modeling_detr.data.findings import Findings
from modeling_detr.training.metric_logger import read_log


NAMES = [
    *map(os.fsdecode, (b"\xff.png", "café".encode("latin-1") + b".jpg")),
    *("x.arrow?y.png", "a#b.jpg", "a%20b.jpg", "a::b.jpg", "zip::a.png", "http:x.png", "-dash.png", "--help.png"),
    *(" lead.png", "sp ace .png", "con.jpg", "a*b[1].png", "~.png", "$HOME.png", "{x}.jpg", "a\\b.png", "%s.png"),
    *("quote\"'<b>.png", "a,b;c.jpg", "tab\t.png", "a|b.png", "trailing..png", "n" * 250 + ".png", "\N{CAT}.png"),
    *("e\N{COMBINING ACUTE ACCENT}.png", "ä" * 124 + ".jpg"),
]
WITH_LINE_BREAKS = [*NAMES, "line\nbreak.png", "re\rturn.png", "sep\u2028arator.png"]
CLASSES = ["circle", "square", "star", "triangle"]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "JPEG" if path.suffix == ".jpg" else "PNG")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.fsencode(text))


def coco(root: Path) -> list[str]:
    names = [*WITH_LINE_BREAKS, "zip:/x.jpg", os.fsdecode(b"\xfe\xfe/in.png")]
    for name in names:
        picture(root / "images" / name)
    images = [{"id": index, "file_name": name, "width": 64, "height": 48} for index, name in enumerate(names)]
    box = {"bbox": [8, 8, 20, 10], "area": 200}
    annotations = [{"id": i, "image_id": i, "category_id": i % 4, **box} for i in range(len(names))]
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write(root / "instances_val.json", json.dumps(content))
    return names


def yolo(root: Path) -> list[str]:
    for index, name in enumerate(WITH_LINE_BREAKS):
        picture(root / "images/val" / name)
        write(root / "labels/val" / f"{name.rpartition('.')[0]}.txt", f"{index % 4} 0.5 0.5 0.2 0.2\n")
    write(root / "data.yaml", f"val: images/val\nnames: [{', '.join(CLASSES)}]\n")
    return WITH_LINE_BREAKS


def yolo_with_lists(root: Path) -> list[str]:
    yolo(root)
    write(root / "val.txt", "".join(f"./images/val/{name}\r\n" for name in NAMES))
    write(root / "data.yaml", f"val: val.txt\nnames: [{', '.join(CLASSES)}]\n")
    return NAMES


def voc(root: Path) -> list[str]:
    stems = [name.rpartition(".")[0] for name in NAMES]
    for index, (name, stem) in enumerate(zip(NAMES, stems, strict=True)):
        picture(root / "JPEGImages" / name)
        box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        text = f"<annotation>{size}<object><name>{CLASSES[index % 4]}</name>{box}</object></annotation>"
        write(root / "Annotations" / f"{stem}.xml", text)
    write(root / "ImageSets/Main/val.txt", "".join(f"{stem}\n" for stem in stems))
    return NAMES


@pytest.fixture(params=[coco, yolo, yolo_with_lists, voc], ids=lambda write: write.__name__)
def dataset(request, tmp_path) -> tuple[str, list[str]]:
    """A dataset in a folder whose name is not UTF-8 either, and the file names of its images."""
    root = tmp_path / os.fsdecode(b"dat\xe4")
    return str(root), sorted(Path(name).name for name in request.param(root))


@pytest.fixture
def model(tmp_path, tiny_detector) -> str:
    tiny_detector(num_labels=4, id2label=dict(enumerate(CLASSES))).save_pretrained(tmp_path / "model")
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_every_image_is_found_and_converted_to_every_format(dataset, tmp_path, capsys):
    folder, names = dataset
    index = open_dataset(folder)
    assert sorted(Path(image.path).name for image in index.images) == names
    assert run_command("data", ["check", folder, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["errors"], report["findings"]) == (len(names), 0, [])
    for to in ("coco", "yolo", "voc"):
        assert run_command("data", ["convert", folder, str(tmp_path / to), "--to", to]) == 0
        assert f"{len(names)} images, {len(names)} boxes" in capsys.readouterr().out
        for path in (tmp_path / to).rglob("*"):
            assert path.name.isprintable()
            path.name.encode()


def test_every_image_is_scored(dataset, model, tmp_path):
    folder, names = dataset
    arguments = [model, folder, "--output_dir", str(tmp_path / "out"), "--num_workers", "0", "--num_pictures", "3"]
    assert run_command("evaluate", arguments) == 0
    results = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))
    assert len({row["image_id"] for row in results}) == len(names)


@pytest.mark.parametrize("dataset", [coco], indirect=True)
def test_every_image_is_shown_and_predicted(dataset, model, tmp_path):
    folder, names = dataset
    gallery, predicted = tmp_path / "gallery", tmp_path / os.fsdecode(b"p\xff")
    show = ["show", folder, "--output_dir", str(gallery), "--num_images", "99", "--draws", "0"]
    assert run_command("data", show) == 0
    page = (gallery / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(names)
    assert r"caf\udce9.jpg" in page
    assert "quote\"'<b>.png" in html.unescape(page)
    assert "<b>" not in page

    assert run_command("predict", [model, folder, "--output_dir", str(predicted), "--device", "cpu"]) == 0
    entries = json.loads((predicted / "predictions.json").read_text(encoding="utf-8"))
    assert sorted(Path(entry["image"]).name for entry in entries) == names
    for entry in entries:
        assert Path(entry["image"]).is_file()
        assert (predicted / entry["picture"]).is_file()


@pytest.mark.parametrize("dataset", [coco], indirect=True)
def test_every_image_is_trained_on_and_drawn(dataset, config, tmp_path, monkeypatch):
    monkeypatch.setattr(visualization, "plot_curves", lambda *_: None)  # slow, and without names of images
    folder, names = dataset
    arguments = [str(config), "--data", folder, "--train_split", "val", "--eval_split", "val", "--batch_size", "9"]
    arguments += ["--resume", "auto", "--preflight", "false"]
    for epochs, drawn in (("1", "99"), ("2", "0")):
        assert run_command("train", [*arguments, "--epochs", epochs, "--num_images_to_log", drawn]) == 0
    assert len([*(tmp_path / "run/predictions").iterdir()]) == len(names)
    for file in ("model/README.md", "evaluation.md", "recipe.yaml"):
        assert r"dat\udce4" in (tmp_path / "run" / file).read_text(encoding="utf-8").replace("DCE4", "dce4")
    assert [entry["step"] for entry in read_log(tmp_path / "run/log.jsonl") if entry["kind"] == "epoch"] == [3, 6]


def test_a_broken_image_is_named_readably(model, tmp_path, capsys):
    folder = tmp_path / "in"
    picture(folder / "whole.png")
    write(folder / os.fsdecode(b"caf\xe9.png"), "broken")
    assert run_command("predict", [model, str(folder), "--output_dir", str(tmp_path / "out")]) == 1
    assert rf"{folder}/caf\udce9.png: skipped, " in capsys.readouterr().err


def test_pictures_with_the_longest_names_and_the_same_stem_are_kept_apart(tiny_segmenter, tmp_path):
    names = ["a.jpg", "a.png", "sub/a.jpg", "segments/a.png", "n" * 251 + ".bmp", "n" * 251 + ".png"]
    for name in names:
        picture(tmp_path / "in" / name)
    model = tiny_segmenter(0, num_labels=4, id2label=dict(enumerate(CLASSES)), stuff_labels=[0])
    model.save_pretrained(tmp_path / "model")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert run_command("predict", [str(tmp_path / "model"), str(tmp_path / "in"), "--output_dir", str(out)]) == 0
    entries = json.loads((out / "predictions.json").read_text())
    files = [entry[key] for entry in entries for key in ("picture", "segmentation")]
    assert len(set(files)) == 2 * len(names)
    assert all((out / file).is_file() for file in files)


def test_a_file_called_dash(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(Path("-"))
    assert run_command("predict", [model, "./-", "--output_dir", "out"]) == 0  # "-" alone is standard input
    assert [entry["image"] for entry in json.loads(Path("out/predictions.json").read_text())] == ["-"]


@pytest.mark.parametrize(
    ("on_disk", "in_annotations"),
    [
        ("café.jpg".encode("latin-1"), "café.jpg"),
        ("café.jpg".encode("cp437"), "café.jpg"),
        (unicodedata.normalize("NFD", "café.jpg").encode(), "café.jpg"),
        ("café.jpg".encode(), unicodedata.normalize("NFD", "café.jpg")),
        (b"a\\b.jpg", "a\\b.jpg"),
        (b"b.jpg", "C:\\photos\\b.jpg"),
    ],
)
def test_an_image_is_found_although_its_name_is_encoded_otherwise(tmp_path, on_disk, in_annotations):
    write(tmp_path / os.fsdecode(on_disk), "")
    search = FileSearch([tmp_path], Findings())
    assert search.find(in_annotations, [str(tmp_path)]).path == str(tmp_path / os.fsdecode(on_disk))


@pytest.mark.parametrize("command", ["train", "convert"])
def test_weights_are_not_written_where_they_could_not_be_loaded(command, config, model, tmp_path, capsys):
    target = tmp_path / os.fsdecode(b"r\xfcn")
    arguments = [str(config), "--output_dir", str(target)] if command == "train" else [model, str(target)]
    assert run_command(command, arguments) == 2
    problem = "the path is not in UTF-8, so weights in it could not be loaded; choose another name."
    assert capsys.readouterr().err == f"detr {command}: {tmp_path}/r\\udcfcn: {problem}\n"
    assert not target.exists()
