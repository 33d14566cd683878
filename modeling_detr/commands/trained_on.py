"""The images that a run held out from its training, for an evaluation that does not choose any."""

from pathlib import Path
from typing import NamedTuple

from modeling_detr.errors_detr import RecipeError
from modeling_detr.model_folder_detr import EXPORTED_MODEL
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import read_recipe_file
from modeling_detr.training.run_folder import RECIPE


class Choice(NamedTuple):
    """Arguments of `evaluation_images`, and a sentence that explains them."""

    split: str | None
    eval_fraction: float
    seed: int
    reason: str


def images_evaluated_in_training(model: str, dataset: str) -> Choice | None:
    """The images that the run of a model evaluated on; None if the model or the dataset is not that of a run.

    Args:
        model: What the user passed: the folder of a run or its exported model is recognised.
        dataset: What the user passed; it must be the run's.
    """
    folder = run_folder_of(model)
    if folder is None:
        return None
    try:
        recipe = Recipe(**read_recipe_file(folder / RECIPE))
    except (RecipeError, OSError):  # not a run, or one of another version
        return None
    if recipe.data is None or not _is_same(recipe.data, dataset):
        return None
    if recipe.eval_fraction > 0:
        reason = f"held out by {folder / RECIPE} (eval_fraction {recipe.eval_fraction:g}); all images: --split all"
        return Choice(recipe.train_split, recipe.eval_fraction, recipe.seed, reason)
    if recipe.eval_split is not None:
        return Choice(recipe.eval_split, 0.0, recipe.seed, f"the eval_split of {folder / RECIPE}")
    return None


def run_folder_of(model: str) -> Path | None:
    """The folder of the run that a model belongs to: the path itself, or the one above its exported model."""
    folder = Path(model).parent if Path(model).name == EXPORTED_MODEL else Path(model)
    return folder if (folder / RECIPE).is_file() else None


def _is_same(one: str, other: str) -> bool:
    try:
        return one == other or Path(one).samefile(other)
    except (OSError, ValueError):  # one does not exist, or has a name that no file can have
        return False
