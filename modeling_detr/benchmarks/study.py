"""A study: a base recipe, the variants of it that are compared, seeds and numbers of training images.

    recipe: bccd                    # a recipe by name or path
    keys: {minutes: 40}             # keys of the recipe for all variants
    variants:                       # the first is the one that the others are compared with
      plain: {encoder_supervision: false, denoising_groups: 0}
      aided: {}
    seeds: 3                        # 0, 1, 2; or a list
    train_images: [25, 50, all]
    images_per_evaluation: 1500     # seen between two evaluations by runs with a number of training images
    thresholds: [0.5, 0.7]          # AP50, the time to which is reported

With `start: {recipe: …, keys: …}`, a model is trained first for each seed, and a variant with `model: start` starts
from it.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_detr.errors_detr import (
    FileContentError,
    FileReadError,
    RecipeNotFoundError,
    StudyError,
    did_you_mean,
)
from modeling_detr.input_files import read_yaml
from modeling_detr.training.recipe import recipe_class
from modeling_detr.training.recipe_keys import keys_of
from modeling_detr.training.recipe_parsing import builtin_files, find_recipe, parse_recipe


START = "start"  # the first stage, and `model: start`
DECIDED_BY_STUDY = ("seed", "train_images", "output_dir", "resume", "push_to_hub")
_RUNS = "runs"
_NAME = re.compile(r"\w[\w.+-]*")  # a folder of its own: not ..


@dataclass(frozen=True)
class Stage:
    """The recipe of a first stage, and keys that it changes."""

    recipe: str
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """See the module.

    Attributes:
        name: Name of the study.
        recipe: The base recipe, by name or path.
        variants: Name → keys of the recipe that it changes; the first is the reference.
        keys: Keys of the recipe that all variants change.
        seeds: The seeds.
        train_images: Numbers of training images; None: all.
        images_per_evaluation: Images, repetitions included, between two evaluations of a run with a number of training
            images, whose epochs are shorter than the recipe expects; None: as in the recipe.
        thresholds: AP50 in (0, 1) of which the times are reported.
        start: The first stage; None: there is none.
    """

    name: str
    recipe: str
    variants: Mapping[str, Mapping[str, Any]]
    keys: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    train_images: tuple[int | None, ...] = (None,)
    images_per_evaluation: int | None = None
    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75)
    start: Stage | None = None

    @property
    def reference(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a study.

    Attributes:
        variant: Name of the variant, or `START`.
        seed: Its seed.
        train_images: Number of training images; None: all.
        folder: The folder of the run.
        arguments: Of `detr train`, without those of the folder.
        after: The folder of the first stage that it starts from, if it does.
    """

    variant: str
    seed: int
    train_images: int | None
    folder: Path
    arguments: tuple[str, ...]
    after: Path | None = None

    def __str__(self) -> str:
        images = "" if self.train_images is None else f", {self.train_images} images"
        return f"{self.variant}{images}, seed {self.seed}"


# Reading


def builtin_studies() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    return builtin_files("benchmarks/*.yaml")


