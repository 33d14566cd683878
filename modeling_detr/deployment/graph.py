"""The graph of an exported model: tensors in, tensors out, with any number of images of any size.

Shapes: B images · Q queries · C classes · H, W pixels · M masks, h, w their cells.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from timm.layers import padding as timm_padding
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import box_convert

from modeling_detr.errors_detr import ModelError
from modeling_detr.layers_detr import HeadLinear
from modeling_detr.segmentation_detr import Detector, DetrForSegmentation


# Its feature maps of strides 4, 8 and 16 have odd sides. If they were even, AOTInductor would halve the sizes at
# pooling layers that round up, as in timm's resnet…d and …t, without rounding, and return wrong numbers in silence.
_SAMPLE_SHAPE = (2, 131, 163)  # images, height, width


@dataclass(frozen=True)
class GraphOptions:
    """What the graph takes and returns.

    Attributes:
        pixel_mask: Whether `pixel_mask` is an input; without it, all images of a batch have to be of one size.
        postprocess: Whether the outputs are `scores`, `labels` and `boxes` in pixels rather than `logits` and
            `pred_boxes`; `image_sizes` is then an input.
        masks_per_image: Of a segmentation model: the number of queries per image, those with the highest scores, whose
            masks are computed. None: those that score above the input `score_threshold`, and the best one.
        fixed_size: (height, width) of all batches, which some backbones need; None: any.
    """

    pixel_mask: bool = True
    postprocess: bool = False
    masks_per_image: int | None = None
    fixed_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TracedDetector:
    """A graph, and the names of its inputs and outputs in their order."""

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class DetectorGraph(nn.Module):
    """A detector as a function of tensors, in a form that exporters understand.

    Args:
        model: The detector; a copy of it is used.
        options: The inputs and outputs.
        dtype: The precision of the weights and of all but the heads.
    """

    def __init__(self, model: Detector, options: GraphOptions, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().to("cpu", dtype).requires_grad_(False)
        self.model.config.auxiliary_loss = False  # the heads then read the last layer only
        for module in self.model.modules():
            if isinstance(module, HeadLinear):
                module.exact = False  # float64, which few runtimes have
            elif isinstance(module, nn.GroupNorm):
                module.__class__ = AnyBatchGroupNorm
        self.options = options
        self.dtype = dtype

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        score_threshold: Tensor | None = None,
        image_sizes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Detects objects.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded with zeros on the right and at the bottom.
            pixel_mask: (B, H, W) int64, 1 = image, 0 = padding.
            score_threshold: Scalar; masks are computed for queries with a higher score.
            image_sizes: (B, 2) int64, height and width in pixels of the images that boxes are returned for.

        Returns:
            `logits` (B, Q, C + 1) and `pred_boxes` (B, Q, 4) as the model returns them; or `scores` (B, Q), `labels`
            (B, Q) int64 and `boxes` (B, Q, 4) xyxy in pixels. With masks also `mask_queries` (M, 2) int64, the image
            and the query of each mask, and `pred_masks` (M, h, w) logits.
        """
        masks = {"output_masks": False} if isinstance(self.model, DetrForSegmentation) else {}
        output = self.model(pixel_values.to(self.dtype), pixel_mask, **masks)
        scores, labels = output.logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
        outputs = {"logits": output.logits, "pred_boxes": output.pred_boxes}
        if image_sizes is not None:
            boxes = box_convert(output.pred_boxes, "cxcywh", "xyxy") * image_sizes.flip(1).repeat(1, 2)[:, None]
            outputs = {"scores": scores, "labels": labels, "boxes": boxes}
        if isinstance(self.model, DetrForSegmentation):
            selected = self._selected(scores, score_threshold)
            masks_of_selected = self.model.masks_of(output, selected[:, 0], selected[:, 1])
            outputs |= {"mask_queries": selected, "pred_masks": masks_of_selected.float()}
        return outputs

    def _selected(self, scores: Tensor, threshold: Tensor | None) -> Tensor:
        """(M, 2) image and query of each mask to compute, in their order; at least one per image."""
        if threshold is None:
            best = scores.topk(self.options.masks_per_image or scores.shape[1], dim=1).indices.sort(dim=1).values
            images = torch.arange(scores.shape[0], device=scores.device)[:, None].expand_as(best)
            return torch.stack([images.flatten(), best.flatten()], dim=1)
        is_best = torch.arange(scores.shape[1], device=scores.device) == scores.argmax(1, keepdim=True)
        return ((scores > threshold) | is_best).nonzero()


