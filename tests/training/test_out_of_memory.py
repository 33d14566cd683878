"""Runs whose steps do not fit into memory: they train in parts, remember the limit, and say so once."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from launched_runs import start_script
from safetensors.torch import load_file
from split_steps import run_out

from modeling_detr.errors_detr import OutOfMemoryError, PreflightError
from modeling_detr.training import preflight as preflight_module
from modeling_detr.training.engine import StepLosses
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.out_of_memory import PartFailure, PixelLimit, is_out_of_memory
from modeling_detr.training.plan import plan
from modeling_detr.training.preflight import preflight
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer


ROOT = Path(__file__).parents[2]
SIZE = 64
FITS = 2 * SIZE * SIZE


@pytest.fixture
def small_memory(monkeypatch):
    """Lets parts of a step with more than `FITS` pixels run out of memory; returns the pixels of those that did."""
    failed = []
    losses_of = StepLosses.__call__

    def limited(self, model, part, class_weight_sum):
        losses = losses_of(self, model, part, class_weight_sum)  # draws random numbers, and moves running statistics
        pixels = len(part["labels"]) * part["pixel_values"].shape[-2:].numel()
        if pixels > FITS:
            failed.append(pixels)
            raise run_out()
        return losses

    monkeypatch.setattr(StepLosses, "__call__", limited)
    return failed


def weights_of(recipe):
    return load_file(sorted(recipe.run_dir.glob("checkpoints/step_*"))[-1] / "model.safetensors")


def assert_equal(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def warnings_of(recipe):
    return [entry["text"] for entry in read_log(recipe.run_dir / "log.jsonl") if entry["kind"] == "warning"]


KEYS = {
    "max_steps": 4,
    "lr_schedule": "step",
    "gradient_accumulation_steps": 2,
    "ema_decay": 0.9,
    "denoising_groups": 1,
    "preflight": False,
}


def test_a_run_continues_as_if_the_limit_had_been_set_and_says_it_once(tiny_recipe, tmp_path, small_memory):
    """Dropout, denoising noise, running statistics, the average of the weights and accumulation included."""
    recipe = tiny_recipe(**KEYS)
    Trainer.from_recipe(recipe).train()
    assert small_memory == [4 * SIZE * SIZE]  # once
    (warning,) = warnings_of(recipe)
    assert warning == (
        "4 images of 64x64 (width x height) did not fit into memory: at most 8,192 pixels pass through the model at "
        "once from now on. Images and gradient of a step stay the same. --max_pixels_per_batch 8192 saves the failed "
        "attempt next time"
    )
    given = tiny_recipe(**KEYS, max_pixels_per_batch=FITS, output_dir=str(tmp_path / "given"))
    Trainer.from_recipe(given).train()
    assert warnings_of(given) == []
    assert_equal(weights_of(recipe), weights_of(given))


def test_a_resumed_run_keeps_the_limit_and_continues_exactly(tiny_recipe, tmp_path, small_memory):
    whole = tiny_recipe(**KEYS, output_dir=str(tmp_path / "whole"))
    Trainer.from_recipe(whole).train()
    Trainer.from_recipe(tiny_recipe(**KEYS | {"max_steps": 2}, epochs=2)).train()
    small_memory.clear()
    recipe = tiny_recipe(**KEYS, resume="auto")
    resumed = Trainer.from_recipe(recipe)
    note = "a step ran out of memory before, so at most 8,192 pixels pass through the model at once"
    assert note in plan(resumed.run)
    resumed.train()
    assert small_memory == []
    assert len(warnings_of(recipe)) == 1
    assert_equal(weights_of(recipe), weights_of(whole))


def test_a_change_of_what_a_step_needs_forgets_the_limit(tiny_recipe, small_memory):
    Trainer.from_recipe(tiny_recipe(**KEYS | {"max_steps": 1})).train()
    run = prepare_run(tiny_recipe(**KEYS, resume="auto", gradient_checkpointing=True))
    assert run.limit.pixels is run.state.max_pixels is None


def test_an_image_that_does_not_fit_is_named_with_what_helps(tiny_recipe, monkeypatch):
    trainer = Trainer.from_recipe(tiny_recipe(preflight=False))
    steps = StepLosses.__call__

    def failing(self, model, part, class_weight_sum):
        if self.step == 1:
            raise run_out()
        return steps(self, model, part, class_weight_sum)

    monkeypatch.setattr(StepLosses, "__call__", failing)
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.train()
    expected = (
        r"step 2, .*: an image of 64x64 \(width x height\) does not fit into memory \(DefaultCPUAllocator: can't "
        r"allocate memory: .*\); make images smaller \(processor_config.size, .*gradient_checkpointing or .*"
    )
    assert re.fullmatch(expected, str(caught.value))
    assert (trainer.run.recipe.run_dir / "checkpoints/step_00000001").is_dir()


def test_other_errors_are_not_taken_for_this_one(tiny_recipe, monkeypatch):
    def failing(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(StepLosses, "__call__", failing)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Trainer.from_recipe(tiny_recipe()).train()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (run_out(), True),
        (RuntimeError("could not create a primitive"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_allocators_are_recognised(error, expected):
    assert is_out_of_memory(error) == expected


def test_the_limit_is_half_of_what_failed_and_never_rises():
    limit = PixelLimit()
    limit.lower([PartFailure(5, 100, 200, (), "full"), PartFailure(8, 100, 100, (), "full")])
    assert limit.pixels == 4 * 100 * 100  # the other half is 3 * 100 * 200
    limit.lower([PartFailure(3, 400, 400, (), "full")])
    assert limit.pixels == 4 * 100 * 100


@pytest.fixture
def small_memory_of_preflight(monkeypatch):
    step = preflight_module.real_step

    def limited(run, batch):
        if batch["pixel_values"].numel() > 3 * FITS:
            raise run_out()
        return step(run, batch)

    monkeypatch.setattr(preflight_module, "real_step", limited)
    monkeypatch.setattr("modeling_detr.training.distributed.limit_memory", lambda device, max_gib: None)


def test_the_preflight_finds_the_limit_before_the_first_step(tiny_recipe, small_memory, small_memory_of_preflight):
    recipe = tiny_recipe(**KEYS, max_memory_gb=1.0)
    run = prepare_run(recipe)
    (line,) = [line for line in preflight(run) if "pixels" in line]
    assert re.fullmatch(r"WARNING: 4 images of 64x64 .* --max_pixels_per_batch 8192 .*; at most \d\.\d GiB", line)
    Trainer(run).train()
    assert small_memory == warnings_of(recipe) == []
    assert Trainer.from_recipe(dataclasses.replace(recipe, resume="auto")).run.limit.pixels == FITS


def test_the_preflight_uses_the_parts_of_the_recipe(tiny_recipe, small_memory_of_preflight):
    lines = preflight(prepare_run(tiny_recipe(max_memory_gb=1.0, max_pixels_per_batch=FITS)))
    assert any(re.search(r"fits in parts of at most 2 images: at most \d\.\d GiB", line) for line in lines)
    large = {"size": {"shortest_edge": 128, "longest_edge": 128}}
    run = prepare_run(tiny_recipe(max_memory_gb=1.0, batch_size=1, processor_config=large))
    with pytest.raises(PreflightError, match="an image of 128x128"):
        preflight(run)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a CPU has a limit under Linux only")
def test_a_run_under_a_real_limit_trains_in_parts(tiny_recipe, tmp_path):
    size = {"size": {"shortest_edge": 256, "longest_edge": 256}}
    keys = {"data": "shapes?size=256&train=32&val=1", "batch_size": 32, "max_steps": 1, "processor_config": size}
    model = tiny_recipe().model_config | {"backbone_kwargs": {"channels": [32, 32, 32, 32], "stem_width": 32}}
    recipe = tiny_recipe(**keys, model_config=model)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    run = start_script(tmp_path / "printed.txt", "limited_run.py", 350, file)
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 0, printed
    (warning,) = warnings_of(recipe)
    assert "32 images of 256x256 (width x height) did not fit into memory" in warning
    allowed, used = map(float, re.findall(r"([\d.]+) GiB", printed.splitlines()[-1]))
    assert used <= allowed
