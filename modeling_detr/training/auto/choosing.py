"""Makes the recipe of `detr train auto`: the base, the choices for what the user leaves open, and what the user gives.

recipe, lines = auto_recipe({"data": "my_dataset", "minutes": 60.0})
"""

import contextlib
import gc
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from modeling_detr.data import open_dataset
from modeling_detr.data.formats import reading_options
from modeling_detr.errors_detr import CheckpointError, RecipeError
from modeling_detr.input_files import is_file
from modeling_detr.training.auto import CHOICES
from modeling_detr.training.auto.facts import DataFacts
from modeling_detr.training.auto.situation import Pace, Situation, flattened, nested
from modeling_detr.training.auto.splits import EvalImages, choose_eval_images
from modeling_detr.training.distributed import cores_per_process
from modeling_detr.training.pace_probe import measure_pace
from modeling_detr.training.recipe import Recipe, recipe_class
from modeling_detr.training.recipe_parsing import builtin_recipes, read_recipe_file, with_given
from modeling_detr.training.resume import checkpoint_to_resume
from modeling_detr.training.run_folder import RECIPE
from modeling_detr.training.setup import open_splits, prepare_run
from modeling_detr.training.starting_model import build_processor, load_config


DEFAULT_MINUTES = 60.0
_BASE, _FINE_TUNING = "auto", "finetune"
_MEASURED_SHARE, _LEAST_SECONDS, _MOST_SECONDS = 0.03, 2.0, 30.0  # of the time, for each measurement
_SOME_EPOCHS = 100  # of a run that is only measured


class AutoRecipe(NamedTuple):
    """The recipe, and a line for each choice."""

    recipe: Recipe
    lines: list[str]


def auto_recipe(given: Mapping[str, Any]) -> AutoRecipe:
    """Chooses the recipe of a run. All processes call it together.

    A run that is resumed keeps the recipe that was chosen when it started, with what is given now.

    Args:
        given: What the user gives; see `RecipeArguments.given`.

    Raises:
        ValueError: A key does not fit, the data cannot be used, or the folder already contains a run.
        OSError: The data, or a model or weights to start from, cannot be found or read.
    """
    given = {"output_dir": str(Path("runs", _BASE)), **given}
    minutes = given.pop("minutes", None)
    earlier = _earlier_recipe(given)
    if earlier is not None:
        recipe = recipe_class()(**with_given(read_recipe_file(earlier), given))
        line = f"auto      the recipe is {earlier}, which was chosen when the run started"
        line += "" if minutes is None else "; --minutes does not change it, --epochs does"
        return AutoRecipe(recipe, [line])
    minutes = DEFAULT_MINUTES if minutes is None else _checked_minutes(minutes)
    is_new = given.get("model") is None
    base = read_recipe_file(builtin_recipes()[_BASE if is_new else _FINE_TUNING])
    settings = {**flattened(base), **flattened(given)}
    if not is_new:  # what describes a schedule of another length
        settings = {key: value for key, value in settings.items() if key not in ("epochs", "lr_drop_epochs")}
        settings |= flattened(given)
    checkpoint_to_resume(_recipe(settings))  # refuses a folder that already contains a run
    lines = []
    if "eval_split" not in given and "eval_fraction" not in given:
        images = _choose_eval_images(settings)
        settings[images.key] = images.value
        lines.append(_line(*images))
    situation = _situation(settings, frozenset(flattened(given)), minutes)
    lines.insert(0, f"auto      {situation.data.describe()}")
    for key, choose in CHOICES.items():
        if any(name == key or name.startswith(f"{key}.") for name in situation.given):
            value = {name: value for name, value in settings.items() if name == key or name.startswith(f"{key}.")}
            lines.append(_line(key, value.get(key, nested(value)), "given"))
            continue
        choice = choose(situation)
        if choice is not None:
            situation.settings[key] = choice.value  # type: ignore[index]  # a dict of this function
            lines.append(_line(key, choice.value if choice.shown is None else choice.shown, choice.reason))
    return AutoRecipe(_recipe(situation.settings), lines)


