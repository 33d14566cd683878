"""`detr data show`: the gallery shows the samples that a training sees, not others."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from modeling_detr import visualization
from modeling_detr.commands import run_command
from modeling_detr.data import SampleKey
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import builtin_recipes
from modeling_detr.training.setup import build_train_set, open_splits, prepare_run


TINY_MODEL = {
    "backbone": "resnet10t",
    "backbone_kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "out_indices": [3],
    "freeze_batch_norm": False,
    "freeze_backbone_stem": False,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


@pytest.fixture
def dataset(tmp_path):
    """A COCO folder without splits of eight images, half of them with the class 'left'."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "left"}, {"id": 2, "name": "ball"}]}
    (tmp_path / "data").mkdir()
    for number in range(8):
        size = {"width": 60 + 4 * number, "height": 50}
        Image.effect_noise((size["width"], 50), 60).convert("RGB").save(tmp_path / "data" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        box = {"bbox": [3, 4, 20 + number, 30], "area": 600, "iscrowd": 0}
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1 + number % 2, **box})
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(content))
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path):
    """A recipe that differs from the defaults in all that decides about a sample."""
    values = {
        "data": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "run"),
        "eval_fraction": 0.25,
        "seed": 7,
        "transform": "original",
        "transform_options": {"flip_probability": 1.0},
        "no_flip_classes": ["left"],
        "mosaic_probability": 0.5,
        "processor_config": {"size": {"shortest_edge": 40, "longest_edge": 48}},
        "model_config": TINY_MODEL,
        "num_workers": 0,
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: a list of images and boxes."""
    samples, draw = [], visualization.draw_prediction

    def record(image, prediction, *arguments, **options):
        samples.append((torch.as_tensor(image).clone(), prediction["boxes"].clone(), prediction["labels"].clone()))
        return draw(image, prediction, *arguments, **options)

    monkeypatch.setattr(visualization, "draw_prediction", record)
    return samples


def show(*arguments):
    return run_command("data", ["show", *map(str, arguments)])


def is_drawn(sample, drawn):
    target = sample["target"]
    expected = (torch.as_tensor(sample["image"]), torch.as_tensor(target["boxes"]), target["class_labels"])
    return any(
        all(one.shape == other.shape and torch.equal(one, other) for one, other in zip(expected, entry, strict=True))
        for entry in drawn
    )


@pytest.mark.parametrize("source", ["file", "run", "model of the run"])
def test_the_gallery_has_the_samples_of_the_run(dataset, recipe, drawn, tmp_path, source, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "run").mkdir()
    shutil.copy(recipe, tmp_path / "run/recipe.yaml")
    given = {"file": recipe, "run": tmp_path / "run", "model of the run": tmp_path / "run/model"}[source]
    assert show("--recipe", given, "--draws", "2", "--output_dir", tmp_path / "out") == 0
    shutil.rmtree(tmp_path / "run")
    trained = prepare_run(Recipe(**yaml.safe_load(recipe.read_text()))).loaders.train.dataset
    assert len(trained) == 6  # two are held out
    assert len(drawn) == 6 * 3 * 2  # annotated and two epochs, large and small
    for image in range(6):
        for epoch in range(2):
            assert is_drawn(trained[SampleKey(image, epoch)], drawn)
    page = (tmp_path / "out/gallery.html").read_text(encoding="utf-8")
    sizes = [tuple(trained[SampleKey(image)]["image"].shape[:0:-1]) for image in range(6)]
    assert [tuple(map(int, size)) for size in re.findall(r">epoch 1(?:, mosaic)?, (\d+)x(\d+), \d box", page)] == sizes
    assert "OriginalPolicy" in page
    assert "50% of the samples" in page
    assert page.count(">epoch 1, mosaic, ") == sum(trained.is_mosaic(SampleKey(image)) for image in range(6)) > 0


def test_the_dataset_of_the_command_line_replaces_the_recipes(dataset, recipe, drawn, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    shutil.rmtree(dataset)
    assert show(copy, "--recipe", recipe, "--num_images", "1", "--output_dir", tmp_path / "out") == 0
    assert len(drawn) == 4 * 2


def test_masks_are_drawn_if_the_recipe_trains_them(tmp_path, monkeypatch):
    values = {
        "data": "shapes?size=48&train=4&val=2",
        "task": "instance",
        "model_config": TINY_MODEL,
        "processor_config": {"size": {"shortest_edge": 48, "longest_edge": 48}},
    }
    (tmp_path / "masks.yaml").write_text(yaml.safe_dump(values))
    keys, draw = [], visualization.draw_prediction

    def record(image, prediction, *arguments, **options):
        keys.append(set(prediction))
        return draw(image, prediction, *arguments, **options)

    monkeypatch.setattr(visualization, "draw_prediction", record)
    assert show("--recipe", tmp_path / "masks.yaml", "--output_dir", tmp_path / "out") == 0
    assert {"boxes", "labels", "masks"} == set.union(*keys)


def test_without_a_recipe_all_images_are_drawn_as_the_recommended_recipe_augments_them(dataset, drawn, tmp_path):
    assert show(dataset, "--draws", "1", "--output_dir", tmp_path / "out") == 0
    page = (tmp_path / "out/gallery.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == 8 * 2
    with Image.open(tmp_path / "out/gallery.jpg") as sheet:
        assert (sheet.format, sheet.width) == ("JPEG", 2 * 240)
    assert "<dd>none given, so augmented as in small_dataset</dd>" in page
    assert "LightPolicy" in page
    values = yaml.safe_load(builtin_recipes()["small_dataset"].read_text())
    recommended = Recipe(**values, data=str(dataset), eval_fraction=0.25)
    samples = build_train_set(recommended, open_splits(recommended)[0])
    assert f"scales={samples.transform.scales}" in page
    drawn.clear()
    options = ["--transform", "none", "--shortest_edge", "32", "--split", "all", "--draws", "1"]
    assert show(dataset, *options, "--output_dir", tmp_path / "out") == 0
    assert {image.shape[1] for image, *_ in drawn} <= {30, 31, 32, 50}  # 50: as annotated
    page = (tmp_path / "out/gallery.html").read_text(encoding="utf-8")
    assert "none given, so augmented as in small_dataset, apart from --transform and --shortest_edge" in page


def test_options_that_the_recipe_sets_are_refused(dataset, recipe, tmp_path, capsys):
    for option, value in (("split", "val"), ("transform", "none"), ("shortest_edge", "32")):
        assert show(dataset, "--recipe", recipe, f"--{option}", value, "--output_dir", tmp_path / "out") == 2
        message = f"--{option}: conflicts with --recipe, which sets it; drop one of them."
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "path: not given; pass the folder or file of a dataset, or --recipe with a run's folder."),
        (["data", "--recipe", "smal_dataset"], "did you mean 'small_dataset'?"),
        (["data", "--recipe", "data"], "data: contains no recipe.yaml; expected a recipe's name or file, or a run's"),
        (["data", "--recipe", "small_dataset"], "has no splits; hold out some images for evaluation (--eval_fraction"),
        (["data", "--eval_fraction", "0.1"], "--eval_fraction: needs --recipe; use --split."),
        (["data", "--shortest_edge", "0"], "--shortest_edge: got 0, expected at least 1."),
    ],
)
def test_mistakes_are_named(dataset, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert show(*arguments) == 2
    assert message in capsys.readouterr().err


def test_images_can_be_held_out_as_in_training(dataset, drawn, tmp_path):
    options = ["--recipe", "small_dataset", "--eval_fraction", "0.5", "--draws", "0"]
    assert show(dataset, *options, "--output_dir", tmp_path / "out") == 0
    values = yaml.safe_load(builtin_recipes()["small_dataset"].read_text())
    train_index, _ = open_splits(Recipe(**values, data=str(dataset), eval_fraction=0.5))
    page = (tmp_path / "out/gallery.html").read_text(encoding="utf-8")
    names = [Path(image.path).name for image in train_index.images]
    assert sorted(re.findall(r"<figcaption>(\d\.png): as annotated", page)) == sorted(names)
    assert len(names) == 4


def test_a_gallery_is_small(tmp_path):
    """Twelve photographs, each with three augmentations, are less than two megabytes."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text("names: [cat]\ntrain: images\nval: images\n")
    for number in range(12):
        rough = Image.effect_noise((80, 60), 90).convert("RGB").resize((640, 480), Image.Resampling.BICUBIC)
        rough.save(folder / "images" / f"{number}.jpg")
        (folder / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    assert show(folder, "--output_dir", tmp_path / "out") == 0
    assert (tmp_path / "out/gallery.html").stat().st_size < 2_000_000
