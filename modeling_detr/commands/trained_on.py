"""The images of a dataset to evaluate a model on: those that options choose, or those that its run evaluated on."""

import argparse
from pathlib import Path
from typing import NamedTuple

from modeling_detr.commands.dataset_options import dataset_options
from modeling_detr.data import open_dataset
from modeling_detr.data.formats import reading_options
from modeling_detr.data.splits import DEFAULT_SEED, evaluation_images
from modeling_detr.errors_detr import RecipeError
from modeling_detr.model_folder_detr import EXPORTED_MODEL
from modeling_detr.structures_detr import DetectionIndex, Task
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import read_recipe_file
from modeling_detr.training.run_folder import RECIPE


# Argument of the library → option of the commands that choose images, for error messages.
CHOICE_OPTION_NAMES = {"format": "data_format", "train_split": "split", "eval_split": "split"}


class Choice(NamedTuple):
    """Arguments of `evaluation_images`, and a sentence that explains them."""

    split: str | None
    eval_fraction: float
    seed: int
    reason: str


def add_choice_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that choose images: `--split`, `--eval_fraction` and `--seed`, to a parser or a group of it."""
    parser.add_argument(
        "--split",
        help="split, several joined by '+', or all (default: the images that the model's run evaluated on, else the "
        "validation or test split)",
    )
    parser.add_argument(
        "--eval_fraction",
        type=float,
        default=0.0,
        help="take the images of --split that training with this eval_fraction and seed held out",
    )
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of that run (default: %(default)s)")


def choose_images(arguments: argparse.Namespace) -> Choice:
    """The images that the options choose, or those that the run of the model evaluated on.

    If the dataset is the run's, reading options that are not set become the run's, so that boxes mean the same.
    """
    chosen = Choice(arguments.split, arguments.eval_fraction, arguments.seed, "")
    recipe = _recipe_on(arguments.model, arguments.dataset)
    if recipe is None:
        return chosen
    if arguments.split is None and arguments.eval_fraction == 0:
        chosen = images_evaluated_in_training(arguments.model, arguments.dataset) or chosen
    of_run = {name: getattr(recipe, name, None) for name in ("data_format", *reading_options())}
    taken = {name: value for name, value in of_run.items() if value and not getattr(arguments, name)}
    vars(arguments).update(taken)
    read = f"read as in training: {', '.join(f'{name} {value}' for name, value in taken.items())}" if taken else ""
    return chosen._replace(reason="; ".join(filter(None, [chosen.reason, read])))


def open_images(arguments: argparse.Namespace, task: Task, choice: Choice) -> DetectionIndex:
    """Opens the dataset with its reading options, and selects the images.

    Raises:
        DatasetError: The dataset cannot be read, or the choice has no images.
    """
    dataset = open_dataset(
        arguments.dataset,
        format=arguments.data_format,
        task=task,
        **dataset_options(arguments),
    )
    return evaluation_images(dataset, choice.split, choice.eval_fraction, choice.seed)


def images_evaluated_in_training(model: str, dataset: str) -> Choice | None:
    """The images that the run of a model evaluated on; None if the model or the dataset is not that of a run.

    Args:
        model: What the user passed: the folder of a run or its exported model is recognised.
        dataset: What the user passed; it must be the run's.
    """
    recipe, folder = _recipe_on(model, dataset), run_folder_of(model)
    if recipe is None or folder is None:
        return None
    if recipe.eval_fraction > 0:
        reason = f"held out by {folder / RECIPE} (eval_fraction {recipe.eval_fraction:g}); all images: --split all"
        return Choice(recipe.train_split, recipe.eval_fraction, recipe.seed, reason)
    if recipe.eval_split is not None:
        return Choice(recipe.eval_split, 0.0, recipe.seed, f"the eval_split of {folder / RECIPE}")
    return None


def _recipe_on(model: str, dataset: str) -> Recipe | None:
    """The recipe of the run that a model belongs to, if it trained on this dataset."""
    folder = run_folder_of(model)
    if folder is None:
        return None
    try:
        recipe = Recipe(**read_recipe_file(folder / RECIPE))
    except (RecipeError, OSError):  # not a run, or one of another version
        return None
    return recipe if recipe.data is not None and _is_same(recipe.data, dataset) else None


def run_folder_of(model: str) -> Path | None:
    """The folder of the run that a model belongs to: the path itself, or the one above its exported model."""
    folder = Path(model).parent if Path(model).name == EXPORTED_MODEL else Path(model)
    return folder if (folder / RECIPE).is_file() else None


def _is_same(one: str, other: str) -> bool:
    try:
        return one == other or Path(one).samefile(other)
    except (OSError, ValueError):  # one does not exist, or has a name that no file can have
        return False
