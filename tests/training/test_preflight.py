import random

import pytest
import torch

from modeling_detr.training.preflight import check_truth, largest_batch, preflight, real_step
from modeling_detr.training.trainer import Trainer


@pytest.fixture
def trainer(tiny_recipe):
    return Trainer(tiny_recipe())


def test_a_valid_run_passes_and_nothing_changes(trainer):
    model = trainer.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    text = "\n".join(preflight(trainer))
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


def test_boxes_that_the_evaluation_does_not_recover_are_named(trainer):
    collate = trainer.loaders.eval.collate_fn

    def shifted(samples):
        batch = collate(samples)
        batch["labels"][0]["boxes"][:1, 0] += 0.2
        return batch

    trainer.loaders.eval.collate_fn = shifted
    truth = check_truth(trainer, float("inf"))
    assert truth.ap < 0.999
    assert len(truth.lost) == 4
    assert "does not find itself" in truth.lost[0]
    assert any(line.startswith("WARNING") for line in preflight(trainer))


def test_a_label_out_of_range_stops_the_run(trainer):
    trainer.train_index.annotations.label[0] = 99
    with pytest.raises(ValueError, match=r"preflight: .*class label 99"):
        preflight(trainer)


def test_on_an_accelerator_the_test_step_uses_the_largest_batch(trainer):
    assert real_step(trainer, largest_batch(trainer)) > 0
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
