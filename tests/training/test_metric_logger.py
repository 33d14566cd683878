import json
import math
import os
import re

import numpy as np
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_detr.evaluation.metrics import Metric
from modeling_detr.training.metric_logger import MetricLogger, drop_later_entries, read_log


HEADLINE = [Metric("ap", "AP", 0.5), Metric("ap50", "AP50", 0.75)]
PACE = {"images_per_second": 3.0, "loader_wait": 0.1, "memory_gib": 1.5}


def entries(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def test_every_line_is_json_even_if_a_number_is_not_finite(tmp_path):
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.step(0, 2, {"loss": math.nan, **PACE})
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {"ap": 0.5, "ap50": 0.75, "per_class": {"cat": {"ap": math.inf}}})
    step, epoch = entries(tmp_path)
    assert step == {"kind": "step", "epoch": 1, "step": 2, "loss": None, **PACE}
    assert epoch["kind"] == "epoch"
    assert epoch["ap"] == 0.5
    assert epoch["per_class"] == {"cat": {"ap": None}}


def test_a_resumed_run_repeats_no_line(tmp_path):
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=9, epochs=3)
    for step in (2, 4, 6):
        logger.step(0, step, {"loss": 1.0, **PACE})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "epo')  # a kill in the middle of a line
    drop_later_entries(tmp_path, step=4, closed_step=0)
    resumed = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=9, epochs=3, first_step=4)
    resumed.step(0, 6, {"loss": 2.0, **PACE})
    assert [(entry["step"], entry["loss"]) for entry in entries(tmp_path)] == [(2, 1.0), (4, 1.0), (6, 2.0)]
    assert read_log(tmp_path / "log.jsonl") == entries(tmp_path)


def test_garbage_at_the_end_of_a_log_after_a_power_cut_is_skipped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"kind": "step", "step": 1}\n' + bytes(5) + b"\xff\xfe\n")
    assert read_log(log) == [{"kind": "step", "step": 1}]


def test_without_a_terminal_each_epoch_prints_one_line(tmp_path, capsys):
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {"ap": 0.5, "ap50": 0.75}, HEADLINE)
    logger.epoch(1, 4, {"loss": 1.0, **PACE}, {})
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2 · step 2/4 · loss 1.250 · AP 0.500 · AP50 0.750 · 3.0 images/s · 1.5 GiB · 1 min left",
        "epoch 2/2 · step 4/4 · loss 1.000 · 3.0 images/s · 1.5 GiB",
    ]


def test_a_slow_loader_is_reported_with_a_remedy(tmp_path, capsys):
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.epoch(0, 2, {"loss": 1.25, **PACE, "loader_wait": 0.45}, {})
    assert " · loader wait 45%: raise num_workers · " in capsys.readouterr().out
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2, cores_are_free=False)
    logger.epoch(0, 2, {"loss": 1.25, **PACE, "loader_wait": 0.45}, {})
    assert " · loader wait 45% · " in capsys.readouterr().out


def test_an_evaluation_without_ground_truth_shows_no_metrics(tmp_path, capsys):
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {"ap": None}, [Metric("ap", "AP", math.nan)])
    assert capsys.readouterr().out.startswith("epoch 1/2 · step 2/4 · loss 1.250 · ")


def test_on_a_terminal_a_bar_shows_epoch_step_loss_ap_speed_and_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.advance(0, 1.345)
    logger.epoch(0, 1, {"loss": 1.0, **PACE}, {"ap": 0.5, "ap50": 0.75}, HEADLINE)
    logger.step(1, 2, {"loss": 1.0, **PACE, "loader_wait": 0.45})
    logger.advance(1, 1.234)
    logger.close()
    shown = capsys.readouterr()
    last = shown.err.split("\r")[-1]
    assert re.match(r"epoch 2/2:  50%\|.+\| 2/4, 00:00 left, loss 1\.234, AP 0\.500, 3\.0 images/s, 1\.5 GiB, ", last)
    assert "loader wait 45%" in last
    assert shown.out == ""


def test_the_time_left_counts_evaluations_and_only_the_steps_of_this_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=1000, epochs=10, first_step=900)
    for seconds in (1, 1, 1, 57):  # the last one follows an evaluation
        clock[0] += seconds
        logger.advance(9, 1.0)
    logger.epoch(9, 904, {"loss": 1.0, **PACE}, {})
    logger.close()
    shown = capsys.readouterr()
    assert "| 904/1000, 24:00 left" in shown.err.split("\r")[-1]  # 96 steps of 15 s
    assert shown.out.endswith(" · 24 min left\n")


def test_lines_are_written_to_a_file_also_while_a_bar_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {})
    logger.close()
    assert capsys.readouterr().out.startswith("epoch 1/2 · step 2/4 · ")


def test_a_terminal_without_a_size_gets_lines_instead_of_a_bar(tmp_path, capsys, monkeypatch):
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.fileno", lambda: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda _: os.terminal_size((0, 0)))
    logger = MetricLogger(tmp_path, Accelerator(cpu=True), total_steps=4, epochs=2)
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {})
    assert capsys.readouterr().out.startswith("epoch 1/2 · step 2/4 · ")


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    logger = MetricLogger(tmp_path, accelerator, total_steps=4, epochs=2)
    logger.step(0, 2, {"loss": 1.5, **PACE})
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {"ap": 0.5, "ap50": 0.75}, HEADLINE)
    logger.images("predictions", [np.zeros((8, 8, 3), np.uint8)], 2)
    logger.close()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert events.Scalars("train/loss")[0].value == 1.5
    assert events.Scalars("eval/ap")[0].step == 2
    assert events.Images("predictions/0")[0].width == 8
