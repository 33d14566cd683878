"""`detr train` as users run it, from the recipe to the model, some of it in separate processes."""

import os
import re
import signal

import pytest
import torch
from launched_runs import RECIPE, entries, start_prepared, wait_for_log

from modeling_detr import commands
from modeling_detr.commands import train
from modeling_detr.data import read_image
from modeling_detr.structures_detr import ImageRecord


def test_the_command_prints_the_plan_trains_and_prints_where_the_results_are(config, tmp_path, capsys):
    assert train.main([str(config), "--batch_size", "4"]) == 0
    out = capsys.readouterr().out
    assert "train     shapes" in out
    assert re.search(r"\nfrozen    model\.backbone\.conv_encoder\.model\.conv1.*batch norms\n", out)
    assert "| AP  " in out
    assert f"\nsee {(tmp_path / 'run' / 'evaluation.html').as_uri()}\n" in out
    for name in ("model", "curves.png", "evaluation.json", "recipe.yaml", "log.jsonl"):
        assert (tmp_path / "run" / name).exists()


def test_a_frozen_random_backbone_is_an_error(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{RECIPE}output_dir: {tmp_path / 'run'}\n")
    with pytest.raises(ValueError, match=r"random backbone; .*backbone_weights .*resnet10t") as error:
        train.main([str(path)])
    assert "model_config.freeze_backbone_stem to false" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_config.num_querys", "3"], "model_config.num_querys: unknown key; did you mean"),
        (["--model_config.d_model", "wide"], "model_config.d_model: got 'wide', expected an integer"),
        (["--model_config.num_labels", "3"], "num_labels comes from the dataset"),
        (["--processor_config.sise", "3"], "processor_config: "),
        (["--processor_config.size", "{height: 64, width: 64}"], "expected a size with shortest_edge"),
        (["--transform", "lite"], "light"),
        (["--transform_options.scale", "3"], "has no option 'scale'"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--train_split", "training"], "has no split 'training'"),
        (["--backbone_weights", "no/such/file.safetensors"], "no such file"),
        (["--trackers", "tensorbord"], "did you mean 'tensorboard'?"),
    ],
)
def test_errors_are_one_line_without_a_traceback(config, arguments, message, capsys):
    assert commands.main(["train", str(config), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("detr train: ")
    assert len(err.strip().splitlines()) == 1


def test_an_error_of_the_program_keeps_its_traceback(config, monkeypatch):
    monkeypatch.setattr(train, "parse_recipe", lambda *_, **__: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        commands.main(["train", str(config)])


def _broken_worker(*_, **__):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, position):
            return read_image(ImageRecord(1, "no/such\u00e9.jpg", 8, 8))

    next(iter(torch.utils.data.DataLoader(Images(), num_workers=1)))


def test_an_unreadable_image_in_a_loader_process_is_one_line(config, monkeypatch, capsys):
    monkeypatch.setattr(train, "parse_recipe", _broken_worker)
    assert commands.main(["train", str(config)]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("detr train: ")
    assert "no/such\u00e9.jpg" in err
    assert "Traceback" not in err
    monkeypatch.setenv("DETR_TRACEBACK", "1")
    with pytest.raises(OSError, match="Original Traceback"):
        commands.main(["train", str(config)])


def test_a_recipe_for_a_new_model_can_train_an_existing_one(config, tmp_path, capsys):
    assert train.main([str(config), "--max_steps", "1", "--batch_size", "4"]) == 0
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "more"), "--max_steps", "1"]
    assert train.main([str(config), "--batch_size", "4", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "note      model_config of the recipe, {" in printed
    assert "pixels (from the model); augmentation" in printed  # its image size stays


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_batch(config, tmp_path):
    for processes, batch_size in ((1, 8), (2, 4)):
        options = ("--batch_size", batch_size, "--output_dir", tmp_path / str(processes))
        run = start_prepared(tmp_path / "printed", config, *options, processes=processes)
        out, _ = run.communicate(timeout=240)
        assert run.returncode == 0, out
        assert ("cpu, 1 process," if processes == 1 else "cpu, 2 processes,") in out
    for one, two in zip(entries(tmp_path / "1", "step"), entries(tmp_path / "2", "step"), strict=True):
        assert {name: two[name] for name in one if name.startswith(("loss", "grad"))} == pytest.approx(
            {name: one[name] for name in one if name.startswith(("loss", "grad"))}, rel=2e-3
        )
    (one,), (two,) = entries(tmp_path / "1", "epoch"), entries(tmp_path / "2", "epoch")
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=2e-3)
    assert two["ap"] == pytest.approx(one["ap"], abs=1e-4)
    assert two["object_queries"] == one["object_queries"]
    assert two["query_spread"] == pytest.approx(one["query_spread"], rel=2e-3)


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_the_run_can_be_resumed(config, tmp_path):
    run_dir = tmp_path / "run"
    arguments = (config, "--batch_size", 1, "--epochs", 200, "--num_workers", 1, "--lr_schedule", "constant")
    run = start_prepared(tmp_path / "printed", *arguments)
    wait_for_log(run, run_dir)
    os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to the loader processes too
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130, out
    assert "Stopped by SIGINT" in out
    assert "Traceback" not in out
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    stopped_at = int(checkpoint.name.removeprefix("step_"))
    resumed = start_prepared(tmp_path / "printed", *arguments, "--resume", "auto", "--max_steps", stopped_at + 2)
    out, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, out
    assert f"at step {stopped_at}" in out
    steps = [entry["step"] for entry in entries(run_dir, "step")]
    assert steps == list(range(1, stopped_at + 3))
