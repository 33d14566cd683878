"""What a model that teaches predicts in the training images: computed once, and kept in the run's folder.

    runs/NAME/teacher.safetensors

contains the predictions and, as JSON in its metadata, what they belong to: the name of the model, a digest of its
weights, a digest of the images, and the lowest score.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from modeling_detr.atomic_output import replaced_file
from modeling_detr.conversion.sources import load_detector
from modeling_detr.data.findings import first_items
from modeling_detr.data.loaders import BatchLoader, build_eval_loader, resize_transform
from modeling_detr.errors_detr import DetrError, ModelError, PredictionError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, batch_to_device
from modeling_detr.runtimes.exported_detector import ExportedDetector
from modeling_detr.runtimes.manifest import is_exported
from modeling_detr.segmentation_detr import Detector, has_masks
from modeling_detr.structures_detr import AnnotationTable, DetectionIndex, DetectionResult
from modeling_detr.training.distributed import in_main_process, raise_in_all
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.run_folder import TEACHER


@dataclass(frozen=True, eq=False)
class TeacherPredictions:
    """The predictions of a model in the images of a dataset, ordered by image.

    Attributes:
        image_index: (K,) int64, index of the image in the dataset.
        label: (K,) int64, the model's label.
        boxes_xyxy: (K, 4) float32, corners in pixels.
        scores: (K,) float32.
        class_names: The model's classes.
    """

    image_index: NDArray[np.int64]
    label: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _Origin:
    """What predictions belong to: the model as the recipe names it, digests of its weights and of the images, and the
    lowest score that was kept."""

    teacher: str
    weights: str
    images: str
    min_score: float


def predictions_of(
    recipe: Recipe,
    index: DetectionIndex,
    accelerator: Accelerator,
    *,
    resumes: bool,
    worker_init_fn: Callable[[int], None] | None = None,
) -> TeacherPredictions:
    """Return the predictions of the recipe's teacher, those in the run's folder if they are the same.

    All processes call it together and predict their share of the images. Only the main process has the result; that of
    the others is empty.

    Args:
        recipe: The recipe.
        index: The images.
        accelerator: The accelerator of the run.
        resumes: Whether the run has started before; the model is then not compared, and may be gone.
        worker_init_fn: Called in each loader process with its index.

    Raises:
        PredictionError: The model and the dataset have no class in common.
        ValueError: The model cannot be loaded.
        OSError: The model does not exist, or an image cannot be read.
    """
    path, source = recipe.run_dir / TEACHER, str(recipe.teacher)
    wanted = _Origin(source, "", _digest_of_images(index), recipe.teacher_min_score)
    kept = _read(path) if accelerator.is_main_process else None
    if resumes and _from_main(accelerator, kept is not None and _fits(kept[0], wanted, compare_weights=False)):
        return kept[1] if kept is not None else _EMPTY
    with _unchanged_random_state():
        with accelerator.main_process_first():  # the others then use what it has downloaded or converted
            model, processor = _load(source)
        _check_classes(source, tuple(model.config.class_names), index)
        wanted = replace(wanted, weights=_digest_of_model(source, model, processor))
        if _from_main(accelerator, kept is not None and _fits(kept[0], wanted)):
            return kept[1] if kept is not None else _EMPTY
        model = model.float().to(accelerator.device)
        found = _predict(model, processor, recipe, index, accelerator, worker_init_fn)
    predictions = _EMPTY
    with in_main_process(accelerator) as is_main:
        if is_main:
            predictions = _joined(found, tuple(model.config.class_names))
            _write(path, wanted, predictions)
    return predictions


def _load(source: str) -> tuple[Detector, DetrTorchvisionImageProcessor]:
    try:
        return load_detector(source)
    except ModelError as error:
        if "trust_code" not in error.settings:
            raise
        raise ModelError(error.where, error.problem, "pass the model that it was exported from") from error
    except DetrError:
        raise
    except ValueError as error:  # a model of another package
        remedy = "pass a .json file of its predictions in COCO's results format"
        raise ModelError(source, str(error).removeprefix(f"{source}: ").rstrip("."), remedy) from error


def _check_classes(source: str, class_names: Sequence[str], index: DetectionIndex) -> None:
    expected = dict.fromkeys(category.name for category in index.categories)
    if expected.keys().isdisjoint(class_names):
        raise PredictionError(
            source,
            f"none of its classes ({first_items(class_names, 5)}) is one of the dataset ({first_items(expected, 5)})",
            "use a model with these class names, or a file of its predictions with the dataset's category ids",
        )


_EMPTY = TeacherPredictions(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), ()
)


def _from_main(accelerator: Accelerator, value: bool) -> bool:
    """Return the main process's value in all processes."""
    return bool(broadcast_object_list([value])[0]) if accelerator.num_processes > 1 else value


