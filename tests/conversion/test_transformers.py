"""Transformers' own DETR: its checkpoints load here, and ours load there once converted."""

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from reference_cases import load_case
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig

import modeling_detr
from modeling_detr import (
    DetrConfig,
    DetrForObjectDetection,
    DetrForSegmentation,
    DetrModel,
    DetrTorchvisionImageProcessor,
)
from modeling_detr.conversion.transformers import save_for_transformers, unsupported_by_stock


SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "num_queries": 7,
    "id2label": {0: "cat", 1: "dog", 2: "hen"},
}
TIMM = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3, 4]}
# What the files of the Hub, written by version 4 of Transformers, have instead of `backbone_config`, and beside it
OLD_KEYS = {
    "backbone": "test_resnet",
    "backbone_config": None,
    "backbone_kwargs": {"in_chans": 3, "out_indices": [1, 2, 3, 4]},
    "use_timm_backbone": True,
    "use_pretrained_backbone": True,
    "classifier_dropout": 0.0,
    "max_position_embeddings": 1024,
    "scale_embedding": False,
    "encoder_layerdrop": 0.0,
    "num_hidden_layers": 1,
    "init_std": 0.02,
    "torchscript": False,
}


PROCESSOR = {"size": {"shortest_edge": 64, "longest_edge": 96}, "image_mean": [0.5] * 3}


def stock_model(kind="DetrForObjectDetection", **changes):
    """Make a DETR of Transformers with random weights and batch norm statistics."""
    torch.manual_seed(0)
    config = transformers.DetrConfig(**{**SMALL, "backbone_config": TIMM, **changes})
    model = getattr(transformers, kind)(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "running_mean")):
            buffer.uniform_(0.5, 1.5)
    return model


def inputs():
    generator = torch.Generator().manual_seed(1)
    pixel_mask = torch.ones(2, 96, 128, dtype=torch.int64)
    pixel_mask[1, 70:] = 0
    pixel_mask[1, :, 100:] = 0
    return torch.randn(2, 3, 96, 128, generator=generator) * pixel_mask[:, None], pixel_mask


def assert_same_predictions(one, other):
    with torch.no_grad():
        mine, theirs = one(*inputs()), other(*inputs())
    for name in ("logits", "pred_boxes", "pred_masks"):
        if name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=1e-4)


def edit_config(folder, **changes):
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in changes}
    path.write_text(json.dumps(kept | changes))


def rename_weights(folder, *renames):
    weights = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in weights.items():
        for old, new in renames:
            name = name.replace(old, new)
        renamed[name] = tensor
    assert set(renamed) != set(weights)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("position_embedding_type", ["sine", "learned"])
def test_a_stock_checkpoint_loads_and_predicts_the_same(tmp_path, position_embedding_type):
    stock = stock_model(position_embedding_type=position_embedding_type)
    stock.save_pretrained(tmp_path)
    ours, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    assert ours.config.backbone == "test_resnet"
    assert ours.config.id2label == SMALL["id2label"]
    assert_same_predictions(ours, stock)


def test_parameter_names_as_in_memory_load_too(tmp_path):
    stock = stock_model(position_embedding_type="learned")
    stock.save_pretrained(tmp_path, save_original_format=False)
    assert any(".o_proj." in name for name in load_file(tmp_path / "model.safetensors"))
    ours, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert_same_predictions(ours, stock)
    ours.save_pretrained(tmp_path / "again")  # under our own names
    assert "model.encoder.layers.0.self_attn.out_proj.weight" in load_file(tmp_path / "again" / "model.safetensors")
    assert_same_predictions(DetrForObjectDetection.from_pretrained(tmp_path / "again"), stock)


