"""What a model says about the labels of a dataset, for `detr data check --model`."""

from accelerate import Accelerator

from modeling_detr.analysis.detecting import detect
from modeling_detr.analysis.evidence import Evidence
from modeling_detr.analysis.suspected_labels import SuspectedLabel, suspected_labels
from modeling_detr.data.findings import Finding
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionIndex


LEAST_CERTAINTY = 0.5


def ask_model(
    detector: Detector, processor: DetrTorchvisionImageProcessor, index: DetectionIndex
) -> tuple[Evidence, list[SuspectedLabel]]:
    """Detects the objects in all images of a dataset, and compares them with the labels.

    Args:
        detector: The model.
        processor: Its image processor.
        index: The dataset, with readable images only.

    Returns:
        What was detected, and all suspected labels, the most certain first.
    """
    evidence = detect(detector, processor, index, Accelerator())
    return evidence, suspected_labels(evidence)


def as_findings(evidence: Evidence, suspected: list[SuspectedLabel], least_certainty: float) -> list[Finding]:
    """The suspected labels of at least some certainty as warnings."""
    return [_finding(evidence, one) for one in suspected if one.certainty >= least_certainty]


def _finding(evidence: Evidence, one: SuspectedLabel) -> Finding:
    truth, found, names = evidence.scoring.truth, evidence.scoring.detections, evidence.class_names
    place = ", ".join(f"{value:.0f}" for value in one.box_xyxy)
    detected = "" if one.detection < 0 else f"the model sees '{names[one.label]}' ({found.scores[one.detection]:.2f})"
    annotated = "" if one.annotation < 0 else f"'{names[truth.labels[one.annotation]]}' is annotated"
    message = {
        "not annotated": f"{detected} at {place}, where nothing is annotated",
        "wrong class": f"{annotated}, but {detected} at {place}",
        "badly placed": f"{annotated}, but {detected} elsewhere, at {place}",
        "no such object": f"{annotated} at {place}, but the model sees nothing there",
    }[one.suspicion]
    return Finding(
        severity="warning",
        kind=f"suspected label, {one.suspicion}",
        where=evidence.index.images[one.image_index].path,
        message=message,
        action="look at it before you change it; the model may be wrong",
    )
