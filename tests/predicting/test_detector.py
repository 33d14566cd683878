from pathlib import Path

import numpy as np
import pytest
import torch
from noise_images import picture
from PIL import Image

from modeling_detr.errors_detr import ModelError
from modeling_detr.predicting import Detector, Prediction
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
    with pytest.raises(OSError, match="cannot identify"):
        detector(tmp_path / "a.jpg")


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
