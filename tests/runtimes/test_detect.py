"""`detect.py` sees the same pixels and finds the same objects as the package, without PyTorch and the package."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.deployment.preprocessing import preprocessing_of
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.prediction import predict_objects, task_of
from modeling_detr.runtimes import detect


INPUTS = ("pixel_values", "pixel_mask")


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """Returns a function that makes a detector with a processor's steps, whose model is a Python function."""

    def make(processor, run=None, trained_without_mask=False, **changes):
        export = {
            "format_version": 1,
            "runtime": "onnx",
            "inputs": [*INPUTS],
            "labels": ["circle", "square", "star", "moon", "heart"],
            "stuff_labels": [],
            "fixed_size": None,
            "preprocessing": preprocessing_of(processor),
        }
        (tmp_path / "export.json").write_text(json.dumps(export | changes))
        (tmp_path / "config.json").write_text(json.dumps({"trained_without_mask": trained_without_mask}))
        monkeypatch.setattr(detect, "open_model", lambda folder, export: run)
        return detect.Detector(tmp_path)

    return make


@pytest.fixture
def photo():
    """Smooth shapes with noise, 75 x 50 pixels."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)).resize(
        (75, 50), Image.Resampling.BICUBIC
    )
    return Image.fromarray((np.asarray(coarse) * 0.8 + rng.integers(0, 50, (50, 75, 3))).astype(np.uint8))


# Pixels


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_rows_and_columns_are_resized_to_the_pixel_as_by_torchvision(resample):
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width, new_height, new_width = (2 ** rng.uniform(0, 9, 4)).round().astype(int)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if rng.random() < 0.5:  # black and white overshoot most
            pixels = (pixels > 127).astype(np.uint8) * 255
        if new_height == new_width == 1:  # an assertion of PyTorch 2.14 fails
            continue
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        expected = resize(tensor, [new_height, new_width], InterpolationMode(resample))
        columns = detect.resize_rows(pixels.swapaxes(0, 1), new_width, resample).swapaxes(0, 1)
        assert (detect.resize_rows(columns, new_height, resample) == expected.permute(1, 2, 0).numpy()).all()


PROCESSORS = [
    {},
    {"size": {"shortest_edge": 61}},
    {"size": {"shortest_edge": 50, "longest_edge": 70}, "resample": 3},
    {"size": {"height": 40, "width": 90}, "pad_size": {"height": 64, "width": 96}},
    {"size": {"max_height": 33, "max_width": 44}, "image_mean": 0.5, "image_std": [0.1, 0.2, 0.3]},
    {"do_resize": False, "do_pad": False, "do_rescale": False, "resample": 0},
]


@pytest.mark.parametrize("options", PROCESSORS, ids=str)
def test_inputs_are_those_of_the_processor(exported, photo, options):
    processor = DetrTorchvisionImageProcessor(**({"size": {"shortest_edge": 80, "longest_edge": 133}} | options))
    detector = exported(processor)
    rng = np.random.default_rng(0)
    for size in [(75, 50), (50, 75), (60, 61), *rng.integers(10, 150, (20, 2)).tolist()]:
        image = photo.resize(size) if "pad_size" not in options else photo
        expected = processor(image, return_tensors="np")
        pixels = detect.read_rgb(image)
        new_size = detect.size_after_resize(pixels.shape[:2], detector.export["preprocessing"]["size"])
        inputs = detector.prepare(pixels, new_size, 0.5)
        assert inputs["pixel_values"].dtype == np.float32
        assert (inputs["pixel_values"] == expected["pixel_values"]).all()
        if processor.do_pad:
            assert (inputs["pixel_mask"] == expected["pixel_mask"]).all()


@pytest.mark.parametrize("size", [{"shortest_edge": 800, "longest_edge": 1333}, {"shortest_edge": 7}], ids=str)
def test_sizes_are_rounded_as_by_the_processor(size):
    rng = np.random.default_rng(0)
    processor = DetrTorchvisionImageProcessor(size=size)
    for height, width in rng.integers(1, 60, (150, 2)).tolist():
        rule = preprocessing_of(processor)["size"]
        assert (*detect.size_after_resize((height, width), rule),) == processor.resize(
            torch.zeros(1, height, width, dtype=torch.uint8), processor.size
        ).shape[1:]


def sixteen_bits(dtype):
    return np.arange(0, 65536, 13)[:5000].reshape(50, 100).astype(dtype)


IMAGES = {
    "grey": lambda photo: photo.convert("L"),
    "grey with alpha": lambda photo: photo.convert("LA"),
    "one bit": lambda photo: photo.convert("1"),
    "palette": lambda photo: photo.quantize(16),
    "alpha": lambda photo: Image.merge("RGBA", [*photo.split(), photo.getchannel(0)]),
    "premultiplied alpha": lambda photo: photo.convert("RGBA").convert("RGBa"),
    "CMYK": lambda photo: photo.convert("CMYK"),
    "16 bits": lambda photo: Image.fromarray(sixteen_bits(np.uint16)),
    "16 bits, big-endian": lambda photo: Image.frombytes("I;16B", (100, 50), sixteen_bits(">u2").tobytes()),
    "16 bits in 32": lambda photo: Image.fromarray(sixteen_bits(np.int32)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_all_kinds_become_the_same_rgb(photo, kind):
    image = IMAGES[kind](photo)
    assert (detect.read_rgb(image) == to_rgb(image).permute(1, 2, 0).numpy()).all()


def test_a_photo_is_turned_upright(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    photo.save(tmp_path / "photo.jpg", exif=exif)
    pixels = detect.read_rgb(tmp_path / "photo.jpg")
    assert pixels.shape == (75, 50, 3)
    assert (pixels == to_rgb(tmp_path / "photo.jpg").permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("values", [np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)], ids=str)
def test_an_image_of_other_values_is_an_error(values):
    with pytest.raises(ValueError, match=r"expected 16-bit grey|expected 8 or 16 bits"):
        detect.read_rgb(Image.fromarray(values))


def test_the_image_is_padded_to_the_exported_size(exported, photo):
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 50})
    detector = exported(processor, fixed_size=[64, 80])
    inputs = detector.prepare(np.asarray(photo), (50, 75), 0.5)
    expected = processor(photo, pad_size={"height": 64, "width": 80}, return_tensors="np")
    assert (inputs["pixel_values"] == expected["pixel_values"]).all()
    assert (inputs["pixel_mask"] == expected["pixel_mask"]).all()
    with pytest.raises(ValueError, match=r"100x50 pixels \(width x height\) after resizing, .* at most 80x64"):
        detector(photo.resize((100, 50)))


@pytest.mark.parametrize("trained_without_mask", [False, True])
def test_padding_that_the_model_takes_for_an_image_is_reported(exported, photo, caplog, trained_without_mask):
    processor = DetrTorchvisionImageProcessor(do_resize=False)
    detector = exported(
        processor, trained_without_mask=trained_without_mask, inputs=["pixel_values"], fixed_size=[50, 80]
    )
    detector.prepare(np.zeros((50, 80, 3), np.uint8), (50, 80), 0.5)
    assert not caplog.records
    for _ in range(2):
        detector.prepare(np.asarray(photo), (50, 75), 0.5)
    assert len(caplog.records) == (0 if trained_without_mask else 1)
    assert ("padded from 75x50 to 80x50" in caplog.text) != trained_without_mask


# Objects


def with_distinct_queries(model):
    """Those of a model with random weights predict nearly the same."""
    decoder = getattr(model, "detr", model).model.decoder
    generator = torch.Generator().manual_seed(0)
    offsets = 4 * torch.randn(model.config.num_queries, model.config.d_model, generator=generator)
    decoder.layernorm.register_forward_hook(lambda module, inputs, states: states + offsets)
    return model


def torch_model(model):
    """A function with the inputs and outputs of an exported model."""

    @torch.inference_mode()
    def run(inputs):
        tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
        threshold = tensors.pop("score_threshold", None)
        outputs = model(**tensors) if threshold is None else model(**tensors, output_masks=False)
        results = {"logits": outputs.logits.numpy(), "pred_boxes": outputs.pred_boxes.numpy()}
        if threshold is not None:
            keep = outputs.logits.softmax(-1)[..., :-1].amax(-1) > threshold
            masks = model.predict_masks(outputs, keep)
            results |= {"mask_queries": keep.nonzero().numpy(), "pred_masks": masks.numpy()}
        return results

    return run


@pytest.fixture
def processor():
    return DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 90})


def assert_same_objects(detections, expected, names):
    assert len(detections) == len(expected["scores"]) > 1
    assert [detection["label"] for detection in detections] == expected["labels"].tolist()
    assert [detection["name"] for detection in detections] == [names[label] for label in expected["labels"]]
    scores, boxes = ([detection[key] for detection in detections] for key in ("score", "box_xyxy"))
    assert np.allclose(scores, expected["scores"], atol=1e-6)
    assert np.allclose(boxes, expected["boxes"], atol=1e-4)


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS[:1]], ids=len)
def test_objects_are_those_of_the_package(exported, photo, processor, tiny_detector, inputs):
    model = with_distinct_queries(tiny_detector())
    detector = exported(processor, torch_model(model), inputs=[*inputs])
    for threshold in (0.0, predict_objects(model, processor, photo, 0)["scores"][2].item()):
        expected = predict_objects(model, processor, photo, threshold)
        assert_same_objects(detector(photo, threshold), expected, detector.export["labels"])


def test_boxes_in_pixels_that_the_model_computes_are_used_as_they_are(exported, photo, processor, tiny_detector):
    model = with_distinct_queries(tiny_detector())

    def run(inputs):
        (size,) = inputs.pop("image_sizes")
        assert size.tolist() == [50, 75]
        outputs = model(torch.from_numpy(inputs["pixel_values"]))
        (result,) = processor.post_process_object_detection(outputs, 0, [size.tolist()])
        return {key: value.detach()[None].numpy() for key, value in result.items()}

    detector = exported(processor, run, inputs=["pixel_values", "image_sizes"])
    assert_same_objects(detector(photo, 0), predict_objects(model, processor, photo, 0), detector.export["labels"])


@pytest.mark.parametrize("stuff", [[], [1]], ids=["instance", "panoptic"])
def test_masks_are_those_of_the_package(exported, photo, processor, tiny_segmenter, stuff):
    model = with_distinct_queries(tiny_segmenter(stuff_labels=stuff))
    assert task_of(model) == ("panoptic" if stuff else "instance")
    detector = exported(
        processor, torch_model(model), inputs=[*INPUTS, "score_threshold"], stuff_labels=stuff, fixed_size=[96, 128]
    )
    threshold = 0.3
    padded = DetrTorchvisionImageProcessor(size=processor.size, pad_size=(96, 128))
    expected = predict_objects(model, padded, photo, threshold)
    detections = detector(photo, threshold)
    assert_same_objects(detections, expected, detector.export["labels"])
    masks = np.stack([detection["mask"] for detection in detections])
    assert masks.shape == expected["masks"].shape
    assert 0.05 < masks.mean() < 0.95
    assert (masks != expected["masks"].numpy()).mean() < 1e-4


def test_masks_are_enlarged_as_by_the_processor(tiny_segmenter):
    rng = np.random.default_rng(0)
    processor = DetrTorchvisionImageProcessor()
    for _ in range(30):
        size, padding, target = rng.integers(20, 200, 2), rng.integers(0, 60, 2), rng.integers(1, 300, 2)
        canvas = size + padding
        logits = torch.from_numpy(rng.normal(size=(1, 1, *-(-canvas // 4))).astype(np.float32)) * 5
        outputs = type("Outputs", (), {})()
        outputs.logits, outputs.pred_boxes = torch.zeros(1, 1, 2), torch.zeros(1, 1, 4)
        outputs.pred_masks, outputs.image_sizes = logits, torch.from_numpy(size)[None]
        outputs.canvas_size = torch.from_numpy(canvas)[None]
        (result,) = processor.post_process_instance_segmentation(outputs, 0, target_sizes=[target.tolist()])
        cells = logits[..., : -(-size[0] // 4), : -(-size[1] // 4)]
        enlarged = F.interpolate(cells, size=size.tolist(), mode="bilinear")
        doubtful = F.interpolate((enlarged.abs() < 1e-5).to(torch.uint8), size=target.tolist())[0, 0].bool().numpy()
        mask = detect.enlarge_mask(logits[0, 0].numpy(), tuple(canvas), tuple(size), tuple(target))
        assert (mask == result["masks"][0].numpy())[~doubtful].all()


def test_an_object_without_a_computed_mask_has_none(exported, photo, processor, tiny_segmenter):
    run = torch_model(tiny_segmenter())

    def first_mask_only(inputs):
        outputs = run(inputs | {"score_threshold": np.array(0, np.float32)})
        return outputs | {key: outputs[key][:1] for key in ("mask_queries", "pred_masks")}

    detections = exported(processor, first_mask_only)(photo, 0)
    assert sorted(detection["mask"] is None for detection in detections) == [False] + [True] * 6
