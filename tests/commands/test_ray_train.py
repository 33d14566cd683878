"""`scripts/ray_train.py` on one machine."""

import pytest
from launched_runs import RECIPE, ROOT, entries, start_code


def ray_train(*arguments, folder):
    # Ray lowers the priority of its workers, and writes a token into the home folder
    ray = {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    code = f"import os, runpy; os.chdir({str(folder)!r})\n"
    code += f"runpy.run_path({str(ROOT / 'scripts/ray_train.py')!r}, run_name='__main__')"
    run = start_code(folder / "printed", code, *arguments, environment={**ray, "ACCELERATE_USE_CPU": ""})
    return run.communicate(timeout=580)[0], run.returncode


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_train_one_run(tmp_path):
    frozen = "  freeze_batch_norm: false\n  freeze_backbone_stem: false\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("model_config:\n", f"model_config:\n{frozen}"))
    printed, code = ray_train(
        "--cpu_processes", 2, "recipe.yaml", "--output_dir", "run", "--preflight", "false", folder=tmp_path
    )
    assert code == 0, printed
    assert printed.count("cpu, 2 processes") == 1  # the plan, once
    assert len(entries(tmp_path / "run", "epoch")) == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
