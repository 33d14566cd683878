"""The Dockerfile agrees with the project, as far as that shows without building it."""

import json
import re
import shlex
from pathlib import Path

from modeling_detr.commands.serve import build_parser


ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_it_installs_the_versions_that_the_tests_ran_with():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    installed = re.findall(r"(?<= )(torch|torchvision)==(\S+)", DOCKERFILE)
    assert len(installed) == 2
    for name, version in installed:
        assert f"{name}=={version}" in pins


def test_it_copies_what_the_build_needs_and_nothing_is_ignored_of_that():
    sources = [
        word for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"modeling_detr", "configs", "pyproject.toml"} <= {*sources}
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_its_command_is_valid_and_its_user_has_no_rights():
    command = json.loads(re.search(r"^CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
    assert command[:2] == ["detr", "serve"]
    assert build_parser().parse_args(command[2:]).host == "0.0.0.0"
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, re.MULTILINE)
    check = json.loads(re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
    compile(check[2], "HEALTHCHECK", "exec")
    assert shlex.join(check).startswith("python -c")
