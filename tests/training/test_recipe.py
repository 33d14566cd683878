import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from mutations import JSON_VALUES, YAML_TEXTS, replace_by

from modeling_detr import commands
from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.errors_detr import PluginError, RecipeError
from modeling_detr.training.familiar_keys import FAMILIAR_KEYS, Hint
from modeling_detr.training.recipe import PLUGIN_KEYS, Recipe, compare_for_resume
from modeling_detr.training.recipe_keys import Resume, key, keys_of
from modeling_detr.training.recipe_parsing import builtin_recipes, parse_recipe, read_recipe_file


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


def test_globs_on_the_command_line_are_not_parsed_as_yaml():
    assert parse_recipe(["--freeze", "model.backbone,*.self_attn"]).freeze == ["model.backbone", "*.self_attn"]
    assert parse_recipe(["--trackers", "[]"]).trackers == []


def test_values_get_the_types_of_their_keys(tmp_path):
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


def test_a_written_recipe_parses_to_the_same_recipe(tmp_path):
    recipe = Recipe(data="x", learning_rate=3e-5, model_config={"dropout": 1e-3}, trackers=["tensorboard"], seed=7)
    again = parse_recipe([write(tmp_path / "recipe.yaml", recipe.to_yaml()), "--output_dir", "none"])
    assert dataclasses.replace(again, output_dir=None) == recipe
    assert again.output_dir == "runs/recipe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], "--lerning_rate: unknown option; did you mean --learning_rate?"),
        (["--learning-rate", "1"], "--learning-rate: unknown option; did you mean --learning_rate?"),
        (["--learning_r", "1"], "--learning_r: unknown option; did you mean --learning_rate?"),  # no abbreviations
        (["--batch_size", "2.5"], "--batch_size: got 2.5 (float), expected an integer."),
        (["--batch_size", "true"], "--batch_size: got True (bool), expected an integer."),
        (["--learning_rate", "fast"], "--learning_rate: got 'fast' (str), expected a number."),
        (["--learning_rate", ".nan"], "--learning_rate: got nan, expected at least 0."),
        (["--gradient_checkpointing", "2"], "expected true or false"),
        (["--lr_schedule", "stp"], "--lr_schedule: got 'stp'; did you mean 'step'?"),
        (["--batch_size", "0"], "batch_size: got 0, expected at least 1."),
        (["--mosaic_probability", "50"], "mosaic_probability: got 50.0, expected at least 0 and at most 1."),
        (["--close_mosaic_share", "10"], "close_mosaic_share: got 10.0, expected at least 0 and below 1."),
        (["--data.x", "3"], "--data.x: unknown option; 'data' is a single value"),
        (["--epochs"], "--epochs: expected a value; see 'detr train --help epochs'"),
        (["a.yaml", "b.yaml"], "command line: unexpected 'b.yaml'; expected one recipe"),
        (
            ["--eval_split", "val", "--eval_fraction", "0.1"],
            "eval_split: cannot be combined with eval_fraction; set only one of the two.",
        ),
        (
            ["--model", "x", "--backbone_weights", "y"],
            "backbone_weights: initialises a new model, but 'model' is given",
        ),
    ],
)
def test_errors_on_the_command_line(arguments, message):
    with pytest.raises(ValueError, match=r".") as error:
        parse_recipe(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("epochs: three\n", "epochs: got 'three' (str), expected an integer."),
        ("epochs: 3\nepochs: 4\n", "line 2, column 1: invalid YAML: repeated key 'epochs'"),
        ("model_config: 3\n", "model_config: got 3 (int), expected a mapping."),
        ("trackers: [1]\n", "trackers[0]: got 1 (int), expected text."),
        ("- epochs\n", "got a list, expected lines of 'key: value'."),
        ("a: [\n", "line 2, column 1: invalid YAML"),
        ("a: \x00", "yaml: invalid YAML: special characters are not allowed (character 4)"),
    ],
)
def test_errors_in_a_file_name_it(tmp_path, text, message):
    config = write(tmp_path / "bad.yaml", text)
    with pytest.raises(ValueError, match=r".") as error:
        parse_recipe([config])
    assert message in str(error.value)
    assert str(error.value).startswith(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", YAML_TEXTS, ids=lambda text: repr(text[:30]))
def test_hostile_yaml_is_an_error_of_the_file(tmp_path, text):
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        read_recipe_file(write(tmp_path / "bad.yaml", text))


def test_values_of_any_type_and_size_raise_no_other_error(tmp_path):
    for name in ("epochs", "learning_rate", "model_config", "trackers", "data", "batch_size", "local_start"):
        for value in JSON_VALUES:
            with contextlib.suppress(RecipeError):
                read_recipe_file(write(tmp_path / "bad.yaml", f"{name}: {value}\n"))


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "loop", "proc", "socket"])
def test_a_recipe_that_is_no_file_is_an_error(tmp_path, kind):
    path = tmp_path / "recipe.yaml"
    path.touch()
    replace_by(path, kind)
    if kind == "proc":  # has size 0
        assert read_recipe_file(path) == {}
        return
    with pytest.raises(RecipeError, match=r"recipe.yaml: (is a .*, expected a file|cannot be read)"):
        read_recipe_file(path)


