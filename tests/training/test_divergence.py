"""Which images made a step non-finite."""

import math

import pytest
import torch
from accelerate import Accelerator
from split_steps import batch_of, model_of
from torch.optim.lr_scheduler import LambdaLR

from modeling_detr.training.divergence import NonFiniteLossError
from modeling_detr.training.engine import Engine, StepOptions, training_step


def failing_step(model, batches, **options):
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    prepared_model, prepared = accelerator.prepare(model.train(), optimizer)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    engine = Engine(prepared_model, model.detector.config, prepared, scheduler, accelerator, StepOptions(**options))
    with pytest.raises(NonFiniteLossError) as error:
        training_step(engine, batches)
    return error.value


@pytest.mark.parametrize("max_pixels", [None, 2 * 64 * 64])
def test_an_image_with_a_nan_is_identified_in_its_batch(max_pixels):
    batches = [batch_of([1, 2, 0]), batch_of([3, 1, 4], first_index=3)]
    batches[1]["pixel_values"][1, 0, 5, 5] = math.nan
    error = failing_step(model_of("masks"), batches, max_pixels=max_pixels)
    assert error.image_indices == (4,)
    assert "Each image listed reproduces the failure by itself" in str(error)
    assert 4 in [int(label["image_index"]) for part, _ in error.share.parts for label in part["labels"]]


def test_diverged_weights_are_distinguished_from_bad_images():
    model = model_of("encoder")
    torch.nn.init.constant_(model.detector.model.encoder.layers[0].fc1.weight, math.inf)
    error = failing_step(model, [batch_of([1, 2]), batch_of([3], first_index=2)])
    assert error.image_indices == (0, 1, 2)
    assert "the weights have diverged: try lower learning rates or clipping gradients with max_grad_norm 0.1." in str(
        error
    )
    assert "full precision" not in str(error)  # the run has it already


def test_many_terms_are_counted():
    terms = ["loss", *(f"loss_ce_{layer}" for layer in range(15))]
    assert "not finite: loss and 15 of its terms." in str(NonFiniteLossError(terms, [], ""))
    assert "not finite: loss, loss_ce." in str(NonFiniteLossError(["loss", "loss_ce"], [], ""))


def test_a_gradient_that_overflows_only_in_the_sum_is_blamed_on_no_image():
    """The gradient of each image is finite, but their sum overflows."""
    model = model_of("plain").float()
    largest = torch.finfo(torch.float32).max
    weight = model.detector.class_labels_classifier.weight
    # Of a sum of losses the gradients are added up; here each pass adds three quarters of the largest number.
    weight.register_hook(lambda gradient: torch.full_like(gradient, 0.75 * largest))
    batches = [batch_of([1]), batch_of([2], first_index=1)]
    for batch in batches:
        batch["pixel_values"] = batch["pixel_values"].float()
        for label in batch["labels"]:
            label["boxes"] = label["boxes"].float()
    error = failing_step(model, batches)
    assert (error.terms, error.image_indices) == (("gradient",), (0, 1))
    assert "No single image reproduces this, so the weights have probably diverged" in str(error)
