"""Runs that are killed at random moments end with the same results as runs that are not."""

import json
import random
import signal
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest
import yaml
from launched_runs import INCIDENTAL, logged, start_prepared
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from modeling_detr.training.metric_logger import read_log


def in_tensorboard(run_dir: Path) -> dict[str, list[tuple]]:
    """Return the steps and values of each curve in the order they were written."""
    curves = defaultdict(list)
    for path in sorted(run_dir.glob("trackers/**/events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.rpartition("/")[2] not in INCIDENTAL:
                    curves[value.tag].append((event.step, value.SerializeToString()))
    return dict(curves)


def newest_checkpoint_of(run_dir: Path) -> dict[str, object]:
    """Return the bytes of all its files, without the times and paths in them."""
    folder = max((run_dir / "checkpoints").iterdir())
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = json.loads(files.pop("state.json"))
    recipe = yaml.safe_load(files.pop("recipe.yaml"))
    del content["state"]["seconds"], content["files"]["recipe.yaml"], recipe["output_dir"], recipe["resume"]
    return {"name": folder.name, "state.json": content, "recipe.yaml": recipe, **files}


def exported(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / "model").iterdir() if path.suffix != ".md"}


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_ends_with_the_same_bits(config, tmp_path):
    options = ["--batch_size", 4, "--epochs", 12, "--eval_every_epochs", 3, "--checkpoint_every_steps", 3]
    options += ["--num_workers", 2, "--denoising_groups", 1, "--model_config.dropout", 0.1, "--ema_decay", 0.9]
    options += ["--lr_schedule", "cosine", "--warmup_steps", 5, "--preflight", "false", "--resume", "auto"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = tmp_path / "printed.txt"
    uninterrupted = start_prepared(tmp_path / "whole.txt", config, *options, "--output_dir", whole)
    chance = random.Random(0)
    for _ in range(3):
        target, deadline = last_step(killed) + chance.randint(3, 9), time.monotonic() + 100
        run = start_prepared(printed, config, *options, "--output_dir", killed)
        while last_step(killed) < target:
            assert run.is_alive(), printed.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        loaders = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.join(60)
        assert run.exitcode == -signal.SIGKILL, printed.read_text()  # it had not finished
        _, alive = psutil.wait_procs(loaders, timeout=20)
        assert not alive
    last = start_prepared(printed, config, *options, "--output_dir", killed)
    for run in (last, uninterrupted):
        run.join(120)
        assert run.exitcode == 0, printed.read_text()

    assert [entry["step"] for entry in logged(whole) if entry["kind"] == "step"] == [*range(1, 49)]
    assert logged(killed) == logged(whole)
    assert newest_checkpoint_of(killed) == newest_checkpoint_of(whole)
    assert exported(killed) == exported(whole)
    assert in_tensorboard(killed) == in_tensorboard(whole)


def last_step(run_dir: Path) -> int:
    log = run_dir / "log.jsonl"
    return max((entry["step"] for entry in read_log(log)), default=0) if log.exists() else 0
