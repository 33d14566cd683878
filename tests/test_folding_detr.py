"""In evaluation mode a faster copy of the backbone computes the same, and nobody else notices it."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_detr.backbone_detr import FrozenBatchNorm2d
from modeling_detr.folding_detr import ChannelsLastConv2d, FoldedBackbone, fold_when_training


BACKBONES = {
    "frozen": {},
    "running statistics": {"freeze_batch_norm": False},
    "dilated": {"dilation": True, "backbone": "resnet18", "backbone_kwargs": None},
    "same padding, depthwise, activations in the norm": {"backbone": "tf_efficientnet_lite0", "backbone_kwargs": None},
    "squeeze and excitation": {"backbone": "mobilenetv3_small_050", "backbone_kwargs": None},
    "grouped": {"backbone": "regnety_002", "backbone_kwargs": None},
    "norms before convolutions": {"backbone": "densenet121", "backbone_kwargs": None},
}


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def randomise_norms(model):
    """Statistics as after some training; those of a new model would be 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(0, 0.1, generator=generator)
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture
def detector(tiny_detector):
    return randomise_norms(tiny_detector())


def encoder_of(model):
    return model.model.backbone.conv_encoder


def uses_copy(model, pixel_values):
    encoder = encoder_of(model)
    return isinstance(encoder.copies.select(encoder.model, pixel_values), FoldedBackbone)


def difference(model, pixel_values):
    """The largest difference between what the model computes and its plain backbone, relative to the largest value."""
    encoder = encoder_of(model)
    features, plain = encoder(pixel_values)[-1], encoder.model(pixel_values)[-1]
    return ((features - plain).abs().max() / plain.abs().max()).item()


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_the_copy_computes_what_the_backbone_computes(tiny_detector, pixel_values, name):
    model = randomise_norms(tiny_detector(**BACKBONES[name]))
    assert uses_copy(model, pixel_values)
    assert 0 < difference(model, pixel_values) < 1e-5


@torch.no_grad()
def test_a_small_image_is_not_worth_a_copy(detector):
    assert not uses_copy(detector, torch.randn(1, 3, 64, 96))
    assert not encoder_of(detector).copies.folded


@torch.no_grad()
def test_all_batch_norms_of_a_resnet_are_folded(detector, pixel_values):
    encoder = encoder_of(detector)
    modules = list(encoder.copies.select(encoder.model, pixel_values).modules())
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in modules)
    assert all(type(module) is not nn.Conv2d for module in modules)
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in modules
        if isinstance(module, ChannelsLastConv2d)
    )


@torch.no_grad()
def test_a_backbone_without_batch_norm_stays_as_it_is(tiny_detector, pixel_values):
    assert not uses_copy(tiny_detector(backbone="convnext_atto", backbone_kwargs=None), pixel_values)


@torch.no_grad()
def test_a_convolution_whose_output_is_also_used_as_it_is_stays_as_it_is(detector, pixel_values):

    class Branching(type(encoder_of(detector).model.layer1[0])):
        def forward(self, x):
            states = self.conv1(x)
            return self.bn1(states) + states

    encoder_of(detector).model.layer1[0].__class__ = Branching
    assert difference(detector, pixel_values) < 1e-5


def test_whoever_needs_gradients_gets_them_from_the_backbone(detector, pixel_values):
    assert not uses_copy(detector, pixel_values)
    detector(pixel_values).logits.sum().backward()
    assert encoder_of(detector).model.layer4[0].conv1.weight.grad is not None
    detector.requires_grad_(False)
    assert uses_copy(detector, pixel_values)
    assert not uses_copy(detector, pixel_values.clone().requires_grad_())


@torch.no_grad()
def test_training_mode_computes_with_the_backbone_and_keeps_no_copy(detector, pixel_values):
    detector(pixel_values)
    assert encoder_of(detector).copies.folded
    detector.train()
    assert not encoder_of(detector).copies.folded
    assert not uses_copy(detector, pixel_values)
    detector.eval()
    next(module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)).train()
    assert not uses_copy(detector, pixel_values)


def doubled(layer):
    return nn.Parameter(layer.weight * 2)


