import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from modeling_detr.data import (
    DetectionDataset,
    DetrCollator,
    open_dataset,
    read_coco,
    read_panoptic,
    read_panoptic_predictions,
)
from modeling_detr.data.augmentation.geometry import crop, horizontal_flip, resize
from modeling_detr.data.masks import read_segment_ids


SIZE = (20, 30)
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]


def instances(tmp_path: Path, segmentations: list, crowd: tuple[int, ...] = ()) -> Path:
    """Write a COCO file with one image and one annotation for each segmentation."""
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": row, "image_id": 5, "category_id": 3, "bbox": [2, 3, 6, 6], "iscrowd": int(row in crowd)}
            | ({} if segmentation is None else {"segmentation": segmentation})
            for row, segmentation in enumerate(segmentations)
        ],
    }
    (tmp_path / "annotations").mkdir(exist_ok=True)
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(json.dumps(content))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    return file


def panoptic(tmp_path: Path) -> Path:
    """Write a COCO panoptic dataset of one image: a cat, a crowd of cats, sky, and void pixels."""
    segments = np.zeros(SIZE, np.int32)
    segments[:10] = 70_000  # sky
    segments[4:12, 5:15] = 300  # cat
    segments[15:, 20:] = 7  # crowd
    infos = []
    for identifier, category, is_crowd in ((300, 17, 0), (70_000, 187, 0), (7, 17, 1)):
        rows, columns = np.nonzero(segments == identifier)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        infos.append(
            {
                "id": identifier,
                "category_id": category,
                "iscrowd": is_crowd,
                "area": len(rows),
                "bbox": [int(number) for number in box],
            }
        )
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [
            {"id": 17, "name": "cat", "isthing": 1},
            {"id": 187, "name": "sky", "isthing": 0},
        ],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": infos}],
    }
    folder = tmp_path / "annotations" / "panoptic_val"
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "a.png")
    (tmp_path / "val").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "val" / "a.jpg")
    return tmp_path


def test_polygons_and_both_kinds_of_rle_give_the_same_mask(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 2:8] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    compressed["counts"] = compressed["counts"].decode()
    changes = np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2))
    plain = {"size": list(SIZE), "counts": np.diff(changes, prepend=0).tolist()}
    index = read_coco(instances(tmp_path, [[SQUARE], compressed, plain]), masks=True)

    masks = index.read_masks(0)

    assert masks.shape == (3, *SIZE)
    assert (masks == mask.astype(bool)).all()


def test_several_polygons_form_one_mask(tmp_path):
    other = [20.0, 10.0, 25.0, 10.0, 25.0, 15.0, 20.0, 15.0]
    (mask,) = read_coco(instances(tmp_path, [[SQUARE, other]]), masks=True).read_masks(0)

    assert mask.sum() == 36 + 25


def test_masks_are_not_kept_for_detection(tmp_path):
    index = read_coco(instances(tmp_path, [[SQUARE]]))

    assert index.annotations.masks is None
    with pytest.raises(ValueError, match="has no masks; open it"):
        DetectionDataset(index, masks=True)


def test_annotations_without_segmentation_are_dropped_from_masks(tmp_path):
    index = read_coco(instances(tmp_path, [[], [SQUARE], None, [[1, 2, 3, 4]]]), masks=True)

    assert index.read_masks(0).shape[0] == len(index.annotations) == 1
    assert "3 annotations have no segmentation and are left out" in index.notes[0]


def test_an_rle_with_a_wrong_size_is_an_error_that_names_the_annotation(tmp_path):
    wrong = {"size": [10, 10], "counts": [100]}
    with pytest.raises(ValueError, match=r"annotation 0 of image 5: unreadable segmentation \(size 10x10"):
        read_coco(instances(tmp_path, [wrong]), masks=True)


def test_a_file_without_any_segmentation_has_no_masks(tmp_path):
    with pytest.raises(ValueError, match="no segmentation, like all other annotations"):
        read_coco(instances(tmp_path, [None, None]), masks=True)


def test_masks_of_several_files_stay_with_their_images(tmp_path):
    file = instances(tmp_path, [[SQUARE]])
    other = [20.0, 10.0, 25.0, 10.0, 25.0, 15.0, 20.0, 15.0]
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [other]
    file.with_name("instances_val.json").write_text(json.dumps(content))
    index = pickle.loads(pickle.dumps(open_dataset(tmp_path, task="instance")))  # as workers get it that are spawned

    assert [index.read_masks(position).sum() for position in (0, 1)] == [36, 25]
    assert index.split("val").read_masks(0).sum() == 25
    assert index.split("train+val").read_masks(1).sum() == 25


