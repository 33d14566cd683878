"""Steps whose loss or gradient was not finite: saved to a file, and run again with `detr train --replay FILE`.

    runs/NAME/nonfinite/step_00000012_process_0.safetensors

contains, without pickle, everything a process computed with: the weights, its batches and the divisors of their losses
and, as JSON in the file's metadata, the recipe, the model's config, the epoch and the step.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modeling_detr.atomic_output import replaced_file
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.data.batch import split_batch
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.aids import TrainingModel, active_aids, build_training_model
from modeling_detr.training.distributed import gather_full
from modeling_detr.training.divergence import NonFiniteLossError, StepShare, image_indices, is_finite
from modeling_detr.training.engine import StepLosses, step_seed
from modeling_detr.training.recipe import Recipe, recipe_class
from modeling_detr.training.run_folder import NONFINITE, checkpoint_folders
from modeling_detr.training.setup import PreparedRun


_WEIGHT, _PART = "model.", "part."


@dataclasses.dataclass(frozen=True)
class FailedStep:
    """A process's share of a step that was not finite.

    Attributes:
        share: What the process contributed.
        weights: State dict of the training model.
        frozen: Names of the parameters that do not train.
        recipe: The recipe of the run.
        config: The config of the model.
        image_mean: Mean of each channel, in units of [0, 1].
        image_std: Standard deviation of each channel, in units of [0, 1].
        images: Index in the dataset → file, for the images of the share.
        terms: Losses that were not finite, or "gradient".
        epoch: Epoch, from 1.
        step: Optimizer step, from 1.
        process: Index of the process, from 0.
    """

    share: StepShare
    weights: Mapping[str, Tensor]
    frozen: Sequence[str]
    recipe: Recipe
    config: DetrConfig
    image_mean: Sequence[float]
    image_std: Sequence[float]
    images: Mapping[int, str]
    terms: Sequence[str]
    epoch: int
    step: int
    process: int

    def save(self, run_dir: Path) -> Path:
        """Write the step to the run's folder, and return the file.

        Raises:
            OutputError: It cannot be written.
        """
        tensors = {f"{_WEIGHT}{name}": tensor for name, tensor in self.weights.items()}
        for index, (part, _) in enumerate(self.share.parts):
            tensors[f"{_PART}{index}.pixel_values"] = part["pixel_values"]
            tensors[f"{_PART}{index}.pixel_mask"] = part["pixel_mask"]
            for image, label in enumerate(part["labels"]):
                values = cast(Mapping[str, Tensor], label)
                tensors |= {f"{_PART}{index}.labels.{image}.{name}": value for name, value in values.items()}
        facts = {
            "class_weight_sums": [float(class_weight_sum) for _, class_weight_sum in self.share.parts],
            "num_boxes": float(self.share.num_boxes),
            "num_teacher_boxes": float(self.share.num_teacher_boxes),
            "recipe": dataclasses.asdict(self.recipe),
            "config": self.config.to_dict(),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        path = run_dir / NONFINITE / f"step_{self.step:08d}_process_{self.process}.safetensors"
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        with replaced_file(path) as partial:  # it may exist from an earlier start of the run
            save_file(copies, partial, metadata={"failed_step": json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: Path) -> "FailedStep":
        """Read a step that `save` wrote.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file does not contain a step, or was written by an incompatible version.
        """
        if path.is_dir():
            steps = sorted({*path.glob("step_*.safetensors"), *path.glob(f"{NONFINITE}/step_*.safetensors")})
            choices = f"expected one of {', '.join(map(str, steps))}" if steps else "which contains no failed step"
            raise ValueError(f"{path}: a folder, {choices}.")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, expected a file in the {NONFINITE}/ folder of a run.")
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["failed_step"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            sums = facts.pop("class_weight_sums")
            parts = [(_part(tensors, f"{_PART}{index}."), weight_sum) for index, weight_sum in enumerate(sums)]
            return cls(
                share=StepShare(parts, facts.pop("num_boxes"), facts.pop("num_teacher_boxes", 1.0)),
                weights=_below(tensors, _WEIGHT),
                recipe=recipe_class()(**facts.pop("recipe")),
                config=DetrConfig(**facts.pop("config")),
                **{**facts, "images": {int(index): image for index, image in facts["images"].items()}},
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not a step saved by this version ({error}), expected a file in the {NONFINITE}/ folder "
                f"of a run."
            ) from error


_PLAIN = ("frozen", "image_mean", "image_std", "images", "terms", "epoch", "step", "process")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> DetectionBatch:
    # the collator's memory format, so that convolutions round the same way
    pixel_values = tensors[f"{prefix}pixel_values"].contiguous(memory_format=torch.channels_last)
    labels = [_below(tensors, f"{prefix}labels.{image}.") for image in range(len(pixel_values))]
    return cast(
        DetectionBatch,
        {"pixel_values": pixel_values, "pixel_mask": tensors[f"{prefix}pixel_mask"], "labels": labels},
    )


class Replay:
    """Repeats a non-finite step on this machine.

    Args:
        failed: The step.
        mixed_precision: Precision, as in a recipe; None: that of the run.

    Raises:
        ValueError: This machine does not support the precision.

    Attributes:
        is_finite: Whether all losses and the gradient were finite this time.
    """

    def __init__(self, failed: FailedStep, mixed_precision: str | None = None) -> None:
        recipe = failed.recipe
        self.failed = failed
        self.is_finite = True
        try:
            self.accelerator = Accelerator(mixed_precision=mixed_precision or recipe.mixed_precision)
        except ValueError as error:  # such as fp16 on a CPU
            raise ValueError(f"mixed_precision: {error} Try --mixed_precision no.") from error
        self.model = _training_model(failed).to(self.accelerator.device).train()
        self.model.to(memory_format=torch.channels_last)  # as in the run
        self._losses_of = StepLosses(
            accelerator=self.accelerator,
            num_boxes=failed.share.num_boxes,
            image_mean=failed.image_mean,
            image_std=failed.image_std,
            seed=recipe.seed,
            step=failed.step - 1,
            num_teacher_boxes=failed.share.num_teacher_boxes,
        )

    def lines(self) -> Iterator[str]:
        """Run the step, and yield a line for each batch, for the gradient, and for each image by itself."""
        failed, num_parts = self.failed, len(self.failed.share.parts)
        yield (
            f"epoch {failed.epoch}, step {failed.step}, process {failed.process}, on {self.accelerator.device} with "
            f"mixed precision {self.accelerator.mixed_precision}; not finite in the run: {', '.join(failed.terms)}"
        )
        parameters = dict(self.model.named_parameters())
        bad = [name for name, parameter in parameters.items() if not _all_finite(parameter)]
        if bad:
            yield f"weights: {len(bad)} of {len(parameters)} not finite, first {bad[0]}"
        torch.manual_seed(step_seed(failed.recipe.seed, failed.step - 1, failed.process))
        for index, (part, class_weight_sum) in enumerate(failed.share.parts, start=1):
            yield f"batch {index} of {num_parts}: {self._run(part, class_weight_sum)}"
        gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
        bad = [name for name, gradient in gradients.items() if not _all_finite(gradient)]
        self.is_finite = self.is_finite and not bad
        yield f"gradient: {f'not finite for {len(bad)} of {len(gradients)} parameters' if bad else 'finite'}"
        for part, class_weight_sum in failed.share.parts:
            for image in split_batch(part, max_pixels=1):
                finite = is_finite(self.model, self._losses_of(self.model, image, class_weight_sum))
                yield f"{self._describe(image)}: {'finite' if finite else 'NOT FINITE'} by itself"

    def _run(self, part: DetectionBatch, class_weight_sum: float | Tensor) -> str:
        """Run forward and backward pass of a part; return the result in words."""
        with _first_not_finite(self.model) as first:
            losses = self._losses_of(self.model, part, class_weight_sum)
        losses["loss"].backward()
        bad = [name for name, loss in losses.items() if not _all_finite(loss)]
        self.is_finite = self.is_finite and not bad
        if not bad:
            return f"finite, loss {losses['loss'].item():.4g}"
        return f"not finite: {', '.join(bad)}{f'; first in {first[0]}' if first else ''}"

    def _describe(self, image: DetectionBatch) -> str:
        """File, size, boxes and pixel values of a batch of one image."""
        pixels, (label,) = image["pixel_values"], image["labels"]
        names = [self.failed.images.get(index, f"image {index}") for index in image_indices(image)]
        num_bad = int((~pixels.isfinite()).sum()) if pixels.is_floating_point() else 0
        values = f"{num_bad} values not finite" if num_bad else f"pixels {pixels.min():.4g} to {pixels.max():.4g}"
        height, width = pixels.shape[-2:]
        return f"{' '.join(names)}  {width}x{height}, {len(label['class_labels'])} boxes, {values}"


def _all_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


@contextlib.contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that receives the name of the first module in the block whose output is not finite."""
    first: list[str] = []

    def check(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        if not first and isinstance(output, Tensor) and output.is_floating_point() and not _all_finite(output):
            first.append(f"the output of {name} ({type(module).__name__})")

    handles = [module.register_forward_hook(partial(check, name)) for name, module in model.named_modules()]
    try:
        yield first
    finally:
        for handle in handles:
            handle.remove()


def _training_model(failed: FailedStep) -> TrainingModel:
    recipe = failed.recipe
    kind = DetrForObjectDetection if recipe.task == "detection" else DetrForSegmentation
    model = build_training_model(kind(failed.config), **active_aids(recipe))
    model.load_state_dict(failed.weights)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in failed.frozen)
    return model


