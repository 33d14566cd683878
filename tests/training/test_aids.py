import pytest
import torch
from launched_runs import logged

from modeling_detr.modeling_detr import ExtraQueries
from modeling_detr.training.aids import AIDS, Aid, AidedBatch, TrainingAid, active_aids, build_training_model
from modeling_detr.training.aids.anchored_matching import AnchoredMatching
from modeling_detr.training.aids.denoising import Denoising
from modeling_detr.training.aids.encoder_supervision import EncoderSupervision, token_centres
from modeling_detr.training.aids.local_start import query_points, start_local
from modeling_detr.training.aids.training_model import join_queries
from modeling_detr.training.plan import plan
from modeling_detr.training.recipe import PLUGIN_KEYS, recipe_class
from modeling_detr.training.recipe_keys import Resume, key
from modeling_detr.training.trainer import Trainer


BOTH = {"encoder_supervision": True, "denoising_groups": 3}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def labels_of(*counts):
    torch.manual_seed(1)
    return [{"class_labels": torch.arange(count) % 5, "boxes": 0.3 + 0.2 * torch.rand(count, 4)} for count in counts]


def images(batch):
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_a_token_belongs_to_the_nearest_box_whose_centre_it_is_close_to():
    mask = torch.ones(1, 1, 10, dtype=torch.bool)  # centres at .05, .15, … .95
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.2, 1.0]])
    labels = [{"class_labels": torch.tensor([0, 1]), "boxes": boxes}]
    owners = EncoderSupervision(0.1).owners(token_centres(mask, None), mask.flatten(1), labels)
    # within .4 half-sides: .15 to .35 of the first box; .71 to .79 of the second holds one centre
    assert owners.tolist() == [[-1, 0, 0, 0, -1, -1, -1, 1, -1, -1]]


def test_each_box_has_a_token_even_if_it_is_tiny():
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.49, 0.49, 0.01, 0.01]])}]
    owners = EncoderSupervision(0.1).owners(token_centres(mask, None), mask.flatten(1), labels)
    assert owners.view(4, 4)[1, 1] == 0
    assert (owners >= 0).sum() == 1


def test_padding_has_no_tokens_and_centres_are_relative_to_the_unpadded_image():
    pixel_mask = torch.ones(1, 8, 16)
    pixel_mask[:, :, 8:] = 0
    feature_mask = torch.tensor([[[True, True, False, False]] * 2])
    centres = token_centres(feature_mask, pixel_mask)[0].view(2, 4, 2)
    assert centres[0, :2].tolist() == [[0.25, 0.25], [0.75, 0.25]]
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.9, 0.5, 0.1, 0.1]])}]
    owners = EncoderSupervision(0.1).owners(centres.view(1, 8, 2), feature_mask.flatten(1), labels)
    assert owners.view(2, 4)[:, 2:].tolist() == [[-1, -1], [-1, -1]]
    assert (owners >= 0).sum() == 1


def test_denoising_queries_attend_to_their_group_only_and_are_not_attended_to():
    allowed = (
        Denoising(5, 32, num_groups=2, temperature=20).extra_queries(labels_of(2, 1), num_queries=3).attention_mask
    )
    assert allowed.shape == (2, 7, 7)
    first = allowed[0].long().tolist()
    assert first[0] == [1, 1, 1, 0, 0, 0, 0]
    assert first[3] == [1, 1, 1, 1, 1, 0, 0]
    assert first[6] == [1, 1, 1, 0, 0, 1, 1]
    second = allowed[1].long().tolist()  # one box: the second query of each group is filling
    assert second[3] == [1, 1, 1, 1, 0, 0, 0]
    assert second[4] == [1, 1, 1, 1, 1, 0, 0]


def test_without_noise_denoising_queries_hold_the_targets():
    denoising = Denoising(5, 32, 1, 20, label_noise=0, centre_noise=0, size_noise=0)
    labels = labels_of(3)
    assert torch.equal(denoising.add_noise(labels[0]["boxes"], torch.rand(3, 4)), labels[0]["boxes"])
    extra = denoising.extra_queries(labels, 4)
    assert torch.equal(extra.content[0], denoising.label_embedding(labels[0]["class_labels"]))


