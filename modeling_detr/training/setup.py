"""The setup of a run from its recipe: data, model, loaders, optimizer, schedule, and the state to start from."""

import copy
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from modeling_detr.data import (
    DetectionDataset,
    TrainBatchSampler,
    eval_transform,
    open_dataset,
    train_transform,
)
from modeling_detr.data.augmentation.mosaic import Mosaic
from modeling_detr.data.augmentation.policy import SampleTransform
from modeling_detr.data.formats import reading_options
from modeling_detr.data.labels import adopt_model_labels, with_raw_labels
from modeling_detr.data.loaders import BatchLoader, build_eval_loader
from modeling_detr.data.sampler import PACKING_VERSION
from modeling_detr.data.splits import training_splits
from modeling_detr.errors_detr import RecipeError
from modeling_detr.image_processing_detr import DetrTorchvisionImageProcessor
from modeling_detr.segmentation_detr import Detector
from modeling_detr.structures_detr import DetectionIndex
from modeling_detr.training.aids import TrainingModel, active_aids, build_training_model
from modeling_detr.training.checkpointing import AVERAGE, CheckpointedRun, TrainingState, holds_part
from modeling_detr.training.distributed import (
    build_accelerator,
    check_same,
    copy_weights,
    end_with_launcher,
    in_main_process,
    keep_buffers_local,
    leave_cores_to_loaders,
)
from modeling_detr.training.engine import Engine, StepOptions
from modeling_detr.training.memory import lift_limit
from modeling_detr.training.metrics_server import check_metrics_port
from modeling_detr.training.optimization import build_lr_scheduler, build_optimizer
from modeling_detr.training.out_of_memory import PixelLimit
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.resume import checkpoint_to_resume, resume, with_decided_steps
from modeling_detr.training.run_folder import check_run_folder
from modeling_detr.training.signals import leave_stopping_to_parent
from modeling_detr.training.starting_model import (
    build_model,
    build_processor,
    compile_parts,
    head_note,
    load_config,
    new_config,
)
from modeling_detr.training.teacher import Teacher, load_teacher
from modeling_detr.training.trackers import check_trackers


class Loaders(NamedTuple):
    """The loaders of a run. Pixels in their batches are uint8; they are normalised on the device."""

    train: BatchLoader
    train_sampler: TrainBatchSampler
    eval: BatchLoader


@dataclass(frozen=True)
class Weights:
    """The models of a run.

    Attributes:
        detector: The plain DETR.
        trained: The detector that the training model contains: `detector`, or with FSDP a copy in shards.
        average: A separate detector with the averaged weights; None if the run keeps no average.
    """

    detector: Detector
    trained: Detector
    average: ModelEmaV3 | None

    @property
    def result(self) -> Detector:
        """The detector that is evaluated and exported: the averaged one, if the run keeps it."""
        return self.detector if self.average is None else cast(Detector, self.average.module)

    def gather(self) -> None:
        """Copy the trained weights into `detector`. All processes call it together."""
        if self.trained is not self.detector:
            copy_weights(self.trained, self.detector)

    def update_average(self, step: int) -> None:
        """Add the weights after a step to the average. All processes call it together."""
        if self.average is not None:
            self.gather()
            self.average.update(self.detector, step)

    def start_average(self) -> None:
        """Start the average at the current weights. All processes call it together."""
        if self.average is not None:
            self.gather()
            self.average.set(self.detector)


