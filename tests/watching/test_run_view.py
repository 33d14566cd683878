import json
import os
import platform
import time

import numpy as np
import pytest

from modeling_detr.training.picture_history import keep_pictures, save_pictures
from modeling_detr.training.run_status import note_end, note_start
from modeling_detr.watching.run_view import RunWatcher, State


def step(number, **values):
    return {"kind": "step", "epoch": 1 + (number - 1) // 40, "step": number, "loss": 5.0, "seconds": number, **values}


@pytest.fixture
def run(tmp_path):
    """A run of 200 steps that logs to a folder which this process has locked."""

    class Run:
        folder = tmp_path / "run"

        def start(self, at_step=0, process=None):
            self.folder.mkdir(exist_ok=True)
            holder = {"host": platform.node(), "process": process or os.getpid()}
            (self.folder / ".lock").write_text(json.dumps(holder))
            note_start(self.folder, at_step, float(at_step), total_steps=200, epochs=5, plan="steps  200")

        def log(self, *entries):
            with (self.folder / "log.jsonl").open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)

        def view(self, seconds_later=0.0):
            return RunWatcher(self.folder).view(time.time() + seconds_later)

    return Run()


def test_a_run_that_has_not_started_is_waited_for(run):
    view = run.view()
    assert view.state is State.WAITING
    assert view.line == f"Waiting for the run to start: {run.folder} has no log yet."
    run.start()
    assert run.view().state is State.TRAINING
    assert run.view().line == "Training. No step has been logged yet."


def test_a_run_that_trains_shows_progress_and_the_time_left(run):
    run.start()
    run.log(
        step(20),
        step(40, images_per_second=7.25),
        {"kind": "epoch", "epoch": 1, "step": 40, "ap": 0.25, "seconds": 50.0},
    )
    run.log(step(60, seconds=70.0, images_per_second=7.25))
    view = run.view()
    assert (view.state, view.share) == (State.TRAINING, 0.3)
    assert view.line == "Training. Epoch 2 of 5, step 60 of 200."
    assert view.highlights == [
        ("0.250", "AP, epoch 1"),
        ("5.000", "loss"),
        ("7.2", "images per second"),
        ("70 s", "so far"),
        ("3 min", "left"),  # 140 steps of 70 / 60 seconds
    ]
    assert view.plan == "steps  200"
    assert view.curves["panels"][0]["title"] == "loss (dashed: evaluation)"


def test_the_time_left_is_that_of_the_latest_start(run):
    run.start()
    run.log(step(20, seconds=1_000.0))
    run.start(at_step=20)
    run.log(step(40, seconds=120.0))
    view = run.view()
    assert ("13 min", "left") in view.highlights  # 160 steps of 5 seconds
    assert "Resumed at step 20." in view.line


def test_a_run_whose_process_is_gone_was_killed(run):
    run.start(process=2**22 + 1)  # no process has such a number
    run.log(step(20))
    view = run.view(seconds_later=300)
    assert view.state is State.KILLED
    assert "no new log entry for 5 min" in view.line
    assert "--resume auto" in view.line
    assert "left" not in dict(map(reversed, view.highlights))


def test_a_run_on_another_machine_is_silent_after_some_time(run):
    run.start()
    (run.folder / ".lock").write_text('{"host": "elsewhere", "process": 4194305}')
    run.log(step(20), step(40), {"kind": "epoch", "epoch": 1, "step": 40, "seconds": 60.0}, step(60, seconds=80.0))
    assert run.view(seconds_later=50).state is State.TRAINING
    view = run.view(seconds_later=100)
    assert view.state is State.SILENT
    assert "no new log entry for 2 min: it may be evaluating, or it may have been killed" in view.line


@pytest.mark.parametrize(
    ("outcome", "text", "expected"),
    [
        ("finished", "", "Finished. Epoch 5 of 5, step 200 of 200."),
        ("stopped", "Stopped by SIGTERM.", "Stopped by SIGTERM. Epoch"),
        ("failed", "a.jpg: broken.", "Ended with an error: a.jpg: broken. Epoch"),
    ],
)
def test_a_run_that_has_ended_says_how(run, outcome, text, expected):
    run.start(process=2**22 + 1)
    run.log(step(200))
    note_end(run.folder, outcome, text)
    view = run.view(seconds_later=9_999)
    assert view.state == State(outcome)
    assert view.line.startswith(expected)
    assert "left" not in dict(map(reversed, view.highlights))
    run.start(at_step=120)  # a resume
    assert run.view().state is State.TRAINING


def test_warnings_of_the_run_and_of_its_numbers_are_shown_the_latest_first(run):
    run.start()
    run.log(*(step(10 * number, loader_wait=0.5) for number in range(1, 12)))
    run.log(*({"kind": "warning", "epoch": 1, "step": number, "text": f"collapsed {number}"} for number in (40, 80)))
    (run.folder / "nonfinite").mkdir()
    (run.folder / "nonfinite" / "step_1").touch()
    wheres = [where for where, _ in run.view().warnings]
    assert wheres == ["now", "nonfinite", "step 80", "step 40"]
    note_end(run.folder, "finished")
    assert [where for where, _ in run.view().warnings] == ["nonfinite", "step 80", "step 40"]


def test_pictures_have_the_metrics_of_their_evaluation(run):
    run.start()
    run.log({"kind": "epoch", "epoch": 1, "step": 40, "ap": 0.25})
    picture = np.zeros((8, 8, 3), np.uint8)
    save_pictures(run.folder / "predictions", {"000_cat": picture})
    (best,) = run.view().values()["pictures"]
    assert (best["title"], best["names"]) == ("best model so far", ["cat"])  # of runs of older versions
    for number in (40, 80):
        keep_pictures(run.folder, number, {"000_cat": picture, "001_\u202edog": picture}, most=5)
    first, second = run.view().values()["pictures"]
    assert (first["key"], first["title"]) == ("40", "step 40, epoch 1, AP 0.250")
    assert (second["title"], second["names"]) == ("step 80", ["cat", "\\u202edog"])


def test_a_damaged_folder_is_shown_as_far_as_possible(run):
    run.start()
    run.log({"kind": "step"}, {"kind": "epoch", "epoch": None, "step": None, "ap": "high"}, {"kind": 7}, {})
    for name in ("status.json", ".lock", "recipe.yaml"):
        (run.folder / name).write_bytes(b"\xff{")
    assert run.view().values()["state"] == "waiting"
    run.log(step(20, loss_ce={}, images="many"))
    assert run.view().values()["line"] == "Training. Epoch 1, step 20."


def test_a_run_of_an_older_version_whose_process_is_gone_has_ended(run):
    run.start(process=2**22 + 1)
    (run.folder / "status.json").unlink()
    run.log(step(20))
    assert (run.view().state, run.view().share) == (State.STOPPED, None)
    assert run.view().line == "Its process has ended. Epoch 1, step 20."
