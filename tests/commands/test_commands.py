"""The console command: its table of commands, plug-ins, and how errors are printed."""

import sys

import pytest

from modeling_detr import commands
from modeling_detr.commands import COMMANDS, Command
from modeling_detr.errors_detr import DatasetError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package `detr_extra` with one module of the given code, as a plug-in if asked for."""
    before = dict(COMMANDS)
    monkeypatch.syspath_prepend(tmp_path)

    def install(code: str, plug_in: bool = False) -> None:
        (tmp_path / "detr_extra.py").write_text(code)
        if plug_in:
            info = tmp_path / "detr_extra_package-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detr-extra-package\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text("[modeling_detr.plugins]\nextra = detr_extra\n")

    yield install
    sys.modules.pop("detr_extra", None)
    COMMANDS.clear()
    COMMANDS.update(before)


def test_help_lists_every_command(capsys):
    assert commands.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in out
        assert command.summary in out
    assert commands.main([]) == 2


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert commands.main(["trian"]) == 2
    assert capsys.readouterr().err == "detr: unknown command 'trian'; did you mean 'train'?\n"
    assert commands.main(["xyz"]) == 2
    assert "expected one of train, tune, evaluate" in capsys.readouterr().err


def test_a_command_is_added_from_outside_with_one_line(package, capsys):
    package("def main(arguments):\n    print('counted', *arguments)\n")
    COMMANDS["count"] = Command("count things", "detr_extra")
    assert commands.main(["count", "one", "two"]) == 0
    assert capsys.readouterr().out == "counted one two\n"
    commands.main(["--help"])
    assert "count things" in capsys.readouterr().out


def test_an_installed_plug_in_is_imported_before_a_command_runs(package, capsys):
    package(
        "from modeling_detr.commands import COMMANDS, Command\n"
        "COMMANDS['count'] = Command('count things', 'detr_extra')\n"
        "def main(arguments):\n    return len(arguments)\n",
        plug_in=True,
    )
    assert commands.main(["count", "one", "two", "three"]) == 3
    commands.main(["--help"])
    assert "count things" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["plot", "--help"]])
def test_a_broken_plug_in_is_an_error_that_names_its_package(package, capsys, arguments):
    package("raise RuntimeError('no such luck')\n", plug_in=True)
    assert commands.main(arguments) == 2
    assert capsys.readouterr().err == (
        "detr: plug-in 'extra': cannot be imported (RuntimeError: no such luck); "
        "fix or uninstall the package detr-extra-package.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "model", "a.jpg", "--conf", ".3"], "unknown option --conf; did you mean '--threshold'?"),
        (["predict", "model", "a.jpg", "--name=x"], "unknown option --name; did you mean '--output_dir'?"),
        (["predict", "--source", "a.jpg"], "unknown option --source; pass images and folders without an option"),
        (["evaluate", "model", "data", "--batch", "4"], "unknown option --batch; did you mean '--batch_size'?"),
        (["evaluate", "model", "data", "--imgsz", "4"], "unknown option --imgsz; the image size is in the model's"),
        (["data", "check", "data", "--fixx", "out"], "unknown option --fixx; did you mean '--fix'?"),
        (
            ["evaluate", "model"],
            "the following arguments are required: dataset; usage: detr evaluate model dataset",
        ),
        (
            ["data", "convert", "a", "b"],
            "the following arguments are required: --to; usage: detr data convert source",
        ),
        (["predict", "model=m", "a.jpg"], "unexpected 'model=m'; pass the model without an option"),
        (["predict", "model", "a.jpg", "conf=.3"], "unexpected 'conf=.3'; did you mean '--threshold'?"),
        (["data", "convert", "a", "b", "--to", "yollo"], "argument --to: invalid choice: 'yollo' (choose from"),
        (["data", "chek", "data"], "unknown sub-command 'chek'; did you mean 'check'?"),
    ],
)
def test_an_unknown_option_is_answered_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        commands.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {message}" in line


@pytest.mark.parametrize(
    ("names", "settings", "expected"),
    [
        ({}, {"format": "coco"}, "--format coco"),
        ({"format": "data_format"}, {"format": "coco"}, "--data_format coco"),
        ({}, {"images": "my images", "drop_difficult": True}, "--images 'my images', --drop_difficult"),
        ({}, {"freeze": ["a", "b"], "model": None, "compile": False}, "--freeze a,b, --model none, --compile false"),
    ],
)
def test_an_error_names_the_options_of_the_command(package, capsys, names, settings, expected):
    error = DatasetError("data", "is ambiguous", "choose", settings)
    package(
        f"from modeling_detr.errors_detr import DatasetError\nOPTION_NAMES = {names}\n"
        f"def main(arguments):\n    raise DatasetError('data', 'is ambiguous', 'choose', {settings})\n"
    )
    COMMANDS["count"] = Command("count things", "detr_extra")
    assert commands.main(["count"]) == 2
    assert capsys.readouterr().err == f"detr count: data: is ambiguous; choose ({expected}).\n"
    assert "format='coco'" in str(error) or "format" not in settings


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data", "chek"], "detr data: error: unknown sub-command 'chek'; did you mean 'check'?"),
        (["data", "check", "x", "--no_image"], "detr data check: error: unknown option --no_image; did you mean"),
        (
            ["evaluate", "x", "y", "--splt", "val"],
            "detr evaluate: error: unknown option --splt; did you mean '--split'?",
        ),
    ],
)
def test_an_unknown_option_or_sub_command_suggests_the_nearest(capsys, arguments, expected):
    with pytest.raises(SystemExit):
        commands.main(arguments)
    assert expected in capsys.readouterr().err


def test_an_error_of_a_sub_command_names_it(capsys, tmp_path):
    assert commands.main(["data", "check", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.startswith("detr data check: ")


@pytest.mark.parametrize("arguments", [["data", "check"], *([name] for name in COMMANDS)], ids=" ".join)
def test_no_line_of_the_help_is_wider_than_80_columns(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        commands.main([*arguments, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_a_command_of_another_tool_is_answered_with_the_one_here(capsys):
    assert commands.main(["detect", "photo.jpg"]) == 2
    assert capsys.readouterr().err == "detr: unknown command 'detect'; did you mean 'predict'?\n"
