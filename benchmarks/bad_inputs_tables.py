"""Tables with something wrong in them, drawn by a generator of random numbers: columns and values."""

# ruff: noqa: ARG001 - all kinds are called alike
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

ROLES: Mapping[str, str] = {
    "user_id": "id",
    "item_id": "id",
    "tags": "words",
    "watched": "list",
    "seen_at": "times",
    "shown_at": "moment",
    "seen": "list",
    "age": "number",
    "hour": "number",
    "duration": "number",
    "click": "binary",
    "long_view": "binary",
    "watch_time": "number",
    "in_sample": "binary",
    "importance": "number",
}
"""Columns of the tables that are spoilt, and what they hold."""


@dataclass(frozen=True)
class Bad:
    """What was made wrong.

    Attributes:
        what: for people who look for the input that broke something.
        places: an error must name one of them; empty: the file alone.
        fails: True: it must be refused; False: it must not; None: either may be right.
    """

    what: str
    places: tuple[str, ...] = ()
    fails: bool | None = None


class Proof:
    """Makes a file where it is unpickled: proof that something foreign was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


Spoiler = Callable[[Random, pa.Table, Sequence[str]], tuple[pa.Table, Bad]]


def _pick(rng: Random, columns: Sequence[str], *roles: str) -> str:
    fitting = [name for name in columns if not roles or ROLES[name] in roles]
    return rng.choice(fitting or list(columns))


def put(table: pa.Table, name: str, values: object, kind: pa.DataType | None = None) -> pa.Table:
    """Replace a column."""
    column = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return table.set_column(table.schema.get_field_index(name), name, column)


def _some(rng: Random, table: pa.Table, name: str, value: object, kind: pa.DataType | None = None) -> pa.Table:
    """Put a value into some rows of a column; in the place of the last of some lists where it holds lists."""
    old = table.column(name)
    listed = pa.types.is_list(old.type) and value is not None and not isinstance(value, list)
    values = old.to_pylist()
    rows = [row for row, found in enumerate(values) if found or not listed]
    for row in rng.sample(rows, max(1, len(values) // 20)):
        values[row] = [*values[row][:-1], value] if listed else value
    try:
        return put(table, name, values, kind or old.type)
    except (pa.ArrowException, OverflowError):  # the others are of another type
        return put(table, name, [value if not listed else [value]] * len(values), kind)


def missing(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """A column is not there, or goes by another name."""
    name = _pick(rng, columns)
    if rng.random() < 0.5:
        return table.drop_columns([name]), Bad(f"no column {name}", (name,), fails=True)
    other = rng.choice([name.upper(), f"{name} ", f" {name}", name[:-1], name + "\u200b"])
    renamed = [other if old == name else old for old in table.column_names]
    return table.rename_columns(renamed), Bad(f"column {name} is named {other!r}", (name,), fails=True)


def mistyped(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """A column is of a type that nothing reads so."""
    name, rows = _pick(rng, columns), table.num_rows
    kind, value = rng.choice(
        [
            (pa.struct([("a", pa.int64())]), {"a": 1}),
            (pa.map_(pa.string(), pa.int64()), [("a", 1)]),
            (pa.date32(), 19_000),
            (pa.timestamp("us"), 1_600_000_000_000_000),
            (pa.duration("s"), 5),
            (pa.time32("s"), 5),
            (pa.list_(pa.list_(pa.int64())), [[1], [2]]),
            (pa.list_(pa.struct([("a", pa.int64())])), [{"a": 1}]),
        ]
    )
    return put(table, name, [value] * rows, kind), Bad(f"{name} holds {kind}", (name,), fails=True)


def another_type(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """A column is of a type that fits some columns and not others."""
    name, rows = _pick(rng, columns), table.num_rows
    kind, value = rng.choice(
        [
            (pa.string(), "word"),
            (pa.large_string(), "word"),
            (pa.binary(), b"\xff\xfe"),
            (pa.float32(), 1.0),
            (pa.float16(), 1.0),
            (pa.bool_(), True),
            (pa.null(), None),
            (pa.uint64(), 1),
            (pa.int8(), 1),
            (pa.decimal128(10, 2), 1),
            (pa.binary(3), b"abc"),
            (pa.list_(pa.int64()), [1]),
            (pa.list_(pa.string()), ["a", "b"]),
            (pa.list_(pa.float64()), [1.5]),
            (pa.list_(pa.null()), [None]),
            (pa.large_list(pa.int32()), [1]),
            (pa.list_(pa.int64(), 2), [1, 2]),
            (pa.dictionary(pa.int8(), pa.string()), "word"),
        ]
    )
    array = pa.array([value] * rows, kind.value_type).dictionary_encode() if pa.types.is_dictionary(kind) else None
    spoilt = put(table, name, [value] * rows if array is None else array, None if array is not None else kind)
    return spoilt, Bad(f"{name} holds {kind}", (name, ROLES[name]))


def extra(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Columns are there that nobody asked for."""
    name = rng.choice(["more", "", "a b", "\u00fc\u4f60", "new\nline", "../up", "x" * 300, "age.x", "click "])
    kind, value = rng.choice(
        [(pa.struct([("a", pa.int64())]), {"a": 1}), (pa.binary(), b"\xff"), (pa.null(), None), (pa.int8(), 1)]
    )
    array = pa.array([value] * table.num_rows, kind)
    return table.append_column(name, array), Bad(f"a further column {name!r} of {kind}", fails=False)


