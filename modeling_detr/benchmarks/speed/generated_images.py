"""Images, boxes and datasets made of random numbers, with sizes and numbers of objects like those of COCO."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from modeling_detr.atomic_output import make_folder
from modeling_detr.data.batch import DetrCollator
from modeling_detr.structures_detr import (
    AnnotationTable,
    Category,
    DetectionBatch,
    DetectionIndex,
    DetectionLabels,
    DetectionSample,
    ImageRecord,
)


# (width, height) and share of COCO's images; those of other sizes are spread over these
COCO_SIZES = {
    (640, 480): 0.31,
    (640, 427): 0.22,
    (480, 640): 0.11,
    (427, 640): 0.07,
    (640, 426): 0.05,
    (500, 375): 0.05,
    (640, 360): 0.04,
    (500, 333): 0.03,
    (640, 640): 0.03,
    (375, 500): 0.02,
    (640, 512): 0.02,
    (612, 612): 0.02,
    (480, 360): 0.01,
    (640, 320): 0.01,
    (333, 500): 0.01,
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OBJECTS = 7  # of an image of COCO, on average
_QUALITY = 90  # of JPEG files, at which these have about as many bytes as COCO's


def coco_sizes(count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draws (height, width) of images, distributed as in COCO."""
    sizes = [*COCO_SIZES]
    shares = np.array([*COCO_SIZES.values()])
    drawn = rng.choice(len(sizes), count, p=shares / shares.sum())
    return [(sizes[index][1], sizes[index][0]) for index in drawn]


