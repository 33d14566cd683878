"""A run's teacher that is a model: it predicts once, and its predictions belong to it and to the images."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from launched_runs import start_prepared

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.data import DetectionDataset, open_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.data.loaders import build_eval_loader
from modeling_detr.errors_detr import ModelError, ModelNotFoundError, PredictionError
from modeling_detr.prediction import predict_objects
from modeling_detr.training import teacher_predictions
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.training.run_folder import TEACHER
from modeling_detr.training.setup import open_splits, prepare_run
from modeling_detr.training.teacher import load_teacher
from modeling_detr.training.trainer import Trainer


NAMES = ["star", "square", "oval", "circle"]  # of the shapes, without triangle


def save_model(folder, seed=0, names=NAMES):
    """Save a model with random weights that is sure of something in every image."""
    torch.manual_seed(seed)
    config = DetrConfig(
        backbone="resnet10t",
        backbone_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8},
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=7,
        id2label=dict(enumerate(names)),
    )
    model = DetrForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.weight.mul_(4)
    model.save_pretrained(folder)
    DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return model.eval()


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    save_model(tmp_path / "model")
    return lambda **keys: tiny_recipe(**{"teacher": str(tmp_path / "model"), **keys})


@pytest.fixture
def predicting(monkeypatch):
    """The number of times that a model has predicted the images."""
    calls = []

    def build(*arguments, **options):
        calls.append(1)
        return build_eval_loader(*arguments, **options)

    monkeypatch.setattr(teacher_predictions, "build_eval_loader", build)
    return calls


def load(recipe, resumes=False):
    return load_teacher(recipe, open_splits(recipe)[0], 100, Accelerator(cpu=True), resumes=resumes)


def test_a_model_teaches_what_it_predicts_with_classes_by_name(recipe, tmp_path):
    one = recipe(teacher_min_score=0.2, batch_size=4)
    index = open_splits(one)[0]
    teacher = load(one)
    model = DetrForObjectDetection.from_pretrained(tmp_path / "model").eval()
    processor = DetrTorchvisionImageProcessor.from_pretrained(tmp_path / "model")
    expected = []
    for image in range(len(index)):
        result = predict_objects(model, processor, DetectionDataset(index)[image]["image"], 0.2)
        expected += [
            (image, NAMES[label], round(score, 3))
            for label, score in zip(result["labels"].tolist(), result["scores"].tolist(), strict=True)
            if NAMES[label] != "oval"
        ]
    objects = teacher.objects
    got = [
        (image, index.categories[label].name, round(score, 3))
        for image, label, score in zip(
            objects.image_index.tolist(), objects.label.tolist(), objects.attributes["score"].tolist(), strict=True
        )
    ]
    assert len(expected) > 5
    assert sorted(got) == sorted(expected)
    assert any("it does not know the classes triangle" in note for note in teacher.notes)


def test_predictions_are_kept_for_the_same_model_and_images(recipe, predicting, tmp_path):
    first = load(recipe())
    again = load(recipe())
    assert len(predicting) == 1
    assert np.array_equal(again.objects.boxes_xyxy, first.objects.boxes_xyxy)
    load(recipe(teacher_min_score=0.5))  # a part of them
    assert len(predicting) == 1
    load(recipe(teacher_min_score=0.2))
    assert len(predicting) == 2
    load(recipe(data="shapes?size=64&train=12&val=4"))
    assert len(predicting) == 3
    save_model(tmp_path / "model", seed=3)
    load(recipe(data="shapes?size=64&train=12&val=4"))
    assert len(predicting) == 4


def test_a_resumed_run_keeps_its_predictions_even_if_the_model_is_gone(recipe, predicting, tmp_path):
    whole = Trainer.from_recipe(recipe(epochs=1))
    whole.train()
    (tmp_path / "model").rename(tmp_path / "moved")
    resumed = prepare_run(recipe(epochs=2, resume="auto"))
    assert len(predicting) == 1
    dataset = resumed.loaders.train_sampler.dataset
    assert np.array_equal(dataset.teacher.boxes_xyxy, whole.run.loaders.train_sampler.dataset.teacher.boxes_xyxy)
    with pytest.raises(ModelNotFoundError):
        prepare_run(recipe(output_dir=str(tmp_path / "other")))


def test_damaged_predictions_are_computed_again(recipe, predicting):
    load(recipe())
    path = recipe().run_dir / TEACHER
    path.write_bytes(path.read_bytes()[:100])
    load(recipe(), resumes=True)
    assert len(predicting) == 2


def test_the_run_starts_alike_whether_or_not_the_predictions_exist(recipe):
    first, second = (prepare_run(recipe(denoising_groups=2)).checkpointed.model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_with_other_classes_only_is_an_error_before_it_predicts(recipe, predicting, tmp_path):
    save_model(tmp_path / "model", names=["cat", "dog"])
    with pytest.raises(PredictionError, match=r"none of its classes \(cat, dog\) is one of the dataset \(circle, squ"):
        load(recipe())
    assert not predicting


def test_images_that_cannot_be_read_are_left_out(recipe, tmp_path):
    convert_dataset(open_dataset("shapes?size=32&train=60&val=4"), tmp_path / "data", "yolo")
    image = sorted((tmp_path / "data/images/train").iterdir())[3]
    image.write_bytes(image.read_bytes()[:50])
    teacher = load(recipe(data=str(tmp_path / "data"), num_workers=1))
    assert 3 not in teacher.objects.image_index
    assert len(np.unique(teacher.objects.image_index)) > 30


@pytest.mark.slow
def test_several_processes_predict_together_and_use_the_same_boxes(recipe, tmp_path):
    def trained(processes):
        one = recipe(output_dir=str(tmp_path / f"run{processes}"), batch_size=4 // processes, epochs=1)
        (tmp_path / "recipe.yaml").write_text(one.to_yaml())
        run = start_prepared(tmp_path / "printed.txt", tmp_path / "recipe.yaml", processes=processes)
        output = run.communicate(timeout=200)[0]
        assert run.returncode == 0, output
        teacher = load_teacher(one, open_splits(one)[0], 100, Accelerator(cpu=True), resumes=True)
        return teacher, [line for line in output.splitlines() if line.startswith("note      teacher")]

    (one, notes), (two, other_notes) = trained(1), trained(2)
    assert parse_recipe([str(tmp_path / "recipe.yaml")]).teacher == str(tmp_path / "model")
    assert np.array_equal(one.objects.label, two.objects.label)
    np.testing.assert_allclose(one.objects.boxes_xyxy, two.objects.boxes_xyxy, atol=1e-3)
    assert notes == other_notes


def test_a_model_of_another_package_is_an_error_that_says_how_it_can_teach(recipe, tmp_path):
    folder = tmp_path / "yolos"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "yolos"}')
    teaching = recipe(teacher=str(folder))
    with pytest.raises(ModelError, match=r"model_type 'yolos', .*; pass a \.json file of its predictions in COCO's"):
        load_teacher(teaching, open_splits(teaching)[0], 100, Accelerator(cpu=True), resumes=False)
