import functools
import importlib.util
import json
import os
import signal
import time

import pytest
import torch
import yaml
from launched_runs import ENVIRONMENT, RECIPE, start_code, start_detr, wait_for_line

from modeling_detr.commands import run_command
from modeling_detr.commands.tune import main
from modeling_detr.errors_detr import RunInUseError
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.run_folder import checkpoint_folders, locked
from modeling_detr.tuning import search
from modeling_detr.tuning.search import Search


@pytest.fixture
def untrained(monkeypatch):
    """The command, without its trials and without GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(Search, "run", lambda self, report: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "--trials: got 0, expected at least 1."),
        (["--trials", "2", "--minutes_per_trial", "0"], "--minutes_per_trial: got 0, expected a positive number."),
        (["--trials", "2", "--epoch", "5"], "unknown option --epoch; did you mean '--epochs'?"),
        (["--trials", "2", "--keys", "learning"], "'learning' has no range; did you mean 'learning_rate'?"),
        (["--trials", "2", "--jobs", "0"], "--jobs: got '0'; expected a number, such as 2, or auto."),
        (
            ["--trials", "2", "--jobs", "auto"],
            "--jobs auto: PyTorch sees no GPU here; give a number; this",
        ),
        (["--trials", "2", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["--trials", "2", "--metrics_port", "9400"], "unknown option --metrics_port"),
        (["--trials", "2", "--batch_size", "0"], "--batch_size: got 0, expected at least 1."),
        (["--trials", "2", "--space", "none.yaml"], "none.yaml: no such file"),
        ([], "the following arguments are required: --trials"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(untrained, tmp_path, capsys, arguments, message):
    folder = tmp_path / "out"
    try:
        code = run_command("tune", ["small_dataset", "--data", "shapes", "--output_dir", str(folder), *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_recipe_without_data_and_an_unknown_recipe_are_errors(untrained, tmp_path, capsys):
    options = ["--trials", "2", "--output_dir", str(tmp_path)]
    assert run_command("tune", ["small_dataset", *options]) == 2
    assert "data: not set" in capsys.readouterr().err
    assert run_command("tune", ["small_datset", *options]) == 2
    assert "did you mean 'small_dataset'?" in capsys.readouterr().err


def test_without_optuna_the_error_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run_command("tune", ["shapes", "--trials", "2", "--output_dir", str(tmp_path)]) == 2
    message = "detr tune: needs optuna, which is not installed; pip install 'modeling-detr[tune]'."
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_continues_the_same_search_only(untrained, tmp_path):
    arguments = ["shapes", "--output_dir", str(tmp_path), "--keys", "learning_rate", "--batch_size", "8"]
    assert main([*arguments, "--trials", "2"]) == 0
    assert yaml.safe_load((tmp_path / "base.yaml").read_text())["batch_size"] == 8
    assert main([*arguments, "--trials", "5"]) == 0
    with pytest.raises(ValueError, match=r"contains another search: minutes_per_trial was null, now 3\.0; choose"):
        main([*arguments, "--trials", "5", "--minutes_per_trial", "3"])
    with pytest.raises(ValueError, match="the range of ema_decay was null, now"):
        main([*arguments[:-4], "--trials", "5", "--keys", "learning_rate,ema_decay", "--batch_size", "8"])


def test_two_searches_do_not_share_a_folder(untrained, tmp_path):
    code = "import sys, time; from pathlib import Path; from modeling_detr.training.run_folder import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(300)\n"
    holder = start_code(tmp_path.parent / f"{tmp_path.name}.txt", code, tmp_path)
    assert wait_for_line(holder, 0) == "locked\n"
    with pytest.raises(RunInUseError, match="choose another output_dir"):
        main(["shapes", "--output_dir", str(tmp_path), "--trials", "2"])
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


# The search trains its first trial in a prepared process, and the second, in which it is killed, as without a test.
SEARCH_WITH_ONE_REAL_TRIAL = """\
import functools, sys
import launched_runs
from modeling_detr.benchmarks import detr_process
from modeling_detr.commands import run_command
from modeling_detr.tuning import search
def start(arguments, output, place):
    start_detr = detr_process.start_detr if "0002" in output.parts else launched_runs.start_detr
    return start_detr(arguments, output, place)
search.Search = functools.partial(search.Search, start=start)
sys.exit(run_command("tune"))
"""


@pytest.mark.slow
def test_a_search_that_is_killed_continues_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", {**os.environ, **ENVIRONMENT})
    monkeypatch.setattr(search, "Search", functools.partial(Search, start=start_detr))
    recipe = tmp_path / "tiny.yaml"
    text = RECIPE.replace("model_config:", "model_config:\n  freeze_batch_norm: false\n  freeze_backbone_stem: false")
    recipe.write_text(f"{text}batch_size: 4\nnum_images_to_log: 1\n".replace("epochs: 1", "epochs: 3"))
    out = tmp_path / "out"
    arguments = [str(recipe), "--trials", "3", "--keys", "learning_rate,denoising_groups", "--output_dir", str(out)]
    process = start_code(tmp_path / "printed", SEARCH_WITH_ONE_REAL_TRIAL, *arguments)
    second = out / "trials" / "0002"
    until = time.monotonic() + 300
    while not checkpoint_folders(second):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    journal = (out / "search.journal").read_text()
    values = yaml.safe_load((second / "recipe.yaml").read_text())

    assert main(arguments) == 0
    assert (out / "search.journal").read_text().startswith(journal)
    printed = capsys.readouterr().out
    assert "[2/3] learning_rate" in printed
    assert "[3/3] learning_rate" in printed
    results = json.loads((out / "results.json").read_text())
    assert [trial["state"] for trial in results["trials"]] == ["complete"] * 3
    assert results["trials"][0]["values"] == {"learning_rate": 1e-4, "denoising_groups": 0}
    assert results["trials"][1]["values"]["learning_rate"] == values["learning_rate"]
    assert "Stopped by SIGTERM" in (second / "train.txt").read_text()
    steps = [entry["epoch"] for entry in read_log(second / "log.jsonl") if entry["kind"] == "epoch"]
    assert steps == [1, 2, 3]
    assert (second / "model" / "model.safetensors").is_file()

    assert (
        run_command("train", [str(out / "best.yaml"), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]) == 0
    )
    best = results["trials"][results["best"] - 1]["values"]
    trained = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert {key: trained[key] for key in best} == best
