"""What may change between the start of a run and its resume."""

import json

import pytest
import timm
from safetensors.torch import save_file

from modeling_detr.errors_detr import CheckpointError, RecipeError
from modeling_detr.training.checkpointing import CHECKPOINT_PARTS, TEXT, CheckpointPart
from modeling_detr.training.trainer import Trainer


CLASSES = "shapes?size=64&train=8&val=4&classes="


@pytest.fixture
def model_of_swapped_classes(tiny_recipe, tmp_path):
    """The folder of a run whose model has the same two classes in reverse order."""
    first = tiny_recipe(data=f"{CLASSES}star,circle", output_dir=str(tmp_path / "first"), max_steps=1)
    Trainer.from_recipe(first).train()
    return str(first.run_dir)


@pytest.mark.parametrize("change", [{"head_init": "by_name"}, {"label_mapping": {"star": "star"}}])
def test_a_resume_with_reordered_classes_is_refused(tiny_recipe, model_of_swapped_classes, change):
    start = {"head_init": "by_name"} if "label_mapping" in change else {"head_init": "fresh"}
    keys = {"data": f"{CLASSES}circle,star", "model": model_of_swapped_classes, "model_config": {}, "max_steps": 1}
    Trainer.from_recipe(tiny_recipe(**keys, **start)).train()
    Trainer.from_recipe(tiny_recipe(**keys, **start, resume="auto"))
    with pytest.raises(ValueError, match=r"label 0 was .* and is now|does not fit this recipe: "):
        Trainer.from_recipe(tiny_recipe(**keys, **start | change, resume="auto"))


def test_classes_that_changed_order_on_disk_are_refused_although_every_key_is_the_same(
    tiny_recipe, tmp_path, coco_folder
):
    keys = {"data": str(coco_folder), "max_steps": 1, "batch_size": 1, "eval_fraction": 0.5}
    Trainer.from_recipe(tiny_recipe(**keys)).train()
    Trainer.from_recipe(tiny_recipe(**keys, resume="auto"))
    rename_classes(coco_folder, {"cat": "dog", "dog": "cat"})
    with pytest.raises(ValueError, match=r"step_00000001: the classes have changed since it was written: label 0 was"):
        Trainer.from_recipe(tiny_recipe(**keys, resume="auto"))


def test_a_checkpoint_of_an_older_version_without_its_classes_is_resumed(tiny_recipe):
    Trainer.from_recipe(tiny_recipe(max_steps=1)).train()
    (state,) = tiny_recipe().run_dir.glob("checkpoints/*/state.json")
    content = json.loads(state.read_text())
    assert content["state"].pop("id2label")
    state.write_text(json.dumps(content))
    trainer = Trainer.from_recipe(tiny_recipe(max_steps=2, resume="auto"))
    assert trainer.state.step == 1
    assert trainer.state.id2label == trainer.run.train_index.id2label


def rename_classes(folder, names):
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category["name"] = names[category["name"]]
    path.write_text(json.dumps(content))


@pytest.fixture
def coco_folder(tmp_path):
    """A COCO dataset of four images with two classes."""
    from PIL import Image

    folder = tmp_path / "coco"
    folder.mkdir()
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(folder / name)
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 64, "height": 64} for number, name in enumerate(names, 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + number % 2,
                "bbox": [8, 8, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            for number in range(1, 5)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_an_older_checkpoint_takes_its_classes_from_the_exported_model(tiny_recipe, coco_folder):
    keys = {"data": str(coco_folder), "max_steps": 1, "batch_size": 1, "eval_fraction": 0.5}
    Trainer.from_recipe(tiny_recipe(**keys)).train()
    (state,) = tiny_recipe().run_dir.glob("checkpoints/*/state.json")
    content = json.loads(state.read_text())
    del content["state"]["id2label"], content["version"]
    state.write_text(json.dumps(content))
    Trainer.from_recipe(tiny_recipe(**keys, resume="auto"))
    rename_classes(coco_folder, {"cat": "dog", "dog": "cat"})
    with pytest.raises(CheckpointError, match="label 0 was"):
        Trainer.from_recipe(tiny_recipe(**keys, resume="auto"))


def test_a_changed_task_is_refused_before_the_model_is_built(tiny_recipe):
    Trainer.from_recipe(tiny_recipe(max_steps=1)).train()
    with pytest.raises(CheckpointError, match="does not fit this recipe: task changed from detection to instance"):
        Trainer.from_recipe(tiny_recipe(max_steps=1, task="instance", resume="auto"))


def test_a_part_that_is_required_now_and_missing_from_a_checkpoint_leaves_it_in_place(tiny_recipe, monkeypatch):
    Trainer.from_recipe(tiny_recipe(max_steps=1)).train()
    part = CheckpointPart(lambda run: "text", lambda run, text: None, TEXT, required=True)
    monkeypatch.setitem(CHECKPOINT_PARTS, "new.txt", part)
    with pytest.raises(CheckpointError, match=r"step_00000001 \(new.txt is missing\)"):
        Trainer.from_recipe(tiny_recipe(max_steps=1, resume="auto"))
    assert (tiny_recipe().run_dir / "checkpoints/step_00000001").is_dir()


def test_an_output_dir_that_is_a_file_is_named_before_anything_is_built(tiny_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"output_dir: .*file is a file; choose a folder for the run"):
        Trainer.from_recipe(tiny_recipe(output_dir=str(tmp_path / "file")))


def test_backbone_weights_are_a_file_by_its_bare_name_and_are_not_needed_to_resume(tiny_recipe, tmp_path, monkeypatch):
    """The name of the file starts like that of a timm model with a tag."""
    monkeypatch.chdir(tmp_path)
    options = tiny_recipe().model_config["backbone_kwargs"]
    save_file(timm.create_model("resnet10t", **options).state_dict(), "resnet10t.safetensors")
    keys = {"backbone_weights": "resnet10t.safetensors", "epochs": 1}
    Trainer.from_recipe(tiny_recipe(**keys, max_steps=1)).train()
    (tmp_path / "resnet10t.safetensors").unlink()
    assert Trainer.from_recipe(tiny_recipe(**keys, max_steps=2, resume="auto")).state.step == 1
