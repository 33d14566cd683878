"""`scripts/ray_train.py` on one machine."""

import os
import subprocess
import sys

import pytest
from launched_runs import RECIPE, ROOT, entries


def ray_train(*arguments, folder):
    # Ray lowers the priority of its workers, and writes a token into the home folder
    ray = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(
        [sys.executable, ROOT / "scripts/ray_train.py", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **ray},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_train_one_run(tmp_path):
    frozen = "  freeze_batch_norm: false\n  freeze_backbone_stem: false\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("model_config:\n", f"model_config:\n{frozen}"))
    result = ray_train(
        "--cpu_processes", 2, "recipe.yaml", "--output_dir", "run", "--preflight", "false", folder=tmp_path
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("cpu, 2 processes") == 1  # the plan, once
    assert len(entries(tmp_path / "run", "epoch")) == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
