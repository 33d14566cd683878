import json

import pytest

from modeling_detr.benchmarks.speed.agreement import check_agreement
from modeling_detr.benchmarks.speed.measurement import TIME, Measurement
from modeling_detr.benchmarks.speed.sections import SECTIONS, Section
from modeling_detr.commands import run_command
from modeling_detr.commands.benchmark import main


@pytest.fixture
def sections(monkeypatch):
    """Two sections that take no time: one of equal and one of different results."""

    def equal(settings):
        works = {"modeling_detr": lambda: {"sum": 3.0}, "transformers": lambda: {"sum": 3.0}}
        differences = check_agreement("sum", {name: work() for name, work in works.items()}, 0.0)
        samples = settings.time(works)
        yield Measurement(
            "sum", TIME, {name: [len(values) / 1000] * 2 for name, values in samples.items()}, differences
        )

    def different(_settings):
        check_agreement("product", {"modeling_detr": {"value": 1.0}, "transformers": {"value": 2.0}}, 0.1)
        yield

    monkeypatch.setitem(SECTIONS, "equal", Section("equal results", equal, ["Both add."]))
    monkeypatch.setitem(SECTIONS, "different", Section("different results", different))


@pytest.mark.usefixtures("sections")
def test_table_json_and_plot_are_written(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["speed", "--quick", "--sections", "equal", "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "The original is not measured; --original PATH names a checkout of it." in printed
    assert (out / "results.md").read_text() in printed
    assert "| equal | sum | 5.00 ms | 5.00 ms (1.00 x) |" in printed
    assert json.loads((out / "results.json").read_text())["quick"] is True
    assert (out / "speed.png").stat().st_size > 5_000


@pytest.mark.usefixtures("sections")
def test_different_results_are_refused_and_the_exit_code_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["speed", "--quick", "--sections", "different,equal", "--output_dir", str(out)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "different: NOT MEASURED; product: value of transformers differs from that of modeling_detr by 1" in printed
    refused = {
        section["section"]: section["refused"]
        for section in json.loads((out / "results.json").read_text())["sections"]
    }
    assert refused["equal"] is None
    assert "differs" in refused["different"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "lost"], "--sections: unknown section 'lost'; did you mean 'loss'?"),
        (["--original", "no/such/folder"], "--original: folder 'no/such/folder' does not exist; pass the folder of"),
        (["--threads", "0"], "--threads: got 0, expected at least 1"),
        (["--device", "warp"], "--device: unknown device 'warp'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, capsys):
    assert run_command("benchmark", ["speed", *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
