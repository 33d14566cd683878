"""The examples of docs/python.md run as they stand, one after the other."""

import ast
import re
from pathlib import Path

import pytest

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.data import open_dataset
from modeling_detr.data.convert import convert_dataset


PAGE = Path(__file__).parents[1] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def a_run_and_a_dataset(tmp_path, monkeypatch, tiny_detector):
    """The working folder of the examples: runs/mine and my_dataset."""
    monkeypatch.chdir(tmp_path)
    index = open_dataset("shapes?size=64&train=8&val=4")
    convert_dataset(index, "my_dataset", "coco")
    tiny_detector(num_labels=len(index.categories), id2label=index.id2label).save_pretrained("runs/mine/model")
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    processor.save_pretrained("runs/mine/model")


@pytest.mark.usefixtures("a_run_and_a_dataset")
def test_the_examples_run(capsys):
    names = {}
    for example in EXAMPLES:
        exec(compile(example, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "| AP " in printed
    assert re.search(r"F1 \d\.\d\d: \d+ missed, \d+ false, \d+ found: .*\.png", printed)
    assert re.search(r"epoch 1: loss \d+\.\d\d, of which classes \d+\.\d\d", printed)
    assert names["thresholds"].keys() <= {*names["index"].id2label.values()}


def test_the_examples_are_short():
    assert len(EXAMPLES) == 7
    for example in EXAMPLES:
        imports = [node for node in ast.parse(example).body if isinstance(node, ast.Import | ast.ImportFrom)]
        lines = [line for line in example.splitlines() if line.strip()]
        assert len(lines) - len(imports) <= 10
