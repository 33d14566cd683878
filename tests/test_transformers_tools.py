"""Calls that Transformers' own tools make: Trainer, PEFT, pipelines, processors of other models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments, pipeline
from transformers.utils.import_utils import is_peft_available

from modeling_detr import (
    DetrForObjectDetection,
    DetrTorchvisionImageProcessor,
    pretrained_detr,
)


LABELS = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}


def trainer(model, folder, rows, **arguments):
    def collate(batch):
        side = batch[0]["side"]
        inputs = {"pixel_values": torch.ones(len(batch), 3, side, side)}
        if "labels" in batch[0]:
            inputs["labels"] = [row["labels"] for row in batch]
        return inputs

    options = TrainingArguments(
        str(folder),
        per_device_eval_batch_size=2,
        per_device_train_batch_size=2,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **arguments,
    )
    return Trainer(
        model, options, data_collator=collate, train_dataset=rows, eval_dataset=rows, compute_metrics=lambda _: {}
    )


def test_a_model_saved_by_trainer_loads(tiny_detector, tmp_path):
    run = trainer(tiny_detector(), tmp_path, [{"side": 64, "labels": LABELS}] * 4, max_steps=1)
    run.train()
    run.save_model(tmp_path / "final")
    assert "use_cache" in json.loads((tmp_path / "final/config.json").read_text())
    loaded = DetrForObjectDetection.from_pretrained(tmp_path / "final")
    assert torch.equal(loaded.class_labels_classifier.weight, run.model.class_labels_classifier.weight)


def test_trainer_evaluates_images_of_several_sizes(tiny_detector, tmp_path):
    rows = [{"side": side, "labels": LABELS} for side in (64, 64, 96, 96)]
    run = trainer(tiny_detector(), tmp_path, rows)
    assert run.evaluate()["eval_loss"] > 0
    predictions = run.predict(rows).predictions
    assert (4, 7, 6) in [array.shape for array in predictions if hasattr(array, "shape")]


def test_trainer_predicts_with_a_segmenter_on_images_of_several_sizes(tiny_segmenter, tmp_path):
    rows = [{"side": side} for side in (64, 64, 96, 96)]
    predictions = trainer(tiny_segmenter(), tmp_path, rows).predict(rows).predictions
    assert (4, 7, 6) in [array.shape for array in predictions if hasattr(array, "shape")]


def test_trainer_returns_masks_of_several_sizes_batch_by_batch(tiny_segmenter, tmp_path):
    """As docs/checkpoints.md says: it cannot concatenate them, nor the masks of the labels."""
    masks = {side: torch.ones(1, side, side, dtype=torch.bool) for side in (64, 96)}
    rows = [{"side": side, "labels": {**LABELS, "masks": masks[side]}} for side in (64, 64, 96, 96)]
    run = trainer(tiny_segmenter(), tmp_path, rows, eval_do_concat_batches=False)
    assert run.evaluate()["eval_loss"] > 0
    batches = run.predict(rows, ignore_keys=[]).predictions
    shapes = [[array.shape for array in batch if hasattr(array, "shape")] for batch in batches]
    assert (2, 7, 16, 16) in shapes[0]
    assert (2, 7, 24, 24) in shapes[1]


def test_labels_do_not_suppress_masks_in_evaluation_mode(tiny_segmenter):
    labels = [{**LABELS, "masks": torch.ones(1, 64, 64, dtype=torch.bool)}]
    model = tiny_segmenter()
    outputs = model(torch.ones(1, 3, 64, 64), labels=labels)
    assert outputs.loss > 0
    assert outputs.pred_masks.shape == (1, 7, 16, 16)
    assert model.train()(torch.ones(1, 3, 64, 64), labels=labels).pred_masks is None


def test_trainer_does_not_count_items_for_the_loss(tiny_detector, tmp_path):
    """Or it would not divide the loss by the number of accumulated batches."""
    assert trainer(tiny_detector(), tmp_path, [{"side": 64}]).model_accepts_loss_kwargs is False


@pytest.mark.parametrize("make", ["tiny_detector", "tiny_segmenter"])
def test_arguments_of_the_library_are_ignored_and_misspelt_ones_are_errors(make, request):
    model = request.getfixturevalue(make)()
    images = torch.ones(1, 3, 64, 64)
    expected = model(images).logits
    assert torch.equal(model(images, num_items_in_batch=torch.tensor(3), use_cache=False).logits, expected)
    with pytest.raises(TypeError, match="unexpected argument 'pixel_masks'; did you mean 'pixel_mask'"):
        model(images, pixel_masks=torch.ones(1, 64, 64))
    with pytest.raises(TypeError, match="unexpected argument 'pixel_masks'"):
        (model.model if make == "tiny_detector" else model.detr.model)(images, pixel_masks=torch.ones(1, 64, 64))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_class_labels_of_any_integer_type(tiny_detector, dtype):
    model, images = tiny_detector(), torch.ones(1, 3, 64, 64)
    labels = {**LABELS, "class_labels": LABELS["class_labels"].to(dtype)}
    assert torch.equal(model(images, labels=[labels]).loss, model(images, labels=[LABELS]).loss)


@pytest.mark.parametrize("make", ["tiny_detector", "tiny_segmenter"])
def test_the_backbone_freezes_and_unfreezes(make, request):
    model = request.getfixturevalue(make)()
    backbone = (model if make == "tiny_detector" else model.detr).model.backbone.conv_encoder
    trained = [parameter.requires_grad for parameter in backbone.parameters()]
    assert any(trained)
    model.freeze_backbone()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert model.get_submodule("" if make == "tiny_detector" else "detr").class_labels_classifier.weight.requires_grad
    model.unfreeze_backbone()
    assert [parameter.requires_grad for parameter in backbone.parameters()] == trained  # the stem stays frozen


@pytest.mark.parametrize(("asked", "loaded"), [("auto", torch.bfloat16), (torch.float32, torch.float32)])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_type_of_the_weights(tiny_detector, tmp_path, asked, loaded, name):
    tiny_detector().bfloat16().save_pretrained(tmp_path)
    assert DetrForObjectDetection.from_pretrained(tmp_path, **{name: asked}).dtype is loaded
    assert DetrForObjectDetection.from_pretrained(tmp_path, **{name: "float16"}).dtype is torch.float16


def test_an_adapter_folder_names_the_model_that_it_adapts(tiny_detector, tmp_path, monkeypatch):
    """Without PEFT: the config is read from the base model."""
    tiny_detector().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    )
    monkeypatch.setattr(pretrained_detr, "is_peft_available", lambda: True)
    assert pretrained_detr.base_of_adapter(str(tmp_path / "adapter"), {}) == str(tmp_path / "base")
    assert pretrained_detr.base_of_adapter(str(tmp_path / "base"), {}) == str(tmp_path / "base")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT
@pytest.mark.skipif(not is_peft_available(), reason="needs PEFT: pip install peft")
def test_a_peft_adapter_loads_with_its_model(tiny_detector, tmp_path):
    from peft import LoraConfig, get_peft_model

    images = torch.ones(1, 3, 64, 64)
    tiny_detector().save_pretrained(tmp_path / "base")
    model = DetrForObjectDetection.from_pretrained(tmp_path / "base")
    options = LoraConfig(target_modules=["q_proj", "class_labels_classifier"], init_lora_weights=False)
    adapted = get_peft_model(model, options).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = DetrForObjectDetection.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(loaded(images).logits, adapted(images).logits, atol=1e-5)


# The processor


@pytest.fixture(scope="module")
def processor():
    return DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@pytest.mark.parametrize("image_id", [3, np.int64(3), np.array(3), torch.tensor(3), torch.tensor([3])[0]])
def test_an_image_id_of_any_integer_type(processor, image_id):
    annotation = {"image_id": image_id, "annotations": [{"bbox": [1, 1, 9, 9], "category_id": np.int64(2)}]}
    labels = processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation)["labels"][0]
    assert labels["image_id"].tolist() == [3]
    assert labels["class_labels"].tolist() == [2]


def test_target_sizes_as_a_list_of_tensors(processor, tiny_detector, tiny_segmenter):
    sizes = [(60, 100), (96, 90)]
    images = torch.ones(2, 3, 64, 64)
    outputs = tiny_detector()(images)
    expected = processor.post_process_object_detection(outputs, 0.0, sizes)
    results = processor.post_process_object_detection(outputs, 0.0, [torch.tensor(size) for size in sizes])
    assert torch.equal(results[1]["boxes"], expected[1]["boxes"])
    maps = processor.post_process_semantic_segmentation(
        tiny_segmenter()(images), target_sizes=[torch.tensor(size) for size in sizes]
    )
    assert [tuple(labels.shape) for labels in maps] == sizes


@pytest.mark.parametrize(
    "options",
    [{"format": "coco_detection"}, {"do_convert_rgb": False}, {"do_convert_rgb": True}, {"use_fast": True}],
)
def test_options_of_other_processors_are_accepted_in_a_call(processor, options):
    image = np.zeros((60, 80, 3), np.uint8)
    assert torch.equal(processor(image, **options)["pixel_values"], processor(image)["pixel_values"])
    DetrTorchvisionImageProcessor(**options)


@pytest.mark.parametrize("size", [48, np.int64(48)])
def test_an_integer_size_is_the_shortest_edge(processor, size):
    image = np.zeros((60, 80, 3), np.uint8)
    assert processor(image, size=size)["pixel_values"].shape == (1, 3, 48, 64)
    assert DetrTorchvisionImageProcessor(size=size)(image)["pixel_values"].shape == (1, 3, 48, 64)
    older = DetrTorchvisionImageProcessor.from_dict({}, size=42, max_size=84, pad_and_return_pixel_mask=False)
    assert (older.size.shortest_edge, older.size.longest_edge, older.do_pad) == (42, 84, False)


def test_panoptic_annotations(processor, tmp_path):
    """As the library's: segment ids in the colours of a PNG file, with a crowd region and one without pixels."""
    ids = np.zeros((60, 80), np.int64)
    ids[10:30, 20:60] = 300
    ids[40:50, :] = 7
    ids[55:, :] = 9
    colours = np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "1.png")
    annotation = {
        "image_id": 1,
        "file_name": "1.png",
        "segments_info": [
            {"id": 300, "category_id": 2, "area": 800, "iscrowd": 0},
            {"id": 7, "category_id": 1},
            {"id": 9, "category_id": 0, "iscrowd": 1},
            {"id": 8, "category_id": 3},
        ],
    }
    (labels,) = processor(
        np.zeros((60, 80, 3), np.uint8),
        annotations=annotation,
        masks_path=tmp_path,
        format="coco_panoptic",
        return_segmentation_masks=True,
        do_resize=False,
    )["labels"]
    assert labels["class_labels"].tolist() == [2, 1]
    assert labels["masks"].tolist() == [(ids == 300).tolist(), (ids == 7).tolist()]
    assert torch.allclose(labels["boxes"][0], torch.tensor([40 / 80, 20 / 60, 40 / 80, 20 / 60]))
    assert labels["area"].tolist() == [800, 800]


