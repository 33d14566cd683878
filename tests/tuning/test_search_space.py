import dataclasses

import pytest

from modeling_detr.errors_detr import SearchError
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_keys import keys_of
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.tuning.search_space import NEEDS, SPACE, read_space, search_space


VALUES = {"batch_size": 8, "learning_rate": 1e-3, "backbone_learning_rate": 1e-4, "ema_decay": 0.0}
VALUES |= {"mosaic_probability": 0.0, "close_mosaic_share": 0.15, "anchored_matching": 0.0}


def small_dataset(*arguments):
    """The recipe with values that its tuning does not change."""
    options = [text for name, value in VALUES.items() for text in (f"--{name}", str(value))]
    return parse_recipe(["small_dataset", "--data", "shapes", *options, *arguments])


def test_every_key_of_the_table_is_one_of_the_recipe():
    for key in SPACE:
        assert key.partition(".")[0] in keys_of(Recipe)
    assert NEEDS.keys() <= SPACE.keys()


def test_ranges_surround_the_values_of_the_recipe():
    space = search_space(small_dataset())
    dimensions = {one.key: one for one in space.dimensions}
    assert dimensions.keys() == SPACE.keys()
    assert not space.notes
    rate = dimensions["learning_rate"]
    assert (rate.low, rate.high, rate.log, rate.start) == (2e-4, 5e-3, True, 1e-3)
    assert dimensions["batch_size"].choices == (4, 8, 16)
    assert dimensions["model_config.num_queries"].choices == (50, 100, 200)
    assert dimensions["model_config.eos_coefficient"].start == 0.1  # the default of a new model
    assert (dimensions["denoising_groups"].is_whole, dimensions["denoising_groups"].start) == (True, 3)


def test_values_of_the_recipe_outside_of_the_table_are_added():
    recipe = small_dataset("--transform", "none", "--denoising_groups", "8", "--ema_decay", "0.9995")
    dimensions = {one.key: one for one in search_space(recipe).dimensions}
    assert dimensions["transform"].choices == ("none", "light", "strong")
    assert dimensions["denoising_groups"].high == 8
    assert 0.9995 in dimensions["ema_decay"].choices


def test_a_size_is_multiplied_and_kept_on_a_grid():
    (size,) = search_space(small_dataset(), names=["processor_config.size"]).dimensions
    assert size.value(1.0) == {"shortest_edge": 384, "longest_edge": 640}
    assert size.value(0.75) == {"shortest_edge": 288, "longest_edge": 480}
    assert size.value(1.26) == {"shortest_edge": 480, "longest_edge": 800}


def test_drawn_numbers_are_rounded_but_not_the_recipes_own():
    recipe = small_dataset("--learning_rate", "0.00123456")
    (rate,) = search_space(recipe, names=["learning_rate"]).dimensions
    assert rate.value(0.00123456) == 0.00123456
    assert rate.value(0.0023456) == 0.00235
    assert rate.value(rate.high) <= rate.high


def test_keys_that_are_given_or_have_no_effect_are_left_out_with_a_reason():
    recipe = small_dataset("--backbone_learning_rate", "0", "--transform_options.scales", "[320]")
    recipe = dataclasses.replace(recipe, local_start=False)
    space = search_space(recipe, given=["batch_size", "mosaic_probability"])
    left = SPACE.keys() - {one.key for one in space.dimensions}
    assert left == {
        "batch_size",
        "mosaic_probability",
        "close_mosaic_share",
        "backbone_learning_rate",
        "processor_config.size",
        "anchored_matching",
    }
    assert "batch_size is not searched: its value is given" in space.notes
    assert "close_mosaic_share is not searched: it has no effect without mosaic_probability" in space.notes
    assert "backbone_learning_rate is not searched: the backbone is frozen" in space.notes


def test_the_settings_of_an_existing_model_are_left_alone():
    recipe = small_dataset("--model", "somewhere")
    keys = {one.key for one in search_space(recipe).dimensions}
    assert not any(key.startswith(("model_config.", "processor_config.")) for key in keys)


