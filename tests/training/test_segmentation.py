"""Training with masks: in one stage, and the second stage of the original."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from modeling_detr import DetrForObjectDetection, DetrForSegmentation
from modeling_detr.evaluation.metrics import Metric
from modeling_detr.training.plan import plan
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.starting_model import build_model
from modeling_detr.training.trainer import Trainer


SEGMENTER = {
    "backbone": "resnet10t",
    "backbone_kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "out_indices": [0, 1, 2, 3],
    "freeze_batch_norm": False,
    "freeze_backbone_stem": False,
    "num_queries": 6,
    "d_model": 128,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


def short(tiny_recipe, **changes):
    options = {"data": "shapes?size=64&train=8&val=4", "epochs": 1, "trackers": [], "model_config": SEGMENTER}
    return tiny_recipe(**(options | changes))


def test_a_panoptic_run_keeps_the_model_with_the_best_pq_and_its_stuff_classes(tiny_recipe):
    recipe = short(tiny_recipe, task="panoptic", encoder_supervision=True, denoising_groups=1)
    trainer = Trainer.from_recipe(recipe)
    report = trainer.train()
    assert report.primary_metric == Metric("pq", "PQ", report.results["panoptic"].pq)
    assert "mask_metrics" not in report.results  # it would need the masks of all queries
    assert trainer.state.best_ap == pytest.approx(report.primary_metric.value)
    log = [json.loads(line) for line in (recipe.run_dir / "log.jsonl").read_text().splitlines()]
    assert {"loss_mask", "loss_dice", "loss_ce_encoder", "loss_giou_denoising", "pq", "pq_stuff", "ap"} <= set(log[-1])
    model = DetrForSegmentation.from_pretrained(recipe.run_dir / "model")
    assert model.config.id2label[4] == "ground"
    assert list(model.config.stuff_labels) == [4]
    assert len(list((recipe.run_dir / "predictions").iterdir())) == 1


def test_an_instance_run_is_ranked_by_mask_ap(tiny_recipe):
    report = Trainer.from_recipe(short(tiny_recipe, task="instance")).train()
    assert report.primary_metric == Metric("mask_ap", "mask AP", report.results["mask_metrics"].ap, hub_type="mAP")
    assert "panoptic" not in report.results


def test_the_second_stage_trains_the_mask_head_on_a_frozen_detector(tiny_recipe, tmp_path):
    torch.manual_seed(0)
    first = short(tiny_recipe, task="panoptic")
    detector = build_model(first, dict(enumerate("abcde")), [4]).detr
    detector.config.id2label = {0: "circle", 1: "square", 2: "triangle", 3: "star", 4: "ground"}
    detector.save_pretrained(tmp_path / "detector")
    prepare_run(first).processor.save_pretrained(tmp_path / "detector")
    second = short(
        tiny_recipe,
        task="panoptic",
        model=str(tmp_path / "detector"),
        model_config={},
        freeze_detector=True,
        output_dir=str(tmp_path / "second"),
    )
    trainer = Trainer.from_recipe(second)
    assert re.search(r"decoder +[\d,]+ +0 +-\n", plan(trainer.run))
    assert "\nfrozen    detr\n" in plan(trainer.run)
    assert re.search(r"mask head +([\d,]+) +\1 +0.001\n", plan(trainer.run))
    masks_before = {name: value.clone() for name, value in trainer.run.weights.detector.mask_head.state_dict().items()}
    trainer.train()
    after = DetrForObjectDetection.from_pretrained(second.run_dir / "model").state_dict()
    for name, value in load_file(tmp_path / "detector/model.safetensors").items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    masks_after = trainer.run.weights.detector.mask_head.state_dict()
    assert any(not torch.equal(masks_after[name], value) for name, value in masks_before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detection", "model": "x"}, "nothing to train"),
        ({"task": "panoptic"}, "needs a trained detector"),
        ({"task": "panoptic", "model": "x", "denoising_groups": 2}, "train the detector, which is frozen"),
    ],
)
def test_freezing_the_detector_without_a_mask_head_is_refused(tiny_recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_recipe(freeze_detector=True, **changes)


def test_a_segmentation_model_is_not_silently_used_as_a_detector(tiny_recipe, tmp_path):
    names = {0: "circle", 1: "square", 2: "triangle", 3: "star"}
    build_model(short(tiny_recipe, task="instance"), names).save_pretrained(tmp_path / "masks")
    with pytest.raises(ValueError, match="Use --task panoptic"):
        build_model(short(tiny_recipe, model=str(tmp_path / "masks"), model_config={}), names)