def test_noise_stays_within_its_bounds():
    denoising = Denoising(5, 32, 1, 20, centre_noise=0.4, size_noise=0.4)
    boxes = torch.full((1, 1000, 4), 0.4)
    noisy = denoising.add_noise(boxes, torch.rand_like(boxes))
    assert (noisy[..., :2] - 0.4).abs().max() <= 0.16 + 1e-6
    assert 0.24 - 1e-6 <= noisy[..., 2:].min() < 0.26
    assert 0.54 < noisy[..., 2:].max() <= 0.56 + 1e-6


def test_the_noise_of_an_image_depends_on_its_seed_and_not_on_its_batch():
    denoising = Denoising(5, 32, num_groups=2, temperature=20)
    first, second = ({**label, "noise_seed": seed} for label, seed in zip(labels_of(3, 1), (7, 8), strict=True))
    together = denoising.extra_queries([first, second], 4).positions
    alone = denoising.extra_queries([second], 4).positions  # one query a group, where beside the other there are three
    assert torch.equal(together[1, [0, 3]], alone[0])
    assert torch.equal(denoising.extra_queries([first], 4).positions[0], together[0])
    assert not torch.equal(denoising.extra_queries([{**first, "noise_seed": 6}], 4).positions[0], together[0])
    assert not torch.equal(together[0, :3], together[0, 3:])  # each group has its own


def seeded_labels(*counts):
    return [{**label, "noise_seed": seed} for seed, label in enumerate(labels_of(*counts))]


def denoising_losses(denoising, detector, labels, num_boxes):
    """Return the losses of queries that stay as they are added, without the decoder."""
    states = denoising.extra_queries(labels, 4).positions.detach()[None]
    return denoising.losses(AidedBatch(detector, None, None, labels, num_boxes, states))


def test_an_image_of_many_objects_has_fewer_denoising_groups():
    denoising = Denoising(5, 32, num_groups=3, temperature=20, max_queries=12)
    few, some, many = seeded_labels(2, 5, 40)
    assert denoising.extra_queries([few], 4).content.shape[1] == 6  # three groups
    assert denoising.extra_queries([some], 4).content.shape[1] == 10  # two
    assert denoising.extra_queries([many], 4).content.shape[1] == 12  # one, of 12 objects
    together = denoising.extra_queries([few, some, many], 4)
    assert together.content.shape[1] == 12
    for image, (label, size) in enumerate([(few, 6), (some, 10), (many, 12)]):  # beside others an image has the same
        alone = denoising.extra_queries([label], 4)
        assert torch.equal(together.positions[image, :size], alone.positions[0])
        assert torch.equal(together.content[image, :size], alone.content[0])
        mask = together.attention_mask[image, 4 : 4 + size]
        assert torch.equal(mask[:, : 4 + size], alone.attention_mask[0, 4:])
        assert not mask[:, 4 + size :].any()


def test_each_step_denoises_other_objects_of_an_image_with_too_many():
    denoising = Denoising(5, 32, 3, 20, label_noise=0, centre_noise=0, size_noise=0, max_queries=12)
    first, again, other = (denoising.extra_queries([{**labels_of(40)[0], "noise_seed": s}], 4) for s in (1, 1, 2))
    assert torch.equal(first.positions, again.positions)
    assert not torch.equal(first.positions, other.positions)


def test_the_losses_of_denoised_images_add_up_however_many_objects_they_have(tiny_detector):
    detector = tiny_detector()
    denoising = Denoising(5, detector.config.d_model, 3, 20, max_queries=12)
    labels = seeded_labels(2, 0, 5, 40)
    together = denoising_losses(denoising, detector, labels, 47)
    apart = [denoising_losses(denoising, detector, [label], 47) for label in labels if len(label["boxes"])]
    for name, value in together.items():
        torch.testing.assert_close(value, sum(losses[name] for losses in apart))
    unlimited = Denoising(5, detector.config.d_model, 3, 20)
    unlimited.load_state_dict(denoising.state_dict())
    for name, value in denoising_losses(unlimited, detector, labels, 47).items():
        torch.testing.assert_close(together[name], value, rtol=0.25, atol=0)  # a sample of the same mean


def test_thousands_of_objects_in_an_image_do_not_fill_the_memory(tiny_detector):
    extra = (
        build_training_model(tiny_detector(), denoising_groups=3).aids["denoising"].extra_queries(labels_of(5000), 9)
    )
    assert extra.attention_mask.numel() <= 400**2


