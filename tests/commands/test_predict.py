import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launched_runs import start_prepared
from noise_images import picture
from PIL import Image
from pycocotools import mask as coco_mask

from modeling_detr import DetrForObjectDetection, DetrForSegmentation, DetrTorchvisionImageProcessor
from modeling_detr.commands import launching, run_command
from modeling_detr.commands.predict import main
from modeling_detr.data import open_dataset
from modeling_detr.errors_detr import ModelError, OutputError, OutputExistsError
from modeling_detr.predicting import Detector
from modeling_detr.predicting.outputs import OUTPUTS
from modeling_detr.saved_thresholds import Calibration, SavedThresholds


def test_pictures_and_a_json_are_written(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    picture(folder / "a.jpg")
    picture(folder / "sub" / "a.jpg", (40, 50))
    picture(folder / "b.bmp")
    (folder / "notes.txt").write_text("no image")
    single = picture(tmp_path / "single.png")
    arguments = [str(model_folder), str(folder), str(single), "--output_dir", str(out), "--threshold", "0"]
    assert main([*arguments, "--device", "cpu"]) == 0
    written = json.loads((out / "predictions.json").read_text())
    assert [entry["picture"] for entry in written] == ["a.jpg", "b.bmp.png", "sub/a.jpg", "single.png"]
    for entry in written:
        with Image.open(out / entry["picture"]) as drawn:
            assert min(drawn.size) == 480  # small images are enlarged
        assert len(entry["detections"]) == 7
        scores = [found["score"] for found in entry["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert {found["name"] for found in entry["detections"]} <= {"disc", "star"}
    assert (written[2]["width"], written[2]["height"]) == (40, 50)
    boxes = np.array([found["box_xyxy"] for found in written[2]["detections"]])
    assert boxes.shape == (7, 4)
    assert np.abs(boxes).max() < 100  # in pixels of that image
    said = capsys.readouterr().out
    assert f"28 objects in 4 images, listed in {out}/predictions.json" in said
    counts = Counter(found["name"] for entry in written for found in entry["detections"])
    assert ", ".join(f"{name} {count}" for name, count in counts.most_common()) in said.splitlines()


def test_a_broken_image_is_reported_and_skipped(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    cut = picture(tmp_path / "in" / "cut.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(cut[: len(cut) // 2])
    arguments = [str(model_folder), str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 1
    assert [entry["picture"] for entry in json.loads((tmp_path / "out" / "predictions.json").read_text())] == [
        "good.png"
    ]
    errors = capsys.readouterr().err
    assert "broken.jpg: skipped, cannot identify image file" in errors
    assert "cut.png: skipped" in errors
    assert "2 of 3 images could not be read" in errors


def test_without_an_output_folder_each_call_gets_a_new_one(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a b.jpg")
    for folder in ("predict", "predict-2", "predict-3"):
        assert main([str(model_folder), ".", "--device", "cpu"]) == 0
        (entry,) = json.loads((tmp_path / "runs" / folder / "predictions.json").read_text())
        assert entry["picture"] == "a b.jpg"  # and none of the pictures of earlier calls
        assert capsys.readouterr().out.splitlines()[-1] == f"see {(tmp_path / 'runs' / folder).as_uri()}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "50"], "--threshold: got 50, expected a score from 0 to 1"),
        (["--threshold", "nan"], "--threshold: got nan"),
        (
            ["--threshold", "cat=.5,dog=.3,cat=.6"],
            "--threshold: got 'cat=.5,dog=.3,cat=.6', which has two scores for cat",
        ),
        (["--threshold", ".5,.6"], "which has two scores for all other classes"),
        (["--classes", ","], "--classes: got no name"),
        (["--save", ""], "--save: got nothing to write; choose among pictures, json"),
        (["--device", "cuda:77"], "--device: cannot use 'cuda:77'"),
        (["--device", "gpu"], "--device: unknown device 'gpu'; use cpu or cuda"),
    ],
)
def test_invalid_options_are_reported_before_anything_is_loaded(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        main(["no/such/model", "no.jpg", "--output_dir", "out", *arguments])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output_dir", [".", "link"])
def test_inputs_are_not_overwritten(model_folder, tmp_path, monkeypatch, output_dir: str) -> None:
    folder = tmp_path / "photos"
    contents = picture(folder / "a.jpg").read_bytes()
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder)
    arguments = [str(model_folder), "a.jpg", "--output_dir", output_dir, "--device", "cpu"]
    with pytest.raises(OutputError, match="would overwrite the input"):
        main(arguments)
    assert (folder / "a.jpg").read_bytes() == contents
    assert main([*arguments, "--save", "json"]) == 0
    assert (folder / "a.jpg").read_bytes() == contents


@pytest.fixture
def save_segmenter(tiny_segmenter: Callable[..., DetrForSegmentation]) -> Callable[[Path, list[int]], Path]:
    """Returns a function that saves a model which predicts a disc for each query."""

    def save(folder: Path, stuff_labels: list[int]) -> Path:
        names = {0: "disc", 1: "star"}
        model = tiny_segmenter(certain_label=0, num_queries=5, num_labels=2, id2label=names, stuff_labels=stuff_labels)
        model.save_pretrained(folder)
        DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
        return folder

    return save


def test_an_instance_model_writes_masks(save_segmenter: Callable[[Path, list[int]], Path], tmp_path: Path) -> None:
    model, image, out = save_segmenter(tmp_path / "model", []), picture(tmp_path / "a.png"), tmp_path / "out"
    assert main([str(model), str(image), "--output_dir", str(out), "--device", "cpu"]) == 0
    (entry,) = json.loads((out / "predictions.json").read_text())
    assert len(entry["detections"]) == 5
    for found in entry["detections"]:
        assert coco_mask.decode(found["segmentation"]).shape == (60, 90)
    assert (out / "a.png").is_file()


def test_a_panoptic_model_writes_its_segments(
    save_segmenter: Callable[[Path, list[int]], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image, out = save_segmenter(tmp_path / "model", [0]), picture(tmp_path / "a.jpg"), tmp_path / "out"
    assert main([str(model), str(image), "--output_dir", str(out), "--device", "cpu"]) == 0
    assert "1 segment in 1 image, listed in " in capsys.readouterr().out
    (entry,) = json.loads((out / "predictions.json").read_text())
    (segment,) = entry["segments"]  # all masks of the stuff are one
    assert (segment["id"], segment["name"], segment["area"]) == (1, "disc", 60 * 90)
    assert segment["score"] > 0.85
    with Image.open(out / entry["segmentation"]) as ids:
        assert (np.array(ids) == [1, 0, 0]).all()
    with Image.open(out / "a.jpg") as drawn, Image.open(image) as original:
        assert min(drawn.size) == 480
        assert np.abs(np.array(drawn.resize(original.size)).astype(int) - np.array(original)).mean() > 20

    # With a higher threshold nothing is found, and all of the map is empty.
    assert main([str(model), str(image), "--output_dir", str(out), "--device", "cpu", "--threshold", "1"]) == 0
    (entry,) = json.loads((out / "predictions.json").read_text())
    assert entry["segments"] == []
    with Image.open(out / entry["segmentation"]) as ids:
        assert not np.array(ids).any()


def test_the_precision_is_chosen_and_said(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, scores = picture(tmp_path / "a.png"), {}
    for dtype in ("float32", "bfloat16", "auto"):
        arguments = [str(model_folder), str(image), "--device", "cpu", "--threshold", "0", "--dtype", dtype]
        assert main([*arguments, "--output_dir", str(tmp_path / dtype)]) == 0
        entries = json.loads((tmp_path / dtype / "predictions.json").read_text())
        scores[dtype] = np.array([found["score"] for found in entries[0]["detections"]])
        assert f"computing in {'' if dtype == 'auto' else dtype}" in capsys.readouterr().out
    assert (scores["float32"] != scores["bfloat16"]).any()
    assert any((scores["auto"] == scores[dtype]).all() for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(scores["bfloat16"], scores["float32"], rtol=0, atol=0.02)


def test_the_thresholds_of_the_model_are_used_by_class(model_folder: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    arguments = [str(model_folder), str(image), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    main([*arguments, "--threshold", "0"])
    (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    every = entry["detections"]
    scores = sorted(one["score"] for one in every)
    middle = {"disc": scores[2], "star": scores[4]}
    SavedThresholds(middle, Calibration(2.0, -1.0), "best F1", "val").save(model_folder)
    main([*arguments, "--threshold", "best", "--calibrated"])
    (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    expected = [one for one in every if one["score"] >= middle[one["name"]]]
    assert len(entry["detections"]) == len(expected) < len(every)
    calibrated = Calibration(2.0, -1.0)(np.array([one["score"] for one in expected]))
    assert [one["score"] for one in entry["detections"]] == pytest.approx(calibrated, abs=1e-6)


def test_classes_that_share_a_name_have_a_threshold_each(
    tiny_detector: Callable[..., DetrForObjectDetection], tmp_path: Path
) -> None:
    folder, image = tmp_path / "model", picture(tmp_path / "a.png")
    tiny_detector(num_labels=2, id2label={0: "disc", 1: "disc"}).save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    SavedThresholds({"disc (label 0)": 0.0, "disc (label 1)": 1.0}, Calibration(), "best F1", "val").save(folder)
    arguments = [str(folder), str(image), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    main([*arguments, "--threshold", "best"])
    (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    main([*arguments, "--threshold", "0"])
    (every,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert entry["detections"] == [one for one in every["detections"] if one["label"] == 0]


def test_class_names_with_a_comma_are_in_double_quotes(tiny_detector, tmp_path: Path) -> None:
    folder, image = tmp_path / "model", picture(tmp_path / "a.png")
    tiny_detector(num_labels=2, id2label={0: "light, red", 1: 'a=b "c"'}).save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)

    def labels(*options: str) -> set[int]:
        main([str(folder), str(image), "--device", "cpu", "--output_dir", str(tmp_path / "out"), *options])
        (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
        return {found["label"] for found in entry["detections"]}

    every = labels("--threshold", "0")
    assert labels("--threshold", "0", "--classes", '"light, red", a=b "c"') == every
    assert labels("--threshold", "0", "--classes", '"light, red"') == every & {0}
    assert labels("--threshold", '0,"light, red"=1') == every - {0}
    assert labels("--threshold", '1,a=b "c"=0,"light, red"=0') == every
    with pytest.raises(ModelError, match=r"no class 'light'; .* A name with a comma is in double quotes\."):
        labels("--classes", "light, red")


def test_a_model_without_thresholds_says_how_to_get_them(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "a.png")
    arguments = [str(model_folder), str(image), "--threshold", "best", "--output_dir", str(tmp_path / "out")]
    assert run_command("predict", arguments) == 2
    assert "--save_thresholds writes one" in capsys.readouterr().err


def test_an_interrupted_run_continues(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        picture(tmp_path / "in" / f"{number}.png", (60 + number, 60))
    arguments = [str(model_folder), str(tmp_path / "in"), "--threshold", "0", "--device", "cpu", "--output_dir"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    predict, calls = Detector.predict_batch, []

    def interrupted(detector, *batch):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(batch)
        return predict(detector, *batch)

    monkeypatch.setattr(Detector, "predict_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, str(tmp_path / "parts")])
    assert f"the same command with --output_dir {tmp_path / 'parts'} continues" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "predictions.json").exists()
    calls[:2] = []  # one call is left before the next interruption
    with pytest.raises(OutputError, match=r"unfinished run with other settings \(threshold was 0\.0, is 0\.3\)"):
        main([*arguments, str(tmp_path / "parts"), "--threshold", "0.3"])
    monkeypatch.setattr(
        Detector, "predict_batch", lambda detector, *batch: calls.append(batch) or predict(detector, *batch)
    )
    assert main([*arguments, str(tmp_path / "parts")]) == 0
    assert "3 of 5 images done" in capsys.readouterr().out
    assert len(calls) == 1 + 2
    whole, parts = ((tmp_path / name / "predictions.json").read_text() for name in ("whole", "parts"))
    assert whole == parts
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "parts")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_killed_run_loses_nothing(model_folder: Path, tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / "in" / f"{number}.png", (60 + number, 60))
    out = tmp_path / "out"
    arguments = [model_folder, tmp_path / "in", "--output_dir", out]
    arguments += ["--threshold", "0", "--device", "cpu", "--num_workers", "1"]
    for least in (10, 25):
        process = start_prepared(tmp_path / "printed", *arguments, command="predict")
        while sum(len(file.read_bytes().splitlines()) for file in out.glob(".unfinished/*.jsonl")) < least:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert main([*map(str, arguments)]) == 0
    entries = json.loads((out / "predictions.json").read_text())
    assert len({entry["image"] for entry in entries}) == len(entries) == 60
    for entry in entries:
        with Image.open(out / entry["picture"]) as image:
            image.load()


@pytest.mark.slow
def test_several_processes_share_the_images(model_folder: Path, tmp_path: Path) -> None:
    for number in range(7):
        picture(tmp_path / "in" / f"{number}.png", (60 + number, 60))
    (tmp_path / "in" / "broken.png").write_bytes(b"broken")
    arguments = [str(model_folder), str(tmp_path / "in"), "--threshold", "0", "--device", "cpu", "--output_dir"]
    assert main([*arguments, str(tmp_path / "one")]) == 1
    run = start_prepared(tmp_path / "printed", *arguments, tmp_path / "two", command="predict", processes=2)
    assert "1 of 8 images could not be read" in run.communicate(timeout=250)[0]
    assert run.returncode == 1
    one, two = ((tmp_path / name / "predictions.json").read_text() for name in ("one", "two"))
    assert one == two


def test_the_processes_are_started_with_the_same_arguments(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("RANK", "ACCELERATE_USE_CPU", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    started = []
    monkeypatch.setattr(launching, "start_processes", lambda *arguments: started.append(arguments) or 5)
    arguments = [str(model_folder), str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--cpu_processes", "2"]) == 5
    assert started == [(2, 1, None, ["-m", "modeling_detr", "predict", *arguments])]


def test_the_images_of_a_dataset_keep_its_ids(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data", "shapes?train=4&val=3", "--split", "val", "--save", "json,coco", "--threshold", "0"]
    assert main([str(model_folder), *arguments, "--output_dir", str(out), "--device", "cpu"]) == 0
    images = json.loads((out / "coco_images.json").read_text())["images"]
    assert len(images) == len(json.loads((out / "predictions.json").read_text()))
    assert {image["id"] for image in images} == {
        record.coco_id for record in open_dataset("shapes?train=4&val=3", split="val").images
    }


def test_a_file_name_that_is_not_utf_8_costs_nothing(model_folder: Path, tmp_path: Path) -> None:
    path, out = picture(tmp_path / "in" / "\udcff.png"), tmp_path / "out"
    kinds = ",".join(name for name in OUTPUTS if name != "segments")
    arguments = [str(model_folder), str(path.parent), "--output_dir", str(out), "--save", kinds, "--threshold", "0"]
    assert main([*arguments, "--device", "cpu"]) == 0
    (entry,) = json.loads((out / "predictions.json").read_text())
    assert entry["image"] == str(path)
    assert (out / entry["picture"]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got nothing to predict for; pass images"),
        (["a.jpg", "--data", "shapes"], "got both inputs and --data"),
        (["my_dataset", "--split", "val"], "--split: is about the dataset of --data; pass --data my_dataset instead"),
        (["a.jpg", "--drop_difficult"], "--drop_difficult: is about the dataset of --data"),
        (["a.jpg", "--to", "yolo"], "--to: is the format of --as_dataset"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["no_model", *arguments])


def test_an_image_in_the_place_of_the_model_is_said(tmp_path: Path) -> None:
    image = str(picture(tmp_path / "a.png"))
    for arguments in ([image], [image, "runs/mine"]):
        with pytest.raises(ValueError, match=r"a\.png: is an image, expected the model first"):
            main(arguments)


def test_videos_in_a_folder_are_not_left_out_silently(model_folder, tmp_path, capsys) -> None:
    picture(tmp_path / "in" / "a.png")
    for name in ("b.mp4", "c.MOV"):
        (tmp_path / "in" / name).write_bytes(b"")
    arguments = [str(model_folder), str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert f"2 videos left out; to predict for videos, pass '{tmp_path}/in/**/*.MOV' '{tmp_path}/in/**/*.mp4'" in said


@pytest.mark.parametrize(("option", "value"), [("--as_dataset", "dataset"), ("--tile", "50")])
def test_what_panoptic_segments_do_not_have_is_refused_before_predicting(
    save_segmenter, tmp_path, option: str, value: str
) -> None:
    model, image, out = save_segmenter(tmp_path / "model", [1]), picture(tmp_path / "a.png"), tmp_path / "out"
    with pytest.raises(ModelError, match="predicts panoptic segments, which"):
        main([str(model), str(image), "--output_dir", str(out), "--device", "cpu", option, value])
    assert not out.exists()


def test_a_dataset_around_the_results_is_refused_before_predicting(model_folder: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    out = tmp_path / "all" / "out"
    with pytest.raises(OutputExistsError, match="is the folder of the results, or contains it"):
        main([str(model_folder), str(image), "--output_dir", str(out), "--as_dataset", str(out.parent)])
    assert not out.exists()
