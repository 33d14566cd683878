import ast
import dataclasses
import re

import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from modeling_detr import DetrConfig, DetrTorchvisionImageProcessor
from modeling_detr.data import open_dataset
from modeling_detr.evaluation.evaluators import default_evaluators
from modeling_detr.evaluation.report import EvaluationReport
from modeling_detr.structures_detr import Category, DetectionIndex
from modeling_detr.training.checkpointing import TrainingState
from modeling_detr.training.export import export_model, model_card
from modeling_detr.training.recipe import Recipe


NAMES = {0: "circle", 1: "square", 2: "triangle", 3: "star", 4: "ground"}


class Part:
    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.fails = name, fails

    def save_pretrained(self, folder) -> None:
        if self.fails:
            raise OSError("disk full")
        (folder / self.name).write_text("new")


def test_an_exported_model_replaces_the_previous_one_atomically(tmp_path):
    export_model(tmp_path, Part("old.bin"), Part("processor.json"), "card 1")
    folder = export_model(tmp_path, Part("new.bin"), Part("processor.json"), "card 2")
    written = {"README.md", "new.bin", "processor.json", "app.py", "handler.py", "requirements.txt"}
    assert {path.name for path in folder.iterdir()} == written
    with pytest.raises(OSError, match="disk full"):
        export_model(tmp_path, Part("newer.bin"), Part("processor.json", fails=True), "card 3")
    assert (folder / "README.md").read_text() == "card 2"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("task", "printed"), [("panoptic", "ground 1.00, 1200 pixels"), ("instance", "ground 1.00, ")]
)
def test_the_code_on_the_card_of_a_segmentation_model_works(
    tiny_segmenter, tmp_path, monkeypatch, capsys, task, printed
) -> None:
    model = tiny_segmenter(certain_label=4, id2label=NAMES, stuff_labels=[4] if task == "panoptic" else [])
    run = tmp_path / "run"
    model.save_pretrained(run / "model")
    DetrTorchvisionImageProcessor(size=64).save_pretrained(run / "model")
    index = open_dataset("shapes?size=32&train=1&val=0", task=task)
    report = EvaluationReport(
        dataset=index.name,
        num_images=1,
        results={evaluator.compute().key: evaluator.compute() for evaluator in default_evaluators(index, task)},
        losses={},
        seconds=1.0,
        images_per_second=1.0,
    )
    recipe = Recipe(data="shapes", output_dir=str(run), task=task)
    card = model_card(recipe, model.config, index, report, TrainingState(num_processes=1))

    assert "pipeline_tag: image-segmentation" in card
    assert ("name: PQ" in card) == (task == "panoptic")
    code = re.search(r"```python\n(import torch.*?)```", card, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30)).save("image.jpg")
    exec(code[1], {})
    assert printed in capsys.readouterr().out


HOSTILE = [
    "![](https://evil.example/pixel.png)",
    "<script>alert(1)</script>",
    "cat\n---\nlicense: other\n---\n\n# Owned",
    "a`b|c\n```\n<img src=x onerror=alert(1)>",
    "\x1b[2J\u202e",
]


def test_names_on_the_card_have_no_effect_in_its_metadata_text_and_code():
    shapes = open_dataset("shapes?size=32&train=1&val=0")
    categories = tuple(Category(number, name) for number, name in enumerate(["斑马", "traffic light", *HOSTILE]))
    index = DetectionIndex("\n".join(HOSTILE), shapes.images, categories, shapes.annotations)
    results = {evaluator.compute().key: evaluator.compute() for evaluator in default_evaluators(index, "detection")}
    report = EvaluationReport(index.name, 1, results, losses={}, seconds=1.0, images_per_second=1.0)
    recipe = Recipe(data="".join(HOSTILE), output_dir='runs/it\'s "mine"\n```\n# Owned')
    config = DetrConfig(num_labels=len(categories))
    card = model_card(recipe, config, index, report, TrainingState(num_processes=1))

    _, metadata, text = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    assert yaml.safe_load(metadata).keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    tokens = [
        part
        for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
        for part in [token, *(token.children or [])]
    ]
    assert [token.content for token in tokens if token.type.startswith(("html", "image"))] == []
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"]
    assert links == ["https://arxiv.org/abs/2005.12872"]
    assert [token.type for token in tokens].count("heading_open") == 5
    assert "It detects: 斑马, traffic light, `![](https://evil.example/pixel.png)`, `<script>" in text
    use, stored_code, yaml_block = [token for token in tokens if token.type == "fence"]
    ast.parse(use.content)
    ast.parse(stored_code.content)
    assert yaml.safe_load(yaml_block.content) == dataclasses.asdict(recipe)
    assert not set(card) & set("\x1b\u202e")
