"""What a DETR's outputs become: boxes, instances, segments and semantic maps at the size of the original image.

`DetrPostProcessor` holds the `post_process_*` methods of `DetrTorchvisionImageProcessor`.

Shapes: B images · Q queries · C classes · K predictions of one image · H, W pixels · h, w cells of the mask head.
Boxes: `boxes_xyxy` are corners in pixels, `boxes_cxcywh` centre and size relative to the **unpadded** image. Sizes are
`(height, width)`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from .structures_detr import DetectionResult, InstanceResult, PanopticResult, SegmentInfo


class DetectionOutput(Protocol):
    """What `post_process_object_detection` reads of a model's output: `logits` (B, Q, C + 1) with "no object" last,
    and `pred_boxes` (B, Q, 4), cxcywh in [0, 1]."""

    logits: Tensor
    pred_boxes: Tensor


class SegmentationOutput(DetectionOutput, Protocol):
    """What turning outputs into segments needs of them."""

    pred_masks: Tensor | None


MaskPredictor = Callable[[Tensor], Tensor]


class DetrPostProcessor:
    """Converts outputs of a DETR to predictions; a part of `DetrTorchvisionImageProcessor`."""

    def post_process_object_detection(
        self,
        outputs: DetectionOutput,
        threshold: float = 0.5,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[DetectionResult]:
        """What the model says, as detections: each query's best class, and its box.

        Original: models/detr.py, `PostProcess`.

        Args:
            outputs: The model's output: `logits` (B, Q, C + 1) with "no object" last, and `pred_boxes` (B, Q, 4),
                cxcywh in [0, 1].
            threshold: Detections of a lower score are left out. 0 keeps all queries in their order.
            target_sizes: `(height, width)` of each original image, a list or a (B, 2) tensor. None: boxes stay in
                [0, 1].

        Returns:
            One dict an image: `scores` (K,), `labels` (K,) int64, `boxes` (K, 4) xyxy in pixels of `target_sizes`;
            float32 at least.

        Raises:
            ValueError: `target_sizes` are not one (height, width) an image.
        """
        # half precision would move a box at the edge of a large image by pixels
        precision = torch.promote_types(outputs.logits.dtype, torch.float32)
        logits, boxes_cxcywh = outputs.logits.to(precision), outputs.pred_boxes.to(precision)
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q); the last class is "no object"
        boxes_xyxy = box_convert(boxes_cxcywh, "cxcywh", "xyxy")  # (B, Q, 4)
        if target_sizes is not None:
            sizes = torch.as_tensor(target_sizes)
            if tuple(sizes.shape) != (len(logits), 2):
                raise ValueError(
                    f"target_sizes has shape {tuple(sizes.shape)} for {len(logits)} images; wanted one "
                    f"(height, width) an image, ({len(logits)}, 2)."
                )
            height_width = sizes.to(boxes_xyxy)
            boxes_xyxy = boxes_xyxy * height_width[:, [1, 0, 1, 0]][:, None]
        kept = scores >= threshold
        return [
            {"scores": scores[i][kept[i]], "labels": labels[i][kept[i]], "boxes": boxes_xyxy[i][kept[i]]}
            for i in range(len(logits))
        ]

    @torch.no_grad()
    def post_process_panoptic_segmentation(
        self,
        outputs: SegmentationOutput,
        threshold: float = 0.85,
        mask_threshold: float = 0.0,
        overlap_mask_area_threshold: float = 0.0,
        label_ids_to_fuse: Sequence[int] | set[int] | None = None,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        *,
        processed_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        predict_masks: MaskPredictor | None = None,
    ) -> list[PanopticResult]:
        """What the model says, as one map of segments: every pixel belongs to the query whose mask is highest there.

        Queries that say "no object" or are not sure do not take part. Masks of one class of stuff become one segment,
        and segments of at most four pixels are left out.

        Paper: sec. 4.4. Original: models/segmentation.py, `PostProcessPanoptic`. Differs from the original: padding is
        cut off before anything is decided, if `outputs` say where it is, as `DetrForSegmentation`'s do.

        Args:
            outputs: The model's output: `logits` (B, Q, C + 1) with "no object" last, `pred_boxes` (B, Q, 4), and
                `pred_masks` (B, Q, h, w) unless `predict_masks` is given.
            threshold: A query takes part if its class has a higher probability.
            mask_threshold: Pixels to which their query's own mask gives less than this probability belong to no
                segment. 0, as in the original: every pixel belongs to one.
            overlap_mask_area_threshold: A segment of which less than this share of its query's mask is to be seen,
                because others are in front, is left out, and its pixels belong to none. 0, as in the original: no
                segment is.
            label_ids_to_fuse: Labels of stuff. None: those that `outputs` name, as `DetrForSegmentation`'s do.
            target_sizes: `(height, width)` of each original image. None: the processed sizes.
            processed_sizes: `(height, width)` of each image as it went into the model, without padding. None: what
                `outputs` say, and if they do not say it, `target_sizes`.
            predict_masks: Computes the masks (M, h, w) of chosen queries, given as (B, Q) bool, for instance
                `functools.partial(model.predict_masks, outputs)`; much faster than the masks of all. None:
                `outputs.pred_masks` are taken.

        Returns:
            One dict an image: `segmentation` (height, width) int64 and `segments_info`, see `PanopticResult`; ids are
            0, 1, …, and -1 is no segment. Without any segment the map is 0 everywhere.

        Raises:
            ValueError: There are no masks, or sizes are not one (height, width) an image.
        """
        probabilities = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32)).softmax(-1)
        scores, labels = probabilities.max(-1)  # (B, Q)
        keep = (labels != probabilities.shape[-1] - 1) & (scores > threshold)
        stuff = _stuff_labels(outputs) if label_ids_to_fuse is None else {int(label) for label in label_ids_to_fuse}
        return [
            _to_segments(
                _enlarged(_cropped(masks, frame), frame.processed),
                scores[image][keep[image]],
                labels[image][keep[image]].tolist(),
                stuff,
                frame.target,
                mask_threshold,
                overlap_mask_area_threshold,
            )
            for image, (masks, frame) in enumerate(
                zip(
                    _masks_by_image(outputs, keep, predict_masks),
                    _frames(outputs, target_sizes, processed_sizes),
                    strict=True,
                )
            )
        ]

    @torch.no_grad()
    def post_process_instance_segmentation(
        self,
        outputs: SegmentationOutput,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.0,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        *,
        processed_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        predict_masks: MaskPredictor | None = None,
    ) -> list[InstanceResult]:
        """What the model says, as detections with their masks, which may overlap; and as a map in which they do not.

        Original: models/segmentation.py, `PostProcessSegm`. Differs from the original: padding is cut off before masks
        are enlarged, if `outputs` say where it is, so that it changes no pixel at an edge.

        Args:
            outputs: See `post_process_panoptic_segmentation`. Stuff that they name is left out.
            threshold: Detections of a lower score are left out. 0 keeps all queries in their order.
            mask_threshold: A pixel belongs to a mask if it has a higher probability.
            overlap_mask_area_threshold: In the map, an instance of which less than this share is to be seen, because
                those of higher scores are in front, is left out.
            target_sizes: See `post_process_panoptic_segmentation`.
            processed_sizes: See there.
            predict_masks: See there.

        Returns:
            One dict an image: `scores` (K,), `labels` (K,), `boxes` (K, 4) xyxy as of `post_process_object_detection`
            (relative without `target_sizes`), and `masks` (K, height, width) bool; and `segmentation` (height, width)
            int64 with `segments_info`, in which the id is the detection's number and -1 is none.

        Raises:
            ValueError: See `post_process_panoptic_segmentation`.
        """
        detections = self.post_process_object_detection(outputs, 0.0, target_sizes)
        stuff = _stuff_labels(outputs)
        keep = torch.stack([result["scores"] >= threshold for result in detections])  # (B, Q)
        if stuff:
            found = torch.stack([result["labels"] for result in detections])
            keep &= ~torch.isin(found, torch.tensor(sorted(stuff), device=found.device))
        frames = _frames(outputs, target_sizes, processed_sizes)
        # where outputs do not say how large the padded batch was, as the original: as large as its largest images
        canvas = max(frame.processed[0] for frame in frames), max(frame.processed[1] for frame in frames)
        results: list[InstanceResult] = []
        for kept, found_masks, detection, frame in zip(
            keep, _masks_by_image(outputs, keep, predict_masks), detections, frames, strict=True
        ):
            height, width = frame.processed
            pieces = [torch.zeros((0, *frame.target), dtype=torch.bool, device=found_masks.device)]
            for piece in found_masks.split(_MASKS_AT_ONCE):
                if frame.canvas is None:
                    enlarged = _enlarged(piece, canvas)[:, :height, :width]
                else:
                    enlarged = _enlarged(_cropped(piece, frame), frame.processed)
                visible = enlarged.sigmoid() > mask_threshold
                pieces.append(F.interpolate(visible[:, None].to(torch.uint8), size=frame.target)[:, 0].bool())
            masks = torch.cat(pieces)
            scores, labels = detection["scores"][kept], detection["labels"][kept]
            segmentation, segments = _overlaid(masks, scores, labels, overlap_mask_area_threshold)
            results.append(
                {
                    "scores": scores,
                    "labels": labels,
                    "boxes": detection["boxes"][kept],
                    "masks": masks,
                    "segmentation": segmentation,
                    "segments_info": segments,
                }
            )
        return results

    @torch.no_grad()
    def post_process_semantic_segmentation(
        self,
        outputs: SegmentationOutput,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """What the model says, as the likeliest class of every pixel: queries add up class times mask.

        Args:
            outputs: See `post_process_panoptic_segmentation`; with `pred_masks` of all queries.
            target_sizes: `(height, width)` of each original image. None: the processed sizes.

        Returns:
            (height, width) int64 labels, one an image.

        Raises:
            ValueError: See `post_process_panoptic_segmentation`.
        """
        probabilities = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32)).softmax(-1)
        keep = torch.ones_like(probabilities[..., 0], dtype=torch.bool)
        results = []
        for classes, masks, frame in zip(
            probabilities[..., :-1],
            _masks_by_image(outputs, keep, None),
            _frames(outputs, target_sizes, None),
            strict=True,
        ):
            maps = torch.einsum("qc,qhw->chw", classes, _cropped(masks, frame).to(classes.dtype).sigmoid())
            best = maps.new_full(frame.target, -1.0)
            labels = torch.zeros(frame.target, dtype=torch.int64, device=maps.device)
            for first, piece in zip(range(0, len(maps), _MASKS_AT_ONCE), maps.split(_MASKS_AT_ONCE), strict=True):
                score, label = _enlarged(piece, frame.target).max(0)
                labels = torch.where(score > best, label + first, labels)
                best = torch.maximum(best, score)
            results.append(labels)
        return results


# From masks to segments


_MASKS_AT_ONCE = 16  # a mask of a large image takes 4 MB, and several copies of it are made
_SMALLEST_SEGMENT = 4  # pixels; segments that are not larger are left out, as in the original


class _Frame(NamedTuple):
    """Sizes (height, width) of one image: on its way through the model, originally, and of the padded batch, if that
    is known."""

    processed: tuple[int, int]
    target: tuple[int, int]
    canvas: tuple[int, int] | None


def _known(outputs: Any, name: str) -> Any:
    """What the outputs of a `DetrForSegmentation` say beside their predictions; None for those that do not."""
    return getattr(outputs, name, None)


def _stuff_labels(outputs: Any) -> set[int]:
    """The labels of stuff that outputs name, once for each image."""
    labels = _known(outputs, "stuff_labels")
    return set() if labels is None else set(torch.as_tensor(labels).flatten().tolist())


def _frames(outputs: SegmentationOutput, target_sizes: Any, processed_sizes: Any) -> list[_Frame]:
    """The sizes of every image of a batch; see `post_process_panoptic_segmentation`."""
    batch = len(outputs.logits)
    canvas = _known(outputs, "canvas_size")
    image_sizes = _known(outputs, "image_sizes")
    given = {"target_sizes": target_sizes, "processed_sizes": processed_sizes}
    for name, sizes in given.items():
        if sizes is not None and tuple(np.shape(sizes)) != (batch, 2):
            raise ValueError(
                f"{name} has shape {tuple(np.shape(sizes))} for {batch} images; wanted one (height, width) an image, "
                f"({batch}, 2)."
            )
    if processed_sizes is None:
        processed_sizes = image_sizes
    if processed_sizes is None:
        masks = outputs.pred_masks
        processed_sizes = target_sizes
        if processed_sizes is None and masks is not None:
            processed_sizes = [tuple(masks.shape[-2:])] * batch
        if processed_sizes is None:
            raise ValueError(
                "Neither target_sizes nor processed_sizes are given; wanted (height, width) of each image."
            )
    if target_sizes is None:
        target_sizes = processed_sizes
    pairs = zip(torch.as_tensor(processed_sizes).tolist(), torch.as_tensor(target_sizes).tolist(), strict=True)
    whole = None if canvas is None else tuple(torch.as_tensor(canvas).reshape(-1, 2)[0].tolist())  # one for the batch
    return [_Frame((int(p[0]), int(p[1])), (int(t[0]), int(t[1])), whole) for p, t in pairs]


def _masks_by_image(outputs: SegmentationOutput, keep: Tensor, predict_masks: MaskPredictor | None) -> list[Tensor]:
    """For each image the mask logits (K, h, w) of its queries that `keep` (B, Q) chooses."""
    if predict_masks is not None:
        chosen = predict_masks(keep)
    elif outputs.pred_masks is not None:
        chosen = outputs.pred_masks[keep]
    else:
        raise ValueError(
            "The outputs have no pred_masks: the model was given labels, or told not to compute them. Pass "
            "predict_masks=functools.partial(model.predict_masks, outputs), or call it with output_masks=True."
        )
    return list(chosen.split(keep.sum(1).tolist()))


def _cropped(masks: Tensor, frame: _Frame) -> Tensor:
    """(K, h, w) on the padded canvas → the cells that show the image.

    A cell is `stride` pixels wide, a power of two, and the last one may reach past the edge: so the cells are the same
    whether the image was padded or not.
    """
    if frame.canvas is None:
        return masks
    rows, columns = (
        math.ceil(size / 2 ** math.ceil(math.log2(whole / cells) - 1e-9))
        for size, whole, cells in zip(frame.processed, frame.canvas, masks.shape[-2:], strict=True)
    )
    return masks[:, :rows, :columns]


def _enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) → (K, *size), interpolated between the cells; at least float32."""
    masks = masks.to(torch.promote_types(masks.dtype, torch.float32))
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _to_segments(
    masks: Tensor,
    scores: Tensor,
    labels: list[int],
    stuff: set[int],
    target_size: tuple[int, int],
    mask_threshold: float,
    overlap_threshold: float,
) -> PanopticResult:
    """Makes one map of an image's masks (K, height, width); see `post_process_panoptic_segmentation`.

    As the original, it first gives all pixels of one class of stuff to that class's first mask, which leaves the
    others without any; and whenever segments turn out too small, it lets the remaining masks compete anew.
    """
    members = list(range(len(labels)))  # the queries that still take part
    first_of = {label: labels.index(label) for label in stuff if label in labels}
    fused = {first: [k for k in members if labels[k] == label] for label, first in first_of.items()}
    winners = masks.softmax(0).argmax(0) if len(labels) else None  # (height, width)
    if winners is not None:
        owner = torch.tensor([first_of.get(label, k) for k, label in enumerate(labels)], device=winners.device)
        winners = owner[winners]
    while winners is not None:
        segmentation = _nearest(winners, target_size)
        areas = torch.bincount(segmentation.flatten(), minlength=len(labels)).tolist()
        if all(areas[k] > _SMALLEST_SEGMENT for k in members):
            break
        members = [k for k in members if areas[k] > _SMALLEST_SEGMENT]
        chosen = torch.tensor(members, device=masks.device)
        winners = chosen[masks[chosen].softmax(0).argmax(0)] if members else None
    if winners is None:
        return {"segmentation": torch.zeros(target_size, dtype=torch.int64, device=masks.device), "segments_info": []}

    visible = _without_weak_pixels(masks, winners, members, mask_threshold, overlap_threshold)
    segmentation = _nearest(visible, target_size)
    number = torch.full((len(labels) + 1,), -1, device=masks.device)  # its last entry is what -1 leads to
    there = [k for k in members if bool((segmentation == k).any())]
    number[torch.tensor(there, dtype=torch.int64, device=masks.device)] = torch.arange(len(there), device=masks.device)
    return {
        "segmentation": number[segmentation],
        "segments_info": [
            {
                "id": position,
                "label_id": labels[k],
                "score": max(float(scores[member]) for member in fused.get(k, [k])),
                "was_fused": len(fused.get(k, [k])) > 1,
            }
            for position, k in enumerate(there)
        ],
    }


