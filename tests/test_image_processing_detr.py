import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference_cases import REFERENCE

from modeling_detr.image_processing_detr import (
    DetrTorchvisionImageProcessor,
    normalize,
    resize_output_size,
    to_rgb,
)
from modeling_detr.padding_detr import pad_images


GOLDEN = REFERENCE / "golden"

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = np.full((5, 7), 128, dtype=np.uint8)


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


# The steps as functions


def test_resize_output_size_equals_the_originals_for_every_golden_row() -> None:
    rows = json.loads((GOLDEN / "resize_sizes.json").read_text())["rows"]
    assert rows
    for height, width, shortest, longest, *expected in rows:
        assert list(resize_output_size(height, width, shortest, longest)) == expected, (
            height,
            width,
            shortest,
            longest,
        )


def test_resize_output_size_of_a_very_long_image_keeps_one_pixel_and_the_longest_edge() -> None:
    assert resize_output_size(1, 5000, 800, 1333) == (1, 1333)
    assert resize_output_size(9000, 2, 800, 1333) == (1333, 1)
    assert resize_output_size(1, 1333, 800, 1333) == (1, 1333)
    assert resize_output_size(1, 5000, 800) == (800, 4_000_000)


rgb_kinds = {
    "PIL RGB": Image.fromarray(RGB),
    "PIL RGBA": Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], -1)),
    "array HWC": RGB,
    "array CHW": RGB.transpose(2, 0, 1).copy(),
    "array HWC with alpha": np.concatenate([RGB, ALPHA[..., None]], -1),
    "array uint16": RGB.astype(np.uint16) * 257,
    "array big-endian": (RGB.astype(np.uint16) * 257).astype(">u2"),
    "array int64": RGB.astype(np.int64),
    "array float in [0, 1]": (RGB / 255).astype(np.float32),
    "array float64 in [0, 255]": RGB.astype(np.float64),
    "array read backwards": RGB[::-1].copy()[::-1],
    "tensor CHW": torch.from_numpy(RGB).permute(2, 0, 1),
    "tensor HWC": torch.from_numpy(RGB),
    "tensor half": torch.from_numpy(RGB).permute(2, 0, 1).half() / 255,
    "tensor uint16": torch.from_numpy(RGB.astype(np.uint16) * 257).permute(2, 0, 1),
}


@pytest.mark.parametrize("kind", rgb_kinds)
def test_to_rgb_gives_the_same_pixels_for_every_kind_of_colour_image(kind: str) -> None:
    image = to_rgb(rgb_kinds[kind])
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    np.testing.assert_array_equal(as_array(image), RGB)


sixteen_bit = Image.fromarray(GREY.astype(np.uint16) * 257)
grey_kinds = {
    "PIL L": Image.fromarray(GREY),
    "PIL LA": Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]),
    "PIL I;16": sixteen_bit,
    "PIL I": Image.fromarray(GREY.astype(np.int32) * 257),
    "PIL F": Image.fromarray(GREY.astype(np.float32)),
    "array HW": GREY,
    "array HW1": GREY[..., None],
    "array 1HW": GREY[None],
    "array grey and alpha": np.stack([GREY, ALPHA], -1),
    "tensor HW": torch.from_numpy(GREY),
    "tensor 1HW": torch.from_numpy(GREY)[None],
}


@pytest.mark.parametrize("kind", grey_kinds)
def test_to_rgb_repeats_grey(kind: str) -> None:
    np.testing.assert_array_equal(as_array(to_rgb(grey_kinds[kind])), np.repeat(GREY[..., None], 3, -1))


