"""Images decoded by `detr data check`: in processes or threads, all or a sample."""

import json
import os
import signal

import pytest
from PIL import Image
from pyarrow import parquet

from modeling_detr.commands import run_command
from modeling_detr.data import check_pixels
from modeling_detr.data.check import check_dataset
from modeling_detr.errors_detr import LoaderError


@pytest.fixture
def damaged(coco_folder):
    """A dataset with a truncated image and one of another size."""
    truncated = coco_folder / "train" / "a.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    Image.new("RGB", (33, 44)).save(coco_folder / "val" / "c.jpg")
    return coco_folder


def test_processes_find_what_threads_find(damaged, monkeypatch):
    monkeypatch.setattr(check_pixels, "CHUNK", 1)
    progress = []
    expected = check_dataset(damaged, num_workers=0)
    report = check_dataset(damaged, num_workers=2, progress=progress.append)
    assert report.errors >= 2
    assert report.findings == expected.findings
    assert report.bad_images == expected.bad_images
    assert sum(progress) == report.decoded == len(report.index)


def test_a_killed_process_is_an_error_that_names_its_images(coco_folder, monkeypatch):
    parent, opened = os.getpid(), Image.open

    def kill(*arguments):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(*arguments)

    monkeypatch.setattr(Image, "open", kill)
    with pytest.raises(LoaderError, match=r"was killed by SIGKILL while loading .*\.jpg"):
        check_dataset(coco_folder, num_workers=1)


def test_a_sample_is_the_same_each_time_and_the_report_says_so(damaged, capsys):
    first, second = (check_dataset(damaged, pixels=2) for _ in range(2))
    assert first.decoded == 2
    assert first.findings == second.findings
    assert run_command("data", ["check", str(damaged), "--pixels", "2", "--no_html"]) in (0, 1)
    line = f"decoded 2 of {len(first.index)} images, drawn at random: others may be damaged or repeated"
    assert f"{line} (--pixels all decodes all)" in " ".join(capsys.readouterr().out.split())
    whole = check_dataset(damaged, pixels=len(first.index))
    assert (whole.decoded, whole.is_sample) == (len(first.index), False)
    assert "drawn at random" not in whole.to_text()


def test_findings_as_a_table(damaged, tmp_path, capsys):
    file = tmp_path / "findings.parquet"
    assert run_command("data", ["check", str(damaged), "--json", "--findings", str(file)]) == 1
    printed = capsys.readouterr()
    findings = json.loads(printed.out)["findings"]
    assert parquet.read_table(file).to_pylist() == findings
    assert f"{len(findings)} findings in {file}" in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--findings", "findings.csv"], "--findings: got findings.csv, expected a name that ends in .parquet."),
        (["--pixels", "some"], "got 'some', expected a number of images, all or none"),
        (["--pixels", "0"], "got '0', expected a number"),
        (["--fix", "clean", "--pixels", "10"], "--fix: must know which images can be read; drop --pixels 10."),
        (["--num_workers", "-1"], "--num_workers: got -1, expected at least 0."),
    ],
)
def test_wrong_options_are_answered_in_one_line(coco_folder, options, message, capsys):
    try:
        code = run_command("data", ["check", str(coco_folder), *options])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
