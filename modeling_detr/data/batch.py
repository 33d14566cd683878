"""Collate samples into a batch: padded pixels, a mask, and labels in the form that the loss expects.

B images · N objects of one image · H, W pixels of the batch · h, w pixels of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from modeling_detr.data.teacher_objects import separate_teacher_objects
from modeling_detr.structures_detr import DetectionBatch, DetectionLabels, DetectionSample, check_labels


class DetrCollator:
    """Collates a list of `DetectionSample` into a `DetectionBatch`.

    Images are zero-padded on the right and at the bottom. `pixel_values` (B, 3, H, W) stay uint8 and `pixel_mask`
    (B, H, W) bool, a fifth of the bytes of a normalised batch; `batch_to_device` normalises on the device. Labels are
    checked here, on the host. For each image they are `class_labels` (N,) int64, `boxes` (N, 4) cxcywh relative to
    the **unpadded** image, `area` (N,) square pixels of the resized image, `image_index` (), `size` (2,) int64 height
    and width without padding, and, if the samples have masks, `masks` (N, h, w) bool without padding.
    What a teacher predicts is in `teacher_labels`, `teacher_boxes` and `teacher_scores`.

    Pixels are channels last in memory, as the decoder returns them: copying them is sixteen times faster than
    rearranging them, and convolutions on a CPU take up to a third less time.
    """

    def __init__(self, num_labels: int, names: Sequence[str] | None = None) -> None:
        """Create a collator.

        Args:
            num_labels: Number of classes of the model, against which labels are checked.
            names: Name of each image for messages (its path), by `image_index`; None: the index itself.
        """
        self.num_labels = num_labels
        self.names = names

    def __call__(self, samples: Sequence[DetectionSample]) -> DetectionBatch:
        """Collate `samples`.

        Raises:
            ValueError: A label is out of range, or a box is not inside its image; the message names the image.
        """
        images = [sample["image"].as_subclass(Tensor) for sample in samples]
        height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
        pixels = torch.empty((len(images), height, width * 3), dtype=torch.uint8)
        pixel_mask = torch.ones((len(images), height, width), dtype=torch.bool)
        for number, image in enumerate(images):
            rows = image.permute(1, 2, 0).flatten(1)  # (h, w * 3)
            pixels[number, : rows.shape[0], : rows.shape[1]].copy_(rows)
            for canvas, used in (pixels[number], rows.shape[1]), (pixel_mask[number], image.shape[2]):
                if used < canvas.shape[1]:
                    canvas[: rows.shape[0], used:] = 0
                if rows.shape[0] < height:
                    canvas[rows.shape[0] :] = 0
        labels = [_to_labels(sample) for sample in samples]
        check_labels(labels, self.num_labels, [self._name(sample) for sample in samples])
        for number, sample in enumerate(samples):
            if "teacher_scores" in sample["target"]:
                labels[number] = separate_teacher_objects(labels[number], sample["target"]["teacher_scores"])
        batch: DetectionBatch = {
            "pixel_values": pixels.unflatten(2, (width, 3)).permute(0, 3, 1, 2),
            "pixel_mask": pixel_mask,
            "labels": labels,
        }
        unreadable = {image: reason for sample in samples for image, reason in sample.get("unreadable", {}).items()}
        if unreadable:
            batch["unreadable"] = unreadable
        return batch

    def _name(self, sample: DetectionSample) -> str:
        image_index = sample["target"]["image_index"]
        return self.names[image_index] if self.names is not None else f"image {image_index} of the dataset"


def split_batch(batch: DetectionBatch, max_pixels: int) -> list[DetectionBatch]:
    """Split a batch into parts of at most `max_pixels` pixels each, padding included.

    Images of similar size share a part. An image above the limit is a part by itself.
    """
    if batch["pixel_values"].shape[0] * batch["pixel_values"].shape[-2:].numel() <= max_pixels:
        return [batch]
    sizes = torch.stack([batch["pixel_mask"][:, :, 0].sum(1), batch["pixel_mask"][:, 0].sum(1)], dim=1)  # (B, 2)
    order = torch.argsort(sizes.prod(1), stable=True).tolist()
    groups: list[list[int]] = []
    for image in order:
        together = [*groups[-1], image] if groups else [image]
        if groups and len(together) * int(sizes[together].amax(0).prod()) <= max_pixels:
            groups[-1] = together
        else:
            groups.append([image])
    parts: list[DetectionBatch] = []
    for group in groups:
        height, width = sizes[group].amax(0).tolist()
        # indexing copies and loses channels-last, so restore it
        pixels = batch["pixel_values"][group, :, :height, :width].contiguous(memory_format=torch.channels_last)
        mask = batch["pixel_mask"][group, :height, :width]
        parts.append({"pixel_values": pixels, "pixel_mask": mask, "labels": [batch["labels"][i] for i in group]})
    return parts


def _to_labels(sample: DetectionSample) -> DetectionLabels:
    target = sample["target"]
    height, width = sample["image"].shape[-2:]
    boxes = box_convert(target["boxes"].as_subclass(Tensor), "xyxy", "cxcywh")
    labels: DetectionLabels = {
        "class_labels": target["class_labels"].to(torch.int64),
        "boxes": boxes / torch.tensor([width, height, width, height], dtype=torch.float32),
        "area": target["area"],
        "image_index": torch.tensor(target["image_index"]),
        "size": torch.tensor([height, width]),
    }
    if "masks" in target:
        labels["masks"] = target["masks"].as_subclass(Tensor).to(torch.bool)
    return labels
