import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launched_runs import start_prepared
from PIL import Image

from modeling_detr import DetrForObjectDetection, DetrForSegmentation, DetrTorchvisionImageProcessor
from modeling_detr.commands.evaluate import main, resize_transform
from modeling_detr.data import open_dataset, read_panoptic_predictions
from modeling_detr.data.splits import evaluation_images
from modeling_detr.evaluation.coco_engines import choose_engine
from modeling_detr.evaluation.evaluators.panoptic import PanopticEvaluator
from modeling_detr.structures_detr import UNSPLIT
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.setup import open_splits


@pytest.fixture
def model_folder(tiny_detector: Callable[..., DetrForObjectDetection], tmp_path: Path) -> Path:
    tiny_detector(num_labels=3, id2label={0: "star", 1: "ring", 2: "disc"}).save_pretrained(tmp_path / "model")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def segmenter_folder(tiny_segmenter: Callable[..., DetrForSegmentation], tmp_path: Path) -> Path:
    """A model of the shapes and the ground that predicts ground everywhere."""
    names = {0: "circle", 1: "square", 2: "triangle", 3: "star", 4: "ground"}
    model = tiny_segmenter(certain_label=4, num_queries=5, id2label=names, stuff_labels=[4])
    model.save_pretrained(tmp_path / "model")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def dataset(folder: Path, names: tuple[str, str] = ("disc", "star")) -> Path:
    """A COCO folder of five images, two of them for validation."""
    for split, image_ids in (("train", (1, 2, 3)), ("val", (104, 105))):
        (folder / split).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for image_id in image_ids:
            pixels = np.random.default_rng(image_id).integers(0, 256, (60, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{image_id}.png")
        truth = {
            "images": [{"id": n, "file_name": f"{n}.png", "height": 60, "width": 90} for n in image_ids],
            "categories": [{"id": 7, "name": names[0]}, {"id": 9, "name": names[1]}],
            "annotations": [
                {
                    "id": n,
                    "image_id": n,
                    "category_id": (7, 9)[n % 2],
                    "bbox": [5, 5, 30, 30],
                    "area": 900,
                    "iscrowd": 0,
                }
                for n in image_ids
            ],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
    return folder


def test_metrics_and_predictions_are_written(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    arguments = [str(model_folder), str(data), "--output_dir", str(out), "--num_workers", "0", "--batch_size", "1"]
    assert main(arguments) == 0
    report = json.loads((out / "evaluation.json").read_text())
    assert report["errors"]["ap50"] == report["metrics"]["ap50"]
    assert report["num_images"] == 2
    assert 0 <= report["metrics"]["ap"] <= 1
    assert {name: one["num_boxes"] for name, one in report["metrics"]["per_class"].items()} == {
        "star": 1,
        "ring": 0,
        "disc": 1,
    }
    assert report["losses"]["loss"] > 0
    predictions = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in predictions} <= {104, 105}
    assert {row["category_id"] for row in predictions} <= {7, 9}  # none of the model's "ring"
    assert {"evaluation.md", "evaluation.html"} <= {path.name for path in out.iterdir()}
    printed = capsys.readouterr().out
    assert "AP50" in printed
    assert f"COCO metrics: computed by {choose_engine()} " in printed


def test_the_page_names_model_data_and_command_and_shows_the_worst_images(model_folder: Path, tmp_path: Path) -> None:
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    arguments = [str(model_folder), str(data), "--split", "train+val", "--num_workers", "0", "--output_dir", str(out)]
    assert main(arguments) == 0
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    for name, value in (("model", model_folder), ("data", data)):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "<span>detr</span> <span>evaluate</span>" in page
    assert "transformers" in page
    assert "<h2>Images with the most errors</h2>" in page
    assert page.count("data:image/webp") == 10  # all of them are wrong, and so may be their labels
    assert "Training curves" not in page
    assert main([*arguments, "--num_pictures", "2"]) == 0
    assert (out / "evaluation.html").read_text(encoding="utf-8").count("data:image/webp") == 4
    assert main([*arguments, "--num_pictures", "0"]) == 0
    assert "most errors" not in (out / "evaluation.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_has_its_training_curves(model_folder: Path, tmp_path: Path) -> None:
    data, run = dataset(tmp_path / "data"), tmp_path / "run"
    shutil.copytree(model_folder, run / "model")
    (run / "recipe.yaml").write_text(f"data: {data}\n")
    entries = [{"kind": "epoch", "epoch": epoch, "step": epoch, "loss": 3.0 - epoch} for epoch in (1, 2)]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for model in (run, run / "model"):
        arguments = [str(model), str(data), "--num_workers", "0", "--num_pictures", "0"]
        assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
        page = (tmp_path / "out/evaluation.html").read_text(encoding="utf-8")
        assert "<h2>Training curves</h2>" in page
        assert "run, epochs 1 to 2" in page
        assert page.count("data:image/webp") == 1


def test_a_split_can_be_chosen(model_folder: Path, tmp_path: Path) -> None:
    arguments = [str(model_folder), str(dataset(tmp_path / "data")), "--split", "train+val"]
    assert main([*arguments, "--output_dir", str(tmp_path / "out"), "--num_workers", "0"]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_images"] == 5


def test_a_task_that_the_model_cannot_do_is_named_before_the_classes_are_compared(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="predicts boxes only; the task panoptic needs a segmentation model"):
        main([str(model_folder), "shapes?size=64&train=0&val=2&panoptic=true", "--task", "panoptic"])


def test_thresholds_that_cannot_be_written_are_an_error_before_the_evaluation(model_folder: Path) -> None:
    (model_folder / "thresholds.json").mkdir()
    with pytest.raises(OSError, match=r"thresholds\.json: cannot be written"):
        main([str(model_folder), "no/such/data", "--save_thresholds"])


def test_what_training_held_out_can_be_evaluated_again(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    recipe = Recipe(data=str(folder), eval_fraction=0.4, seed=5)
    chosen = evaluation_images(open_dataset(folder), None, 0.4, 5)
    assert [image.id for image in chosen.images] == [image.id for image in open_splits(recipe)[1].images]
    assert len(chosen) == 1
    undivided = dataclasses.replace(open_dataset(folder), splits={UNSPLIT: np.arange(5)})
    assert len(evaluation_images(undivided, None, 0.0, 5)) == 5
    assert len(evaluation_images(undivided, None, 0.4, 5)) == 2


def test_without_a_split_the_images_that_the_run_held_out_are_scored(model_folder, tmp_path, capsys):
    data = dataset(tmp_path / "data")
    run = tmp_path / "run"
    shutil.copytree(model_folder, run / "model")
    recipe = Recipe(data=str(data), train_split="train+val", eval_fraction=0.4, seed=5)
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    held_out = {image.id for image in open_splits(recipe)[1].images}
    assert len(held_out) == 2

    def scored(model: Path, *arguments: str) -> set[int]:
        out = tmp_path / "out"
        assert main([str(model), str(data), *arguments, "--output_dir", str(out), "--num_workers", "0"]) == 0
        return {row["image_id"] for row in json.loads((out / "predictions.json").read_text())}

    assert scored(run) == scored(run / "model") == held_out
    assert f"2 images (held out by {run / 'recipe.yaml'} (eval_fraction 0.4); all images: --split all)" in (
        capsys.readouterr().out
    )
    assert len(scored(run, "--split", "all")) == 5
    (run / "recipe.yaml").write_text(Recipe(data=str(data), eval_split="train").to_yaml())
    assert scored(run) == {image.id for image in open_dataset(data).split("train").images}


def test_dataset_errors_are_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    folder = str(dataset(tmp_path / "data"))
    for arguments, message in (
        (["--split", "vall"], r"has no split 'vall'"),
        (["--eval_fraction", "1"], "eval_fraction: got 1, expected at least 0 and below 1"),
        (["--data_format", "voc"], "voc|VOC|xml"),
        (["--batch_size", "0"], "--batch_size: got 0, expected at least 1"),
        (
            ["--output_dir", str(tmp_path / "data/annotations/instances_val.json")],
            "instances_val.json away, which is a file",
        ),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            main(["no/such/model", folder, *arguments])
    only_train = dataclasses.replace(open_dataset(folder), splits={"train": np.arange(5)})
    with pytest.raises(ValueError, match=r"eval_fraction=0\.1"):
        evaluation_images(only_train, None, 0.0, 42)


@pytest.mark.slow
def test_two_processes_give_the_same_segments_as_one(segmenter_folder: Path, tmp_path: Path) -> None:
    arguments = [str(segmenter_folder), "shapes?size=64&train=0&val=5", "--batch_size", "2"]
    assert main([*arguments, "--output_dir", str(tmp_path / "one"), "--num_workers", "0"]) == 0
    two = [*arguments, "--output_dir", tmp_path / "two", "--num_workers", 0]
    run = start_prepared(tmp_path / "printed", *two, command="evaluate", processes=2)
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 0, printed
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert two["num_images"] == one["num_images"] == 5
    for figures in ("metrics", "mask_metrics", "panoptic"):
        assert two[figures] == one[figures]
    assert one["panoptic"]["pq"] > 0
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for file in ("predictions.json", "predictions_panoptic.json"):
        found = [json.loads((tmp_path / name / file).read_text()) for name in ("one", "two")]
        assert len(found[0]) == len(found[1]) > 0
    assert len([*(tmp_path / "two" / "predictions_panoptic").iterdir()]) == 5


@pytest.mark.slow
def test_two_processes_detect_the_same_as_one_for_any_image_sizes(model_folder: Path, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    truth = json.loads((folder / "annotations/instances_val.json").read_text())
    for number in range(9):  # with the two that are there, eleven images in six batches, padded by their company
        height, width = 40 + 9 * (number * 4 % 9), 60 + 7 * (number * 5 % 9)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val" / f"{number}.png")
        truth["images"].append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = {"category_id": 7, "bbox": [3 * number, 4, 30, 30], "area": 900, "iscrowd": 0}
        truth["annotations"].append({"id": number, "image_id": number, **box})
    (folder / "annotations/instances_val.json").write_text(json.dumps(truth))
    arguments = [str(model_folder), str(folder), "--batch_size", "2", "--num_workers", "0"]
    assert main([*arguments, "--output_dir", str(tmp_path / "one")]) == 0
    two = [*arguments, "--output_dir", tmp_path / "two"]
    run = start_prepared(tmp_path / "printed", *two, command="evaluate", processes=2)
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 0, printed
    one, two = (
        sorted(json.loads((tmp_path / name / "predictions.json").read_text()), key=lambda row: row["image_id"])
        for name in ("one", "two")
    )
    assert {row["image_id"] for row in one} == {*range(9), 104, 105}
    assert [(row["image_id"], row["category_id"]) for row in two] == [
        (row["image_id"], row["category_id"]) for row in one
    ]
    for key in ("score", "bbox"):
        np.testing.assert_allclose([row[key] for row in two], [row[key] for row in one], rtol=0, atol=1e-5)
    ap, expected = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["metrics"]["ap"] for name in ("two", "one")
    )
    assert ap == pytest.approx(expected, abs=1e-4)


def test_a_class_that_the_model_lacks_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", ("disc", "stars"))
    with pytest.raises(ValueError, match=r"classes that the model does not have: stars \(did you mean 'star'\?\)"):
        main([str(model_folder), str(data), "--output_dir", str(tmp_path / "out")])


def test_a_processor_that_distorts_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got size {'height': 64, 'width': 64}, expected shortest_edge"):
        resize_transform(DetrTorchvisionImageProcessor(size=(64, 64)))
    assert resize_transform(DetrTorchvisionImageProcessor(do_resize=False)) is None


def test_a_segmentation_model_is_scored_on_masks_and_segments(
    segmenter_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = "shapes?size=64&train=0&val=4"
    assert main([str(segmenter_folder), data, "--output_dir", str(out), "--num_workers", "0"]) == 0

    assert "Panoptic quality:" in capsys.readouterr().out
    report = json.loads((out / "evaluation.json").read_text())
    assert report["panoptic"]["per_class"]["ground"]["true_positives"] == 4
    assert report["mask_metrics"]["ap"] == 0
    assert "loss_dice" in report["losses"]
    assert json.loads((out / "predictions_masks.json").read_text()) == []  # stuff is no instance
    assert json.loads((out / "predictions.json").read_text())
    judge = PanopticEvaluator(open_dataset(data, "val", task="panoptic"))
    for position, found in read_panoptic_predictions(out / "predictions_panoptic.json", judge.index):
        judge.update([position], [found])
    assert judge.compute().as_dict() == report["panoptic"]


def test_the_precision_is_in_the_report(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = dataset(tmp_path / "data"), tmp_path / "out"
    arguments = [str(model_folder), str(data), "--num_workers", "0", "--dtype", "bfloat16", "--output_dir", str(out)]
    assert main(arguments) == 0
    assert "computing in bfloat16" in capsys.readouterr().out
    assert "<dt>precision</dt><dd>bfloat16</dd>" in (out / "evaluation.html").read_text(encoding="utf-8")
