"""Model outputs to predictions: boxes, instances, panoptic segments and semantic maps at the original image's size.

`DetrPostProcessor` holds the `post_process_*` methods of `DetrTorchvisionImageProcessor`. The functions that they call
follow in the same order: panoptic, instance, semantic, shared.

Shapes: B images · Q queries · C classes · K predictions of one image · H, W pixels · h, w cells of the mask head.
Boxes: `boxes_xyxy` are corners in pixels, `boxes_cxcywh` centre and size relative to the **unpadded** image. Sizes are
`(height, width)`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.models.detr.image_processing_detr import convert_segmentation_to_rle

from .structures_detr import DetectionResult, InstanceResult, PanopticResult, SegmentInfo


Sizes = Tensor | Sequence[tuple[int, int]]
"""(height, width) of each image: a list of B pairs, or an integer tensor (B, 2)."""

MaskPredictor = Callable[[Tensor], Tensor]
"""Computes the mask logits (M, h, w) of the M queries selected by a (B, Q) bool tensor."""

_MASKS_PER_CHUNK = 16  # one mask of a large image takes 4 MB, and several copies of it are made
_MAX_DROPPED_AREA = 4  # pixels; a panoptic segment of this area or less is dropped, as in the original


class DetectionOutput(Protocol):
    """The model outputs that detection needs: `logits` (B, Q, C + 1), "no object" last, and `pred_boxes` (B, Q, 4),
    cxcywh in [0, 1]."""

    logits: Tensor
    pred_boxes: Tensor


class SegmentationOutput(DetectionOutput, Protocol):
    """The model outputs that segmentation needs: also `pred_masks` (B, Q, h, w), or None if masks come from a
    `MaskPredictor`.

    Three more fields are used where the outputs have them, as those of `DetrForSegmentation` do: `image_sizes` (B, 2),
    `canvas_size` (B, 2) and `stuff_labels` (B, n).
    """

    pred_masks: Tensor | None


class DetrPostProcessor:
    """Converts the outputs of a DETR to predictions; the second half of `DetrTorchvisionImageProcessor`."""

    def post_process_object_detection(
        self,
        outputs: DetectionOutput,
        threshold: float = 0.5,
        target_sizes: Sizes | None = None,
    ) -> list[DetectionResult]:
        """Converts outputs to detections: for each query its most likely class, and its box.

        Original: models/detr.py, `PostProcess`.

        Args:
            outputs: The model's output: `logits` (B, Q, C + 1) with "no object" last, and `pred_boxes` (B, Q, 4),
                cxcywh in [0, 1].
            threshold: Detections with a lower score are dropped. 0 keeps all queries in their order.
            target_sizes: `(height, width)` of each original image, a list or a (B, 2) tensor. None: boxes stay in
                [0, 1].

        Returns:
            One dict per image: `scores` (K,), `labels` (K,) int64, `boxes` (K, 4) xyxy in pixels of `target_sizes`.
            Half precision is converted to float32.

        Raises:
            ValueError: `target_sizes` is not one (height, width) per image.
        """
        scores, labels = _class_probabilities(outputs)[..., :-1].max(-1)  # (B, Q); the last class is "no object"
        # half precision would move a box at the edge of a large image by pixels
        boxes_xyxy = box_convert(_at_least_float32(outputs.pred_boxes), "cxcywh", "xyxy")  # (B, Q, 4)
        if target_sizes is not None:
            height_width = _checked_sizes("target_sizes", target_sizes, len(scores)).to(boxes_xyxy)
            boxes_xyxy = boxes_xyxy * height_width[:, [1, 0, 1, 0]][:, None]
        return [
            _select({"scores": scores[i], "labels": labels[i], "boxes": boxes_xyxy[i]}, scores[i] >= threshold)
            for i in range(len(scores))
        ]

    @torch.no_grad()
    def post_process_panoptic_segmentation(
        self,
        outputs: SegmentationOutput,
        threshold: float = 0.85,
        mask_threshold: float = 0.0,
        overlap_mask_area_threshold: float = 0.0,
        label_ids_to_fuse: Sequence[int] | set[int] | None = None,
        target_sizes: Sizes | None = None,
        *,
        processed_sizes: Sizes | None = None,
        predict_masks: MaskPredictor | None = None,
    ) -> list[PanopticResult]:
        """Converts outputs to one map of segments per image: each pixel goes to the query with the highest mask logit.

        Queries that predict "no object" or score too low are ignored. All masks of one stuff class become one segment,
        and segments of at most four pixels are dropped.

        Paper: sec. 4.4. Original: models/segmentation.py, `PostProcessPanoptic`. Differs from the original: if the
        outputs contain `image_sizes` and `canvas_size`, padding is cropped before pixels are assigned.

        Args:
            outputs: The model's output: `logits` (B, Q, C + 1) with "no object" last, `pred_boxes` (B, Q, 4), and
                `pred_masks` (B, Q, h, w) unless `predict_masks` is given.
            threshold: Only queries whose class has a higher probability are used.
            mask_threshold: Pixels whose query gives them a lower mask probability belong to no segment. 0, as in the
                original: every pixel belongs to one.
            overlap_mask_area_threshold: A segment that shows less than this fraction of its query's mask, because
                others cover it, is dropped and leaves its pixels unassigned. 0, as in the original: none is.
            label_ids_to_fuse: Labels of stuff. None: `stuff_labels` of the outputs, if they have them.
            target_sizes: `(height, width)` of each original image. None: the processed sizes.
            processed_sizes: `(height, width)` of each image as the model saw it, without padding. None: `image_sizes`
                of the outputs, or else `target_sizes`.
            predict_masks: Computes only the masks that are needed, which is much faster; for instance
                `functools.partial(model.predict_masks, outputs)`. None: `outputs.pred_masks` is used.

        Returns:
            One dict per image: `segmentation` (height, width) int64 and `segments_info`, see `PanopticResult`. Ids
            count from 0, and -1 is no segment. If there is no segment at all, the map is 0 everywhere.

        Raises:
            ValueError: There are no masks, or sizes are not one (height, width) per image.
        """
        probabilities = _class_probabilities(outputs)
        scores, labels = probabilities.max(-1)  # (B, Q)
        keep = (labels != probabilities.shape[-1] - 1) & (scores > threshold)
        stuff = _stuff_labels(outputs) if label_ids_to_fuse is None else {int(label) for label in label_ids_to_fuse}
        masks = _masks_by_image(outputs, keep, predict_masks)
        frames = _image_frames(outputs, target_sizes, processed_sizes)
        return [
            _assemble_segments(
                _resize_bilinear(_crop_padding(masks[i], frame), frame.processed_size),
                scores[i][keep[i]],
                labels[i][keep[i]].tolist(),
                stuff,
                frame.target_size,
                mask_threshold,
                overlap_mask_area_threshold,
            )
            for i, frame in enumerate(frames)
        ]

    @torch.no_grad()
    def post_process_instance_segmentation(
        self,
        outputs: SegmentationOutput,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: Sizes | None = None,
        return_coco_annotation: bool = False,
        *,
        processed_sizes: Sizes | None = None,
        predict_masks: MaskPredictor | None = None,
    ) -> list[InstanceResult]:
        """Converts outputs to detections with masks, which may overlap, and to a map of instances without overlap.

        Original: models/segmentation.py, `PostProcessSegm`. Differs from the original: if the outputs contain
        `image_sizes` and `canvas_size`, padding is cropped before masks are enlarged, so it changes no pixel.

        Args:
            outputs: See `post_process_panoptic_segmentation`. If they have `stuff_labels`, those classes are dropped.
            threshold: Detections with a lower score are dropped. 0 keeps all queries in their order.
            mask_threshold: A pixel belongs to a mask if its probability is higher.
            overlap_mask_area_threshold: An instance is dropped from the map if less than this fraction of it is
                visible behind instances with higher scores.
            target_sizes: See `post_process_panoptic_segmentation`.
            return_coco_annotation: Whether `segmentation` is a list of run lengths per id, as in Transformers.
            processed_sizes: See `post_process_panoptic_segmentation`.
            predict_masks: See `post_process_panoptic_segmentation`.

        Returns:
            One dict per image: `scores` (K,), `labels` (K,), `boxes` (K, 4) xyxy as `post_process_object_detection`
            returns them (relative without `target_sizes`) and `masks` (K, height, width) bool; and `segmentation`
            (height, width) int64 with `segments_info`, where an id is the index of a detection and -1 is none.

        Raises:
            ValueError: There are no masks, or sizes are not one (height, width) per image.
        """
        detections = self.post_process_object_detection(outputs, 0.0, target_sizes)
        keep = torch.stack([detection["scores"] >= threshold for detection in detections])  # (B, Q)
        stuff = _stuff_labels(outputs)
        if stuff:
            labels = torch.stack([detection["labels"] for detection in detections])
            keep &= ~torch.isin(labels, torch.tensor(sorted(stuff), device=labels.device))
        frames = _image_frames(outputs, target_sizes, processed_sizes)
        # without canvas_size in the outputs, assume as the original does that only the largest images are unpadded
        canvas_size = (
            max(frame.processed_size[0] for frame in frames),
            max(frame.processed_size[1] for frame in frames),
        )
        mask_logits = _masks_by_image(outputs, keep, predict_masks)
        results = [
            _assemble_instances(
                _select(detections[i], keep[i]),
                _binary_masks(mask_logits[i], frame, canvas_size, mask_threshold),
                overlap_mask_area_threshold,
            )
            for i, frame in enumerate(frames)
        ]
        if return_coco_annotation:
            for result in results:
                result["segmentation"] = convert_segmentation_to_rle(torch.as_tensor(result["segmentation"]).cpu())
        return results

    @torch.no_grad()
    def post_process_semantic_segmentation(
        self,
        outputs: SegmentationOutput,
        target_sizes: Sizes | None = None,
        *,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Converts outputs to the most likely class of each pixel: the sum of class times mask over all queries.

        Args:
            outputs: See `post_process_panoptic_segmentation`; with `pred_masks` of all queries.
            target_sizes: `(height, width)` of each original image. None: the processed sizes.
            return_segmentation_scores: Return the scores of all classes too.

        Returns:
            (height, width) int64 labels, one tensor per image; on request one output per image with these as
            `segmentation`, and with `segmentation_scores` (C, height, width).

        Raises:
            ValueError: There are no masks, or sizes are not one (height, width) per image.
        """
        probabilities = _class_probabilities(outputs)[..., :-1]  # (B, Q, C)
        masks = _masks_by_image(outputs, torch.ones_like(probabilities[..., 0], dtype=torch.bool), None)
        frames = _image_frames(outputs, target_sizes, None)
        class_maps = [
            torch.einsum("qc,qhw->chw", scores, _crop_padding(logits, frame).to(scores.dtype).sigmoid())
            for scores, logits, frame in zip(probabilities, masks, frames, strict=True)
        ]
        sizes = [frame.target_size for frame in frames]
        labels = [_most_likely_classes(maps, size) for maps, size in zip(class_maps, sizes, strict=True)]
        if not return_segmentation_scores:
            return labels
        return [
            SemanticSegmentationPostProcessorOutput(
                {"segmentation": segmentation, "segmentation_scores": _resize_bilinear(maps, size)}
            )
            for segmentation, maps, size in zip(labels, class_maps, sizes, strict=True)
        ]


