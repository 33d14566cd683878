import time
from pathlib import Path

import pytest
from mutations import replace_by
from noise_images import picture

from modeling_detr.predicting.inputs import INPUTS, FoundImage, InputKind, find_inputs, named
from modeling_detr.predicting.journal import FOLDER as UNFINISHED
from modeling_detr.predicting.outputs.pictures import picture_name


def found(inputs: list[Path | str], ignored: Path) -> dict[str, Path]:
    return {image.name: Path(image.source) for image in find_inputs(map(str, inputs), [ignored])}


def test_images_with_the_same_name_in_two_folders_are_kept_apart(tmp_path: Path) -> None:
    paths = [picture(tmp_path / folder / "a.jpg") for folder in ("one", "two", "three")]
    images = found([path.parent for path in paths], tmp_path / "out")
    assert images == {"a.jpg": paths[0], "a_2.jpg": paths[1], "a_3.jpg": paths[2]}


def test_images_whose_outputs_would_share_a_file_are_kept_apart(tmp_path: Path) -> None:
    names = ["A.png", "a.jpg", "b.bmp", "b.bmp.png", "segments/a.jpg", "Crops/a.jpg", f"{'x' * 250}.webp"]
    names += [f"{UNFINISHED}/a.jpg"]
    for name in names:
        picture(tmp_path / name)
    images = found([tmp_path], tmp_path / "out")
    assert sorted(path.name for path in images.values()) == sorted(Path(name).name for name in names)
    written = [Path(folder, name).with_suffix("").as_posix().lower() for name in images for folder in ("", "segments")]
    assert len(set(written)) == 2 * len(names)
    assert len({str(picture_name(name)).lower() for name in images}) == len(names)
    assert not any(name.lower().startswith(("crops/", f"{UNFINISHED}/")) for name in images)
    assert all(len(Path(name).name) < 255 for name in images)


def test_an_image_that_is_given_twice_is_found_once(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    assert found([path, tmp_path, path], tmp_path / "out") == {"a.jpg": path}


def test_a_pattern_that_the_shell_has_not_expanded_finds_images(tmp_path: Path) -> None:
    paths = [picture(tmp_path / "photos" / name) for name in ("a.jpg", "sub/b.png", "c.gif")]
    (tmp_path / "photos" / "d.jpg").mkdir()
    assert found([f"{tmp_path}/photos/**/*.[jp][pn]g"], tmp_path / "out") == {"a.jpg": paths[0], "sub/b.png": paths[1]}
    with pytest.raises(ValueError, match="no image matches this pattern"):
        found([f"{tmp_path}/photos/*.webp"], tmp_path / "out")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    path = picture(tmp_path / "a[1].jpg")
    assert found([path], tmp_path / "out") == {"a[1].jpg": path}


@pytest.mark.parametrize("kind", ["pipe", "endless", "socket"])
def test_an_input_that_is_no_file_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.touch()
    replace_by(path, kind)
    with pytest.raises(OSError, match=r"a.jpg: is a (named pipe|device|socket), expected a file"):
        found([path], tmp_path / "out")


def test_output_of_an_earlier_call_is_not_used_as_input(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    picture(tmp_path / "out" / "sub" / "a.jpg")
    assert found([tmp_path], tmp_path / "out") == {"a.jpg": path}


def test_a_folder_of_results_is_searched_if_it_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "runs" / "photos" / "a.jpg")
    assert found([path.parent], tmp_path / "runs") == {"a.jpg": path}
    assert found([f"{path.parent}/*.jpg"], tmp_path / "runs") == {"a.jpg": path}
    with pytest.raises(ValueError, match="no images in this folder"):
        found([tmp_path / "runs"], tmp_path / "runs")


def test_names_stay_in_the_folder_of_the_results() -> None:
    names = ["../../a.jpg", "/etc/a.jpg", "b/../../a.jpg"]
    images = named(FoundImage(Path(name), name) for name in names)
    assert [image.name for image in images] == ["a.jpg", "etc/a.jpg", "b/a.jpg"]


def test_many_images_with_one_name_are_numbered_in_linear_time() -> None:
    started = time.process_time()
    images = [*named(FoundImage(Path("image.jpg"), str(number)) for number in range(5000))]
    assert images[-1].name == "image_5000.jpg"
    assert time.process_time() - started < 5  # a minute if each name tried all numbers


def test_missing_and_empty_inputs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such image or folder"):
        found([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ValueError, match="no images in this folder"):
        found([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match=r"\*\*\.jpg: got \*\* beside other characters"):
        found(["**.jpg"], tmp_path / "out")


def test_a_text_file_is_not_an_input_but_an_image_with_any_name_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt: not an image"):
        found([tmp_path / "notes.txt"], tmp_path / "out")
    nameless = picture(tmp_path / "a.png").rename(tmp_path / "a")
    assert [*found([nameless], tmp_path / "out").values()] == [nameless]


def test_a_kind_of_input_that_is_added_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png")
    images = [FoundImage(Path("b.png"), str(path))]
    added = InputKind(lambda text: text.startswith("album:"), lambda *_: images)
    monkeypatch.setitem(INPUTS, "album", added)
    assert found(["album:holidays"], tmp_path / "out") == {"b.png": path}