def _checked_minutes(minutes: Any) -> float:
    if not 0 < float(minutes) < math.inf:
        raise RecipeError("--minutes", f"got {minutes:g}, expected a positive number", "leave it out for an hour")
    return float(minutes)


def _earlier_recipe(given: Mapping[str, Any]) -> Path | None:
    """The recipe of the run that is resumed; None for a new run."""
    if given.get("resume") is None:
        return None
    folder = Path(given["output_dir"] if given["resume"] == "auto" else given["resume"])
    if is_file(folder / RECIPE):
        return folder / RECIPE
    if given["resume"] != "auto":
        raise CheckpointError(folder, f"has no {RECIPE}, expected a folder checkpoints/step_…", "use --resume auto")
    return None


def _choose_eval_images(settings: Mapping[str, Any]) -> EvalImages:
    recipe = _recipe(settings)
    options = {name: getattr(recipe, name, None) for name in reading_options()}
    index = open_dataset(recipe.data_source, format=recipe.data_format, task=recipe.task, **options)
    return choose_eval_images(index, recipe.train_split)


def _situation(settings: dict[str, Any], given: frozenset[str], minutes: float) -> Situation:
    recipe = _recipe(settings)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # not Accelerator: its precision is chosen
    pretrained = None if recipe.model is None else load_config(recipe.model)
    size = None
    if pretrained is not None:
        processor = build_processor(recipe, pretrained)
        edge = processor.size.get("shortest_edge") if processor.do_resize else None
        size = None if edge is None else (int(edge), processor.size.get("longest_edge"))
    is_cuda = state.device.type == "cuda"
    return Situation(
        data=DataFacts.of(*open_splits(recipe)),
        settings=settings,
        given=given,
        minutes=minutes,
        device=state.device.type,
        cores=cores_per_process(),
        has_bf16=is_cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        num_processes=state.num_processes,
        pretrained=pretrained,
        pretrained_size=size,
        measure=_Measurements(minutes),
    )


class _Measurements:
    """Measures the pace of runs, once for each combination of settings."""

    def __init__(self, minutes: float) -> None:
        self._seconds = min(_MOST_SECONDS, max(_LEAST_SECONDS, 60 * _MEASURED_SHARE * minutes))
        self._paces: dict[str, Pace] = {}

    def __call__(self, settings: Mapping[str, Any]) -> Pace:
        # the schedule, which is chosen afterwards, does not change the pace
        recipe = _recipe({"ema_decay": 0.999, **settings, "epochs": _SOME_EPOCHS, "resume": None, "max_steps": None})
        recipe_key = json.dumps({name: str(value) for name, value in vars(recipe).items() if name not in _NO_PACE})
        if recipe_key not in self._paces:
            run = prepare_run(recipe)
            pace = measure_pace(run, self._seconds)
            self._paces[recipe_key] = Pace(
                run.schedule.steps_per_epoch,
                pace.seconds_per_step,
                pace.seconds_per_evaluation,
                pace.seconds_per_checkpoint,
            )
            for loader in (run.loaders.train, run.loaders.eval):
                loader.close()
            run.accelerator.free_memory()
            del run
            gc.collect()
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        return self._paces[recipe_key]


_NO_PACE = ("eval_every_epochs", "checkpoint_every_epochs", "lr_drop_epochs", "ema_decay", "warmup_steps")


def _recipe(settings: Mapping[str, Any]) -> Recipe:
    return recipe_class()(**nested(settings))


def _line(key: str, value: object, reason: str) -> str:
    name = {"model_config.out_indices": "", "processor_config.size": "size"}.get(key, key.rpartition(".")[2])
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"auto      {f'{name} {text}'.strip():<32} {reason}"
