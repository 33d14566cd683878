"""Saved models load through the Auto classes with this package, and through trust_remote_code without it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForObjectDetection,
    Trainer,
    TrainingArguments,
    pipeline,
)

import modeling_detr
from modeling_detr import (
    DetrConfig,
    DetrForObjectDetection,
    DetrModel,
    DetrTorchvisionImageProcessor,
)


SEGMENTER_FILES = {path.name for path in Path(modeling_detr.__file__).parent.glob("*_detr.py")}
DETECTOR_FILES = SEGMENTER_FILES - {"segmentation_detr.py"}


def save(model, folder):
    model.save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def test_auto_classes_build_our_classes(tiny_detector, tmp_path):
    save(tiny_detector(), tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DetrConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is DetrModel
    assert type(AutoModelForObjectDetection.from_pretrained(tmp_path)) is DetrForObjectDetection
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is DetrTorchvisionImageProcessor


def test_a_saved_model_comes_with_the_hub_files_it_needs_and_no_other_code(tiny_detector, tiny_segmenter, tmp_path):
    for model, files in ((tiny_detector(), DETECTOR_FILES), (tiny_segmenter(), SEGMENTER_FILES)):
        folder = tmp_path / type(model).__name__
        save(model, folder)
        assert {path.name for path in folder.glob("*.py")} == files


def run_without_the_package(script, tmp_path):
    """Runs a script in a new process, in which the folder of the saved model is `folder`."""
    start = f"""
        import sys
        sys.modules["modeling_detr"] = None  # importing it now fails
        import torch
        import transformers
        from PIL import Image
        folder = {str(tmp_path / "saved")!r}
    """
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    code = textwrap.dedent(start) + textwrap.dedent(script)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_a_saved_detector_loads_with_trust_remote_code_where_the_package_is_absent(tiny_detector, tmp_path):
    model = tiny_detector()
    save(model, tmp_path / "saved")
    torch.save(model(torch.ones(1, 3, 64, 96)).logits, tmp_path / "logits.pt")
    script = """
        for load in (
            transformers.AutoConfig.from_pretrained,
            transformers.AutoModelForObjectDetection.from_pretrained,
            transformers.AutoImageProcessor.from_pretrained,
            lambda folder, **options: transformers.pipeline("object-detection", model=folder, **options),
        ):
            try:
                load(folder, trust_remote_code=False)
            except ValueError as error:
                assert "Please pass the argument `trust_remote_code=True`" in str(error), error
            else:
                raise AssertionError("loaded without trust_remote_code")

        for auto in (transformers.AutoModel, transformers.AutoModelForObjectDetection):
            model = auto.from_pretrained(folder, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        assert type(processor).__name__ == "DetrTorchvisionImageProcessor"
        logits = torch.load("logits.pt", weights_only=True)
        torch.testing.assert_close(model(torch.ones(1, 3, 64, 96)).logits, logits)

        detect = transformers.pipeline("object-detection", model=folder, trust_remote_code=True)
        assert isinstance(detect(Image.new("RGB", (80, 60)), threshold=0.0), list)
    """
    run_without_the_package(script, tmp_path)


def test_a_saved_segmenter_loads_with_trust_remote_code_where_the_package_is_absent(tiny_segmenter, tmp_path):
    save(tiny_segmenter(), tmp_path / "saved")
    script = """
        segment = transformers.pipeline("image-segmentation", model=folder, trust_remote_code=True, device="cpu")
        assert type(segment.model).__module__.startswith("transformers_modules."), type(segment.model).__module__
        assert isinstance(segment(Image.new("RGB", (120, 80), "red"), subtask="panoptic"), list)
        assert isinstance(segment(Image.new("RGB", (80, 60)), threshold=0.0), list)
        model = transformers.AutoModelForInstanceSegmentation.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    """
    run_without_the_package(script, tmp_path)


def test_the_object_detection_pipeline_works(tiny_detector, tmp_path):
    save(tiny_detector(), tmp_path)
    # without trust_remote_code=False, Transformers asks whether to trust the code: it looks for a video processor too
    detect = pipeline("object-detection", model=str(tmp_path), device="cpu", trust_remote_code=False)
    results = detect(Image.new("RGB", (120, 80), "red"), threshold=0.0)
    assert len(results) == 7
    assert set(results[0]) == {"score", "label", "box"}


class _Images(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {
            "pixel_values": torch.full((3, 64, 96), index / 4),
            "labels": {"class_labels": torch.tensor([index]), "boxes": torch.full((1, 4), 0.5)},
        }


def test_transformers_trainer_can_train_it(tiny_detector, tmp_path):
    def collate(samples):
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": [sample["labels"] for sample in samples],
        }

    model = tiny_detector(freeze_batch_norm=False, freeze_backbone_stem=False)
    before = model.class_labels_classifier.weight.clone()
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=_Images(),
        eval_dataset=_Images(),
    )
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.class_labels_classifier.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("name", ["DetrConfig", "DetrModel", "DetrForObjectDetection", "DetrForSegmentation"])
def test_transformers_own_class_of_that_name_says_what_to_do_instead(name, tiny_detector, tmp_path):
    save(tiny_detector(), tmp_path)
    with pytest.raises(Exception, match=r"import the class from modeling_detr instead, or .* trust_remote_code=True"):
        getattr(transformers, name).from_pretrained(tmp_path)
    config = DetrConfig.from_pretrained(tmp_path)
    assert not hasattr(config, "init_std")
    assert DetrConfig.from_json_file(tmp_path / "config.json").to_dict().items() <= config.to_dict().items()


def test_the_folder_of_a_run_loads_its_model(tiny_detector, tmp_path):
    (tmp_path / "recipe.yaml").touch()
    loaded = (DetrForObjectDetection, DetrModel, DetrConfig, DetrTorchvisionImageProcessor)
    for kind in loaded:
        with pytest.raises(OSError, match=r"in this folder, expected .*; a run writes its model after its first"):
            kind.from_pretrained(tmp_path)
    save(tiny_detector(), tmp_path / "model")
    for kind in loaded:
        assert type(kind.from_pretrained(tmp_path)) is kind
    model = AutoModelForObjectDetection.from_pretrained(tmp_path, config=DetrConfig.from_pretrained(tmp_path))
    assert type(model) is DetrForObjectDetection


def test_a_mistyped_path_is_named_instead_of_looked_up_on_the_hub(tmp_path):
    for kind in (DetrForObjectDetection, DetrConfig, DetrTorchvisionImageProcessor):
        with pytest.raises(OSError, match=r"no such folder .*; pass a model folder, the folder of a run, or a Hub id"):
            kind.from_pretrained(tmp_path / "none")


def test_an_original_checkpoint_is_converted_first(tmp_path):
    (tmp_path / "detr.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file, expected a folder; convert it first: detr convert detr\.pth"):
        DetrForObjectDetection.from_pretrained(tmp_path / "detr.pth")
