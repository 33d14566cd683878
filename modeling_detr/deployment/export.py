"""Exports a detector to a folder that runs elsewhere, and compares it with the model before the folder appears."""

import copy
import importlib.util
import json
import platform
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from modeling_detr import __version__
from modeling_detr.atomic_output import new_folder
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.deployment import checks as checking
from modeling_detr.deployment.checks import MAX_AP_DROP, OPTIONS_FOR_TIMING, Checks, MetricPair
from modeling_detr.deployment.graph import GraphOptions
from modeling_detr.deployment.precisions import Operators, Precision
from modeling_detr.deployment.preprocessing import fitted_processor, preprocessing_of
from modeling_detr.deployment.runner_file import runner_source
from modeling_detr.deployment.targets import TARGETS, ExportSettings, WrittenModel
from modeling_detr.endpoint_files import write_endpoint_files
from modeling_detr.errors_detr import ModelError, did_you_mean
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.prediction import predict_objects, task_of
from modeling_detr.runtimes.exported_detector import ExportedDetector
from modeling_detr.runtimes.manifest import Manifest
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionIndex


SCRIPT = "detect.py"

_CALIBRATION_IMAGES = 100


class ExportRefusedError(ModelError):
    """An exported model that is worse than allowed; nothing was written.

    Attributes:
        checks: What was measured.
    """

    def __init__(self, where: object, problem: str = "", remedy: str = "", settings: Any = None) -> None:
        super().__init__(where, problem, remedy, settings)
        self.checks: Checks | None = None


def export_detector(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    target: str | Path,
    *,
    to: str = "onnx",
    precision: Precision = "float32",
    pixel_mask: bool = True,
    postprocess: bool = False,
    masks_per_image: int | None = None,
    fixed_size: tuple[int, int] | None = None,
    data: DetectionIndex | None = None,
    calibration: DetectionIndex | None = None,
    operators: Operators = "conv",
    max_ap_drop: float | None = None,
) -> Checks:
    """Exports a model, compares the result with it, and writes the folder if the result is good enough.

    Args:
        model: A detection or segmentation model.
        processor: Its image processor.
        target: The new folder.
        to: `onnx`, `openvino` or `torch`: a key of `TARGETS`.
        precision: `float32`, or `float16` or `bfloat16` weights, `int8` (weights, with inputs quantised while the
            model runs) or `int8_static` (with a calibration set).
        pixel_mask: Whether the model takes a `pixel_mask`; without, all images must have one size.
        postprocess: Whether outputs are scores, labels and boxes in pixels instead of logits and relative boxes.
        masks_per_image: Number of masks per image of a segmentation model; None: those of the queries above a score.
        fixed_size: (height, width) of all batches; None: any.
        data: Images to compare AP on, with the classes of the model in its order.
        calibration: Images for `int8_static`, of the kind that the model is used on. Not those of `data`.
        operators: What `int8_static` quantises: `conv`, `linear` or `all`.
        max_ap_drop: How much AP, mask AP and PQ may fall. None: .002, or .01 for the two int8 precisions.

    Returns:
        What was measured.

    Raises:
        ExportRefusedError: The exported model is worse than allowed.
        ModelError: The target or the precision does not exist, packages are missing, or the model cannot be exported.
        OutputExistsError: `target` exists.
        OutputError: `target` cannot be written.
    """
    _check_arguments(to, precision, calibration)
    if masks_per_image is not None and task_of(model) == "detection":
        raise ModelError("masks_per_image", f"got {masks_per_image}, but the model has no masks", "leave it out")
    if pixel_mask and model.config.trained_without_mask:
        pixel_mask = False  # the model ignores it
    maskless = not pixel_mask and not model.config.trained_without_mask
    graph = GraphOptions(pixel_mask, postprocess, masks_per_image, fixed_size)
    exported_processor = processor if fixed_size is None else fitted_processor(processor, *fixed_size)
    batches = () if calibration is None else _calibration_batches(calibration, exported_processor, graph, model)
    settings = ExportSettings(graph, precision, batches, operators)
    model = model.eval() if model.dtype == torch.float32 else copy.deepcopy(model).eval().float()
    with new_folder(target) as folder:
        written = TARGETS[to].write(model, folder, settings)
        _save_json(folder / CONFIG_NAME, model.config.to_dict())
        _save_json(folder / IMAGE_PROCESSOR_NAME, exported_processor.to_dict())
        manifest = _manifest(model, exported_processor, to, settings, written)
        options = {**manifest.runtime_options, **OPTIONS_FOR_TIMING.get(to, {})}
        replace(manifest, runtime_options=options).save(folder)
        (folder / SCRIPT).write_text(runner_source(to), encoding="utf-8")
        runtime = TARGETS[to].runs_with
        write_endpoint_files(folder, ["numpy", "pillow>=12.3", f"{runtime}=={version(runtime)}"])
        own_processor = _usable_processor(model, processor, exported_processor)
        checks = _compare(model, own_processor, folder, manifest, graph, data)
        replace(manifest, checks=checks.to_dict()).save(folder)
        limit = MAX_AP_DROP[precision] if max_ap_drop is None else max_ap_drop
        if problems := checks.problems(limit):
            error = ExportRefusedError(
                target, f"not written, because {'; '.join(problems)}", _remedy(precision, maskless)
            )
            error.checks = checks
            raise error
    return checks