def test_aids_do_not_change_what_the_detector_predicts(tiny_detector):
    detector = tiny_detector(**NO_DROPOUT)
    labels = labels_of(3, 1)
    plain = detector(images(2), labels=labels)
    aided = build_training_model(detector, **BOTH).train()(images(2), labels=labels)
    torch.testing.assert_close(aided.logits, plain.logits)
    torch.testing.assert_close(aided.pred_boxes, plain.pred_boxes)
    assert aided.loss > plain.loss
    aids = {"loss_ce", "loss_bbox", "loss_giou"}
    assert set(aided.loss_dict) - set(plain.loss_dict) == {f"{a}_{b}" for a in aids for b in ("encoder", "denoising")}
    for name, value in plain.loss_dict.items():
        torch.testing.assert_close(aided.loss_dict[name], value)


def test_in_evaluation_and_without_aids_the_model_is_the_detector(tiny_detector):
    detector = tiny_detector(**NO_DROPOUT)
    labels = labels_of(3, 1)
    in_evaluation = build_training_model(detector, **BOTH).eval()(images(2), labels=labels).loss
    assert torch.equal(in_evaluation, detector.eval()(images(2), labels=labels).loss)
    without_aids = build_training_model(detector).train()(images(2), labels=labels).loss
    assert torch.equal(without_aids, detector.train()(images(2), labels=labels).loss)