def trace_detector(
    model: Detector, options: GraphOptions | None = None, dtype: torch.dtype = torch.float32
) -> TracedDetector:
    """Traces a model with `torch.export`, for any number of images, of any size unless it is fixed.

    Args:
        model: The detector, which is not changed.
        options: The inputs and outputs.
        dtype: The precision of the weights and of all but the heads.

    Raises:
        ModelError: The backbone does not take images of any size, or cannot be exported at all.
    """
    graph = DetectorGraph(model, options or GraphOptions(), dtype)
    masks = isinstance(model, DetrForSegmentation)
    noise = _noise(graph.options, model.config.num_channels, masks, *_SAMPLE_SHAPE, padding=40)
    sample = {name: torch.from_numpy(values) for name, values in noise.items()}
    with _export_mode(), torch.no_grad():
        try:
            outputs = tuple(graph(**sample))
            program = torch.export.export(graph, (), sample, dynamic_shapes=_dynamic_shapes(graph, sample))
        except Exception as error:  # the exporter raises whatever the backbone's code leads to
            raise _explained(graph, error) from error
    return TracedDetector(program, tuple(sample), outputs)


def example_inputs(options: GraphOptions, channels: int, masks: bool) -> list[dict[str, np.ndarray]]:
    """Batches of noise to compare outputs on: one and three images, of odd sizes, with and without padding.

    Args:
        options: The inputs of the graph.
        channels: Channels of an image.
        masks: Whether the model is a segmentation model.
    """
    shapes = ((1, 160, 192, 0), (1, 131, 203, 0), (3, 128, 160, 47), (3, 157, 99, 30))
    return [_noise(options, channels, masks, *shape) for shape in shapes]


def _noise(
    options: GraphOptions, channels: int, masks: bool, images: int, height: int, width: int, padding: int
) -> dict[str, np.ndarray]:
    """A batch by the names of the inputs, each image padded otherwise; without a mask, none is padded."""
    height, width = options.fixed_size or (height, width)
    padding = padding if options.pixel_mask else 0
    mask = np.ones((images, height, width), np.int64)
    for image in range(images):
        mask[image, height - image * padding // 2 :] = 0
        mask[image, :, width - padding // (image + 1) :] = 0
    pixels = np.random.default_rng(0).standard_normal((images, channels, height, width), np.float32)
    inputs: dict[str, np.ndarray] = {"pixel_values": pixels * mask[:, None].astype(np.float32)}
    if options.pixel_mask:
        inputs["pixel_mask"] = mask
    if masks and options.masks_per_image is None:
        inputs["score_threshold"] = np.array(-1, np.float32)
    if options.postprocess:
        inputs["image_sizes"] = np.tile(np.array([[480, 640]]), (images, 1))
    return inputs


def _dynamic_shapes(graph: DetectorGraph, sample: dict[str, Tensor]) -> dict[str, dict[int, object]]:
    """The axes of each input that may differ from the sample."""
    image_axes = [] if graph.options.fixed_size else [2, 3]
    shapes = {"pixel_values": [0, *image_axes], "pixel_mask": [0, *(axis - 1 for axis in image_axes)]}
    axes = {**shapes, "score_threshold": [], "image_sizes": [0]}
    return {name: dict.fromkeys(axes[name], Dim.DYNAMIC) for name in sample}


class AnyBatchGroupNorm(nn.GroupNorm):
    """A group norm without PyTorch's check that a batch holds more than one value, which no graph can contain."""

    def forward(self, states: Tensor) -> Tensor:
        """(B, channels, …) → the same shape."""
        return torch.group_norm(states, self.num_groups, self.weight, self.bias, self.eps)


@contextmanager
def _export_mode() -> Iterator[None]:
    """Silences the exporter, and writes timm's "same" padding in a form that it handles in seconds."""
    with (
        warnings.catch_warnings(action="ignore"),
        mock.patch.object(logging.getLogger("torch.fx.experimental.symbolic_shapes"), "disabled", True),
        mock.patch.object(timm_padding, "get_same_padding", same_padding),
    ):
        yield


def same_padding(side: int, kernel_size: int, stride: int, dilation: int) -> int:
    """TensorFlow's "same" padding of one side in whole numbers; timm's formula, in floats, is equal.

    With timm's, the size of each feature map is a formula that takes the exporter minutes to simplify. Here the side
    cancels out: the padded side is a multiple of the stride and a constant, the convolved one a rounded quotient.
    """
    covered = dilation * (kernel_size - 1) + 1
    padding = (side + stride - 1) // stride * stride - stride + covered - side
    return padding if covered >= stride else max(padding, 0)


def _explained(graph: DetectorGraph, error: Exception) -> ModelError:
    """The exporter's error in one sentence, with what to try."""
    backbone = graph.model.config.backbone
    reason = str(error).strip().partition("\n")[0].rstrip(".")[:200]
    if graph.options.fixed_size is None:
        return ModelError(
            backbone,
            f"this backbone cannot be exported for images of any size ({reason})",
            "give all images one size",
            {"fixed_size": (640, 640)},
        )
    return ModelError(backbone, f"this backbone cannot be exported ({reason})", "use another fixed_size or backbone")
