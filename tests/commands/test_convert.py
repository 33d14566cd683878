"""`detr convert` and `--model X.pth`, as a user runs them."""

from pathlib import Path

import pytest
import torch
import transformers
from reference_cases import load_case

from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands import main as detr
from modeling_detr.conversion import original
from modeling_detr.conversion.sources import SOURCES, ModelSource, SourceOption, load_model
from modeling_detr.conversion.targets import TARGETS, ModelTarget


REPOSITORY = Path(__file__).resolve().parents[2]
HEADS = ["--encoder_attention_heads", "4", "--decoder_attention_heads", "4"]


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"model": load_case("tiny-r18").original_weights()}, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def test_a_checkpoint_converts_to_ours_to_the_originals_and_to_stock(checkpoint, tmp_path, capsys):
    assert detr(["convert", str(checkpoint), str(tmp_path / "ours"), *HEADS]) == 0
    output = capsys.readouterr().out
    assert "read DetrForObjectDetection, resnet18, 2 + 3 layers of width 32, 4 heads, 12 queries, 91 classes" in output
    assert "assumed no dilation" in output
    assert detr(["convert", str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--to", "original"]) == 0
    assert detr(["convert", str(tmp_path / "ours"), str(tmp_path / "stock"), "--to", "transformers"]) == 0

    ours = DetrForObjectDetection.from_pretrained(tmp_path / "ours").eval()
    stock = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "stock").eval()
    pixels, mask = load_case("tiny-r18").images()
    with torch.no_grad():
        expected, got = ours(pixels, mask), stock(pixel_values=pixels, pixel_mask=mask)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=0)


def test_mistakes_are_one_line_and_leave_nothing_behind(checkpoint, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    cases = [
        ([str(checkpoint), str(tmp_path / "taken")], "already exists"),
        (
            [str(checkpoint), str(tmp_path / "new"), "--to", "original"],
            "can only be converted to a model folder; run 'detr convert",
        ),
        (
            [str(tmp_path / "taken"), str(tmp_path / "new"), "--num_labels", "3"],
            "--num_labels: applies only to an original DETR checkpoint, which ",
        ),
    ]
    for arguments, message in cases:
        assert detr(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pth", "taken"]


def test_plug_ins_add_kinds_of_sources_and_targets(ours, tmp_path, monkeypatch, capsys):
    def convert_mine(source, target, scale=1):
        target.write_text(f"{source} times {scale}")
        return ["converted mine"]

    def write_mine(model, processor, target):
        target.write_text(f"{model.config.num_labels} classes")
        return []

    options = (SourceOption("scale", int, "a factor"),)
    kind = ModelSource("a file of mine", lambda source: source.endswith(".mine"), Path, convert_mine, options)
    monkeypatch.setitem(SOURCES, "mine", kind)
    monkeypatch.setitem(TARGETS, "mine", ModelTarget("a text of mine", write_mine))
    (tmp_path / "a.mine").touch()
    assert convert(tmp_path / "a.mine", tmp_path / "b", "--scale", 3) == 0
    assert (tmp_path / "b").read_text() == f"{tmp_path / 'a.mine'} times 3"
    assert convert(tmp_path / "ours", tmp_path / "c", "--to", "mine") == 0
    assert (tmp_path / "c").read_text() == "5 classes"
    assert f"wrote {tmp_path / 'c'}, a text of mine" in capsys.readouterr().out


def test_class_names_are_read_one_per_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\ufeffrice\nmiso soup\n\n")
    assert original.read_labels(file) == ["rice", "miso soup"]
    for text, message in (("rice\n\nsoup", "line 2: empty"), ("rice\nsoup\nrice", "line 3: duplicate name 'rice'")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            original.read_labels(file)


def test_a_checkpoint_of_the_original_is_accepted_wherever_a_model_is(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(original, "HF_HOME", tmp_path / "cache")
    model, _ = load_model(str(checkpoint))
    assert model.config.num_labels == 91
    assert model.class_labels_classifier.out_features == 92
    again, _ = load_model(str(checkpoint))  # from the cache
    assert torch.equal(again.class_labels_classifier.weight, model.class_labels_classifier.weight)
    assert len(list((tmp_path / "cache" / "modeling_detr").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("headless", [False, True])
def test_training_starts_from_a_checkpoint_of_the_original(tmp_path, monkeypatch, capsys, headless):
    monkeypatch.setattr(original, "HF_HOME", tmp_path / "cache")
    weights = load_case("tiny-r18").original_weights()
    if headless:  # as many prepare it by hand
        del weights["class_embed.weight"], weights["class_embed.bias"]
    torch.save({"model": weights}, tmp_path / "mine.pth")
    options = {
        "model": tmp_path / "mine.pth",
        "data": "shapes?size=64&train=8&val=4",
        "output_dir": tmp_path / "run",
        "max_steps": 1,
        "num_workers": 0,
        "processor_config": "{size: {shortest_edge: 64, longest_edge: 64}}",
    }
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    assert detr(["train", str(REPOSITORY / "configs" / "finetune.yaml"), *arguments]) == 0
    assert "4 new" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


# Transformers' own DETR


@pytest.fixture
def ours(tiny_detector, tmp_path):
    """A saved model that stock Transformers can compute."""
    model = tiny_detector(backbone="test_resnet", backbone_kwargs=None)
    model.save_pretrained(tmp_path / "ours")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "ours")
    return model


def convert(*arguments):
    return detr(["convert", *map(str, arguments)])


def test_a_round_trip_through_stock_keeps_every_byte(ours, tmp_path, capsys):
    assert convert(tmp_path / "ours", tmp_path / "stock", "--to", "transformers") == 0
    assert "read DetrForObjectDetection with 5 classes" in capsys.readouterr().out
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


def test_refused_conversions_leave_nothing_behind(ours, tiny_detector, tmp_path, capsys):
    assert convert(tmp_path / "ours", tmp_path / "ours") == 2
    assert "already exists; choose another target" in capsys.readouterr().err
    model = tiny_detector(pre_norm=True)
    model.save_pretrained(tmp_path / "prenorm")
    DetrTorchvisionImageProcessor().save_pretrained(tmp_path / "prenorm")
    assert convert(tmp_path / "prenorm", tmp_path / "stock", "--to", "transformers") == 2
    assert "not supported by Transformers' own DETR: pre_norm" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "prenorm"}