def test_a_model_on_the_command_line_replaces_the_files_new_model(tmp_path):
    config = write(
        tmp_path / "new.yaml",
        "model_config: {d_model: 128}\nbackbone_weights: w\nlocal_start: true\nepochs: 3\n"
        "processor_config: {size: {shortest_edge: 384, longest_edge: 640}}\n",
    )
    notes = []
    recipe = parse_recipe([config, "--model", "mine", "--model_config.dropout", "0.2"], notes=notes)
    assert recipe.model == "mine"
    assert recipe.model_config == {"dropout": 0.2}
    assert recipe.backbone_weights is None
    assert not recipe.local_start
    assert recipe.epochs == 3
    assert [note.split()[0] for note in notes] == [
        *("model_config", "processor_config", "backbone_weights", "local_start")
    ]
    assert recipe.processor_config == {}  # the image size of the model stays
    assert notes[0] == (
        'model_config of the recipe, {"d_model": 128}, is ignored: it describes a new model, and mine already exists'
    )


def test_a_file_with_a_model_keeps_its_model_options(tmp_path):
    config = write(tmp_path / "more.yaml", "model: first\nmodel_config: {dropout: 0.3}\n")
    notes = []
    assert parse_recipe([config, "--model", "second"], notes=notes).model_config == {"dropout": 0.3}
    config = write(tmp_path / "new.yaml", "model_config: {dropout: 0.3}\n")
    assert parse_recipe([config, "--model", "none"], notes=notes).model_config == {"dropout": 0.3}
    assert notes == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such file; expected a YAML file."),
        ("configs/finetune.yaml", "configs/finetune.yaml: no such file; use the built-in recipe 'finetune'."),
        ("finetun", "finetun: no such file or built-in recipe; did you mean 'finetune'?"),
        ("xyz", "xyz: no such file or built-in recipe; expected one of auto, bccd, detr_r101, "),
    ],
)
def test_a_recipe_that_does_not_exist_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        parse_recipe([name])
    assert str(error.value).startswith(message)


def test_a_recipe_is_found_by_name_and_a_file_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(["finetune", "--model", "mine"])
    assert (recipe.learning_rate, recipe.output_dir) == (5e-5, "runs/finetune")
    (tmp_path / "finetune").write_text("learning_rate: 7\n")
    assert parse_recipe(["finetune"]).learning_rate == 7


