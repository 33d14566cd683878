"""Why is this box here: the attention behind each detection of one image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from modeling_detr.errors_detr import did_you_mean
from modeling_detr.explanation.methods import METHODS
from modeling_detr.explanation.recording import Recording, extent_of, record
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, RawImage, to_rgb
from modeling_detr.prediction import OBJECT_THRESHOLD
from modeling_detr.segmentation_detr import Detector


@dataclass(frozen=True)
class Explanation:
    """The detections of one image, by descending score, and their attention. All tensors are on the CPU.

    Shapes: N detections · L decoder layers · M encoder layers · A attention heads · P points · h, w feature cells,
    which cover the model's input with its padding.

    Attributes:
        queries: (N,) int64, the object query of each detection.
        scores: (N,).
        labels: (N,) int64.
        boxes: (N, 4) xyxy in pixels of the image.
        cross_attention: (N, L, A, h, w), the attention of each detection's query in each decoder layer.
        maps: Method → (N, h, w), one map per detection.
        points: (P, 2), x and y in pixels of the image.
        point_attention: (P, M, A, h, w), the encoder's self-attention from the cell of each point.
        image_size: (height, width) of the image.
        processed_size: (height, width) of the image in the model's input, without padding.
        canvas_size: (height, width) of the model's input, with padding.
    """

    queries: Tensor
    scores: Tensor
    labels: Tensor
    boxes: Tensor
    cross_attention: Tensor
    maps: dict[str, Tensor]
    points: Tensor
    point_attention: Tensor
    image_size: tuple[int, int]
    processed_size: tuple[int, int]
    canvas_size: tuple[int, int]

    @property
    def extent(self) -> tuple[float, float]:
        """(height, width) of the image in feature cells."""
        height, width = self.cross_attention.shape[-2:]
        return extent_of(self.processed_size, self.canvas_size, (height, width))

    def on_input(self, maps: Tensor) -> Tensor:
        """Maps (…, h, w) enlarged to the image in the model's input, without padding: (…, *processed_size)."""
        height, width = self.processed_size
        return _enlarged(maps, self.canvas_size)[..., :height, :width]

    def on_image(self, maps: Tensor) -> Tensor:
        """Maps (…, h, w) enlarged to the image, without padding: (…, height, width)."""
        return _enlarged(self.on_input(maps), self.image_size)

    def arrays(self) -> dict[str, Tensor]:
        """All tensors by name, for a file; those of `maps` are `map_METHOD`."""
        names = ("queries", "scores", "labels", "boxes", "cross_attention", "points", "point_attention")
        return {name: getattr(self, name) for name in names} | {
            f"map_{name}": map_ for name, map_ in self.maps.items()
        }


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(…, h, w) → (…, *size); there may be none, which `interpolate` refuses."""
    if not maps.numel():
        return maps.new_zeros((*maps.shape[:-2], *size))
    enlarged = F.interpolate(maps.reshape(-1, 1, *maps.shape[-2:]).float(), size=size, mode="bilinear")
    return enlarged.reshape(*maps.shape[:-2], *size)


def explain(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    image: RawImage,
    threshold: float = OBJECT_THRESHOLD,
    methods: Sequence[str] = tuple(METHODS),
    points: Sequence[tuple[float, float]] = (),
    max_detections: int | None = None,
) -> Explanation:
    """Explains the detections of one image by the model's attention.

    Args:
        model: A model in evaluation mode. Of a model with masks, its detector is explained.
        processor: The model's image processor.
        image: Any image, see `to_rgb`.
        threshold: Objects with a lower score are left out.
        methods: Names in `METHODS`, which have the papers.
        points: x and y in pixels of the image, for the encoder's self-attention.
        max_detections: Explain those with the highest scores only. None: all.

    Raises:
        ValueError: An unknown method, a point outside the image, points of a model without an encoder, or a model in
            training mode.
    """
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"methods: unknown method '{name}'; {did_you_mean(name, METHODS)}")
    if points and not model.config.encoder_layers:
        raise ValueError("points: the model has no encoder layers, expected no points.")
    pixels = to_rgb(image)
    inputs = processor(pixels, device=model.device)
    recording = record(model, inputs["pixel_values"], inputs.get("pixel_mask"), gradients="relevance" in methods)
    image_size = pixels.shape[-2], pixels.shape[-1]

    with torch.no_grad():
        queries, scores, labels = (values[:max_detections] for values in _detections(recording, threshold))
        boxes = box_convert(recording.outputs.pred_boxes[0, queries].double(), "cxcywh", "xyxy")
        height, width = image_size
        tokens = torch.tensor([_token_at(point, image_size, recording) for point in points]).long()
        point_attention = recording.self_attention(tokens.to(queries.device))
        cross_attention = recording.cross_attention(queries)
    maps = {}
    for name in methods:
        map_ = METHODS[name](recording, queries, labels)
        maps[name] = map_.detach().float().unflatten(-1, recording.grid).cpu()
    return Explanation(
        queries.cpu(),
        scores.cpu(),
        labels.cpu(),
        (boxes * boxes.new_tensor([width, height, width, height])).float().cpu(),
        cross_attention.cpu(),
        maps,
        torch.tensor(points, dtype=torch.float32).reshape(-1, 2),
        point_attention.cpu(),
        image_size,
        recording.processed_size,
        recording.canvas_size,
    )


def _detections(recording: Recording, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Query, score and label of each detection, by descending score."""
    scores, labels = recording.outputs.logits[0].softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True, stable=True)
    queries = order[scores[order] >= threshold]
    return queries, scores[queries], labels[queries]


def _token_at(point: tuple[float, float], image_size: tuple[int, int], recording: Recording) -> int:
    """The index of the encoder's token whose cell covers a point of the image."""
    x, y = point
    if not (0 <= x < image_size[1] and 0 <= y < image_size[0]):
        raise ValueError(
            f"points: got ({x:g}, {y:g}), expected a point inside the image of {image_size[1]}x{image_size[0]} pixels."
        )
    row, column = (
        min(cells - 1, int(at / image * extent))
        for at, image, extent, cells in zip((y, x), image_size, recording.extent, recording.grid, strict=True)
    )
    return row * recording.grid[1] + column
