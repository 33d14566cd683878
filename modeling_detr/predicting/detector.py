"""`Detector`: a model with its image processor, called with images of any kind."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from modeling_detr.conversion.sources import load_detector
from modeling_detr.errors_detr import FileMissingError, FileReadError, ModelError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor, RawImage, to_rgb
from modeling_detr.precision import ComputeDtype, compute_dtype
from modeling_detr.predicting.inputs import find_inputs
from modeling_detr.predicting.result import Prediction
from modeling_detr.predicting.score_rules import ScoreRules, Threshold
from modeling_detr.predicting.tiles import Tiling, merge_tiles, without_small
from modeling_detr.predicting.video.reading import is_video
from modeling_detr.prediction import detect_batch, segment_batch, task_of
from modeling_detr.runtimes.exported_detector import ExportedDetector
from modeling_detr.segmentation_detr import Detector as DetectorModel
from modeling_detr.structures_detr import DetectionResult


_AXES_OF_SEVERAL = 4  # of an array or tensor


class Detector:
    """Detects, or segments, the objects in images.

        detector = Detector.from_pretrained("runs/mine")
        prediction = detector("photo.jpg")
        prediction.boxes, prediction.names, prediction.scores
        prediction.save("drawn.jpg")

    Attributes:
        model: The model, in evaluation mode.
        processor: Its image processor.
        source: What it was loaded from, for messages.
        dtype: The precision that it computes in.
    """

    def __init__(
        self,
        model: DetectorModel,
        processor: DetrTorchvisionImageProcessor,
        *,
        source: str = "the model",
        device: str | torch.device | None = None,
        dtype: ComputeDtype = "float32",
        compiled: bool = False,
    ) -> None:
        """Take a model that is loaded already.

        Args:
            model: The model.
            processor: Its image processor.
            source: What it was loaded from; `thresholds.json` is looked for there.
            device: Where to run it. None: where it is.
            dtype: The precision to compute in; `auto`: bfloat16 where the device is fast in it.
            compiled: Compile it with `torch.compile`: images of a new size take minutes, others less time.

        Raises:
            ModelError: The model is exported, so its precision and its form are fixed.
            ValueError: There is no such precision.
        """
        if isinstance(model, ExportedDetector):
            if dtype != "float32" or compiled:
                problem = "is exported, so it cannot be compiled, and its precision is fixed"
                raise ModelError(source, problem, "drop dtype and compiled")
        else:
            module: Any = model
            module.to(model.device if device is None else device, torch.float32)  # some are saved with 16 bits
            compute_dtype(dtype, model.device)
        self.model, self.processor = model.eval(), processor
        self.source, self.dtype = source, dtype
        if compiled:
            self.model.compile()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: ComputeDtype = "float32",
        compiled: bool = False,
        trust_code: bool = False,
    ) -> "Detector":
        """Loads a model.

        Args:
            source: The folder of a model, of a run or of an exported model, a Hub id, or an original checkpoint.
            device: Where to run it. None: on a GPU if there is one.
            dtype: See `Detector`.
            compiled: See `Detector`.
            trust_code: Open exported models of kinds that can run code, too.

        Raises:
            ModelError: It cannot be loaded.
            ModelNotFoundError: There is no such model.
        """
        model, processor = load_detector(str(source), trust_code)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model, processor, source=str(source), device=device, dtype=dtype, compiled=compiled)

    def __repr__(self) -> str:
        classes = len(self.model.config.class_names)
        return f"<Detector of {self.source}: {classes} classes, {self.model.device}, {self.dtype}>"

    @property
    def class_names(self) -> dict[int, str]:
        """Label → name of the class."""
        return dict(enumerate(self.model.config.class_names))

    @property
    def is_panoptic(self) -> bool:
        """Whether it predicts panoptic segments instead of objects."""
        return task_of(self.model) == "panoptic"

    def __call__(
        self,
        images: Any,
        *,
        threshold: Threshold | None = None,
        classes: Sequence[str] | str | None = None,
        calibrated: bool = False,
        batch_size: int = 1,
        tiling: Tiling | int | None = None,
        keep_image: bool = True,
    ) -> Any:
        """Predicts.

        Args:
            images: An image: a PIL image, an array or a tensor (see `to_rgb`), bytes, a path or URL. Or several: a
                folder, a pattern such as `photos/*.jpg`, a list, an array or tensor with four axes, or a generator, of
                which only a batch is in memory.
            threshold: The lowest score: a number, one for each class by name, or `best` for those in the model's
                `thresholds.json`. None: .5, and .85 for panoptic segments.
            classes: Names of the classes that count, a list or a text with commas; None: all.
            calibrated: Calibrate scores by the model's `thresholds.json`.
            batch_size: Images of equal size that are computed at once, for a GPU. Others are computed by themselves,
                because padding changes predictions.
            tiling: Divide images into tiles: their side in pixels, or `Tiling(1024, overlap=0.2)`. `batch_size` counts
                tiles then.
            keep_image: Keep the pixels in the predictions, to draw them and to crop.

        Returns:
            A `Prediction` for an image, a list of them for several, and a generator for a generator.

        Raises:
            FileReadError: A file is not there, or is not an image that can be read.
            ModelError: See `ScoreRules.of`.
            ValueError: An argument is out of range, or an array does not have the shape or the values of an image.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1.")
        tiling = Tiling(tiling) if isinstance(tiling, int) else tiling
        rules = ScoreRules.of(
            self.source,
            self.model.config.class_names,
            threshold=threshold,
            classes=classes,
            calibrated=calibrated,
            is_panoptic=self.is_panoptic,
        )
        predict = partial(
            self.predict_images, rules=rules, batch_size=batch_size, tiling=tiling, keep_image=keep_image
        )
        if isinstance(images, str | Path) and _are_several(str(images)):
            return [*predict(image.source for image in find_inputs([str(images)]))]
        is_list = isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray | memoryview)
        if is_list or getattr(images, "ndim", 0) == _AXES_OF_SEVERAL:
            return [*predict(images)]
        if isinstance(images, Iterator) and not hasattr(images, "read"):
            return predict(images)
        (prediction,) = predict([images])
        return prediction

    def predict_batch(
        self, inputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]], rules: ScoreRules
    ) -> list[Any]:
        """Predicts for a batch that the image processor has prepared, on any device.

        Args:
            inputs: What the processor returns.
            sizes: (height, width) of each original image.
            rules: Which predictions count.

        Returns:
            A `DetectionResult` or `PanopticResult` for each image.
        """
        inputs = {name: tensor.to(self.model.device, non_blocking=True) for name, tensor in inputs.items()}
        arguments = (self.model, self.processor, inputs, sizes, rules.lowest, self.dtype)
        if self.is_panoptic:
            return [rules.of_segments(segments) for segments in segment_batch(*arguments)]
        return [rules.of_objects(objects) for objects in detect_batch(*arguments)]

    def predict_in_tiles(
        self, pixels: Tensor, tiling: Tiling, rules: ScoreRules, batch_size: int = 1
    ) -> DetectionResult:
        """Predicts for the tiles of an image and for the whole, and merges what they have in common.

        Args:
            pixels: (3, H, W) uint8 RGB.
            tiling: How it is divided.
            rules: Which predictions count.
            batch_size: Tiles that are computed at once.

        Raises:
            ModelError: The model predicts panoptic segments, which cannot be merged.
        """
        if self.is_panoptic:
            problem = "predicts panoptic segments, which cannot be merged from tiles"
            raise ModelError(self.source, problem, "predict without tiles")
        size = pixels.shape[-2], pixels.shape[-1]
        tiles = tiling.tiles(*size)
        crops = (pixels[:, tile.top : tile.bottom, tile.left : tile.right] for tile in tiles)
        results: list[DetectionResult] = []
        for group in _batches_of_equal_size(crops, batch_size):
            results += self._predict_group([crop for _, crop in group], rules)
        if len(tiles) > 1:
            results[-1] = without_small(results[-1], tiling)
        return merge_tiles(results, tiles, size)

    def predict_images(
        self,
        images: Iterable[RawImage],
        rules: ScoreRules,
        *,
        batch_size: int = 1,
        tiling: Tiling | None = None,
        keep_image: bool = True,
    ) -> Iterator[Prediction]:
        """Predicts for images of any kind, one batch in memory; arguments as of a call.

        Args:
            images: The images.
            rules: Which predictions count.
            batch_size: Consecutive images of equal size, or tiles, that are computed at once.
            tiling: How images are divided into tiles; None: not at all.
            keep_image: Keep the pixels in the predictions.
        """
        names = self.class_names
        for group in _batches_of_equal_size(images, 1 if tiling else batch_size):
            pixels = [image for _, image in group]
            sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
            if tiling is None:
                results = self._predict_group(pixels, rules)
            else:
                results = [self.predict_in_tiles(image, tiling, rules, batch_size) for image in pixels]
            for (source, image), size, result in zip(group, sizes, results, strict=True):
                yield Prediction(result, names, size, image.cpu() if keep_image else None, source)

    def _predict_group(self, pixels: Sequence[Tensor], rules: ScoreRules) -> list[Any]:
        """The results of images of equal size."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
        return self.predict_batch(self.processor(list(pixels)), sizes, rules)


def _are_several(source: str) -> bool:
    """Whether a text stands for several images."""
    return not source.startswith(("http://", "https://", "data:")) and (
        Path(source).is_dir() or (not Path(source).exists() and any(sign in source for sign in "*?["))
    )


def _batches_of_equal_size(images: Iterable[RawImage], batch_size: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Consecutive images of equal size, with their paths."""
    for _, group in itertools.groupby(map(_read, images), key=lambda pair: pair[1].shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield batch


def _read(image: RawImage) -> tuple[str, Tensor]:
    """The path or URL of an image, if it has one, and its pixels."""
    if not isinstance(image, str | Path):
        return "", to_rgb(image)
    source = str(image)
    try:
        return source, to_rgb(image)
    except FileNotFoundError as error:
        raise FileMissingError(source, "no such image or folder") from error
    except Exception as error:  # Pillow and servers raise almost anything
        if is_video(source):
            remedy = "use 'detr predict' for videos, or pass the frames as a generator"
            raise FileReadError(source, "is a video, expected an image", remedy) from error
        if isinstance(error, UnidentifiedImageError):
            raise FileReadError(source, "is not an image, or in a format that Pillow does not read") from error
        raise FileReadError(source, f"cannot be read ({str(error).rstrip('.')})") from error
