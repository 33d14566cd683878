"""A step has the same gradient however it is split: over processes, accumulated batches, or parts of a batch."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from launched_runs import start_script
from split_steps import CASES, COUNTS, FAILURES, SPLIT_OVER_PROCESSES, batch_of, gradient_of_step, model_of

from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.training.engine import StepResult


ROOT = Path(__file__).parents[2]
SIZE = 64
whole_steps: dict[tuple[str, str], tuple[dict[str, torch.Tensor], StepResult]] = {}


def whole(case, counts):
    """Return the step of one process with one batch of eight images."""
    if (case, counts) not in whole_steps:
        whole_steps[case, counts] = gradient_of_step(case, [batch_of(COUNTS[counts])], Accelerator(cpu=True))
    return whole_steps[case, counts]


def assert_same_step(got, expected):
    (gradient, result), (expected_gradient, expected_result) = got, expected
    assert gradient.keys() == expected_gradient.keys()
    for name, value in expected_gradient.items():
        # the gradient of the bias of keys, for example, is only rounding errors: it does not affect a softmax
        assert float((gradient[name] - value).norm()) <= 1e-10 * float(value.norm()) + 1e-14, name
    assert result.num_images == expected_result.num_images == 8
    assert result.grad_norm == pytest.approx(expected_result.grad_norm, rel=1e-5)
    for name, value in expected_result.losses.items():
        assert result.losses[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("case", CASES)
def test_accumulated_batches_have_the_gradient_of_one_batch(case, counts):
    halves = [batch_of(COUNTS[counts][:4]), batch_of(COUNTS[counts][4:], first_index=4)]
    assert_same_step(gradient_of_step(case, halves, Accelerator(cpu=True)), whole(case, counts))


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_batch_have_the_gradient_of_the_batch(case):
    batches = [batch_of(COUNTS["unequal"][:6]), batch_of(COUNTS["unequal"][6:], first_index=6)]
    got = gradient_of_step(case, batches, Accelerator(cpu=True), max_pixels=2 * SIZE * SIZE)
    assert_same_step(got, whole(case, "unequal"))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_that_runs_out_of_memory_is_repeated_with_the_gradient_of_the_batch(case, where):
    batches = [batch_of(COUNTS["unequal"][:2]), batch_of(COUNTS["unequal"][2:], first_index=2)]
    got = gradient_of_step(case, batches, Accelerator(cpu=True), failure=(2 * SIZE * SIZE, where, 1))
    assert_same_step(got, whole(case, "unequal"))


def by_hand(case, batches):
    """The original: a batch's class loss is divided by its weights, its box losses by the mean number of boxes."""
    model = model_of(case).train()
    num_boxes = max(1.0, sum(len(label["boxes"]) for batch in batches for label in batch["labels"]) / len(batches))
    for batch in batches:
        inputs = batch_to_device(batch, torch.device("cpu"), (0.0,) * 3, (1.0,) * 3)
        (model(**inputs, num_boxes=num_boxes).loss / len(batches)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradient(gradient, expected):
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        assert float((gradient[name] - value).norm()) <= 1e-10 * float(value.norm()) + 1e-14, name


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("max_pixels", [None, 2 * SIZE * SIZE])
def test_original_normalization_is_the_mean_over_batches(counts, max_pixels):
    halves = [batch_of(COUNTS[counts][:4]), batch_of(COUNTS[counts][4:], first_index=4)]
    options = {"loss_normalization": "original", "max_pixels": max_pixels}
    for case in ("plain", "masks of a frozen detector"):
        gradient, _ = gradient_of_step(case, halves, Accelerator(cpu=True), **options)
        assert_same_gradient(gradient, by_hand(case, halves))


@pytest.mark.parametrize("counts", COUNTS)
def test_both_normalizations_agree_for_one_process_and_one_batch(counts):
    batch = batch_of(COUNTS[counts])
    got = gradient_of_step("encoder", [batch], Accelerator(cpu=True), loss_normalization="original")
    assert_same_step(got, whole("encoder", counts))


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_process_even_if_one_runs_out_of_memory(tmp_path):
    run = start_script(tmp_path / "printed.txt", "split_steps.py", tmp_path, processes=2)
    assert run.wait(200) == 0, run.output.read_text()
    for case, name, normalization in SPLIT_OVER_PROCESSES:
        got = torch.load(tmp_path / f"{case}, {name}, {normalization}.pt", weights_only=False)
        if normalization == "step":
            assert_same_step(got, whole(case, name))
        else:
            counts = COUNTS[name]
            expected = by_hand(case, [batch_of(counts[:4]), batch_of(counts[4:], first_index=4)])
            assert_same_gradient(got[0], expected)
    for where, step in FAILURES:
        got = torch.load(tmp_path / f"{where}, {step}.pt", weights_only=False)
        assert_same_step(got, whole("plain", "unequal"))
