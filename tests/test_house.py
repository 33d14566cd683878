"""The files around the package: import layers, recipes, launch configs, pins, and the commands in the README."""

import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, PrecisionType

from modeling_detr import DetrConfig, __version__
from modeling_detr.commands import COMMANDS
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_keys import keys_of
from modeling_detr.training.recipe_parsing import parse_recipe


ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
ORIGINALS = [path for path in CONFIGS if path.stem.startswith("detr_") and "panoptic" not in path.stem]
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LAUNCH_CONFIGS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))


def test_imports_respect_the_layers():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_and_its_model_config_is_valid(path):
    recipe = parse_recipe([str(path)])
    DetrConfig(**recipe.model_config)
    assert recipe.run_dir == Path("runs", path.stem)


@pytest.mark.parametrize("path", ORIGINALS, ids=lambda path: path.stem)
def test_the_originals_recipes_have_its_hyperparameters(path):
    recipe = parse_recipe([str(path)])
    assert (recipe.epochs, recipe.lr_schedule, recipe.lr_drop_epochs) == (300, "step", 200)
    assert (recipe.learning_rate, recipe.backbone_learning_rate, recipe.weight_decay) == (1e-4, 1e-5, 1e-4)
    assert (recipe.max_grad_norm, recipe.transform) == (0.1, "original")
    config = DetrConfig(**recipe.model_config)
    assert config.dilation == ("dc5" in path.stem)
    assert recipe.batch_size == (1 if config.dilation else 2)
    assert config.backbone == ("resnet101" if "r101" in path.stem else "resnet50")
    assert recipe.backbone_weights == f"{config.backbone}.tv_in1k"
    default = DetrConfig()
    for name in recipe.model_config.keys() - {"backbone", "dilation"}:
        assert getattr(config, name) == getattr(default, name), name


def test_the_panoptic_recipe_is_the_originals_second_stage():
    recipe = parse_recipe([str(ROOT / "configs/detr_r50_panoptic.yaml")])
    assert (recipe.task, recipe.freeze_detector) == ("panoptic", True)
    assert (recipe.epochs, recipe.lr_schedule, recipe.lr_drop_epochs) == (25, "step", 15)
    assert (recipe.learning_rate, recipe.backbone_learning_rate, recipe.weight_decay) == (1e-4, 1e-5, 1e-4)


@pytest.mark.parametrize("path", LAUNCH_CONFIGS, ids=lambda path: path.stem)
def test_accelerate_accepts_every_launch_config(path):
    config = load_config_from_file(str(path))  # rejects unknown keys at the top level
    options = vars(launch_command_parser().parse_args(["--config_file", str(path), "scripts/train.py"]))
    for part, values in vars(config).items():
        if isinstance(values, dict):  # unknown keys in here are not rejected
            prefix = part.removesuffix("config")
            assert {key if key.startswith(prefix) else prefix + key for key in values} <= options.keys(), part
    several = config.distributed_type is not DistributedType.NO
    assert config.num_processes > 1 if several else config.num_processes == 1
    assert config.num_processes % config.num_machines == 0
    assert config.machine_rank < config.num_machines
    assert config.mixed_precision in PrecisionType.list()
    if config.num_machines > 1:
        assert config.main_process_ip
        assert config.main_process_port
    if config.gpu_ids not in (None, "all"):
        assert len(config.gpu_ids.split(",")) == config.num_processes // config.num_machines


def test_constraints_pin_exact_versions_within_the_ranges_of_the_project():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    requirements = [*map(Requirement, sorted({*lines}))]  # extras may share one, with the same range
    assert len({requirement.name for requirement in requirements}) == len(requirements)
    for requirement in requirements:
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_every_command_has_a_module_and_a_script():
    for name, command in COMMANDS.items():
        assert (ROOT / f"{command.module.replace('.', '/')}.py").is_file()
        assert f'run_command("{name}")' in (ROOT / "scripts" / f"{name}.py").read_text()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_documentation_uses_only_existing_commands_recipes_and_files(path):
    text = path.read_text(encoding="utf-8")
    commands = re.findall(r"^\s*detr (\w+)(?: (\w+)(?= |$))?", text, flags=re.MULTILINE)
    for command, argument in commands:
        assert command in COMMANDS
        if command == "train" and argument:
            assert argument in {config.stem for config in CONFIGS}, argument
    for target in re.findall(r"\bmake ([\w-]+)(?=`|  )", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
    for file in re.findall(r"\b(?:configs|scripts|tests|modeling_detr)/[\w/]+\.(?:yaml|py|slurm)", text):
        assert (ROOT / file).is_file(), file
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}, link


@pytest.mark.parametrize("option", sorted({*re.findall(r"--([a-z_]+)", (ROOT / "docs/recipes.md").read_text())}))
def test_documentation_of_recipes_names_existing_keys(option):
    assert option in {*keys_of(Recipe), "replay", "output", "help", "logdir"}  # of detr train, detr plot, tensorboard


def test_workflow_files_are_yaml():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert all(repository["repo"] == "local" for repository in hooks["repos"])  # nothing is downloaded


@pytest.mark.parametrize(
    ("argument", "expected"), [("--help", "detr COMMAND"), ("--version", f"detr {__version__} (torch ")]
)
def test_the_console_command_answers_without_importing_torch(argument, expected):
    command = [sys.executable, "-X", "importtime", Path(sys.executable).with_name("detr"), argument]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert expected in result.stdout
    assert "torch" not in result.stderr


@pytest.mark.parametrize("argument", ["", "data check shapes?train=2&val=1 --all"])
def test_output_that_nobody_reads_is_no_error(argument):
    detr = Path(sys.executable).with_name("detr")
    process = subprocess.Popen([detr, *argument.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc to see how far the process is")
def test_an_early_interrupt_is_one_line():
    detr = Path(sys.executable).with_name("detr")
    process = subprocess.Popen([detr, "predict", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    loaded = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in loaded.read_text():  # the command imports for seconds more
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "detr predict: interrupted\n")


def test_sizes_are_said_in_one_order():
    """Messages give sizes as width x height; only shapes and tuples of arrays are (height, width)."""
    texts = [*(ROOT / "modeling_detr").rglob("*.py"), *TEXTS]
    assert [path.name for path in texts if "height x width" in path.read_text(encoding="utf-8")] == []


def test_every_promise_of_security_md_names_tests_that_exist():
    promises = re.split(r"\n- ", (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What is not")[0])[1:]
    assert len(promises) == 5
    for promise in promises:
        tests = re.findall(r"<!-- (\S+)::(\S+) -->", promise)
        assert len(tests) >= 4, promise
        for file, name in tests:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name
