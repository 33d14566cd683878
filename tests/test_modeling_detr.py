import copy

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrModel
from modeling_detr.backbone_detr import FrozenBatchNorm2d, load_pretrained_backbone
from modeling_detr.modeling_detr import ExtraQueries


def labels_of(*counts):
    return [
        {
            "class_labels": torch.arange(count) % 5,
            "boxes": torch.full((count, 4), 0.4) + 0.01 * torch.arange(count)[:, None],
        }
        for count in counts
    ]


def images(batch=2, height=64, width=96, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# Building


def test_building_never_touches_the_network(tiny_config, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    DetrForObjectDetection(tiny_config())


@pytest.mark.parametrize(
    "backbone", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224"]
)
def test_any_timm_backbone_with_feature_maps_trains(tiny_config, backbone):
    kwargs = {"img_size": (64, 96)} if backbone.startswith("swin") else None
    model = DetrForObjectDetection(tiny_config(backbone=backbone, backbone_kwargs=kwargs)).train()
    model(images(), labels=labels_of(2, 1)).loss.backward()
    stem = next(model.model.backbone.parameters())
    assert stem.grad is None
    *_, deepest = model.model.backbone.parameters()
    assert deepest.grad is not None


def test_everything_up_to_stride_4_and_all_batch_norms_are_frozen(tiny_detector):
    model = tiny_detector(backbone="resnet18", backbone_kwargs=None)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(".conv1." in name or ".layer1." in name for name in frozen)
    assert not any(".layer2." in name for name in frozen)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    trainable = tiny_detector(freeze_batch_norm=False, freeze_backbone_stem=False)
    assert all(parameter.requires_grad for parameter in trainable.parameters())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in trainable.modules())


def test_frozen_batch_norm_is_batch_norm_in_evaluation_with_its_activation():
    efficientnet = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    norm = efficientnet.blocks[1][0].bn1
    torch.nn.init.uniform_(norm.weight)
    torch.nn.init.uniform_(norm.running_mean)
    features = torch.randn(2, norm.num_features, 4, 4)
    frozen = FrozenBatchNorm2d(norm).train()
    torch.testing.assert_close(frozen(features), norm(features))
    assert not list(frozen.parameters())


def test_dilation_doubles_the_resolution(tiny_detector):
    features = [
        tiny_detector(backbone="resnet18", backbone_kwargs=None, dilation=dilation).model(images()).feature_mask.shape
        for dilation in (False, True)
    ]
    assert features == [(2, 2, 3), (2, 4, 6)]


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_stages_after_the_last_requested_map_do_not_exist(tiny_config, backbone):
    config = tiny_config(backbone=backbone, backbone_kwargs=None, out_indices=[3], freeze_backbone_stem=False)
    model = DetrForObjectDetection(config).train()
    model(images(), labels=labels_of(2, 1)).loss.backward()
    assert model.model.backbone.conv_encoder.strides == [16]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_initialisation_is_the_originals(tiny_config):
    torch.manual_seed(0)
    model = DetrModel(tiny_config(d_model=256, num_queries=100, encoder_attention_heads=8, decoder_attention_heads=8))
    attention = model.encoder.layers[0].self_attn
    # one Xavier-uniform (3D, D) matrix in the original: bound √(6 / 4D), not √(6 / 2D)
    assert attention.q_proj.weight.abs().max().item() == pytest.approx((6 / (4 * 256)) ** 0.5, rel=1e-2)
    assert attention.out_proj.weight.abs().max().item() == pytest.approx((6 / (2 * 256)) ** 0.5, rel=1e-2)
    assert attention.q_proj.bias.abs().max() == 0
    assert model.encoder.layers[0].fc1.bias.abs().max() > 0
    assert model.query_position_embeddings.weight.std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    "changes", [{"backbone": "resnet5000"}, {"out_indices": [9]}, {"backbone_kwargs": {"mlp_ratio": 4}}]
)
def test_a_backbone_that_timm_cannot_build_is_an_error(tiny_config, changes):
    with pytest.raises(ValueError, match=r"timm (cannot build the backbone|has no model) 'resnet"):
        DetrModel(tiny_config(**{"backbone_kwargs": None, **changes}))


# Computing


def test_padding_marked_in_the_mask_equals_no_padding(tiny_detector):
    model = tiny_detector()
    full = torch.ones(2, 64, 96, dtype=torch.int64)
    torch.testing.assert_close(model(images(), full).logits, model(images()).logits)


def test_pixels_in_the_padding_do_not_affect_the_transformer(tiny_detector):
    model = tiny_detector()
    seen = {}
    model.model.encoder.register_forward_hook(lambda module, inputs, output: seen.update(mask=inputs[2]))
    mask = torch.ones(2, 64, 96, dtype=torch.int64)
    mask[1, :, 64:] = 0
    output = model(images(), mask)
    assert output.feature_mask.tolist() == [[[True] * 3] * 2, [[True, True, False]] * 2]
    assert seen["mask"].shape == (2, 1, 1, 6)


