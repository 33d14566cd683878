import random
import re
import shutil
import types

import pytest
import torch

from modeling_detr.training.preflight import check_truth, largest_batch, preflight, real_step
from modeling_detr.training.setup import prepare_run


@pytest.fixture
def run(tiny_recipe):
    return prepare_run(tiny_recipe())


def test_a_valid_run_passes_and_nothing_changes(run):
    model = run.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    text = "\n".join(preflight(run))
    assert "4 evaluation images" in text
    assert "scores AP 1.0000" in text
    assert "20 training images after the transforms: labels and boxes are in range" in text
    assert "6 queries" in text
    assert "4 images of 64x64" in text
    assert "WARNING" not in text
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_objects_of_mosaics_are_counted(tiny_recipe):
    (line,) = [line for line in preflight(prepare_run(tiny_recipe(mosaic_probability=1.0))) if "queries" in line]
    pattern = r"at most \d objects per image \(\d+ in mosaics\), 6 queries; surplus objects are not trained on: .*"
    assert re.fullmatch(pattern, line)


def test_batches_of_loaders_are_compared_with_the_free_shared_memory(tiny_recipe, monkeypatch):
    sizes = {"shortest_edge": 256, "longest_edge": 256}
    run = prepare_run(tiny_recipe(num_workers=2, processor_config={"size": sizes}))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**24))
    expected = (
        "batches that are ready take at most 6 MiB of shared memory"  # 6 batches of 4 images of 256 x 256 x 4 bytes
    )
    assert f"{expected}; 16 MiB are free" in preflight(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**22))
    assert (
        f"WARNING: {expected}, but /dev/shm has 4 MiB free: those that do not fit are copied, which is slower; start "
        "the container with --shm-size=12m or --ipc=host, or lower num_workers"
    ) in preflight(run)


def test_boxes_that_the_evaluation_does_not_recover_are_named(run):
    collate = run.loaders.eval.collate_fn

    def shifted(samples):
        batch = collate(samples)
        batch["labels"][0]["boxes"][:1, 0] += 0.2
        return batch

    run.loaders.eval.collate_fn = shifted
    truth = check_truth(run, float("inf"))
    assert truth.ap < 0.999
    assert len(truth.lost) == 4
    assert "is not recovered when scored as its own prediction" in truth.lost[0]
    assert any(line.startswith("WARNING") for line in preflight(run))


def test_a_label_out_of_range_stops_the_run(run):
    run.train_index.annotations.label[0] = 99
    with pytest.raises(ValueError, match=r"preflight: .*class label 99"):
        preflight(run)


def test_on_an_accelerator_the_test_step_uses_the_largest_batch(run):
    assert real_step(run, largest_batch(run)) > 0
    assert all(parameter.grad is None for parameter in run.model.parameters())
