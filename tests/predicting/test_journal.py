from pathlib import Path

import pytest

from modeling_detr.errors_detr import OutputError
from modeling_detr.predicting.journal import FOLDER, Journal


def started(folder: Path, **settings: object) -> Journal:
    journal = Journal(folder)
    journal.open(settings)
    return journal


def test_what_was_done_is_found_again_in_the_order_of_the_images(tmp_path: Path) -> None:
    journal = started(tmp_path)
    for name in ("b", "a", "\udcff"):
        journal.add({"image": name, "detections": []})
    journal.close()
    again = started(tmp_path)
    assert again.is_done("a")
    assert not again.is_done("c")
    assert [entry["image"] for entry in again.entries(["\udcff", "a", "b", "c"])] == ["\udcff", "a", "b"]


@pytest.mark.parametrize("kept", range(-1, 20))
def test_a_line_that_was_cut_by_a_kill_is_dropped(tmp_path: Path, kept: int) -> None:
    journal = started(tmp_path)
    journal.add({"image": "a", "detections": []})
    journal.add({"image": "b", "detections": []})
    journal.close()
    (file,) = (tmp_path / FOLDER).glob("*.jsonl")
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:kept])
    again = started(tmp_path)
    again.add({"image": "b", "detections": [1]})
    again.close()
    again.read()
    assert [entry["image"] for entry in again.entries(["a", "b"])] == ["a", "b"]


def test_an_image_that_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    journal = started(tmp_path)
    journal.add({"image": "a", "error": "broken"})
    journal.close()
    again = started(tmp_path)
    assert not again.is_done("a")
    assert again.failures(["a", "b"]) == {"a": "broken"}
    again.add({"image": "a", "detections": []})
    again.close()
    again.read()
    assert again.failures(["a"]) == {}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    started(tmp_path, threshold=0.5, model="one")
    assert started(tmp_path, threshold=0.5, model="one").is_done("a") is False
    with pytest.raises(OutputError, match=r"unfinished run with other settings \(threshold was 0\.5, is 0\.3\)"):
        started(tmp_path, threshold=0.3, model="one")


def test_a_finished_run_leaves_nothing(tmp_path: Path) -> None:
    journal = started(tmp_path)
    journal.add({"image": "a", "detections": []})
    journal.remove()
    assert [*tmp_path.iterdir()] == []


def test_an_image_in_another_state_is_not_done_and_its_last_entry_counts(tmp_path: Path) -> None:
    for size in range(10):  # names of files must keep the order
        journal = started(tmp_path)
        assert not journal.is_done("a", ["a.jpg", size])
        journal.add({"image": "a", "detections": [size]}, ["a.jpg", size])
        journal.close()
    again = started(tmp_path)
    assert again.is_done("a", ["a.jpg", 9])
    assert not again.is_done("a", ["a_2.jpg", 9])
    assert [*again.entries(["a"])] == [{"image": "a", "detections": [9]}]
