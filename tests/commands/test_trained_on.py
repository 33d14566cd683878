"""The recipe beside a model, which may come from somebody else."""

import pytest

from modeling_detr.commands.trained_on import images_evaluated_in_training


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