def test_a_checkpoint_written_by_version_4_loads(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    edit_config(tmp_path, **OLD_KEYS)
    assert_same_predictions(DetrForObjectDetection.from_pretrained(tmp_path), stock)
    edit_config(tmp_path, backbone_config=TIMM, use_timm_backbone=False, backbone=None)
    rename_weights(tmp_path, ("conv_encoder.model.", "conv_encoder.model._backbone."))
    assert_same_predictions(DetrForObjectDetection.from_pretrained(tmp_path), stock)


def test_dc5_is_read_from_either_layout(tmp_path):
    stock = stock_model(backbone_config={**TIMM, "output_stride": 16}, dilation=True)
    stock.save_pretrained(tmp_path)
    ours = DetrForObjectDetection.from_pretrained(tmp_path)
    assert ours.config.dilation
    assert_same_predictions(ours, stock)
    edit_config(tmp_path, **OLD_KEYS, dilation=True)
    assert DetrConfig.from_pretrained(tmp_path).dilation


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_the_resnet_of_transformers_becomes_that_of_timm(tmp_path, layer_type):
    resnet = ResNetConfig(
        hidden_sizes=[16, 16, 24, 32], depths=[1, 2, 1, 1], layer_type=layer_type, out_features=["stage4"]
    )
    stock = stock_model(backbone_config=resnet)
    stock.save_pretrained(tmp_path)
    ours, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert_same_predictions(ours, stock)


def test_training_settings_become_ours_and_changes_are_logged(tmp_path, caplog):
    stock_model(dropout=0.2).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        config = DetrForObjectDetection.from_pretrained(tmp_path).config
    assert (config.auxiliary_loss, config.dropout, config.attention_dropout, config.activation_dropout) == (
        True,
        0.1,
        0.1,
        0.1,
    )
    changes = (
        "auxiliary_loss False → True, dropout 0.2 → 0.1, attention_dropout 0.0 → 0.1, activation_dropout 0.0 → 0.1"
    )
    assert caplog.text.count(changes) == 1
    assert DetrForObjectDetection.from_pretrained(tmp_path, dropout=0.3).config.dropout == 0.3
    assert config.model_type == "modeling_detr"


def test_an_unknown_key_is_an_error(tmp_path):
    stock_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown key 'encoder_layer'; did you mean 'encoder_layers'"):
        DetrForObjectDetection.from_pretrained(tmp_path, encoder_layer=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "conditional_detr"},
            "config.json has model_type 'conditional_detr', expected 'modeling_detr', or 'detr'",
        ),
        ({"backbone_config": None, "use_timm_backbone": False, "backbone": "o/resnet"}, "got the backbone 'o/resnet'"),
        ({"backbone_config": {"model_type": "swin"}}, "got a backbone of type 'swin'"),
        ({"backbone_config": {**TIMM, "output_stride": 8}}, "output_stride 8"),
        ({"backbone_config": {"model_type": "resnet", "embedding_size": 8}}, "embedding_size=8"),
    ],
)
def test_unsupported_stock_configs_are_refused(tmp_path, changes, message):
    stock_model().save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        DetrForObjectDetection.from_pretrained(tmp_path)


def test_a_backbone_that_stock_computes_differently_is_refused(tmp_path):
    stock_model(backbone_config={**TIMM, "backbone": "test_efficientnet"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be reproduced here: Transformers drops their activations"):
        DetrForObjectDetection.from_pretrained(tmp_path)


def test_class_weights_of_a_stock_model_are_reused_by_name(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    names = {0: "Hen", 1: "owl", 2: "cat", 3: "dog"}
    ours = DetrForObjectDetection.from_pretrained(tmp_path, id2label=names, ignore_mismatched_sizes=True)
    rows = stock.class_labels_classifier.weight
    assert torch.equal(ours.class_labels_classifier.weight[[0, 2, 3, 4]], rows[[2, 0, 1, 3]])


def test_the_base_model_loads_from_a_detector(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    with torch.no_grad():
        ours = DetrModel.from_pretrained(tmp_path)(*inputs()).last_hidden_state
        theirs = stock.model(*inputs()).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        {"size": 800, "max_size": 1333, "feature_extractor_type": "DetrFeatureExtractor", "format": "coco_detection"},
        {"size": {"shortest_edge": 800, "longest_edge": 1333}, "image_processor_type": "DetrImageProcessor"},
    ],
)
def test_old_and_new_processor_files_are_read(tmp_path, content):
    shared = {"do_resize": True, "do_normalize": True, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content | shared))
    processor = DetrTorchvisionImageProcessor.from_pretrained(tmp_path)
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    assert size == {"shortest_edge": 800, "longest_edge": 1333}
    assert list(processor.image_mean) == [0.4] * 3


def test_a_stock_processor_is_read(tmp_path):
    transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 90}).save_pretrained(tmp_path)
    processor = DetrTorchvisionImageProcessor.from_pretrained(tmp_path)
    assert processor.size.shortest_edge == 64


