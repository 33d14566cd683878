"""Datasets in the common formats: open them, augment their samples, and batch them."""

from modeling_detr.data.augmentation import POLICIES
from modeling_detr.data.augmentation.policy import GeometryPolicy
from modeling_detr.data.augmentation.transforms import eval_transform, train_transform
from modeling_detr.data.batch import DetrCollator
from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.data.dataset_format import DatasetFormat
from modeling_detr.data.formats import FORMATS
from modeling_detr.data.formats.coco import read_coco
from modeling_detr.data.formats.coco_panoptic import read_panoptic, read_panoptic_predictions
from modeling_detr.data.image_decoding import read_image
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.data.loaders import BatchLoader, build_eval_loader, resize_transform
from modeling_detr.data.open import open_dataset
from modeling_detr.data.sampler import EvalBatchSampler, TrainBatchSampler
from modeling_detr.data.splits import find_split


__all__ = [
    "FORMATS",
    "POLICIES",
    "BatchLoader",
    "DatasetFormat",
    "DetectionDataset",
    "DetrCollator",
    "EvalBatchSampler",
    "GeometryPolicy",
    "SampleKey",
    "TrainBatchSampler",
    "adopt_model_labels",
    "build_eval_loader",
    "eval_transform",
    "find_split",
    "open_dataset",
    "read_coco",
    "read_image",
    "read_panoptic",
    "read_panoptic_predictions",
    "resize_transform",
    "train_transform",
]
