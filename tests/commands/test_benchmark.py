import json
import os
import re
import signal
import time

import pytest
from launched_runs import ENVIRONMENT, RECIPE, start_code, start_detr

from modeling_detr.benchmarks import study_runs
from modeling_detr.commands.benchmark import main
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.run_folder import checkpoint_folders


STUDY = """\
recipe: {recipe}
keys:
  model_config: {{freeze_batch_norm: false, freeze_backbone_stem: false}}
  epochs: 4
  batch_size: 4
  num_images_to_log: 1
  preflight: false
variants:
  plain: {{encoder_supervision: false}}
  aided: {{}}
seeds: 2
thresholds: [0.5]
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, **ENVIRONMENT})
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(recipe=tmp_path / "tiny.yaml"))
    return path


# The study trains `plain` in a prepared process, and `aided`, during which it is killed, as it does without a test.
STUDY_WITH_ONE_REAL_RUN = """\
import sys
import launched_runs
from modeling_detr.benchmarks import detr_process, study_runs
from modeling_detr.commands import run_command
def start_detr(arguments, output, place):
    start = detr_process.start_detr if "aided" in output.parts else launched_runs.start_detr
    return start(arguments, output, place)
study_runs.start_detr = start_detr
sys.exit(run_command("benchmark"))
"""


@pytest.fixture
def prepared(monkeypatch):
    """Studies whose runs start without their imports."""
    monkeypatch.setattr(study_runs, "start_detr", start_detr)


def wait_for(condition, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_study_that_is_killed_continues_where_it_stopped(study, tmp_path, prepared, capsys):
    out = tmp_path / "out"
    first, second = (out / "runs" / name / "all" / "seed_0" for name in ("plain", "aided"))
    arguments = ["convergence", str(study), "--output_dir", str(out), "--seeds", "0,"]
    process = start_code(tmp_path / "printed.txt", STUDY_WITH_ONE_REAL_RUN, *arguments)
    wait_for(
        lambda: (
            process.poll() is not None or ((first / "finished.json").exists() and len(checkpoint_folders(second)) > 0)
        )
    )
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((out / "results.json").read_text())["runs"][0]["variant"] == "plain"
    finished_at = (first / "finished.json").stat().st_mtime_ns
    wait_for(lambda: "Stopped by SIGTERM" in (second / "train.txt").read_text() or (second / "model").exists())

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 runs (plain, aided; seeds 0), 1 finished" in printed
    assert "[2/2] aided, seed 0: AP50 " in printed
    assert (first / "finished.json").stat().st_mtime_ns == finished_at
    assert [entry["epoch"] for entry in read_log(second / "log.jsonl") if entry["kind"] == "epoch"] == [*range(1, 5)]
    results = json.loads((out / "results.json").read_text())
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [("plain", 0), ("aided", 0)]
    assert (out / "results.md").read_text() in printed


@pytest.mark.slow
def test_the_results_are_those_of_all_variants_and_seeds(study, tmp_path, prepared, capsys):
    out = tmp_path / "out"
    arguments = ["convergence", str(study), "--output_dir", str(out), "--jobs", "2", "--epochs", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 runs (plain, aided; seeds 0, 1), 0 finished" in printed
    assert re.search(r"\[4/4\] (plain|aided), seed 1: AP50 ", printed)
    results = json.loads((out / "results.json").read_text())
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [
        ("plain", 0),
        ("aided", 0),
        ("plain", 1),
        ("aided", 1),
    ]
    for run in results["runs"]:
        assert (run["num_images"], run["steps"], len(run["curve"])) == (16, 8, 2)
        assert run["curve"][-1]["images"] == 2 * 16
        assert run["seconds"] > 0
        assert [*run["per_class"]] == ["circle", "square", "triangle", "star"]
        assert run["duplicates"] >= 0
    assert (out / "results.md").read_text() in printed
    assert "| plain   | 2 " in printed or "| plain | 2 |" in printed
    assert (out / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(study, tmp_path, prepared, capsys):
    study.write_text(study.read_text().replace("aided: {}", "aided: {backbone_weights: nowhere.safetensors}"))
    out = tmp_path / "out"
    arguments = ["convergence", str(study), "--output_dir", str(out), "--seeds", "1", "--jobs", "2", "--epochs", "1"]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED; detr train ended with exit code 2") == 1
    results = json.loads((out / "results.json").read_text())
    assert [(run["variant"], run["seed"]) for run in results["runs"]] == [("plain", 0)]
    assert len(results["failures"]) == 1
    assert "nowhere.safetensors" in (out / "results.md").read_text()

    with pytest.raises(ValueError, match=r"has been trained with other settings \(--epochs 1, now 2\)"):
        main([*arguments[:-1], "2"])


@pytest.mark.slow
def test_a_variant_starts_from_the_first_stage(study, tmp_path, prepared):
    text = study.read_text().replace("aided: {}", "aided: {model: start, head_init: fresh}")
    study.write_text(f'{text}start: {{keys: {{data: "shapes?size=64&train=16&val=4&classes=star,circle"}}}}\n')
    out = tmp_path / "out"
    options = ["--seeds", "1", "--epochs", "1", "--variants", "aided", "--train_images", "8"]
    assert main(["convergence", str(study), "--output_dir", str(out), *options]) == 0
    (run,) = json.loads((out / "results.json").read_text())["runs"]
    assert run["num_images"] == 8
    printed = (out / "runs" / "aided" / "images_8" / "seed_0" / "train.txt").read_text()
    assert "new class head" in printed


def test_what_is_wrong_is_said_before_anything_is_trained(study, tmp_path):
    with pytest.raises(ValueError, match=r"--jobs: got '0'; expected a number"):
        main(["convergence", str(study), "--jobs", "0"])
    with pytest.raises(ValueError, match=r"--encoder_supervision: variant 'plain' of study sets it"):
        main(["convergence", str(study), "--encoder_supervision"])
    with pytest.raises(ValueError, match=r"--learning_rate: got 'high' .*, expected a number"):
        main(["convergence", str(study), "--learning_rate", "high"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convergenc", "shapes"], "unknown sub-command 'convergenc'; did you mean 'convergence'"),
        (["convergence", "shapes", "--epoch", "3"], "unknown option --epoch; did you mean '--epochs'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