# Panoptic models

PANOPTIC = {
    "d_model": 64,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
}  # widths that the mask head takes


def test_a_stock_panoptic_model_predicts_the_same(tmp_path):
    stock = stock_model("DetrForSegmentation", **PANOPTIC)
    stock.save_pretrained(tmp_path)
    ours, info = DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    assert_same_predictions(ours, stock)
    stock.save_pretrained(tmp_path, save_original_format=False)  # the names in memory
    assert_same_predictions(DetrForSegmentation.from_pretrained(tmp_path), stock)


def test_adding_or_dropping_a_mask_head_is_logged(tmp_path, caplog):
    detector = stock_model(**PANOPTIC)
    detector.save_pretrained(tmp_path / "detector")
    with caplog.at_level(logging.WARNING):
        ours = DetrForSegmentation.from_pretrained(tmp_path / "detector")
    assert "the source has no mask head: that of DetrForSegmentation is new" in caplog.text
    ours.save_pretrained(tmp_path / "panoptic")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        back = DetrForObjectDetection.from_pretrained(tmp_path / "panoptic")
    assert "the source's mask head is dropped: DetrForObjectDetection has none" in caplog.text
    assert_same_predictions(back, detector)
    for name, tensor in back.state_dict().items():
        assert torch.equal(ours.detr.state_dict()[name], tensor), name
    body = DetrModel.from_pretrained(tmp_path / "panoptic")
    assert torch.equal(body.input_projection.weight, back.model.input_projection.weight)


def test_class_weights_of_a_panoptic_model_are_reused_by_name(tmp_path):
    stock = stock_model("DetrForSegmentation", **PANOPTIC)
    stock.save_pretrained(tmp_path)
    names = {0: "Hen", 1: "owl", 2: "cat", 3: "dog"}
    ours = DetrForSegmentation.from_pretrained(tmp_path, id2label=names, num_queries=9, ignore_mismatched_sizes=True)
    rows = stock.detr.class_labels_classifier.weight
    assert torch.equal(ours.detr.class_labels_classifier.weight[[0, 2, 3, 4]], rows[[2, 0, 1, 3]])
    assert ours.config.id2label == ours.detr.config.id2label == names
    with torch.no_grad():
        output = ours(*inputs())
    assert output.logits.shape == (2, 9, 5)
    assert output.pred_masks.shape[:2] == (2, 9)


def test_a_panoptic_model_converts_to_stock(tmp_path):
    torch.manual_seed(0)
    ours = DetrForSegmentation(DetrConfig(**{**SMALL, **PANOPTIC, "backbone": "test_resnet"})).eval()
    save_for_transformers(ours, DetrTorchvisionImageProcessor(**PROCESSOR), tmp_path)
    stock, info = transformers.DetrForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    assert_same_predictions(ours, stock)
    gelu = DetrForSegmentation(
        DetrConfig(**{**SMALL, **PANOPTIC, "backbone": "test_resnet", "activation_function": "gelu"})
    )
    with pytest.raises(ValueError, match=r"not supported by .* activation_function 'gelu' in a model with masks"):
        save_for_transformers(gelu, None, tmp_path / "gelu")


# Ours → stock