@dataclass(frozen=True)
class Schedule:
    """The optimizer steps of a run.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the run, including those before a resume.
        epochs: Epochs that these steps begin.
        warmup_steps: Steps over which the learning rates rise.
        drop_at: Steps at which they drop, with the schedule "step".
    """

    steps_per_epoch: int
    total_steps: int
    epochs: int
    warmup_steps: int
    drop_at: Sequence[int]

    @classmethod
    def of(cls, recipe: Recipe, steps_per_epoch: int, state: TrainingState) -> "Schedule":
        """Compute the steps of a run that continues at `state`; earlier epochs may have had a different number."""
        steps_left = steps_per_epoch * (recipe.epochs - state.epoch) - state.step_in_epoch
        total_steps = min(state.step + max(0, steps_left), recipe.max_steps or sys.maxsize)
        epochs_left = math.ceil((total_steps - state.step + state.step_in_epoch) / steps_per_epoch)
        if recipe.lr_drop_steps is not None:
            drop_at = [*range(recipe.lr_drop_steps, total_steps, recipe.lr_drop_steps)]
        else:
            epoch_start = state.step - state.step_in_epoch
            drop_at = [
                epoch_start + max(0, epoch - state.epoch) * steps_per_epoch
                for epoch in range(recipe.lr_drop_epochs, recipe.epochs, recipe.lr_drop_epochs)
            ]
        warmup_steps = recipe.warmup_steps or round(recipe.warmup_epochs * steps_per_epoch)
        return cls(steps_per_epoch, total_steps, state.epoch + epochs_left, warmup_steps, drop_at)


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to train; see `prepare_run`.

    Attributes:
        recipe: The resolved recipe.
        accelerator: The accelerator of the run.
        train_index: The training images.
        eval_index: The evaluation images.
        loaders: The loaders of this process.
        processor: The image processor that is exported with the model.
        weights: The models.
        checkpointed: What a checkpoint saves: training model, raw optimizer, state, …
        optimizer: The optimizer as prepared by `accelerator`.
        scheduler: The learning rate schedule.
        schedule: The steps of the run.
        checkpoint: The checkpoint that the run resumes from; None for a new run.
        notes: Notes for the plan.
        steps_are_known: False if the recipe gives minutes, and the steps still have to be decided (`pace_probe`).
        limit: The limit of pixels found when a step ran out of memory.
    """

    recipe: Recipe
    accelerator: Accelerator
    train_index: DetectionIndex
    eval_index: DetectionIndex
    loaders: Loaders
    processor: DetrTorchvisionImageProcessor
    weights: Weights
    checkpointed: CheckpointedRun
    optimizer: Optimizer
    scheduler: LRScheduler
    schedule: Schedule
    checkpoint: Path | None
    notes: Sequence[str]
    steps_are_known: bool = True
    limit: PixelLimit = field(default_factory=PixelLimit)

    @property
    def model(self) -> nn.Module:
        """The training model as prepared by `accelerator`."""
        return self.checkpointed.model

    @property
    def raw_optimizer(self) -> Optimizer:
        """The optimizer before it was prepared by `accelerator`."""
        return self.checkpointed.optimizer

    @property
    def state(self) -> TrainingState:
        """The progress of the run, updated while it trains."""
        return self.checkpointed.state

    def engine(self) -> Engine:
        """Return the engine that takes the optimizer steps."""
        recipe = self.recipe
        options = StepOptions(
            batches_per_step=recipe.gradient_accumulation_steps,
            loss_normalization=recipe.loss_normalization,
            max_pixels=recipe.max_pixels_per_batch,
            max_grad_norm=recipe.max_grad_norm,
            image_mean=self.processor.image_mean,
            image_std=self.processor.image_std,
            seed=recipe.seed,
        )
        config = self.weights.detector.config
        return Engine(self.model, config, self.optimizer, self.scheduler, self.accelerator, options, self.limit)


def prepare_run(recipe: Recipe, notes: Sequence[str] = ()) -> PreparedRun:
    """Build everything a run needs, and restore it from a checkpoint if the recipe resumes one.

    Nothing is written, except the predictions of a model that teaches, but the folder of the run is checked. All
    processes call it together.

    Args:
        recipe: The recipe.
        notes: Additional notes for the plan.

    Raises:
        ValueError: The recipe does not fit the data, the model or the checkpoint; or the folder already holds a run
            that the recipe does not resume.
        OSError: A file or folder that the recipe names does not exist or cannot be read.
    """
    end_with_launcher()
    _ = recipe.data_source  # without a dataset, nothing else matters
    check_trackers(recipe.trackers)
    checkpoint = checkpoint_to_resume(recipe)
    steps_are_known = recipe.minutes is None
    if checkpoint is not None and recipe.minutes is not None:
        recipe, steps_are_known = with_decided_steps(recipe, checkpoint)
    accelerator = build_accelerator(recipe)
    with in_main_process(accelerator) as is_main:
        if is_main:
            check_run_folder(recipe.run_dir)
            check_metrics_port(recipe)
    leave_cores_to_loaders(accelerator, recipe.num_workers)
    accelerator.wait_for_everyone()  # no process writes to the folder before all have checked it
    with accelerator.main_process_first():  # the others then use what it has created or downloaded
        train_index, eval_index = open_splits(recipe)
        detector, processor = _build_model_and_processor(recipe, train_index, resumes=checkpoint is not None)
    teacher = load_teacher(
        recipe,
        train_index,
        detector.config.num_queries,
        accelerator,
        resumes=checkpoint is not None,
        worker_init_fn=prepare_worker,
    )
    loaders = build_loaders(recipe, train_index, eval_index, processor, accelerator, teacher)
    weights, training_model = _build_training_model(recipe, detector, accelerator)
    run, optimizer = _build_optimizer(recipe, training_model, weights, accelerator, loaders, train_index)
    head = head_note(recipe, train_index.id2label)
    resumed = [] if checkpoint is None else _resume(checkpoint, run, weights)
    # every process must check, even if it sees no checkpoint: otherwise the others would wait for it forever
    problem = "the processes see different checkpoints; output_dir must be a folder that all machines share"
    check_same((run.state.step, run.state.epoch), f"{recipe.run_dir}: {problem}.")
    schedule = Schedule.of(recipe, loaders.train_sampler.steps_per_epoch, run.state)
    close_mosaics(recipe, loaders, schedule)
    return PreparedRun(
        recipe=recipe,
        accelerator=accelerator,
        train_index=train_index,
        eval_index=eval_index,
        loaders=loaders,
        processor=processor,
        weights=weights,
        checkpointed=run,
        optimizer=optimizer,
        scheduler=build_lr_scheduler(
            run.optimizer,
            recipe.lr_schedule,
            total_steps=schedule.total_steps,
            warmup_steps=schedule.warmup_steps,
            drop_at=schedule.drop_at,
            first_step=run.state.step,
        ),
        schedule=schedule,
        checkpoint=checkpoint,
        notes=(*([] if head is None else [head]), *([] if teacher is None else teacher.notes), *resumed, *notes),
        steps_are_known=steps_are_known,
        limit=PixelLimit(run.state.max_pixels),
    )


def _build_model_and_processor(
    recipe: Recipe, train_index: DetectionIndex, *, resumes: bool
) -> tuple[Detector, DetrTorchvisionImageProcessor]:
    stuff_labels = [label for label, category in enumerate(train_index.categories) if not category.is_thing]
    if recipe.model is None:  # so that errors in the transform or the processor precede a download of weights
        config = new_config(recipe, train_index.id2label, stuff_labels)
        _augmentation(recipe, *_edges(build_processor(recipe, config)))
    detector = build_model(recipe, train_index.id2label, stuff_labels, resumes=resumes)
    return detector, build_processor(recipe, detector.config)


def _build_optimizer(
    recipe: Recipe,
    training_model: TrainingModel,
    weights: Weights,
    accelerator: Accelerator,
    loaders: Loaders,
    train_index: DetectionIndex,
) -> tuple[CheckpointedRun, Optimizer]:
    """Build what a checkpoint saves, at the start of a new run, and the optimizer as prepared by `accelerator`."""
    step_size = loaders.train_sampler.step_size
    learning_rate, backbone_learning_rate = scaled_rates(recipe, step_size)
    raw_optimizer = build_optimizer(
        training_model,
        learning_rate=learning_rate,
        backbone_learning_rate=backbone_learning_rate,
        weight_decay=recipe.weight_decay,
    )
    model, optimizer = accelerator.prepare(training_model, raw_optimizer)
    keep_buffers_local(model)
    state = TrainingState(
        num_processes=accelerator.num_processes,
        step_size=step_size,
        num_images=len(train_index),
        packing_version=PACKING_VERSION,
        id2label=dict(train_index.id2label),
    )
    average = None if weights.average is None else weights.average.module
    return CheckpointedRun(model, raw_optimizer, accelerator, recipe, state, average), optimizer


def scaled_rates(recipe: Recipe, step_size: int) -> tuple[float, float]:
    """Return the learning rates of transformer and heads, and of the backbone, for steps of `step_size` images."""
    factor = rate_factor(recipe, step_size)
    return factor * recipe.learning_rate, factor * recipe.backbone_learning_rate


def rate_factor(recipe: Recipe, step_size: int) -> float:
    """Return the factor by which the recipe's learning rates are scaled for steps of `step_size` images."""
    ratio = step_size / recipe.scale_lr_from
    return {None: 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[recipe.scale_lr]


def _build_training_model(
    recipe: Recipe, detector: Detector, accelerator: Accelerator
) -> tuple[Weights, TrainingModel]:
    """Build the module that trains, on its device, and the average of the weights."""
    detector.to(accelerator.device)
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    # with FSDP a copy trains in shards, and the detector receives the gathered weights
    trained = copy.deepcopy(detector) if is_sharded else detector
    training_model = build_training_model(trained, **active_aids(recipe))
    training_model.to(accelerator.device)
    if not is_sharded:  # FSDP needs the usual memory format
        # convolutions are a third faster with channels last (measured on a CPU; tensor cores of a GPU prefer it too)
        training_model.to(memory_format=torch.channels_last)
    average = ModelEmaV3(detector, recipe.ema_decay, use_warmup=True) if recipe.ema_decay > 0 else None
    if recipe.compile:
        compile_parts(detector)
    return Weights(detector, trained, average), training_model


def _resume(checkpoint: Path, run: CheckpointedRun, weights: Weights) -> list[str]:
    """Restore a run from a checkpoint; return notes for the plan."""
    notes = resume(checkpoint, run)
    if weights.average is not None and not holds_part(checkpoint, AVERAGE):
        weights.start_average()
        notes.insert(0, f"{checkpoint} has no averaged weights: the average starts at its weights")
    rates = scaled_rates(run.recipe, run.state.step_size)
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"], group["weight_decay"] = rate, run.recipe.weight_decay  # of the recipe, not of the checkpoint
    return notes


# Data


def open_splits(recipe: Recipe) -> tuple[DetectionIndex, DetectionIndex]:
    """Open the dataset; return the images to train on and those to evaluate on.

    Raises:
        ValueError: A split does not exist or is empty, or no training image is annotated.
        OSError: The dataset does not exist or cannot be read.
    """
    options = {name: getattr(recipe, name, None) for name in reading_options()}
    dataset = open_dataset(recipe.data_source, format=recipe.data_format, task=recipe.task, **options)
    dataset = number_labels(recipe, dataset)
    return training_splits(
        dataset, recipe.train_split, recipe.eval_split, recipe.eval_fraction, recipe.seed, recipe.train_images
    )


def number_labels(recipe: Recipe, dataset: DetectionIndex) -> DetectionIndex:
    """Number the classes according to the recipe: as in the model to start from if it has every class by name, by the
    dataset's category ids, or from 0 without gaps.

    Raises:
        ValueError: The category ids cannot be used as labels.
        OSError: The model to start from cannot be found or read.
    """
    if recipe.label_ids == "raw":
        return with_raw_labels(dataset)
    if recipe.model is None or recipe.label_mapping or recipe.head_init == "fresh":
        return dataset
    model_names = load_config(recipe.model).id2label or {}
    if {category.name for category in dataset.categories} <= {*model_names.values()}:
        return adopt_model_labels(dataset, {int(label): name for label, name in model_names.items()})
    return dataset


def build_train_set(
    recipe: Recipe,
    train_index: DetectionIndex,
    processor: DetrTorchvisionImageProcessor | None = None,
    teacher: Teacher | None = None,
) -> DetectionDataset:
    """Build the samples of a run, as they are augmented for training.

    Args:
        recipe: The recipe.
        train_index: The images.
        processor: The processor, which sets the image size. None: that of the recipe; no weights are loaded.
        teacher: The teacher, whose boxes are in the samples. None: there is no teacher.

    Raises:
        ValueError: The transform does not exist, its options do not fit, or the processor has no shortest edge.
        OSError: The processor of the model to start from cannot be found or read.
    """
    processor = processor or build_processor(recipe, new_config(recipe, train_index.id2label))
    return DetectionDataset(
        train_index,
        _augmentation(recipe, *_edges(processor)),
        recipe.seed,
        masks=recipe.task != "detection",
        no_flip_classes=recipe.no_flip_classes,
        replace_unreadable=recipe.unreadable_images == "skip",
        teacher=None if teacher is None else teacher.objects,
        mosaic=build_mosaic(recipe, recipe.epochs),
    )


def build_mosaic(recipe: Recipe, num_epochs: int) -> Mosaic | None:
    """Build the mosaics of a run of `num_epochs` epochs, the last of which have none; None: no mosaics at all."""
    if not recipe.mosaic_probability:
        return None
    return Mosaic(recipe.mosaic_probability, num_epochs - round(recipe.close_mosaic_share * num_epochs))


# Loaders


def close_mosaics(recipe: Recipe, loaders: Loaders, schedule: Schedule) -> None:
    """Let the mosaics end as the recipe says before the last epoch of a schedule, which `max_steps` may limit."""
    if loaders.train_sampler.dataset.mosaic is not None:
        loaders.train_sampler.dataset.mosaic = build_mosaic(recipe, schedule.epochs)
        loaders.train.close()  # loader processes have a copy of the dataset


def build_loaders(
    recipe: Recipe,
    train_index: DetectionIndex,
    eval_index: DetectionIndex,
    processor: DetrTorchvisionImageProcessor,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> Loaders:
    """Build the loaders of this process; only the training images have the boxes of a teacher.

    Raises:
        ValueError: The transform does not exist, its options do not fit, or the processor has no shortest edge.
    """
    train_set = build_train_set(recipe, train_index, processor, teacher)
    train_sampler = TrainBatchSampler(
        train_set,
        recipe.batch_size,
        accumulation=recipe.gradient_accumulation_steps,
        batching=recipe.batching,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    return Loaders(
        train=BatchLoader(
            train_set,
            train_sampler,
            num_workers=recipe.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=prepare_worker,
            loader_timeout_minutes=recipe.loader_timeout_minutes,
        ),
        train_sampler=train_sampler,
        eval=build_eval_loader(
            eval_index,
            eval_transform(*_edges(processor)),
            accelerator,
            batch_size=recipe.eval_batch_size or recipe.batch_size,
            masks=train_set.masks,
            max_pixels=recipe.max_pixels_per_batch,
            num_workers=recipe.num_workers,
            worker_init_fn=prepare_worker,
            loader_timeout_minutes=recipe.loader_timeout_minutes,
        ),
    )


def prepare_worker(_index: int) -> None:
    """Limit a loader process to one thread but not its memory, and let only its parent process end it."""
    torch.set_num_threads(1)
    lift_limit()
    leave_stopping_to_parent()
    sys.excepthook = _ignore_broken_connections


def _ignore_broken_connections(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Exception hook of loaders that ignores the broken connection of a run that stops while receiving a batch."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _edges(processor: DetrTorchvisionImageProcessor) -> tuple[int, int | None]:
    """Return the shortest and the longest edge of the processor's size.

    Raises:
        RecipeError: The size has no shortest edge.
    """
    size = dict(processor.size)
    if not size.get("shortest_edge"):
        raise RecipeError(
            "processor_config",
            f"got size {size}, expected a size with shortest_edge",
            "use a size such as {shortest_edge: 800, longest_edge: 1333}",
        )
    return int(size["shortest_edge"]), size.get("longest_edge")


def _augmentation(recipe: Recipe, shortest_edge: int, longest_edge: int | None) -> SampleTransform:
    """Build the training transform; a policy derives the sizes that are not given from the processor's."""
    return train_transform(recipe.transform, size=(shortest_edge, longest_edge), **recipe.transform_options)