CHANGES = {
    "in place": lambda model: model.layer1[0].conv1.weight.mul_(2),
    "one value": lambda model: model.layer4[0].conv1.weight[0, 0].add_(5),
    "through .data": lambda model: model.layer3[0].conv1.weight.data.mul_(2),
    "through NumPy": lambda model: model.bn1.bias.numpy().__iadd__(1),
    "new data": lambda model: setattr(model.layer1[0].conv1.weight, "data", model.layer1[0].conv1.weight * 2),
    "another parameter": lambda model: setattr(
        model.layer1[0].conv1, "weight", nn.Parameter(model.layer1[0].conv1.weight * 2)
    ),
    "statistics": lambda model: model.bn1.running_var.mul_(2),
    "load_state_dict": lambda model: model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()}),
    "another module": lambda model: setattr(model, "act1", nn.Tanh()),
    "a constant": lambda model: setattr(model.bn1, "eps", 1.0),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_a_change_of_the_backbone_takes_effect_at_once(detector, pixel_values, name):
    model = encoder_of(detector).model
    before = encoder_of(detector)(pixel_values)[-1]
    CHANGES[name](model)
    assert not torch.allclose(encoder_of(detector)(pixel_values)[-1], before, atol=1e-3)
    assert difference(detector, pixel_values) < 1e-5


@torch.no_grad()
def test_weights_and_names_are_those_of_the_backbone(detector, pixel_values):
    before = copy.deepcopy(detector.state_dict())
    names = [name for name, _ in detector.named_modules()], [name for name, _ in detector.named_parameters()]
    detector(pixel_values)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert len(before) == len(detector.state_dict())
    assert names == (
        [name for name, _ in detector.named_modules()],
        [name for name, _ in detector.named_parameters()],
    )
    assert all(tensor.is_contiguous() for tensor in detector.state_dict().values())


@torch.no_grad()
def test_copies_are_neither_copied_nor_pickled(detector, pixel_values):
    detector(pixel_values)
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert not encoder_of(other).copies.folded
        encoder_of(other).model.layer1[0].conv1.weight.mul_(2)
        assert difference(other, pixel_values) < 1e-5
    assert difference(detector, pixel_values) < 1e-5
    buffer = io.BytesIO()
    torch.save(detector, buffer)
    assert buffer.tell() < 2 * sum(tensor.nbytes for tensor in detector.state_dict().values())


@torch.no_grad()
def test_other_precisions_of_the_weights(detector, pixel_values):
    detector(pixel_values)
    assert encoder_of(detector.double())(pixel_values.double())[-1].dtype == torch.float64
    assert not encoder_of(detector).copies.folded
    assert encoder_of(detector.bfloat16())(pixel_values.bfloat16())[-1].dtype == torch.bfloat16
    assert difference(detector.float(), pixel_values) < 1e-5


@torch.no_grad()
def test_under_autocast_the_copy_computes_in_16_bits(detector, pixel_values):
    exact = encoder_of(detector)(pixel_values)[-1]
    with torch.autocast("cpu", torch.bfloat16):
        assert uses_copy(detector, pixel_values)
        half = encoder_of(detector)(pixel_values)[-1]
    assert half.dtype == torch.bfloat16
    assert set(encoder_of(detector).copies.folded) == {torch.float32, torch.bfloat16}
    assert torch.allclose(half.float(), exact, atol=0.05 * exact.abs().max().item())
    assert difference(detector, pixel_values) < 1e-5


