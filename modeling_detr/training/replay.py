"""A step that was not finite, on file, and run again: `detr train --replay FILE`.

    runs/NAME/nonfinite/step_00000012_process_0.safetensors

holds, without pickle, all that a process computed with: the weights, its batches and what their losses are divided by;
and as JSON in the file's metadata the recipe, the model's configuration, and where in the run it was.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.data.collate import split_batch
from modeling_detr.modeling_detr import DetrForObjectDetection
from modeling_detr.segmentation_detr import DetrForSegmentation
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training.aids import TrainingModel, active_aids, build_training_model
from modeling_detr.training.divergence import StepShare, image_indices, is_finite
from modeling_detr.training.engine import StepLosses, step_seed
from modeling_detr.training.recipe import Recipe, recipe_class


FOLDER = "nonfinite"
_WEIGHT, _PART = "model.", "part."


@dataclasses.dataclass(frozen=True)
class FailedStep:
    """A process's share of a step that was not finite.

    Attributes:
        share: What it contributed.
        weights: Of the training model, as `state_dict` has them.
        frozen: Names of the parameters that do not train.
        recipe: The run's.
        config: The model's.
        image_mean: Mean of each channel, in units of [0, 1].
        image_std: Standard deviation of each channel.
        images: Position in the dataset → the file, of the images of the share.
        terms: What was not finite.
        epoch: From 1.
        step: From 1.
        process: From 0.
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
        """Writes the step below the run's folder, as a whole or not at all, and returns the file.

        Raises:
            OSError: It cannot be written.
        """
        tensors = {f"{_WEIGHT}{name}": tensor for name, tensor in self.weights.items()}
        for number, (part, _) in enumerate(self.share.parts):
            tensors[f"{_PART}{number}.pixel_values"] = part["pixel_values"]
            tensors[f"{_PART}{number}.pixel_mask"] = part["pixel_mask"]
            for image, label in enumerate(part["labels"]):
                values = cast(Mapping[str, Tensor], label)
                tensors |= {f"{_PART}{number}.labels.{image}.{name}": value for name, value in values.items()}
        facts = {
            "class_weight_sums": [float(class_weight_sum) for _, class_weight_sum in self.share.parts],
            "num_boxes": float(self.share.num_boxes),
            "recipe": dataclasses.asdict(self.recipe),
            "config": self.config.to_dict(),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        path = run_dir / FOLDER / f"step_{self.step:08d}_process_{self.process}.safetensors"
        temporary = path.with_name(f".{path.name}.writing")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(copies, temporary, metadata={"failed_step": json.dumps(facts)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise OSError(f"{path} cannot be written ({error})") from error
        return path

    @classmethod
    def load(cls, path: Path) -> "FailedStep":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not such a file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; wanted one from the folder {FOLDER} of a run.")
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["failed_step"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            sums = facts.pop("class_weight_sums")
            parts = [(_part(tensors, f"{_PART}{number}."), weight_sum) for number, weight_sum in enumerate(sums)]
            return cls(
                share=StepShare(parts, facts.pop("num_boxes")),
                weights=_below(tensors, _WEIGHT),
                recipe=recipe_class()(**facts.pop("recipe")),
                config=DetrConfig(**facts.pop("config")),
                **{**facts, "images": {int(index): image for index, image in facts["images"].items()}},
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: holds no step of a run of this version ({error}); wanted a file from the folder {FOLDER} of "
                f"a run."
            ) from error


_PLAIN = ("frozen", "image_mean", "image_std", "images", "terms", "epoch", "step", "process")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> DetectionBatch:
    # in memory as they came from the collator: convolutions then round alike
    pixel_values = tensors[f"{prefix}pixel_values"].contiguous(memory_format=torch.channels_last)
    labels = [_below(tensors, f"{prefix}labels.{image}.") for image in range(len(pixel_values))]
    return cast(
        DetectionBatch,
        {"pixel_values": pixel_values, "pixel_mask": tensors[f"{prefix}pixel_mask"], "labels": labels},
    )


class Replay:
    """Runs a step again that was not finite, on this machine.

    Args:
        failed: The step.
        mixed_precision: As in a recipe; None: as in the run.

    Raises:
        ValueError: This machine cannot compute so.

    Attributes:
        is_finite: Whether all losses and the gradient have been finite this time.
    """

    def __init__(self, failed: FailedStep, mixed_precision: str | None = None) -> None:
        recipe = failed.recipe
        self.failed = failed
        self.is_finite = True
        try:
            self.accelerator = Accelerator(mixed_precision=mixed_precision or recipe.mixed_precision)
        except ValueError as error:  # such as fp16 on a CPU
            raise ValueError(f"{error} Choose another precision: --mixed_precision no.") from error
        self.model = _training_model(failed).to(self.accelerator.device).train()
        self.model.to(memory_format=torch.channels_last)  # as the run
        self._losses_of = StepLosses(
            accelerator=self.accelerator,
            num_boxes=failed.share.num_boxes,
            image_mean=failed.image_mean,
            image_std=failed.image_std,
            seed=recipe.seed,
            step=failed.step - 1,
        )

    def lines(self) -> Iterator[str]:
        """Runs it, and tells what is seen on the way: batches, then the gradient, then each image alone."""
        failed, number = self.failed, len(self.failed.share.parts)
        yield (
            f"epoch {failed.epoch}, step {failed.step}, process {failed.process}, on {self.accelerator.device} with "
            f"mixed precision {self.accelerator.mixed_precision}; in the run was not finite: {', '.join(failed.terms)}"
        )
        parameters = dict(self.model.named_parameters())
        bad = [name for name, parameter in parameters.items() if not _all_finite(parameter)]
        if bad:
            yield f"weights: {len(bad)} of {len(parameters)} not finite, first {bad[0]}"
        torch.manual_seed(step_seed(failed.recipe.seed, failed.step - 1, failed.process))
        for position, (part, class_weight_sum) in enumerate(failed.share.parts, start=1):
            yield f"batch {position} of {number}: {self._run(part, class_weight_sum)}"
        gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
        bad = [name for name, gradient in gradients.items() if not _all_finite(gradient)]
        self.is_finite = self.is_finite and not bad
        yield f"gradient: {f'not finite for {len(bad)} of {len(gradients)} parameters' if bad else 'finite'}"
        for part, class_weight_sum in failed.share.parts:
            for image in split_batch(part, max_pixels=1):
                fine = is_finite(self.model, self._losses_of(self.model, image, class_weight_sum))
                yield f"{self._describe(image)}: alone {'finite' if fine else 'NOT FINITE'}"

    def _run(self, part: DetectionBatch, class_weight_sum: float | Tensor) -> str:
        """Forward and backward pass; what to say of it."""
        with _first_not_finite(self.model) as found:
            losses = self._losses_of(self.model, part, class_weight_sum)
        losses["loss"].backward()
        bad = [name for name, loss in losses.items() if not _all_finite(loss)]
        self.is_finite = self.is_finite and not bad
        where = f"; first in {found[0]}" if found else ""
        return f"not finite: {', '.join(bad)}{where}" if bad else f"finite, loss {losses['loss'].item():.4g}"

    def _describe(self, image: DetectionBatch) -> str:
        """Name, size, boxes and pixels of a batch of one image."""
        pixels, (label,) = image["pixel_values"], image["labels"]
        names = [self.failed.images.get(index, f"image {index}") for index in image_indices(image)]
        odd = int((~pixels.isfinite()).sum()) if pixels.is_floating_point() else 0
        values = f"{odd} numbers not finite" if odd else f"pixels {pixels.min():.4g} to {pixels.max():.4g}"
        height, width = pixels.shape[-2:]
        return f"{' '.join(names)}  {width}x{height}, {len(label['class_labels'])} boxes, {values}"


def _all_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


@contextlib.contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Fills the list with the name of the first module within the block whose output is not finite."""
    found: list[str] = []

    def watch(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        values = output if isinstance(output, Tensor) else None
        if not found and values is not None and values.is_floating_point() and not _all_finite(values):
            found.append(f"the output of {name} ({type(module).__name__})")

    handles = [module.register_forward_hook(partial(watch, name)) for name, module in model.named_modules()]
    try:
        yield found
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