def twice(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """A name is given to two columns."""
    name = _pick(rng, columns)
    return table.append_column(name, table.column(name)), Bad(f"two columns {name}", (name,), fails=True)


def null(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Values are null, some of a column or all."""
    name = _pick(rng, columns)
    if rng.random() < 0.5:
        return _some(rng, table, name, None), Bad(f"nulls in {name}", (name,))
    kind = rng.choice([table.schema.field(name).type, pa.null()])
    return put(table, name, [None] * table.num_rows, kind), Bad(f"{name} is null everywhere", (name,))


def nan(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Numbers are NaN."""
    name = _pick(rng, columns, "number", "moment", "binary")
    kind = pa.list_(pa.float64()) if pa.types.is_list(table.schema.field(name).type) else pa.float64()
    return _some(rng, table, name, math.nan, kind), Bad(f"NaN in {name}", (name,))


def infinite(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Numbers are infinite, or beyond float32."""
    name, value = _pick(rng, columns, "number", "moment", "binary"), rng.choice([math.inf, -math.inf, 1e300, -4e38])
    kind = pa.list_(pa.float64()) if pa.types.is_list(table.schema.field(name).type) else pa.float64()
    always = name in {"age", "hour", "duration", "click", "in_sample", "importance"}  # others where a row is used
    return _some(rng, table, name, value, kind), Bad(f"{value} in {name}", (name,), fails=True if always else None)


def negative(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Ids, labels, and weights are below 0."""
    names = [name for name in columns if name in {"user_id", "item_id", "watched", "click", "in_sample", "importance"}]
    name, value = rng.choice(names), rng.choice([-1, -(2**31), -(2**63)])
    kind = {"id": pa.int64(), "list": pa.list_(pa.int64())}.get(ROLES[name])
    return _some(rng, table, name, value if kind else float(value), kind or pa.float64()), Bad(
        f"{value} in {name}", (name,), fails=True
    )


def huge_ids(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Ids are far beyond their table."""
    name = _pick(rng, columns, "id", "list")
    value = rng.choice([2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
    plain = pa.uint64() if value >= 2**63 else pa.int64()
    kind = pa.list_(plain) if ROLES[name] == "list" else plain
    fails = None if name == "seen" else True  # only keys: compared, never looked up
    return _some(rng, table, name, value, kind), Bad(f"{value} in {name}", (name,), fails=fails)


def empty_lists(rng: Random, table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, Bad]:
    """Lists are empty, null, or hold nulls alone."""
    name = _pick(rng, columns, "list", "words")
    if not pa.types.is_list(table.schema.field(name).type):
        return _some(rng, table, name, None), Bad(f"nulls in {name}", (name,))
    value = rng.choice([[], None, [None], [None] * 3])
    if rng.random() < 0.3:
        return put(table, name, [value] * table.num_rows, table.schema.field(name).type), Bad(
            f"{name} is {value} everywhere", (name, "seen_at")
        )
    return _some(rng, table, name, value), Bad(f"{value} in {name}", (name, "seen_at"))


VALUES: Mapping[str, Spoiler] = {
    "missing column": missing,
    "mistyped column": mistyped,
    "another type": another_type,
    "extra column": extra,
    "column twice": twice,
    "null": null,
    "NaN": nan,
    "infinite": infinite,
    "negative": negative,
    "huge ids": huge_ids,
    "empty lists": empty_lists,
}