def test_to_rgb_converts_palettes_bilevel_and_cmyk_as_pillow_does() -> None:
    palette = Image.fromarray(RGB).convert("P")
    np.testing.assert_array_equal(as_array(to_rgb(palette)), np.array(palette.convert("RGB")))
    palette.info["transparency"] = bytes(range(200))  # Pillow warns when this is converted directly
    np.testing.assert_array_equal(as_array(to_rgb(palette)), np.array(palette.convert("RGBA"))[..., :3])
    np.testing.assert_array_equal(np.unique(to_rgb(Image.fromarray(GREY > 100))), [0, 255])
    np.testing.assert_array_equal(np.unique(to_rgb(GREY > 100)), [0, 255])
    cmyk = Image.fromarray(RGB).convert("CMYK")
    np.testing.assert_array_equal(as_array(to_rgb(cmyk)), np.array(cmyk.convert("RGB")))


def test_to_rgb_reads_a_16_bit_png_file_over_its_whole_range(tmp_path: Path) -> None:
    sixteen_bit.save(tmp_path / "sixteen.png")
    np.testing.assert_array_equal(as_array(to_rgb(tmp_path / "sixteen.png"))[..., 0], GREY)


def test_to_rgb_applies_the_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(as_array(to_rgb(Image.open(file))), np.rot90(RGB, -1))


def test_to_rgb_reads_an_ambiguous_shape_by_convention_unless_channels_first_is_set() -> None:
    assert to_rgb(np.zeros((3, 8, 3), np.uint8)).shape == (3, 3, 8)
    assert to_rgb(torch.zeros(3, 8, 3, dtype=torch.uint8)).shape == (3, 8, 3)
    assert to_rgb(np.zeros((3, 8, 3), np.uint8), channels_first=True).shape == (3, 8, 3)


bad_images = [
    (None, TypeError, "image: got NoneType, expected a PIL image"),
    (np.zeros((0, 5, 3), np.uint8), ValueError, r"got shape \(0, 5, 3\), expected \(H, W\)"),
    (np.zeros((2, 2, 5, 3), np.uint8), ValueError, r"shape \(2, 2, 5, 3\)"),
    (np.zeros((9, 9, 9), np.uint8), ValueError, r"got 9 channels .* expected 1 \(grey\)"),
    (np.zeros((9, 9), np.complex64), ValueError, "dtype complex64"),
    (np.full((9, 9), -0.5), ValueError, r"values -0.5…-0.5 .* expected 0…255.*already normalised"),
    (np.full((9, 9), np.nan), ValueError, "values nan…nan"),
    (np.full((9, 9), 256), ValueError, "values 256…256"),
    (Image.fromarray(np.full((9, 9), 70000, np.int32)), ValueError, "values 70000…70000 in PIL mode I"),
    (Image.new("LAB", (4, 4)), ValueError, "mode LAB"),
]


@pytest.mark.parametrize(("image", "error", "message"), bad_images)
def test_to_rgb_names_the_problem_of_a_bad_image(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        to_rgb(image)


def test_normalize_is_the_same_for_bytes_and_for_floats() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (image.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    torch.testing.assert_close(
        normalize(image, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)).double(), expected, atol=1e-6, rtol=0
    )
    floats = normalize(image.double() / 255, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert floats.dtype == torch.float64
    torch.testing.assert_close(floats, expected, atol=1e-6, rtol=0)


def test_pad_images_pads_right_and_bottom_with_zeros() -> None:
    pixels, mask = pad_images([torch.ones(3, 2, 5), torch.ones(3, 4, 3)])
    assert pixels.shape == (2, 3, 4, 5)
    assert mask.dtype == torch.int64
    torch.testing.assert_close(pixels, mask[:, None].expand(-1, 3, -1, -1).float())
    assert mask[0].sum() == 10
    assert mask[0, :2].all()
    assert mask[1, :, :3].all()


def test_pad_images_rejects_an_image_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"pad_size: 4x4 .* is too small for images of up to 5x4"):
        pad_images([torch.ones(3, 4, 3), torch.ones(3, 2, 5)], (4, 4))
    with pytest.raises(ValueError, match="images: got none"):
        pad_images([])


# The processor


def test_preprocess_resizes_normalises_and_pads() -> None:
    processor = DetrTorchvisionImageProcessor(
        size={"shortest_edge": 40, "longest_edge": 60}, image_mean=0.5, image_std=0.25
    )
    batch = processor([Image.new("RGB", (80, 40), (255, 0, 0)), np.full((60, 60), 255, np.uint8)])
    assert batch["pixel_values"].shape == (2, 3, 40, 60)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [30 * 60, 40 * 40]
    torch.testing.assert_close(batch["pixel_values"][0, :, 29, 59], torch.tensor([2.0, -2.0, -2.0]))
    assert batch["pixel_values"][0, :, 30:].eq(0).all()  # zeros after the normalisation
    assert batch["pixel_values"][1, :, :, 40:].eq(0).all()


def test_preprocess_uses_imagenets_statistics_by_default() -> None:
    pixels = DetrTorchvisionImageProcessor()(Image.new("RGB", (800, 800), (255, 255, 255)))["pixel_values"]
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixels[0, :, 5, 5], expected)