def test_a_file_adds_and_replaces_ranges(tmp_path):
    path = tmp_path / "ranges.yaml"
    path.write_text("learning_rate: {low: 5e-4, high: 2e-3}\nmodel_config.dropout: {low: 0, high: 0.3}\n")
    dimensions = {one.key: one for one in search_space(small_dataset(), written=read_space(path)).dimensions}
    assert (dimensions["learning_rate"].low, dimensions["learning_rate"].log) == (5e-4, False)
    assert dimensions["model_config.dropout"].high == 0.3
    assert len(dimensions) == len(SPACE) + 1


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"learning_rat": [1, 2]}, "ranges.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"data": ["a", "b"]}, "'data' is the same for all trials"),
        ({"model_config.num_query": [1, 2]}, "no setting 'num_query'; did you mean 'num_queries'?"),
        ({"model_config": [1, 2]}, "expected a key of it, as in model_config.num_queries"),
        ({"learning_rate.x": [1, 2]}, "got 'learning_rate.x', expected 'learning_rate', which has no keys"),
        ({"learning_rate": 1e-3}, "ranges.yaml: learning_rate: got 0.001, expected a list of values or"),
        ({"learning_rate": {"low": 1, "hi": 2}}, "unknown 'hi'; expected low, high and log"),
        ({"learning_rate": {"low": 2, "high": 1}}, "expected low and high, low < high"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "low: got 0, expected a positive number"),
        ({"learning_rate": {"low": 1e-5, "high": 1e-4}}, "does not contain 0.001, the recipe's own value"),
        ({"learning_rate": {"around": 0.5}}, "around: got 0.5, expected a factor above 1"),
        ({"learning_rate": {"around": 3, "low": 1e-5}}, "got around with low; use around alone, or low, high and log"),
        ({"learning_rate": {"times": [1, 2], "log": True}}, "got times with log; use times alone"),
        ({"learning_rate": {"low": 1e-5, "high": 1, "log": "yes"}}, "log: got 'yes', expected true or false"),
        ({"ema_decay": {"around": 2}}, "around: the recipe's value is 0, expected a positive one; use low and high"),
        ({"batch_size": {"low": 1, "high": 8.5}}, "got 1 and 8.5, expected whole numbers"),
        ({"batch_size": [8, 4.5]}, "got 4.5, expected whole numbers"),
        ({"batch_size": [0, 8]}, "ranges.yaml: batch_size: got 0, expected at least 1"),
        ({"batch_size": [8]}, "expected at least two different values"),
        ({"transform": {"low": 1, "high": 2}}, "the recipe's value is 'light', which is not a number"),
        ({"transform": {"times": [1, 2]}}, "cannot multiply the recipe's value 'light'"),
        ({"ema_decay": {"low": 0, "high": 1}}, "ema_decay: got 1.0, expected at least 0 and below 1"),
        ({"local_start": [True, 1.5]}, "expected true or false"),
        ({"processor_config.size": [384, 512]}, "expected {times: [0.75, 1, 1.25]}"),
        ({"processor_config.size": {"times": [0.5, 2]}}, "does not contain 1.0, the recipe's own value"),
    ],
)
def test_a_range_that_is_not_valid_says_what_is_expected(written, message):
    with pytest.raises(SearchError) as error:
        search_space(small_dataset(), written=written, where="ranges.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(("base", "factor", "expected"), [(8, 3, (3, 24)), (1, 1.2, (1, 2)), (8, 1.01, (7, 9))])
def test_a_range_around_a_whole_number_is_whole(base, factor, expected):
    recipe = small_dataset("--batch_size", str(base))
    (size,) = search_space(recipe, names=["batch_size"], written={"batch_size": {"around": factor}}).dimensions
    assert (size.low, size.high) == expected
    assert size.is_whole
    assert size.log


def test_names_that_cannot_be_searched_are_errors(tmp_path):
    with pytest.raises(SearchError, match=r"'batch_sizes' has no range; did you mean 'batch_size'\? \(or add it"):
        search_space(small_dataset(), names=["batch_sizes"])
    with pytest.raises(SearchError, match=r"batch_size: cannot be searched: its value is given; leave it out"):
        search_space(small_dataset(), given=["batch_size"], names=["batch_size"])
    with pytest.raises(SearchError, match="nothing is left to search"):
        search_space(small_dataset(), names=[])
    with pytest.raises(SearchError, match="no such file"):
        read_space(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(SearchError, match="expected lines of 'key: range'"):
        read_space(tmp_path / "list.yaml")
