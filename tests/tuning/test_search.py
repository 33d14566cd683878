"""The search with processes replaced by objects that write a log when they are polled."""

import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from modeling_detr.benchmarks.detr_process import Place, failure_of, places, start_detr
from modeling_detr.benchmarks.machine import gpu_names
from modeling_detr.errors_detr import SearchError
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, best_of
from modeling_detr.tuning.results import recipe_text, write_results
from modeling_detr.tuning.search import JOURNAL, Search, SearchPlan
from modeling_detr.tuning.search_space import search_space
from modeling_detr.tuning.trial_runs import Evaluations


EPOCHS = 10


class FakeTraining:
    """Stands in for the process of a `detr train`: each poll is an epoch; the best learning rate is 2e-3."""

    def __init__(self, arguments, output, failing=(), killed_at=None):
        self.options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        self.folder = Path(self.options["--output_dir"])
        self.output, self.terminated, self.killed_at = output, False, killed_at
        self.fails = self.folder.name in failing
        self.log = self.folder / "log.jsonl"
        self.epoch = len(read_log(self.log)) if self.log.is_file() else 0

    def poll(self):
        if self.fails:
            self.output.write_text("step 3\ndetr train: error: CUDA out of memory.\n")
            return 2
        if self.epoch == EPOCHS:
            return 0
        if self.epoch == self.killed_at:
            raise KeyboardInterrupt
        self.epoch += 1
        rate = float(self.options.get("--learning_rate", 1e-3))
        score = (1 - abs(math.log10(rate / 2e-3))) * self.epoch / EPOCHS
        with self.log.open("a") as file:
            entry = {"kind": "epoch", "epoch": self.epoch, "step": self.epoch, "seconds": 6 * self.epoch, "ap": score}
            file.write(json.dumps(entry) + "\n")
        return None

    def terminate(self):
        self.terminated = True

    def wait(self, timeout=None):
        return 143


@pytest.fixture
def make_search(tmp_path):
    def make(trials, folder=tmp_path, keys=("learning_rate", "batch_size"), started=None, jobs=1, **faults):
        options = ["--learning_rate", "1e-3", "--batch_size", "8", "--mosaic_probability", "0"]
        recipe = parse_recipe(["small_dataset", "--data", "shapes", "--epochs", str(EPOCHS), *options])
        recipe = dataclasses.replace(recipe, output_dir=None)

        def start(arguments, output, place):
            process = FakeTraining(arguments, output, **faults)
            process.place = place
            if started is not None:
                started.append(process)
            return process

        folder.mkdir(exist_ok=True)
        dimensions = search_space(recipe, names=keys).dimensions
        plan = SearchPlan(recipe, folder / "base.yaml", dimensions, folder, trials, places(jobs, ["4", "7"]))
        return Search(plan, start, seconds_between_looks=0)

    return make


def values_of(search):
    return [dict(record.values) for record in search.records()]


def test_the_first_trial_is_the_recipe_and_later_ones_find_better_values(make_search):
    started, reported = [], []
    search = make_search(8, started=started)
    search.run(reported.append)
    records = search.records()
    assert records == reported
    assert [record.number for record in records] == [*range(1, 9)]
    assert records[0].values == {"learning_rate": 1e-3, "batch_size": 8}
    assert records[0].score == pytest.approx(1 - math.log10(2))
    assert records[0].minutes == 1
    assert best_of(records).score > records[0].score
    assert started[0].options["--resume"] == "auto"
    assert "--preflight" not in started[0].options
    assert started[1].options["--preflight"] == "false"


