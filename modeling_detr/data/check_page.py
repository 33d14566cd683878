"""The report of `detr data check` as a web page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modeling_detr.data.check import CheckReport
from modeling_detr.data.findings import Finding
from modeling_detr.errors_detr import python_argument
from modeling_detr.pages import Block, Fact, Figure, Figures, Page, Section, Table, Text


_SHOWN = 500  # findings of one kind
_PICTURES_NOTE = "Boxes must lie on their objects. More images, also augmented: detr data show"
_SHOWN_AT_ONCE = 5  # more are folded away


def check_page(
    report: CheckReport,
    facts: Sequence[Fact] = (),
    format_setting: Callable[[str, object], str] = python_argument,
    pictures: Sequence[Figure] = (),
    sections: Sequence[Section] = (),
) -> Page:
    """The report as a page: findings by kind, pictures, then splits, classes and sizes.

    Args:
        report: The report.
        facts: Further lines for the head of the page.
        format_setting: Formats a setting the way the user can give it.
        pictures: Some images with their boxes.
        sections: What to show after the findings.
    """
    content = report.as_dict()
    counts = {"images": content["images"], "boxes": content["boxes"], "classes": len(content["classes"])}
    problems = {"errors": content["errors"], "warnings": content["warnings"]}
    kinds = [
        Section(
            heading.capitalize(),
            _findings(findings, format_setting),
            folded=len(findings) > _SHOWN_AT_ONCE,
            note=f"{len(findings):,}",
        )
        for heading, findings in report.by_kind().items()
    ]
    return Page(
        title=f"Check of {content['name']}",
        sections=[
            Section("Findings", kinds or [Text("No problems found.")]),
            *sections,
            *([Section("Images", [Figures(pictures)], note=_PICTURES_NOTE)] if pictures else []),
            *_contents(content),
        ],
        highlights=[(f"{count:,}", name) for name, count in {**problems, **counts}.items()],
        facts=[
            ("format", _format(report)),
            *(("pixels", note) for note in report.sample_note(format_setting)),
            *((f"names of {noun}s", text) for noun, text in report.resolution().items()),
            *facts,
        ],
    )


def _format(report: CheckReport) -> str:
    name = report.format or "unknown"
    return f"{name}, recognised by {report.evidence}" if report.evidence else name


def _findings(findings: Sequence[Finding], format_setting: Callable[[str, object], str]) -> list[Block]:
    """The findings of one kind."""
    remedy = "remedy" if findings[0].severity == "error" else "handling"
    entries = [finding.as_dict(format_setting) for finding in findings[:_SHOWN]]
    rows = [(entry["where"], entry["message"], entry["action"]) for entry in entries]
    blocks: list[Block] = [Table(("where", "problem", remedy), rows, wraps=True)]
    if len(findings) > _SHOWN:
        blocks.append(Text(f"and {len(findings) - _SHOWN:,} more: detr data check --all lists them"))
    return blocks


def _contents(content: Mapping[str, Any]) -> list[Section]:
    """What the dataset contains."""
    splits = [
        (name, split["images"], split["images_without_boxes"], split["boxes"], split["crowds"])
        for name, split in content["splits"].items()
    ]
    classes = [
        (entry["name"], entry["id"], entry["boxes"], f"{entry['share']:.1%}", entry["images"])
        for entry in content["classes"]
    ]
    quantiles = [
        (name, *(f"{value:.3g}" for value in content[key].values()))
        for name, key in (("box size, pixels", "box_sizes"), ("objects per image", "objects_an_image"))
        if content[key]
    ]
    tables = {
        "Splits": Table(("split", "images", "without boxes", "boxes", "crowd regions"), splits),
        "Classes": Table(("class", "id", "boxes", "share", "images"), classes),
        "Sizes": Table(("", "smallest", "10%", "median", "90%", "largest"), quantiles),
    }
    notes = {"Sizes": "The size of a box is the square root of its area."}
    return [Section(title, [table], note=notes.get(title, "")) for title, table in tables.items() if table.rows]
