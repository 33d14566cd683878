import json
import math

import pytest
from reference_cases import REFERENCE
from torch import nn

from modeling_detr.training.optimization import build_lr_scheduler, build_optimizer


GOLDEN = REFERENCE / "golden" / "training_tiny-r18.json"


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 3)
        self.stem_of_backbone = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(3, 4)


def rates_of(schedule, steps, **options):
    optimizer = build_optimizer(Toy(), learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=0.0)
    scheduler = build_lr_scheduler(optimizer, schedule, total_steps=steps, **options)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def test_groups_have_their_learning_rates_and_exclude_frozen_parameters():
    model = Toy()
    optimizer = build_optimizer(model, learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=1e-2)
    head, backbone = optimizer.param_groups
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    assert (head["lr"], backbone["lr"]) == (1e-4, 1e-5)
    assert (head["weight_decay"], backbone["weight_decay"]) == (1e-2, 1e-2)
    assert optimizer.defaults["fused"]


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="Toy has no trainable parameters"):
        build_optimizer(Toy().requires_grad_(False), learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=0.0)


def test_the_step_schedule_equals_the_originals():
    golden = json.loads(GOLDEN.read_text())
    steps = len(golden["steps"])
    # the file lists rates after each of the original's steps of StepLR
    rates = rates_of("step", steps + 1, drop_at=[golden["lr_drop_every_steps"]])
    assert rates[1:] == [pytest.approx(step["lr"]) for step in golden["steps"]]


def test_cosine_rises_in_the_warmup_and_ends_near_zero():
    rates = [rate[0] / 1e-4 for rate in rates_of("cosine", 20, warmup_steps=4)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))


def test_constant_keeps_both_rates():
    assert rates_of("constant", 3) == [[1e-4, 1e-5]] * 3


def test_a_schedule_that_starts_later_has_the_rates_of_that_step():
    whole = rates_of("cosine", 10, warmup_steps=2)
    optimizer = build_optimizer(Toy(), learning_rate=1e-4, backbone_learning_rate=1e-5, weight_decay=0.0)
    build_lr_scheduler(optimizer, "cosine", total_steps=10, warmup_steps=2, first_step=6)
    assert [group["lr"] for group in optimizer.param_groups] == whole[6]
