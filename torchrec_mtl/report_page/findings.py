"""Findings of a head as HTML: tables, and matrices as heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby

from torchrec_mtl.bench.report import Cell, Table
from torchrec_mtl.findings import Finding, MatrixFinding, TableFinding, shown
from torchrec_mtl.report_page.html import table_of

_STRONGEST = 0.7  # opacity of the colour of 1: letters stay readable on it, light and dark


def findings_of(findings: Sequence[Finding]) -> str:
    """Return all findings; heat maps that follow each other stand side by side."""
    parts = []
    for cls, group in groupby(findings, type):
        drawn = "".join(_matrix(f) if isinstance(f, MatrixFinding) else _table(f) for f in group)
        parts.append(f'<div class="plots maps">{drawn}</div>' if cls is MatrixFinding else drawn)
    return "".join(parts)


def cell(value: str | int | float | None) -> Cell:
    """Return a cell, a number to the right."""
    return Cell(shown(value), number=not isinstance(value, str))


def _table(finding: TableFinding) -> str:
    rows = tuple(tuple(map(cell, row)) for row in finding.rows)
    return table_of(Table(finding.title, finding.columns, rows, notes=(finding.note,) if finding.note else ()))


def _matrix(finding: MatrixFinding) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in finding.columns)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(map(_coloured, values))}</tr>"
        for name, values in zip(finding.rows, finding.values, strict=True)
    )
    note = f"<p class=soft>{escape(finding.note)}</p>" if finding.note else ""
    return (
        f"<div><h3>{escape(finding.title)}</h3><div class=wide><table class=heat>"
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}</div>"
    )


def _coloured(value: float) -> str:
    if math.isnan(value):
        return '<td style="--of: 0">-</td>'
    return f'<td style="--of: {_STRONGEST * min(max(value, 0.0), 1.0):.3f}">{value:.3f}</td>'
