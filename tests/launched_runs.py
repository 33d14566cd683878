"""Training runs in separate processes, started as a user starts them."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from modeling_detr.commands import run_command
from modeling_detr.training.metric_logger import read_log


ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
# Logged values that depend on the clock and the machine, not on the computation.
INCIDENTAL = {"images_per_second", "seconds", "memory_gib", "loader_wait"}
RECIPE = """\
data: shapes?size=64&train=16&val=4
model_config:
  backbone: resnet10t
  backbone_kwargs: {channels: [8, 8, 16, 16], stem_width: 8}
  out_indices: [3]
  num_queries: 6
  d_model: 16
  encoder_layers: 1
  decoder_layers: 2
  encoder_attention_heads: 2
  decoder_attention_heads: 2
  encoder_ffn_dim: 16
  decoder_ffn_dim: 16
  dropout: 0.0
  attention_dropout: 0.0
  activation_dropout: 0.0
processor_config:
  size: {shortest_edge: 64, longest_edge: 64}
transform: light
num_workers: 0
epochs: 1
encoder_supervision: true
log_every_steps: 1
"""


def launch(*arguments, processes=1, launcher=None, environment=(), script="scripts/train.py", **options):
    """Start a script directly, with torchrun if there are several processes, or with another launcher."""
    start = [sys.executable]
    if launcher is not None:
        start = [sys.executable, "-m", *launcher]
    elif processes > 1:
        start += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        start += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return subprocess.Popen(
        [*start, script, *map(str, arguments)],
        cwd=ROOT,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **dict(environment),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def entries(run_dir: Path, kind: str):
    return [entry for entry in read_log(run_dir / "log.jsonl") if entry["kind"] == kind]


def logged(run_dir: Path) -> list[dict]:
    """Return all log entries, without incidental values."""
    return [
        {name: value for name, value in entry.items() if name not in INCIDENTAL}
        for entry in read_log(run_dir / "log.jsonl")
    ]


def wait_for_log(run: subprocess.Popen, run_dir: Path, kind: str = "step", number: int = 1) -> None:
    """Wait until the run has logged `number` entries of a kind; fail with its output if it ends earlier."""
    until = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < until:
        if (run_dir / "log.jsonl").exists() and len(entries(run_dir, kind)) >= number:
            return
        time.sleep(0.05)
    run.kill()
    raise AssertionError(f"no {number} entries of kind {kind}: {run.communicate()[0]}")


def start_prepared(output: Path, *arguments) -> multiprocessing.Process:
    """Start `detr train` in a forked process, which saves the seconds that its imports take.

    Args:
        output: The file that stdout and stderr go to.
        arguments: The arguments of the command.
    """
    prepared = multiprocessing.get_context("forkserver")
    prepared.set_forkserver_preload(["modeling_detr.training.trainer", "modeling_detr.training.preflight"])
    start_method = multiprocessing.get_start_method()  # for data loaders, which would inherit forkserver
    process = prepared.Process(target=_train, args=[output, [*map(str, arguments)], start_method])
    process.start()
    return process


def _train(output: Path, arguments: list[str], start_method: str) -> None:
    multiprocessing.set_start_method(start_method, force=True)
    os.environ |= ENVIRONMENT
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(run_command("train", arguments))
