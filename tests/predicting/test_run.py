"""Runs that are interrupted, or meet another one in their folder."""

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from killed_writes import killed_before
from launched_runs import PreparedRun, start_code, start_prepared, wait_for_line
from noise_images import picture

from modeling_detr.commands.predict import main
from modeling_detr.errors_detr import ModelNotFoundError, OutputError
from modeling_detr.predicting import Detector
from modeling_detr.predicting.inputs import find_inputs
from modeling_detr.predicting.journal import FOLDER, Journal
from modeling_detr.predicting.outputs import OutputRun, create_outputs
from modeling_detr.predicting.run import PredictionRun


KINDS = "pictures,json,jsonl,csv,parquet,coco,yolo,voc,crops"


@pytest.fixture
def command(model_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Returns a function that gives the arguments of a run on the folder `in`."""

    def arguments(out: str, *more: str) -> list[str]:
        options = ["--threshold", "0", "--device", "cpu", "--save", KINDS, *more]
        return [str(model_folder), str(tmp_path / "in"), "--output_dir", str(tmp_path / out), *options]

    return arguments


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], int], None]:
    """Returns a function that runs the command and interrupts it after some images."""

    def run(arguments: list[str], images: int) -> None:
        predict, calls = Detector.predict_batch, []

        def end(detector, *batch):
            if len(calls) == images:
                raise KeyboardInterrupt
            calls.append(batch)
            return predict(detector, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(Detector, "predict_batch", end)
            with pytest.raises(KeyboardInterrupt):
                main(arguments)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_some(folder: Path) -> None:
    """Changes, renames and removes images, of those that come first, and adds one before them."""
    picture(folder / "1.png", (80, 50))
    (folder / "2.png").rename(folder / "renamed.png")
    (folder / "3.png").unlink()
    (folder / "4.png").write_bytes(b"broken")
    (folder / "sub").mkdir()
    shutil.move(folder / "5.png", folder / "sub" / "5.png")
    picture(folder / "0.png", (40, 50))


def assert_same_results(one: Path, other: Path) -> None:
    one_contents, other_contents = contents(one), contents(other)
    assert one_contents.keys() == other_contents.keys()
    assert [name for name in one_contents if one_contents[name] != other_contents[name]] == []


def test_a_continued_run_writes_what_a_new_one_does_when_images_have_changed(
    command, interrupted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 9):
        picture(tmp_path / "in" / f"{number}.png", (60 + number, 60))
    interrupted(command("parts"), 6)
    change_some(tmp_path / "in")
    assert main(command("parts")) == 1  # one image is broken now
    assert "1 of 8 images done" in capsys.readouterr().out
    assert main(command("whole")) == 1
    assert_same_results(tmp_path / "parts", tmp_path / "whole")


def test_a_picture_that_has_got_the_name_of_an_outdated_one_is_kept(command, interrupted, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    interrupted(command("parts"), 3)
    (tmp_path / "in" / "a.jpg").unlink()  # a.png gets its name
    interrupted(command("parts"), 1)
    assert main(command("parts")) == 0
    assert main(command("whole")) == 0
    assert_same_results(tmp_path / "parts", tmp_path / "whole")


def test_only_files_in_the_folder_of_the_results_are_removed(command, interrupted, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    interrupted(command("out"), 1)
    (journal,) = (tmp_path / "out" / FOLDER).glob("*.jsonl")
    entry = json.loads(journal.read_text())
    kept = picture(tmp_path / "kept.png")
    journal.write_text(json.dumps({**entry, "picture": "../kept.png", "yolo": str(kept)}) + "\n")
    os.utime(tmp_path / "in" / "a.png", (1, 1))
    assert main(command("out")) == 0
    assert kept.exists()


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[PreparedRun]:
    """A process that works in the folder `out`."""
    code = "import sys, time; from pathlib import Path; from modeling_detr.predicting.journal import Journal\n"
    code += "Journal(Path(sys.argv[1])).open({}); print('open', flush=True); time.sleep(100)"
    process = start_code(tmp_path / "printed.txt", code, tmp_path / "out")
    assert wait_for_line(process, 0) == "open\n"
    yield process
    process.kill()


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(
    command, tmp_path: Path, other_run: PreparedRun
) -> None:
    picture(tmp_path / "in" / "a.png")
    with pytest.raises(OutputError, match=f"process {other_run.pid} on .* is predicting into it; wait for it"):
        main(command("out"))
    other_run.kill()
    other_run.wait()
    with pytest.raises(OutputError, match="unfinished run with other settings"):  # not in use any more
        main(command("out"))


def test_two_runs_that_start_together_get_a_folder_each(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    arguments = [str(model_folder), "a.png", "--device", "cpu", "--save", "json"]
    load = Detector.__init__

    def start_another(detector, *model, **options):
        monkeypatch.setattr(Detector, "__init__", load)
        assert main(arguments) == 0
        load(detector, *model, **options)

    monkeypatch.setattr(Detector, "__init__", start_another)
    assert main(arguments) == 0
    assert sorted(path.parent.name for path in Path("runs").glob("*/predictions.json")) == ["predict", "predict-2"]


def test_a_run_that_fails_leaves_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_model").mkdir()
    with pytest.raises(ModelNotFoundError):
        main(["no_model", "a.png", "--device", "cpu"])
    assert not [*tmp_path.glob("runs/*")]


def test_a_continued_run_in_a_new_folder_finds_the_same_images(
    model_folder: Path, interrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    arguments = [str(model_folder), ".", "--device", "cpu"]
    assert main(arguments) == 0  # draws runs/predict/a.png, …
    interrupted(arguments, 1)
    assert main([*arguments, "--output_dir", "runs/predict-2"]) == 0
    entries = json.loads(Path("runs/predict-2/predictions.json").read_text())
    assert [entry["image"] for entry in entries] == ["a.png", "b.png"]


@pytest.mark.slow
def test_a_killed_run_on_changed_images_ends_like_a_new_one(command, tmp_path: Path) -> None:
    for number in range(1, 41):
        picture(tmp_path / "in" / f"{number}.png", (60 + number, 60))
    printed, arguments = tmp_path / "printed.txt", command("parts", "--batch_size", "3", "--num_workers", "1")
    for least in (8, 16):
        process = start_prepared(printed, *arguments, command="predict")
        while sum(len(file.read_bytes().splitlines()) for file in tmp_path.glob(f"parts/{FOLDER}/*.jsonl")) < least:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait(60)
    change_some(tmp_path / "in")
    assert start_prepared(printed, *arguments, command="predict").wait(100) == 1
    assert main(command("whole", "--batch_size", "3")) == 1
    assert_same_results(tmp_path / "parts", tmp_path / "whole")


class TwoBoxes:
    """Predicts the same two objects in each image."""

    is_panoptic = False
    class_names = {0: "disc", 1: "star"}  # noqa: RUF012

    def processor(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels[None]}

    def predict_batch(self, _inputs, sizes, _rules) -> list[dict[str, torch.Tensor]]:
        boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 20.0, 25.0]])
        return [{"scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 0]), "boxes": boxes} for _ in sizes]


def run_with_two_boxes(inputs: Path, out: Path) -> PredictionRun:
    detector, images = TwoBoxes(), find_inputs([str(inputs)])
    outputs = create_outputs(["pictures", "json", "yolo"], OutputRun(out, detector.class_names), is_panoptic=False)
    return PredictionRun(detector, None, images, outputs, Journal(out))  # type: ignore[arg-type]


def predict_with_two_boxes(inputs: Path, out: Path) -> None:
    run = run_with_two_boxes(inputs, out)
    run.open({"model": "two boxes"})
    run.predict()
    run.finish()
    run.journal.remove()


def test_a_process_that_starts_late_leaves_no_image_out(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / "in" / f"{number}.png")
    for rank in range(2):  # the second opens the journal when the first is done
        processes = SimpleNamespace(
            num_processes=2, process_index=rank, is_main_process=rank == 0, main_process_first=nullcontext
        )
        run = run_with_two_boxes(tmp_path / "in", tmp_path / "out")
        run.open({}, processes)
        run.predict(processes)
    assert run.finish().images == 5


def test_a_run_that_fails_lets_others_into_its_folder(command, interrupted, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    interrupted(command("out"), 0)
    code = "import sys; from pathlib import Path; from modeling_detr.predicting.journal import Journal\n"
    code += "Journal(Path(sys.argv[1])).open({})"
    other = start_code(tmp_path / "printed.txt", code, tmp_path / "out")
    assert other.wait(60) == 0, other.output.read_text()


@pytest.mark.slow
def test_a_kill_at_any_file_operation_costs_no_result(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    predict_with_two_boxes(tmp_path / "in", tmp_path / "whole")
    for operation in itertools.count():
        out = tmp_path / str(operation)
        is_killed = killed_before(operation, partial(predict_with_two_boxes, tmp_path / "in", out))
        predict_with_two_boxes(tmp_path / "in", out)
        assert_same_results(out, tmp_path / "whole")
        shutil.rmtree(out)
        if not is_killed:
            break
    assert operation > 20
