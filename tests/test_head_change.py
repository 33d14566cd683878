"""Models loaded for other classes or another number of queries keep the weights that still fit."""

import logging
import math

import pytest
import torch
from transformers import AutoModelForObjectDetection

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrModel
from modeling_detr.pretrained_detr import NEW_CLASSES_SHARE, HeadChange


OLD = {0: "cat", 1: "dining table", 2: "dog", 3: "car"}
NEW = {0: "Dog", 1: "bus", 2: "diningtable", 3: "car", 4: "tram", 5: "bike"}
MOVED = {"new": [0, 2, 3], "old": [2, 1, 3]}


@pytest.fixture
def source(tiny_detector, tmp_path):
    """A saved detector with four named classes."""
    model = tiny_detector(id2label=OLD, num_labels=4)
    torch.nn.init.normal_(model.class_labels_classifier.bias)
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source", model


def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def load(folder, **changes):
    return DetrForObjectDetection.from_pretrained(folder, ignore_mismatched_sizes=True, **changes)


def test_kept_classes_keep_their_logits_and_boxes_bit_for_bit(source):
    folder, before = source
    after = load(folder, id2label=NEW)
    assert after.config.id2label == NEW
    assert after.config.label2id == {name: label for label, name in NEW.items()}
    with torch.no_grad():
        was, now = before(images()), after(images())
    assert torch.equal(now.pred_boxes, was.pred_boxes)
    assert torch.equal(now.logits[..., MOVED["new"]], was.logits[..., MOVED["old"]])
    assert torch.equal(now.logits[..., -1], was.logits[..., -1])
    assert after(images(), labels=[{"class_labels": torch.tensor([5]), "boxes": torch.full((1, 4), 0.4)}] * 2).loss > 0


def test_new_classes_start_with_a_small_share_of_the_probability_of_no_object(source):
    after = load(source[0], id2label=NEW)
    with torch.no_grad():
        probabilities = after(images()).logits.softmax(-1)
    made = probabilities[..., [1, 4, 5]]
    assert made.sum(-1) / probabilities[..., -1] == pytest.approx(torch.full((2, 7), NEW_CLASSES_SHARE), rel=1e-3)


def test_the_log_says_what_was_kept_moved_added_and_dropped(source, caplog):
    with caplog.at_level(logging.WARNING):
        _, info = DetrForObjectDetection.from_pretrained(
            source[0], id2label=NEW, ignore_mismatched_sizes=True, output_loading_info=True
        )
    for note in (
        "4 → 6 classes: 'no object' kept; 1 kept (car)",
        "2 moved (Dog 2 → 0, diningtable 1 → 2)",
        f"3 new, with logits {math.log(3 / NEW_CLASSES_SHARE):.1f} below that of 'no object' (bus, tram, bike)",
        "1 dropped (cat)",
    ):
        assert note in caplog.text
    assert info["head_change"].rows == (2, None, 1, 3, None, None)


@pytest.mark.parametrize("changes", [{"num_labels": 6}, {"id2label": NEW}, {"config": 6}])
def test_another_size_is_an_error_with_both_sizes_and_the_remedy(source, changes):
    if "config" in changes:
        changes = {"config": DetrConfig.from_pretrained(source[0], num_labels=6)}
    with pytest.raises(ValueError, match="got 4 classes, expected 6; pass ignore_mismatched_sizes=True"):
        DetrForObjectDetection.from_pretrained(source[0], **changes)
    with pytest.raises(RuntimeError, match="got 7 queries, expected 9"):  # the type that Transformers raises
        DetrForObjectDetection.from_pretrained(source[0], num_queries=9)


def test_label_mapping_moves_rows_to_other_names(source):
    folder, before = source
    after = load(folder, id2label={0: "automobile", 1: "Cat"}, label_mapping={"car": "automobile"})
    weight, expected = after.class_labels_classifier.weight, before.class_labels_classifier.weight
    assert torch.equal(weight, expected[[3, 0, 4]])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"carr": "Dog"}, "the source has no class 'carr'; did you mean 'car'"),
        ({"cat": "busses"}, "have no 'busses'; did you mean 'bus'"),
        ({"cat": "bus", "car": "bus"}, "'car: bus' uses a class twice"),
        ({"cat": "bus", "Cat": "tram"}, "'Cat: tram' uses a class twice"),
    ],
)
def test_label_mapping_with_unknown_or_repeated_names_is_an_error(source, mapping, message):
    with pytest.raises(ValueError, match=message):
        load(source[0], id2label=NEW, label_mapping=mapping)


def test_num_labels_alone_keeps_only_no_object_and_the_log_says_what_to_pass(source, caplog):
    folder, before = source
    with caplog.at_level(logging.WARNING):
        after = load(folder, num_labels=6)
    assert "pass id2label={0: 'name', …} so that" in caplog.text
    was, now = before.class_labels_classifier, after.class_labels_classifier
    assert torch.equal(now.weight, was.weight[-1].expand(7, -1))
    torch.testing.assert_close(now.bias[:-1], (was.bias[-1] - math.log(6 / NEW_CLASSES_SHARE)).expand(6))
    assert torch.equal(now.bias[-1], was.bias[-1])


