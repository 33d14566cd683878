import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_cases import REFERENCE, load_case

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrForSegmentation
from modeling_detr.conversion import convert_original, export_original, original, original_to_ours
from modeling_detr.conversion.checkpoint_files import Checkpoint
from modeling_detr.conversion.original_architecture import check_parameters, read_architecture
from modeling_detr.conversion.original_names import original_name_to_ours


def test_in_proj_is_split_into_query_key_and_value():
    weight = torch.arange(6).float()[:, None].expand(6, 2)
    ours = original_to_ours({"transformer.decoder.layers.3.multihead_attn.in_proj_weight": weight})
    prefix = "model.decoder.layers.3.encoder_attn"
    assert list(ours) == [f"{prefix}.{name}_proj.weight" for name in "qkv"]
    assert [tensor[:, 0].tolist() for tensor in ours.values()] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("backbone.0.body.layer1.0.bn1.running_mean", "model.backbone.conv_encoder.model.layer1.0.bn1.running_mean"),
        ("transformer.encoder.layers.5.norm2.bias", "model.encoder.layers.5.final_layer_norm.bias"),
        ("transformer.decoder.layers.0.norm2.weight", "model.decoder.layers.0.encoder_attn_layer_norm.weight"),
        ("transformer.decoder.layers.0.linear1.weight", "model.decoder.layers.0.fc1.weight"),
        ("transformer.decoder.norm.weight", "model.decoder.layernorm.weight"),
        ("query_embed.weight", "model.query_position_embeddings.weight"),
        ("class_embed.bias", "class_labels_classifier.bias"),
        ("bbox_embed.layers.2.weight", "bbox_predictor.layers.2.weight"),
    ],
)
def test_names_are_those_of_the_checkpoints_on_the_hub(original, ours):
    assert original_name_to_ours(original) == (ours,)


@pytest.mark.parametrize("name", ["detr-r50", "detr-r101-dc5", "tiny-r18-learned", "tiny-r18-prenorm"])
def test_all_names_of_a_released_checkpoint_map_to_different_names_of_ours(name):
    names = json.loads((REFERENCE / "manifests" / f"{name}.json").read_text())
    ours = [new for old in names for new in original_name_to_ours(old)]
    assert len(ours) == len(set(ours))
    heads = ("class_labels_classifier.", "bbox_predictor.")
    assert all(new.startswith(("model.", *heads)) for new in ours)


# Whole checkpoints


def save_case(case, path, **further):
    """Save the weights of a golden case as an original DETR checkpoint."""
    torch.save({"model": case.original_weights(), **further}, path)
    return path


def args_of(case, **changes):
    """Return the options that the original's training would have saved for a case."""
    defaults = {"nheads": 8, "dilation": False, "dropout": 0.1, "aux_loss": True, "set_cost_class": 1, "eos_coef": 0.1}
    return argparse.Namespace(**{**defaults, **case.values["options"], **changes})


HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


@pytest.mark.parametrize(
    "name",
    [
        "tiny-r18",
        "tiny-r18-prenorm",
        "tiny-r18-learned",
        "detr-r50-dc5",
        "detr-r50-panoptic",
    ],
)
def test_a_converted_checkpoint_computes_what_the_original_computes(name, tmp_path):
    case = load_case(name)
    tiny = name.startswith("tiny")
    convert_original(save_case(case, tmp_path / f"{name}.pth"), tmp_path / "ours", **(HEADS if tiny else {}))
    kind = DetrForSegmentation if case.has_masks else DetrForObjectDetection
    model = kind.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        output = model(*case.images())
    largest = case.tensors["pred_logits"].abs().max().item()
    torch.testing.assert_close(output.logits, case.tensors["pred_logits"], atol=1e-5 * largest, rtol=0)
    torch.testing.assert_close(output.pred_boxes, case.tensors["pred_boxes"], atol=1e-5, rtol=0)
    if case.has_masks:
        torch.testing.assert_close(output.pred_masks, case.tensors["pred_masks"], atol=1e-5, rtol=0)
        assert model.config.stuff_labels == list(range(91, 250))
    assert model.config.id2label[17] == "cat"


