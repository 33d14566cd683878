"""`scripts/train.slurm` on one machine, with stand-ins that behave as the manuals of Slurm's programs describe."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched_runs import ROOT, entries, start_prepared, wait_for_log

from modeling_detr.training.checkpointing import find_damage


# Starts every task on this machine and forwards SIGUSR1; SIGTERM kills all tasks, and so does a failing task.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
for number in map(str, range(int(os.environ["SLURM_NTASKS"]))):
    tasks.append(subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": number, "SLURM_LOCALID": number}}))
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        time.sleep(1)
        [task.kill() for task in tasks]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1 $2" = "show hostnames" ]; then echo localhost; else echo "$@" >> "$REQUESTS"; fi
"""
# A training that ends with a given code, or when it gets SIGUSR1.
PYTHON = """#!/usr/bin/env bash
echo "$RANK/$WORLD_SIZE local $LOCAL_RANK/$LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT: $*" >> "$REQUESTS.started"
trap 'exit 138' USR1
if [ -n "${ENDS_WITH:-}" ]; then exit "$ENDS_WITH"; fi
for _ in $(seq 200); do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path):
    """Returns a function that starts the script as Slurm would; `requests` is a file of the calls of scontrol."""
    programs = tmp_path / "bin"
    programs.mkdir()
    requests = tmp_path / "requests"

    def start(*arguments, python: str | None = None, tasks: int = 2, **environment: str) -> subprocess.Popen:
        scripts = {"srun": SRUN, "scontrol": SCONTROL, **({"python": python} if python else {})}
        for name, text in scripts.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        start.job = _job_of_a_free_port()
        return subprocess.Popen(
            [ROOT / "scripts/train.slurm", *map(str, arguments)],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "REQUESTS": str(requests),
                "SLURM_JOB_ID": str(start.job),
                "SLURM_JOB_NODELIST": "node[1]",
                "SLURM_NTASKS": str(tasks),
                "SLURM_NNODES": "1",
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    start.requests = requests
    return start


def _job_of_a_free_port() -> int:
    while True:
        number = random.randrange(12_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20_000 + number)) != 0:
                return number


def _requests(slurm) -> list[str]:
    return slurm.requests.read_text().splitlines() if slurm.requests.exists() else []


@pytest.mark.parametrize(("ends_with", "requeued"), [(0, False), (1, False), (2, False), (138, True), (143, False)])
def test_a_job_is_requeued_only_if_its_training_was_interrupted(slurm, ends_with, requeued):
    job = slurm("recipe.yaml", "--data", "a b", python=PYTHON, ENDS_WITH=str(ends_with))
    out, _ = job.communicate(timeout=30)
    assert job.returncode == ends_with, out
    assert _requests(slurm) == ([f"requeue {slurm.job}"] if requeued else [])
    started = slurm.requests.with_suffix(".started").read_text().splitlines()
    where, what = f"at localhost:{20_000 + slurm.job}", "scripts/train.py recipe.yaml --data a b --resume auto"
    assert sorted(started) == [f"{rank}/2 local {rank}/2 {where}: {what}" for rank in range(2)]


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_script_forwards_slurms_signals_and_waits(slurm, number, requeued):
    job = slurm("recipe.yaml", python=PYTHON)
    until = time.monotonic() + 30
    while not slurm.requests.with_suffix(".started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(number)
    out, _ = job.communicate(timeout=15)
    assert job.returncode == 138, out
    assert _requests(slurm) == ([f"requeue {slurm.job}"] if requeued else [])


@pytest.mark.slow
def test_a_job_that_gets_the_warning_signal_saves_a_checkpoint_and_the_next_job_continues(slurm, config, tmp_path):
    run_dir = tmp_path / "run"
    options = (config, "--batch_size", 1, "--epochs", 200, "--num_workers", 1, "--preflight", "false")
    job = slurm(*options)
    wait_for_log(job, run_dir, number=3)
    job.send_signal(signal.SIGUSR1)  # --signal=B: only to the shell
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 138, out
    assert "Stopped by SIGUSR1" in out
    assert _requests(slurm) == [f"requeue {slurm.job}"]
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert find_damage(checkpoint) is None
    stopped_at = int(checkpoint.name.removeprefix("step_"))

    next_job = ("--resume", "auto", "--max_steps", stopped_at + 2)  # the first two are the script's, see above
    job = start_prepared(tmp_path / "printed", *options, *next_job, processes=2)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 0, out
    assert f"at step {stopped_at}" in out
    assert "2 processes, " in out
    assert [entry["step"] for entry in entries(run_dir, "step")] == [*range(1, stopped_at + 3)]