def test_num_labels_and_id2label_that_disagree_are_an_error(source, tiny_config):
    with pytest.raises(ValueError, match="num_labels is 7, but id2label has 6 entries"):
        load(source[0], id2label=NEW, num_labels=7)
    with pytest.raises(ValueError, match="num_labels is 7, but id2label has 6 entries"):
        tiny_config(id2label=NEW, num_labels=7)
    with pytest.raises(ValueError, match="id2label: 2 entries, but none for label 0"):
        tiny_config(id2label={1: "a", 2: "b"}, num_labels=2)


def test_a_fresh_head_is_random_and_everything_else_is_kept(source):
    folder, before = source
    after = load(folder, id2label=NEW, head_init="fresh")
    assert after.class_labels_classifier.weight.shape == (7, 32)
    for row in after.class_labels_classifier.weight:
        assert not any(torch.equal(row, other) for other in before.class_labels_classifier.weight)
    for name, parameter in before.model.named_parameters():
        assert torch.equal(after.model.get_parameter(name), parameter), name
    with pytest.raises(ValueError, match="head_init: got 'new', expected 'by_name' or 'fresh'"):
        load(folder, id2label=NEW, head_init="new")


def test_new_queries_are_copies_of_the_old_ones_with_noise(source):
    folder, before = source
    old, new = before.model.query_position_embeddings.weight, load(folder, num_queries=17).model
    queries = new.query_position_embeddings.weight
    assert new.config.num_queries == 17
    assert torch.equal(queries[:7], old)
    difference = queries[7:] - old[torch.arange(7, 17) % 7]
    assert 0.05 * old.std() < difference.std() < 0.2 * old.std()
    assert (difference != 0).all()
    assert load(folder, num_queries=17)(images()).logits.shape == (2, 17, 5)
    fewer = load(folder, num_queries=3).model.query_position_embeddings.weight
    assert torch.equal(fewer, old[:3])


def test_a_model_without_heads_changes_its_queries_only(source):
    grown = DetrModel.from_pretrained(source[0], num_labels=9, num_queries=8, ignore_mismatched_sizes=True)
    assert grown.query_position_embeddings.weight.shape == (8, 32)


def test_a_grown_model_survives_saving_and_loading(source, tmp_path):
    after = load(source[0], id2label=NEW, num_queries=9)
    after.save_pretrained(tmp_path / "grown")
    again = DetrForObjectDetection.from_pretrained(tmp_path / "grown")
    for (name, tensor), other in zip(after.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert again.config.id2label == NEW


def test_the_auto_class_also_moves_rows(source):
    after = AutoModelForObjectDetection.from_pretrained(source[0], id2label=NEW, ignore_mismatched_sizes=True)
    assert torch.equal(after.class_labels_classifier.weight[3], source[1].class_labels_classifier.weight[3])


def test_repeated_class_names_are_matched_in_order():
    change = HeadChange.between(
        DetrConfig(id2label={0: "N/A", 1: "person", 2: "N/A"}),
        DetrConfig(id2label={0: "N/A", 1: "N/A", 2: "N/A", 3: "person"}),
    )
    assert change.rows == (0, 2, None, 1)


def test_a_source_without_class_names_keeps_its_rows_when_it_gets_names(tiny_detector, tmp_path, caplog):
    model = tiny_detector()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        named = load(tmp_path, id2label=dict(enumerate("abcde")))
    assert "no class names (LABEL_0, LABEL_1 and 3 more)" in caplog.text
    assert torch.equal(named.class_labels_classifier.weight, model.class_labels_classifier.weight)


def test_renamed_rows_that_stay_in_place_give_a_warning(source, caplog):
    swapped = {**OLD, 0: "dog", 2: "cat"}
    with caplog.at_level(logging.WARNING):
        renamed = DetrForObjectDetection.from_pretrained(source[0], id2label=swapped)
    assert "in another order (dog, cat), but their rows move only with" in caplog.text
    assert torch.equal(renamed.class_labels_classifier.weight, source[1].class_labels_classifier.weight)
    moved = load(source[0], id2label=swapped).class_labels_classifier.weight
    assert torch.equal(moved[0], renamed.class_labels_classifier.weight[2])


def test_an_unknown_key_is_an_error(source):
    with pytest.raises(ValueError, match="unknown key 'num_querys'; did you mean 'num_queries'"):
        DetrForObjectDetection.from_pretrained(source[0], num_querys=3)


def test_rows_cannot_move_if_the_checkpoint_does_not_match_its_config(source):
    folder, _ = source
    config = DetrConfig.from_pretrained(folder, id2label={**OLD, 4: "hen"})
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"class_labels_classifier\.\w+ is missing or has another size than its own"):
        load(folder, id2label=NEW)