def read_study(name: str) -> Study:
    """Reads a study, given as a path or as the name of a built-in one.

    Raises:
        StudyError: It does not exist, or is not valid.
    """
    path = Path(name) if Path(name).is_file() else builtin_studies().get(name)
    if path is None:
        raise StudyError(name, "no such file or built-in study", did_you_mean(name, builtin_studies()))
    try:
        loaded = read_yaml(path)
    except (FileReadError, FileContentError) as error:
        raise StudyError(error.where, error.problem, error.remedy) from error
    known = [item.name for item in dataclasses.fields(Study) if item.name != "name"]
    values = _mapping(str(path), loaded, known)
    for required in ("recipe", "variants"):
        if required not in values:
            raise StudyError(path, f"has no '{required}'", "see docs/benchmarks.md")
    _check_recipe(f"{path}: recipe", values["recipe"])
    values["variants"] = _mapping(f"{path}: variants", values["variants"])
    for variant, keys in values["variants"].items():
        if variant == START or not _NAME.fullmatch(variant):
            problem = f"got '{variant}', expected letters, digits and ._+-, first a letter or digit; not '{START}'"
            raise StudyError(f"{path}: variants", problem)
        values["variants"][variant] = _keys(f"{path}: variants: {variant}", keys)
    values["keys"] = _keys(f"{path}: keys", values.get("keys"))
    if values.get(START) is not None:
        stage = _mapping(f"{path}: {START}", values[START], ["recipe", "keys"])
        stage["keys"] = _keys(f"{path}: {START}: keys", stage.get("keys"))
        _check_recipe(f"{path}: {START}: recipe", stage.get("recipe", values["recipe"]))
        values[START] = Stage(**{"recipe": values["recipe"], **stage})
    for name_of, parse in _LISTS.items():
        if name_of in values:
            values[name_of] = parse(values[name_of], f"{path}: {name_of}")
    every = values.get("images_per_evaluation")
    if every is not None and (type(every) is not int or every < 1):
        raise StudyError(f"{path}: images_per_evaluation", f"got {every!r}, expected a number of images")
    if not values["variants"]:
        raise StudyError(path, "has no variants", "name at least one")
    return Study(name=path.stem, **values)


def _check_recipe(where: str, value: object) -> None:
    if not isinstance(value, str):
        raise StudyError(where, f"got {value!r}, expected the name or path of a recipe")


