import json
from pathlib import Path

import pytest
from PIL import Image

from modeling_detr.commands import run_command
from modeling_detr.commands.compare import main


def dataset(folder: Path) -> Path:
    """Four images with an object each."""
    (folder / "val").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in range(1, 5):
        Image.new("RGB", (90, 60), "grey").save(folder / "val" / f"{number}.png")
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 60, "width": 90} for n in range(1, 5)],
        "categories": [{"id": 7, "name": "disc"}, {"id": 9, "name": "star"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 7, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
            for n in range(1, 5)
        ],
    }
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(truth))
    return folder


def results(path: Path, images: list[int]) -> Path:
    """Predictions that find the object in some images."""
    rows = [{"image_id": n, "category_id": 7, "bbox": [5, 5, 30, 30], "score": 0.9} for n in images]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two results files, of which the second is worse, and the dataset."""
    good, bad = results(tmp_path / "good.json", [1, 2, 3, 4]), results(tmp_path / "bad.json", [1, 2])
    return [str(good), str(bad), "--data", str(dataset(tmp_path / "data"))]


def test_two_results_files_are_compared(files, tmp_path, capsys):
    assert main([*files, "--output_dir", str(tmp_path / "out"), "--bootstrap", "20"]) == 0
    printed = capsys.readouterr().out
    assert "AP    1.000 -> 0.505  -0.495" in printed
    assert "0 images better, 2 worse" in printed
    (content,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["differences"]["ap"]["value"] == pytest.approx(-0.495, abs=1e-3)
    assert (tmp_path / "out" / "comparison.html").read_text().count("<figure") == 2


@pytest.mark.parametrize(("limit", "code"), [("0.4", 1), ("0.6", 0)])
def test_a_fall_of_ap_is_an_exit_code(files, tmp_path, capsys, limit, code):
    arguments = [*files, "--output_dir", str(tmp_path / "out"), "--bootstrap", "5", "--fail_if_worse", limit]
    assert main(arguments) == code
    assert ("AP fell by 0.4950, more than --fail_if_worse 0.4" in capsys.readouterr().err) == bool(code)


def test_a_gain_is_no_failure(files, tmp_path):
    good, bad, *rest = files
    arguments = [bad, good, *rest, "--output_dir", str(tmp_path / "out"), "--bootstrap", "5", "--fail_if_worse", "0"]
    assert main(arguments) == 0


def test_predictions_of_other_images_are_an_error(files, tmp_path, capsys):
    other = results(tmp_path / "other.json", [77])
    assert run_command("compare", [files[0], str(other), *files[2:], "--output_dir", str(tmp_path / "out")]) == 2
    assert "has no predictions for the images of" in capsys.readouterr().err


def test_one_model_alone_is_an_error(files, capsys):
    with pytest.raises(SystemExit):
        main([files[0], *files[2:]])
    assert "expected at least two models or reports" in capsys.readouterr().err


def test_predictions_for_some_of_the_images_and_for_others_are_told(files, tmp_path, capsys):
    good, bad, *rest = files
    results(Path(bad), [1, 2, 77])
    assert main([good, bad, *rest, "--output_dir", str(tmp_path / "out"), "--bootstrap", "5"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"{bad}: 1 prediction for other images left out" in told
    assert f"{bad}: has predictions for 2 of 4 images; in the others it finds nothing" in told
    assert good not in told


def test_a_report_on_other_images_is_told(files, tmp_path, capsys):
    report = tmp_path / "report"
    report.mkdir()
    results(report / "predictions.json", [1, 2, 3, 4])
    (report / "evaluation.json").write_text(json.dumps({"dataset": "data[test]"}))
    assert main([files[0], str(report), *files[2:], "--output_dir", str(tmp_path / "out"), "--bootstrap", "5"]) == 0
    assert "made on data[test]; --split" in capsys.readouterr().err


def test_images_without_objects_are_an_error(files, tmp_path, capsys):
    labels = tmp_path / "data" / "annotations" / "instances_val.json"
    labels.write_text(json.dumps({**json.loads(labels.read_text()), "annotations": []}))
    assert run_command("compare", [*files, "--output_dir", str(tmp_path / "out"), "--fail_if_worse", "0"]) == 2
    assert "has no objects to find" in capsys.readouterr().err


@pytest.mark.parametrize("draws", ["0", "100000"])
def test_numbers_of_draws_that_give_no_interval_are_an_error(files, capsys, draws):
    assert run_command("compare", [*files, "--bootstrap", draws]) == 2
    assert f"--bootstrap: got {draws}, expected 1 to 10,000" in capsys.readouterr().err