def test_help_explains_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse_recipe(["--help", "all"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in Recipe.__dataclass_fields__:
        assert f"--{name}" in text
    assert "Images per batch and process. (default: 2)" in text
    assert text.count("(default: ") == len(Recipe.__dataclass_fields__)
    assert ". (default: " in text
    assert " (default: none)" in text
    assert "  (default" not in text  # each has an explanation


def shown_help(capsys, *topic: str) -> str:
    with pytest.raises(SystemExit) as end:
        parse_recipe(["--help", *topic])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_overview_of_help_names_every_key_and_recipe_on_one_screen(capsys):
    text = shown_help(capsys)
    assert {*Recipe.__dataclass_fields__, *builtin_recipes()} <= {*re.findall(r"\w+", text)}
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 80


def test_each_section_of_help_fits_a_screen(capsys):
    sections = {declared.section for declared in keys_of(Recipe).values()}
    assert len(sections) > 5
    for section in sections:
        assert len(shown_help(capsys, section).splitlines()) <= 40, section


def test_help_explains_a_key_a_mapping_and_a_recipe(capsys):
    assert shown_help(capsys, "epochs") == "  --epochs N\n      Passes over the training images. (default: 300)\n"
    assert shown_help(capsys, "model_config.num_queries").startswith("  --model_config.KEY VALUE\n")
    assert shown_help(capsys, "finetune").strip() == builtin_recipes()["finetune"].read_text().strip()
    with pytest.raises(RecipeError, match=r"--help: no section, key or recipe 'epoch'; did you mean 'epochs'\?"):
        parse_recipe(["--help", "epoch"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "1e-3"], "--lr: unknown option; did you mean --learning_rate?"),
        (["--batch=4"], "--batch: unknown option; did you mean --batch_size?"),
        (["--num_queries", "50"], "--num_queries: unknown option; did you mean --model_config.num_queries?"),
        (["--device", "cpu"], "--device: unknown option; choose GPUs with the environment variable "),
        (["data=x", "--epochs", "3"], "command line: unexpected 'data=x'; write --data x."),
        (["shapes", "lr=1e-3"], "command line: unexpected 'lr=1e-3'; did you mean --learning_rate?"),
        (["--help", "lr"], "--help: no section, key or recipe 'lr'; did you mean 'learning_rate'?"),
        (["--num_classes", "9"], "--num_classes: unknown option; the classes are those of the dataset"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_the_one_here(arguments, message):
    with pytest.raises(RecipeError) as error:
        parse_recipe(arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_familiar_name_leads_to_a_setting_that_exists():
    keys = keys_of(Recipe)
    for name, meant in FAMILIAR_KEYS.items():
        assert name not in keys
        if not isinstance(meant, Hint):
            mapping, _, inner = meant.partition(".")
            assert mapping in keys, name
            assert mapping != "model_config" or inner in DetrConfig.own_keys(), name


# A resumed run


def changed(before: Recipe, **keys):
    """The names of the changed keys of a resumed run, by what the change means."""
    changes = compare_for_resume(dataclasses.replace(before, **keys), yaml.safe_load(before.to_yaml()))
    return {rule: [change.name for change in getattr(changes, rule)] for rule in ("model", "order", "free", "start")}


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"task": "panoptic"}, "model"),
        ({"head_init": "fresh"}, "model"),
        ({"label_mapping": {"a": "b"}, "model": "mine"}, "model"),
        ({"backbone_learning_rate": 0.0}, "model"),
        ({"backbone_learning_rate": 1e-3}, "free"),
        ({"transform": "light"}, "order"),
        ({"seed": 1}, "order"),
        ({"batch_size": 7}, "free"),
        ({"ema_decay": 0.5}, "free"),
        ({"local_start": True}, "start"),
    ],
)
def test_a_key_declares_what_a_change_means_for_a_resume(keys, rule):
    changes = changed(Recipe(), **keys)
    assert [name for names in changes.values() for name in names] == changes[rule]
    assert sorted(keys) == sorted(changes[rule])


