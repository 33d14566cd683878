"""Runs a model over a dataset for the analyses that need its boxes only."""

from accelerate import Accelerator

from modeling_detr.analysis.evidence import Evidence
from modeling_detr.data.labels import adopt_model_labels
from modeling_detr.data.loaders import build_eval_loader, resize_transform
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.precision import ComputeDtype
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionIndex


def detect(
    detector: Detector,
    processor: DetrTorchvisionImageProcessor,
    index: DetectionIndex,
    accelerator: Accelerator,
    *,
    batch_size: int = 8,
    num_workers: int = 2,
    dtype: ComputeDtype = "float32",
) -> Evidence:
    """Detects the objects in all images of a dataset; shows a progress bar in a terminal.

    Args:
        detector: The model.
        processor: Its image processor.
        index: The dataset, with readable images only.
        accelerator: Chooses the device.
        batch_size: Images per batch.
        num_workers: Loader processes.
        dtype: The precision that the model computes in.

    Returns:
        The evidence, with the classes in the model's order.
    """
    index = adopt_model_labels(index, dict(enumerate(detector.config.class_names)), detector.config.stuff_labels)
    loader = build_eval_loader(
        index, resize_transform(processor), accelerator, batch_size=batch_size, num_workers=num_workers
    )
    evaluator = CocoEvaluator(index)
    detector.float().to(accelerator.device)
    evaluate(detector, loader, processor, index, accelerator, [evaluator], progress=True, dtype=dtype)
    return Evidence(evaluator)
