"""Measure this package beside Transformers' own DETR and the original, on the same work.

    detr benchmark speed --quick
    detr benchmark speed --original ../detr --sections loss,step,inference
    detr benchmark speed --device cuda

All contenders get the same weights and inputs, which are generated, and are measured in turn in one process. Their
results are compared first: a section in which they differ is refused, with the difference.

The results are `results.md` (tables), `results.json` (every round), `speed.png` (ratios), and `growth.png` (time and
memory as the work grows) if that was measured. The exit code is 1 if a section was refused.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from modeling_detr.atomic_output import make_folder, replace_text
from modeling_detr.benchmarks.speed.growth import growth_curves
from modeling_detr.benchmarks.speed.growth_plot import plot_growth
from modeling_detr.benchmarks.speed.measurement import SectionResult
from modeling_detr.benchmarks.speed.original_checkout import REPOSITORY, OriginalCheckout
from modeling_detr.benchmarks.speed.plot import plot_speed
from modeling_detr.benchmarks.speed.report import results_json, results_markdown
from modeling_detr.benchmarks.speed.sections import SECTIONS, parse_sections, run_sections
from modeling_detr.benchmarks.speed.settings import SpeedSettings
from modeling_detr.commands.command_parser import CommandParser, check_at_least
from modeling_detr.commands.device import add_device, check_device
from modeling_detr.commands.results import RUNS, link_to
from modeling_detr.errors_detr import printable
from modeling_detr.line_breaks import fitted
from modeling_detr.output_errors import check_folder
from modeling_detr.provenance import command_line


RESULTS = ("results.json", "results.md", "speed.png", "growth.png")
_ROUNDS = {False: 9, True: 5}  # with --quick: True
_SECONDS = {False: 60.0, True: 5.0}


def add_speed(commands: "argparse._SubParsersAction[CommandParser]", argv: Sequence[str]) -> None:  # noqa: ARG001
    """Add the sub-command; it has no options that depend on `argv`."""
    parser = commands.add_parser(
        "speed", help="measure this package beside Transformers' DETR and the original", description=__doc__
    )
    sections = "; ".join(f"{name}: {section.summary}" for name, section in SECTIONS.items())
    parser.add_argument(
        "--quick", action="store_true", help="less work and fewer rounds: five to nine minutes on a core"
    )
    parser.add_argument("--sections", help=f"only these, such as loss,step (default: all). {sections}")
    parser.add_argument(
        "--original", type=Path, help=f"a checkout of {REPOSITORY}, whose code is run (default: not measured)"
    )
    add_device(parser)
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of PyTorch; with 1, a CPU's times are CPU time (default: 1)"
    )
    default = RUNS / "benchmarks" / "speed"
    parser.add_argument(
        "--output_dir", type=Path, default=default, help=f"folder for the results (default: {default})"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    check_at_least("threads", arguments.threads, 1)
    check_device(arguments.device)
    names = parse_sections(arguments.sections)
    original = None if arguments.original is None else OriginalCheckout(arguments.original)
    folder: Path = arguments.output_dir
    check_folder(folder, files=RESULTS)
    make_folder(folder)
    command = command_line("detr benchmark", arguments.argv)
    if original is None:
        print(fitted("The original is not measured; --original PATH names a checkout of it."), flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="detr-speed-") as work_folder:
            settings = SpeedSettings(
                Path(work_folder),
                torch.device(arguments.device),
                threads=arguments.threads,
                quick=arguments.quick,
                rounds=_ROUNDS[arguments.quick],
                seconds=_SECONDS[arguments.quick],
                original=original,
                report=_print_line,
            )
            results = _measure(names, settings, folder, command)
    finally:
        torch.set_num_threads(threads)
    print(f"\n{(folder / 'results.md').read_text(encoding='utf-8')}")
    print(link_to(folder))
    return 1 if any(result.refused for result in results) else 0


def _measure(names: Sequence[str], settings: SpeedSettings, folder: Path, command: str) -> list[SectionResult]:
    """Measures the sections; the results so far are written after each."""
    results: list[SectionResult] = []
    for result in run_sections(names, settings):
        results.append(result)
        if result.refused:
            _print_line(f"{result.name}: NOT MEASURED; {result.refused}")
        for reason in result.skipped:
            _print_line(f"{result.name}: left out: {reason}")
        text = json.dumps(results_json(results, settings, command), indent=1, ensure_ascii=False)
        replace_text(folder / "results.json", f"{text}\n")
        replace_text(folder / "results.md", results_markdown(results, settings, command))
        plot_speed(results, folder / "speed.png")
        plot_growth(growth_curves(results), folder / "growth.png")
    return results


def _print_line(line: str) -> None:
    print(fitted(printable(line), indent=2), flush=True)
