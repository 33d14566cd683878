import dataclasses
from pathlib import Path

import pytest

from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_parsing import parse_recipe


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_command_line_wins_over_the_file_and_nested_keys_merge(tmp_path):
    config = write(
        tmp_path / "small.yaml",
        "learning_rate: 1e-4\nepochs: 7\nmodel_config:\n  num_queries: 20\n  backbone_kwargs: {stem_width: 8}\n",
    )
    recipe = parse_recipe(
        [config, "--learning_rate", "2e-4", "--model_config.backbone_kwargs.channels", "[8, 16]", "--resume=auto"]
    )
    assert recipe.learning_rate == 2e-4
    assert recipe.epochs == 7
    assert recipe.model_config == {"num_queries": 20, "backbone_kwargs": {"stem_width": 8, "channels": [8, 16]}}
    assert recipe.resume == "auto"
    assert recipe.output_dir == "runs/small"


def test_globs_on_the_command_line_are_text_and_no_yaml():
    assert parse_recipe(["--freeze", "model.backbone,*.self_attn"]).freeze == ["model.backbone", "*.self_attn"]
    assert parse_recipe(["--trackers", "[]"]).trackers == []


def test_numbers_booleans_and_lists_get_their_types(tmp_path):
    config = write(
        tmp_path / "a.yaml",
        "weight_decay: 1e-4\ngradient_checkpointing: true\nmixed_precision: no\ntrackers: [tensorboard, wandb]\n"
        "model_config: {class_cost: 2e0, name: no}\nmax_steps: null\n",
    )
    recipe = parse_recipe([config, "--encoder_supervision", "--max_grad_norm", "1"])
    assert recipe.weight_decay == 1e-4
    assert recipe.gradient_checkpointing is True
    assert recipe.mixed_precision == "no"
    assert recipe.trackers == ["tensorboard", "wandb"]
    assert recipe.model_config == {"class_cost": 2.0, "name": "no"}
    assert recipe.max_steps is None
    assert recipe.encoder_supervision is True
    assert isinstance(recipe.max_grad_norm, float)


def test_what_a_run_writes_is_read_back_as_the_same_recipe(tmp_path):
    recipe = Recipe(data="x", learning_rate=3e-5, model_config={"dropout": 1e-3}, trackers=["tensorboard"], seed=7)
    again = parse_recipe([write(tmp_path / "recipe.yaml", recipe.to_yaml()), "--output_dir", "none"])
    assert dataclasses.replace(again, output_dir=None) == recipe
    assert again.output_dir == "runs/recipe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--learning-rate", "1"], "unknown key 'learning-rate'; did you mean 'learning_rate'?"),
        (["--learning_r", "1"], "unknown key 'learning_r'"),  # no abbreviations
        (["--batch_size", "2.5"], "--batch_size: got 2.5 (float), expected an integer."),
        (["--batch_size", "true"], "--batch_size: got True (bool), expected an integer."),
        (["--learning_rate", "fast"], "--learning_rate: got 'fast' (str), expected a number."),
        (["--learning_rate", ".nan"], "--learning_rate: got nan, expected at least 0."),
        (["--gradient_checkpointing", "2"], "expected true or false"),
        (["--lr_schedule", "stp"], "--lr_schedule: got 'stp'; did you mean 'step'?"),
        (["--batch_size", "0"], "batch_size: got 0, expected at least 1."),
        (["--data.x", "3"], "'data' is a single value, so 'data.x' cannot be set"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["a.yaml", "b.yaml"], "command line: unexpected 'b.yaml'; expected at most one recipe"),
        (
            ["--eval_split", "val", "--eval_fraction", "0.1"],
            "eval_split: cannot be combined with eval_fraction; give one of the two.",
        ),
        (
            ["--model", "x", "--backbone_weights", "y"],
            "backbone_weights: initialises a new model, but 'model' is given",
        ),
    ],
)
def test_mistakes_on_the_command_line(arguments, message):
    with pytest.raises(ValueError, match=r".") as error:
        parse_recipe(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("epochs: three\n", "epochs: got 'three' (str), expected an integer."),
        ("epochs: 3\nepochs: 4\n", "repeated key 'epochs'"),
        ("model_config: 3\n", "model_config: got 3 (int), expected a mapping."),
        ("trackers: [1]\n", "trackers[0]: got 1 (int), expected text."),
        ("- epochs\n", "got a list, expected lines of 'key: value'."),
        ("a: [\n", "invalid YAML"),
    ],
)
def test_mistakes_in_the_file_name_it(tmp_path, text, message):
    config = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=r".") as error:
        parse_recipe([config])
    assert message in str(error.value)
    assert str(error.value).startswith(config)
    assert "\n" not in str(error.value)


def test_a_files_new_model_gives_way_to_the_one_on_the_command_line(tmp_path):
    config = write(
        tmp_path / "new.yaml", "model_config: {d_model: 128}\nbackbone_weights: w\nlocal_start: true\nepochs: 3\n"
    )
    notes = []
    recipe = parse_recipe([config, "--model", "mine", "--model_config.dropout", "0.2"], notes=notes)
    assert recipe.model == "mine"
    assert recipe.model_config == {"dropout": 0.2}
    assert recipe.backbone_weights is None
    assert not recipe.local_start
    assert recipe.epochs == 3
    assert [note.split()[0] for note in notes] == ["model_config", "backbone_weights", "local_start"]
    assert notes[0] == "model_config of the recipe is ignored: it describes a new model, and mine already exists"


def test_a_file_that_names_a_model_keeps_what_it_says_of_it(tmp_path):
    config = write(tmp_path / "more.yaml", "model: first\nmodel_config: {dropout: 0.3}\n")
    notes = []
    assert parse_recipe([config, "--model", "second"], notes=notes).model_config == {"dropout": 0.3}
    config = write(tmp_path / "new.yaml", "model_config: {dropout: 0.3}\n")
    assert parse_recipe([config, "--model", "none"], notes=notes).model_config == {"dropout": 0.3}
    assert notes == []


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        parse_recipe(["nowhere.yaml"])


def test_help_explains_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse_recipe(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in Recipe.__dataclass_fields__:
        assert f"--{name}" in text
        assert f" {name}: " not in text
    assert "Images per batch and process. (default: 2)" in text
    assert text.count("(default: ") == len(Recipe.__dataclass_fields__)
    assert ". (default: " in text
    assert " (default: none)" in text
    assert "  (default" not in text  # each has an explanation