# Panoptic: each pixel belongs to one segment


def _assemble_segments(
    masks: Tensor,
    scores: Tensor,
    labels: list[int],
    stuff: set[int],
    target_size: tuple[int, int],
    mask_threshold: float,
    overlap_threshold: float,
) -> PanopticResult:
    """Combines one image's mask logits (K, height, width) to a map; see `post_process_panoptic_segmentation`."""
    first_queries = {label: labels.index(label) for label in stuff if label in labels}
    owners = [first_queries.get(label, query) for query, label in enumerate(labels)]
    winners, queries = _assign_pixels(masks, owners, target_size)
    if not queries:
        return {"segmentation": torch.zeros(target_size, dtype=torch.int64, device=masks.device), "segments_info": []}
    winners = _drop_weak_pixels(masks, winners, queries, mask_threshold, overlap_threshold)
    query_map = _resize_nearest(winners, target_size)
    visible = [query for query in queries if bool((query_map == query).any())]
    segment_ids = torch.full((len(labels) + 1,), -1, device=masks.device)  # -1 indexes the last entry, which stays -1
    segment_ids[torch.tensor(visible, dtype=torch.int64, device=masks.device)] = torch.arange(
        len(visible), device=masks.device
    )
    segments: list[SegmentInfo] = []
    for segment_id, query in enumerate(visible):
        members = [member for member, owner in enumerate(owners) if owner == query]
        segments.append(
            {
                "id": segment_id,
                "label_id": labels[query],
                "score": max(float(scores[member]) for member in members),
                "was_fused": len(members) > 1,
            }
        )
    return {"segmentation": segment_ids[query_map], "segments_info": segments}


