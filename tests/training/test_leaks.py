"""A long run needs no more memory, files, processes or threads than a short one."""

import json
import os
import subprocess
import sys

import pytest
from launched_runs import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_hundreds_of_steps_leak_no_memory_files_processes_or_threads(tiny_recipe, tmp_path):
    """There are a loader, averaged weights, evaluations, pictures and checkpoints between the steps."""
    options = {"num_workers": 1, "ema_decay": 0.9, "eval_every_epochs": 10, "checkpoint_every_steps": 25}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe(**options, epochs=200).to_yaml())  # of 5 steps
    start = [sys.executable, "tests/measured_run.py", str(recipe)]
    run = subprocess.run(
        start, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])
    assert len(measured) == 50
    early, late = measured[:25], measured[37:]
    assert early[-1]["loaders"] == 2  # for training and for evaluation
    for what in ("files", "loaders", "threads"):
        assert max(one[what] for one in late) <= max(one[what] for one in early), measured
    # memory takes some hundred steps to settle, and varies by 20 MiB
    assert min(one["MiB"] for one in late) <= max(one["MiB"] for one in early) + 8, measured
