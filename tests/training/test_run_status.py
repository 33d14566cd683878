import pytest

from modeling_detr.errors_detr import OutputError
from modeling_detr.training.run_status import note_end, note_start, read_status
from modeling_detr.training.trainer import Trainer


def start(folder, step=0):
    note_start(folder, step, step / 2, total_steps=100, epochs=4, plan="steps  100")


def test_each_start_is_kept_and_the_end_is_that_of_the_last(tmp_path):
    assert read_status(tmp_path) is None
    start(tmp_path)
    note_end(tmp_path, "stopped", "Stopped by SIGTERM.")
    assert (read_status(tmp_path).outcome, read_status(tmp_path).text) == ("stopped", "Stopped by SIGTERM.")
    start(tmp_path, step=40)
    status = read_status(tmp_path)
    assert [(one.step, one.seconds) for one in status.starts] == [(0, 0.0), (40, 20.0)]
    assert (status.outcome, status.text, status.plan, status.total_steps) == (None, "", "steps  100", 100)
    start(tmp_path)  # from scratch
    assert len(read_status(tmp_path).starts) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"total_steps": 1}', '{"total_steps": "x", "epochs": 1}'])
def test_a_damaged_file_is_no_status(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert read_status(tmp_path) is None
    note_end(tmp_path, "finished")  # nothing to add to


def test_a_run_notes_its_length_its_plan_and_how_it_ended(tiny_recipe, monkeypatch):
    trainer = Trainer.from_recipe(tiny_recipe(trackers=[]))
    trainer = Trainer(trainer.run, plan="steps  10")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda self: (_ for _ in ()).throw(OutputError("run", "is full")))
        with pytest.raises(OutputError):
            trainer.train()
    status = read_status(trainer.run.recipe.run_dir)
    assert (status.total_steps, status.epochs, status.plan) == (10, 2, "steps  10")
    assert (status.outcome, status.text) == ("failed", "run: is full.")
