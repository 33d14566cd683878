"""Training images that cannot be read: skipped, named, counted, and bounded."""

from pathlib import Path

import pytest

from modeling_detr.data import open_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.errors_detr import DatasetReadError
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.preflight import preflight
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer


@pytest.fixture
def folder(tmp_path) -> Path:
    """A YOLO dataset with 60 training images, of which `cut` truncates some."""
    convert_dataset(open_dataset("shapes?size=32&train=60&val=4"), tmp_path / "data", "yolo")
    return tmp_path / "data"


def cut(folder: Path, number: int) -> list[Path]:
    """Truncate training images, as a copy that was interrupted does."""
    images = sorted((folder / "images/train").iterdir())[3 : 3 + number]
    for image in images:
        content = image.read_bytes()
        image.write_bytes(content[: len(content) // 2])
    return images


def losses_of(run_dir: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(run_dir / "log.jsonl") if entry["kind"] == "step"]


def test_training_continues_without_an_image_that_cannot_be_read(tiny_recipe, folder, tmp_path, capsys):
    (image,) = cut(folder, 1)
    for num_workers in (0, 2):
        run_dir = tmp_path / str(num_workers)
        recipe = tiny_recipe(data=str(folder), output_dir=str(run_dir), num_workers=num_workers, log_every_steps=1)
        trainer = Trainer.from_recipe(recipe)
        trainer.train()
        assert trainer.state.epoch == 2
        (warning,) = [entry["text"] for entry in read_log(run_dir / "log.jsonl") if entry["kind"] == "warning"]
        assert warning.startswith(f"{image}: the image cannot be decoded (")
        assert warning.count("--fix") == 1
        assert f"training continues without it (1 of 60 images); detr data check {folder} --fix OUT" in warning
        assert f"warning: {image}: " in capsys.readouterr().out
    assert losses_of(tmp_path / "0") == losses_of(tmp_path / "2")


def test_the_preflight_finds_such_an_image_and_goes_on(tiny_recipe, folder):
    (image,) = cut(folder, 1)
    run = prepare_run(tiny_recipe(data=str(folder)))
    assert any("training images after the transforms" in line for line in preflight(run))
    assert [str(image) in reason for reason in run.loaders.train.unreadable.values()] == [True]


def test_many_unreadable_images_end_the_run_with_a_checkpoint(tiny_recipe, folder):
    cut(folder, 2)
    recipe = tiny_recipe(data=str(folder), batch_size=2)
    with pytest.raises(DatasetReadError, match=r"2 of 60 images cannot be read, more than 1%: .*; restore them, or"):
        Trainer.from_recipe(recipe).train()
    assert any(Path(recipe.output_dir, "checkpoints").iterdir())


def test_an_unreadable_image_ends_the_run_on_request(tiny_recipe, folder):
    (image,) = cut(folder, 1)
    with pytest.raises(DatasetReadError, match=image.name):
        Trainer.from_recipe(tiny_recipe(data=str(folder), unreadable_images="error")).train()


def test_a_dataset_whose_disk_is_gone_is_an_error_at_once(tiny_recipe, folder):
    trainer = Trainer.from_recipe(tiny_recipe(data=str(folder)))
    (folder / "images").rename(folder / "elsewhere")
    with pytest.raises((DatasetReadError, OSError), match=r"images/train/"):
        trainer.train()
