"""Training, started as a user starts it, with too little shared memory or with loader processes that end."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from launched_runs import ENVIRONMENT, ROOT, logged, start_prepared, wait_for_log
from small_shared_memory import with_small_shared_memory


@pytest.mark.slow
def test_a_run_in_a_container_with_little_shared_memory_is_complete(config, tmp_path):
    options = ["--data", "shapes?size=500&train=4&val=2", "--num_workers", "2", "--output_dir", tmp_path / "run"]
    options += ["--processor_config.size.shortest_edge", "500", "--processor_config.size.longest_edge", "500"]
    done = subprocess.run(
        with_small_shared_memory([sys.executable, "scripts/train.py", config, *options]),
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "MiB free: those that do not fit are copied, which is slower; start the container with" in done.stdout


@pytest.mark.slow
def test_processes_end_together_when_one_has_lost_its_loader(config, tmp_path):
    options = [config, "--num_workers", 1, "--epochs", 10, "--eval_every_epochs", 10, "--preflight", "false"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = start_prepared(tmp_path / "killed.txt", *options, "--output_dir", killed, processes=2)
    wait_for_log(run, killed, number=5)
    for loader in psutil.Process(run.processes[1].pid).children():
        loader.kill()
    killed_at = time.monotonic()
    printed = run.communicate(timeout=60)[0]
    assert time.monotonic() - killed_at < 20
    assert [process.exitcode for process in run.processes] == [143, 2], printed
    assert "was killed by SIGKILL" in printed
    assert "rank 1 cannot load its images" in printed
    assert "Traceback" not in printed
    runs = [
        start_prepared(
            *(tmp_path / f"{output.name}.txt", *options, "--output_dir", output, "--resume", "auto"), processes=2
        )
        for output in (killed, whole)
    ]
    for resumed in runs:
        printed = resumed.communicate(timeout=200)[0]
        assert resumed.returncode == 0, printed
    assert logged(killed) == logged(whole)
