import pytest

from modeling_detr.benchmarks.study import (
    builtin_studies,
    parse_images,
    parse_seeds,
    plan_runs,
    read_study,
    with_keys,
    with_variants,
)
from modeling_detr.errors_detr import StudyError
from modeling_detr.training.recipe_parsing import parse_recipe


STUDY = """\
recipe: shapes
keys: {minutes: 2, model_config: {num_queries: 12}}
variants:
  plain: {denoising_groups: 0}
  aided: {}
seeds: 2
"""


@pytest.fixture
def study_file(tmp_path):
    def write(text=STUDY):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def options(run):
    return dict(zip(run.arguments[1::2], run.arguments[2::2], strict=True))


@pytest.mark.parametrize("name", builtin_studies())
def test_the_studies_of_the_package_can_be_planned(name, tmp_path):
    study = with_keys(read_study(name), {"data": "DATA"} if name in ("bccd", "bccd_learning_curve", "dino") else {})
    runs = plan_runs(study, tmp_path)
    assert len({run.folder for run in runs}) == len(runs)
    assert {run.seed for run in runs} == {0, 1, 2}
    if "plain" in study.variants:
        plain = next(parse_recipe(run.arguments) for run in runs if run.variant == "plain")
        assert study.reference == "plain"
        aids = (plain.encoder_supervision, plain.denoising_groups, plain.local_start, plain.ema_decay)
        assert not any(aids)


def test_variants_change_keys_of_the_recipe(study_file, tmp_path):
    runs = plan_runs(read_study(study_file()), tmp_path)
    assert [str(run) for run in runs] == ["plain, seed 0", "aided, seed 0", "plain, seed 1", "aided, seed 1"]
    plain, aided = (parse_recipe(run.arguments) for run in runs[2:])
    assert (plain.denoising_groups, aided.denoising_groups) == (0, 3)
    assert plain.seed == aided.seed == 1
    assert plain.minutes == 2
    assert (plain.model_config["num_queries"], plain.model_config["d_model"]) == (12, 96)


def test_numbers_of_training_images_and_the_evaluations_between(study_file, tmp_path):
    text = STUDY + "train_images: [25, all]\nimages_per_evaluation: 200\n"
    runs = plan_runs(with_variants(read_study(study_file(text)), ["aided"]), tmp_path)
    few, everything = map(options, runs[:2])
    assert (few["--train_images"], few["--eval_every_epochs"]) == ("25", "8")
    assert not {"--train_images", "--eval_every_epochs"} & {*everything}


def test_a_first_stage_is_trained_for_each_seed(tmp_path):
    runs = plan_runs(read_study("shapes_transfer"), tmp_path)
    first, second = [run for run in runs if run.variant == "start"][:2]
    assert (first.seed, second.seed) == (0, 1)
    fresh = next(run for run in runs if run.variant == "fresh" and run.seed == 1)
    assert fresh.after == second.folder
    recipe = parse_recipe(fresh.arguments)
    assert (recipe.model, recipe.head_init, recipe.model_config) == (str(second.folder), "fresh", {})
    assert next(run for run in runs if run.variant == "scratch").after is None


def test_the_command_line_changes_keys_but_not_what_is_compared(study_file, tmp_path):
    study = read_study(study_file())
    (run, *_) = plan_runs(with_keys(study, {"minutes": "0.5", "model_config.d_model": "32"}), tmp_path)
    assert parse_recipe(run.arguments).minutes == 0.5
    assert parse_recipe(run.arguments).model_config["d_model"] == 32
    with pytest.raises(StudyError, match=r"--denoising_groups: variant 'plain' of mine sets it to 0"):
        with_keys(study, {"denoising_groups": "5"})
    with pytest.raises(StudyError, match=r"--seed: decided by the study"):
        with_keys(study, {"seed": "5"})
    with pytest.raises(StudyError, match=r"mine has no variant 'aide'; did you mean 'aided'"):
        with_variants(study, ["aide"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("recipe: shapes\n", "", r"has no 'recipe'"),
        ("recipe: shapes", "recipe: shaps", r"no such file or built-in recipe; did you mean 'shapes'"),
        ("recipe:", "recipes:", r"unknown key 'recipes'; did you mean 'recipe'"),
        (
            "denoising_groups: 0",
            "denoise: 0",
            r"variants: plain: unknown key 'denoise'; did you mean 'denoising_groups'",
        ),
        ("denoising_groups: 0", "denoising_groups: -1", r"denoising_groups: got -1, expected at least 0"),
        ("denoising_groups: 0", "seed: 3", r"seed is decided by the study"),
        ("denoising_groups: 0", "model: start", r"variant 'plain' has model: start, but there is no 'start'"),
        ("recipe: shapes", "recipe: null", r"mine.yaml: recipe: got None, expected the name or path of a recipe"),
        ("seeds: 2", "start: {recipe: [a]}", r"start: recipe: got \['a'\], expected the name or path"),
        ("  plain:", "  ..:", r"got '\.\.', expected letters, digits"),
        ("  plain:", "  1:", r"variants: got the name 1, expected text; write it in quotes: '1'"),
        ("  plain:", "  a/b:", r"got 'a/b', expected letters, digits"),
        ("seeds: 2", "seeds: few", r"seeds: got 'few', expected how many, such as 3, or different seeds"),
        ("seeds: 2", "thresholds: [50]", r"expected values of AP50 between 0 and 1"),
        ("seeds: 2", "images_per_evaluation: often", r"got 'often', expected a number of images"),
    ],
)
def test_what_is_wrong_with_a_study_is_named(study_file, tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises(ValueError, match=message):
        plan_runs(read_study(study_file(STUDY.replace(old, new))), tmp_path)


def test_an_unknown_study_is_compared_with_the_known_ones():
    with pytest.raises(StudyError, match=r"shaps: no such file or built-in study; did you mean 'shapes'"):
        read_study("shaps")


def test_lists_of_the_command_line():
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("7,8") == parse_seeds([7, 8]) == (7, 8)
    assert parse_seeds([7]) == parse_seeds("7,") == (7,)
    assert parse_images("25, all") == (25, None)
    for text in ("0", "3,3", "-1", ""):
        with pytest.raises(StudyError, match="--seeds"):
            parse_seeds(text)
