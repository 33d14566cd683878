import json
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, browser
from PIL import Image

from modeling_detr import DetrTorchvisionImageProcessor
from modeling_detr.commands import run_command
from modeling_detr.commands.explain import main
from modeling_detr.explanation import explain


PROCESSOR = DetrTorchvisionImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@pytest.fixture
def inputs(tiny_detector, tmp_path):
    """A model's folder and an image."""
    tiny_detector(num_labels=2, id2label={0: "disc", 1: "star"}).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    return [str(tmp_path / "model"), str(tmp_path / "in.png"), "--device", "cpu"]


def test_pictures_arrays_and_scores_are_written(inputs, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--threshold", "0", "--max_detections", "3", "--steps", "2", "--random_maps", "2"]
    assert main([*inputs, "--output_dir", str(out), *options, "--points", "10,20", "89.5,0"]) == 0
    written = json.loads((out / "explanation.json").read_text())
    assert (written["width"], written["height"]) == (90, 60)
    assert [point["picture"] for point in written["points"]] == ["point_1.jpg", "point_2.jpg"]
    pictures = [entry["picture"] for entry in (*written["detections"], *written["points"])]
    assert {path.name for path in out.iterdir()} == {
        *pictures,
        *("detections.jpg", "arrays.npz", "explanation.json", "explanation.html"),
    }
    for name in (*pictures, "detections.jpg"):
        with Image.open(out / name) as picture:
            assert min(picture.size) >= 480
    arrays = np.load(out / "arrays.npz")
    assert arrays["cross_attention"].shape == (3, 2, 4, 2, 3)
    np.testing.assert_allclose(arrays["cross_attention"].sum((-2, -1)), 1, rtol=1e-5)
    assert arrays["deletion_relevance"].shape == (3, 3)
    assert arrays["insertion_random"].shape == (2, 3, 3)
    for index, entry in enumerate(written["detections"]):
        assert entry["query"] == arrays["queries"][index]
        assert entry["score"] == pytest.approx(arrays["scores"][index])
        first, middle, last = arrays["deletion_relevance"][index]
        assert entry["areas"]["relevance"]["deletion"] == pytest.approx((first + 2 * middle + last) / 4)
        random = arrays["insertion_random"][:, index]
        expected = (random[:, 0] + 2 * random[:, 1] + random[:, 2]).mean() / 4
        assert entry["areas"]["random"]["insertion"] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "3 detections with a score of at least 0" in printed
    assert (
        f"relevance  deletion {np.mean([e['areas']['relevance']['deletion'] for e in written['detections']]):.3f}"
        in (printed)
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_works_in_a_browser(inputs, tmp_path):
    out = tmp_path / "out"
    options = ["--threshold", "0", "--max_detections", "3", "--steps", "2", "--random_maps", "1"]
    assert main([*inputs, "--output_dir", str(out), *options]) == 0
    with browser(tmp_path / "profile") as chromium:
        chromium.open(out / "explanation.html", 390, "dark")
        assert chromium.wait_for("document.querySelectorAll('canvas').length", 2) == 2
        assert chromium.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        picture = "document.querySelectorAll('canvas')[{}].toDataURL()"
        before = [chromium.evaluate(picture.format(number)) for number in range(2)]
        chromium.click("document.querySelectorAll('canvas')[1]", 0.99, 0.99)
        at_the_end = "document.querySelectorAll('.status')[1].textContent.startsWith('Point 8')"  # of 90 pixels
        assert chromium.wait_for(at_the_end, True) is True
        chromium.evaluate("document.querySelectorAll('[data-box]')[2].click()")
        shown = "[...document.querySelectorAll('.detail')].findIndex((detail) => !detail.hidden)"
        assert chromium.wait_for(shown, 2) == 2
        assert chromium.evaluate("document.querySelectorAll('.detail:not([hidden]) polyline.chosen').length") == 2
        after = [chromium.evaluate(picture.format(number)) for number in range(2)]
        assert all(one != other for one, other in zip(before, after, strict=True))
        assert chromium.problems == []


def test_a_panoptic_model_is_explained_without_curves(tiny_segmenter, inputs, tmp_path):
    tiny_segmenter(certain_label=4, num_labels=5, stuff_labels=[3, 4]).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert main([*inputs, "--output_dir", str(out), "--steps", "0", "--methods", "rollout", "attention"]) == 0
    detections = json.loads((out / "explanation.json").read_text())["detections"]
    assert [entry["label"] for entry in detections] == [4] * 7
    assert all("areas" not in entry for entry in detections)
    assert {"map_rollout", "map_attention"} == {name for name in np.load(out / "arrays.npz") if "map_" in name}


def test_an_image_without_detections_has_its_scene_only(inputs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*inputs, "--output_dir", str(out), "--threshold", "1"]) == 0
    files = {"detections.jpg", "arrays.npz", "explanation.json", "explanation.html"}
    assert {path.name for path in out.iterdir()} == files
    page = (out / "explanation.html").read_text()
    assert "No detection has a score" in page
    assert page.count('class="heat"') == 1  # points can be clicked all the same
    assert capsys.readouterr().out.startswith("0 detections with a score of at least 1\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "2"], "--threshold: got 2, expected a score from 0 to 1."),
        (["--max_detections", "0"], "--max_detections: got 0, expected at least 1."),
        (["--points", "3"], "argument --points: got '3', expected X,Y in pixels, such as 320,240"),
        (["--points", "3,60"], "points: got (3, 60), expected a point inside the image of 90x60 pixels."),
    ],
)
def test_a_wrong_option_is_explained(inputs, tmp_path, capsys, options, message):
    try:
        code = run_command("explain", [*inputs, "--output_dir", str(tmp_path / "out"), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_image_and_a_folder_are_errors(inputs, tmp_path, capsys):
    model = inputs[0]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not an image")
    assert run_command("explain", [model, str(tmp_path / "broken.jpg")]) == 2
    assert "broken.jpg: cannot be read (cannot identify image file" in capsys.readouterr().err
    assert run_command("explain", [model, str(tmp_path)]) == 2
    assert "a folder; expected one image" in capsys.readouterr().err


def test_without_output_dir_the_results_are_in_runs(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*inputs, "--threshold", "1"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["explain", "explain-2"]
    assert torch.is_grad_enabled()


def test_a_model_in_half_precision_is_explained(inputs, tiny_detector, tmp_path):
    tiny_detector(num_labels=2, id2label={0: "disc", 1: "star"}).half().save_pretrained(tmp_path / "model")
    options = ["--threshold", "0", "--max_detections", "1", "--steps", "2", "--random_maps", "1"]
    assert main([*inputs, "--output_dir", str(tmp_path / "out"), *options]) == 0


def test_a_device_without_values_is_refused(inputs):
    with pytest.raises(ValueError, match="--device: cannot use 'meta'"):
        main([*inputs[:2], "--device", "meta"])


def test_two_explanations_at_once_have_a_folder_each(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--threshold", "0", "--max_detections", "1", "--steps", "0"]

    def explain_while_another_starts(*arguments, **keywords):
        monkeypatch.setattr("modeling_detr.commands.explain.explain", explain)
        assert main([*inputs, *options]) == 0
        return explain(*arguments, **keywords)

    monkeypatch.setattr("modeling_detr.commands.explain.explain", explain_while_another_starts)
    assert main([*inputs, *options]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["explain", "explain-2"]