def describe_failure(error: NonFiniteLossError, run: PreparedRun) -> NonFiniteLossError:
    """Save a non-finite step; return the error with its epoch, step and files, and a remedy.

    All processes call it together.
    """
    epoch, step, run_dir = run.state.epoch + 1, run.state.step + 1, run.recipe.run_dir
    records = run.train_index.images
    model = run.accelerator.unwrap_model(run.model)
    weights = gather_full(model.state_dict())  # in all processes, since each may hold only shards
    remedies: list[str] = []
    if error.share is not None:
        images = {index for part, _ in error.share.parts for index in image_indices(part)}
        failed = FailedStep(
            share=error.share,
            weights=weights,
            frozen=[name for name, parameter in model.named_parameters() if not parameter.requires_grad],
            recipe=dataclasses.replace(run.recipe, mixed_precision=run.accelerator.mixed_precision),
            config=run.weights.detector.config,
            image_mean=run.processor.image_mean,
            image_std=run.processor.image_std,
            images={index: records[index].path for index in sorted(images)},
            terms=error.terms,
            epoch=epoch,
            step=step,
            process=run.accelerator.process_index,
        )
        try:
            remedies = [f"Run the step again: detr train --replay {failed.save(run_dir)}"]
        except OSError as problem:  # a full disk must not hide the non-finite loss
            remedies = [str(problem).rstrip(".")]
    if run.accelerator.num_processes > 1:
        remedies = gather_object(remedies)
    if checkpoint_folders(run_dir):
        remedies.append("Resume from the last checkpoint with the same command and --resume auto")
    return NonFiniteLossError(
        error.terms,
        error.image_indices,
        error.finding,
        error.share,
        where=f"epoch {epoch}, step {step}",
        images=", ".join(records[index].path for index in error.image_indices),
        remedy="".join(f" {sentence}." for sentence in remedies),
    )
