"""What the commands have announced is on disk: a power cut right afterwards loses nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from block_device import BlockDevice
from PIL import Image
from power_cuts import ForgetfulDisk, files_in

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.commands import run_command


@pytest.fixture(params=["forgetful disk", "block device"])
def disk(request, tmp_path, monkeypatch):
    if request.param == "forgetful disk":
        (tmp_path / "disk").mkdir()
        disk = ForgetfulDisk(tmp_path / "disk", monkeypatch)
    else:
        try:
            disk = BlockDevice(tmp_path / "device", megabytes=80)
        except OSError as error:
            pytest.skip(f"mounting a block device is not allowed here: {error}")
    yield disk
    disk.close()


@pytest.fixture
def saved(tmp_path, tiny_detector, tiny_segmenter):
    """Return a function that saves a model, and returns its folder."""

    def save(task: str) -> Path:
        names = dict(enumerate(["circle", "square", "star", "triangle"]))
        stuff = [0] if task == "panoptic" else []
        options = {"num_labels": 4, "id2label": names, "stuff_labels": stuff}
        model = tiny_detector(num_labels=4, id2label=names) if task == "detection" else tiny_segmenter(0, **options)
        model.save_pretrained(tmp_path / task)
        DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / task)
        return tmp_path / task

    return save


@pytest.fixture
def dataset(tmp_path) -> Path:
    folder = tmp_path / "dataset"
    (folder / "sub").mkdir(parents=True)
    images, annotations = [], []
    for index, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": index, "file_name": name, "width": 64, "height": 48})
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": [8, 8, 20, 10], "area": 200})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "circle"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def assert_on_disk(disk: ForgetfulDisk | BlockDevice, copy: Path, *expected: str) -> None:
    left = disk.left(copy)
    assert left == files_in(disk.root)
    assert {name.partition("/")[2] for name in left} >= {*expected}
    assert all(left.values())


@pytest.mark.parametrize("task", ["detection", "panoptic"])
def test_predictions(disk, saved, dataset, tmp_path, task):
    out = disk.root / "deep/out"
    assert run_command("predict", [str(saved(task)), str(dataset), "--output_dir", str(out), "--device", "cpu"]) == 0
    segments = ["out/segments/sub/a.png"] if task == "panoptic" else []
    assert_on_disk(disk, tmp_path / "copy", "out/predictions.json", "out/sub/a.png", *segments)


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_evaluation(disk, saved, dataset, tmp_path, task):
    arguments = [str(saved(task)), "shapes?size=64&train=1&val=2", "--output_dir", str(disk.root / "deep/out")]
    assert run_command("evaluate", [*arguments, "--num_workers", "0"]) == 0
    masks = ["out/predictions_masks.json"] if task == "instance" else []
    reports = [f"out/evaluation.{suffix}" for suffix in ("json", "md", "html")]
    assert_on_disk(disk, tmp_path / "copy", "out/predictions.json", *reports, *masks)


@pytest.mark.parametrize(
    ("to", "file"), [("ours", "/model.safetensors"), ("transformers", "/config.json"), ("original", "")]
)
def test_converted_models(disk, tiny_detector, tmp_path, to, file):
    model = tiny_detector(backbone="resnet18", backbone_kwargs={})
    model.save_pretrained(tmp_path / "model")
    DetrTorchvisionImageProcessor().save_pretrained(tmp_path / "model")
    assert run_command("convert", [str(tmp_path / "model"), str(disk.root / "deep/out"), "--to", to]) == 0
    assert_on_disk(disk, tmp_path / "copy", f"out{file}")


@pytest.mark.parametrize(
    ("to", "file"),
    [("coco", "annotations/instances_all.json"), ("yolo", "data.yaml"), ("voc", "Annotations/b.xml")],
)
def test_converted_datasets(disk, dataset, tmp_path, to, file):
    assert run_command("data", ["convert", str(dataset), str(disk.root / "deep/out"), "--to", to]) == 0
    assert_on_disk(disk, tmp_path / "copy", f"out/{file}")


def test_galleries_and_curves(disk, dataset, tmp_path):
    out = disk.root / "deep/out"
    assert run_command("data", ["show", str(dataset), "--output_dir", str(out), "--num_images", "1"]) == 0
    (tmp_path / "log.jsonl").write_text('{"kind": "epoch", "epoch": 1, "loss": 2.5}\n')
    assert run_command("plot", [str(tmp_path / "log.jsonl"), "--output", str(out / "curves.svg")]) == 0
    assert_on_disk(disk, tmp_path / "copy", "out/gallery.html", "out/gallery.jpg", "out/curves.svg")