def _assign_pixels(masks: Tensor, owners: list[int], target_size: tuple[int, int]) -> tuple[Tensor, list[int]]:
    """Gives each pixel to the query with the highest mask logit, and drops queries with too few pixels.

    As in the original, all pixels of one stuff class first go to the first query of that class, which leaves the
    others without any; and after segments are dropped, the masks of the remaining queries compete again.

    Args:
        masks: (K, height, width) mask logits.
        owners: For each query the query that gets its pixels: the first of the same stuff class, or itself.
        target_size: The size at which areas are measured.

    Returns:
        The query of each pixel (height, width), and the queries that have pixels; if there are none, the map has no
        meaning.
    """
    queries = list(range(len(owners)))
    winners = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device)
    if queries:
        winners = torch.tensor(owners, device=masks.device)[masks.softmax(0).argmax(0)]
    while queries:
        areas = torch.bincount(_resize_nearest(winners, target_size).flatten(), minlength=len(owners)).tolist()
        large = [query for query in queries if areas[query] > _MAX_DROPPED_AREA]
        if large == queries:
            break
        queries = large
        if queries:
            remaining = torch.tensor(queries, device=masks.device)
            winners = remaining[masks[remaining].softmax(0).argmax(0)]
    return winners, queries


def _drop_weak_pixels(
    masks: Tensor, winners: Tensor, queries: Sequence[int], mask_threshold: float, overlap_threshold: float
) -> Tensor:
    """Sets `winners` (height, width) to -1 below the two thresholds, which the original does not have."""
    if mask_threshold <= 0 and overlap_threshold <= 0:
        return winners
    probabilities = masks.gather(0, winners[None])[0].sigmoid()
    winners = torch.where(probabilities >= mask_threshold, winners, -1)
    for query in queries:
        mask_area = int((masks[query].sigmoid() >= (mask_threshold or 0.5)).sum())
        if int((winners == query).sum()) < overlap_threshold * mask_area:
            winners = winners.masked_fill(winners == query, -1)
    return winners


