"""Parts that actors of a Ray cluster predict."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from noise_images import picture
from pyarrow import parquet

from modeling_detr.commands.predict import main
from modeling_detr.errors_detr import LaunchError


ROOT = Path(__file__).parents[3]
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # as in this process: rounding depends on the threads
    "PYTHONPATH": str(ROOT),
    "RAY_worker_niceness": "0",  # else a busy machine leaves the actors no time
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000",
}


def wait_for(find: Callable[[], list], process: subprocess.Popen, least: int = 1) -> list:
    """Waits until there are some of what a function finds."""
    while len(found := find()) < least:
        assert process.poll() is None
        time.sleep(0.02)
    return found


def actors(process: subprocess.Popen) -> list[psutil.Process]:
    titles = {child: child.cmdline() for child in psutil.Process(process.pid).children(recursive=True)}
    return [child for child, title in titles.items() if "ray::MapWorker" in " ".join(title)]


@NEEDS_RAY
@pytest.mark.slow
def test_two_actors_of_which_one_is_killed_predict_for_every_image_once(model_folder: Path, tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / "in" / f"{number}.png", (300, 300))
    options = ["--images_per_part", "2", "--threshold", "0"]
    ray = ["--engine", "ray", "--cpu_processes", "2"]
    out, arguments = tmp_path / "ray" / "predictions.parquet", [str(model_folder), str(tmp_path / "in"), *options]
    command = [sys.executable, "scripts/predict.py", *arguments, "--output_dir", str(out.parent), *ray]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}) as process:
        first, _ = wait_for(lambda: actors(process), process, least=2)
        done = wait_for(lambda: [*out.glob("part-*.parquet")], process)
        first.send_signal(signal.SIGKILL)
        assert len(done) < 30
    assert process.returncode == 0
    assert main([*arguments, "--output_dir", str(tmp_path / "one"), "--shard", "1/1"]) == 0
    assert len([*out.iterdir()]) == 30
    assert parquet.read_table(out) == parquet.read_table(tmp_path / "one" / "predictions.parquet")


@NEEDS_RAY
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu"], "--device: is for this process, and Ray's actors predict; choose with --gpus"),
        (["--gpus", "1", "--nodes", "2", "--main_address", "a"], "without torchrun, --nodes and --main_address"),
        (["--gpus", "1", "--cpu_processes", "2"], "--gpus: cannot be combined with --cpu_processes"),
    ],
)
def test_options_about_processes_that_ray_does_not_take_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        main(["no_model", "in", "--output_dir", "out", "--engine", "ray", *options])


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    with pytest.raises(LaunchError, match=r"not installed; pip install 'modeling-detr\[ray\]'"):
        main(["no_model", "in", "--output_dir", "out", "--engine", "ray"])