@torch.no_grad()
def test_hooks_see_the_layers_of_the_backbone(detector, pixel_values):
    calls = []
    handle = encoder_of(detector).model.layer2.register_forward_hook(lambda *_: calls.append(1))
    detector(pixel_values)
    assert calls
    handle.remove()
    assert uses_copy(detector, pixel_values)
    with FlopCounterMode(display=False) as counter:
        detector(pixel_values)
    assert torch.ops.aten.convolution in counter.get_flop_counts()["Global"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own rules for jvp
def test_transforms_see_the_backbone(detector, pixel_values):
    encoder = encoder_of(detector)
    weights = {name: torch.stack([weight, 2 * weight]) for name, weight in encoder.named_parameters()}
    with torch.no_grad():
        encoder(pixel_values)
        both = torch.func.vmap(lambda ones: torch.func.functional_call(encoder, ones, pixel_values)[-1])(weights)
        assert not torch.allclose(both[0], both[1])
        _, change = torch.func.jvp(lambda x: encoder(x)[-1], (pixel_values,), (torch.ones_like(pixel_values),))
    assert change.abs().sum() > 0


def test_weights_made_in_inference_mode(tiny_detector, pixel_values):
    with torch.inference_mode():
        model = tiny_detector()
        assert not uses_copy(model, pixel_values)
        model(pixel_values)


def test_a_copy_made_in_inference_mode_serves_outside_of_it(detector, pixel_values):
    with torch.inference_mode():
        expected = detector(pixel_values).logits
    detector.requires_grad_(False)
    assert torch.equal(detector(pixel_values).logits, expected)


@torch.no_grad()
def test_a_traced_program_has_the_backbone(detector, pixel_values):
    detector(pixel_values)
    program = torch.export.export(encoder_of(detector), (pixel_values,))
    assert "model.layer1.0.conv1.weight" in program.state_dict
    assert torch.allclose(program.module()(pixel_values)[-1], encoder_of(detector)(pixel_values)[-1], atol=1e-4)


@torch.no_grad()
def test_threads_share_a_copy(detector, pixel_values):
    expected, found = encoder_of(copy.deepcopy(detector))(pixel_values)[-1], []

    def predict():
        with torch.no_grad():
            found.append(encoder_of(detector)(pixel_values)[-1])

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(features, expected) for features in found)


def test_the_random_state_stays_as_it_was(detector, pixel_values):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with torch.no_grad():
        detector(pixel_values)
    assert torch.equal(torch.rand(1), expected)


# In training


@pytest.fixture
def training_encoder(tiny_detector):
    """Returns a function that builds a backbone in training mode."""

    def build(**config):
        return encoder_of(randomise_norms(tiny_detector(**config))).train().requires_grad_()

    return build


def gradients(encoder, pixel_values):
    encoder.zero_grad()
    sum(feature.square().mean() for feature in encoder(pixel_values)).backward()
    return {
        name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None
    }


def unfolded(encoder):
    """A copy in which each layer computes its own part."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.modules():
        module.register_forward_hook(lambda *_: None)
    return encoder


def saved_bytes(encoder, pixel_values):
    kept = {}

    def keep(tensor):
        if tensor.ndim == 4 and len(tensor) == len(pixel_values):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encoder(pixel_values)
    del features
    return sum(kept.values())


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "running statistics"])
def test_training_with_folded_norms_has_the_same_gradients(training_encoder, pixel_values, name):
    encoder, pixel_values = training_encoder(**BACKBONES[name]).double(), pixel_values.double()
    found, expected = gradients(encoder, pixel_values), gradients(unfolded(encoder), pixel_values)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-11 * gradient.abs().max().item())


def test_training_with_folded_norms_keeps_fewer_maps(training_encoder, pixel_values):
    encoder = training_encoder(backbone="resnet18", backbone_kwargs=None)
    assert saved_bytes(encoder, pixel_values) < 0.75 * saved_bytes(unfolded(encoder), pixel_values)


REPLACED = {
    "norm": lambda stage: setattr(stage, "bn1", nn.GroupNorm(1, stage.bn1.weight.numel())),
    "convolution": lambda stage: setattr(stage, "conv1", nn.Conv2d(64, 64, 3, padding=1)),
    "scale": lambda stage: stage.bn1.weight.mul_(2),
    "buffer": lambda stage: setattr(stage.bn1, "bias", stage.bn1.bias + 1),
}


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_a_layer_that_changes_is_noticed_in_training(training_encoder, pixel_values, change):
    encoder = training_encoder(backbone="resnet18", backbone_kwargs=None)
    before = encoder(pixel_values)[-1]
    change(encoder.model.layer1[0])
    torch.testing.assert_close(encoder(pixel_values)[-1], unfolded(encoder)(pixel_values)[-1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(encoder(pixel_values)[-1], before, rtol=1e-2)


def test_a_convolution_that_something_else_reads_is_not_folded():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(nn.BatchNorm2d(4))

        def forward(self, x):
            states = self.conv(x)
            return [self.norm(states) + states]

    module = Branching()
    fold_when_training(module, FrozenBatchNorm2d, 3)
    assert type(module.conv) is nn.Conv2d
    assert module.norm.pair is None
