"""`detr train auto` from the command line: what it prints, what the run gets, and how a resume keeps it."""

import pytest
import yaml

from modeling_detr import commands
from modeling_detr.commands import train
from modeling_detr.data import open_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.training.auto.choosing import auto_recipe


TINY = {
    "data": "shapes?size=64&train=12&val=4",
    "backbone_weights": None,
    "model_config.backbone": "resnet10t",
    "model_config.backbone_kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "model_config.d_model": 32,
    "model_config.encoder_layers": 1,
    "model_config.decoder_layers": 1,
    "model_config.encoder_ffn_dim": 32,
    "model_config.decoder_ffn_dim": 32,
    "processor_config.size": {"shortest_edge": 64, "longest_edge": 64},
    "num_workers": 0,
}


@pytest.fixture
def given(tmp_path):
    return {**TINY, "output_dir": str(tmp_path / "run")}


def as_arguments(given):
    return [
        part for key, value in given.items() for part in (f"--{key}", yaml.safe_dump(value).split("\n...")[0].strip())
    ]


def test_the_user_overrides_a_choice_and_unmeasured_choices_need_no_steps(given, tmp_path):
    recipe, lines = auto_recipe({**given, "epochs": 7, "batch_size": 3})
    assert (recipe.epochs, recipe.batch_size, recipe.minutes) == (7, 3, None)
    text = "\n".join(lines)
    assert any(line.startswith("auto      batch_size 3 ") and line.endswith(" given") for line in lines)
    assert "num_queries 20 " in text
    assert recipe.model_config["freeze_batch_norm"] is False
    assert recipe.encoder_supervision
    assert not (tmp_path / "run").exists()


def test_without_a_validation_split_images_are_held_out_and_a_lone_image_is_an_error(given, tmp_path):
    index = open_dataset("shapes?size=64&train=10&val=1")
    convert_dataset(index.select(range(10)), tmp_path / "data", "voc")
    (tmp_path / "one").mkdir()
    convert_dataset(index.select([0]), tmp_path / "one" / "data", "voc")
    recipe, lines = auto_recipe({**given, "data": str(tmp_path / "data"), "epochs": 1})
    assert recipe.eval_fraction == 0.2
    assert any("2 of 10 images held out" in line for line in lines)
    with pytest.raises(ValueError, match="expected at least 2"):
        auto_recipe({**given, "data": str(tmp_path / "one" / "data"), "epochs": 1})


@pytest.mark.slow
def test_it_trains_within_the_time_and_a_resume_keeps_its_choices(given, tmp_path, capsys):
    arguments = ["auto", *as_arguments(given), "--minutes", "0.05"]
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "0.05 minutes" in printed
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["minutes"] is None
    assert commands.main(["train", *arguments]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert train.main([*arguments, "--resume", "auto"]) == 0
    assert "which was chosen when the run started" in capsys.readouterr().out
    again = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert {**again, "resume": None} == {**written, "resume": None}


@pytest.mark.slow
def test_a_model_is_fine_tuned_at_its_own_size(given, tmp_path):
    assert train.main(["auto", *as_arguments({**given, "epochs": 1}), "--preflight", "false"]) == 0
    keys = {"data": given["data"], "model": given["output_dir"], "output_dir": str(tmp_path / "more"), "epochs": 10}
    recipe, lines = auto_recipe(keys)
    assert recipe.processor_config == {"size": {"shortest_edge": 64, "longest_edge": 64}}
    assert (recipe.lr_schedule, recipe.lr_drop_epochs) == ("step", 8)
    assert recipe.backbone_weights is None
    assert any("the size that the model was trained with" in line for line in lines)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_that_are_no_time_are_an_error(given, minutes):
    with pytest.raises(ValueError, match=r"--minutes: got .*, expected a positive number; leave it out for an hour"):
        auto_recipe({**given, "minutes": minutes})