def test_a_search_that_is_interrupted_continues_as_if_it_had_not_been(make_search, tmp_path):
    whole = make_search(5, tmp_path / "whole")
    whole.run(lambda record: None)
    first = make_search(2, tmp_path / "parts")
    first.run(lambda record: None)
    with pytest.raises(KeyboardInterrupt):
        make_search(5, tmp_path / "parts", killed_at=4).run(lambda record: None)
    stopped = make_search(5, tmp_path / "parts")
    assert [record.state for record in stopped.records()] == [COMPLETE, COMPLETE, RUNNING]
    with (tmp_path / "parts" / JOURNAL).open("a") as file:
        file.write('{"op_code": 6, "wor')  # a line that a kill cut off

    started = []
    search = make_search(5, tmp_path / "parts", started=started)
    search.run(lambda record: None)
    assert values_of(search) == values_of(whole)
    assert [record.state for record in search.records()] == [COMPLETE] * 5
    assert started[0].folder == tmp_path / "parts" / "trials" / "0003"
    epochs = [entry["epoch"] for entry in read_log(started[0].folder / "log.jsonl")]
    assert epochs == [*range(1, EPOCHS + 1)]  # it continued after the fourth

    search.run(lambda record: pytest.fail("all trials are done"))


def test_trials_that_are_worse_than_the_median_are_stopped(make_search):
    started = []
    search = make_search(14, started=started, keys=("learning_rate",))
    search.run(lambda record: None)
    pruned = [record for record in search.records() if record.state == PRUNED]
    assert pruned
    for record in pruned:
        process = started[record.number - 1]
        assert process.terminated
        assert 3 <= process.epoch < EPOCHS
        assert record.score < best_of(search.records()).score
    assert [record.state for record in search.records()[:5]] == [COMPLETE] * 5
    assert not search.records()[0].folder.joinpath("checkpoints").exists()


def test_a_failed_trial_is_reported_and_the_search_continues(make_search, tmp_path):
    reported = []
    search = make_search(4, failing=("0001", "0003"))
    search.run(reported.append)
    assert [record.state for record in reported] == [FAILED, COMPLETE, FAILED, COMPLETE]
    assert reported[0].failure.startswith("detr train ended with exit code 2: detr train: error: CUDA out of memory.")
    write_results(search.plan.recipe, search.records(), {}, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "the recipe itself (trial 1) failed" in text
    assert text.count("CUDA out of memory") == 2


def test_a_search_whose_first_trials_fail_stops_and_starts_again(make_search):
    with pytest.raises(SearchError, match=r"the first 3 trials failed; the last one: .*CUDA out of memory"):
        make_search(6, failing=("0001", "0002", "0003")).run(lambda record: None)
    search = make_search(6)
    search.run(lambda record: None)
    assert [record.state for record in search.records()] == [COMPLETE] * 6
    assert search.records()[0].values == {"learning_rate": 1e-3, "batch_size": 8}


def test_trials_that_run_at_once_have_a_gpu_each_and_fail_alone(make_search):
    started, reported = [], []
    search = make_search(7, started=started, jobs=2, failing=("0003",))
    search.run(reported.append)
    assert [record.state for record in search.records()] == [COMPLETE] * 2 + [FAILED] + [COMPLETE] * 4
    assert sorted(record.number for record in reported) == [*range(1, 8)]
    assert [process.place.gpu for process in started[:3]] == ["4", "7", "4"]
    assert {process.place.gpu for process in started} == {"4", "7"}
    assert len({tuple(values.values()) for values in values_of(search)}) == 7  # no two alike
    assert [process.folder.name for process in started] == [f"{number:04d}" for number in range(1, 8)]


def test_trials_that_were_interrupted_together_continue(make_search):
    with pytest.raises(KeyboardInterrupt):
        make_search(4, jobs=2, killed_at=4).run(lambda record: None)
    stopped = make_search(4, jobs=2)
    assert [record.state for record in stopped.records()] == [RUNNING] * 2
    before, started = values_of(stopped), []
    search = make_search(4, jobs=2, started=started)
    search.run(lambda record: None)
    assert [record.state for record in search.records()] == [COMPLETE] * 4
    assert values_of(search)[:2] == before
    epochs = [entry["epoch"] for entry in read_log(started[0].folder / "log.jsonl")]
    assert epochs == [*range(1, EPOCHS + 1)]


def test_places_divide_gpus_or_cores(monkeypatch):
    assert places(1, ["0", "1"]) == [Place()]
    assert [place.gpu for place in places(3, ["0", "MIG-7"])] == ["0", "MIG-7", "0"]
    assert len({*places(3, ["0"])}) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5, 6}, raising=False)
    assert [place.cores for place in places(2, [])] == [(2, 4, 6), (3, 5)]


