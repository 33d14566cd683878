import dataclasses
import json
import os
import re
import signal

import psutil
import pytest
import torch
from launched_runs import logged
from safetensors.torch import load_file

from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.data import DetectionDataset
from modeling_detr.errors_detr import CheckpointError
from modeling_detr.structures_detr import DetectionBatch
from modeling_detr.training import distributed
from modeling_detr.training import trainer as trainer_module
from modeling_detr.training.divergence import NonFiniteLossError
from modeling_detr.training.metric_logger import MetricLogger
from modeling_detr.training.plan import plan
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.signals import TrainingInterrupted
from modeling_detr.training.trainer import Trainer


def entries(recipe: Recipe):
    return logged(recipe.run_dir)


def weights(recipe: Recipe):
    (newest,) = sorted((recipe.run_dir / "checkpoints").iterdir())[-1:]
    average = {f"ema.{name}": value for name, value in load_file(newest / "ema.safetensors").items()}
    return load_file(newest / "model.safetensors") | average | torch.load(newest / "optimizer.pt")["state"]


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal during the given optimizer step."""
    original = MetricLogger.advance

    def advance(self, *arguments):
        advance.calls += 1
        if advance.calls == step:
            os.kill(os.getpid(), number)
        original(self, *arguments)

    advance.calls = 0
    monkeypatch.setattr(MetricLogger, "advance", advance)


def test_a_run_writes_log_checkpoints_pictures_and_a_model(tiny_recipe):
    recipe = tiny_recipe(encoder_supervision=True, denoising_groups=1, keep_checkpoints=1)
    trainer = Trainer.from_recipe(recipe)
    lines = plan(trainer.run)
    for expected in ("20 images", "circle", "10 of 4 images", "backbone", "cpu", "cosine"):
        assert expected in lines
    report = trainer.train()
    lines = (recipe.run_dir / "log.jsonl").read_text().splitlines()
    assert all({"images_per_second", "loader_wait", "memory_gib"} <= set(json.loads(line)) for line in lines)
    steps = [entry for entry in entries(recipe) if entry["kind"] == "step"]
    epochs = [entry for entry in entries(recipe) if entry["kind"] == "epoch"]
    assert [entry["step"] for entry in steps] == [2, 4, 6, 8, 10]
    assert [entry["images"] for entry in [*steps, *epochs]] == [8, 16, 24, 32, 40, 20, 40]
    assert {"loss", "loss_ce", "loss_giou_0", "loss_ce_encoder", "grad_norm", "learning_rate"} <= set(steps[0])
    assert [entry["step"] for entry in epochs] == [5, 10]
    assert epochs[-1]["ap"] == pytest.approx(report.results["metrics"].ap)
    kept = {f"step_{step:08d}" for step in (10, trainer.state.best_step)}  # the newest, and the best
    assert {path.name for path in (recipe.run_dir / "checkpoints").iterdir()} == kept
    model = DetrForObjectDetection.from_pretrained(recipe.run_dir / "model")
    assert list(model.config.id2label.values()) == ["circle", "square", "triangle", "star"]
    processor = DetrTorchvisionImageProcessor.from_pretrained(recipe.run_dir / "model")
    assert dict(processor.size) == {"shortest_edge": 64, "longest_edge": 64}
    card = (recipe.run_dir / "model/README.md").read_text()
    assert "circle, square, triangle, star" in card
    assert "learning_rate: 0.001" in card
    assert list((recipe.run_dir / "trackers").rglob("events.out.tfevents.*"))
    (picture,) = (recipe.run_dir / "predictions").iterdir()
    assert picture.suffix == ".jpg"


@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny_recipe, tmp_path, monkeypatch, step):
    options = {"denoising_groups": 1, "gradient_accumulation_steps": 1, "log_every_steps": 2, "ema_decay": 0.9}
    options |= {"mosaic_probability": 0.5, "close_mosaic_share": 0.5}  # in the first of two epochs
    whole = tiny_recipe(**options, output_dir=str(tmp_path / "whole"))
    Trainer.from_recipe(whole).train()

    cut = tiny_recipe(**options, output_dir=str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        signal_at(patch, step)
        with pytest.raises(TrainingInterrupted, match="--resume auto") as interruption:
            Trainer.from_recipe(cut).train()
    assert interruption.value.signal_number == signal.SIGTERM
    resumed = tiny_recipe(**options, output_dir=str(tmp_path / "cut"), resume="auto")
    torch.rand(5)  # whatever another process has drawn before
    trainer = Trainer.from_recipe(resumed)
    assert f"at step {trainer.state.step}" in plan(trainer.run)
    assert step <= trainer.state.step <= step + 1
    trainer.train()

    assert entries(resumed) == entries(whole)
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert all(torch.equal(value[key], got[name][key]) for key in value), name
        else:
            assert torch.equal(value, got[name]), name


@pytest.mark.with_plots
def test_the_page_of_a_run_has_pictures_curves_and_the_command(tiny_recipe):
    recipe = tiny_recipe(epochs=3)
    Trainer(prepare_run(recipe), "detr train tiny --epochs 3").train()
    page = (recipe.run_dir / "evaluation.html").read_text(encoding="utf-8")
    assert "<span>detr</span> <span>train</span> <span>tiny</span>" in page
    assert f"<dd>{recipe.run_dir / 'model'}, the best so far: epoch " in page
    assert "<dt>data</dt><dd>shapes?size=64&amp;train=20&amp;val=4</dd>" in page
    assert "<h2>Predictions</h2>" in page
    assert "epochs 1 to 3" in page  # also if the best epoch was an earlier one
    assert "<h2>Images with the most errors</h2>" in page
    assert page.count("data:image/webp") == 4 + recipe.num_images_to_log + 1  # all evaluation images have errors
    assert json.loads((recipe.run_dir / "evaluation.json").read_text())["errors"]["counts"]["missed"] >= 0
    assert "<summary><h2>Losses of the earlier decoder layers</h2></summary>" in page


def test_the_best_model_is_kept_when_a_later_one_is_worse(tiny_recipe, monkeypatch):
    recipe = tiny_recipe(epochs=2)
    aps = iter([0.5, 0.25])
    original = Trainer.evaluate

    def evaluate(self):
        report = original(self)
        object.__setattr__(report.results["metrics"], "ap", next(aps))
        return report

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    trainer = Trainer.from_recipe(recipe)
    trainer.train()
    assert (trainer.state.best_ap, trainer.state.best_epoch, trainer.state.last_ap) == (0.5, 1, 0.25)
    assert "after epoch 1 (5 optimizer steps)" in (recipe.run_dir / "model/README.md").read_text()


def test_averaged_weights_are_evaluated_and_exported(tiny_recipe, tmp_path):
    def run(steps):
        recipe = tiny_recipe(
            output_dir=str(tmp_path / str(steps)), max_steps=steps, ema_decay=0.3, lr_schedule="constant"
        )
        trainer = Trainer.from_recipe(recipe)
        trainer.train()
        detector = {name: value.clone() for name, value in trainer.run.weights.detector.state_dict().items()}
        return trainer, detector, load_file(recipe.run_dir / "model" / "model.safetensors")

    (_, after_one, kept_of_one), (trainer, after_two, kept) = run(1), run(2)
    name = "class_labels_classifier.weight"
    assert torch.equal(kept_of_one[name], after_one[name])  # of one step the average is that step
    assert not torch.equal(after_one[name], after_two[name])
    torch.testing.assert_close(kept[name], 0.3 * after_one[name] + 0.7 * after_two[name])
    torch.testing.assert_close(kept[name], trainer.run.weights.result.state_dict()[name])


def test_averaging_can_start_in_the_middle_of_a_run(tiny_recipe):
    Trainer.from_recipe(tiny_recipe(max_steps=2)).train()
    trainer = Trainer.from_recipe(tiny_recipe(max_steps=3, resume="auto", ema_decay=0.9))
    assert "has no averaged weights: the average starts at its weights" in plan(trainer.run)
    weights = trainer.run.weights.detector.state_dict()
    assert all(
        torch.equal(average, weights[name]) for name, average in trainer.run.weights.result.state_dict().items()
    )


def test_learning_rates_scale_with_the_step_size_only_if_set(tiny_recipe):
    def rates(**changes):
        trainer = Trainer.from_recipe(
            tiny_recipe(batch_size=4, learning_rate=1e-3, backbone_learning_rate=1e-4, **changes)
        )
        return [group["initial_lr"] for group in trainer.run.raw_optimizer.param_groups]

    assert rates() == [1e-3, 1e-4]
    assert rates(scale_lr="sqrt") == pytest.approx([5e-4, 5e-5])  # 4 images where the rates are meant for 16
    assert rates(scale_lr="linear", scale_lr_from=2) == pytest.approx([2e-3, 2e-4])


def drops(trainer):
    """Return the steps at which the learning rates drop."""
    (factor, *_) = trainer.run.scheduler.lr_lambdas
    return [step for step in range(1, trainer.run.schedule.total_steps) if factor(step) < factor(step - 1)]


def test_learning_rates_can_drop_by_steps(tiny_recipe):
    trainer = Trainer.from_recipe(tiny_recipe(lr_schedule="step", lr_drop_epochs=1, lr_drop_steps=4))
    assert drops(trainer) == [4, 8]
    assert "a tenth every 4 steps" in plan(trainer.run)


def test_a_run_stops_early_when_evaluations_do_not_improve_and_stays_stopped(tiny_recipe, capsys):
    recipe = tiny_recipe(epochs=9, early_stopping_patience=1, learning_rate=0.0, backbone_learning_rate=0.0)
    trainer = Trainer.from_recipe(recipe)
    trainer.train()
    assert (trainer.state.epoch, trainer.state.best_epoch) == (2, 1)
    assert "stopped early" in capsys.readouterr().out
    resumed = Trainer.from_recipe(dataclasses.replace(recipe, resume="auto"))
    resumed.train()
    assert resumed.state.step == trainer.state.step == 10
    patient = Trainer.from_recipe(dataclasses.replace(recipe, resume="auto", early_stopping_patience=2))
    patient.train()
    assert patient.state.epoch == 3


def test_a_warmup_in_epochs_is_that_many_steps(tiny_recipe):
    assert "8 steps of warm-up" in plan(prepare_run(tiny_recipe(warmup_epochs=1.5)))
    with pytest.raises(ValueError, match="warmup_steps: cannot be combined with warmup_epochs"):
        tiny_recipe(warmup_epochs=1.0, warmup_steps=2)


def test_processes_with_a_world_size_of_one_each_are_refused(tiny_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # what `accelerate launch` leaves where it finds no accelerators
    with pytest.raises(ValueError, match="8 processes were started, but each sees a world size of 1"):
        Trainer.from_recipe(tiny_recipe())


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_recipe):
    recipe = tiny_recipe()
    recipe.run_dir.mkdir()
    (recipe.run_dir / "log.jsonl").write_text("precious")
    with pytest.raises(ValueError, match="already contains a run; use --resume auto"):
        Trainer.from_recipe(recipe)
    assert (recipe.run_dir / "log.jsonl").read_text() == "precious"


def test_resume_auto_without_a_run_starts_one(tiny_recipe):
    assert Trainer.from_recipe(tiny_recipe(resume="auto")).state.step == 0


def test_a_checkpoint_of_another_model_is_refused_and_other_changes_are_reported(tiny_recipe, tmp_path):
    Trainer.from_recipe(tiny_recipe(max_steps=3)).train()
    with pytest.raises(ValueError, match="denoising_groups"):
        Trainer.from_recipe(tiny_recipe(resume="auto", denoising_groups=2))
    changed = Trainer.from_recipe(tiny_recipe(resume="auto", batch_size=5, learning_rate=5e-4))
    assert "learning_rate changed from 0.001 to 0.0005" in plan(changed.run)
    assert (
        "continues with the next epoch, since the number of images per step (from 4 to 5) changed within this one"
        in plan(changed.run)
    )
    assert (changed.state.epoch, changed.state.step, changed.run.schedule.total_steps) == (1, 3, 3 + 4)
    assert changed.run.raw_optimizer.param_groups[0]["initial_lr"] == 5e-4
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        Trainer.from_recipe(tiny_recipe(resume=str(tmp_path / "nowhere")))


def test_a_non_finite_loss_names_epoch_step_and_files(tiny_recipe, monkeypatch):
    original = trainer_module.train_one_epoch

    def poisoned(engine, batches, *arguments, **options):
        def spoil(number: int, batch: DetectionBatch) -> DetectionBatch:
            if number == 2:
                batch["pixel_values"] = torch.full(batch["pixel_values"].shape, torch.nan)
            return batch

        return original(engine, (spoil(*pair) for pair in enumerate(batches)), *arguments, **options)

    monkeypatch.setattr(trainer_module, "train_one_epoch", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 3: not finite: loss.*shapes.*/train/0000\d\d"):
        Trainer.from_recipe(tiny_recipe()).train()


def test_the_plan_reports_a_step_that_depends_on_its_split(tiny_recipe):
    as_original = Trainer.from_recipe(
        tiny_recipe(loss_normalization="original", gradient_accumulation_steps=2, max_steps=1)
    )
    assert "losses    each batch's class loss is divided by its own class weights" in plan(as_original.run)
    as_original.train()
    (mine,) = [entry["loss_ce"] for entry in entries(as_original.run.recipe) if entry["kind"] == "epoch"]
    whole = Trainer.from_recipe(
        tiny_recipe(gradient_accumulation_steps=2, max_steps=1, output_dir=str(as_original.run.recipe.run_dir / "b"))
    )
    assert "losses " not in plan(whole.run)
    whole.train()
    (wholes,) = [entry["loss_ce"] for entry in entries(whole.run.recipe) if entry["kind"] == "epoch"]
    assert mine != wholes  # of batches with other numbers of objects


def test_an_unreadable_image_saves_a_checkpoint_first(tiny_recipe, monkeypatch, capsys):
    original = DetectionDataset.__getitem__

    def broken(self, key):
        broken.calls += 1
        if broken.calls == 11:  # in the third step of four images
            raise OSError("bad.jpg cannot be read")
        return original(self, key)

    broken.calls = 0
    recipe = tiny_recipe()
    with monkeypatch.context() as patch:
        patch.setattr(DetectionDataset, "__getitem__", broken)
        with pytest.raises(OSError, match="bad"):
            Trainer.from_recipe(recipe).train()
    assert "step_00000002 has all progress up to step 2: fix the error below" in capsys.readouterr().out
    trainer = Trainer.from_recipe(dataclasses.replace(recipe, resume="auto"))
    trainer.train()
    assert [entry["step"] for entry in entries(recipe) if entry["kind"] == "step"] == [2, 4, 6, 8, 10]


def test_an_epoch_does_not_continue_with_other_images(tiny_recipe):
    Trainer.from_recipe(tiny_recipe(max_steps=3)).train()
    fewer = Trainer.from_recipe(tiny_recipe(resume="auto", data="shapes?size=64&train=16&val=4"))
    assert "the number of training images (from 20 to 16)" in plan(fewer.run)
    assert (fewer.state.epoch, fewer.state.step_in_epoch) == (1, 0)


def test_an_epoch_does_not_continue_with_batches_of_another_version(tiny_recipe):
    Trainer.from_recipe(tiny_recipe(max_steps=3)).train()
    (state,) = tiny_recipe().run_dir.glob("checkpoints/*/state.json")
    content = json.loads(state.read_text())
    del content["state"]["packing_version"]  # as older versions wrote it
    state.write_text(json.dumps(content))
    resumed = Trainer.from_recipe(tiny_recipe(resume="auto"))
    assert "continues with the next epoch, since the grouping of images by size" in plan(resumed.run)
    assert (resumed.state.epoch, resumed.state.step_in_epoch) == (1, 0)


def test_the_last_epoch_is_repeated_if_it_cannot_be_continued(tiny_recipe):
    """Not skipped, which would skip the last evaluation and checkpoint too."""
    Trainer.from_recipe(tiny_recipe(max_steps=7)).train()  # 5 steps per epoch, 2 epochs
    moved = Trainer.from_recipe(tiny_recipe(resume="auto", data="shapes?size=64&train=16&val=4"))
    assert "repeats the last epoch, since data, the number of training images" in plan(moved.run)
    moved.train()
    epochs = [(entry["epoch"], entry["step"]) for entry in entries(moved.run.recipe) if entry["kind"] == "epoch"]
    assert epochs[-1] == (2, 11)  # 7 steps, then 4 for 16 images
    assert (moved.run.recipe.run_dir / "checkpoints/step_00000011").is_dir()


@pytest.mark.parametrize("damage", ["state of a newer version", "optimizer"])
def test_a_run_whose_checkpoints_cannot_be_used_is_left_as_it_is(tiny_recipe, damage):
    Trainer.from_recipe(tiny_recipe()).train()
    run_dir = tiny_recipe().run_dir
    for state in run_dir.glob("checkpoints/*/state.json"):
        if damage == "optimizer":
            (state.parent / "optimizer.pt").write_bytes(b"")
        else:
            content = json.loads(state.read_text())
            state.write_text(json.dumps(content | {"state": content["state"] | {"new_key": 1}}))
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError):
        Trainer.from_recipe(tiny_recipe(resume="auto"))
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_frozen_parts_are_named_and_a_backbone_rate_of_zero_freezes(tiny_recipe):
    trainer = Trainer.from_recipe(tiny_recipe(backbone_learning_rate=0.0))
    assert re.search(r"backbone +[\d,]+ +0 +-\n", plan(trainer.run))
    assert "\nfrozen    model.backbone\n" in plan(trainer.run)
    assert trainer.run.raw_optimizer.param_groups[1]["params"] == []


def test_the_plan_has_a_table_of_what_trains_at_which_rate(tiny_recipe):
    trainer = Trainer.from_recipe(tiny_recipe(freeze=["*.self_attn"], backbone_learning_rate=1e-4, denoising_groups=1))
    lines = [line[10:].split() for line in plan(trainer.run).splitlines()]
    table = {row[0]: row[1:] for row in lines[lines.index(["part", "parameters", "train", "rate"]) + 1 :]}
    detector = trainer.run.weights.detector
    backbone = f"{sum(parameter.numel() for parameter in detector.model.backbone.parameters()):,}"
    assert table["backbone"] == [backbone, backbone, "0.0001"]
    assert table["decoder"][-1] == "0.001"
    frozen = "model.encoder.layers.*.self_attn, model.decoder.layers.*.self_attn"
    assert f"\nfrozen    {frozen}\n" in plan(trainer.run)
    all_, train = (int(table["decoder"][column].replace(",", "")) for column in (0, 1))
    assert all_ - train == sum(
        parameter.numel() for layer in detector.model.decoder.layers for parameter in layer.self_attn.parameters()
    )
    assert "aids" in table
    assert "mask" not in table
    in_optimizer = sum(one.numel() for group in trainer.run.raw_optimizer.param_groups for one in group["params"])
    assert int(table["all"][1].replace(",", "")) == in_optimizer


def test_learning_rates_drop_by_epochs_also_if_a_resumed_run_has_other_steps(tiny_recipe, tmp_path):
    first = tiny_recipe(lr_schedule="step", lr_drop_epochs=2, epochs=1)
    Trainer.from_recipe(first).train()  # 5 steps an epoch
    resumed = Trainer.from_recipe(
        tiny_recipe(lr_schedule="step", lr_drop_epochs=2, epochs=5, batch_size=2, resume="auto")
    )
    assert resumed.run.schedule.steps_per_epoch == 10
    assert drops(resumed) == [15, 35]


def test_continuing_from_an_older_checkpoint_removes_the_later_ones(tiny_recipe):
    Trainer.from_recipe(tiny_recipe(keep_checkpoints=5)).train()
    checkpoints = tiny_recipe().run_dir / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["step_00000005", "step_00000010"]
    older = str(checkpoints / "step_00000005")
    Trainer.from_recipe(tiny_recipe(keep_checkpoints=5, resume=older, max_steps=7)).train()
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["step_00000005", "step_00000007"]


def test_a_checkpoint_of_another_run_does_not_overwrite_this_one(tiny_recipe, tmp_path):
    Trainer.from_recipe(tiny_recipe(epochs=1)).train()
    other = tiny_recipe(epochs=1, output_dir=str(tmp_path / "other"))
    Trainer.from_recipe(other).train()
    with pytest.raises(ValueError, match=r"already contains a run, and .* is a checkpoint of another"):
        Trainer.from_recipe(tiny_recipe(resume=str(other.run_dir / "checkpoints" / "step_00000005")))


def test_a_run_stopped_before_its_first_evaluation_closes(tiny_recipe, monkeypatch):
    signal_at(monkeypatch, 3)
    with pytest.raises(TrainingInterrupted):
        Trainer.from_recipe(tiny_recipe()).train()
    trainer = Trainer.from_recipe(tiny_recipe(resume="auto", max_steps=2))
    trainer.train()
    assert (trainer.run.recipe.run_dir / "model" / "config.json").is_file()


def test_objects_without_a_query_are_reported_before_the_first_step(tiny_recipe):
    model_config = tiny_recipe().model_config | {"num_queries": 2}
    assert "objects are not trained on. Raise model_config.num_queries" in plan(
        prepare_run(tiny_recipe(model_config=model_config))
    )


def test_processes_that_see_different_checkpoints_stop_before_the_first_step(tiny_recipe, monkeypatch):
    """Also if this process sees none but that of another machine does: their folders differ."""
    monkeypatch.setattr(distributed, "gather_object", lambda own: [*own, (20, 4)])
    with pytest.raises(ValueError, match="must be a folder that all machines share"):
        Trainer.from_recipe(tiny_recipe(resume="auto"))


@pytest.mark.usefixtures("no_child_processes")
def test_a_finished_run_has_no_loader_processes_and_can_be_evaluated_again(tiny_recipe):
    trainer = Trainer.from_recipe(tiny_recipe(num_workers=2, epochs=1))
    report = trainer.train()
    assert not psutil.Process().children()
    assert trainer.evaluate().log_values() == report.log_values()
