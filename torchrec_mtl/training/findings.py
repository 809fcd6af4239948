"""Findings of a head: kept in ``findings.json``, printed at the end of a run. Nothing here imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchrec_mtl.findings import Finding, MatrixFinding, TableFinding, shown

FILE = "findings.json"
_KINDS: Mapping[str, Callable[..., Finding]] = {"table": TableFinding, "matrix": MatrixFinding}


def save_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write a JSON list of objects, ``kind`` (``table`` or ``matrix``) beside the fields; a number that is nan is null.

    Raises:
        ValueError: a number is infinite.
    """
    plain = [
        {"kind": "table" if isinstance(finding, TableFinding) else "matrix", **asdict(finding)} for finding in findings
    ]
    path.write_text(json.dumps(_without_nan(plain), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_findings(path: Path) -> tuple[Finding, ...]:
    """Return what `save_findings` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return tuple(_finding(**plain) for plain in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold findings: {error!r}") from error


def _finding(kind: str, **fields: object) -> Finding:
    return _KINDS[kind](**{name: _as_tuples(value) for name, value in fields.items()})


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _as_tuples(value: object) -> object:
    if isinstance(value, list):
        return tuple(_as_tuples(v) for v in value)
    return math.nan if value is None else value


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print findings as tables, each with its note."""
    # Pipes and files say 80 columns, where the tables would break.
    wide = console if console.is_terminal else Console(file=console.file, width=max(console.width, 160))
    for finding in findings:
        table = Table(title=Text(finding.title), title_justify="left")
        columns, rows = _cells(finding)
        numbers = [not isinstance(cell, str) for cell in rows[0]] if rows else [False] * len(columns)
        for column, number in zip(columns, numbers, strict=True):
            table.add_column(Text(column), justify="right" if number else "left")
        for i, row in enumerate(rows):
            ends = isinstance(finding, TableFinding) and any(
                row[0] != following[0] for following in rows[i + 1 : i + 2]
            )
            table.add_row(*(Text(shown(cell)) for cell in row), end_section=ends)
        wide.print(table)
        if finding.note:
            wide.print(Text(finding.note, style="dim"))


def _cells(finding: Finding) -> tuple[tuple[str, ...], Sequence[tuple[str | int | float, ...]]]:
    if isinstance(finding, TableFinding):
        return finding.columns, finding.rows
    return ("", *finding.columns), [(name, *row) for name, row in zip(finding.rows, finding.values, strict=True)]
