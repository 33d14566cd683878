import json

import pytest
import torch
from reference_cases import REFERENCE, needs_shared

from modeling_detr.conversion import original_to_ours
from modeling_detr.conversion.original import original_name_to_ours


def test_the_three_projections_of_an_attention_are_cut_apart_in_their_order():
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


@needs_shared
@pytest.mark.parametrize("name", ["detr-r50", "detr-r101-dc5", "tiny-r18-learned", "tiny-r18-prenorm"])
def test_every_name_of_a_released_checkpoint_becomes_one_of_ours_and_no_two_the_same(name):
    names = json.loads((REFERENCE / "manifests" / f"{name}.json").read_text())
    ours = [new for old in names for new in original_name_to_ours(old)]
    assert len(ours) == len(set(ours))
    heads = ("class_labels_classifier.", "bbox_predictor.")
    assert all(new.startswith(("model.", *heads)) for new in ours)
