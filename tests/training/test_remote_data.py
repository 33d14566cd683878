"""A run on remote data whose store goes away: it stops with a checkpoint, and resumes as if nothing had happened."""

import dataclasses

import pytest
import torch
from store_server import serving

from modeling_detr.data import open_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.remote import store
from modeling_detr.errors_detr import StoreError
from modeling_detr.training import trainer as trainer_module
from modeling_detr.training.trainer import Trainer


pytestmark = pytest.mark.usefixtures("no_child_processes")


@pytest.mark.slow
def test_a_run_stops_when_its_store_is_gone_and_resumes_to_the_same_bits(tiny_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "FIRST_PAUSE", 0.01)
    convert_dataset(open_dataset("shapes?size=64&train=12&val=2"), tmp_path / "served/shapes", "coco")
    original = trainer_module.train_one_epoch

    with serving(tmp_path / "served") as server:
        keys = {"data": f"{server.url}/shapes", "epochs": 2, "num_workers": 1}
        whole = Trainer.from_recipe(tiny_recipe(**keys, output_dir=str(tmp_path / "whole")))
        whole.train()

        def until_the_store_is_gone(*arguments, **options):
            for taken, result in enumerate(original(*arguments, **options), start=1):
                server.dead |= taken == 2
                yield result

        monkeypatch.setenv("DETR_CACHE", str(tmp_path / "none"))
        monkeypatch.setenv("DETR_CACHE_GB", "0")
        recipe = tiny_recipe(**keys)
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, "train_one_epoch", until_the_store_is_gone)
            with pytest.raises(StoreError, match=r"the store does not answer \(5 attempts"):
                Trainer.from_recipe(recipe).train()
        assert "fix the error below, then resume" in capsys.readouterr().out
        server.dead = False
        resumed = Trainer.from_recipe(dataclasses.replace(recipe, resume="auto"))
        assert resumed.state.step >= 2
        resumed.train()
    expected = whole.run.model.state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in resumed.run.model.state_dict().items())
