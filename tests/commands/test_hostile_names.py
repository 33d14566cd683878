"""A dataset with hostile names of classes, images and splits, through every command as a user would run them."""

import json
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from modeling_detr.commands import run_command


CLASSES = [
    "<script>document.title='owned'</script>",
    "![](https://evil.example/pixel.png)",
    "\x1b[2J\x1b]0;owned\x07\u202e cat\nerror: forged",
    "$\\frac{1}{$",
    "a|b`c\n---\nlicense: other",
    "x" * 10_000,
    "斑马 🐈",
]
IMAGES = ["<img src=x onerror=alert(1)>.png", "a\x1b[31mred\nerror: forged.png", "斑马.png", "x" * 251 + ".png"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for split in ("train", "val"):
        images, annotations = [], []
        (folder / split).mkdir(parents=True)
        for number, name in enumerate(IMAGES):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 64})
            for category in (number, number + 3):
                box = {"bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category, **box})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
        (folder / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_no_name_has_an_effect_on_terminal_model_card_or_pictures(data, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run = tmp_path / "run_$x_{$"
    commands = {
        "data": [
            ["check", data],
            ["check", data, "--json", "--html", tmp_path / "check.html"],
            ["show", data, "--output_dir", tmp_path / "gallery"],
        ],
        "train": [[config, "--data", data, "--output_dir", run]],
        "evaluate": [[run, data, "--output_dir", tmp_path / "evaluation", "--num_workers", 0]],
        "predict": [[run, data / "val", "--output_dir", tmp_path / "predictions", "--threshold", "0"]],
        "plot": [[run, "--output", tmp_path / "curves.svg"]],
    }
    commands["data"] += [["convert", data, tmp_path / to, "--to", to] for to in ("coco", "yolo")]
    for name, calls in commands.items():
        for arguments in calls:
            code = run_command(name, list(map(str, arguments)))
            output, errors = capsys.readouterr()
            assert code == 0, errors
            assert not CONTROL.search(output.replace("\r", "")), arguments
            assert not CONTROL.search(errors.replace("\r", "")), arguments
            assert not re.search("^error: forged", output + errors, flags=re.MULTILINE)
    card = (run / "model/README.md").read_text(encoding="utf-8")
    tokens = [part for token in MarkdownIt("commonmark").parse(card) for part in [token, *(token.children or [])]]
    assert not {"image", "html_inline", "html_block"} & {token.type for token in tokens}
    assert "斑马 🐈" in card
    assert "license" not in card.split("---\n")[1]
    for name in ("gallery/gallery.html", "check.html", "evaluation/evaluation.html", f"{run.name}/evaluation.html"):
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert page.count("<script") == 1, name  # the page's own
        assert "<img src=x" not in page, name
        assert not CONTROL.search(page), name
