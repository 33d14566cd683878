"""The recipe beside a model, which may come from somebody else."""

import pytest

from modeling_detr.commands.command_parser import CommandParser
from modeling_detr.commands.dataset_options import add_dataset_options
from modeling_detr.commands.trained_on import add_choice_options, choose_images, images_evaluated_in_training


@pytest.mark.parametrize(
    "recipe",
    [
        "5",
        "data: [1]",
        f"data: {'a' * 5000}",
        'data: "a\\0b"',
        "data: .\neval_fraction: .nan",
        "[" * 5000,
        "a: &a [b]\nc: *a",
        "!!python/object/apply:os.system ['false']",
    ],
)
def test_a_hostile_recipe_beside_a_model_chooses_no_images(tmp_path, recipe):
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert images_evaluated_in_training(str(tmp_path), str(tmp_path)) is None


def test_the_data_of_a_run_are_read_as_in_its_training_unless_options_say_otherwise(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"data: {tmp_path}\nboxes: upright\ncrowds: as_objects\n")
    parser = CommandParser("detr evaluate", "")
    for argument in ("model", "dataset"):
        parser.add_argument(argument)
    add_dataset_options(parser)
    add_choice_options(parser)
    run = str(tmp_path)
    for options, boxes, reason in (
        ([], "upright", "read as in training: boxes upright, crowds as_objects"),
        (["--boxes", "stored", "--split", "val"], "stored", "read as in training: crowds as_objects"),
    ):
        arguments = parser.parse_args([run, run, *options])
        assert choose_images(arguments).reason == reason
        assert (arguments.boxes, arguments.crowds) == (boxes, "as_objects")
    other = parser.parse_args([run, str(tmp_path.parent)])
    assert choose_images(other).reason == ""
    assert other.boxes is None
