"""What training made of a head, as tables and matrices; free of torch, so that reports come at once."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TableFinding:
    """A table of what training made of a head, for the end of a run and its report.

    Attributes:
        title: what it is of.
        columns: their names.
        rows: as many cells each.
        note: how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class MatrixFinding:
    """Numbers between 0 and 1 of pairs, drawn as a heat map.

    Attributes:
        title: what it is of.
        rows: their names.
        columns: their names.
        values: [rows][columns].
        note: how to read it.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    note: str = ""


Finding = TableFinding | MatrixFinding


def shown(value: str | int | float | None) -> str:
    """Return a cell as text: whole numbers in full, others to four digits, ``-`` for nan and None.

    Example:
        >>> [shown(v) for v in (106496, 0.25, 12345.6, 2e-7, float("nan"), "click")]
        ['106,496', '0.2500', '12,346', '2.000e-07', '-', 'click']
    """
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    if isinstance(value, int) or 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value + 0.0:#.4g}".rstrip(".")  # 0.0 takes the sign from -0.0
