"""`detr convert` as a user runs it."""

import pytest
import torch
import transformers

from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands import main


@pytest.fixture
def ours(tiny_detector, tmp_path):
    """A saved model that stock Transformers can compute."""
    model = tiny_detector(backbone="test_resnet", backbone_kwargs=None)
    model.save_pretrained(tmp_path / "ours")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "ours")
    return model


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def test_there_and_back_again(ours, tmp_path, capsys):
    assert convert(tmp_path / "ours", tmp_path / "stock", "--to", "transformers") == 0
    assert "DetrForObjectDetection of 5 classes, as Transformers' own DETR" in capsys.readouterr().out
    stock = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "stock")
    assert type(stock).__module__ == "transformers.models.detr.modeling_detr"
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "stock")
    assert type(processor).__module__.startswith("transformers.models.detr.")
    assert convert(tmp_path / "stock", tmp_path / "back") == 0
    back = DetrForObjectDetection.from_pretrained(tmp_path / "back")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    files = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("ours", "back")]
    assert files[0] == files[1]


def test_what_cannot_be_written_or_is_there_leaves_nothing_behind(ours, tiny_detector, tmp_path, capsys):
    assert convert(tmp_path / "ours", tmp_path / "ours") == 2
    assert "exists; give a folder that does not" in capsys.readouterr().err
    model = tiny_detector(pre_norm=True)
    model.save_pretrained(tmp_path / "prenorm")
    DetrTorchvisionImageProcessor().save_pretrained(tmp_path / "prenorm")
    assert convert(tmp_path / "prenorm", tmp_path / "stock", "--to", "transformers") == 2
    assert "Transformers' own DETR cannot compute this model: it has no pre_norm" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "prenorm"}