@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
def test_every_parameter_gets_a_gradient_in_every_batch(tiny_detector, counts):
    """Distributed training hangs or fails if a parameter has a gradient on one process and none on another."""
    model = build_training_model(tiny_detector(freeze_batch_norm=False, freeze_backbone_stem=False), **BOTH).train()
    model(images(2), labels=labels_of(*counts)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_encoders_loss_does_not_depend_on_how_a_step_is_split(tiny_detector):
    detector = tiny_detector(**NO_DROPOUT).double()
    model = build_training_model(detector, encoder_supervision=True).train()
    labels, pixel_values = labels_of(3, 1, 0, 2), images(4).double()
    normalisers = {"num_boxes": 6.0, "class_weight_sum": detector.criterion.class_weight_sum([3, 1, 0, 2], 7)}
    whole = model(pixel_values, labels=labels, **normalisers).loss
    parts = sum(
        model(pixel_values[part], labels=labels[part], **normalisers).loss for part in (slice(0, 2), slice(2, 4))
    )
    torch.testing.assert_close(parts, whole)


def test_exported_weights_contain_nothing_of_the_aids(tiny_detector):
    detector = tiny_detector()
    before = set(detector.state_dict())
    assert set(build_training_model(detector, **BOTH).detector.state_dict()) == before


def test_with_a_local_start_every_query_attends_to_its_own_region(tiny_detector, monkeypatch):
    points = torch.tensor([[0.2, 0.2], [0.8, 0.3], [0.5, 0.9]])
    monkeypatch.setattr("torch.quasirandom.SobolEngine.draw", lambda self, count: points[:count])
    detector = tiny_detector(
        position_temperature=20, num_queries=3, d_model=64, encoder_attention_heads=1, decoder_attention_heads=1
    )
    start_local(detector)
    pixel_values = torch.zeros(1, 3, 320, 320)  # 10 x 10 tokens that hardly differ but in their position
    attention = detector(pixel_values, output_attentions=True).cross_attentions[0][0, 0].view(3, 10, 10)
    for weights, (x, y) in zip(attention, points.tolist(), strict=True):
        row, column = divmod(int(weights.argmax()), 10)
        assert abs((row + 1) / 10 - y) <= 0.15
        assert abs((column + 1) / 10 - x) <= 0.15


def test_with_a_local_start_the_cross_attention_passes_on_what_it_reads(tiny_detector):
    detector = tiny_detector()
    start_local(detector)
    for layer in detector.model.decoder.layers:
        attention = layer.encoder_attn
        torch.testing.assert_close(
            attention.out_proj.weight @ attention.v_proj.weight, torch.eye(32), atol=1e-5, rtol=0
        )


def test_anchored_matching_assigns_the_query_that_starts_nearest_to_the_object(tiny_detector):
    detector = tiny_detector(num_queries=50)
    matcher = AnchoredMatching(50, 10.0).matcher(detector.criterion.matcher)
    centres = torch.tensor([[0.2, 0.3], [0.7, 0.6]])
    labels = [{"class_labels": torch.tensor([0, 1]), "boxes": torch.cat([centres, torch.full((2, 2), 0.2)], dim=1)}]
    boxes = torch.tensor([0.45, 0.45, 0.5, 0.5]).expand(1, 50, 4)  # all queries predict the same
    (assignment,) = matcher(torch.zeros(1, 50, 6), boxes, labels)
    nearest = torch.cdist(centres, query_points(50), p=1).argmin(1)
    assert dict(zip(assignment.targets.tolist(), assignment.queries.tolist(), strict=True)) == dict(
        enumerate(nearest.tolist())
    )


def test_anchored_matching_is_for_training_only(tiny_detector):
    detector = tiny_detector()
    start_local(detector)
    model = build_training_model(detector, anchored_matching=50.0)
    plain, inputs = type(detector.criterion.matcher), (images(2), None, labels_of(3, 2))
    with torch.no_grad():
        alone = {name: detector.train()(*inputs).loss_dict[name] for name in ("loss_ce", "loss_bbox")}
        assert model.eval()(*inputs).loss == detector.eval()(*inputs).loss
        trained = model.train()(*inputs).loss_dict
    assert trained["loss_bbox"] > alone["loss_bbox"]  # of all assignments, the plain one has the lowest costs
    assert trained.keys() == detector(*inputs).loss_dict.keys()
    assert type(detector.criterion.matcher) is plain


def test_a_local_start_needs_sine_positions(tiny_detector):
    with pytest.raises(ValueError, match="local_start: got position_embedding_type 'learned', expected 'sine'"):
        start_local(tiny_detector(position_embedding_type="learned"))


class ClassCount(TrainingAid):
    """Adds one query and a loss term."""

    suffix = "count"

    def __init__(self, width, weight):
        super().__init__()
        self.content = torch.nn.Parameter(torch.ones(width))
        self.weight = weight

    def extra_queries(self, labels, num_queries):
        content = self.content.expand(len(labels), 1, -1)
        mask = torch.ones(len(labels), num_queries + 1, num_queries + 1, dtype=torch.bool)
        mask[:, :num_queries, num_queries:] = False
        return ExtraQueries(content, content, mask)

    def losses(self, batch):
        logits, _ = batch.detector.predict(batch.extra_states)  # (L, B, 1, C + 1)
        counts = torch.tensor([len(label["class_labels"]) for label in batch.labels])
        return {"loss_count": (logits.sum(-1)[-1, :, 0] - counts).square().sum() / batch.num_boxes}

    def loss_weights(self, set_loss_weights):
        return {"loss_count": self.weight}


@pytest.fixture
def counting(monkeypatch):
    """The tables with an aid and its key, as a plug-in adds them."""
    declaration = float, key(0.0, "Weight of the number of objects.", at_least=0, resume=Resume.MODEL)
    monkeypatch.setitem(PLUGIN_KEYS, "count_weight", declaration)
    aid = Aid(key="count_weight", supervise=lambda config, weight: ClassCount(config.d_model, weight))
    monkeypatch.setitem(AIDS, "counting", aid)


@pytest.mark.usefixtures("counting")
def test_an_aid_added_to_the_table_trains_beside_the_others(tiny_detector):
    detector = tiny_detector(**NO_DROPOUT)
    settings = active_aids(recipe_class()(count_weight=0.5, denoising_groups=2))
    assert settings == {"count_weight": 0.5, "denoising_groups": 2}
    model, labels = build_training_model(detector, **settings).train(), labels_of(3, 1)
    output, alone = model(images(2), labels=labels), build_training_model(detector, denoising_groups=2)
    torch.testing.assert_close(output.logits, detector(images(2), labels=labels).logits)
    alone.load_state_dict({name: value for name, value in model.state_dict().items() if "counting" not in name})
    first, second = ({**label, "noise_seed": seed} for label, seed in zip(labels, (7, 8), strict=True))
    with_both, without = (one.train()(images(2), labels=[first, second]) for one in (model, alone))
    for name, value in without.loss_dict.items():
        torch.testing.assert_close(with_both.loss_dict[name], value)
    torch.testing.assert_close(with_both.loss, without.loss + 0.5 * with_both.loss_dict["loss_count"])
    with_both.loss.backward()
    assert model.counting.content.grad.any()
    assert model(images(2), labels=labels_of(0, 0)).loss_dict["loss_count"] == 0


@pytest.mark.usefixtures("counting")
def test_a_run_trains_with_an_aid_added_to_the_table(tiny_recipe):
    recipe = recipe_class()(**{**vars(tiny_recipe(max_steps=2)), "count_weight": 0.1})
    trainer = Trainer.from_recipe(recipe)
    assert " aids " in plan(trainer.run)
    trainer.train()
    (entry,) = [entry for entry in logged(recipe.run_dir) if entry["kind"] == "epoch"]
    assert entry["loss_count"] > 0


def test_extra_queries_of_several_aids_do_not_attend_to_each_other():
    def queries(count):
        mask = torch.ones(1, 2 + count, 2 + count, dtype=torch.bool)
        mask[:, :2, 2:] = False
        return ExtraQueries(torch.zeros(1, count, 4), torch.zeros(1, count, 4), mask)

    joined = join_queries([queries(1), queries(2)], num_queries=2)
    assert joined.content.shape == (1, 3, 4)
    assert joined.attention_mask[0].long().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 1],
        [1, 1, 0, 1, 1],
    ]