def test_keys_about_the_launch_are_not_compared():
    changes = changed(Recipe(), output_dir="elsewhere", resume="auto", preflight=False)
    assert not any(changes.values())


def test_changes_are_described_in_sentences():
    before = {"learning_rate": 1e-3, "local_start": True, "trackers": []}
    assert compare_for_resume(Recipe(trackers=[], max_steps=5), before).sentences() == [
        "max_steps changed from none to 5",
        "learning_rate changed from 0.001 to 0.0001",
        "local_start changed from true to false; this has no effect on a run that has started",
    ]


# One more key


def test_a_plug_in_adds_a_key_with_one_line(tmp_path, monkeypatch, capsys):
    config = write(tmp_path / "longer.yaml", "flavour: lemon\nepochs: 3\n")
    with pytest.raises(ValueError, match=r"longer\.yaml: unknown key 'flavour'"):
        parse_recipe([config])

    flavours = {"vanilla": 1, "lemon": 2}
    declaration = key("vanilla", "Taste of the model.", choices=flavours, resume=Resume.MODEL)
    monkeypatch.setitem(PLUGIN_KEYS, "flavour", (str | None, declaration))

    recipe = parse_recipe([config])
    assert isinstance(recipe, Recipe)
    assert (recipe.flavour, recipe.epochs) == ("lemon", 3)
    assert parse_recipe([config, "--flavour", "vanilla"]).flavour == "vanilla"
    with pytest.raises(ValueError, match=r"--flavour: got 'lemn'; did you mean 'lemon'\?"):
        parse_recipe(["--flavour", "lemn"])

    assert parse_recipe([write(tmp_path / "again.yaml", recipe.to_yaml()), "--output_dir", "runs/longer"]) == recipe
    assert compare_for_resume(recipe, yaml.safe_load(recipe.to_yaml())).model == ()
    assert [change.name for change in compare_for_resume(recipe, {"epochs": 3}).model] == ["flavour"]

    with pytest.raises(SystemExit):
        commands.main(["train", "--help", "flavour"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--flavour {vanilla,lemon} Taste of the model. (default: vanilla)" in shown


def test_a_plug_in_cannot_replace_a_key_and_its_key_may_have_any_type(monkeypatch, capsys):
    monkeypatch.setitem(PLUGIN_KEYS, "switch", (bool | None, key(None, "A switch or none.")))
    with pytest.raises(SystemExit):
        parse_recipe(["--help", "switch"])
    assert "--switch BOOL" in capsys.readouterr().out
    monkeypatch.setitem(PLUGIN_KEYS, "epochs", (int, key(1, "Something else.")))
    with pytest.raises(PluginError, match="recipe key 'epochs': a plug-in adds it, but it is built in"):
        parse_recipe([])


def test_of_a_changed_mapping_only_the_changed_keys_are_shown():
    before = dataclasses.asdict(Recipe(model_config={"num_queries": 20, "d_model": 64}))
    changes = compare_for_resume(Recipe(model_config={"num_queries": 21, "d_model": 64}), before)
    assert str(changes.model[0]) == "model_config.num_queries changed from 20 to 21"


def test_a_field_that_is_not_declared_as_a_key_is_an_error():
    @dataclasses.dataclass(frozen=True)
    class Odd(Recipe):
        extra: int = 3

    with pytest.raises(TypeError, match=r"Odd\.extra: not declared as a key"):
        keys_of(Odd)


def test_a_missing_dataset_is_explained_with_an_example_command():
    with pytest.raises(RecipeError) as caught:
        _ = Recipe().data_source

    assert str(caught.value) == "data: not set; choose a dataset, as in 'detr train small_dataset --data FOLDER'."


def test_a_dataset_in_place_of_the_recipe_is_an_error_that_says_where_it_goes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder, expected a recipe; pass a dataset as in .* --data /"):
        parse_recipe([str(tmp_path)])
