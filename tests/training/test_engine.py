import copy
import math
import time
import types

import pytest
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from modeling_detr.training.aids import build_training_model
from modeling_detr.training.divergence import NonFiniteLossError
from modeling_detr.training.engine import Engine, StepOptions, train_one_epoch, training_step
from modeling_detr.training.signals import StopRequested


NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def batch_of(counts, size=64, first_index=0, dtype=torch.float64):
    """Make a batch of images without padding, with the given numbers of boxes; an image depends on its index only."""
    images, labels = [], []
    for position, count in enumerate(counts, start=first_index):
        generator = torch.Generator().manual_seed(position)
        images.append(torch.randn(3, size, size, generator=generator, dtype=dtype))
        labels.append(
            {
                "class_labels": torch.randint(5, (count,), generator=generator),
                "boxes": 0.3 + 0.2 * torch.rand(count, 4, generator=generator, dtype=dtype),
                "image_index": torch.tensor(position),
            }
        )
    return {
        "pixel_values": torch.stack(images),
        "pixel_mask": torch.ones(len(counts), size, size, dtype=torch.int64),
        "labels": labels,
    }


def engine_of(model, learning_rate=1.0, **options):
    """Make an engine that trains a model with SGD in this process."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    accelerator = Accelerator(cpu=True)
    prepared_model, prepared = accelerator.prepare(model, optimizer)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    return Engine(prepared_model, model.detector.config, prepared, scheduler, accelerator, StepOptions(**options))


def step_with_sgd(model, batches, **options):
    """Take one SGD step with learning rate 1; return the gradient, from the change of the weights, and the result."""
    model = copy.deepcopy(model).train()
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters() if p.requires_grad])
    result = training_step(engine_of(model, **options), batches)
    after = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return before - after, result


@pytest.mark.parametrize("encoder_supervision", [False, True])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(tiny_detector, encoder_supervision):
    model = build_training_model(tiny_detector(**NO_DROPOUT).double(), encoder_supervision=encoder_supervision)
    counts = [3, 0, 9, 1, 0, 0, 2, 5]  # 9 boxes are more than the 7 queries
    whole, whole_result = step_with_sgd(model, [batch_of(counts)])
    split, split_result = step_with_sgd(
        model, [batch_of(counts[:3]), batch_of(counts[3:4], first_index=3), batch_of(counts[4:], first_index=4)]
    )
    torch.testing.assert_close(split, whole, rtol=1e-8, atol=1e-12)
    assert split_result.num_images == whole_result.num_images == 8
    for name, value in whole_result.losses.items():
        if name.startswith("loss"):
            assert split_result.losses[name] == pytest.approx(value, rel=1e-5), name


def test_clipping_bounds_the_gradient_and_reports_its_norm_before(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT).double())
    free, result = step_with_sgd(model, [batch_of([2, 1])])
    assert result.grad_norm == pytest.approx(float(free.norm()), rel=1e-5)
    clipped, result = step_with_sgd(model, [batch_of([2, 1])], max_grad_norm=0.1)
    assert result.grad_norm == pytest.approx(float(free.norm()), rel=1e-5)
    assert float(clipped.norm()) == pytest.approx(0.1, rel=1e-4)


def test_bytes_are_normalised_on_the_device_and_padding_stays_zero(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    batch = batch_of([2, 1], dtype=torch.float32)
    batch["pixel_values"] = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    batch["pixel_values"][1, :, :, 40:] = 0
    batch["pixel_mask"][1, :, 40:] = 0
    by_hand = dict(batch)
    values = (batch["pixel_values"] / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    by_hand["pixel_values"] = values * batch["pixel_mask"][:, None]
    _, from_bytes = step_with_sgd(model, [batch], image_mean=mean, image_std=std)
    _, from_floats = step_with_sgd(model, [by_hand])
    assert from_bytes.losses["loss"] == pytest.approx(from_floats.losses["loss"], rel=1e-5)


def test_a_step_without_any_box_trains(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT), encoder_supervision=True, denoising_groups=2)
    gradient, result = step_with_sgd(model, [batch_of([0, 0], dtype=torch.float32)])
    assert math.isfinite(result.losses["loss"])
    assert bool(gradient.any())


def test_a_batch_without_boxes_beside_one_with_boxes_trains(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT), encoder_supervision=True, denoising_groups=2)
    batches = [batch_of([0, 0], dtype=torch.float32), batch_of([2, 1], first_index=2, dtype=torch.float32)]
    _, result = step_with_sgd(model, batches)
    assert {"loss_ce_encoder", "loss_ce_denoising"} <= set(result.losses)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_the_optimizer_step_and_names_the_term_and_images(tiny_detector, number):
    model = build_training_model(tiny_detector(**NO_DROPOUT).double())
    good, bad = batch_of([2, 1]), batch_of([1, 1], first_index=2)
    bad["pixel_values"][0, 0, 0, 0] = number
    before = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises(NonFiniteLossError) as error:
        training_step(engine_of(model.train()), [good, bad])
    assert error.value.image_indices == (2,)
    assert "loss_ce" in error.value.terms
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_a_gradient_scaler_at_its_minimum_stops_the_run(tiny_detector, monkeypatch, scale):
    """Half precision skips steps whose gradient overflows; a run in which all overflow must not continue forever."""
    model = build_training_model(tiny_detector(**NO_DROPOUT))
    model.detector.model.query_position_embeddings.weight.register_hook(lambda gradient: gradient * math.nan)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "scaler", types.SimpleNamespace(get_scale=lambda: scale))
    monkeypatch.setattr(accelerator, "backward", lambda loss: loss.backward())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    engine = Engine(model.train(), model.detector.config, optimizer, scheduler, accelerator)
    batches = [batch_of([1], dtype=torch.float32)]
    if scale > 1:
        assert math.isnan(training_step(engine, batches).grad_norm)
        return
    with pytest.raises(NonFiniteLossError, match="not finite: gradient"):
        training_step(engine, batches)


def test_an_epoch_groups_batches_into_steps_and_the_last_takes_the_rest(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT))
    engine = engine_of(model, learning_rate=1e-4, batches_per_step=2)
    batches = [batch_of([1, 1], first_index=2 * index, dtype=torch.float32) for index in range(3)]
    results = list(train_one_epoch(engine, batches, should_stop=lambda: True))
    assert [result.num_images for result in results] == [4, 2]
    assert all(result.stop_requested for result in results)
    assert engine.scheduler.last_epoch == 2


def test_an_epoch_ends_after_the_last_step_whose_batches_have_arrived(tiny_detector):
    engine = engine_of(build_training_model(tiny_detector(**NO_DROPOUT)), learning_rate=1e-4, batches_per_step=2)

    def batches(count: int):
        for index in range(count):
            yield batch_of([1], first_index=index, dtype=torch.float32)
        stopped.append(count)
        raise StopRequested

    for count, steps in ((0, 0), (1, 0), (5, 2)):
        stopped: list[int] = []
        results = list(train_one_epoch(engine, batches(count), should_stop=lambda stopped=stopped: bool(stopped)))
        assert [result.stop_requested for result in results] == [False, True][2 - steps :]


def test_a_step_reports_how_long_it_waited_for_its_batches(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT))

    def slow_loader():
        for index in range(3):
            time.sleep(0.2)
            yield batch_of([1], first_index=index, dtype=torch.float32)

    steps = train_one_epoch(engine_of(model, learning_rate=1e-4, batches_per_step=2), slow_loader())
    began = time.perf_counter()
    first, second = (result.loader_wait for result in steps)
    assert first >= 0.4
    assert second >= 0.2
    assert first + second < time.perf_counter() - began


def test_dropout_depends_on_seed_and_step_only(tiny_detector):
    losses = []
    for history in (0, 3):
        model = build_training_model(tiny_detector())
        engine = engine_of(model, learning_rate=0.0, seed=5)
        torch.rand(history)
        (result,) = train_one_epoch(engine, [batch_of([1, 2], dtype=torch.float32)], first_step=9)
        losses.append(result.losses)
    assert losses[0] == losses[1]


def test_splitting_batches_by_pixels_does_not_change_the_step(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT).double())

    def weights_after(max_pixels):
        trained = copy.deepcopy(model)
        batches = [batch_of([3, 0, 9]), batch_of([1, 2], first_index=3)]
        (result,) = train_one_epoch(engine_of(trained, batches_per_step=2, max_pixels=max_pixels), batches)
        assert result.num_images == 5
        return torch.cat([p.detach().flatten() for p in trained.parameters()])

    torch.testing.assert_close(weights_after(64 * 64), weights_after(None), rtol=1e-8, atol=1e-12)
