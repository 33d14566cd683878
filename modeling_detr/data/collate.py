"""Makes a batch of samples: padded pixels, a mask, and labels as the loss takes them.

B images · N objects of one image · H, W pixels of the batch · h, w pixels of one image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from modeling_detr.structures_detr import DetectionBatch, DetectionLabels, DetectionSample, check_labels


class DetrCollator:
    """list[DetectionSample] → `DetectionBatch`.

    Images are normalised and padded right and bottom with zeros. Boxes become centre and size relative to the
    **unpadded** image, and labels are checked here, on the host. Each image's labels hold `class_labels` (N,) int64,
    `boxes` (N, 4) cxcywh, `area` (N,) square pixels of the resized image, `image_index` () and `size` (2,) int64
    height and width without padding, and `masks` (N, h, w) bool, without padding, where samples have them.

    Pixels lie in memory as they come from the decoder, channels last: copying them is sixteen times faster than
    rearranging them, and convolutions on a CPU take up to a third less time.
    """

    def __init__(
        self,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        num_labels: int,
        names: Sequence[str] | None = None,
        normalize: bool = True,
    ) -> None:
        """Says what pixels and labels mean.

        Args:
            image_mean: Mean of each channel in units of [0, 1], as the backbone was trained with.
            image_std: Standard deviation of each channel.
            num_labels: Classes of the model, which labels are checked against.
            names: What each image of the index is called in messages (its path), by `image_index`.
            normalize: False leaves `pixel_values` in uint8 and `pixel_mask` in bool, a fifth of what goes to the
                device otherwise, for `batch_to_device` to normalise there.
        """
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        self.num_labels = num_labels
        self.names = names
        self.normalize = normalize

    def __call__(self, samples: Sequence[DetectionSample]) -> DetectionBatch:
        """Makes the batch of `samples`.

        Raises:
            ValueError: A label is not one of the model's, or a box is not in its image; the message names the image.
        """
        images = [sample["image"].as_subclass(Tensor) for sample in samples]
        height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
        pixels = torch.zeros((len(images), height, width * 3), dtype=torch.float32 if self.normalize else torch.uint8)
        pixel_mask = torch.zeros((len(images), height, width), dtype=torch.int64 if self.normalize else torch.bool)
        for image, place, mask in zip(images, pixels, pixel_mask, strict=True):
            rows = image.permute(1, 2, 0).flatten(1)  # (h, w * 3)
            part = place[: rows.shape[0], : rows.shape[1]]
            if self.normalize:
                self._normalize(rows, part)
            else:
                part.copy_(rows)
            mask[: image.shape[1], : image.shape[2]] = 1
        labels = [_to_labels(sample) for sample in samples]
        check_labels(labels, self.num_labels, [self._name(sample) for sample in samples])
        return {
            "pixel_values": pixels.unflatten(2, (width, 3)).permute(0, 3, 1, 2),
            "pixel_mask": pixel_mask,
            "labels": labels,
        }

    def _normalize(self, rows: Tensor, place: Tensor) -> None:
        """What `normalize` computes, of `rows` (h, w * 3) uint8 into `place` of that shape. Whole rows at a time: the
        three channels alone are too few for the vector units."""
        columns = rows.shape[1] // 3
        torch.sub(rows, (torch.tensor(self.image_mean) * 255.0).repeat(columns), out=place)
        place.div_((torch.tensor(self.image_std) * 255.0).repeat(columns))

    def _name(self, sample: DetectionSample) -> str:
        position = sample["target"]["image_index"]
        return self.names[position] if self.names is not None else f"image {position} of the dataset"


def split_batch(batch: DetectionBatch, max_pixels: int) -> list[DetectionBatch]:
    """The batch in parts of at most `max_pixels` pixels each, padding included, images of like size together; an image
    that alone has more is a part by itself. Together the parts hold each image once."""
    if batch["pixel_values"].shape[0] * batch["pixel_values"].shape[-2:].numel() <= max_pixels:
        return [batch]
    sizes = torch.stack([batch["pixel_mask"][:, :, 0].sum(1), batch["pixel_mask"][:, 0].sum(1)], dim=1)  # (B, 2)
    order = torch.argsort(sizes.prod(1), stable=True).tolist()
    groups: list[list[int]] = []
    for position in order:
        together = [*groups[-1], position] if groups else [position]
        if groups and len(together) * int(sizes[together].amax(0).prod()) <= max_pixels:
            groups[-1] = together
        else:
            groups.append([position])
    parts: list[DetectionBatch] = []
    for group in groups:
        height, width = sizes[group].amax(0).tolist()
        # Indexing keeps neither the order of the dimensions in memory nor a view: channels last, as they came.
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