def test_gpus_are_those_that_the_search_may_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert gpu_names() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8f")
    assert gpu_names() == ["3", "GPU-8f"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert gpu_names() == []


def test_a_trial_that_was_killed_names_the_signal(tmp_path):
    (tmp_path / "train.txt").write_text("epoch 3/50\n")
    message = f"detr train was ended by SIGKILL: epoch 3/50 ({tmp_path / 'train.txt'})"
    assert failure_of("train", -9, tmp_path / "train.txt") == message


def test_a_trial_sees_its_gpu_only(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(options["env"]))
    start_detr(["train"], tmp_path / "train.txt", Place(gpu="3"))
    assert started[0]["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_key_without_effect_is_left_out(make_search):
    search = make_search(6, keys=("close_mosaic_share", "mosaic_probability"))
    search.run(lambda record: None)
    assert "close_mosaic_share" not in search.records()[0].values
    for record in search.records():
        assert ("close_mosaic_share" in record.values) == (record.values["mosaic_probability"] > 0)


def test_the_best_recipe_is_that_of_its_trial_without_its_minutes(make_search, tmp_path):
    search = make_search(16)
    search.run(lambda record: None)
    recipe = dataclasses.replace(search.plan.recipe, minutes=5.0)
    importances = search.importances()
    assert importances.keys() == {"learning_rate", "batch_size"}
    write_results(recipe, search.records(), importances, tmp_path, "detr tune small_dataset")
    best = best_of(search.records())
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert not {"output_dir", "minutes", "resume", "keep_checkpoints"} & written.keys()
    parsed = parse_recipe([str(tmp_path / "best.yaml")])
    expected = {**vars(search.plan.recipe), **best.values, "output_dir": "runs/best"}
    assert vars(parsed) == expected
    assert "# Trials had 5 minutes each; --minutes 5 trains for as long" in (tmp_path / "best.yaml").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["best"] == best.number
    assert len(results["trials"]) == 16
    text = (tmp_path / "results.md").read_text()
    assert "optimistic" in text
    assert "## Importance of the keys" in text
    assert (tmp_path / "search.png").stat().st_size > 5000

    write_results(recipe, search.records(), {}, tmp_path, own_minutes=5.0)
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["minutes"] == 5.0


def test_a_recipe_is_written_with_changed_keys_of_mappings():
    recipe = parse_recipe(["small_dataset", "--data", "shapes"])
    written = yaml.safe_load(recipe_text(recipe, {"model_config.num_queries": 50}))
    assert written["model_config"] == {**recipe.model_config, "num_queries": 50}


def test_scores_are_compared_at_points_of_the_run(tmp_path):
    log = tmp_path / "log.jsonl"
    recipe = parse_recipe(["small_dataset", "--data", "shapes", "--minutes", "10"])
    evaluations = Evaluations(log, recipe)
    assert not [*evaluations.new_points()]
    lines = [{"kind": "epoch", "epoch": 1, "step": 5, "seconds": 60, "ap": 0.2}]
    lines.append({"kind": "epoch", "epoch": 2, "step": 9, "seconds": 80})
    lines.append({"kind": "epoch", "epoch": 3, "step": 12, "seconds": 150, "ap": 0.1})
    lines.append({"kind": "epoch", "epoch": 4, "step": 15, "seconds": 900, "ap": None})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [*evaluations.new_points()] == [(2, 0.2), (3, 0.2), (4, 0.2), (5, 0.2)]
    assert evaluations.best == 0.2
    assert evaluations.minutes == 15
    assert not [*evaluations.new_points()]
