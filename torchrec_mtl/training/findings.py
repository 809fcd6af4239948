"""Findings of a head: kept in ``findings.json``, printed at the end of a run. Nothing here imports torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchrec_mtl.atomic import write_text
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
    write_text(path, json.dumps(_without_nan(plain), indent=2, allow_nan=False) + "\n")


def load_findings(path: Path) -> tuple[Finding, ...]:
    """Return what `save_findings` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        return tuple(_finding(**plain) for plain in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} does not hold findings: {error!r}") from error


def _finding(kind: str, **fields: object) -> Finding:
    finding = _KINDS[kind](**{name: _as_tuples(value) for name, value in fields.items()})
    is_matrix = isinstance(finding, MatrixFinding)
    lines = finding.values if isinstance(finding, MatrixFinding) else finding.rows
    if any(len(line) != len(finding.columns) for line in lines) or len(lines) != len(finding.rows):
        raise ValueError(f"'{finding.title}' has other rows or columns than it names")
    texts = (finding.title, finding.note, *finding.columns, *(finding.rows if is_matrix else ()))
    numbers = [value for line in lines for value in line if is_matrix or not isinstance(value, str)]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, (int, float)) for n in numbers):
        raise TypeError(f"'{finding.title}' has a name that is no text, or a value that is no number")
    return finding


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
    """Print the tables, each with its note; matrices are for the report, which draws them."""
    # Pipes and files say 80 columns, where the tables would break.
    wide = console if console.is_terminal else Console(file=console.file, width=max(console.width, 160))
    for finding in findings:
        if isinstance(finding, MatrixFinding):
            continue
        table = Table(title=Text(finding.title), title_justify="left")
        rows = finding.rows
        numbers = [not isinstance(cell, str) for cell in rows[0]] if rows else [False] * len(finding.columns)
        for column, number in zip(finding.columns, numbers, strict=True):
            table.add_column(Text(column), justify="right" if number else "left")
        for row, following in zip_longest(rows, rows[1:]):
            table.add_row(
                *(Text(shown(cell)) for cell in row), end_section=following is not None and row[0] != following[0]
            )
        wide.print(table)
        if finding.note:
            wide.print(Text(finding.note, style="dim"))