def _mapping(where: str, value: object, known: Sequence[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StudyError(where, f"got {value!r}, expected lines of 'key: value'")
    for name in value:
        if not isinstance(name, str):
            raise StudyError(where, f"got the name {name!r}, expected text", f"write it in quotes: '{name}'")
        if known is not None and name not in known:
            raise StudyError(where, f"unknown key '{name}'", did_you_mean(name, known))
    return dict(value)


def _keys(where: str, value: object) -> dict[str, Any]:
    """Keys of a recipe; those of mappings become dotted: `model_config.num_queries`."""
    declared = keys_of(recipe_class())
    flat: dict[str, Any] = {}
    for name, inner in _mapping(where, {} if value is None else value).items():
        key = name.partition(".")[0]
        if key not in declared:
            raise StudyError(where, f"unknown key '{name}'", did_you_mean(key, declared))
        if key in DECIDED_BY_STUDY:
            raise StudyError(where, f"{key} is decided by the study", "remove it")
        if declared[key].is_mapping and isinstance(inner, dict):
            flat |= {f"{name}.{entry}": entry_value for entry, entry_value in inner.items()}
        else:
            flat[name] = inner
    return flat


def parse_seeds(value: object, where: str = "--seeds") -> tuple[int, ...]:
    """Parses a number of seeds, counted from 0, or a list of them, which may be text such as `7,8`, or `7,` for one.

    Raises:
        StudyError: It is neither.
    """
    entries = _entries(value)
    if entries and all(map(_is_whole, entries)):
        seeds = tuple(map(int, entries))
        is_list = isinstance(value, list) or "," in str(value)
        if not is_list and seeds[0] >= 1:
            return tuple(range(seeds[0]))
        if is_list and len({*seeds}) == len(seeds):
            return seeds
    raise StudyError(where, f"got {value!r}, expected how many, such as 3, or different seeds, such as 7,8,9")


def parse_images(value: object, where: str = "--train_images") -> tuple[int | None, ...]:
    """Parses numbers of training images, or `all`.

    Raises:
        StudyError: An entry is neither.
    """
    entries = _entries(value)
    if not entries or not all(entry == "all" or (_is_whole(entry) and int(entry) > 0) for entry in entries):
        raise StudyError(where, f"got {value!r}, expected numbers of images, such as 25,50,all")
    return tuple(dict.fromkeys(None if entry == "all" else int(entry) for entry in entries))


def parse_thresholds(value: object, where: str = "--thresholds") -> tuple[float, ...]:
    """Parses values of AP50 between 0 and 1.

    Raises:
        StudyError: An entry is not one.
    """
    try:
        numbers = [float(entry) for entry in _entries(value)]
    except ValueError:
        numbers = [2.0]
    if not all(0 < number < 1 for number in numbers):
        raise StudyError(where, f"got {value!r}, expected values of AP50 between 0 and 1, such as 0.5,0.7")
    return tuple(dict.fromkeys(numbers))


_LISTS = {"seeds": parse_seeds, "train_images": parse_images, "thresholds": parse_thresholds}


def _entries(value: object) -> list[str]:
    texts = value if isinstance(value, list) else str(value).split(",")
    return [str(text).strip() for text in texts if str(text).strip()]


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal()


# Changing


def with_keys(study: Study, keys: Mapping[str, str]) -> Study:
    """The study with keys of the recipe from the command line, for all variants and the first stage.

    Raises:
        StudyError: A variant sets one of them, which is what the study compares.
    """
    for name in keys:
        if name.partition(".")[0] in DECIDED_BY_STUDY:
            raise StudyError(f"--{name}", "decided by the study", "drop it")
        for variant, changed in study.variants.items():
            if name in changed:
                problem = (
                    f"variant '{variant}' of {study.name} sets it to {changed[name]!r}, which is what is compared"
                )
                raise StudyError(f"--{name}", problem, "drop it, or change a copy of the study")
    return dataclasses.replace(study, keys={**study.keys, **keys})


def with_variants(study: Study, names: Sequence[str]) -> Study:
    """The study with some of its variants, in this order.

    Raises:
        StudyError: There is no such variant.
    """
    for name in names:
        if name not in study.variants:
            problem = f"{study.name} has no variant '{name}'"
            raise StudyError("--variants", problem, did_you_mean(name, study.variants))
    return dataclasses.replace(study, variants={name: study.variants[name] for name in names})


# Planning


def plan_runs(study: Study, folder: Path) -> list[PlannedRun]:
    """The runs of a study in the order in which they are trained: all variants of a seed before the next seed.

    Args:
        study: The study.
        folder: The folder of its results.

    Raises:
        RecipeError: A recipe is not valid.
        StudyError: A recipe does not exist, or a variant needs a first stage that the study does not have.
    """
    runs: list[PlannedRun] = []
    for seed in study.seeds:
        start = folder / START / f"seed_{seed}"
        if study.start is not None:
            arguments = _arguments(study.start.recipe, {**study.keys, **study.start.keys, "seed": seed})
            runs.append(PlannedRun(START, seed, None, start, arguments))
        for images in study.train_images:
            for variant, changed in study.variants.items():
                keys = {**study.keys, **changed, "seed": seed}
                if images is not None:
                    keys["train_images"] = images
                    if study.images_per_evaluation is not None:
                        every = max(1, round(study.images_per_evaluation / images))
                        keys |= {"eval_every_epochs": every, "checkpoint_every_epochs": every}
                after = start if keys.get("model") == START else None
                if after is not None:
                    if study.start is None:
                        raise StudyError(study.name, f"variant '{variant}' has model: start, but there is no 'start'")
                    keys["model"] = str(start)
                where = folder / _RUNS / variant / ("all" if images is None else f"images_{images}") / f"seed_{seed}"
                runs.append(PlannedRun(variant, seed, images, where, _arguments(study.recipe, keys), after))
    return runs


def _arguments(recipe: str, keys: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of `detr train`, checked."""
    try:
        arguments = [str(find_recipe(recipe).resolve())]
    except RecipeNotFoundError as error:
        raise StudyError(error.where, error.problem, error.remedy) from error
    for name, value in {"keep_checkpoints": 1, **keys}.items():
        arguments += [f"--{name}", value if isinstance(value, str) else "none" if value is None else json.dumps(value)]
    _ = parse_recipe([*arguments, "--output_dir", "runs"]).data_source
    return tuple(arguments)