# Instances: masks that may overlap


def _binary_masks(
    mask_logits: Tensor, frame: "_ImageFrame", canvas_size: tuple[int, int], mask_threshold: float
) -> Tensor:
    """Converts mask logits (K, h, w) to masks (K, height, width) bool at the target size.

    Args:
        mask_logits: The masks of one image.
        frame: The image's sizes.
        canvas_size: Height and width of the padded batch, if `frame` does not have it.
        mask_threshold: A pixel belongs to a mask if its probability is higher.
    """
    height, width = frame.processed_size
    masks = [torch.zeros((0, *frame.target_size), dtype=torch.bool, device=mask_logits.device)]
    for chunk in mask_logits.split(_MASKS_PER_CHUNK):
        if frame.canvas_size is None:
            enlarged = _resize_bilinear(chunk, canvas_size)[:, :height, :width]
        else:
            enlarged = _resize_bilinear(_crop_padding(chunk, frame), frame.processed_size)
        inside = enlarged.sigmoid() > mask_threshold
        masks.append(F.interpolate(inside[:, None].to(torch.uint8), size=frame.target_size)[:, 0].bool())
    return torch.cat(masks)


def _assemble_instances(detection: DetectionResult, masks: Tensor, overlap_threshold: float) -> InstanceResult:
    """Adds to one image's detections their masks (K, height, width), and a map with the highest score in front."""
    scores, labels = detection["scores"], detection["labels"]
    segmentation = torch.full(masks.shape[1:], -1, dtype=torch.int64, device=masks.device)
    for index in scores.argsort().tolist():
        segmentation[masks[index]] = index
    visible_areas = torch.bincount(segmentation.flatten() + 1, minlength=len(masks) + 1)[1:]
    areas = masks.flatten(1).sum(1)
    shown = (visible_areas > 0) & (visible_areas >= overlap_threshold * areas)
    segmentation = torch.where(torch.cat([shown.new_zeros(1), shown])[segmentation + 1], segmentation, -1)
    segments: list[SegmentInfo] = [
        {"id": index, "label_id": int(labels[index]), "score": float(scores[index]), "was_fused": False}
        for index in shown.nonzero().flatten().tolist()
    ]
    return {
        "scores": scores,
        "labels": labels,
        "boxes": detection["boxes"],
        "masks": masks,
        "segmentation": segmentation,
        "segments_info": segments,
    }


