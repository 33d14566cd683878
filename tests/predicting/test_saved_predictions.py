"""Predictions of `detr predict` that `detr evaluate --predictions` scores."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands.evaluate import main as evaluate
from modeling_detr.commands.predict import main as predict
from modeling_detr.data import open_dataset
from modeling_detr.errors_detr import FileMissingError, FileReadError, PredictionError
from modeling_detr.predicting.saved_predictions import SavedPredictions


DATA = "shapes?train=2&val=6&size=64"


@pytest.fixture
def model(tiny_detector: Callable[..., DetrForObjectDetection], tmp_path: Path) -> Path:
    """A model with the classes of the shapes."""
    names = {label: category.name for label, category in enumerate(open_dataset(DATA).categories)}
    tiny_detector(num_labels=len(names), id2label=names).save_pretrained(tmp_path / "model")
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(model: Path, out: Path, *options: str) -> int:
    arguments = [str(model), "--data", DATA, "--split", "val", "--output_dir", str(out), "--device", "cpu"]
    return predict([*arguments, "--threshold", "0", "--images_per_part", "2", *options])


def test_parts_have_the_metrics_of_the_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(model, out, "--shard", "1/2") == 0
    chosen = [str(model), DATA, "--split", "val", "--bootstrap", "0", "--num_pictures", "0"]
    with pytest.raises(PredictionError, match=r"1 of 3 parts are missing: part-0000000002-0000000003\.parquet; .*1/1"):
        evaluate([*chosen, "--predictions", str(out), "--output_dir", str(tmp_path / "saved")])
    assert run(model, out, "--shard", "2/2") == 0
    evaluate([*chosen, "--predictions", str(out), "--output_dir", str(tmp_path / "saved")])
    assert "AP needs all predictions" not in capsys.readouterr().err
    evaluate([*chosen, "--output_dir", str(tmp_path / "now"), "--batch_size", "1", "--num_workers", "0"])
    saved, now = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("saved", "now"))
    assert len(now) == 6 * 7
    for rows in (saved, now):
        rows.sort(key=lambda row: (row["image_id"], -row["score"]))
    for row, expected in zip(saved, now, strict=True):
        assert row["bbox"] == pytest.approx(expected.pop("bbox"), abs=0.1)  # pixels; it resizes by itself
        assert row["score"] == pytest.approx(expected.pop("score"), abs=1e-3)
        assert {name: row[name] for name in expected} == expected
    report = json.loads((tmp_path / "saved" / "evaluation.json").read_text())
    assert report["num_images"] == 6
    assert report["metrics"].keys() == json.loads((tmp_path / "now/evaluation.json").read_text())["metrics"].keys()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config, indent=4))
    with pytest.raises(PredictionError, match="has the predictions of another model; pass that model"):
        evaluate([*chosen, "--predictions", str(out), "--output_dir", str(tmp_path / "saved")])


def test_what_does_not_fit_the_dataset_is_an_error(model: Path, tmp_path: Path) -> None:
    index = open_dataset(DATA, split="val")
    with pytest.raises(FileMissingError, match=r"has no predictions\.parquet; expected the --output_dir of"):
        SavedPredictions(tmp_path)
    assert run(model, tmp_path / "out", "--shard", "1/1") == 0
    saved = SavedPredictions(tmp_path / "out" / "predictions.parquet")
    assert sorted(at for at, _ in saved.of_images(index)) == [*range(6)]
    with pytest.raises(PredictionError, match=r"has no predictions for 2 of 8 images: .*; predict for the dataset"):
        list(saved.of_images(open_dataset(DATA)))
    with pytest.raises(PredictionError, match=r"has '.*' as class \d, which is x\d+ in the model; pass the model"):
        list(saved.of_images(index, [f"x{number}" for number in range(99)]))
    first, second, _ = sorted(saved.table.iterdir())
    shutil.copy(first, saved.table / "part-of-another.parquet")
    assert sorted(at for at, _ in saved.of_images(index)) == [*range(6)]
    content = second.read_bytes()
    shutil.copy(first, second)
    with pytest.raises(PredictionError, match="has two rows for"):
        list(saved.of_images(index))
    second.write_bytes(content)
    (saved.table / "part-0000000002-0000000003.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(FileReadError, match=r"part-0000000002-0000000003\.parquet: cannot be read"):
        list(saved.of_images(index))
    (tmp_path / "out" / "parts.json").write_text("[]")
    with pytest.raises(PredictionError, match=r"parts\.json: does not say how many images there are"):
        SavedPredictions(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "2"], "--batch_size: has no effect with --predictions"),
        (["--task", "instance"], "--task: got instance with --predictions, which are boxes"),
    ],
)
def test_options_about_predicting_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(["no_model", "no_data", "--predictions", "out", *options])
