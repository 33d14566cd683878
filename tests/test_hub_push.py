"""Pushing and pulling with the real client, and a local stand-in for the Hub."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import TOKEN, serving
from test_hub import DETECTOR_FILES, save


ROOT = Path(__file__).parents[1]
RECIPE = """\
data: shapes?size=64&train=16&val=4
model_config: {backbone: resnet10t, backbone_kwargs: {channels: [8, 8, 16, 16], stem_width: 8}, out_indices: [3],
  freeze_batch_norm: false, freeze_backbone_stem: false, num_queries: 6, d_model: 16, encoder_layers: 1,
  decoder_layers: 2, encoder_attention_heads: 2, decoder_attention_heads: 2, encoder_ffn_dim: 16, decoder_ffn_dim: 16}
processor_config: {size: {shortest_edge: 64, longest_edge: 64}}
transform: light
num_workers: 0
epochs: 1
trackers: []
"""


@pytest.fixture
def hub():
    with serving() as server:
        yield server


def run(script, hub, folder, token=TOKEN, **environment):
    """Run a script in a separate process that uses the local Hub, and return what it prints."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=hub.environment(folder / "home", token) | {"PYTHONPATH": str(ROOT)} | environment,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_a_pushed_model_loads_with_and_without_the_package(hub, tiny_detector, tmp_path):
    model = tiny_detector(id2label={0: "cat", 1: "dog"}, num_labels=2)
    save(model, tmp_path / "saved")
    torch.save(model(torch.ones(1, 3, 64, 96)).logits, tmp_path / "logits.pt")
    run(
        """
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
        from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
        model = DetrForObjectDetection.from_pretrained("saved")
        model.push_to_hub("me/tiny")
        DetrTorchvisionImageProcessor.from_pretrained("saved").push_to_hub("me/tiny")
        for load in (DetrForObjectDetection.from_pretrained, AutoModelForObjectDetection.from_pretrained):
            pulled = load("me/tiny")
            assert type(pulled) is DetrForObjectDetection
            assert all(torch.equal(mine, model.state_dict()[name]) for name, mine in pulled.state_dict().items())
        assert type(AutoImageProcessor.from_pretrained("me/tiny")) is DetrTorchvisionImageProcessor
        grown = DetrForObjectDetection.from_pretrained(
            "me/tiny", id2label={0: "dog", 1: "hen"}, ignore_mismatched_sizes=True
        )
        assert torch.equal(grown.class_labels_classifier.weight[0], model.class_labels_classifier.weight[1])
        """,
        hub,
        tmp_path,
    )
    files = hub.repositories["me/tiny"]
    assert {name for name in files if name.endswith(".py")} == DETECTOR_FILES
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(files)
    run(
        """
        import sys
        sys.modules["modeling_detr"] = None  # importing it now fails
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
        options = {"trust_remote_code": True}
        model = AutoModelForObjectDetection.from_pretrained("me/tiny", **options)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        processor = AutoImageProcessor.from_pretrained("me/tiny", **options)
        assert type(processor).__name__ == "DetrTorchvisionImageProcessor"
        logits = torch.load("logits.pt", weights_only=True)
        torch.testing.assert_close(model(torch.ones(1, 3, 64, 96)).logits, logits)
        names = {0: "dog", 1: "hen", 2: "cat"}
        grown = AutoModelForObjectDetection.from_pretrained(
            "me/tiny", id2label=names, ignore_mismatched_sizes=True, **options
        )
        logits = grown(torch.ones(1, 3, 64, 96)).logits
        assert torch.equal(logits[..., [0, 2, 3]], model(torch.ones(1, 3, 64, 96)).logits[..., [1, 0, 2]])
        """,
        hub,
        tmp_path,
        HF_HOME=str(tmp_path / "other_home"),
    )


# A run


@pytest.fixture
def recipe(tmp_path):
    """The arguments of a run that takes a few seconds."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return ["tiny.yaml", "--output_dir", "run"]


def train(hub, folder, arguments, token=TOKEN):
    command = "import sys; from modeling_detr.commands import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", command, "train", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=hub.environment(folder / "home", token) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_run_pushes_its_best_model_with_a_card_and_survives_a_failed_push(hub, recipe, tmp_path):
    failed = train(hub, tmp_path, [*recipe, "--push_to_hub", "me/run", "--hub_private"], token="hf_wrong")
    assert failed.returncode != 0
    assert "the best model is pushed to me/run at the end" in failed.stdout
    assert "me/run: the push failed" in failed.stderr
    assert "Push it later: hf upload me/run run/model" in failed.stderr
    assert "me/run" not in hub.repositories
    exported = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    done = train(hub, tmp_path, [*recipe, "--push_to_hub", "me/run", "--hub_private", "--resume", "auto"])
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.url}/me/run" in done.stdout
    pushed = hub.repositories["me/run"]
    assert hub.private["me/run"]
    assert hub.commits["me/run"] == 1
    assert {name: pushed.get(name) for name in exported} == exported
    assert {name for name in pushed if name.endswith(".py")} == DETECTOR_FILES | {"handler.py", "app.py"}
    card = pushed["README.md"].decode()
    for text in (
        "circle, square, triangle, star",
        "`shapes[train]`: 16 images",
        'from_pretrained("me/run")',
        "trust_remote_code=True",
        "learning_rate: 0.0001",
        "| AP ",
    ):
        assert text in card, text
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "object-detection"
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())["metrics"]["ap"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(measured, abs=1e-4)
