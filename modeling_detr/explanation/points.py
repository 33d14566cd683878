"""The encoder's self-attention from every point of an image, small enough for a page: the paper's figure 3.

Shapes: M encoder layers · h, w cells that cover the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from modeling_detr.explanation.recording import NUMBERS_PER_CHUNK, record
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, RawImage, to_rgb
from modeling_detr.segmentation_detr import Detector


MAX_NUMBERS = 8_000_000
"""In the maps of all points: with six encoder layers, 800x1333 pixels have 7.7 million."""


@dataclass(frozen=True)
class PointMaps:
    """The maps of every point.

    Attributes:
        maps: (h · w, M + 1, h, w) uint8, of each cell, row by row: the attention in each encoder layer, the mean over
            heads, and then the mean over layers. Each map is divided by its maximum, which is 255.
        extent: (height, width) of the image in cells.
        cell_size: Feature cells that a cell has in a row and in a column.
    """

    maps: NDArray[np.uint8]
    extent: tuple[float, float]
    cell_size: int


@torch.no_grad()
def map_points(
    model: Detector, processor: DetrTorchvisionImageProcessor, image: RawImage, max_numbers: int = MAX_NUMBERS
) -> PointMaps:
    """Computes the encoder's self-attention from every point of an image.

    Args:
        model: A model in evaluation mode, with at least one encoder layer.
        processor: The model's image processor.
        image: Any image, see `to_rgb`.
        max_numbers: If the maps have more numbers, feature cells are joined to larger ones: the attention to a cell is
            the mean of theirs, and that from a cell is of the one in its middle.

    Raises:
        ValueError: The model is in training mode, or has no encoder layers.
    """
    if not model.config.encoder_layers:
        raise ValueError("model: it has no encoder layers, expected at least one.")
    inputs = processor(to_rgb(image), device=model.device)
    recording = record(model, inputs["pixel_values"], inputs.get("pixel_mask"))
    layers = len(recording.encoder) + 1
    height, width = covering(recording.extent)
    size = 1
    while layers * (-(-height // size) * -(-width // size)) ** 2 > max_numbers:
        size += 1
    rows, columns = (torch.arange(0, side, size).add(size // 2).clamp(max=side - 1) for side in (height, width))
    tokens = (rows[:, None] * recording.grid[1] + columns).flatten().to(inputs["pixel_values"].device)
    maps = []
    heads, num_tokens, _ = recording.encoder[0].key_heads.shape
    for chunk in tokens.split(max(1, NUMBERS_PER_CHUNK // (layers * heads * num_tokens))):
        attention = recording.self_attention(chunk).float().mean(2)[..., :height, :width]  # (N, M, height, width)
        attention = torch.cat([attention, attention.mean(1, keepdim=True)], 1)
        maps.append(to_bytes(F.avg_pool2d(attention, size, ceil_mode=True)))
    return PointMaps(np.concatenate(maps), (recording.extent[0] / size, recording.extent[1] / size), size)


def covering(extent: tuple[float, float]) -> tuple[int, int]:
    """The rows and columns of cells that cover an image of an extent in cells."""
    height, width = (int(np.ceil(side - 1e-6)) for side in extent)
    return height, width


def to_bytes(maps: Tensor) -> NDArray[np.uint8]:
    """Maps (…, h, w) that are not negative, each divided by its maximum, as uint8 from 0 to 255."""
    largest = maps.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    scaled: NDArray[np.uint8] = (255 * maps / largest).round().to(torch.uint8).cpu().numpy()
    return scaled