def test_rows_keep_their_masks_when_images_are_selected():
    index = open_dataset("shapes?size=32&train=3&val=2", task="instance")
    second = index.split("val").select([1])

    assert (second.read_masks(0) == index.read_masks(4)).all()


def test_panoptic_segments_become_objects_with_masks(tmp_path):
    index = read_panoptic(panoptic(tmp_path))

    assert [(category.id, category.is_thing) for category in index.categories] == [(17, True), (187, False)]
    assert index.annotations.is_crowd.tolist() == [False, False, True]
    masks = index.read_masks(0)
    assert masks.sum((1, 2)).tolist() == index.annotations.area.tolist() == [80, 240, 50]
    assert not masks[:, 14, 0].any()  # void
    inclusive = masks_to_boxes(torch.from_numpy(masks)).numpy()  # where the last pixel begins
    assert (index.annotations.boxes_xyxy == inclusive + np.array([0, 0, 1, 1])).all()


def test_boxes_of_panoptic_segments_are_measured_if_missing(tmp_path, edit):
    root = panoptic(tmp_path)
    expected = read_panoptic(root).annotations
    file = root / "annotations" / "panoptic_val.json"
    content = json.loads(file.read_text())
    first, *others = content["annotations"][0]["segments_info"]
    first["bbox"] = [0, 0, 0, 0]
    for info in others:
        del info["bbox"], info["area"]
    file.write_text(json.dumps(content))
    found = read_panoptic(root).annotations

    assert (found.boxes_xyxy == expected.boxes_xyxy).all()
    assert (found.area == expected.area).all()


def test_a_grey_panoptic_image_has_its_grey_levels_as_segment_ids(tmp_path):
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((2, 3), 3000, np.uint16)).save(tmp_path / "deep.png")

    assert (read_segment_ids(str(tmp_path / "grey.png")) == 7).all()
    assert (read_segment_ids(str(tmp_path / "deep.png")) == 3000).all()


def test_a_missing_panoptic_image_is_named(tmp_path):
    root = panoptic(tmp_path)
    (root / "annotations" / "panoptic_val" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"the panoptic image 'a.png' is missing; put it into .*panoptic_val"):
        read_panoptic(root)
    (root / "annotations" / "panoptic_val.zip").touch()  # COCO's archive holds archives
    with pytest.raises(FileNotFoundError, match=r"is missing; unpack .*panoptic_val\.zip"):
        read_panoptic(root)


def test_the_task_chooses_between_instances_and_panoptic(tmp_path):
    root = panoptic(tmp_path)
    assert open_dataset(root).categories[1].name == "sky"  # nothing but panoptic: boxes of its segments
    instances(tmp_path, [[SQUARE]])

    assert len(open_dataset(root).categories) == 1
    assert open_dataset(root).annotations.masks is None
    assert open_dataset(root, task="instance").read_masks(0).shape == (1, *SIZE)
    assert open_dataset(root, task="panoptic").read_masks(0).shape == (3, *SIZE)
    assert len(open_dataset(root, format="coco_panoptic").categories) == 2


def test_instances_of_a_panoptic_dataset_are_its_thing_classes(tmp_path):
    index = open_dataset(panoptic(tmp_path), task="instance")

    assert [category.name for category in index.categories] == ["cat"]
    assert index.annotations.label.tolist() == [0, 0]
    assert index.read_masks(0).sum((1, 2)).tolist() == [80, 50]
    shapes = open_dataset("shapes?size=32&train=2&val=0&panoptic=true", task="instance")
    assert [category.name for category in shapes.categories] == ["circle", "square", "triangle", "star"]


def test_a_format_without_masks_is_refused_for_a_task_that_needs_them(voc_folder, coco_folder):
    with pytest.raises(ValueError, match="format 'voc' has no masks, which task 'instance' needs"):
        open_dataset(voc_folder, task="instance")
    with pytest.raises(ValueError, match="'coco' has no panoptic segments, which task 'panoptic' needs"):
        open_dataset(coco_folder, task="panoptic")


def test_shapes_and_ground_cover_every_pixel_once():
    index = open_dataset("shapes?size=64&train=8&val=0", task="panoptic")

    assert [category.is_thing for category in index.categories] == [True] * 4 + [False]
    for position in range(len(index)):
        masks = index.read_masks(position)
        assert (masks.sum(0) == 1).all()
        assert masks.any((1, 2)).all()
    alike = open_dataset("shapes?size=64&train=8&val=0&panoptic=true")
    assert alike.categories == index.categories
    assert alike.images == index.images


def test_a_sample_has_masks_of_its_objects_and_no_crowd(tmp_path):
    sample = DetectionDataset(read_panoptic(panoptic(tmp_path)), masks=True)[0]
    target = sample["target"]

    assert target["masks"].dtype == torch.bool
    assert target["masks"].shape == (2, *SIZE)
    assert target["class_labels"].tolist() == [0, 1]


