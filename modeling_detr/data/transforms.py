"""Augmentation and resizing of samples, with boxes, areas and masks that follow.

A policy first makes a plan from nothing but the image's size and random numbers: whether to flip, which part to take,
and how large the outcome is. So the batch sampler can know the sizes of an epoch before an image is read, and an image
is resized once, in uint8, instead of twice in a row with a crop between (the original's way; a crop of the resized
image is mapped back to whole pixels of the source, and boxes are computed from the crop that was really taken).

`crop`, `horizontal_flip` and `resize` treat boxes and areas as the original does (datasets/transforms.py).
"""

import difflib
import importlib
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from modeling_detr.image_processing_detr import resize_output_size
from modeling_detr.structures_detr import DetectionSample, DetectionTarget


SampleTransform = Callable[[DetectionSample], DetectionSample]

SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
LONGEST_EDGE = 1333
CROP_SCALES = (400, 500, 600)
CROP_MIN, CROP_MAX = 384, 600


# Geometry


class Crop(NamedTuple):
    """A part of an image in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class GeometryPlan(NamedTuple):
    """What is done to one image: take `crop` (None: all of it), flip it, resize to `(height, width)`."""

    height: int
    width: int
    flip: bool = False
    crop: Crop | None = None


def crop(
    sample: DetectionSample, top: int, left: int, height: int, width: int, min_visibility: float = 0.0
) -> DetectionSample:
    """Takes a part of the image. Boxes are clipped to it, those without width or height, or of which less than the
    share `min_visibility` of their area remains, leave with all their fields, and areas become those of the clipped
    boxes. Original: datasets/transforms.py, `crop`."""
    target = sample["target"]
    boxes = target["boxes"].as_subclass(Tensor) - torch.tensor([left, top, left, top], dtype=torch.float32)
    corners = boxes.reshape(-1, 2, 2).minimum(torch.tensor([width, height], dtype=torch.float32)).clamp(min=0)
    sides = corners[:, 1] - corners[:, 0]
    # A box that lies wholly inside stays whatever rounding makes of its corners.
    least = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) * (min_visibility * (1 - 1e-5))
    changed = _with_boxes(target, corners.reshape(-1, 4), sides.prod(dim=1), (height, width))
    if "masks" in target:
        changed["masks"] = functional.crop(target["masks"], top, left, height, width)
    return {
        "image": functional.crop(sample["image"], top, left, height, width),
        "target": take_objects(changed, (sides > 0).all(dim=1) & (sides.prod(dim=1) >= least)),
    }


def horizontal_flip(sample: DetectionSample) -> DetectionSample:
    """Mirrors the image left to right."""
    target = sample["target"]
    height, width = sample["image"].shape[-2:]
    boxes = target["boxes"].as_subclass(Tensor)
    mirrored = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1.0, -1.0, 1.0]) + torch.tensor([width, 0, width, 0])
    changed = _with_boxes(target, mirrored, target["area"], (height, width))
    if "masks" in target:
        changed["masks"] = functional.horizontal_flip(target["masks"])
    return {"image": functional.horizontal_flip(sample["image"]), "target": changed}


def resize(sample: DetectionSample, height: int, width: int) -> DetectionSample:
    """Resizes to `height` and `width`, bilinear with antialiasing, masks to the nearest pixel; an image of that size
    is left as it is."""
    old_height, old_width = sample["image"].shape[-2:]
    if (old_height, old_width) == (height, width):
        return sample
    target = sample["target"]
    ratio_y, ratio_x = height / old_height, width / old_width
    boxes = target["boxes"].as_subclass(Tensor) * torch.tensor([ratio_x, ratio_y, ratio_x, ratio_y])
    changed = _with_boxes(target, boxes, target["area"] * (ratio_x * ratio_y), (height, width))
    if "masks" in target:
        rows, columns = _nearest(old_height, height), _nearest(old_width, width)
        masks = target["masks"].as_subclass(Tensor).index_select(-2, rows).index_select(-1, columns)
        changed["masks"] = tv_tensors.Mask(masks)
    return {"image": functional.resize(sample["image"], [height, width], antialias=True), "target": changed}


def _nearest(old: int, new: int) -> Tensor:
    """Which of `old` pixels each of `new` ones is: (new,) int64, by PyTorch's own rule for float32."""
    numbers = torch.arange(old, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(numbers, size=new, mode="nearest")[0, 0].to(torch.int64)


def take_objects(target: DetectionTarget, keep: Tensor) -> DetectionTarget:
    """The objects of the target that `keep` (N,) bool marks, with all their fields."""
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


# Policies


class GeometryPolicy(ABC):
    """A transform that plans before it acts; what differs between policies is `plan`.

    Attributes:
        min_visibility: A box leaves if a crop shows less than this share of its area; 0: if it shows none.
    """

    min_visibility: float = 0.0

    @abstractmethod
    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:
        """Draws what is done to an image of `height` and `width`, from the numbers of `generator`."""

    def __call__(self, sample: DetectionSample, generator: random.Random | None = None) -> DetectionSample:
        """Draws a plan (from the process's own `random` if there is no `generator`) and carries it out."""
        height, width = sample["image"].shape[-2:]
        generator = generator or random.Random(random.getrandbits(64))
        return self.apply(sample, self.plan(height, width, generator))

    def apply(self, sample: DetectionSample, plan: GeometryPlan) -> DetectionSample:
        """Carries out a plan that was made for an image of this size."""
        if plan.crop is not None:
            sample = crop(sample, *plan.crop, min_visibility=self.min_visibility)
        if plan.flip:
            sample = horizontal_flip(sample)
        return resize(sample, plan.height, plan.width)


@dataclass(frozen=True)
class ResizePolicy(GeometryPolicy):
    """Resizes and nothing else: the policy `none`, and what evaluation does.

    Attributes:
        shortest_edge: Pixels of the shorter side, unless the longer one would pass `longest_edge`.
        longest_edge: Most pixels of the longer side; None: no limit.
    """

    shortest_edge: int = 800
    longest_edge: int | None = LONGEST_EDGE

    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:  # noqa: ARG002
        """The size; nothing about it is random."""
        return GeometryPlan(*resize_output_size(height, width, self.shortest_edge, self.longest_edge))


@dataclass(frozen=True)
class OriginalPolicy(GeometryPolicy):
    """The original's training policy: flip; then either resize, or resize, crop and resize again.

    Paper: sec. 4. Original: datasets/coco.py, `make_coco_transforms`. Sizes are drawn as there; differs in that a crop
    is taken from whole pixels of the source and resized once, because that is several times faster.

    Attributes:
        scales: The shortest edge of the outcome is one of these.
        longest_edge: Most pixels of its longer side.
        crop_scales: Before a crop, the shortest edge is one of these.
        crop_min: Least height and width of a crop.
        crop_max: Most height and width of a crop; less where the image has less.
        crop_probability: Share of the images that are cropped.
        flip_probability: Share of the images that are mirrored.
        min_visibility: Least share of a box's area that a crop has to show, or the box leaves.
    """

    scales: tuple[int, ...] = SCALES
    longest_edge: int = LONGEST_EDGE
    crop_scales: tuple[int, ...] = CROP_SCALES
    crop_min: int = CROP_MIN
    crop_max: int = CROP_MAX
    crop_probability: float = 0.5
    flip_probability: float = 0.5
    min_visibility: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min {self.crop_min} is larger than crop_max {self.crop_max}; swap them.")

    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:
        """Draws flip, crop and size."""
        flip = generator.random() < self.flip_probability
        if generator.random() >= self.crop_probability:
            return GeometryPlan(*self._output_size(height, width, generator), flip)
        resized_height, resized_width = resize_output_size(height, width, generator.choice(self.crop_scales))
        crop_width, left = self._draw_span(resized_width, generator)
        crop_height, top = self._draw_span(resized_height, generator)
        top, source_height = _to_source(top, crop_height, resized_height, height)
        left, source_width = _to_source(left, crop_width, resized_width, width)
        output = self._output_size(crop_height, crop_width, generator)
        return GeometryPlan(*output, flip, Crop(top, left, source_height, source_width))

    def _output_size(self, height: int, width: int, generator: random.Random) -> tuple[int, int]:
        return resize_output_size(height, width, generator.choice(self.scales), self.longest_edge)

    def _draw_span(self, side: int, generator: random.Random) -> tuple[int, int]:
        """Length and start of a crop along a side; a side shorter than `crop_min` is taken whole."""
        length = generator.randint(min(self.crop_min, side), min(self.crop_max, side))
        return length, generator.randint(0, side - length)


@dataclass(frozen=True)
class LightPolicy(GeometryPolicy):
    """For small datasets: flip, and mildly changed scale, place and proportions of what is seen.

    Half of the images are seen whole, of the others a part of at least `least_share` of each side. The outcome has
    the size that the whole image would have, so images of one size make batches without padding.

    Attributes:
        scales: The shortest edge of the outcome is one of these.
        longest_edge: Most pixels of its longer side.
        least_share: Least share of each side that is seen, in (0, 1].
        crop_probability: Share of the images of which a part is taken.
        flip_probability: Share of the images that are mirrored.
        min_visibility: Least share of a box's area that a crop has to show, or the box leaves.
    """

    scales: tuple[int, ...] = SCALES
    longest_edge: int = LONGEST_EDGE
    least_share: float = 0.7
    crop_probability: float = 0.5
    flip_probability: float = 0.5
    min_visibility: float = 0.0

    def plan(self, height: int, width: int, generator: random.Random) -> GeometryPlan:
        """Draws flip, part and size."""
        flip = generator.random() < self.flip_probability
        output = resize_output_size(height, width, generator.choice(self.scales), self.longest_edge)
        if generator.random() >= self.crop_probability:
            return GeometryPlan(*output, flip)
        share = generator.uniform(self.least_share, 1.0)
        spans = []
        for side in (height, width):
            stretch = generator.uniform(0.95, 1.05)
            length = min(side, max(1, round(max(share * stretch, self.least_share) * side)))
            spans.append((generator.randint(0, side - length), length))
        (top, part_height), (left, part_width) = spans
        return GeometryPlan(*output, flip, Crop(top, left, part_height, part_width))


def _to_source(start: int, length: int, resized: int, source: int) -> tuple[int, int]:
    """A span of the resized side in whole pixels of the source, at least one: `(start, length)`."""
    first = min(round(start * source / resized), source - 1)
    return first, max(1, round((start + length) * source / resized) - first)


# Policies by name


def eval_transform(shortest_edge: int = 800, longest_edge: int | None = LONGEST_EDGE) -> ResizePolicy:
    """What evaluation does to an image: resize it."""
    return ResizePolicy(_positive("shortest_edge", shortest_edge), longest_edge)


def train_transform(
    name: str = "original", *, scales: int | Sequence[int] | None = None, **options: Any
) -> SampleTransform:
    """The training policy of that name.

    Args:
        name: `original` (the original's), `light` (for small datasets), `none` (resize only), or the dotted name of
            what replaces the policy, `package.module.name` (the current folder is looked into as well): a callable
            that takes and returns a `DetectionSample`; a class is instantiated first, with `scales` and `options` as
            far as they are given. It may draw from the global random states of Python, NumPy and PyTorch, which the
            dataset seeds for each sample.
        scales: Shortest edges to draw from, or a single one; `none` takes the largest. From the largest of them follow
            all sizes that are not given, in the proportions of the original's.
        options: Fields of the policy: `longest_edge`, `flip_probability`, `crop_probability`, `min_visibility` (a
            cropped box is dropped if less than this share of its area remains); of `original` also `crop_scales`,
            `crop_min`, `crop_max`; of `light` also `least_share`. None means not given.

    Raises:
        ValueError: No policy has that name, an option is not one of the policy, a value makes no sense, or a dotted
            name cannot be imported, is not callable, or is no class but options are given.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name not in _POLICIES:
        if scales is not None:
            given["scales"] = scales
        return _import_transform(name, given)
    policy = _POLICIES[name]
    sizes = SCALES if scales is None else (scales,) if isinstance(scales, int) else tuple(scales)
    if not sizes:
        raise ValueError("scales is empty; wanted at least one shortest edge in pixels.")
    for size in sizes:
        _positive("scales", size)
    known = {*policy.__dataclass_fields__} - {"scales", "shortest_edge"}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, {"scales", *known}, n=1, cutoff=0.6)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(
                f"The policy '{name}' has no option '{key}'; {hint}It has: {', '.join(sorted({'scales', *known}))}."
            )
    for key, value in given.items():
        _check_option(key, value)
    factor = max(sizes) / max(SCALES)
    derived: dict[str, Any] = {
        "scales": sizes,
        "shortest_edge": max(sizes),
        "longest_edge": round(LONGEST_EDGE * factor),
        "crop_scales": tuple(round(size * factor) for size in CROP_SCALES),
        "crop_min": round(CROP_MIN * factor),
        "crop_max": round(CROP_MAX * factor),
    }
    if "crop_scales" in given:
        value = given["crop_scales"]
        given["crop_scales"] = (value,) if isinstance(value, int) else tuple(value)
    fields = {key: value for key, value in derived.items() if key in policy.__dataclass_fields__}
    transform: SampleTransform = policy(**{**fields, **given})
    return transform


_POLICIES: dict[str, Any] = {"original": OriginalPolicy, "light": LightPolicy, "none": ResizePolicy}


def _positive(key: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}; wanted a number of pixels, at least 1.")
    return value


def _check_option(key: str, value: Any) -> None:
    if key.endswith(("probability", "share", "visibility")):
        if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value!r}; wanted a number from 0 to 1.")
    else:
        for size in value if isinstance(value, (list, tuple)) else [value]:
            _positive(key, size)


def _import_transform(name: str, options: dict[str, Any]) -> SampleTransform:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        near = difflib.get_close_matches(name, _POLICIES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(
            f"There is no training policy '{name}'; {hint}Wanted {', '.join(_POLICIES)}, or the dotted name of a "
            f"callable, such as my_package.my_module.augment."
        )
    _add_working_folder_to_import_path()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"The training policy '{name}' cannot be imported: {error}. Run the command where '{module_name}' can be "
            f"imported from (put its folder into PYTHONPATH), or correct the name."
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean '{module_name}.{near[0]}'?" if near else "."
        raise ValueError(f"The training policy '{name}' does not exist: {module.__file__} has no '{attribute}'{hint}")
    found = getattr(module, attribute)
    if isinstance(found, type):
        found = found(**options)
    elif options:
        raise ValueError(
            f"The training policy '{name}' is no class, so it takes no options; got {', '.join(options)}. Leave them "
            f"out, or make it a class that takes them."
        )
    if not callable(found):
        raise ValueError(f"The training policy '{name}' is a {type(found).__name__}, which cannot be called.")
    return cast(SampleTransform, found)


def _add_working_folder_to_import_path() -> None:
    """Console scripts, unlike `python -m`, do not look for modules in the working folder.

    It stays on the path: workers of a data loader that are started afresh import the policy by its name once more.
    """
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)
