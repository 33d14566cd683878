"""FSDP on CPUs trains the same, and its checkpoints resume without it."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from launched_runs import start_prepared
from safetensors.torch import load_file

from modeling_detr.training.plan import plan
from modeling_detr.training.trainer import Trainer


ROOT = Path(__file__).parents[2]


def train(recipe, tmp_path, fsdp: bool) -> str:
    """Run a recipe in two processes and return what it prints."""
    environment = {}
    if fsdp:  # as `accelerate launch --config_file` sets it for GPUs
        config = yaml.safe_load((ROOT / "configs/accelerate/fsdp.yaml").read_text())["fsdp_config"]
        environment = {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": str(config["fsdp_version"]),
            "FSDP_AUTO_WRAP_POLICY": config["fsdp_auto_wrap_policy"],
            "FSDP_TRANSFORMER_CLS_TO_WRAP": config["fsdp_transformer_layer_cls_to_wrap"],
            "FSDP_RESHARD_AFTER_FORWARD": "true",
        }
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    run = start_prepared(tmp_path / "printed.txt", file, processes=2, environment=environment)
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 0, printed
    return printed


@pytest.mark.slow
def test_fsdp_trains_the_same_and_its_checkpoint_resumes_in_one_process(tiny_recipe, tmp_path):
    options = {"batch_size": 2, "max_steps": 2, "freeze": ["model.backbone"], "ema_decay": 0.5, "preflight": False}
    options |= {"denoising_groups": 1, "encoder_supervision": True, "gradient_accumulation_steps": 2}
    sharded = tiny_recipe(**options, output_dir=str(tmp_path / "sharded"))
    assert "each with a shard of the model (FSDP)" in train(sharded, tmp_path, fsdp=True)
    copies = tiny_recipe(**options, output_dir=str(tmp_path / "copies"))
    train(copies, tmp_path, fsdp=False)

    one, other = (recipe.run_dir / "checkpoints" / "step_00000002" for recipe in (sharded, copies))
    for name in ("model.safetensors", "ema.safetensors"):
        torch.testing.assert_close(load_file(one / name), load_file(other / name), rtol=1e-5, atol=1e-5)
    moments, others = (torch.load(folder / "optimizer.pt")["state"] for folder in (one, other))
    torch.testing.assert_close(moments, others, rtol=1e-4, atol=1e-6)
    exported, average = load_file(sharded.run_dir / "model" / "model.safetensors"), load_file(one / "ema.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in exported.items())

    alone = Trainer.from_recipe(dataclasses.replace(sharded, resume="auto", batch_size=4, max_steps=3))
    assert "each step sees the same images, so the run continues where it stopped" in plan(alone.run)
    alone.train()
    assert alone.state.step == 3