def test_a_key_of_no_aid_is_an_error(tiny_detector):
    with pytest.raises(ValueError, match="denoising_group: not the key of a training aid; did you mean 'denoising_gr"):
        build_training_model(tiny_detector(), denoising_group=3)


def taught(labels, scores, of=None):
    """The same labels with a teacher that predicts their boxes, or those of `of`, with these scores."""
    return [
        {**label, "teacher_labels": one["class_labels"], "teacher_boxes": one["boxes"], "teacher_scores": score}
        for label, one, score in zip(labels, of or labels, scores, strict=True)
    ]


TERMS = ("loss_ce", "loss_bbox", "loss_giou")


def test_a_certain_teacher_that_repeats_the_annotations_has_the_loss_of_the_annotations(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT), teacher="predictions.json", teacher_weight=0.5).train()
    labels = taught(labels_of(3, 1), [torch.ones(3), torch.ones(1)])
    output, alone = model(images(2), labels=labels), model.detector(images(2), labels=labels)
    torch.testing.assert_close(output.loss, 1.5 * alone.loss)
    for term in TERMS:
        layers = [value for name, value in alone.loss_dict.items() if name == term or name.startswith(f"{term}_")]
        assert len(layers) == 2
        torch.testing.assert_close(output.loss_dict[f"{term}_teacher"], sum(layers))


def test_the_scores_of_a_teacher_weight_its_boxes(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT), teacher="predictions.json").train()
    labels, counts = labels_of(3, 1), (3, 1)

    def terms(value):
        scores = [torch.full((count,), value) for count in counts]
        return model(images(2), labels=taught(labels, scores)).loss_dict

    full, half, tiny = terms(1.0), terms(0.5), terms(1e-6)
    torch.testing.assert_close(half["loss_bbox_teacher"], 0.5 * full["loss_bbox_teacher"])
    torch.testing.assert_close(half["loss_giou_teacher"], 0.5 * full["loss_giou_teacher"])
    torch.testing.assert_close(
        full["loss_ce_teacher"] - half["loss_ce_teacher"], half["loss_ce_teacher"] - tiny["loss_ce_teacher"]
    )


def test_images_without_annotations_learn_from_the_teacher(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT), teacher="predictions.json", **BOTH).train()
    scores = [torch.ones(2), torch.ones(0)]
    output = model(images(2), labels=taught(labels_of(0, 0), scores, of=labels_of(2, 0)))
    assert output.loss_dict["loss_bbox_teacher"] > 0
    assert output.loss_dict["loss_bbox_denoising"] == output.loss_dict["loss_bbox_encoder"] == 0
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.denoising.parameters())


def test_without_boxes_of_the_teacher_the_loss_is_that_of_the_annotations(tiny_detector):
    model = build_training_model(tiny_detector(**NO_DROPOUT), teacher="predictions.json").train()
    labels = labels_of(3, 1)
    alone = model.detector(images(2), labels=labels).loss
    for empty in (labels, taught(labels, [torch.ones(0)] * 2, of=labels_of(0, 0))):
        output = model(images(2), labels=empty)
        assert torch.equal(output.loss, alone)
        assert all(output.loss_dict[f"{term}_teacher"] == 0 for term in TERMS)


def test_more_boxes_of_a_teacher_than_queries_are_assigned_as_far_as_they_go(tiny_detector):
    model = build_training_model(tiny_detector(), teacher="predictions.json").train()
    output = model(images(1), labels=taught(labels_of(1), [torch.ones(20)], of=labels_of(20)))
    assert output.loss.isfinite()


def test_a_teacher_adds_no_weights(tiny_detector):
    model = build_training_model(tiny_detector(), teacher="predictions.json")
    assert {name.removeprefix("detector.") for name in model.state_dict()} == {*model.detector.state_dict()}