def test_auxiliary_losses_do_not_change_the_predictions(tiny_detector):
    """Transformers' DETR passes the normed state on, which computes another function; the original norms a copy."""
    with_losses, without = tiny_detector(auxiliary_loss=True), tiny_detector(auxiliary_loss=False)
    without.load_state_dict(with_losses.state_dict())
    torch.testing.assert_close(with_losses(images()).logits, without(images()).logits)
    assert without(images()).auxiliary_outputs is None
    assert set(without(images(), labels=labels_of(1, 1)).loss_dict) == {
        "loss_ce",
        "loss_bbox",
        "loss_giou",
        "class_error",
        "cardinality_error",
    }


def test_dropout_is_on_attention_weights_and_inside_the_ffn_but_not_on_the_input(tiny_detector):
    model = tiny_detector(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.eval()
    assert torch.equal(model(images()).logits, model(images()).logits)
    for kind in ("dropout", "attention_dropout", "activation_dropout"):
        options = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, kind: 0.5}
        noisy = tiny_detector(**options).train()
        assert not torch.equal(noisy(images()).logits, noisy(images()).logits), kind
        assert torch.equal(noisy.eval()(images()).logits, noisy(images()).logits)


def test_attentions_and_hidden_states_have_the_documented_shapes(tiny_detector):
    model = tiny_detector()
    output = model(images(), output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.encoder_attentions] == [(2, 4, 6, 6)]
    assert [tuple(weights.shape) for weights in output.decoder_attentions] == [(2, 4, 7, 7)] * 2
    assert [tuple(weights.shape) for weights in output.cross_attentions] == [(2, 4, 7, 6)] * 2
    torch.testing.assert_close(output.cross_attentions[0].sum(-1), torch.ones(2, 4, 7))
    assert len(output.encoder_hidden_states) == 2
    assert len(output.decoder_hidden_states) == 3
    torch.testing.assert_close(output.logits, model(images()).logits)


def test_the_first_output_is_the_loss_as_in_transformers(tiny_detector):
    model = tiny_detector()
    output = model(images(), labels=labels_of(1, 1))
    assert output[0] is output.loss
    loss, loss_dict, logits = model(images(), labels=labels_of(1, 1), return_dict=False)[:3]
    assert torch.equal(loss, output.loss)
    assert set(loss_dict) == set(output.loss_dict)
    assert torch.equal(logits, output.logits)
    assert torch.equal(model(images(), return_dict=False)[0], output.logits)


def test_the_attention_implementation_can_be_changed_later(tiny_detector, monkeypatch):
    model = tiny_detector()
    fused = model(images()).logits
    model.set_attn_implementation("eager")
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", None)
    torch.testing.assert_close(model(images()).logits, fused)


def test_masked_extra_queries_do_not_affect_the_learned_ones(tiny_detector):
    model = tiny_detector()
    allowed = torch.eye(10, dtype=torch.bool)
    allowed[:7, :7] = True
    extra = ExtraQueries(torch.randn(2, 3, 32), torch.randn(2, 3, 32), allowed)
    output = model(images(), extra_queries=extra)
    torch.testing.assert_close(output.logits, model(images()).logits)
    assert output.intermediate_hidden_states.shape == (2, 2, 10, 32)
    allowed[:] = True
    assert not torch.allclose(model(images(), extra_queries=extra).logits, output.logits)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_detector):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_detector(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0).train()
        if checkpointing:
            # renamed in transformers 5.23
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model(images(), labels=labels_of(2, 0)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_under_autocast_boxes_and_losses_are_float32(tiny_detector):
    model = tiny_detector()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(), labels=labels_of(2, 1))
    assert {output.logits.dtype, output.pred_boxes.dtype, output.loss.dtype} == {torch.float32}
    exact = model(images()).pred_boxes
    assert (output.pred_boxes - exact).abs().max() < 0.02
    # a box in bfloat16 has 8 bits; in float32 the predictions do not lie on that grid
    assert not torch.equal(output.pred_boxes, output.pred_boxes.bfloat16().float())


def test_the_model_runs_in_float64_and_bfloat16(tiny_detector):
    exact = tiny_detector().double()(images().double()).pred_boxes
    assert exact.dtype == torch.float64
    half = tiny_detector().bfloat16()(images().bfloat16()).pred_boxes
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.05


