"""Findings of `detr data check` as a Parquet file, for data frames and SQL."""

from collections.abc import Callable, Sequence
from pathlib import Path

from modeling_detr.atomic_output import replaced_file
from modeling_detr.data.findings import Finding
from modeling_detr.errors_detr import printable, python_argument


_COLUMNS = ("severity", "kind", "where", "message", "action")
_ROWS_AT_ONCE = 10_000


def write_findings(
    findings: Sequence[Finding], path: Path, format_setting: Callable[[str, object], str] = python_argument
) -> None:
    """Write a row for each finding, with its severity, kind, where, message and action.

    Args:
        findings: The findings.
        path: The file.
        format_setting: Formats a setting the way the user can give it.

    Raises:
        OutputError: The file cannot be written.
    """
    import pyarrow as arrow  # slow to import, and not needed otherwise
    from pyarrow import parquet

    schema = arrow.schema([(name, arrow.string()) for name in _COLUMNS])
    with replaced_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(findings), _ROWS_AT_ONCE):
            rows = [finding.as_dict(format_setting) for finding in findings[start : start + _ROWS_AT_ONCE]]
            columns = {name: [printable(row[name]) for row in rows] for name in _COLUMNS}
            writer.write_table(arrow.table(columns, schema))
