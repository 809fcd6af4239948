"""Candidates in either form, a list of rows or an object of columns, to columns.

Rows are not validated one by one: they are turned into columns, and these are looked at as wholes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from torchrec_mtl.serving.server.bodies import kind_of
from torchrec_mtl.serving.server.problems import Problem

Columns = dict[str, list[Any]]


def of_rows(rows: Sequence[Any], known: Set[str], problems: list[Problem]) -> tuple[Columns, Set[str], int]:
    """Turn B rows into columns; a column that a row lacks is null there.

    Args:
        rows: objects, it is hoped.
        known: columns that are taken; their number bounds the work.
        problems: takes what is wrong.

    Returns:
        Known columns, each [B]; names that are not known; B, 0 where something is wrong.
    """
    if not set(map(type, rows)) <= {dict}:
        place, row = next((place, row) for place, row in enumerate(rows) if type(row) is not dict)
        problems.append(Problem(f"candidates[{place}]", f"expected an object of columns, found {kind_of(row)}"))
        return {}, set(), 0
    first = rows[0].keys() if rows else set()
    if first <= known and all(row.keys() == first for row in rows):
        return {name: [row[name] for row in rows] for name in first}, set(), len(rows)
    there = set().union(*rows)
    columns = {name: [row.get(name) for row in rows] for name in sorted(there & known)}
    return columns, there - known, len(rows)


def of_columns(given: Mapping[str, Any], known: Set[str], problems: list[Problem]) -> tuple[Columns, Set[str], int]:
    """Take columns that came as such; as ``of_rows``."""
    columns = {name: values for name, values in given.items() if name in known}
    for name in [name for name, values in columns.items() if type(values) is not list]:
        found = kind_of(columns.pop(name))
        problems.append(Problem(f"candidates.{name}", f"expected a list of values, found {found}"))
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(Problem("candidates", f"columns of different lengths: {told}; give all as many values"))
    return columns, given.keys() - known, max(lengths.values(), default=0)
