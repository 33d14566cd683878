"""`detr export`, and the commands that take an exported model."""

import json

import pytest
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.commands import main
from modeling_detr.commands.export import build_parser
from modeling_detr.deployment import export_detector


@pytest.fixture(scope="module")
def model(tiny_detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    detector = tiny_detector(num_labels=4, id2label={0: "circle", 1: "square", 2: "triangle", 3: "star"})
    detector.save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    target = tmp_path_factory.mktemp("exported") / "out"
    code = main(["export", str(model), str(target), "--to", "torch", "--data", "shapes", "--max_images", "3"])
    assert code == 0
    return target


def test_the_table_is_printed(model, tmp_path, capsys):
    assert main(["export", str(model), str(tmp_path / "out"), "--to", "torch", "--postprocess", "true"]) == 0
    out = capsys.readouterr().out
    assert "largest difference: boxes" in out
    assert "ms per image" in out
    assert "AP was not compared; to compare it, add --data DATASET" in out


def test_an_exported_model_is_evaluated_like_a_model(model, exported, tmp_path, capsys):
    metrics = []
    for source in (model, exported):
        folder = tmp_path / source.name
        arguments = [
            "evaluate",
            str(source),
            "shapes?val=20",
            "--trust_code",
            "--num_workers",
            "0",
            "--num_pictures",
            "1",
        ]
        assert main([*arguments, "--output_dir", str(folder), "--batch_size", "7"]) == 0
        metrics.append(json.loads((folder / "evaluation.json").read_text())["metrics"])
    assert metrics[0]["ap"] == pytest.approx(metrics[1]["ap"], abs=1e-4)


def test_an_exported_model_predicts_like_a_model(model, exported, tmp_path):
    Image.effect_noise((90, 70), 80).convert("RGB").save(tmp_path / "noise.png")
    predictions = []
    for source in (model, exported):
        folder = tmp_path / f"of_{source.name}"
        arguments = ["predict", str(source), str(tmp_path / "noise.png"), "--threshold", "0", "--trust_code"]
        assert main([*arguments, "--output_dir", str(folder)]) == 0
        predictions.append(json.loads((folder / "predictions.json").read_text())[0]["detections"])
    for one, other in zip(*predictions, strict=True):
        assert one["name"] == other["name"]
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=1e-2)


def test_the_precision_of_an_exported_model_is_fixed(exported, tmp_path, capsys):
    Image.new("RGB", (90, 70)).save(tmp_path / "black.png")
    arguments = ["predict", str(exported), str(tmp_path / "black.png"), "--trust_code", "--dtype", "auto"]
    assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert "was chosen by `detr export --precision`; drop --dtype" in " ".join(capsys.readouterr().err.split())


def test_an_exported_program_that_can_run_code_is_opened_only_if_it_is_trusted(exported, tmp_path, capsys):
    Image.new("RGB", (90, 70)).save(tmp_path / "black.png")
    assert main(["predict", str(exported), str(tmp_path / "black.png")]) == 2
    assert "can run any code when it is opened" in " ".join(capsys.readouterr().err.split())


def test_training_from_an_exported_model_is_an_error(exported, tmp_path, capsys):
    code = main(
        ["train", "finetune", "--model", str(exported), "--data", "shapes", "--output_dir", str(tmp_path / "r")]
    )
    assert code == 2
    assert "is an exported model, which can only predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--precision", "int8_static"], "needs --calibration DATASET, or --data with a training split"),
        (["--fixed_size", "640"], "expected height and width in pixels, such as 480,640"),
        (["--masks_per_image", "0"], "--masks_per_image: got 0, expected at least 1"),
        (["--masks_per_image", "20"], "masks_per_image: got 20, but the model has no masks"),
        (["--operators", "all"], "--operators needs --precision int8_static, got float32"),
        (["--max_ap_drop", "0.1"], "--max_ap_drop needs --data DATASET"),
        (["--to", "torch", "--precision", "int8"], "torch has no precision 'int8', expected one of float32"),
    ],
)
def test_options_that_do_not_fit_are_an_error(arguments, problem, model, tmp_path, capsys):
    try:
        code = main(["export", str(model), str(tmp_path / "out"), *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert problem in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_all_targets_are_choices():
    assert build_parser().parse_args(["m", "t", "--to", "aotinductor"]).to == "aotinductor"


def test_panoptic_quality_of_an_exported_model_is_that_of_the_model(tiny_segmenter, tmp_path):
    names = dict(enumerate(["circle", "square", "triangle", "star", "ground"]))
    model = tiny_segmenter(certain_label=4, id2label=names, num_labels=5, stuff_labels=[4])  # all of it is ground
    model.save_pretrained(tmp_path / "model")
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    processor.save_pretrained(tmp_path / "model")
    export_detector(model, processor, tmp_path / "exported", to="torch")
    metrics = []
    for name in ("model", "exported"):
        arguments = ["evaluate", str(tmp_path / name), "shapes?panoptic=true&size=64&val=6", "--trust_code"]
        arguments += ["--num_workers", "0", "--num_pictures", "0", "--output_dir", str(tmp_path / f"of_{name}")]
        assert main(arguments) == 0
        metrics.append(json.loads((tmp_path / f"of_{name}" / "evaluation.json").read_text()))
    assert metrics[0]["panoptic"]["pq"] > 0.1
    assert metrics[1]["panoptic"]["pq"] == pytest.approx(metrics[0]["panoptic"]["pq"], abs=1e-6)