# Semantic: each pixel has a class


def _most_likely_classes(class_maps: Tensor, target_size: tuple[int, int]) -> Tensor:
    """The class with the highest score (C, h, w) at each pixel: (height, width) int64."""
    best_scores = class_maps.new_full(target_size, -1.0)
    best_labels = torch.zeros(target_size, dtype=torch.int64, device=class_maps.device)
    first_label = 0
    for chunk in class_maps.split(_MASKS_PER_CHUNK):  # enlarged, the maps of all classes would not fit into memory
        scores, labels = _resize_bilinear(chunk, target_size).max(0)
        best_labels = torch.where(scores > best_scores, labels + first_label, best_labels)
        best_scores = torch.maximum(best_scores, scores)
        first_label += len(chunk)
    return best_labels


# Shared: scores, sizes, masks


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _class_probabilities(outputs: DetectionOutput) -> Tensor:
    """The softmax (B, Q, C + 1) of the logits, "no object" last."""
    return _at_least_float32(outputs.logits).softmax(-1)


def _select(detection: DetectionResult, keep: Tensor) -> DetectionResult:
    """The detections of one image where `keep` (Q,) is true."""
    return {
        "scores": detection["scores"][keep],
        "labels": detection["labels"][keep],
        "boxes": detection["boxes"][keep],
    }


def _optional_field(outputs: object, name: str) -> Tensor | None:
    """A field that `DetrForSegmentation` adds to its outputs; None where outputs do not have it."""
    value = getattr(outputs, name, None)
    return None if value is None else torch.as_tensor(value)


def _stuff_labels(outputs: SegmentationOutput) -> set[int]:
    """The labels of stuff in the outputs, which repeat them for each image; empty if they have none."""
    labels = _optional_field(outputs, "stuff_labels")
    return set() if labels is None else set(labels.flatten().tolist())


def _checked_sizes(name: str, sizes: Sizes, num_images: int) -> Tensor:
    """`sizes` as a tensor (B, 2).

    Raises:
        ValueError: They are not one (height, width) per image.
    """
    tensor = sizes
    if not isinstance(tensor, Tensor):  # but it may be a list of tensors
        try:
            tensor = torch.as_tensor([size.tolist() if isinstance(size, Tensor) else size for size in sizes])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: got {str(sizes)[:80]}, expected one (height, width) per image.") from error
    if tuple(tensor.shape) != (num_images, 2):
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)} for {num_images} images, expected ({num_images}, 2), one "
            f"(height, width) per image."
        )
    return tensor