def ours_for_stock(**changes):
    """Make a detector of ours that Transformers can compute, with random weights and batch norm statistics."""
    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(**{**SMALL, "backbone": "test_resnet", **changes})).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "running_mean")):
            buffer.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dilation": True, "out_indices": [1, 2, 3, 4]},
        {"position_embedding_type": "learned"},
        {"freeze_batch_norm": False, "activation_function": "gelu", "class_cost": 2.0, "giou_cost": 1.5},
    ],
)
def test_a_model_converted_to_stock_predicts_the_same_there(tmp_path, changes):
    ours = ours_for_stock(**changes)
    save_for_transformers(ours, DetrTorchvisionImageProcessor(**PROCESSOR), tmp_path)
    stock, info = transformers.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
    assert_same_predictions(ours, stock)
    assert stock.config.auxiliary_loss is False
    assert stock.config.id2label == SMALL["id2label"]
    assert not any("num_batches_tracked" in name for name in load_file(tmp_path / "model.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_a_round_trip_keeps_every_byte(tmp_path):
    ours = ours_for_stock()
    save_for_transformers(ours, None, tmp_path)
    back = DetrForObjectDetection.from_pretrained(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_a_converted_model_runs_in_a_pipeline_without_this_package(tmp_path):
    ours = ours_for_stock()
    processor = DetrTorchvisionImageProcessor(**PROCESSOR)
    save_for_transformers(ours, processor, tmp_path / "stock")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 110, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    with torch.no_grad():
        logits = ours(**processor(image)).logits
    torch.save(logits, tmp_path / "logits.pt")
    script = """
        import sys
        sys.modules["modeling_detr"] = None  # importing it now fails
        import torch
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline
        model = AutoModelForObjectDetection.from_pretrained("stock")
        processor = AutoImageProcessor.from_pretrained("stock")
        assert type(model).__module__ == "transformers.models.detr.modeling_detr", type(model)
        image = Image.open("image.png")
        logits = model(**processor(image, return_tensors="pt")).logits
        expected = torch.load("logits.pt", weights_only=True)
        torch.testing.assert_close(logits, expected, atol=2e-2, rtol=2e-2)  # resizing differs by a grey level
        found = pipeline("object-detection", model="stock", device="cpu")(image, threshold=0.0)
        assert len(found) == 7 and set(found[0]) == {"score", "label", "box"}, found
    """
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre_norm": True},
            "not supported by Transformers' own DETR: pre_norm; load the model with trust_remote_code=True",
        ),
        ({"position_temperature": 20}, r"position_temperature 20 \(only 10,000\)"),
        ({"position_embedding_type": "learned", "learned_position_grid": 9}, r"learned_position_grid 9 \(only 50\)"),
        ({"backbone_kwargs": {"channels": [8, 8, 16, 16]}}, r"backbone_kwargs \(channels\)"),
        ({"backbone": "test_efficientnet"}, "Transformers drops their activations"),
        ({"pre_norm": True, "position_temperature": 20}, "pre_norm, position_temperature"),
    ],
)
def test_models_that_stock_does_not_support_are_refused_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        save_for_transformers(ours_for_stock(**changes), None, tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


@pytest.mark.parametrize("name", ["detr-r50", "detr-r50-dc5", "detr-r50-panoptic"])
def test_stock_computes_the_originals_numbers_from_its_weights(tmp_path, name):
    case = load_case(name)
    ours = case.model()
    save_for_transformers(ours, None, tmp_path)
    stock = getattr(transformers, type(ours).__name__).from_pretrained(tmp_path)
    with torch.no_grad():
        output = stock(*case.images())
    torch.testing.assert_close(output.pred_boxes, case.tensors["pred_boxes"], atol=1e-4, rtol=0)
    largest = case.tensors["pred_logits"].abs().max().item()
    torch.testing.assert_close(output.logits, case.tensors["pred_logits"], atol=1e-4 * max(1, largest), rtol=0)


def test_small_dataset_converts_with_the_documented_options():
    recipe = yaml.safe_load(
        (Path(modeling_detr.__file__).parent.parent / "configs" / "small_dataset.yaml").read_text()
    )
    options = {"position_temperature": 10_000, "backbone": "resnet18"}
    assert unsupported_by_stock(DetrForObjectDetection(DetrConfig(**recipe["model_config"], num_labels=3)))
    changed = DetrForObjectDetection(DetrConfig(**{**recipe["model_config"], **options}, num_labels=3))
    assert unsupported_by_stock(changed) == []
