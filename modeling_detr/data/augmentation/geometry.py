"""Geometric transforms of a sample: image, boxes, areas and masks change together.

`crop`, the flips and `resize` treat boxes and areas as the original does (datasets/transforms.py).
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from modeling_detr.structures_detr import DetectionSample, DetectionTarget


class Crop(NamedTuple):
    """A region of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class GeometryPlan(NamedTuple):
    """The geometry of one sample: take `crop` (None: the whole image), flip it, resize it to `(height, width)`."""

    height: int
    width: int
    flip: bool = False  # left to right
    crop: Crop | None = None
    vertical_flip: bool = False


def apply_plan(sample: DetectionSample, plan: GeometryPlan, min_visibility: float | Tensor = 0.0) -> DetectionSample:
    """Apply a plan that was made for an image of this size; see `crop` for `min_visibility`."""
    if plan.crop is not None:
        sample = crop(sample, *plan.crop, min_visibility=min_visibility)
    if plan.flip:
        sample = horizontal_flip(sample)
    if plan.vertical_flip:
        sample = vertical_flip(sample)
    return resize(sample, plan.height, plan.width)


def crop(
    sample: DetectionSample, top: int, left: int, height: int, width: int, min_visibility: float | Tensor = 0.0
) -> DetectionSample:
    """Crop the image. Boxes are clipped to the crop, and areas become those of the clipped boxes.

    Objects are dropped if their clipped box has no area, or less than the share `min_visibility` of its former area,
    one for all objects or one for each (N,).

    Original: datasets/transforms.py, `crop`.
    """
    target = sample["target"]
    region = Crop(top, left, height, width)
    corners, is_visible = clip_boxes(target["boxes"].as_subclass(Tensor), region, min_visibility)
    area = (corners[:, 2:] - corners[:, :2]).prod(dim=1)
    changed = _with_boxes(target, corners, area, (height, width))
    if "masks" in target:
        changed["masks"] = functional.crop(target["masks"], top, left, height, width)
    return {
        "image": tv_tensors.Image(functional.crop(sample["image"].as_subclass(Tensor), top, left, height, width)),
        "target": take_objects(changed, is_visible),
    }


def clip_boxes(boxes: Tensor, region: Crop, min_visibility: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
    """Clip boxes (N, 4), XYXY in pixels, to a region; return them relative to it, and whether each (N,) is kept.

    See `crop` for which are.
    """
    top, left, height, width = region
    boxes = boxes - torch.tensor([left, top, left, top], dtype=torch.float32)
    corners = boxes.reshape(-1, 2, 2).minimum(torch.tensor([width, height], dtype=torch.float32)).clamp(min=0)
    sides = corners[:, 1] - corners[:, 0]
    # The factor keeps boxes that are entirely inside, in spite of rounding.
    least = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) * (min_visibility * (1 - 1e-5))
    return corners.reshape(-1, 4), (sides > 0).all(dim=1) & (sides.prod(dim=1) >= least)


def horizontal_flip(sample: DetectionSample) -> DetectionSample:
    """Mirror the image left to right."""
    target = sample["target"]
    height, width = sample["image"].shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor)
    mirrored = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1.0, -1.0, 1.0]) + torch.tensor([width, 0, width, 0])
    changed = _with_boxes(target, mirrored, target["area"], (height, width))
    if "masks" in target:
        changed["masks"] = functional.horizontal_flip(target["masks"])
    image = functional.horizontal_flip(sample["image"].as_subclass(Tensor))
    return {"image": tv_tensors.Image(image), "target": changed}


def vertical_flip(sample: DetectionSample) -> DetectionSample:
    """Mirror the image top to bottom."""
    target = sample["target"]
    height, width = sample["image"].shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor)
    mirrored = boxes[:, [0, 3, 2, 1]] * torch.tensor([1.0, -1.0, 1.0, -1.0]) + torch.tensor([0, height, 0, height])
    changed = _with_boxes(target, mirrored, target["area"], (height, width))
    if "masks" in target:
        changed["masks"] = functional.vertical_flip(target["masks"])
    return {"image": functional.vertical_flip(sample["image"]), "target": changed}


def resize(sample: DetectionSample, height: int, width: int) -> DetectionSample:
    """Resize to `height` and `width`: the image bilinearly with antialiasing, masks to the nearest pixel.

    A sample that already has this size is returned unchanged.
    """
    old_height, old_width = sample["image"].shape[-2:]
    if (old_height, old_width) == (height, width):
        return sample
    target = sample["target"]
    ratio_y, ratio_x = height / old_height, width / old_width
    boxes = target["boxes"].as_subclass(Tensor) * torch.tensor([ratio_x, ratio_y, ratio_x, ratio_y])
    changed = _with_boxes(target, boxes, target["area"] * (ratio_x * ratio_y), (height, width))
    if "masks" in target:
        changed["masks"] = tv_tensors.Mask(_resize_masks(target["masks"].as_subclass(Tensor), height, width))
    pixels = _without_gaps(sample["image"].as_subclass(Tensor))
    image = tv_tensors.Image(functional.resize(pixels, [height, width], antialias=True))
    return {"image": image, "target": changed}


def _without_gaps(image: Tensor) -> Tensor:
    """An image (3, H, W) whose pixels follow one another in memory, unlike those of a crop; their order stays.

    PyTorch resizes this in half the time, and channels that come last do so in the result, which the collator needs.
    """
    is_dense = image.is_contiguous() or image.permute(1, 2, 0).is_contiguous()
    return image if is_dense else image.clone()


_MASKS_PER_CHUNK = 100  # thousands of masks take gigabytes, so no copy of all is made on the way


def _resize_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, H, W) masks to the nearest pixel."""
    rows, columns = _nearest(masks.shape[-2], height), _nearest(masks.shape[-1], width)
    resized = masks.new_empty(len(masks), height, width)
    for chunk, out in zip(masks.split(_MASKS_PER_CHUNK), resized.split(_MASKS_PER_CHUNK), strict=True):
        torch.index_select(chunk.index_select(-2, rows), -1, columns, out=out)
    return resized


def _nearest(old: int, new: int) -> Tensor:
    """Return the index of the old pixel for each new one, (new,) int64, by PyTorch's rule for float32."""
    indices = torch.arange(old, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(indices, size=new, mode="nearest")[0, 0].to(torch.int64)


def take_objects(target: DetectionTarget, keep: Tensor) -> DetectionTarget:
    """Select the objects of the target where `keep` (N,) bool is True, with all their fields."""
    if bool(keep.all()):
        return target
    rows = {key: value[keep] for key, value in target.items() if isinstance(value, Tensor)}
    for key, value in rows.items():
        like = target[key]  # type: ignore[literal-required]
        if isinstance(like, tv_tensors.TVTensor):
            rows[key] = tv_tensors.wrap(value, like=like)
    return cast(DetectionTarget, {**target, **rows})


def _with_boxes(target: DetectionTarget, boxes: Tensor, area: Tensor, size: tuple[int, int]) -> DetectionTarget:
    changed = target.copy()
    changed["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    changed["area"] = area
    return changed
