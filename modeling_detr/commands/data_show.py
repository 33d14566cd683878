"""`detr data show`: images of a dataset with their boxes, as annotated and as a recipe augments them for training."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modeling_detr.atomic_output import replace_text, replaced_file
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.dataset_options import add_dataset_options, dataset_options
from modeling_detr.commands.results import add_output_dir, link_to, new_results_folder
from modeling_detr.data.augmentation import POLICIES
from modeling_detr.data.augmentation.policy import GeometryPolicy
from modeling_detr.data.dataset import DetectionDataset, SampleKey
from modeling_detr.data.findings import counted
from modeling_detr.data.open import open_dataset
from modeling_detr.errors_detr import DatasetError, RecipeError, RunNotFoundError
from modeling_detr.output_errors import check_folder
from modeling_detr.pages import Code, Fact, Figure, Figures, Page, Section
from modeling_detr.provenance import command_line, provenance
from modeling_detr.structures_detr import DetectionIndex, DetectionSample


if TYPE_CHECKING:
    from PIL import Image

    from modeling_detr.training.recipe import Recipe


DEFAULT_RECIPE = "small_dataset"  # the one that the README recommends
_PAGE_SIDE, _SHEET_SIDE = 560, 240  # longest side of a picture on the page and on the sheet, in pixels
_WITHOUT_RECIPE = ("split", "transform", "shortest_edge")
_SPLITTING = {
    "train_split": "split to train on",
    "eval_split": "split to evaluate on",
    "eval_fraction": "share of the training images that is held out",
}  # keys of a recipe that messages about a dataset's splits name


def add_show(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    """Add the sub-command."""
    parser = commands.add_parser("show", help="write a gallery of images with boxes, before and after augmentation")
    parser.add_argument("path", nargs="?", help="folder or file of the dataset (default: that of --recipe)")
    add_output_dir(parser, "show", "gallery.html and gallery.jpg")
    add_dataset_options(parser)
    parser.add_argument(
        "--recipe",
        help="a recipe's name or file, or the folder of a run: show the images it trains on, as it augments them "
        f"(default: all images, as {DEFAULT_RECIPE} augments them)",
    )
    for name, what in _SPLITTING.items():
        kind = float if name == "eval_fraction" else str
        parser.add_argument(f"--{name}", type=kind, help=f"{what}, with --recipe; as for detr train")
    parser.add_argument("--split", help="show images of this split only; not with --recipe")
    parser.add_argument("--num_images", type=int, default=12, help="number of random images (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="augmentations of each image (default: %(default)s)")
    parser.add_argument(
        "--transform", help=f"augmentation: {', '.join(POLICIES)}, or a dotted name; not with --recipe"
    )
    parser.add_argument("--shortest_edge", type=int, help="shortest edge of augmented images; not with --recipe")
    parser.add_argument("--seed", type=int, default=0, help="seed for choosing the images (default: %(default)s)")
    parser.set_defaults(run=_show)


def annotated_images(index: DetectionIndex, images: Sequence[int]) -> list[Figure]:
    """Images with their boxes as annotated; those that cannot be read are left out."""
    from modeling_detr.visualization import draw_prediction

    samples, figures = DetectionDataset(index), []
    for image in images:
        try:
            sample = samples[image]
        except (OSError, ValueError):
            continue
        picture = draw_prediction(sample["image"], _objects(sample), index.id2label, longest_side=_PAGE_SIDE)
        figures.append(Figure.of(picture, f"{Path(index.images[image].path).name}, {_size_and_boxes(sample)}"))
    return figures


class _Drawing(NamedTuple):
    """A drawn sample, large and small, with its title."""

    page: "Image.Image"
    sheet: "Image.Image"
    title: str


def _show(arguments: argparse.Namespace) -> int:
    import numpy as np

    from modeling_detr.visualization import tile

    for name, least in (("num_images", 1), ("draws", 0), ("shortest_edge", 1)):
        if getattr(arguments, name) is not None:
            check_at_least(name, getattr(arguments, name), least)
    output_dir = arguments.output_dir or new_results_folder("show")
    page, sheet = (output_dir / name for name in ("gallery.html", "gallery.jpg"))
    check_folder(output_dir, files=[page.name, sheet.name])

    # Choose random images, and draw each as annotated and in the first epochs of a training.
    recipe = _recipe(arguments)
    samples = _samples(arguments, recipe)
    index = samples.index
    chosen = sorted(np.random.default_rng(arguments.seed).permutation(len(index))[: arguments.num_images].tolist())
    if not arguments.draws:  # images of similar shape in a row
        chosen = sorted(chosen, key=lambda image: index.images[image].width / index.images[image].height)
    drawings = {image: _draw(samples, image, arguments.draws) for image in chosen}
    names = {image: Path(index.images[image].path).name for image in chosen}

    # Write them as a page and as one picture.
    if arguments.draws:
        sections = [
            Section(names[image], [Figures([Figure.of(one.page, one.title) for one in drawn])])
            for image, drawn in drawings.items()
        ]
    else:
        figures = [
            Figure.of(one.page, f"{names[image]}: {one.title}") for image, drawn in drawings.items() for one in drawn
        ]
        sections = [Section("As annotated", [Figures(figures)])]
    counts = {"images": len(index), "boxes": len(index.annotations), "classes": len(index.categories)}
    highlights = [(f"{count:,}", name) for name, count in counts.items()]
    facts = [*_facts(arguments, recipe, samples), *provenance(command_line("detr data", arguments.argv))]
    replace_text(page, Page(f"Images of {index.name}", sections, highlights, facts).to_html())
    titles = [f"{one.title}: {names[image]}" for image, drawn in drawings.items() for one in drawn]
    small = [one.sheet for drawn in drawings.values() for one in drawn]
    with replaced_file(sheet) as file:
        columns = 1 + arguments.draws if arguments.draws else 4
        tile(small, columns, titles, columns * _SHEET_SIDE).save(file, format="JPEG", quality=65, optimize=True)
    draws = counted(arguments.draws, "augmentation")
    print(f"{counted(len(chosen), 'image')}, each with {draws} by '{recipe.transform}'; also in {sheet}")
    print(link_to(page))
    return 0


def _recipe(arguments: argparse.Namespace) -> "Recipe":
    """The recipe with the dataset of the command line; without --recipe, the default one with its options.

    Raises:
        ValueError: An option does not go with --recipe, or the recipe is wrong.
        OSError: The recipe does not exist.
    """
    from modeling_detr.commands.trained_on import run_folder_of
    from modeling_detr.training.recipe import recipe_class
    from modeling_detr.training.recipe_parsing import find_recipe, read_recipe_file
    from modeling_detr.training.run_folder import RECIPE

    name = arguments.recipe or DEFAULT_RECIPE
    for option in _SPLITTING if arguments.recipe is None else _WITHOUT_RECIPE:
        if getattr(arguments, option) is not None:
            problem = "needs --recipe" if arguments.recipe is None else "conflicts with --recipe, which sets it"
            raise RecipeError(f"--{option}", problem, "drop one of them" if arguments.recipe else "use --split")
    run_dir = run_folder_of(name)
    if run_dir is None and Path(name).is_dir():
        raise RunNotFoundError(name, f"contains no {RECIPE}", "expected a recipe's name or file, or a run's folder")
    values = read_recipe_file(find_recipe(name) if run_dir is None else run_dir / RECIPE)
    splitting = {key: getattr(arguments, key) for key in _SPLITTING}
    given = {"data": arguments.path, "data_format": arguments.data_format, **splitting, **dataset_options(arguments)}
    if not (arguments.path or values.get("data")):
        raise DatasetError(
            "path", "not given", "pass the folder or file of a dataset, or --recipe with a run's folder"
        )
    values |= {key: value for key, value in given.items() if value is not None and value is not False}
    recipe: Recipe = recipe_class()(**values)
    if arguments.transform is not None:
        recipe = dataclasses.replace(recipe, transform=arguments.transform, transform_options={})
    if arguments.shortest_edge is not None:
        recipe = dataclasses.replace(recipe, processor_config={"size": {"shortest_edge": arguments.shortest_edge}})
    return recipe


def _samples(arguments: argparse.Namespace, recipe: "Recipe") -> DetectionDataset:
    """The images that the recipe trains on, as its loader makes them; without --recipe, all images or a split."""
    from modeling_detr.training.setup import build_train_set, open_splits

    if arguments.recipe is not None:
        return build_train_set(recipe, open_splits(recipe)[0])
    index = open_dataset(recipe.data_source, arguments.split, arguments.data_format, **dataset_options(arguments))
    if not len(index):
        raise DatasetError(index.name, "has no images to show")
    return build_train_set(recipe, index)


def _draw(samples: DetectionDataset, image: int, num_draws: int) -> list[_Drawing]:
    """Draw an image as annotated, and as in the first epochs of a training."""
    from modeling_detr.visualization import draw_prediction

    annotated = DetectionDataset(samples.index, masks=samples.masks)[image]
    titled = [("as annotated", annotated)]
    for key in (SampleKey(image, epoch) for epoch in range(num_draws)):
        titled.append((f"epoch {key.epoch + 1}{', mosaic' if samples.is_mosaic(key) else ''}", samples[key]))
    drawn = []
    for title, sample in titled:
        large, small = (
            draw_prediction(sample["image"], _objects(sample), samples.index.id2label, longest_side=side)
            for side in (_PAGE_SIDE, _SHEET_SIDE)
        )
        drawn.append(_Drawing(large, small, f"{title}, {_size_and_boxes(sample)}"))
    return drawn


def _size_and_boxes(sample: DetectionSample) -> str:
    height, width = sample["image"].shape[-2:]
    return f"{width}x{height}, {counted(len(sample['target']['boxes']), 'box', 'boxes')}"


def _objects(sample: DetectionSample) -> dict[str, object]:
    """The objects of a sample, as `draw_prediction` expects them."""
    from torch import Tensor

    target = sample["target"]
    objects: dict[str, object] = {
        "boxes": target["boxes"].as_subclass(Tensor),
        "labels": target["class_labels"],
    }
    if "masks" in target:
        objects["masks"] = target["masks"].as_subclass(Tensor)
    return objects


def _facts(arguments: argparse.Namespace, recipe: "Recipe", samples: DetectionDataset) -> list[Fact]:
    """The head of the page: what is drawn."""
    transform = samples.transform
    shown = Code(transform) if isinstance(transform, GeometryPolicy) else recipe.transform
    if arguments.recipe is not None:
        source = f"{arguments.recipe}, the images that it trains on"
    else:
        options = [
            f"--{option}" for option in ("transform", "shortest_edge") if getattr(arguments, option) is not None
        ]
        source = f"none given, so augmented as in {DEFAULT_RECIPE}"
        source += f", apart from {' and '.join(options)}" if options else ""
    facts: list[Fact] = [("data", recipe.data_source), ("recipe", source), ("transform", shown)]
    if samples.mosaic is not None:
        facts.append(("mosaics", f"{samples.mosaic.probability:.0%} of the samples"))
    return facts