def test_boxes_and_masks_are_transformed_together(tmp_path):
    sample = DetectionDataset(read_panoptic(panoptic(tmp_path)), masks=True)[0]
    changed = resize(horizontal_flip(crop(sample, 2, 3, 16, 20)), 32, 60)

    masks = changed["target"]["masks"]
    assert masks.shape == (2, 32, 60)
    inclusive = masks_to_boxes(masks)
    assert torch.equal(inclusive + torch.tensor([0, 0, 1, 1]), changed["target"]["boxes"].as_subclass(torch.Tensor))


def test_a_crop_drops_all_fields_of_an_object_together(tmp_path):
    sample = DetectionDataset(read_panoptic(panoptic(tmp_path)), masks=True)[0]
    target = crop(sample, 0, 20, 8, 10)["target"]

    assert target["class_labels"].tolist() == [1]
    assert target["area"].tolist() == [80]
    assert target["masks"].shape == (1, 8, 10)
    assert target["masks"].all()


@pytest.mark.parametrize("size", [(7, 45), (20, 61), (33, 17)])
def test_masks_are_resized_to_the_nearest_pixel_as_in_the_original(tmp_path, size):
    sample = DetectionDataset(read_panoptic(panoptic(tmp_path)), masks=True)[0]
    masks = sample["target"]["masks"].as_subclass(torch.Tensor)
    original = torch.nn.functional.interpolate(masks[:, None].float(), size, mode="nearest")[:, 0] > 0.5

    assert torch.equal(resize(sample, *size)["target"]["masks"].as_subclass(torch.Tensor), original)


def test_masks_of_a_batch_are_not_padded():
    index = open_dataset("shapes?size=32&train=2&val=0", task="panoptic")
    dataset = DetectionDataset(index, masks=True)
    samples = [dataset[0], resize(dataset[1], 40, 48)]
    batch = DetrCollator(num_labels=5)(samples)

    assert batch["pixel_values"].shape[-2:] == (40, 48)
    for sample, labels in zip(samples, batch["labels"], strict=True):
        assert labels["masks"].dtype == torch.bool
        assert torch.equal(labels["masks"], sample["target"]["masks"].as_subclass(torch.Tensor))
        assert labels["masks"].shape == (len(labels["class_labels"]), *labels["size"].tolist())


def test_a_panoptic_image_outside_the_dataset_is_an_error(tmp_path: Path) -> None:
    root = panoptic(tmp_path / "data")
    png = root / "annotations" / "panoptic_val" / "a.png"
    png.rename(tmp_path / "x.png")
    file = root / "annotations" / "panoptic_val.json"
    written = file.read_text()
    for name in (str(tmp_path / "x.png"), "../../../x.png"):
        file.write_text(written.replace('"a.png"', json.dumps(name)))
        with pytest.raises(ValueError, match=r"x\.png: is outside the dataset's folder"):
            open_dataset(root, task="panoptic")


def test_predictions_name_png_files_without_folders(tmp_path: Path) -> None:
    root = panoptic(tmp_path / "data")
    index = open_dataset(root, task="panoptic")
    file = root / "annotations" / "panoptic_val.json"
    file.write_text(file.read_text().replace('"a.png"', '"../panoptic_val/a.png"'))
    with pytest.raises(
        ValueError, match=r"'file_name' is '\.\./panoptic_val/a\.png', expected the name of a PNG file"
    ):
        list(read_panoptic_predictions(file, index))


def test_hundreds_of_masks_of_an_image_are_those_of_its_objects(tmp_path):
    squares = [[[x, y, x + 3, y, x + 3, y + 3, x, y + 3]] for x in range(0, 60, 3) for y in range(0, 60, 3)]
    index = open_dataset(instances(tmp_path, squares), task="instance")
    masks = index.read_masks(0)
    assert len(masks) == len(squares) == 400
    assert all((masks[row] == index.read_masks(0, np.array([row]))[0]).all() for row in (0, 199, 200, 399))


def test_hundreds_of_masks_are_resized_like_one():
    masks = torch.rand(230, 20, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, 20, 30, dtype=torch.uint8)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(torch.zeros(230, 4), format="XYXY", canvas_size=(20, 30)),
            "area": torch.zeros(230),
            "masks": tv_tensors.Mask(masks),
        },
    }
    resized = resize(sample, 33, 47)["target"]["masks"]
    expected = torch.nn.functional.interpolate(masks[None].float(), size=(33, 47), mode="nearest")[0].bool()
    assert torch.equal(resized.as_subclass(torch.Tensor), expected)
