"""What is installed: the built wheel works in an empty folder, recipes included."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "modeling_detr", "configs")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with what the wheel installs."""
    source, wheels, installed = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    # offline: with the setuptools of this environment, in place of a new one
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", wheels]
    subprocess.run([sys.executable, "-m", "pip", "wheel", source, *options], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    return installed


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_all_recipes(installed):
    for folder, target in (("configs", "modeling_detr/configs"), ("modeling_detr", "modeling_detr")):
        paths = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.*") if path.suffix != ".pyc"]
        assert [path for path in paths if not (installed / target / path).exists()] == []
    assert not (installed / "tests").exists()


@pytest.mark.slow
def test_recipes_of_the_wheel_are_named_in_an_empty_folder(installed, tmp_path):
    code = (
        "import modeling_detr\n"
        "from modeling_detr.commands import main\n"
        "from modeling_detr.training.recipe_parsing import builtin_recipes, parse_recipe\n"
        "recipe = parse_recipe(['finetune', '--model', 'mine', '--data', 'folder'])\n"
        "print(modeling_detr.__file__, recipe.run_dir, *builtin_recipes())\n"
        "main(['train', 'finetun'])\n"
    )
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    module, run_dir, *names = result.stdout.split()
    assert Path(module).is_relative_to(installed)
    assert run_dir == "runs/finetune"
    assert names == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert "did you mean 'finetune'?" in result.stderr
