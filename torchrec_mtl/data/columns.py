"""Which columns a config reads from Parquet, and whether a schema has them with types that fit (no torch needed)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import pyarrow as pa

from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig, SequenceConfig, SparseConfig
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import is_list, is_string

Role = Literal["ids", "sequence", "number", "key", "times", "moment"]

_WANTED = {
    "id": "integers, or lists of them (encode: hash takes strings)",
    "ids": "integers or strings, or lists of them",
    "sequence": "lists of integers or strings",
    "number": "numbers or booleans",
    "key": "integers or strings",
    "times": "lists of integers or floats",
    "moment": "integers or floats",
}
_LISTS, _NULLS = "lists of", "nulls"
_FLOAT_IDS = " (pandas writes integers with nulls as floats: use its type 'Int64')"
_DATES = " (cast dates to integers, and say in the sequence's time_unit what these count)"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column that the config names.

    Attributes:
        name: the column.
        user: what reads it, for messages.
        role: what it holds.
        encode: how its ids are encoded; only for ids and sequences.
    """

    name: str
    user: str
    role: Role
    encode: Literal["auto", "id", "hash"] = "auto"

    @property
    def where(self) -> str:
        """Reader and column, for messages."""
        return f"{self.user}, column '{self.name}'"

    def layout(self, kind: pa.DataType) -> str | None:
        """Return how a column of this type is read (two files must agree), or None where the type does not fit."""
        if self.role == "number":
            return "numbers" if _is_number(kind) else None
        listed = is_list(kind)
        if self.role in {"times", "moment"}:
            fits = pa.types.is_null(kind) or listed == (self.role == "times")
            return "moments" if fits and _is_moment(kind.value_type if listed else kind) else None
        if (self.role == "key" and listed) or (self.role == "sequence" and not listed and not pa.types.is_null(kind)):
            return None
        element = _element(kind.value_type if listed else kind)
        if element is None or (self.encode == "id" and element == "strings"):
            return None
        return f"{_LISTS} {element}" if listed or self.role == "sequence" else element

    def mismatch(self, kind: pa.DataType) -> str:
        """Say what type was found and what is wanted."""
        wanted = _WANTED["id" if self.encode == "id" else self.role]
        return f"holds {kind}, wanted: {wanted}{self._hint(kind)}"

    def _hint(self, kind: pa.DataType) -> str:
        if self.role in {"times", "moment"}:
            return _DATES if pa.types.is_temporal(kind.value_type if is_list(kind) else kind) else ""
        return _FLOAT_IDS if self.role != "number" and "double" in str(kind) else ""


def config_columns(
    data: DataConfig,
    features: FeaturesConfig,
    tasks: Sequence[TaskConfig],
    *,
    labels: bool = True,
) -> tuple[Column, ...]:
    """List what a run reads, once for each use of a column.

    Args:
        data: names the group column.
        features: inputs.
        tasks: labels, spaces, and weights.
        labels: False where only predictions are made: what the tasks name and the group column are not read.
    """
    columns = [_id_column(feature) for feature in (*features.pooled, *features.unpooled)]
    for sequence in features.sequences:
        if sequence.times is not None and sequence.now is not None:
            columns.append(Column(sequence.times, f"times of sequence '{sequence.name}'", "times"))
            columns.append(Column(sequence.now, f"now of sequence '{sequence.name}'", "moment"))
    columns += [Column(dense.source, f"dense feature '{dense.name}'", "number") for dense in features.dense]
    if not labels:
        return tuple(columns)
    for task in tasks:
        columns.append(Column(task.label, f"label of task '{task.name}'", "number"))
        if task.space is not None:
            columns.append(Column(task.space, f"space of task '{task.name}'", "number"))
        if task.sample_weight is not None:
            columns.append(Column(task.sample_weight, f"sample_weight of task '{task.name}'", "number"))
    if data.group is not None:
        columns.append(Column(data.group, "data.group", "key"))
    return tuple(columns)


def retrieval_columns(retrieval: RetrievalConfig) -> tuple[Column, ...]:
    """List what a search of a corpus reads of the rows that it is judged by."""
    columns = [query_column(retrieval.query), item_column(retrieval.item)]
    if retrieval.seen is not None:
        columns.append(Column(retrieval.seen, "retrieval.seen", "sequence"))
    return tuple(columns)


def item_column(name: str) -> Column:
    """Return the column that names an item."""
    return Column(name, "retrieval.item", "key")


def query_column(name: str) -> Column:
    """Return the column that names a query."""
    return Column(name, "retrieval.query", "key")


def found_column() -> Column:
    """Return the column in which ``torchrec-mtl search`` writes what it found."""
    return Column("ids", "retrieval.negatives.found", "sequence")


def schema_problems(schemas: Iterable[tuple[str, pa.Schema]], columns: Sequence[Column]) -> list[str]:
    """Check that every file has every column, with a type that fits and is read alike in all files.

    Args:
        schemas: (file, its schema).
        columns: what is read.

    Returns:
        One message a problem of a column, naming the first file that has it; empty where all is well.
    """
    problems: dict[tuple[Column, str], str] = {}
    seen: dict[Column, tuple[str, str]] = {}
    for file, schema in schemas:
        for column in columns:
            kind, message = _check(column, file, schema, seen)
            if kind:
                problems.setdefault((column, kind), message)
    return list(problems.values())


def _check(column: Column, file: str, schema: pa.Schema, seen: dict[Column, tuple[str, str]]) -> tuple[str, str]:
    places = schema.get_all_field_indices(column.name)
    if not places:
        return "missing", f"{column.where}: not in {file}.{did_you_mean(column.name, schema.names)}"
    if len(places) > 1:
        return "twice", f"{column.where}: {len(places)} columns of {file} have this name. Rename all but one."
    kind = schema.field(places[0]).type
    layout = column.layout(kind)
    if layout is None:
        return "type", f"{column.where} of {file}: {column.mismatch(kind)}."
    other, before = seen.get(column, (file, layout))
    if _agree(layout, before):
        seen[column] = (file, layout) if before.endswith(_NULLS) else (other, before)
    else:
        return "differ", f"{column.where}: {before} in {other}, but {layout} in {file}. Write all files alike."
    return "", ""


def _id_column(feature: SparseConfig | SequenceConfig) -> Column:
    if isinstance(feature, SequenceConfig):
        return Column(feature.source, f"sequence '{feature.name}'", "sequence", feature.encode)
    return Column(feature.source, f"feature '{feature.name}'", "ids", feature.encode)


def _agree(layout: str, other: str) -> bool:
    if layout.endswith(_NULLS) or other.endswith(_NULLS):  # a column without any value fits whatever others hold
        return layout.startswith(_LISTS) == other.startswith(_LISTS)
    return layout == other


def _element(kind: pa.DataType) -> str | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return _NULLS
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integers"
    return "strings" if is_string(kind) else None


def _is_moment(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null))


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in tests)