class _ImageFrame(NamedTuple):
    """The sizes (height, width) of one image.

    Attributes:
        processed_size: As the model saw it, without padding.
        target_size: As predictions are returned, usually the original image's.
        canvas_size: Of the padded batch; None if the outputs do not have it.
    """

    processed_size: tuple[int, int]
    target_size: tuple[int, int]
    canvas_size: tuple[int, int] | None


def _image_frames(
    outputs: SegmentationOutput, target_sizes: Sizes | None, processed_sizes: Sizes | None
) -> list[_ImageFrame]:
    """The sizes of each image of a batch; see `post_process_panoptic_segmentation` for the defaults.

    Raises:
        ValueError: Sizes are missing, not one (height, width) per image, or not above 0.
    """
    num_images = len(outputs.logits)
    targets = None if target_sizes is None else _checked_sizes("target_sizes", target_sizes, num_images)
    if processed_sizes is not None:
        processed = _checked_sizes("processed_sizes", processed_sizes, num_images)
    else:
        image_sizes = _optional_field(outputs, "image_sizes")
        if image_sizes is not None:
            processed = image_sizes
        elif targets is not None:
            processed = targets
        elif outputs.pred_masks is not None:
            processed = torch.tensor(outputs.pred_masks.shape[-2:]).expand(num_images, 2)
        else:
            raise ValueError("target_sizes: got None, expected (height, width) of each image.")
    canvas = _optional_field(outputs, "canvas_size")
    canvas_size = None if canvas is None else _pair(canvas.reshape(-1, 2)[0])  # one for the whole batch
    targets = processed if targets is None else targets
    for name, sizes in (("target_sizes", targets), ("processed_sizes", processed)):
        if (sizes <= 0).any():
            raise ValueError(f"{name}: got {sizes.tolist()}, expected heights and widths above 0.")
    return [
        _ImageFrame(_pair(before), _pair(after), canvas_size)
        for before, after in zip(processed.cpu(), targets.cpu(), strict=True)
    ]


def _pair(size: Tensor) -> tuple[int, int]:
    height, width = size.tolist()
    return int(height), int(width)


def _masks_by_image(outputs: SegmentationOutput, keep: Tensor, predict_masks: MaskPredictor | None) -> list[Tensor]:
    """The mask logits (K, h, w) of each image's queries that `keep` (B, Q) selects.

    Raises:
        ValueError: There are no masks.
    """
    if predict_masks is not None:
        masks = predict_masks(keep)
    elif outputs.pred_masks is not None:
        masks = outputs.pred_masks[keep]
    else:
        raise ValueError(
            "outputs: no pred_masks, because the model was called with labels or with output_masks=False; pass "
            "predict_masks=functools.partial(model.predict_masks, outputs), or call the model with output_masks=True."
        )
    return list(masks.split(keep.sum(1).tolist()))


def _crop_padding(masks: Tensor, frame: _ImageFrame) -> Tensor:
    """Crops masks (K, h, w) of the padded canvas to the cells that show the image.

    A cell is `stride` pixels wide, a power of two, and the last one may reach past the edge. So the result is the same
    with and without padding.
    """
    if frame.canvas_size is None:
        return masks
    rows, columns = (
        math.ceil(image_side / 2 ** math.ceil(math.log2(canvas_side / cells) - 1e-9))
        for image_side, canvas_side, cells in zip(
            frame.processed_size, frame.canvas_size, masks.shape[-2:], strict=True
        )
    )
    return masks[:, :rows, :columns]


def _resize_bilinear(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes masks (K, h, w) to (K, *size), in float32 at least."""
    return F.interpolate(_at_least_float32(masks)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _resize_nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a map (H, W) of integers with Pillow, as the original does; PyTorch picks other pixels."""
    picture = Image.fromarray(labels.to("cpu", torch.int32).numpy())
    resized = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(resized).astype(np.int64)).to(labels.device)
