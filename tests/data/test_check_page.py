"""The page of `detr data check`."""

import html
import json

from modeling_detr.commands import run_command
from modeling_detr.data.check import check_dataset
from modeling_detr.data.check_page import check_page


def test_the_page_has_what_the_report_has(coco_folder, tmp_path, capsys):
    (coco_folder / "train/a.jpg").write_bytes(b"no image")
    file = tmp_path / "pages/check.html"
    assert run_command("data", ["check", str(coco_folder), "--json", "--html", str(file)]) == 1
    output, errors = capsys.readouterr()
    assert errors.strip().endswith(f"see {file.as_uri()}")
    report, page = json.loads(output), html.unescape(file.read_text(encoding="utf-8"))
    assert report["errors"] == 1
    for finding in report["findings"]:
        assert finding["where"] in page
    assert "<details>" not in page  # so few are not folded away
    for entry in report["classes"]:
        assert f'<td>{entry["name"]}</td><td class="number" data-value="{float(entry["id"])}">' in page
    for split in report["splits"]:
        assert f"<td>{split}</td>" in page
    for value, name in ((report["errors"], "errors"), (report["images"], "images"), (report["boxes"], "boxes")):
        assert f"<li><strong>{value}</strong> {name}</li>" in page
    assert "<dt>format</dt><dd>coco, recognised by JSON files with" in page
    assert "<span>check</span>" in page  # of the command


def test_a_dataset_without_problems_says_so():
    assert "No problems found." in check_page(check_dataset("shapes?size=32&train=8&val=8")).to_html()


def test_many_findings_of_a_kind_are_cut_off(coco_folder):
    report = check_dataset(coco_folder, pixels="none")
    (coco_folder / "train/a.jpg").write_bytes(b"")
    finding = check_dataset(coco_folder).findings[0]
    many = type(report)(report.index, (finding,) * 600, report.format, ())
    page = check_page(many).to_html()
    assert page.count("a.jpg") == 500
    assert page.count("<details>") == 1
    assert "and 100 more: detr data check --all lists them" in page


def test_a_page_with_pictures_is_written_by_default(coco_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command("data", ["check", str(coco_folder)]) == 0
    page = tmp_path / "runs/check/data_check.html"
    assert capsys.readouterr().out.endswith(f"see {page.as_uri()}\n")
    pictures = page.read_text(encoding="utf-8").count("<img ")
    assert pictures == len(check_dataset(coco_folder).index)
    assert run_command("data", ["check", str(coco_folder), "--no_html"]) == 0
    assert run_command("data", ["check", str(coco_folder), "--json"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["check"]


def test_a_place_that_cannot_be_written_costs_only_the_page(coco_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("in the way")
    assert run_command("data", ["check", str(coco_folder)]) == 0
    output, errors = capsys.readouterr()
    assert "0 errors" in output
    assert errors.startswith("note      no web page: runs/check")


def test_an_image_that_cannot_be_read_is_not_among_the_pictures(coco_folder, tmp_path):
    (coco_folder / "train/a.jpg").write_bytes(b"no image")
    file = tmp_path / "check.html"
    assert run_command("data", ["check", str(coco_folder), "--pixels", "false", "--html", str(file)]) == 0
    assert file.read_text(encoding="utf-8").count("<img ") == len(check_dataset(coco_folder).index) - 1