@pytest.mark.parametrize("name", ["../1.png", "/etc/passwd", "none.png"])
def test_a_panoptic_file_is_in_its_folder(processor, tmp_path, name):
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "1.png")
    annotation = {"file_name": name, "segments_info": []}
    with pytest.raises(ValueError, match=r"image 0: file_name .*no such file in"):
        processor(np.zeros((60, 80, 3), np.uint8), annotations=annotation, masks_path=tmp_path / "masks")


# Pipelines


@pytest.mark.parametrize(
    ("make", "task"), [("tiny_detector", "object-detection"), ("tiny_segmenter", "image-segmentation")]
)
def test_batched_pipelines_take_images_of_several_sizes(processor, make, task, request):
    model = request.getfixturevalue(make)()
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for height, width in ((60, 80), (90, 70), (60, 60))
    ]
    run = pipeline(task, model=model, image_processor=processor)
    batched = run(images, batch_size=3, threshold=0.0)
    assert len(batched) == 3
    if task == "object-detection":
        inputs = processor(images)
        expected = processor.post_process_object_detection(
            model(**inputs), 0.0, [(image.height, image.width) for image in images]
        )
        for found, result in zip(batched, expected, strict=True):
            scores = sorted(entry["score"] for entry in found)
            assert scores == pytest.approx(sorted(result["scores"].tolist()), abs=1e-4)
    alone = run(images[0], threshold=0.0)
    assert len(alone) == len(run([images[0]], threshold=0.0)[0])


@pytest.mark.parametrize("make", ["tiny_detector", "tiny_segmenter"])
def test_a_list_of_images_is_padded(make, request):
    model = request.getfixturevalue(make)()
    small, large = torch.randn(3, 64, 32), torch.randn(3, 64, 96)
    pixel_values = torch.zeros(2, 3, 64, 96)
    pixel_values[0, :, :, :32], pixel_values[1] = small, large
    pixel_mask = torch.ones(2, 64, 96, dtype=torch.int64)
    pixel_mask[0, :, 32:] = 0
    assert torch.equal(model([small, [large]]).logits, model(pixel_values, pixel_mask).logits)
    assert torch.equal(model([large]).logits, model(large[None]).logits)


@pytest.mark.parametrize("options", [{"attn_implementation": "eager"}, {"output_attentions": True}])
def test_a_pipeline_passes_the_options_of_the_model(tiny_detector, processor, tmp_path, options):
    tiny_detector().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    run = pipeline("object-detection", str(tmp_path), model_kwargs=options)
    assert run.model.config.output_attentions is options.get("output_attentions", False)
    assert run.image_processor.size == processor.size
    run(Image.new("RGB", (80, 60)))
