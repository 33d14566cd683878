"""Datasets in any of the usual formats, and the way from a file on disk to a batch."""

from modeling_detr.data.coco import read_coco
from modeling_detr.data.collate import DetrCollator
from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.data.images import read_image
from modeling_detr.data.open import open_dataset
from modeling_detr.data.panoptic import read_panoptic, read_panoptic_predictions
from modeling_detr.data.sampler import EvalBatchSampler, TrainBatchSampler
from modeling_detr.data.splits import find_split
from modeling_detr.data.transforms import GeometryPolicy, eval_transform, train_transform


__all__ = [
    "DetectionDataset",
    "DetrCollator",
    "EvalBatchSampler",
    "GeometryPolicy",
    "SampleKey",
    "TrainBatchSampler",
    "eval_transform",
    "find_split",
    "open_dataset",
    "read_coco",
    "read_image",
    "read_panoptic",
    "read_panoptic_predictions",
    "train_transform",
]