@pytest.mark.parametrize("name", ["tiny-r18", "tiny-r18-prenorm", "tiny-r18-learned"])
def test_a_round_trip_keeps_every_byte(name, tmp_path):
    case = load_case(name)
    convert_original(save_case(case, tmp_path / "first.pth"), tmp_path / "ours", **HEADS)
    model = DetrForObjectDetection.from_pretrained(tmp_path / "ours")
    notes = export_original(model, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    weights = case.original_weights()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    assert "--backbone resnet18" in notes[0]
    assert "num_classes = 91" in notes[1]


@pytest.mark.parametrize(
    ("name", "released", "expected"),
    [
        ("detr-r50", "detr-r50-e632da11", {"backbone": "resnet50", "dilation": False}),
        ("detr-r50-dc5", "detr-r50-dc5-f0fb7ef5", {"backbone": "resnet50", "dilation": True}),
        ("detr-r101", "detr-r101-2c7b67e5", {"backbone": "resnet101", "dilation": False}),
        ("detr-r101-dc5", "detr-r101-dc5-a2e86def", {"backbone": "resnet101", "dilation": True}),
        ("detr-r50-panoptic", "detr-r50-panoptic-00ce5173", {"dilation": False, "encoder_attention_heads": 8}),
        ("detr-r50-dc5-panoptic", "detr-r50-dc5-panoptic-da08f1b1", {"dilation": True}),
        ("detr-r101-panoptic", "detr-r101-panoptic-40021d53", {"backbone": "resnet101"}),
    ],
)
def test_the_architecture_of_every_released_checkpoint_follows_from_its_weights(name, released, expected):
    shapes = json.loads((REFERENCE / "manifests" / f"{name}.json").read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    checkpoint = Checkpoint(Path(f"{released}.pth"), weights, {}, "")
    architecture = read_architecture(checkpoint)
    assert architecture.has_masks == ("panoptic" in name)
    assert architecture.num_labels == (250 if architecture.has_masks else 91)
    assert expected.items() <= architecture.config.items()
    with torch.device("meta"):
        kind = DetrForSegmentation if architecture.has_masks else DetrForObjectDetection
        model = kind(DetrConfig(**architecture.config, num_labels=architecture.num_labels))
    check_parameters(checkpoint, model, without_head=False)


def test_options_fill_in_what_weights_do_not_show_and_assumptions_are_reported(tmp_path):
    case = load_case("tiny-r18")
    trained = save_case(
        case,
        tmp_path / "trained.pth",
        args=args_of(case, dilation=True, eos_coef=0.2, dropout=0.0),
        epoch=3,
        optimizer={},
    )
    notes = convert_original(trained, tmp_path / "trained")
    config = DetrConfig.from_pretrained(tmp_path / "trained")
    assert not any(note.startswith("assumed") for note in notes)
    assert (config.dilation, config.encoder_attention_heads, config.eos_coefficient) == (True, 4, 0.2)
    assert config.dropout == config.attention_dropout == 0

    bare = tmp_path / "bare.pth"
    torch.save(case.original_weights(), bare)
    notes = convert_original(bare, tmp_path / "bare")
    assert [sentence.partition(",")[0] for sentence in notes if sentence.startswith("assumed")] == [
        "assumed no dilation in the backbone (DC5)",
        "assumed 8 attention heads",
    ]
    notes = convert_original(bare, tmp_path / "given", **HEADS, dilation=True)
    assert not any(note.startswith("assumed") for note in notes)
    assert DetrConfig.from_pretrained(tmp_path / "given").decoder_attention_heads == 4


def test_an_option_of_the_wrong_type_is_an_error(tmp_path):
    path = save_case(load_case("tiny-r18"), tmp_path / "odd.pth", args=argparse.Namespace(nheads="4"))
    with pytest.raises(ValueError, match=r"odd\.pth: training option 'nheads' is '4', expected int"):
        convert_original(path, tmp_path / "ours")


def test_weights_that_share_memory_are_saved_separately(tmp_path):
    weights = load_case("tiny-r18").original_weights()
    first, second = (f"transformer.encoder.layers.{layer}.norm1.bias" for layer in (0, 1))
    weights[second] = weights[first]
    torch.save({"model": weights}, tmp_path / "tied.pth")
    convert_original(tmp_path / "tied.pth", tmp_path / "ours", **HEADS)
    layers = DetrForObjectDetection.from_pretrained(tmp_path / "ours").model.encoder.layers
    assert all(torch.equal(layer.self_attn_layer_norm.bias, weights[first]) for layer in layers)


def test_a_copy_that_another_process_made_in_the_meantime_is_used(tmp_path, monkeypatch):
    path = save_case(load_case("tiny-r18"), tmp_path / "mine.pth")
    monkeypatch.setattr(original, "HF_HOME", tmp_path / "cache")
    convert = original.convert_original

    def slower(source, target, **options):
        convert(source, target, **options)  # the other's
        return convert(source, target, **options)

    monkeypatch.setattr(original, "convert_original", slower)
    assert (original.converted_copy(str(path)) / "model.safetensors").is_file()


def test_source_and_hash_are_recorded(tmp_path):
    path = save_case(load_case("tiny-r18"), tmp_path / "mine.pth")
    convert_original(path, tmp_path / "ours", **HEADS)
    record = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert record["source"] == "mine.pth"
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["sha256"] in (tmp_path / "ours" / "README.md").read_text()


def test_a_deleted_class_head_is_created(tmp_path):
    weights = load_case("tiny-r18").original_weights()
    del weights["class_embed.weight"], weights["class_embed.bias"]
    torch.save({"model": weights}, tmp_path / "headless.pth")
    with pytest.raises(ValueError, match=r"no class head .*; set num_labels or labels"):
        convert_original(tmp_path / "headless.pth", tmp_path / "ours", **HEADS)
    notes = convert_original(tmp_path / "headless.pth", tmp_path / "ours", num_labels=107, **HEADS)
    assert "created a new class head for 107 classes, because the checkpoint has none" in notes
    model = DetrForObjectDetection.from_pretrained(tmp_path / "ours")
    assert model.class_labels_classifier.out_features == 108
    assert torch.equal(model.bbox_predictor.layers[0].weight, weights["bbox_embed.layers.0.weight"])


def test_class_names_come_from_a_list_or_from_coco(tmp_path):
    path = save_case(load_case("tiny-r18"), tmp_path / "mine.pth")
    names = [f"class {number}" for number in range(91)]
    convert_original(path, tmp_path / "named", labels=names, **HEADS)
    assert list(DetrConfig.from_pretrained(tmp_path / "named").id2label.values()) == names
    with pytest.raises(ValueError, match="labels: expected 91 class names, got 3"):
        convert_original(path, tmp_path / "wrong", labels=names[:3], **HEADS)
    with pytest.raises(ValueError, match="class head has 91 classes, but num_labels is 107"):
        convert_original(path, tmp_path / "wrong", num_labels=107, **HEADS)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("transformer.decoder.layers.1.norm3.bias"),
            r"missing parameters: 'transformer.decoder.layers.1.norm3.bias'",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected parameters: 'extra'"),
        (
            lambda w: w.update({"bbox_embed.layers.0.bias": torch.zeros(5)}),
            r"layers.0.bias' has shape \(5,\), which does not match the other weights \(expected \(32,\)\)",
        ),
        (lambda w: w.update({"query_embed.weight": torch.zeros(3)}), r"'query_embed.weight' has shape \(3,\)"),
        (lambda w: w.update({"class_embed.weight": torch.zeros(())}), r"'class_embed.weight' has shape \(\)"),
        (
            lambda w: w.update({"input_proj.bias": w["input_proj.bias"].long()}),
            r"'input_proj.bias' is torch.int64 in torch.strided, expected a dense floating-point tensor",
        ),
        (
            lambda w: w.update({"input_proj.bias": w["input_proj.bias"].to(torch.float8_e4m3fn)}),
            "'input_proj.bias' is torch.float8_e4m3fn in torch.strided, .* of at least 16 bits",
        ),
        (
            lambda w: w.update({"input_proj.bias": w["input_proj.bias"].to("meta")}),
            "'input_proj.bias' is on the meta device",
        ),
        (lambda w: w.update({"query_embed.weight": w["query_embed.weight"][:0]}), "num_queries: got 0"),
        (lambda w: w.update({"class_embed.weight": w["class_embed.weight"][:1]}), "has one row, for no object"),
        (lambda w: w.pop("class_embed.weight"), "no 'class_embed.weight'"),
        (lambda w: w.pop("class_embed.bias"), "missing parameters: 'class_embed.bias'"),
        (lambda w: w.pop("query_embed.weight"), "not an original DETR checkpoint: no 'query_embed.weight'"),
        (
            lambda w: w.pop("backbone.0.body.layer2.1.conv1.weight"),
            r"missing parameters: 'backbone.0.body.layer2.1.conv1.weight'",
        ),
    ],
)
def test_missing_unexpected_and_misshapen_parameters_are_named(tmp_path, change, message):
    weights = load_case("tiny-r18").original_weights()
    change(weights)
    torch.save({"model": weights}, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=message):
        convert_original(tmp_path / "broken.pth", tmp_path / "ours", **HEADS)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_temperature": 20}, "position_temperature 20"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'"),
        ({"encoder_ffn_dim": 16}, "encoder_ffn_dim 16 with decoder_ffn_dim 32"),
        ({"backbone": "convnext_atto", "backbone_kwargs": None}, "backbone 'convnext_atto'"),
    ],
)
def test_models_that_the_original_does_not_support_are_refused(tiny_config, tmp_path, changes, message):
    model = DetrForObjectDetection(tiny_config(**{"backbone": "resnet18", "backbone_kwargs": None, **changes}))
    with pytest.raises(ValueError, match=f"not supported by the original DETR: .*{message}"):
        export_original(model, tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_converting_takes_little_memory(tmp_path):
    path = save_case(load_case("detr-r50"), tmp_path / "detr-r50-e632da11.pth")
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from modeling_detr.commands import convert\n"
        "from modeling_detr.conversion import convert_original\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert_original(sys.argv[1], Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "ours"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) * 1024 < 2.5 * path.stat().st_size
