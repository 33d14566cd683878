from pathlib import Path

import numpy as np
import pytest
import torch
from noise_images import picture
from PIL import Image

from modeling_detr.errors_detr import ModelError
from modeling_detr.predicting import Detector, Prediction, Tiling
from modeling_detr.prediction import predict_objects


@pytest.fixture
def detector(model_folder: Path) -> Detector:
    return Detector.from_pretrained(model_folder, device="cpu")


def test_an_image_of_any_kind_gives_the_same_prediction(detector: Detector, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    expected = predict_objects(detector.model, detector.processor, path, 0.0)
    array = np.asarray(Image.open(path))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for image in (path, str(path), path.read_bytes(), Image.open(path), array, tensor):
        prediction = detector(image, threshold=0.0)
        assert torch.equal(prediction.boxes, expected["boxes"])
        assert torch.equal(prediction.scores, expected["scores"])


def test_several_images_give_several_predictions(detector: Detector, tmp_path: Path) -> None:
    paths = [picture(tmp_path / "in" / f"{name}.png", (90, 60 + 5 * (name == "c"))) for name in "abc"]
    for images in (paths, tuple(paths), tmp_path / "in", f"{tmp_path}/in/*.png"):
        predictions = detector(images, batch_size=2)
        assert [prediction.source for prediction in predictions] == [str(path) for path in paths]
        assert [prediction.size for prediction in predictions] == [(60, 90), (60, 90), (65, 90)]


def test_an_array_with_four_axes_is_several_images(detector: Detector) -> None:
    pixels = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    for images in (pixels, pixels.permute(0, 2, 3, 1).numpy()):
        for image, prediction in zip(pixels, detector(images, threshold=0.0), strict=True):
            assert torch.equal(prediction.boxes, detector(image, threshold=0.0).boxes)


def test_the_side_of_tiles_is_enough_to_choose_them(detector: Detector) -> None:
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    same = detector(image, threshold=0.0, tiling=Tiling(50))
    assert torch.equal(detector(image, threshold=0.0, tiling=50).boxes, same.boxes)
    assert len(same) > len(detector(image, threshold=0.0))


def test_a_generator_is_read_as_far_as_its_predictions_are_used(detector: Detector, tmp_path: Path) -> None:
    path, read = picture(tmp_path / "a.png"), []

    def images():
        for number in range(1000):
            read.append(number)
            yield path

    predictions = detector(images())
    next(predictions)
    assert len(read) <= 2


def test_batches_do_not_change_predictions(detector: Detector, tmp_path: Path) -> None:
    images = [torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8) for _ in range(3)]
    together = detector(images, threshold=0.0, batch_size=3)
    for image, prediction in zip(images, together, strict=True):
        assert torch.allclose(prediction.boxes, detector(image, threshold=0.0).boxes, atol=1e-4)


def test_thresholds_and_classes_choose_objects(detector: Detector, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    everything = detector(path, threshold=0.0)
    assert set(everything.names) == {"star"}
    assert len(detector(path, threshold=0.0, classes=["star"])) == len(everything)
    assert len(detector(path, threshold=0.0, classes=["disc"])) == 0
    assert len(detector(path, threshold={"disc": 1.0, "": 0.0})) == len(everything)
    assert len(detector(path, threshold={"star": 1.0, "": 0.0})) == 0
    with pytest.raises(ModelError, match="has no class 'stra'; did you mean 'star'"):
        detector(path, classes=["stra"])


def test_a_file_that_cannot_be_read_is_an_error(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(OSError, match=r"a\.jpg: is not an image"):
        detector(tmp_path / "a.jpg")
    cut = picture(tmp_path / "in" / "cut.png")
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(OSError, match=r"in/cut\.png: cannot be read \("):
        detector(tmp_path / "in")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(OSError, match=r"clip\.mp4: is a video.*pass the frames"):
        detector(tmp_path / "clip.mp4")
    with pytest.raises(FileNotFoundError, match=r"no\.jpg: no such image"):
        detector("no.jpg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
        ({"threshold": 50}, "threshold: got 50, expected a score from 0 to 1"),
        ({"tiling": 0}, "tile: got 0"),
    ],
)
def test_an_option_out_of_range_is_an_error(detector: Detector, tmp_path: Path, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector(picture(tmp_path / "a.png"), **options)


def test_a_prediction_can_be_compiled_and_computed_in_16_bits(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype: got 'int8'"):
        Detector.from_pretrained(model_folder, device="cpu", dtype="int8")  # type: ignore[arg-type]
    rounded = Detector.from_pretrained(model_folder, device="cpu", dtype="bfloat16")
    exact = Detector.from_pretrained(model_folder, device="cpu")
    image = picture(tmp_path / "a.png")
    one, other = rounded(image, threshold=0.0), exact(image, threshold=0.0)
    assert not torch.equal(one.scores, other.scores)
    assert torch.allclose(one.scores, other.scores, atol=0.05)


def test_a_model_that_is_loaded_already_is_used(detector: Detector, tmp_path: Path) -> None:
    same = Detector(detector.model, detector.processor)
    assert isinstance(same(picture(tmp_path / "a.png")), Prediction)