def test_resize_is_within_one_grey_level_of_pillows_antialiased_bilinear() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8))
    processor = DetrTorchvisionImageProcessor(size=40, do_normalize=False, do_rescale=False)
    pixels = processor(picture)["pixel_values"][0]
    assert pixels.shape == (3, 40, 54)
    expected = np.array(picture.resize((54, 40), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(as_array(pixels) - expected).max() <= 1


ONES = np.full((20, 30, 3), 255, np.uint8)
options_for_one_call = [
    ({"do_resize": False}, (20, 30)),
    ({"size": 10}, (10, 15)),
    ({"size": {"shortest_edge": 10, "longest_edge": 12}}, (8, 12)),
    ({"size": 10, "max_size": 12}, (8, 12)),
    ({"size": {"height": 7, "width": 9}}, (7, 9)),
    ({"size": (7, 9)}, (7, 9)),
    ({"size": {"max_height": 10, "max_width": 60}}, (10, 15)),
    ({"pad_size": {"height": 50, "width": 64}}, (50, 64)),
]


@pytest.mark.parametrize(("options", "shape"), options_for_one_call)
def test_sizes_can_be_set_for_one_call(options: dict[str, Any], shape: tuple[int, int]) -> None:
    processor = DetrTorchvisionImageProcessor(size={"shortest_edge": 40, "longest_edge": 48})
    assert processor(ONES, **options)["pixel_values"].shape[-2:] == shape
    assert processor(ONES)["pixel_values"].shape[-2:] == (32, 48)  # only for that call
    built = DetrTorchvisionImageProcessor(**({"size": {"shortest_edge": 40, "longest_edge": 48}} | options))
    assert built(ONES)["pixel_values"].shape[-2:] == shape


def test_other_options_can_be_set_for_one_call() -> None:
    processor = DetrTorchvisionImageProcessor(do_resize=False)

    def white(**options: Any) -> float:
        return round(float(processor(ONES, **options)["pixel_values"][0, 0, 0, 0]), 4)

    assert white(do_normalize=False) == 1
    assert white(do_normalize=False, do_rescale=False) == 255
    assert white(do_normalize=False, rescale_factor=1 / 127.5) == 2
    assert white(image_mean=0.5, image_std=[0.5, 0.5, 0.5]) == 1
    assert white(rescale_factor=1 / 127.5, image_mean=0.5, image_std=0.5) == 3
    assert "pixel_mask" not in processor(ONES, do_pad=False)
    assert isinstance(processor(ONES, return_tensors="np")["pixel_mask"], np.ndarray)
    assert [len(image) for image in processor([ONES, ONES[:10]], do_pad=False)["pixel_values"]] == [3, 3]
    assert processor([ONES, ONES], do_pad=False)["pixel_values"].shape == (2, 3, 20, 30)
    assert processor(ONES.transpose(1, 0, 2)[:4], input_data_format="channels_last")["pixel_values"].shape[-1] == 20
    assert processor(ONES, device="meta")["pixel_values"].device.type == "meta"


def test_floats_keep_their_values_without_rescaling() -> None:
    image = torch.linspace(-2, 2, 3 * 8 * 8).view(3, 8, 8)
    processor = DetrTorchvisionImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    torch.testing.assert_close(processor(image)["pixel_values"][0], image)


def test_a_nearest_neighbour_filter_can_be_chosen() -> None:
    pixels = DetrTorchvisionImageProcessor(size=40, resample=0, do_normalize=False)(GREY > 100)["pixel_values"]
    assert pixels.unique().tolist() == [0, 1]


def test_batches_in_one_array_are_split_into_images() -> None:
    processor = DetrTorchvisionImageProcessor(do_resize=False)
    assert processor(torch.zeros(2, 3, 8, 9))["pixel_values"].shape == (2, 3, 8, 9)
    assert processor([torch.zeros(2, 3, 8, 9), torch.zeros(1, 3, 4, 4)])["pixel_values"].shape == (3, 3, 8, 9)


bad_options = [
    ({"do_rezise": False}, "has no option 'do_rezise'; did you mean 'do_resize'?"),
    ({"zzz": 1}, "has no option 'zzz'; expected one of do_resize, size"),
    ({"do_center_crop": True}, "got do_center_crop=True, expected False"),
    ({"do_pad": "no"}, "do_pad: got 'no', expected True or False"),
    ({"size": {"shortest": 5}}, "size: got {'shortest': 5}, expected"),
    ({"size": {"height": 5}}, "size: got {'height': 5}, expected"),
    ({"size": 0}, "size: got {'shortest_edge': 0}, expected"),
    ({"pad_size": {"shortest_edge": 5}}, "pad_size: got .* expected {'height': …, 'width': …}"),
    ({"size": {"height": 5, "width": 5}, "max_size": 9}, "max_size: got 9 with size .* expected an integer size"),
    ({"image_mean": [0.5, 0.5]}, r"image_mean: got \[0.5, 0.5\], expected one number or one for each"),
    ({"image_std": 0}, "image_std: got 0, expected one number above 0"),
    ({"return_tensors": "tf"}, "return_tensors: got 'tf', expected 'pt' or 'np'"),
    ({"input_data_format": "last"}, "input_data_format: got 'last', expected 'channels_first'"),
]


@pytest.mark.parametrize(("options", "message"), bad_options)
def test_a_bad_option_is_an_error_when_built_and_when_called(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetrTorchvisionImageProcessor(**options)
    with pytest.raises(ValueError, match=message):
        DetrTorchvisionImageProcessor(do_resize=False)(ONES, **options)


# Saved and loaded


def test_a_saved_processor_loads_with_the_same_options(tmp_path: Path) -> None:
    processor = DetrTorchvisionImageProcessor(
        size={"shortest_edge": 240, "longest_edge": 320}, image_mean=[0.5] * 3, image_std=0.5, do_pad=False
    )
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "DetrTorchvisionImageProcessor"
    assert saved["size"] == {"shortest_edge": 240, "longest_edge": 320}
    loaded = DetrTorchvisionImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    torch.testing.assert_close(loaded(ONES)["pixel_values"], processor(ONES)["pixel_values"])
    assert DetrTorchvisionImageProcessor.from_pretrained(tmp_path, size=64).size == {"shortest_edge": 64}


def test_options_passed_at_loading_take_precedence_and_unknown_ones_are_errors(tmp_path: Path) -> None:
    DetrTorchvisionImageProcessor(size=64, image_mean=0.5).save_pretrained(tmp_path)
    load = DetrTorchvisionImageProcessor.from_pretrained
    assert load(tmp_path, size=32, max_size=48).size == {"shortest_edge": 32, "longest_edge": 48}
    assert load(tmp_path, do_pad=False).image_mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"no option 'do_rezise'; did you mean 'do_resize'?"):
        load(tmp_path, do_rezise=False)
    processor, unused = load(tmp_path, size=32, nonsense=1, return_unused_kwargs=True)
    assert (processor.size, unused) == ({"shortest_edge": 32}, {"nonsense": 1})


def test_files_of_stock_detr_load(tmp_path: Path) -> None:
    oldest = {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "DetrFeatureExtractor",
        "format": "coco_detection",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "max_size": 1333,
        "size": 800,
    }
    newer = {
        "do_convert_annotations": True,
        "do_pad": True,
        "image_processor_type": "DetrImageProcessor",
        "pad_size": None,
        "resample": 2,
        "size": {"longest_edge": 1333, "shortest_edge": 800},
    }
    for config in (oldest, newer):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        processor = DetrTorchvisionImageProcessor.from_pretrained(tmp_path)
        kept = {key: config[key] for key in ("format",) if key in config}
        assert processor.to_dict() == {**DetrTorchvisionImageProcessor().to_dict(), **kept}


@pytest.mark.slow
def test_the_code_travels_beside_the_weights(tmp_path: Path) -> None:
    DetrTorchvisionImageProcessor(size=32).save_pretrained(tmp_path / "model")
    load = f"""
import sys
sys.modules["modeling_detr"] = None
import numpy, torch
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
assert type(processor).__name__ == "DetrTorchvisionImageProcessor", type(processor)
assert processor(numpy.zeros((64, 48, 3), numpy.uint8))["pixel_values"].shape == (1, 3, 42, 32)
"""
    environment = {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PATH": "",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", load], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "model").glob("*.py")} == {
        "annotations_detr.py",
        "coco_masks_detr.py",
        "errors_detr.py",
        "image_processing_detr.py",
        "image_reading_detr.py",
        "model_folder_detr.py",
        "padding_detr.py",
        "post_processing_detr.py",
        "structures_detr.py",
    }


