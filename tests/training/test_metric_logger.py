import json
import math

import numpy as np
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modeling_detr.evaluation.metrics import Metric
from modeling_detr.training.display import Display
from modeling_detr.training.metric_logger import MetricLogger, drop_later_entries, read_log


HEADLINE = [Metric("ap", "AP", 0.5), Metric("ap50", "AP50", 0.75)]
PACE = {"images_per_second": 3.0, "loader_wait": 0.1, "memory_gib": 1.5}


def entries(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def make_logger(folder, accelerator=None) -> MetricLogger:
    display = Display(total_steps=9, steps_per_epoch=3, epochs=3)
    return MetricLogger(folder, accelerator or Accelerator(cpu=True), display)


def test_every_line_is_json_even_if_a_number_is_not_finite(tmp_path):
    logger = make_logger(tmp_path)
    logger.step(0, 2, {"loss": math.nan, **PACE})
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {"ap": 0.5, "ap50": 0.75, "per_class": {"cat": {"ap": math.inf}}})
    step, epoch = entries(tmp_path)
    assert step == {"kind": "step", "epoch": 1, "step": 2, "loss": None, **PACE}
    assert epoch["kind"] == "epoch"
    logger.step(0, 4, {"loss": 1.0, **PACE, "images": 8, "seconds": 2.5})
    assert entries(tmp_path)[-1] == {
        "kind": "step",
        "epoch": 1,
        "step": 4,
        "loss": 1.0,
        **PACE,
        "images": 8,
        "seconds": 2.5,
    }
    assert epoch["ap"] == 0.5
    assert epoch["per_class"] == {"cat": {"ap": None}}


def test_a_resumed_run_repeats_no_line(tmp_path):
    logger = make_logger(tmp_path)
    for step in (2, 4, 6):
        logger.step(0, step, {"loss": 1.0, **PACE})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "epo')  # a kill in the middle of a line
    drop_later_entries(tmp_path, step=4, closed_step=0)
    resumed = make_logger(tmp_path)
    resumed.step(0, 6, {"loss": 2.0, **PACE})
    assert [(entry["step"], entry["loss"]) for entry in entries(tmp_path)] == [(2, 1.0), (4, 1.0), (6, 2.0)]
    assert read_log(tmp_path / "log.jsonl") == entries(tmp_path)


def test_garbage_at_the_end_of_a_log_after_a_power_cut_is_skipped(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"kind": "step", "step": 1}\n' + bytes(5) + b"\xff\xfe\n")
    assert read_log(log) == [{"kind": "step", "step": 1}]


def test_tensorboard_gets_scalars_and_pictures(tmp_path):
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    accelerator.init_trackers("run")
    logger = make_logger(tmp_path, accelerator)
    logger.step(0, 2, {"loss": 1.5, **PACE})
    logger.epoch(0, 2, {"loss": 1.25, **PACE}, {"ap": 0.5, "ap50": 0.75}, HEADLINE)
    logger.images("predictions", [np.zeros((8, 8, 3), np.uint8)], 2)
    logger.close()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert events.Scalars("train/loss")[0].value == 1.5
    assert events.Scalars("eval/ap")[0].step == 2
    assert events.Images("predictions/0")[0].width == 8
