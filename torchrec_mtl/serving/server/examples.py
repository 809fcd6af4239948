"""Made-up values for the columns of a bundle: for the API page, and to try a bundle before it serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrec_mtl.serving.server.columns import ServedColumn


def example_user(columns: Sequence[ServedColumn]) -> dict[str, Any]:
    """Return a value a column of the user's side."""
    return {column.name: example_value(column, 0) for column in columns if "user" in column.sides}


def example_candidates(columns: Sequence[ServedColumn], rows: int) -> dict[str, list[Any]]:
    """Return values [B] a column of the other sides."""
    others = [column for column in columns if {*column.sides} - {"user"}]
    return {column.name: [example_value(column, row) for row in range(rows)] for column in others}


def example_value(column: ServedColumn, row: int) -> Any:  # noqa: ANN401 - as JSON has it
    """Return a value that the column takes."""
    last = (column.rows or 1000) - 1
    ids = (min(row + 1, last), min(1, last)) if column.elements != "strings" else (f"id{row}", "id1")
    values = {
        "id": ids[0],
        "sequence": [*ids],
        "number": 1.0 + row,
        "times": [0, 60],
        "moment": 3600,
    }
    return values[column.kind]