def _without_weak_pixels(
    masks: Tensor, winners: Tensor, members: Sequence[int], mask_threshold: float, overlap_threshold: float
) -> Tensor:
    """The winners (height, width) with -1 where the two thresholds, which the original does not have, say so."""
    if mask_threshold <= 0 and overlap_threshold <= 0:
        return winners
    probability = masks.gather(0, winners[None])[0].sigmoid()
    winners = torch.where(probability >= mask_threshold, winners, -1)
    for k in members:
        whole = int((masks[k].sigmoid() >= (mask_threshold or 0.5)).sum())
        if int((winners == k).sum()) < overlap_threshold * whole:
            winners = winners.masked_fill(winners == k, -1)
    return winners


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (H, W) of whole numbers at another size, by Pillow as in the original: others round otherwise."""
    picture = Image.fromarray(labels.to("cpu", torch.int32).numpy())
    resized = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(resized).astype(np.int64)).to(labels.device)


def _overlaid(
    masks: Tensor, scores: Tensor, labels: Tensor, overlap_threshold: float
) -> tuple[Tensor, list[SegmentInfo]]:
    """Masks (K, height, width) laid over each other, the highest score in front, as one map and what is to be seen."""
    segmentation = torch.full(masks.shape[1:], -1, dtype=torch.int64, device=masks.device)
    for k in scores.argsort().tolist():
        segmentation[masks[k]] = k
    seen = torch.bincount(segmentation.flatten() + 1, minlength=len(masks) + 1)[1:]
    whole = masks.flatten(1).sum(1)
    shown = (seen > 0) & (seen >= overlap_threshold * whole)
    segmentation = torch.where(torch.cat([shown.new_zeros(1), shown])[segmentation + 1], segmentation, -1)
    return segmentation, [
        {"id": k, "label_id": int(labels[k]), "score": float(scores[k]), "was_fused": False}
        for k in shown.nonzero().flatten().tolist()
    ]
