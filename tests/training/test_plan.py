from modeling_detr.training.plan import plan
from modeling_detr.training.setup import prepare_run


def test_classes_without_a_box_and_single_boxes_are_named(tiny_recipe):
    text = plan(prepare_run(tiny_recipe(data="shapes?size=64&train=1&val=1&seed=5", batch_size=1)))  # one square
    assert "shapes[train]: 1 image, 1 box\n" in text
    assert (
        "note      classes without a box to train on, which cannot be learnt: circle, triangle, star\n" in text + "\n"
    )


def test_the_image_size_is_shown(tiny_recipe):
    text = plan(prepare_run(tiny_recipe()))
    assert "sizes     shortest edge 64, longest edge 64 pixels; augmentation 'light'\n" in text


def test_mosaics_are_shown_with_the_epochs_that_have_them(tiny_recipe):
    def line(**changes):
        lines = plan(prepare_run(tiny_recipe(**changes))).splitlines()
        return next((line for line in lines if line.startswith("mosaics")), None)

    assert line() is None
    assert line(mosaic_probability=0.5, epochs=30) == "mosaics   50% of the samples, until epoch 26 of 30"
    assert line(mosaic_probability=1.0, close_mosaic_share=0.0) == "mosaics   100% of the samples, in all epochs"
    expected = "mosaics   none: close_mosaic_share leaves no epoch for them"
    assert line(mosaic_probability=0.5, close_mosaic_share=0.9, epochs=2) == expected


def test_a_model_that_cannot_become_transformers_own_is_named_before_training(tiny_recipe):
    recipe = tiny_recipe(model_config={**tiny_recipe().model_config, "position_temperature": 20})
    assert "cannot convert this model (position_temperature 20 (only 10,000), " in plan(prepare_run(recipe))