def draw_image(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws an image (H, W, 3): smooth colours, shapes and grain, which compress about as photographs do."""
    coarse = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    fine = rng.integers(0, 256, (max(2, height // 5), max(2, width // 5), 3), dtype=np.uint8)
    layers = [
        np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        for layer in (coarse, fine)
    ]
    grain = rng.normal(0, 6, (height, width, 1))
    return np.clip(0.7 * layers[0] + 0.25 * layers[1] + grain, 0, 255).astype(np.uint8)


def draw_boxes(count: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws boxes (N, 4), corners in pixels, with sides from 3 % of the image's to two thirds of them."""
    sides = np.exp(rng.uniform(np.log(0.03), np.log(0.66), (count, 2))) * (width, height)
    start = rng.uniform(0, 1, (count, 2)) * ((width, height) - sides)
    return np.concatenate([start, start + sides], axis=1).round(2)


def random_batch(sizes: Sequence[tuple[int, int]], num_boxes: int, num_labels: int, seed: int = 0) -> DetectionBatch:
    """A collated batch of images of these (height, width), each with `num_boxes` objects, as a loader makes it."""
    rng = np.random.default_rng(seed)
    samples: list[DetectionSample] = []
    for number, (height, width) in enumerate(sizes):
        boxes = torch.from_numpy(draw_boxes(num_boxes, height, width, rng)).float()
        image = torch.from_numpy(draw_image(height, width, rng)).permute(2, 0, 1)
        samples.append(
            {
                "image": tv_tensors.Image(image),
                "target": {
                    "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
                    "class_labels": torch.from_numpy(rng.integers(0, num_labels, num_boxes)),
                    "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                    "image_index": number,
                },
            }
        )
    return DetrCollator(num_labels)(samples)


def random_predictions(
    num_layers: int, num_images: int, num_queries: int, num_boxes: int, num_labels: int, device: torch.device
) -> tuple[Tensor, Tensor, list[DetectionLabels]]:
    """Logits (L, B, Q, C + 1) and boxes (L, B, Q, 4) as a decoder gives them, and the labels of the images."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    logits = torch.randn(num_layers, num_images, num_queries, num_labels + 1, generator=generator)
    boxes = torch.rand(num_layers, num_images, num_queries, 4, generator=generator) * 0.5 + 0.25
    labels: list[DetectionLabels] = []
    for _ in range(num_images):
        corners = torch.from_numpy(draw_boxes(num_boxes, 1000, 1000, rng)).float() / 1000
        start, end = corners[:, :2], corners[:, 2:]
        labels.append(
            {
                "class_labels": torch.from_numpy(rng.integers(0, num_labels, num_boxes)).to(device),
                "boxes": torch.cat([(start + end) / 2, end - start], 1).to(device),
            }
        )
    return logits.to(device), boxes.to(device), labels


def random_index(num_images: int, num_objects: int, num_labels: int, seed: int = 0) -> DetectionIndex:
    """A dataset of images of COCO's sizes, without files, with `num_objects` objects each. A million take seconds."""
    rng = np.random.default_rng(seed)
    sizes = coco_sizes(num_images, rng)
    count = num_images * num_objects
    boxes = draw_boxes(count, 1000, 1000, rng) / 1000
    limits = np.repeat(np.array(sizes, np.float64)[:, ::-1], num_objects, axis=0)
    boxes_xyxy = (boxes * np.tile(limits, 2)).round(2)
    table = AnnotationTable(
        image_index=np.repeat(np.arange(num_images), num_objects),
        label=rng.integers(0, num_labels, count),
        boxes_xyxy=boxes_xyxy,
        area=(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1),
        is_crowd=np.zeros(count, np.bool_),
    )
    images = tuple(ImageRecord(number, f"{number:012}.jpg", *size) for number, size in enumerate(sizes, start=1))
    categories = tuple(Category(label, f"class {label}") for label in range(num_labels))
    return DetectionIndex("generated", images, categories, table)


def write_coco_annotations(index: DetectionIndex, file: Path) -> Path:
    """Writes the annotation file of a dataset as COCO's are written, without its images."""
    table = index.annotations
    with file.open("w", encoding="utf-8") as text:
        text.write('{"images": [')
        text.write(
            ",".join(
                f'{{"license": 1, "file_name": "{image.path}", "height": {image.height}, "width": {image.width}, '
                f'"id": {image.id}}}'
                for image in index.images
            )
        )
        text.write('], "annotations": [')
        corners, areas = table.boxes_xyxy.tolist(), table.area.round(2).tolist()
        rows = zip(table.image_index.tolist(), table.label.tolist(), corners, areas, strict=True)
        text.write(
            ",".join(
                f'{{"area": {area}, "iscrowd": 0, "image_id": {index.images[image].id}, "bbox": [{x0}, {y0}, '
                f'{round(x1 - x0, 2)}, {round(y1 - y0, 2)}], "category_id": {label}, "id": {number}}}'
                for number, (image, label, (x0, y0, x1, y1), area) in enumerate(rows, start=1)
            )
        )
        names = [{"id": category.id, "name": category.name} for category in index.categories]
        text.write(f'], "categories": {json.dumps(names)}}}')
    return file


def write_coco_dataset(folder: Path, sizes: Sequence[tuple[int, int]], num_labels: int, seed: int = 0) -> Path:
    """Writes JPEG images and annotations as COCO's are laid out, with labels that are the category ids.

    Args:
        folder: The folder to write.
        sizes: (height, width) of each image.
        num_labels: The number of classes.
        seed: Seed of images and objects.
    """
    rng = np.random.default_rng(seed)
    images, annotations = folder / "train2017", folder / "annotations"
    make_folder(images)
    make_folder(annotations)
    records: list[dict[str, object]] = []
    objects: list[dict[str, object]] = []
    for number, (height, width) in enumerate(sizes, start=1):
        name = f"{number:012}.jpg"
        Image.fromarray(draw_image(height, width, rng)).save(images / name, quality=_QUALITY)
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        for x0, y0, x1, y1 in draw_boxes(int(rng.poisson(_OBJECTS - 1)) + 1, height, width, rng).tolist():
            entry = {"id": len(objects) + 1, "image_id": number, "category_id": int(rng.integers(num_labels))}
            box = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            objects.append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": label, "name": f"class {label}"} for label in range(num_labels)]
    content = {"images": records, "annotations": objects, "categories": categories}
    (annotations / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