@contextmanager
def _unchanged_random_state() -> Iterator[None]:
    """Restore PyTorch's random state, so that a run starts alike whether or not the predictions exist."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


# Predicting


@torch.inference_mode()
def _predict(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    recipe: Recipe,
    index: DetectionIndex,
    accelerator: Accelerator,
    worker_init_fn: Callable[[int], None] | None,
) -> dict[int, DetectionResult]:
    """Predict all images; return the results of all processes by image index."""
    unlabelled = replace(index, annotations=AnnotationTable.concatenate([]))
    loader: BatchLoader = build_eval_loader(
        unlabelled,
        resize_transform(processor),
        accelerator,
        batch_size=recipe.eval_batch_size or recipe.batch_size,
        max_pixels=recipe.max_pixels_per_batch,
        num_workers=recipe.num_workers,
        worker_init_fn=worker_init_fn,
        loader_timeout_minutes=recipe.loader_timeout_minutes,
        replace_unreadable=recipe.unreadable_images == "skip",
    )
    found: dict[int, DetectionResult] = {}
    error: Exception | None = None
    try:
        for indices, results in _results(model, processor, recipe, index, accelerator, loader):
            found |= zip(indices, results, strict=True)
    except (DetrError, ValueError, OSError) as failure:
        error = failure
    raise_in_all(error)
    loader.close()
    if accelerator.num_processes > 1:
        for share in gather_object([found]):
            found |= share
    return found


def _results(
    model: Detector,
    processor: DetrTorchvisionImageProcessor,
    recipe: Recipe,
    index: DetectionIndex,
    accelerator: Accelerator,
    loader: BatchLoader,
) -> Iterator[tuple[list[int], list[DetectionResult]]]:
    """Yield image indices and results of this process's batches, and show how many images have been predicted."""
    extra = {"output_masks": False} if has_masks(model) else {}
    bar = tqdm(
        total=len(index),
        desc=f"teacher {recipe.teacher}",
        unit="image",
        leave=not sys.stderr.isatty(),  # the next line of a log must not continue that of the bar
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
        disable=not accelerator.is_main_process,
    )
    with bar:
        for batch in loader:
            indices = [int(label["image_index"]) for label in batch["labels"]]
            inputs = batch_to_device(batch, accelerator.device, processor.image_mean, processor.image_std)
            inputs.pop("labels", None)
            with accelerator.autocast():
                outputs = model(**inputs, **extra)
            sizes = index.image_sizes[indices].tolist()
            results = processor.post_process_object_detection(outputs, recipe.teacher_min_score, sizes)
            yield indices, [_on_host(result) for result in results]
            bar.update(min(len(indices) * accelerator.num_processes, len(index) - bar.n))


def _on_host(result: DetectionResult) -> DetectionResult:
    return {"scores": result["scores"].cpu(), "labels": result["labels"].cpu(), "boxes": result["boxes"].cpu()}


def _joined(found: dict[int, DetectionResult], class_names: tuple[str, ...]) -> TeacherPredictions:
    images = sorted(found)
    counts = [len(found[image]["scores"]) for image in images]

    def column(name: str, dtype: Any) -> NDArray[Any]:
        values = [found[image][name].numpy() for image in images]  # type: ignore[literal-required]
        return np.concatenate(values).astype(dtype)

    return TeacherPredictions(
        image_index=np.repeat(np.array(images, np.int64), counts),
        label=column("labels", np.int64),
        boxes_xyxy=column("boxes", np.float32),
        scores=column("scores", np.float32),
        class_names=class_names,
    )


# The file


def _fits(kept: _Origin, wanted: _Origin, *, compare_weights: bool = True) -> bool:
    same = kept.teacher == wanted.teacher and kept.images == wanted.images and kept.min_score <= wanted.min_score
    return same and (not compare_weights or kept.weights == wanted.weights)


def _write(path: Path, origin: _Origin, predictions: TeacherPredictions) -> None:
    arrays = {name: getattr(predictions, name) for name in _ARRAYS}
    facts = {**vars(origin), "class_names": predictions.class_names}
    with replaced_file(path) as partial:
        save_file(arrays, partial, metadata={"teacher": json.dumps(facts)})


def _read(path: Path) -> tuple[_Origin, TeacherPredictions] | None:
    """Read what `_write` has written; None if there is no such file, or it is damaged and has to be computed again."""
    try:
        with safe_open(path, "np") as file:
            facts = json.loads(file.metadata()["teacher"])
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        class_names = tuple(facts.pop("class_names"))
        return _Origin(**facts), TeacherPredictions(**arrays, class_names=class_names)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


_ARRAYS = ("image_index", "label", "boxes_xyxy", "scores")


def _digest_of_images(index: DetectionIndex) -> str:
    """A digest of the images' ids, sizes and file names, in their order; folders may move."""
    digest = hashlib.sha256()
    for image in index.images:
        facts = (image.coco_id, image.height, image.width, Path(image.path).name)
        digest.update(repr(facts).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _digest_of_model(source: str, model: Detector, processor: DetrTorchvisionImageProcessor) -> str:
    """A digest of what decides the predictions of a model: its config, its processor and its weights."""
    digest = hashlib.sha256(json.dumps([model.config.to_dict(), processor.to_dict()], default=str).encode())
    if is_exported(source):
        digest.update(Path(source, cast(ExportedDetector, model).manifest.file).read_bytes())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
