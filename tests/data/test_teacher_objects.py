import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from modeling_detr.data import DetectionDataset, SampleKey, open_dataset
from modeling_detr.data.augmentation.geometry import crop, horizontal_flip, resize
from modeling_detr.data.augmentation.transforms import train_transform
from modeling_detr.data.batch import DetrCollator
from modeling_detr.structures_detr import AnnotationTable


@pytest.fixture(scope="module")
def index():
    return open_dataset("shapes?size=64&train=6&val=1", "train")


@pytest.fixture(scope="module")
def masked_index():
    return open_dataset("shapes?size=64&train=6&val=1", "train", task="instance")


def teacher_of(index, images):
    """A teacher that predicts exactly the annotated boxes of some images, with other labels."""
    table = index.annotations.take(np.isin(index.annotations.image_index, images))
    scores = np.linspace(0.4, 0.9, len(table))
    labels = (table.label + 1) % len(index.categories)
    return AnnotationTable(
        table.image_index, labels, table.boxes_xyxy, table.area, table.is_crowd, None, {"score": scores}
    )


def labels_of(dataset, *keys):
    return DetrCollator(len(dataset.index.categories))([dataset[key] for key in keys])["labels"]


@pytest.mark.parametrize("policy", ["light", "original", "none"])
def test_a_teachers_boxes_move_with_the_annotated_ones(index, policy):
    dataset = DetectionDataset(index, train_transform(policy, scales=[48]), 3, teacher=teacher_of(index, range(6)))
    plain = DetectionDataset(index, train_transform(policy, scales=[48]), 3)
    keys = [SampleKey(image, epoch) for image in range(6) for epoch in range(4)]
    for label, expected in zip(labels_of(dataset, *keys), labels_of(plain, *keys), strict=True):
        for name, value in expected.items():
            assert torch.equal(label[name], value), name
        assert torch.equal(label["teacher_boxes"], label["boxes"])
        assert torch.equal(label["teacher_labels"], (label["class_labels"] + 1) % 4)
        assert len(label["teacher_scores"]) == len(label["boxes"])


def test_an_image_without_predictions_has_empty_ones(index):
    with_some, without = labels_of(DetectionDataset(index, None, teacher=teacher_of(index, [1])), 1, 2)
    assert len(with_some["teacher_boxes"]) > 0
    assert without["teacher_boxes"].shape == (0, 4)
    assert without["teacher_labels"].dtype == torch.int64
    assert len(without["boxes"]) > 0


def test_masks_are_those_of_the_annotated_objects(masked_index):
    teacher = teacher_of(masked_index, range(6))
    transform = train_transform("light", scales=[48])
    (label,) = labels_of(DetectionDataset(masked_index, transform, masks=True, teacher=teacher), 0)
    (plain,) = labels_of(DetectionDataset(masked_index, transform, masks=True), 0)
    assert torch.equal(label["masks"], plain["masks"])
    assert len(label["teacher_boxes"]) == len(label["boxes"])


def test_geometry_keeps_scores_beside_their_boxes(index):
    sample = DetectionDataset(index, None, teacher=teacher_of(index, [0]))[0]
    count = len(sample["target"]["boxes"])
    for changed in (horizontal_flip(sample), resize(sample, 32, 32), crop(sample, 0, 0, 40, 40)):
        assert len(changed["target"]["teacher_scores"]) == len(changed["target"]["boxes"]) <= count


def test_a_transform_that_loses_the_scores_is_an_error_with_the_remedy(index):
    def careless(sample):
        target = {name: value for name, value in sample["target"].items() if name != "teacher_scores"}
        return {**sample, "target": target}

    def drops_half(sample):
        target = sample["target"]
        half = {name: target[name][::2] for name in ("boxes", "class_labels", "area")}
        return {**sample, "target": {**target, **half}}

    for transform in (careless, drops_half):
        with pytest.raises(ValueError, match="teacher_scores, expected one for each; if it drops boxes, drop"):
            DetectionDataset(index, transform, teacher=teacher_of(index, [0]))[0]
        assert DetectionDataset(index, transform)[0]


def test_a_transform_of_torchvision_keeps_them(index):
    def rows(sample):
        target = sample["target"]
        return target["class_labels"], target["area"], target["teacher_scores"]

    transform = v2.Compose([v2.RandomCrop(32), v2.SanitizeBoundingBoxes(labels_getter=rows)])
    dataset = DetectionDataset(index, transform, teacher=teacher_of(index, range(6)))
    for label in labels_of(dataset, *range(6)):
        assert torch.equal(label["teacher_boxes"], label["boxes"])


def test_images_with_a_predicted_class_that_must_not_be_mirrored_are_not(index):
    transform = train_transform("light", scales=[48], flip_probability=1.0)
    teacher = teacher_of(index, [0])
    name = index.categories[int(teacher.label[0])].name
    without_class = index.annotations.label[index.annotation_rows(0)] != teacher.label[0]
    plain = DetectionDataset(index, transform, no_flip_classes=[name])
    dataset = DetectionDataset(index, transform, no_flip_classes=[name], teacher=teacher)
    assert not dataset.plan(SampleKey(0)).flip
    assert plain.plan(SampleKey(0)).flip == without_class.all()
