"""The recipe: all settings of one training run, one typed key per setting.

A key is declared once: type, default, help, bounds, and the effect of a changed value on a resume. `recipe_parsing`
reads recipes from YAML and the command line. What the weights mean is in the model's `config.json` and what the pixels
mean in the processor's `preprocessor_config.json`; a recipe only has settings for new ones, under `model_config` and
`processor_config`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from modeling_detr.data.augmentation import POLICIES
from modeling_detr.data.formats import FORMATS, reading_options
from modeling_detr.data.loader_processes import DEFAULT_TIMEOUT_MINUTES
from modeling_detr.data.splits import DEFAULT_SEED
from modeling_detr.errors_detr import PluginError, RecipeError
from modeling_detr.listening import LAST_PORT
from modeling_detr.remote_addresses import without_credentials
from modeling_detr.structures_detr import Task
from modeling_detr.training.optimization import LearningRateSchedule
from modeling_detr.training.recipe_keys import Resume, key, keys_of


DECIDED_BY_MINUTES = ("epochs", "max_steps", "lr_drop_steps")  # keys that `pace_probe` sets
_READING = reading_options()


def _zero_freezes(value: float, previous: float) -> Resume:
    """The effect of a changed backbone rate: 0 freezes the backbone, whose parameters then leave the optimizer."""
    return Resume.MODEL if (value == 0) != (previous == 0) else Resume.FREE


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run. `Recipe.KEY` is the default of KEY; `detr train --help` explains all keys.

    Raises:
        RecipeError: A value is out of bounds or does not fit another key.
    """

    # What to train on

    task: Task = key(
        "detection",
        "What the model predicts: 'detection' (boxes), 'instance' (things and their masks) or 'panoptic' (every pixel "
        "belongs to a thing or to stuff). The last two train a DetrForSegmentation.",
        resume=Resume.MODEL,
        section="data",
    )
    data: str | None = key(
        None,
        "Dataset: a folder or file in COCO, YOLO or Pascal VOC format, a dataset of Hugging Face's `datasets` (a "
        "folder, a .parquet file or its name on the Hub), or the built-in 'shapes'.",
        resume=Resume.ORDER,
    )
    data_format: str | None = key(
        None,
        "Format of the dataset, 'hf' for Hugging Face's `datasets`. none: detected.",
        choices=FORMATS,
        resume=Resume.ORDER,
    )
    images: str | None = key(None, _READING["images"].sentence, resume=Resume.ORDER)
    drop_difficult: bool = key(False, _READING["drop_difficult"].sentence, resume=Resume.ORDER)
    box_format: str | None = key(
        None, _READING["box_format"].sentence, choices=_READING["box_format"].choices, resume=Resume.ORDER
    )
    lines: str | None = key(None, _READING["lines"].sentence, choices=_READING["lines"].choices, resume=Resume.ORDER)
    boxes: str | None = key(None, _READING["boxes"].sentence, choices=_READING["boxes"].choices, resume=Resume.ORDER)
    class_attribute: str | None = key(None, _READING["class_attribute"].sentence, resume=Resume.ORDER)
    crowds: str | None = key(
        None, _READING["crowds"].sentence, choices=_READING["crowds"].choices, resume=Resume.ORDER
    )
    label_ids: Literal["dense", "raw"] = key(
        "dense",
        "How classes are numbered. 'dense': from 0 without gaps, or as in 'model' if that has all classes of "
        "the dataset by name. 'raw': by the dataset's category ids, as in the original.",
        resume=Resume.MODEL,
    )
    train_split: str | None = key(
        None,
        "Split to train on; join several with '+'. none: the split with a common name, such as train.",
        resume=Resume.ORDER,
    )
    eval_split: str | None = key(
        None, "Split to evaluate on. none: the split with a common name, such as val or test."
    )
    eval_fraction: float = key(
        0.0,
        "Fraction of the training images to hold out for evaluation, for data without a validation split.",
        at_least=0,
        below=1,
        resume=Resume.ORDER,
    )

    train_images: int | None = key(
        None,
        "Train on this many of the training images, drawn at random by the seed; a larger number adds to those of a "
        "smaller one. Would more images help? Compare 50, 100 and all. none: all.",
        at_least=1,
        resume=Resume.ORDER,
    )

    unreadable_images: Literal["skip", "error"] = key(
        "skip",
        "Training images that cannot be read. 'skip': train without them, as long as they are at most 1% of all; "
        "another image takes their place. 'error': stop.",
        resume=Resume.ORDER,
    )

    # The model

    model: str | None = key(
        None,
        "Model to start from: a folder, a Hub id, or an original DETR checkpoint (.pth). none: a new model.",
        resume=Resume.MODEL,
        section="model",
    )
    model_config: dict[str, Any] = key(
        {},
        "Settings of DetrConfig, for a new model or to override those of 'model'.",
        resume=Resume.MODEL,
        describes_new_model=True,
    )
    head_init: Literal["by_name", "fresh"] = key(
        "by_name",
        "What happens to the class head of 'model' if the dataset has other classes. 'by_name': classes with the same "
        "name keep their weights, new ones start with a low score. 'fresh': a head of another size is random.",
        resume=Resume.MODEL,
    )
    label_mapping: dict[str, Any] = key(
        {},
        "Renamed classes that keep their weights: KEY is the name in 'model', VALUE the name in the dataset.",
        resume=Resume.MODEL,
    )
    processor_config: dict[str, Any] = key(
        {},
        "Settings of the image processor, such as its size. Those not set are the model's.",
        resume=Resume.ORDER,
        describes_new_model=True,
    )
    backbone_weights: str | None = key(
        None,
        "Pretrained weights of a new model's backbone: a timm name (resnet50.tv_in1k, downloaded), or a "
        ".safetensors or .pth file with timm's parameter names.",
        resume=Resume.START,
        describes_new_model=True,
    )
    local_start: bool = key(
        False,
        "Initialise the decoder of a new model so that each query reads one place of the image, instead of at random "
        "as in the original.",
        resume=Resume.START,
        describes_new_model=True,
    )
    freeze: list[str] = key(
        [],
        "Parameters to freeze, as globs or regular expressions of their names, such as model.backbone. Batch norms "
        "still update their running statistics; model_config.freeze_batch_norm stops that too.",
        resume=Resume.MODEL,
    )
    freeze_detector: bool = key(
        False,
        "Train only the mask head, on a frozen detector given as 'model': the original's second stage.",
        resume=Resume.MODEL,
    )

    # Augmentation

    transform: str = key(
        "original",
        "Augmentation: the name of a policy, or the dotted name of your own transform.",
        examples=POLICIES,
        resume=Resume.ORDER,
        section="augmentation",
    )
    transform_options: dict[str, Any] = key(
        {},
        "Options of the augmentation, such as scales; by default sizes follow the image processor.",
        resume=Resume.ORDER,
    )
    no_flip_classes: list[str] = key(
        [],
        "Classes, by name, whose images are never mirrored, such as text or signs for left and right. To mirror no "
        "image at all, set transform_options.flip_probability to 0.",
        resume=Resume.ORDER,
    )
    mosaic_probability: float = key(
        0.0,
        "Share of the training samples that are mosaics of four images, from 0 (none) to 1 (all). They help to learn "
        "from few images.",
        at_least=0,
        at_most=1,
    )
    close_mosaic_share: float = key(
        0.15,
        "Share of the epochs, at the end of the run, that have no mosaics, so that the model is finished on images as "
        "they are: 0.1 is the last 3 of 30 epochs and the last 30 of 300.",
        at_least=0,
        below=1,
    )

    # Batches

    batching: Literal["random", "size"] = key(
        "size",
        "How images are grouped into batches: at 'random', as in the original, or by 'size', for less padding.",
        resume=Resume.ORDER,
        section="batches",
    )
    # On a resume, the images per step are compared, not the batch size, accumulation and processes they result from.
    batch_size: int = key(2, "Images per batch and process.", at_least=1)
    gradient_accumulation_steps: int = key(1, "Batches per process and optimizer step.", at_least=1)
    max_pixels_per_batch: int | None = key(
        None,
        "Maximum number of pixels, padding included, in one forward pass. A larger batch is processed in parts; the "
        "images and the gradient of the step stay the same. none: no limit until a step runs out of memory, which is "
        "then repeated in halves.",
        at_least=1,
    )
    num_workers: int = key(2, "Data loading processes per training process.", at_least=0)
    loader_timeout_minutes: float = key(
        DEFAULT_TIMEOUT_MINUTES,
        "Maximum minutes to wait for a batch of these processes; then the run stops with a checkpoint. 0: no limit.",
        at_least=0,
        resume=Resume.LAUNCH,
    )

    # Schedule

    epochs: int = key(300, "Passes over the training images.", at_least=1, section="schedule")
    max_steps: int | None = key(None, "Stop after this many optimizer steps, even within an epoch.", at_least=1)
    minutes: float | None = key(
        None,
        "Train for about this long, evaluations included: a measurement before the first step decides epochs and "
        "max_steps, and the learning rate schedule ends there. Start-up, checks and the measurement, about a minute "
        "together, are not included. none: as many as epochs and max_steps say.",
        at_least=1e-4,
    )
    lr_schedule: LearningRateSchedule = key("step", "Learning rate schedule after the warm-up.")
    lr_drop_epochs: int = key(
        200, "With lr_schedule 'step': epochs between drops of the learning rates to a tenth.", at_least=1
    )
    lr_drop_steps: int | None = key(None, "The same in optimizer steps; overrides lr_drop_epochs.", at_least=1)
    warmup_steps: int = key(0, "Optimizer steps over which the learning rates rise from zero.", at_least=0)
    warmup_epochs: float = key(0.0, "Warm-up in epochs instead of steps, such as 0.5; set only one.", at_least=0)
    early_stopping_patience: int | None = key(
        None, "Stop after this many evaluations without improvement. none: train to the last epoch.", at_least=1
    )

    # Optimizer

    learning_rate: float = key(
        1e-4, "Learning rate of the transformer and the heads.", at_least=0, section="optimizer"
    )
    backbone_learning_rate: float = key(
        1e-5, "Learning rate of the backbone; 0 freezes it.", at_least=0, resume=_zero_freezes
    )
    scale_lr: Literal["sqrt", "linear"] | None = key(
        None,
        "Scale both learning rates by the images per step, over all processes, relative to scale_lr_from. 'linear': "
        "by the ratio. 'sqrt': by its square root, which suits AdamW. none: use them as given.",
    )
    scale_lr_from: int = key(
        16,
        "Images per step that the learning rates are meant for; in the original, 8 processes with 2 each.",
        at_least=1,
    )
    weight_decay: float = key(1e-4, "Decoupled weight decay of AdamW, on every parameter.", at_least=0)
    max_grad_norm: float = key(0.1, "Norm to which larger gradients are clipped; 0: no clipping.", at_least=0)
    loss_normalization: Literal["step", "original"] = key(
        "step",
        "What the losses are divided by. 'step': the boxes and class weights of the whole optimizer step, so the "
        "result does not depend on how the step is split. 'original': the class weights of each process's batch, and "
        "the mean number of boxes per batch (accumulated batches count as processes).",
    )
    ema_decay: float = key(
        0.0,
        "Decay of a moving average of the weights, such as 0.999, which is then evaluated and exported; early steps "
        "use a smaller decay. 0: no average.",
        at_least=0,
        below=1,
    )

    # Training aids; the exported model is a standard DETR

    encoder_supervision: bool = key(
        False,
        "During training, also predict from every encoder token.",
        resume=Resume.MODEL,
        section="aids",
    )
    denoising_groups: int = key(
        0,
        "Groups of noised ground-truth queries in the decoder during training.",
        at_least=0,
        resume=Resume.MODEL,
    )

    anchored_matching: float = key(
        0.0,
        "Matching cost of the distance between an object's centre and the place where a query starts, per side of the "
        "image, such as 10: fewer duplicates. Needs local_start. 0: matching as in the original.",
        at_least=0,
        resume=Resume.FREE,
        describes_new_model=True,
    )
    teacher: str | None = key(
        None,
        "Another detector whose boxes are further targets, weighted by their scores: a model, as for 'model', which "
        "predicts the training images before training and whose classes match by name; or predictions of any detector "
        "for these images, a .json file in COCO's results format with the dataset's ids.",
    )
    teacher_min_score: float = key(0.3, "Lowest score of a box of 'teacher' that is used.", at_least=0, below=1)
    teacher_weight: float = key(
        1.0, "Weight of the loss of these boxes, relative to that of the annotated ones.", at_least=0
    )

    # Precision, memory, speed

    mixed_precision: Literal["no", "fp16", "bf16"] | None = key(
        None,
        "Precision of the forward pass. none: as configured by `accelerate launch`, else full precision.",
        section="hardware",
    )
    compile: bool = key(
        False, "Compile backbone, encoder and decoder with torch.compile; the first steps then take minutes."
    )
    gradient_checkpointing: bool = key(False, "Recompute activations in the backward pass, to save memory.")
    max_memory_gb: float | None = key(
        None,
        "Maximum memory of each training process in GiB (2^30 bytes), of PyTorch on a GPU, and of all that is not "
        "shared on a CPU under Linux; loader processes are not limited. A step that needs more is split, see "
        "max_pixels_per_batch. none: no limit.",
        at_least=0.1,
    )
    seed: int = key(
        DEFAULT_SEED, "Seed of weights, image order, augmentation and dropout.", at_least=0, resume=Resume.ORDER
    )
    preflight: bool = key(
        True,
        "Before the first step, check data, boxes, evaluation and memory on up to 500 images, for about 30 seconds.",
        resume=Resume.LAUNCH,
    )

    # The folder of the run, and its checkpoints

    output_dir: str | None = key(
        None,
        "Folder of the run. none: runs/NAME, after the name of the recipe.",
        resume=Resume.LAUNCH,
        section="run",
    )
    resume: str | None = key(
        None,
        "'auto': resume from the run's newest intact checkpoint, or start a new run if there is none. "
        "A folder: resume from that checkpoint.",
        resume=Resume.LAUNCH,
    )
    checkpoint_every_epochs: int = key(1, "Epochs between checkpoints; the last epoch always gets one.", at_least=1)
    checkpoint_every_steps: int | None = key(None, "Optimizer steps between additional checkpoints.", at_least=1)
    checkpoint_every_minutes: float | None = key(
        30.0, "Maximum minutes between checkpoints. none: no limit.", at_least=0
    )
    keep_checkpoints: int = key(
        2, "Newest checkpoints to keep; the checkpoint of the best model is kept as well.", at_least=1
    )

    # Evaluation

    eval_batch_size: int | None = key(
        None, "Images per evaluation batch and process. none: batch_size.", at_least=1, section="evaluation"
    )
    eval_every_epochs: int = key(1, "Epochs between evaluations; the last epoch is always evaluated.", at_least=1)
    num_images_to_log: int = key(8, "Evaluation images to draw with predicted and true boxes; 0: none.", at_least=0)

    # Logs and uploads

    log_every_steps: int = key(10, "Optimizer steps between log entries.", at_least=1, section="logs")
    trackers: list[str] = key(
        ["tensorboard"],
        "Experiment trackers of Accelerate, such as tensorboard,wandb,mlflow; install their packages yourself. "
        "Project and run are named after the last two parts of output_dir.",
    )
    metrics_port: int | None = key(
        None,
        "Port on which the main process serves speed, losses, AP and memory at /metrics, for Prometheus, until the "
        "run ends. 0: one that is free. none: not served.",
        at_least=0,
        at_most=LAST_PORT,
        resume=Resume.LAUNCH,
    )
    metrics_host: str = key(
        "127.0.0.1",
        "Address of this port: this machine only, or 0.0.0.0 for all who reach it; whoever does can read the values.",
        resume=Resume.LAUNCH,
    )
    push_to_hub: str | None = key(
        None, "Repository on the Hub (owner/name) to push the best model to at the end of the run."
    )
    hub_private: bool = key(False, "Make that repository private if it does not exist yet.")

    def __post_init__(self) -> None:
        """Checks bounds, and keys that exclude or require each other."""
        for name in ("data", "images"):  # passwords belong into no file of the run
            text = getattr(self, name)
            object.__setattr__(self, name, without_credentials(text) if isinstance(text, str) else text)
        for name, declared in keys_of(type(self)).items():
            declared.check(getattr(self, name))
        self._check_exclusive("eval_split", "eval_fraction")
        self._check_exclusive("warmup_steps", "warmup_epochs")
        self._check_model()
        self._check_teacher()
        if self.freeze_detector:
            self._check_frozen_detector()
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise RecipeError("push_to_hub", f"got '{self.push_to_hub}', expected a repository on the Hub: owner/name")

    def _check_exclusive(self, *names: str) -> None:
        if all(getattr(self, name) for name in names):
            raise RecipeError(names[0], f"cannot be combined with {names[1]}", "set only one of the two")

    def _check_model(self) -> None:
        for name in ("backbone_weights", "local_start"):
            if self.model is not None and getattr(self, name):
                raise RecipeError(name, "initialises a new model, but 'model' is given", "drop one of the two")
        if self.anchored_matching and not self.local_start:
            problem = "needs local_start: other queries do not start at a place of the image"
            raise RecipeError("anchored_matching", problem, "turn it off", {"anchored_matching": 0})
        if self.label_mapping and self.model is None:
            raise RecipeError("label_mapping", "needs a model to start from", "give one", {"model": "FOLDER"})
        if self.label_mapping and self.head_init == "fresh":
            problem = "has no effect on a class head that is initialised at random"
            raise RecipeError("label_mapping", problem, "reuse its weights by name", {"head_init": "by_name"})
        for old, new in self.label_mapping.items():
            if not isinstance(new, str):
                raise RecipeError("label_mapping", f"'{old}' is mapped to {new!r}, expected the name of a class")

    def _check_teacher(self) -> None:
        for name in ("teacher_min_score", "teacher_weight"):
            if self.teacher is None and getattr(self, name) != getattr(Recipe, name):
                raise RecipeError(name, "needs a teacher", "give one", {"teacher": "FILE_OR_MODEL"})

    def _check_frozen_detector(self) -> None:
        if self.task == "detection":
            problem = "leaves nothing to train for the task 'detection'"
            raise RecipeError("freeze_detector", problem, "choose a task with masks", {"task": "panoptic"})
        if self.model is None:
            problem = "needs a trained detector to start from"
            raise RecipeError("freeze_detector", problem, "give one", {"model": "FOLDER"})
        if self.encoder_supervision or self.denoising_groups or self.teacher:
            raise RecipeError(
                "freeze_detector",
                "encoder_supervision, denoising_groups and teacher train the detector, which is frozen",
                "turn them off",
                {"encoder_supervision": False, "denoising_groups": 0, "teacher": None},
            )

    @property
    def data_source(self) -> str:
        """`data`, which every run needs.

        Raises:
            RecipeError: It is not set.
        """
        if self.data is None:
            raise RecipeError("data", "not set", "choose a dataset, as in 'detr train small_dataset --data FOLDER'")
        return self.data

    @property
    def run_dir(self) -> Path:
        """`output_dir` as a path.

        Raises:
            RecipeError: It is not set.
        """
        if self.output_dir is None:
            raise RecipeError("output_dir", "not set", "choose a folder for the run", {"output_dir": "FOLDER"})
        return Path(self.output_dir)

    def to_yaml(self) -> str:
        """The recipe with all keys, defaults included, as YAML that `parse_recipe` reads back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


# Keys of plug-ins: name → type and declaration, as in PLUGIN_KEYS["my_aid"] = int, key(0, "Strength of my aid.")
PLUGIN_KEYS: dict[str, tuple[object, object]] = {}


def recipe_class() -> type[Recipe]:
    """`Recipe` with the keys that plug-ins add; `Recipe` itself if there are none.

    Raises:
        PluginError: A plug-in adds a key that `Recipe` already has.
    """
    for name in PLUGIN_KEYS:
        if name in keys_of(Recipe):
            raise PluginError(
                f"recipe key '{name}'", "a plug-in adds it, but it is built in", "rename the plug-in's key"
            )
    return _extended_recipe(tuple((name, *declared) for name, declared in PLUGIN_KEYS.items()))


@functools.cache
def _extended_recipe(keys: tuple[tuple[str, Any, Any], ...]) -> type[Recipe]:
    return dataclasses.make_dataclass("Recipe", keys, bases=(Recipe,), frozen=True) if keys else Recipe


# Changes on a resume


class Change(NamedTuple):
    """A key whose value differs from the run so far."""

    name: str
    value: object
    previous: object

    def __str__(self) -> str:
        if isinstance(self.value, Mapping) and isinstance(self.previous, Mapping):
            names = [*dict.fromkeys([*self.previous, *self.value])]
            changes = (Change(f"{self.name}.{name}", self.value.get(name), self.previous.get(name)) for name in names)
            return ", ".join(str(change) for change in changes if change.value != change.previous)
        return f"{self.name} changed from {_shown(self.previous)} to {_shown(self.value)}"


@dataclass(frozen=True)
class ResumeChanges:
    """The keys that differ between a recipe and that of a checkpoint, grouped by their effect (see `Resume`).

    Attributes:
        model: The checkpoint does not fit.
        order: The images of the steps change, so an epoch cannot be continued.
        free: The new value is used from the resumed step on.
        start: The new value has no effect.
    """

    model: tuple[Change, ...]
    order: tuple[Change, ...]
    free: tuple[Change, ...]
    start: tuple[Change, ...]

    def sentences(self) -> list[str]:
        """Each change in words, for the notes of a resumed run."""
        without_effect = (f"{change}; this has no effect on a run that has started" for change in self.start)
        return [*map(str, (*self.model, *self.order, *self.free)), *without_effect]


def compare_for_resume(recipe: Recipe, previous: Mapping[str, Any]) -> ResumeChanges:
    """Compares a recipe with the one that a checkpoint was written with.

    Args:
        recipe: The recipe of the resumed run.
        previous: The checkpoint's recipe as plain values. Keys that it lacks, because a newer version added them,
            count as their defaults.
    """
    values = dataclasses.asdict(recipe)
    changes: dict[Resume, list[Change]] = {rule: [] for rule in Resume}
    for name, declared in keys_of(type(recipe)).items():
        before = previous.get(name, declared.default)
        if values[name] != before:
            changes[declared.resume_rule(values[name], before)].append(Change(name, values[name], before))
    return ResumeChanges(*(tuple(changes[rule]) for rule in (Resume.MODEL, Resume.ORDER, Resume.FREE, Resume.START)))


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