# Bad input


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [{"class_labels": torch.tensor([5]), "boxes": torch.full((1, 4), 0.5)}],
            "class label 5, but the model has 5 classes",
        ),
        ([{"class_labels": torch.tensor([-1]), "boxes": torch.full((1, 4), 0.5)}], "class label -1"),
        ([{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[10.0, 20, 30, 40]])}], "not normalised"),
        ([{"class_labels": torch.tensor([0]), "boxes": torch.full((1, 4), float("nan"))}], "NaN"),
        ([{"class_labels": torch.tensor([0, 1]), "boxes": torch.full((1, 4), 0.5)}], r"expected \(N,\) and \(N, 4\)"),
        ([{"class_labels": torch.tensor([0.0]), "boxes": torch.full((1, 4), 0.5)}], "expected integers"),
        ([{"labels": torch.tensor([0])}], "lack 'class_labels'"),
        (labels_of(1, 1), "labels: got 2 images, expected 1"),
    ],
)
def test_bad_labels_are_named(tiny_detector, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector()(images(1), labels=labels)


def test_bad_images_and_masks_are_named(tiny_detector):
    model = tiny_detector()
    empty = torch.ones(2, 64, 96)
    empty[1] = 0
    with pytest.raises(ValueError, match="image 1 of the batch is 0 at its top left pixel, so it is all padding"):
        model(images(), empty)
    with pytest.raises(ValueError, match="pixel_mask: got shape"):
        model(images(), torch.ones(2, 64, 64))
    with pytest.raises(ValueError, match="pixel_values: got shape"):
        model(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match="learned position table has 2 x 2"):
        tiny_detector(position_embedding_type="learned", learned_position_grid=2)(images())


# Saving and loading


def test_a_saved_model_loads_unchanged(tiny_detector, tmp_path):
    model = tiny_detector(id2label={0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}, pre_norm=True)
    model.save_pretrained(tmp_path)
    loaded, info = DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded(images()).logits, model(images()).logits)
    assert loaded.config.id2label[3] == "d"
    frozen = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == frozen


def test_weights_that_a_checkpoint_lacks_are_initialised(tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in ("class_labels_classifier.weight", "model.backbone.conv_encoder.model.layer4.0.conv1.weight"):
        weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = DetrForObjectDetection.from_pretrained(tmp_path)
    assert torch.isfinite(loaded(images()).logits).all()
    assert 0 < loaded.class_labels_classifier.weight.std() < 1
    assert 0 < loaded.model.backbone.conv_encoder.model.layer4[0].conv1.weight.std() < 1


def test_a_head_of_another_size_needs_ignore_mismatched_sizes(tiny_detector, tmp_path):
    tiny_detector().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        DetrForObjectDetection.from_pretrained(tmp_path, num_labels=107)
    loaded = DetrForObjectDetection.from_pretrained(tmp_path, num_labels=107, ignore_mismatched_sizes=True)
    assert loaded(images()).logits.shape == (2, 7, 108)


def test_backbone_weights_are_read_from_the_file_of_a_classifier(tiny_detector, tmp_path):
    torch.manual_seed(1)
    classifier = timm.create_model("resnet10t", channels=[8, 8, 16, 16], stem_width=8)
    for norm in classifier.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean)
            torch.nn.init.uniform_(norm.weight)
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    expected = classifier.eval().forward_features(images())
    for name in ("weights.safetensors", "weights.pth"):
        model = tiny_detector()
        before = copy.deepcopy(model.class_labels_classifier.state_dict())
        model.model.load_backbone_weights(tmp_path / name)
        torch.testing.assert_close(model.model.backbone.conv_encoder(images())[-1], expected)
        assert torch.equal(before["weight"], model.class_labels_classifier.weight)


@pytest.mark.parametrize("damage", ["prefixed", "half"])
def test_incomplete_backbone_weights_are_refused(tiny_detector, tmp_path, damage):
    """timm only logs missing weights; the backbone would stay random under frozen batch norms."""
    weights = timm.create_model("resnet10t", channels=[8, 8, 16, 16], stem_width=8).state_dict()
    if damage == "prefixed":
        weights = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    else:
        weights = {name: tensor for name, tensor in weights.items() if "layer3" not in name}
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"not weights of the backbone 'resnet10t' under timm's names; \d+ of 90 are missing"
    ):
        tiny_detector().model.load_backbone_weights(tmp_path / "weights.safetensors")


def test_backbone_weights_of_another_architecture_are_refused(tiny_detector, tmp_path):
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    with pytest.raises(ValueError, match=r"cannot load weights of the backbone 'resnet10t' .* and \d+ more lines\)"):
        tiny_detector().model.load_backbone_weights(tmp_path / "resnet18.safetensors")
    with pytest.raises(FileNotFoundError, match=r"backbone_weights: .*nothing\.safetensors: no such file; check"):
        tiny_detector().model.load_backbone_weights(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_not_weights_is_refused_without_unsafe_advice(tiny_detector, tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=rf"^backbone_weights: .*{name}: not a weights file") as error:
        tiny_detector().model.load_backbone_weights(tmp_path / name)
    assert "weights_only" not in str(error.value)


def test_backbone_weights_without_a_connection_name_the_remedy(monkeypatch):
    def fail(*arguments, **options):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(ValueError, match=r"resnet18\.a: cannot be downloaded \(no connection\); download its model"):
        load_pretrained_backbone(DetrConfig(backbone="resnet18"), "resnet18.a")


def test_our_model_type_is_not_transformers_own():
    assert DetrConfig.model_type == "modeling_detr"


def test_labels_may_be_lists(tiny_detector):
    model, pixels, labels = tiny_detector(), images(), labels_of(2, 0)
    lists = [{key: value.tolist() for key, value in label.items()} for label in labels]
    torch.testing.assert_close(model(pixels, labels=lists).loss, model(pixels, labels=labels).loss)
