"""A run's teacher that is a file: what is used of it, and what the plan says about the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launched_runs import logged
from safetensors.torch import load_file

from modeling_detr.errors_detr import DetrError, PredictionError, RecipeError
from modeling_detr.training.plan import plan
from modeling_detr.training.setup import open_splits
from modeling_detr.training.teacher import load_teacher
from modeling_detr.training.trainer import Trainer


DATA = "shapes?size=64&train=20&val=4"


def truth(index, score=0.8):
    """The annotations of a dataset as if they were predicted."""
    table = index.annotations
    return [
        {
            "image_id": index.images[image].coco_id,
            "category_id": index.categories[label].id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for image, label, (x0, y0, x1, y1) in zip(
            table.image_index.tolist(), table.label.tolist(), table.boxes_xyxy.tolist(), strict=True
        )
    ]


@pytest.fixture
def load(tiny_recipe, tmp_path):
    """Returns a function that writes rows and returns the teacher of a run with them."""

    def teacher(rows, num_queries=100, **keys):
        path = tmp_path / "predictions.json"
        path.write_text(json.dumps(rows))
        recipe = tiny_recipe(teacher=str(path), **keys)
        return load_teacher(recipe, open_splits(recipe)[0], num_queries, Accelerator(cpu=True), resumes=False)

    return teacher


@pytest.fixture
def index(tiny_recipe):
    return open_splits(tiny_recipe())[0]


def test_the_annotations_as_predictions_are_the_annotations(load, index):
    teacher = load(truth(index)[::-1])
    table = index.annotations
    assert np.array_equal(teacher.objects.image_index, table.image_index)
    assert sorted(map(tuple, teacher.objects.boxes_xyxy.tolist())) == sorted(map(tuple, table.boxes_xyxy.tolist()))
    assert np.array_equal(np.bincount(teacher.objects.label), np.bincount(table.label))
    first, second = teacher.notes
    assert first.endswith(f"predictions.json: {len(table)} boxes in 20 of 20 images, mean score 0.80")
    assert second.endswith(f"it finds 100% of the {len(table)} boxes annotated there (IoU 0.5, same class)")


def test_what_cannot_be_used_is_counted_once(load, index):
    good = truth(index)[0]
    wrong = [
        {**good, "score": 0.1},
        {**good, "score": 0.2, "image_id": 999},
        {**good, "image_id": 998},
        {**good, "image_id": "998"},
        {**good, "category_id": 77},
        {**good, "bbox": [70, 5, 10, 10]},
        {**good, "bbox": [5, 5, -3, 10]},
        {**good, "bbox": [5, float("nan"), 3, 10]},
        {**good, "score": float("nan")},
    ]
    teacher = load([*wrong, good])
    assert len(teacher.objects) == 1
    assert teacher.notes[-1].partition("dropped predictions: ")[2] == (
        "2 have NaN or infinite values; 2 have a score of 0, or below teacher_min_score 0.3; "
        "2 are of images that are not trained on (998); "
        "1 are of classes that the dataset does not have (77); 2 have no area in their image"
    )
    with pytest.raises(PredictionError, match="none of its 9 predictions can be used: 2 have NaN") as error:
        load(wrong)
    assert "its category ids (0, 1, 2, 3)" in str(error.value)


def test_boxes_are_clipped_to_their_image(load, index):
    teacher = load([{**truth(index)[0], "bbox": [-10, 50, 30, 40]}])
    assert teacher.objects.boxes_xyxy.tolist() == [[0, 50, 20, 64]]
    assert teacher.objects.area.tolist() == [20 * 14]


def test_the_lowest_score_is_a_choice_and_a_score_of_zero_is_never_used(load, index):
    rows = [{**truth(index)[0], "score": score} for score in (0, 0.1, 0.6)]
    assert len(load(rows).objects) == 1
    assert sorted(load(rows, teacher_min_score=0.0).objects.attributes["score"].tolist()) == [0.1, 0.6]


@pytest.mark.parametrize("score", [87.5, -0.1, float("inf")])
def test_scores_in_percent_are_an_error(load, index, score):
    rows = [*truth(index)[:2], {**truth(index)[0], "score": score}]
    with pytest.raises(PredictionError, match=r"1 score outside 0 to 1, first .* in row 3; write scores as prob"):
        load(rows)


def test_an_image_keeps_its_best_boxes_as_many_as_there_are_queries(load, index):
    row = truth(index)[0]
    rows = [{**row, "score": score} for score in np.linspace(0.4, 0.9, 11).tolist()]
    teacher = load([*rows, *truth(index)[-1:]], num_queries=4)
    assert sorted(teacher.objects.attributes["score"].tolist())[:4] == pytest.approx([0.75, 0.8, 0.8, 0.85])
    assert "7 are more than the 4 best of their image" in teacher.notes[-1]


def test_classes_that_are_shifted_by_one_are_a_warning(load, index):
    rows = [{**row, "category_id": (row["category_id"] + 1) % 4} for row in truth(index)]
    assert any(
        "WARNING: it finds 0% of the" in note and note.endswith("its bbox [x, y, width, height]?")
        for note in load(rows).notes
    )


def test_boxes_given_by_their_corners_are_a_warning(load, index):
    rows = [
        {**row, "bbox": [x, y, x + width, y + height]} for row in truth(index) for x, y, width, height in [row["bbox"]]
    ]
    assert any("of its boxes reach beyond their image" in note for note in load(rows).notes)
    assert not any("reach beyond" in note for note in load(truth(index)).notes)


def test_masks_of_a_file_are_not_used_and_the_plan_says_so(load, index):
    rows = [{**row, "segmentation": {"size": [64, 64], "counts": "x"}} for row in truth(index)]
    assert any("only the boxes of its predictions are used, not the masks" in note for note in load(rows).notes)


def test_options_of_a_teacher_need_one(tiny_recipe):
    with pytest.raises(RecipeError, match=r"teacher_weight: needs a teacher; give one \(teacher='FILE_OR_MODEL'\)"):
        tiny_recipe(teacher_weight=2.0)
    with pytest.raises(RecipeError, match="teacher_min_score"):
        tiny_recipe(teacher="a.json", teacher_min_score=1.0)


def run_of(tiny_recipe, tmp_path, index, name, **keys):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(truth(index)))
    return tiny_recipe(**{"teacher": str(path), "output_dir": str(tmp_path / name), "lr_schedule": "step", **keys})


def weights_of(recipe):
    (newest,) = sorted(Path(recipe.run_dir, "checkpoints").iterdir())[-1:]
    return load_file(newest / "model.safetensors")


def test_a_run_learns_from_the_teacher_and_exports_a_plain_detr(tiny_recipe, tmp_path, index):
    recipe = run_of(tiny_recipe, tmp_path, index, "run", ema_decay=0.9, denoising_groups=2, epochs=1)
    trainer = Trainer.from_recipe(recipe)
    assert "predictions.json: " in plan(trainer.run)
    trainer.train()
    (entry,) = [entry for entry in logged(recipe.run_dir) if entry["kind"] == "epoch"]
    assert min(entry[f"loss_{name}_teacher"] for name in ("ce", "bbox", "giou")) > 0
    assert not any("teacher" in name for name in entry if name.startswith("eval"))
    exported = load_file(recipe.run_dir / "model" / "model.safetensors")
    assert {*exported} == {*trainer.run.weights.detector.state_dict()}
    assert "teacher" not in (recipe.run_dir / "model" / "config.json").read_text()


def test_a_resumed_run_continues_exactly(tiny_recipe, tmp_path, index):
    whole, resumed = (run_of(tiny_recipe, tmp_path, index, name) for name in ("whole", "resumed"))
    Trainer.from_recipe(whole).train()
    Trainer.from_recipe(run_of(tiny_recipe, tmp_path, index, "resumed", epochs=1)).train()
    Trainer.from_recipe(run_of(tiny_recipe, tmp_path, index, "resumed", resume="auto")).train()
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], value), name


def test_tasks_with_masks_learn_from_boxes(tiny_recipe, tmp_path, index):
    model = {
        **tiny_recipe().model_config,
        "d_model": 128,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "out_indices": None,
    }
    recipe = run_of(tiny_recipe, tmp_path, index, "masks", task="instance", model_config=model, max_steps=2, epochs=1)
    Trainer.from_recipe(recipe).train()
    (entry,) = [entry for entry in logged(recipe.run_dir) if entry["kind"] == "epoch"]
    assert entry["loss_mask"] > 0
    assert entry["loss_bbox_teacher"] > 0


def test_a_missing_file_is_an_error_before_training(tiny_recipe, tmp_path):
    with pytest.raises(DetrError, match="no such file"):
        Trainer.from_recipe(tiny_recipe(teacher=str(tmp_path / "none.json")))
