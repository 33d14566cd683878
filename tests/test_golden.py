"""The numbers are the original's: outputs, losses, assignment, gradients and six training steps."""

import pytest
import torch
from reference_cases import load_case

from modeling_detr import folding_detr
from modeling_detr.backbone_detr import DetrConvEncoder
from modeling_detr.conversion.original_names import original_name_to_ours
from modeling_detr.training.optimization import build_optimizer


CASES = ["tiny-r18", "tiny-r18-prenorm", "tiny-r18-learned", "detr-r50", "detr-r50-dc5", "detr-r50-panoptic"]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Each case in turn, for all tests."""
    return load_case(request.param)


def norm_of_original(name, tensors):
    """Return the norm of the original's parameter `name`, which may be split into three of ours."""
    return torch.cat([tensors[ours].flatten() for ours in original_name_to_ours(name)]).norm().item()


def assert_logits_close(logits, golden):
    """Assert equality to within 1e-5 of the largest logit.

    A relative tolerance for each logit would be below float32: the original itself, on another CPU, differs by up to
    1.6e-5 from the golden file, which is 1.2e-5 away from the exact result.
    """
    torch.testing.assert_close(logits, golden, atol=1e-5 * golden.abs().max().item(), rtol=0)


def test_model_computes_what_the_original_computes(case):
    model, labels = case.model(), case.labels()
    output = model(*case.images(), labels)

    assert_logits_close(output.logits, case.tensors["pred_logits"])
    torch.testing.assert_close(output.pred_boxes, case.tensors["pred_boxes"], atol=1e-5, rtol=0)
    first = output.auxiliary_outputs[0]
    assert_logits_close(first["logits"], case.tensors["aux0_logits"])
    torch.testing.assert_close(first["pred_boxes"], case.tensors["aux0_boxes"], atol=1e-5, rtol=0)

    if case.has_masks:
        with torch.no_grad():
            masks = model(*case.images()).pred_masks
        torch.testing.assert_close(masks, case.tensors["pred_masks"], atol=1e-5, rtol=0)

    assert {key: value.item() for key, value in output.loss_dict.items()} == pytest.approx(
        case.values["losses"], rel=1e-4
    )
    assert output.loss.item() == pytest.approx(case.values["total_loss"], rel=1e-4)
    matches = model.criterion.matcher(output.logits, output.pred_boxes, labels)
    assert [[match.queries.tolist(), match.targets.tolist()] for match in matches] == case.values["matched"]

    output.loss.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    without_gradient = {
        ours for key in case.values["parameters_without_gradient"] for ours in original_name_to_ours(key)
    }
    assert {key for key, _ in model.named_parameters()} - set(gradients) == without_gradient
    for key, expected in case.values["grad_norms"].items():
        # a norm below 1e-6 is mathematically zero: the first decoder layer attends to identical values
        limits = {"abs": 1e-5} if expected < 1e-6 else {"rel": 1e-3}
        assert norm_of_original(key, gradients) == pytest.approx(expected, **limits), key


def test_six_training_steps_in_float64_follow_the_original():
    case = load_case("training_tiny-r18")
    values = case.values
    model = case.model().double().train()
    optimizer = build_optimizer(
        model,
        learning_rate=values["lr"],
        backbone_learning_rate=values["lr_backbone"],
        weight_decay=values["weight_decay"],
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, values["lr_drop_every_steps"])
    for step, expected in enumerate(values["steps"]):
        pixel_values, pixel_mask = case.images([values["seed"] + 100 + 10 * step + index for index in range(2)])
        labels = case.labels(values["seed"] + 200 + step, torch.float64)
        loss = model(pixel_values.double(), pixel_mask, labels).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), values["clip_max_norm"])
        optimizer.step()
        schedule.step()
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected["lr"])
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    for key, expected in values["final_parameter_norms"].items():
        assert norm_of_original(key, parameters | buffers) == pytest.approx(expected, rel=1e-6), key


def test_predicting_computes_what_the_original_computes(case, monkeypatch):
    """Without gradients, a copy of the backbone computes, with its batch norms folded into the convolutions."""
    monkeypatch.setattr(folding_detr, "FEWEST_PIXELS", 0)
    model = case.model()
    with torch.inference_mode():
        output = model(*case.images())
    (encoder,) = (module for module in model.modules() if isinstance(module, DetrConvEncoder))
    assert encoder.copies.folded[torch.float32] is not None
    assert_logits_close(output.logits, case.tensors["pred_logits"])
    torch.testing.assert_close(output.pred_boxes, case.tensors["pred_boxes"], atol=1e-5, rtol=0)
    assert_logits_close(output.auxiliary_outputs[0]["logits"], case.tensors["aux0_logits"])
    if case.has_masks:
        torch.testing.assert_close(output.pred_masks, case.tensors["pred_masks"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attention_implementations_agree_with_the_original(attention):
    case = load_case("tiny-r18")
    model = case.model(attn_implementation=attention)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        output = model(*case.images())
    torch.testing.assert_close(output.pred_boxes, case.tensors["pred_boxes"], atol=1e-5, rtol=0)
