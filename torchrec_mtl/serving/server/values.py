"""Values of a column as JSON gives them: of one type, finite, and within reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from itertools import chain
from typing import Any, NamedTuple

from torchrec_mtl.serving.server.bodies import kind_of
from torchrec_mtl.serving.server.columns import ServedColumn

LARGEST = 3.4028234e38
"""Of a number: float32's."""
_NULL = type(None)


class _Reach(NamedTuple):
    """Numbers that a column takes, and how a message calls them."""

    low: float
    high: float
    wanted: str


_FLOATS = _Reach(-LARGEST, LARGEST, "a number of float32, to 3.4e38")
_NUMBERS, _MOMENTS = frozenset({int, float, bool}), frozenset({int, float})
_TYPES: dict[str | None, set[type]] = {"integers": {int}, "strings": {str}, None: {int, str}}
_INTEGERS = _Reach(-(1 << 63), (1 << 63) - 1, "an integer of 64 bits")


def problem_of(column: ServedColumn, values: Sequence[Any], *, ranges: bool) -> tuple[int, str] | None:
    """Find what is wrong with values [B] of a column, of which null is none that is wrong.

    Args:
        column: whose they are.
        values: as JSON has them.
        ranges: look at how large they are, too. The predictor does that as well; here it is told with its place.

    Returns:
        Which value, and what is wrong; None where nothing is.
    """
    kinds = set(map(type, values))
    kinds.discard(_NULL)
    if column.kind in {"number", "moment"}:
        allowed, reach = _NUMBERS if column.kind == "number" else _MOMENTS, _FLOATS
        return _scalars(column, values, kinds, allowed, reach if ranges else None)
    elements, reach = (_MOMENTS, _FLOATS) if column.kind == "times" else (_TYPES[column.elements], _INTEGERS)
    if column.kind == "id" and list not in kinds:
        if column.rows is not None:  # of a list, ids may be cut off: that is left to the predictor
            reach = _Reach(0, column.rows - 1, f"an id of 0 to {column.rows - 1}")
        return _scalars(column, values, kinds, elements, reach if ranges else None)
    if kinds - {list}:
        listed = "lists in all rows, or in none" if column.kind == "id" else None
        return _first(column, values, lambda value: type(value) is not list, listed)
    flat = [*chain.from_iterable(value for value in values if value is not None)]
    kinds = set(map(type, flat))
    kinds.discard(_NULL)
    found = _scalars(column, flat, kinds, elements, reach if ranges else None)
    return None if found is None else (_row_of(values, found[0]), found[1])


def of_one_type(column: ServedColumn, values: list[Any]) -> list[Any]:
    """Return values [B] as Arrow takes them: it has no column of integers beyond 64 bits, or of large ones and floats.

    Integers stay what they are where they fit, so that seconds and milliseconds keep every digit.
    """
    if column.kind == "number":
        return _floats(values)
    if column.kind == "moment":
        return _floats(values) if _needs_floats(values) else values
    if column.kind == "times" and _needs_floats([*chain.from_iterable(value or () for value in values)]):
        return [None if value is None else _floats(value) for value in values]
    return values


def _needs_floats(values: Sequence[Any]) -> bool:
    kinds = set(map(type, values)) - {_NULL}
    if kinds != {int}:
        return len(kinds) > 1
    numbers = [value for value in values if value is not None]
    return not _INTEGERS.low <= min(numbers) <= max(numbers) <= _INTEGERS.high


def _floats(values: Sequence[Any]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def _scalars(
    column: ServedColumn, values: Sequence[Any], kinds: set[type], allowed: Set[type], reach: _Reach | None
) -> tuple[int, str] | None:
    if not kinds <= allowed:
        return _first(column, values, lambda value: type(value) not in allowed)
    if len(kinds) > 1 and (str in kinds or bool in kinds):
        odd = str if str in kinds else bool
        mixed = "integers or strings, in all rows the same" if odd is str else "numbers, or booleans in all rows"
        return _first(column, values, lambda value: type(value) is odd, mixed)
    if reach is None or str in kinds:
        return None
    numbers = [value for value in values if value is not None]
    if not numbers or reach.low <= min(numbers) <= max(numbers) <= reach.high:
        return None
    return _first(column, values, lambda value: not reach.low <= value <= reach.high, reach.wanted)


def _first(
    column: ServedColumn, values: Sequence[Any], wrong: Callable[[Any], bool], wanted: str | None = None
) -> tuple[int, str]:
    place, value = next((at, value) for at, value in enumerate(values) if value is not None and wrong(value))
    text = repr(value)
    shown = "" if isinstance(value, (list, dict)) else f" {text if len(text) <= 40 else text[:40] + '...'}"
    return place, f"expected {wanted or _wanted(column)}, found {kind_of(value)}{shown}"


def _row_of(values: Iterable[Any], element: int) -> int:
    """Return the row that an element of the rows' lists, laid end to end, is of."""
    for row, value in enumerate(values):
        element -= len(value or ())
        if element < 0:
            return row
    raise AssertionError("an element is of a row")


def _wanted(column: ServedColumn) -> str:
    ids = column.elements or "integers or strings"
    one = {"integers": "an integer", "strings": "a string", None: "an integer or a string"}[column.elements]
    return {
        "id": f"{one}, or a list of {ids}",
        "sequence": f"a list of {ids}",
        "number": "a number",
        "times": "a list of numbers",
        "moment": "a number",
    }[column.kind]
