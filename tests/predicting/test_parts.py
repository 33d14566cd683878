"""Predictions in parts: shards together write what one run does, and a part is there whole or not at all."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killed_writes import killed_before
from noise_images import picture
from pyarrow import parquet

from modeling_detr.commands.predict import main
from modeling_detr.errors_detr import ModelError, OutputError
from modeling_detr.predicting import Detector
from modeling_detr.predicting.engines import ENGINES, predict_part
from modeling_detr.predicting.engines.part_work import write_part
from modeling_detr.predicting.inputs import InputImage
from modeling_detr.predicting.journal import digest_of_model
from modeling_detr.predicting.parts import Parts, Shard


Predict = Callable[..., int]


@pytest.fixture
def predict(model_folder: Path, tmp_path: Path) -> Predict:
    """Returns a function that predicts for eight images in `in`, of which one is broken, in parts of three."""
    for number in range(7):
        picture(tmp_path / "in" / f"{number}.png", (60 + number % 2, 60))
    (tmp_path / "in" / "5_broken.png").write_bytes(b"broken")

    def run(out: str, *options: str) -> int:
        chosen = [] if "--shard" not in options or "--images_per_part" in options else ["--images_per_part", "3"]
        arguments = [str(model_folder), str(tmp_path / "in"), "--output_dir", str(tmp_path / out), *options, *chosen]
        return main([*arguments, *([] if "--threshold" in options else ["--threshold", "0"]), "--batch_size", "2"])

    return run


def table(folder: Path) -> Any:
    """The rows of a folder of parts, or of the file of an undivided run, as any reader of Parquet sees them."""
    return parquet.read_table(folder / "predictions.parquet")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "predictions.parquet").iterdir())


def test_shards_together_write_the_parts_of_a_single_run(predict: Predict, tmp_path: Path, capsys) -> None:
    assert predict("one", "--shard", "1/1") == 1  # an image is broken
    assert [predict("two", "--shard", f"{number}/2") for number in (2, 1)] == [0, 1]
    assert "3 of 3 parts done" in capsys.readouterr().out
    assert names(tmp_path / "two") == names(tmp_path / "one")
    assert names(tmp_path / "one")[-1] == "part-0000000006-0000000007.parquet"
    assert table(tmp_path / "two") == table(tmp_path / "one")


def test_the_parts_are_the_table_of_a_run_without_shards_with_a_row_for_each_broken_image(
    predict: Predict, tmp_path: Path, capsys
) -> None:
    assert predict("parts", "--shard", "1/1") == 1
    said = capsys.readouterr().err
    assert "5_broken.png: skipped, cannot identify image file" in said
    assert "1 of 8 images could not be read; the column 'error' says why. To try again, remove part-" in said
    assert predict("whole", "--save", "parquet") == 1
    rows, whole = table(tmp_path / "parts").to_pylist(), table(tmp_path / "whole").to_pylist()
    (broken,) = [row for row in rows if row["error"] is not None]
    assert broken["image"] == str(tmp_path / "in" / "5_broken.png")
    assert broken["labels"] is None
    read = [{name: row[name] for name in row if name != "error"} for row in rows if row is not broken]
    for row, expected in zip(read, whole, strict=True):
        assert row["scores"] == pytest.approx(expected.pop("scores"), abs=1e-6)  # the batches differ
        boxes = [corner for box in row["boxes_xyxy"] for corner in box]
        assert boxes == pytest.approx([corner for box in expected.pop("boxes_xyxy") for corner in box], abs=1e-3)
        assert {name: row[name] for name in expected} == expected


def test_a_stopped_shard_continues_with_the_parts_that_are_missing(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    predict("whole", "--shard", "1/1")
    compute, calls = Detector.predict_batch, []

    def interrupted(detector, *batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(detector, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "predict_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict("parts", "--shard", "1/1")
    assert "the same command continues with the parts that are missing" in capsys.readouterr().err
    assert len(names(tmp_path / "parts")) == 1
    before = (tmp_path / "parts/predictions.parquet" / names(tmp_path / "parts")[0]).stat().st_mtime_ns
    assert predict("parts", "--shard", "1/2") == 1  # shards need not be those of before
    assert "1 of 2 parts done" in capsys.readouterr().out
    assert predict("parts", "--shard", "2/2") == 0
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    after = (tmp_path / "parts/predictions.parquet" / names(tmp_path / "parts")[0]).stat().st_mtime_ns
    assert before == after


def test_parts_of_another_run_are_refused(predict: Predict, model_folder: Path, tmp_path: Path) -> None:
    predict("out", "--shard", "1/2")
    with pytest.raises(OutputError, match=r"holds parts of another run \(threshold was 0\.0, is 0\.3\)"):
        predict("out", "--shard", "2/2", "--threshold", "0.3")
    with pytest.raises(OutputError, match=r"images_per_part was 3, is 4"):
        predict("out", "--shard", "2/2", "--images_per_part", "4")
    picture(tmp_path / "in" / "new.png")
    with pytest.raises(OutputError, match=r"images was 8, is 9, image_list was '.{16}', is"):
        predict("out", "--shard", "2/2")
    (tmp_path / "in" / "new.png").unlink()
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config, indent=4))
    with pytest.raises(OutputError, match=r"model was '.{16}', is "):
        predict("out", "--shard", "2/2")
    (tmp_path / "out" / "parts.json").unlink()
    with pytest.raises(OutputError, match=r"holds parts, but .*parts\.json is missing"):
        predict("out", "--shard", "2/2")


def test_a_damaged_part_or_one_of_other_images_is_predicted_again(predict: Predict, tmp_path: Path, capsys) -> None:
    predict("out", "--shard", "1/1")
    whole = table(tmp_path / "out")
    first, second, _ = sorted((tmp_path / "out" / "predictions.parquet").iterdir())
    for content in (b"", second.read_bytes()):
        first.write_bytes(content)
        capsys.readouterr()
        assert predict("out", "--shard", "1/1") == 1
        assert f"{first.name}: is damaged, or has other images" in capsys.readouterr().err
        assert table(tmp_path / "out") == whole
    shutil.copy(first, first.with_name("copy.parquet"))
    with pytest.raises(OutputError, match=r"holds copy\.parquet, which is no part of this run"):
        predict("out", "--shard", "1/1")


def test_names_that_are_not_text_are_written_as_escapes(model_folder: Path, tmp_path: Path) -> None:
    source, out = (Path(os.fsdecode(os.fsencode(tmp_path / name) + b"\xff")) for name in ("in", "out"))
    source.mkdir()
    (source / "a.png").write_bytes(b"broken")
    arguments = [str(model_folder), str(source), "--output_dir", str(out), "--shard", "1/1"]
    assert main(arguments) == 1
    assert main(arguments) == 1  # its part is found to be whole
    (part,) = (out / "predictions.parquet").iterdir()
    with part.open("rb") as file:
        (row,) = parquet.read_table(file).to_pylist()
    assert row["image"].endswith(r"in\udcff/a.png")


def test_other_files_beside_the_model_do_not_make_it_another(model_folder: Path) -> None:
    before = digest_of_model(model_folder.parent)
    (model_folder.parent / "evaluation.json").write_text("{}")
    (model_folder / ".DS_Store").write_text("")
    assert digest_of_model(model_folder.parent) == digest_of_model(model_folder) == before


def test_a_copy_of_the_model_is_the_same_model(predict: Predict, model_folder: Path, tmp_path: Path) -> None:
    predict("out", "--shard", "1/2")
    shutil.copytree(model_folder, tmp_path / "copy")
    arguments = [str(tmp_path / "copy"), str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--shard", "2/2"]
    assert main([*arguments, "--images_per_part", "3", "--threshold", "0"]) == 0
    assert len(names(tmp_path / "out")) == 3


def test_a_shard_without_images_says_so(predict: Predict, capsys) -> None:
    assert predict("out", "--shard", "4/4") == 0
    said = capsys.readouterr().out
    assert "shard 4/4: nothing to do, since all images are in 3 parts" in said
    assert "0 of 3 parts done" in said
    assert "object" not in said


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/5"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"--shard: got '{text}', expected a number from 1 and their count"):
        main(["no_model", "in", "--output_dir", "out", f"--shard={text}"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "1/2"], "--shard 1/2: needs --output_dir"),
        (["--shard", "1/2", "--output_dir", "out", "--save", "json"], "--save: got 'json' with --shard 1/2"),
        (["--shard", "1/2", "--output_dir", "out", "--as_dataset", "d"], "--as_dataset: cannot be combined"),
        (["--shard", "1/2", "--output_dir", "out", "--images_per_part", "0"], "--images_per_part: got 0, expected"),
        (["--images_per_part", "5"], "--images_per_part: is about a table in parts"),
        (["--ray_address", "auto"], "--ray_address: is the address of a Ray cluster; add --engine ray"),
    ],
)
def test_options_without_effect_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["no_model", "in", *options])


def test_videos_cannot_be_divided(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.mp4: is a video, which cannot be divided among shards"):
        main([str(model_folder), str(tmp_path / "a.mp4"), "--shard", "1/2", "--output_dir", str(tmp_path / "out")])


def test_panoptic_segments_are_refused_before_predicting(tiny_segmenter, model_folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    tiny_segmenter(num_labels=2, id2label={0: "disc", 1: "star"}, stuff_labels=[1]).save_pretrained(model_folder)
    with pytest.raises(ModelError, match="predicts panoptic segments, which a Parquet table cannot hold"):
        main([str(model_folder), str(tmp_path / "in"), "--shard", "1/2", "--output_dir", str(tmp_path / "out")])


def test_an_engine_is_added_with_a_line(predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_in_reverse(work, parts):
        for part in reversed(parts):
            yield predict_part(work.image_pass, work.table, part, [work.images[index] for index in part.indices])

    monkeypatch.setitem(ENGINES, "reverse", predict_in_reverse)
    predict("one", "--shard", "1/1")
    predict("reverse", "--shard", "1/1", "--engine", "reverse")
    assert table(tmp_path / "reverse") == table(tmp_path / "one")


def write_parts(folder: Path) -> None:
    parts = Parts(folder, [InputImage(f"{number}.jpg", f"{number}.jpg") for number in range(3)], 2)
    parts.open({"threshold": 0.5})
    for part in parts.missing():
        write_part(parts.table, part, [{"image": f"{number}.jpg", "error": "none"} for number in part.indices])


def test_a_kill_at_any_file_operation_leaves_whole_parts_and_costs_none(tmp_path: Path) -> None:
    write_parts(tmp_path / "whole")
    for operation in itertools.count():
        is_killed = killed_before(operation, partial(write_parts, tmp_path / "out"))
        for file in (tmp_path / "out" / "predictions.parquet").glob("part-*.parquet"):
            assert parquet.read_table(file).num_rows == (1 if "0000000002-" in file.name else 2)
        write_parts(tmp_path / "out")
        assert table(tmp_path / "out") == table(tmp_path / "whole")
        assert names(tmp_path / "out") == names(tmp_path / "whole")  # nothing hidden is left
        shutil.rmtree(tmp_path / "out")
        if not is_killed:
            break
    assert operation > 20


def test_processes_of_shards_have_all_parts_between_them() -> None:
    images = [InputImage(f"{number}.jpg", f"{number}.jpg") for number in range(50)]
    parts = Parts(Path(), images, 3)
    split = [parts.of(Shard(number, 3).split(process, 2)) for number in (1, 2, 3) for process in (0, 1)]
    assert sorted(itertools.chain.from_iterable(split)) == parts.all
    assert [index for part in parts.all for index in part.indices] == [*range(50)]