# Sequences of images


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def object_array(images: list[Any]) -> np.ndarray:
    array = np.empty(len(images), dtype=object)
    array[:] = images
    return array


SEQUENCES: dict[str, Any] = {
    "tuple": tuple,
    "generator": iter,
    "values of a dict": lambda images: dict(enumerate(images)).values(),
    "object array": object_array,
    "pandas Series": lambda images: pytest.importorskip("pandas").Series(images, index=[5, 7]),
    "column of datasets": lambda images: pytest.importorskip("datasets").Dataset.from_dict({"image": images})["image"],
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_images_come_in_any_sequence(kind: str) -> None:
    images = [Image.fromarray(RGB), Image.fromarray(RGB[:, ::-1].copy())]
    processor = DetrTorchvisionImageProcessor(size=20)
    assert torch.equal(processor(SEQUENCES[kind](images))["pixel_values"], processor(images)["pixel_values"])


def test_images_come_as_paths_bytes_files_and_rows_of_datasets(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(RGB))
    content = path.read_bytes()
    with path.open("rb") as file:
        kinds: list[Any] = [path, str(path), content, bytearray(content), file, io.BytesIO(content)]
        kinds += [{"bytes": content, "path": None}, {"bytes": None, "path": str(path)}]
        kinds += [[path], np.array([str(path)])]
        for image in kinds:
            assert torch.equal(
                DetrTorchvisionImageProcessor(do_resize=False)(image)["pixel_values"],
                DetrTorchvisionImageProcessor(do_resize=False)(RGB)["pixel_values"],
            )


class Table:
    columns = ("image",)

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Table(), "images: got Table, expected one of its columns"),
        ({"image": RGB}, r"image: got a dict with the keys \['image'\], expected a PIL image"),
        ([{"image": RGB}] * 2, r"image 0 of 2: got a dict with the keys \['image'\]"),
        ([RGB, None], "image 1 of 2: got NoneType, expected a PIL image"),
        ([RGB, float("nan")], "image 1 of 2: got float"),
        ({"a.jpg"}, "image: got set"),
        (3, "image: got int"),
    ],
)
def test_what_is_no_image_is_named_with_its_position(images: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        DetrTorchvisionImageProcessor()(images)
