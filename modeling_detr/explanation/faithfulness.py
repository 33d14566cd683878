"""How faithful a map is: does the detection depend on the places that the map marks?

Deletion and insertion of RISE (Petsiuk, Das and Saenko, 1806.07421): pixels are removed from the image, or added to a
blurred image, in the order of the map, and the score is read at each step. A faithful map has a small area under the
deletion curve and a large one under the insertion curve, compared with random maps.

Shapes: N detections · R random maps · K + 1 points of a curve · h, w feature cells · H, W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.functional import gaussian_blur

from modeling_detr.explanation.explain import Explanation
from modeling_detr.explanation.recording import detector_of
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, RawImage, to_rgb
from modeling_detr.segmentation_detr import Detector


_BLUR_SIGMA = 5 / 224  # of the shorter side, as the original's blur of images of 224 pixels

Score = Callable[[Tensor], Tensor]
"""Computes the scores (N,) of N detections in changed pixels (1, 3, H, W)."""


class Curves(NamedTuple):
    """Scores while pixels are deleted and inserted, each (…, K + 1) from the first to the last step."""

    deletion: Tensor
    insertion: Tensor

    def areas(self) -> "Curves":
        """The areas under the curves (…,), by the trapezoidal rule over fractions from 0 to 1."""
        deletion, insertion = ((curve[..., 1:] + curve[..., :-1]).mean(-1) / 2 for curve in self)
        return Curves(deletion, insertion)


@dataclass(frozen=True)
class Faithfulness:
    """The curves of an explanation.

    Attributes:
        methods: Method → curves (N, K + 1), those of its map of each detection.
        random: Curves (R, N, K + 1) of random maps.
    """

    methods: dict[str, Curves]
    random: Curves


class CurveReader:
    """Deletes and inserts pixels of one image, and reads the scores of its detections.

    Deleted pixels become 0, which is the mean colour in normalised pixels; inserted ones replace a blurred image.

    Args:
        score: Computes the scores.
        pixels: (1, 3, H, W), normalised.
        steps: K.
    """

    def __init__(self, score: Score, pixels: Tensor, steps: int) -> None:
        self.score, self.pixels, self.steps = score, pixels, steps
        self.deleted, self.blurred = torch.zeros_like(pixels), _blurred(pixels)
        whole = score(pixels)  # the ends of the curves are the same for all maps
        self.ends = Curves(torch.stack([whole, score(self.deleted)]), torch.stack([score(self.blurred), whole]))

    def read(self, map_: Tensor) -> Curves:
        """The curves (N, K + 1) of one map (H, W): the pixels with the largest numbers come first."""
        order = map_.flatten().argsort(descending=True, stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order), device=order.device)
        ranks = ranks.view(map_.shape).to(self.pixels.device)
        middle = []
        for step in range(1, self.steps):
            chosen = ranks < round(step / self.steps * ranks.numel())
            middle.append(
                (
                    self.score(torch.where(chosen, self.deleted, self.pixels)),
                    self.score(torch.where(chosen, self.pixels, self.blurred)),
                )
            )
        between = zip(*middle, strict=True) if middle else ((), ())
        deletion, insertion = (
            torch.stack([first, *scores, last], dim=-1)
            for (first, last), scores in zip(self.ends, between, strict=True)
        )
        return Curves(deletion, insertion)


@torch.no_grad()
def measure_faithfulness(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    image: RawImage,
    explanation: Explanation,
    steps: int = 16,
    num_random: int = 4,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Faithfulness:
    """Measures deletion and insertion curves of all maps of an explanation, and of random maps.

    The score of a detection in a changed image is the largest product, over all queries, of the probability of its
    class and the overlap (IoU) with its box, so that another query may take over the object; D-RISE (Petsiuk et al.,
    2006.03204) compares detections in a similar way. The model runs 2 (steps - 1) times per map; random maps are
    shared by all detections.

    Args:
        model: A model in evaluation mode.
        processor: The model's image processor.
        image: The image that was explained.
        explanation: What `explain` returned for it.
        steps: K.
        num_random: R.
        seed: Seed of the random maps, whose cells are independent and uniform.
        progress: Called with 1 after each run of the model, of which there are `num_runs`.
    """
    inputs = processor(to_rgb(image), device=model.device)
    height, width = explanation.processed_size

    def score(pixels: Tensor) -> Tensor:
        canvas = torch.zeros_like(inputs["pixel_values"])
        canvas[..., :height, :width] = pixels
        scores = _detection_scores(model, canvas, inputs.get("pixel_mask"), explanation)
        if progress is not None:
            progress(1)
        return scores

    reader = CurveReader(score, inputs["pixel_values"][..., :height, :width], steps)
    methods = {}
    for name, maps in explanation.maps.items():
        curves = [reader.read(map_) for map_ in explanation.on_input(maps)]
        own = [Curves(deletion[i], insertion[i]) for i, (deletion, insertion) in enumerate(curves)]
        methods[name] = _stacked(own, (0, steps + 1))
    generator, grid = torch.Generator().manual_seed(seed), explanation.cross_attention.shape[-2:]
    noise = [explanation.on_input(torch.rand(grid, generator=generator)) for _ in range(num_random)]
    random = _stacked([reader.read(map_) for map_ in noise], (0, len(explanation.scores), steps + 1))
    return Faithfulness(methods, random)


def num_runs(explanation: Explanation, steps: int, num_random: int) -> int:
    """How often `measure_faithfulness` runs the model."""
    num_maps = num_random + sum(map(len, explanation.maps.values()))
    return 3 + 2 * (steps - 1) * num_maps


def _stacked(curves: Sequence[Curves], shape_of_none: tuple[int, ...]) -> Curves:
    if not curves:
        return Curves(torch.zeros(shape_of_none), torch.zeros(shape_of_none))
    deletion, insertion = (torch.stack(kind) for kind in zip(*curves, strict=True))
    return Curves(deletion, insertion)


def _detection_scores(model: Detector, pixels: Tensor, mask: Tensor | None, explanation: Explanation) -> Tensor:
    """The scores (N,) of an explanation's detections in the model's input (1, 3, H, W)."""
    outputs, _ = detector_of(model).detect(pixels, mask)
    height, width = explanation.image_size
    boxes = box_convert(outputs.pred_boxes[0].float().cpu(), "cxcywh", "xyxy")
    boxes = boxes * torch.tensor([width, height, width, height])
    probabilities = outputs.logits[0].softmax(-1).float().cpu()[:, explanation.labels]  # (Q, N)
    scores: Tensor = (probabilities * box_iou(boxes, explanation.boxes)).amax(0)
    return scores


def _blurred(pixels: Tensor) -> Tensor:
    """The image after a Gaussian blur as strong as the original's."""
    shorter = min(pixels.shape[-2:])
    sigma = max(0.5, _BLUR_SIGMA * shorter)
    radius = min(max(1, round(sigma)), shorter - 1)  # the original's kernel has 11 pixels for a sigma of 5
    return gaussian_blur(pixels, [2 * radius + 1, 2 * radius + 1], [sigma, sigma]) if radius > 0 else pixels