def _check_arguments(to: str, precision: str, calibration: DetectionIndex | None) -> None:
    """Raises a ModelError if this cannot be exported on this machine."""
    if to not in TARGETS:
        raise ModelError("to", f"got '{to}', which is unknown", did_you_mean(to, TARGETS))
    target = TARGETS[to]
    if precision not in target.precisions:
        expected = ", ".join(target.precisions)
        raise ModelError("precision", f"{to} has no precision '{precision}', expected one of {expected}")
    missing = [package for package in target.packages if importlib.util.find_spec(package) is None]
    if missing:
        remedy = f"pip install 'modeling-detr[{target.extra}]'"
        raise ModelError(to, f"needs {', '.join(missing)}, which are not installed", remedy)
    if precision == "int8_static" and calibration is None:
        raise ModelError("precision", "int8_static needs images to calibrate it", "pass a calibration set")


def _remedy(precision: str, maskless: bool) -> str:
    if maskless:
        return "if images are padded, export the model with its pixel_mask"
    if precision == "float32":
        return "please report this as a bug"
    return "use another precision, or allow a larger max_ap_drop"


def _calibration_batches(
    index: DetectionIndex, processor: DetrTorchvisionImageProcessor, graph: GraphOptions, model: Detector
) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of the graph for some images, spread over the dataset."""
    dataset = DetectionDataset(index)
    chosen = np.unique(np.linspace(0, len(index) - 1, min(_CALIBRATION_IMAGES, len(index))).astype(int))
    for image in chosen.tolist():
        inputs = processor(dataset[image]["image"])
        batch: dict[str, np.ndarray] = {"pixel_values": inputs["pixel_values"].numpy()}
        if graph.pixel_mask:
            batch["pixel_mask"] = inputs["pixel_mask"].numpy()
        if task_of(model) != "detection" and graph.masks_per_image is None:
            batch["score_threshold"] = np.array(0.5, np.float32)
        if graph.postprocess:
            record = index.images[image]
            batch["image_sizes"] = np.array([[record.height, record.width]])
        yield batch


def _usable_processor(
    model: Detector, own: DetrTorchvisionImageProcessor, fitted: DetrTorchvisionImageProcessor
) -> DetrTorchvisionImageProcessor:
    """The model's own processor; `fitted` if the model takes images of its size only."""
    if fitted is not own:
        try:
            predict_objects(model, own, np.zeros((75, 110, 3), np.uint8), 1.0)
        except Exception:  # the backbones raise different ones
            return fitted
    return own


def _save_json(file: Path, values: dict[str, Any]) -> None:
    """Writes a config without its `auto_map`: no code of this package lies in the folder."""
    kept = {key: value for key, value in values.items() if key != "auto_map"}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _manifest(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    to: str,
    settings: ExportSettings,
    written: WrittenModel,
) -> Manifest:
    packages = ["torch", "transformers", "timm", *TARGETS[to].packages]
    return Manifest(
        runtime=to,
        file=written.file,
        task=task_of(model),
        precision=settings.precision,
        inputs=written.inputs,
        outputs=written.outputs,
        labels=tuple(model.config.class_names),
        stuff_labels=tuple(model.config.stuff_labels or ()),
        fixed_size=settings.graph.fixed_size,
        runtime_options=written.runtime_options,
        preprocessing=preprocessing_of(processor),
        versions={
            "modeling_detr": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    )


def _compare(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    folder: Path,
    manifest: Manifest,
    graph: GraphOptions,
    data: DetectionIndex | None,
) -> Checks:
    exported, exported_processor = load_detector(str(folder), trust_code=True)
    run = _script_of(folder)
    metrics: list[MetricPair] = []
    if data is None:
        seconds = checking.time_both(model, processor, run)
    else:
        metrics, seconds = checking.score_both(model, processor, exported, exported_processor, run, data)
    model_ms, exported_ms = checking.medians_ms(seconds)
    return Checks(
        precision=manifest.precision,
        differences=checking.output_differences(model, graph, cast(ExportedDetector, exported).run, manifest.outputs),
        metrics=metrics,
        images=0 if data is None else len(data),
        model_ms=model_ms,
        exported_ms=exported_ms,
        model_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        exported_bytes=checking.folder_bytes(folder),
    )


def _script_of(folder: Path) -> checking.RunOnImage:
    """The detector of the script in the folder, as another program would use it."""
    path = folder / SCRIPT
    module = types.ModuleType("exported_detect")
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), vars(module))  # an import would add a __pycache__ to the folder
    detector = module.Detector(folder)

    def run(pixels: NDArray[np.uint8]) -> Any:
        found = detector(module.Image.fromarray(pixels), threshold=0.0)
        return {
            "scores": torch.tensor([one["score"] for one in found]),
            "labels": torch.tensor([one["label"] for one in found], dtype=torch.int64),
            "boxes": torch.tensor([one["box_xyxy"] for one in found]).reshape(-1, 4),
        }

    return run
