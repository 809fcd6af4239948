"""What a bundle reads: its columns, and how values given by a caller become them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig, SequenceConfig, Side, SparseConfig
from torchrec_mtl.config.names import listed, nearest
from torchrec_mtl.data.columns import Role, config_columns

Elements = Literal["integers", "strings"]
Columns = Any
"""A mapping of columns, a pandas ``DataFrame``, or an Arrow table."""

_DEFAULTS: Mapping[Role, str] = {
    "ids": "no id",
    "sequence": "an empty history",
    "number": "the mean of the training data",
    "times": "none: goes with its sequence",
    "moment": "none: goes with its sequence",
}


_TYPING_ERROR = 0.85  # so alike are a name and what somebody typed for it


@dataclass(frozen=True)
class InputColumn:
    """A column that scoring reads.

    Attributes:
        name: the column.
        kind: ``id`` (one a row, or a list), ``sequence``, ``number``, ``times``, or ``moment``.
        sides: whose features read it: user, item, context.
        features: their names.
        default: what a null, or a missing column, stands for.
        rows: ids are 0 .. rows - 1 where they are used as they are; None where they are hashed, and for numbers.
    """

    name: str
    kind: str
    sides: tuple[Side, ...]
    features: tuple[str, ...]
    default: str
    rows: int | None


def input_columns(features: FeaturesConfig) -> tuple[InputColumn, ...]:
    """List the columns that scoring reads, in the order of the config."""
    rows = {table.name: table.rows for table in features.tables}
    uses: dict[str, list[tuple[str, Side, int | None]]] = {}
    of_ids: tuple[SparseConfig | SequenceConfig, ...] = (*features.sparse, *features.sequences)
    for f in of_ids:
        uses.setdefault(f.source, []).append((f.name, f.side, None if f.encode == "hash" else rows[f.table]))
    for s in features.sequences:
        for name in (s.times, s.now):
            if name is not None:
                uses.setdefault(name, []).append((s.name, s.side, None))
    for d in features.dense:
        uses.setdefault(d.source, []).append((d.name, d.side, None))
    roles: dict[str, Role] = {}
    for column in config_columns(DataConfig(train=("unused",)), features, (), labels=False):
        roles.setdefault(column.name, column.role)
    return tuple(
        InputColumn(
            name,
            "id" if roles[name] == "ids" else roles[name],
            tuple(dict.fromkeys(side for _, side, _ in of)),
            tuple(dict.fromkeys(feature for feature, _, _ in of)),
            _DEFAULTS[roles[name]],
            min((n for *_, n in of if n is not None), default=None),
        )
        for name, of in uses.items()
    )


def elements_of(features: FeaturesConfig, schema: pa.Schema) -> dict[str, Elements]:
    """Return what columns of ids hold, by column: integers and strings are never the same id.

    Args:
        features: that read them.
        schema: of the data; columns that are missing, or have nothing but nulls, are left out.
    """
    found: dict[str, Elements] = {}
    for column in config_columns(DataConfig(train=("unused",)), features, (), labels=False):
        if column.role in {"ids", "sequence"} and column.name in schema.names:
            layout = (column.layout(schema.field(column.name).type) or "").removeprefix("lists of ")
            if layout in {"integers", "strings"}:
                found[column.name] = cast(Elements, layout)
    return found


def check_elements(given: Mapping[str, Elements], trained: Mapping[str, Elements], what: str) -> None:
    """Raise ``ValueError`` where ids are integers and were strings in training, or the other way round."""
    for name, elements in given.items():
        if (before := trained.get(name, elements)) != elements:
            raise ValueError(
                f"column '{name}' of {what} holds {elements}, and the model was trained on {before}, of which it would "
                f"find other rows; give {before}"
            )


def of_side(features: FeaturesConfig, *, user: bool) -> FeaturesConfig:
    """Return the features of the user's side, or all others."""
    parts = {
        kind: tuple(f for f in getattr(features, kind) if (f.side == "user") == user)
        for kind in ("sparse", "sequences", "dense")
    }
    return features.model_copy(update=parts)


def to_table(columns: Columns, what: str = "the input") -> pa.Table:
    """Return columns as an Arrow table.

    Args:
        columns: name -> values of all rows; a pandas ``DataFrame``; or an Arrow table or record batch.
        what: how messages call them.

    Raises:
        ValueError: values of a column do not fit together, or columns are of different lengths.
    """
    if isinstance(columns, pa.RecordBatch):
        return pa.Table.from_batches([columns])
    if isinstance(columns, pa.Table):
        return columns
    if hasattr(columns, "columns") and hasattr(columns, "dtypes"):  # a DataFrame, without importing pandas
        columns = {str(name): columns[name] for name in columns.columns}
    if not isinstance(columns, Mapping):
        raise ValueError(
            f"{what} must be a mapping of columns, a pandas DataFrame, or an Arrow table (found "
            f"{type(columns).__name__})"
        )
    arrays = {str(name): _to_array(str(name), values, what) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        named = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise ValueError(f"columns of {what} have different lengths: {named}; give each row a value, or null")
    return pa.table(arrays)


def _to_array(name: str, values: Any, what: str) -> pa.Array:  # noqa: ANN401
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, (str, bytes, Mapping, Set)) or not hasattr(values, "__len__"):
        raise ValueError(f"column '{name}' of {what} must be a list of values, one a row (found {values!r})")
    try:
        found = pa.array(values.tolist() if isinstance(values, np.ndarray) and values.ndim > 1 else values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"column '{name}' of {what} cannot be read: {reason}; give values of one type") from error
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def completed(
    table: pa.Table, known: Sequence[str], what: str, *, strict: bool, elsewhere: Mapping[str, str] | None = None
) -> pa.Table:
    """Return the known columns, with nulls where one is missing.

    Args:
        table: of any of them.
        known: what there may be.
        what: how messages call the table.
        strict: a column that nothing reads is an error; else only one whose name is nearly that of a missing column.
        elsewhere: column -> where it belongs, of those that are known, but not here.

    Raises:
        ValueError: a column is not known.
    """
    given = set(table.column_names)
    if len(given) < len(table.column_names):
        twice = next(name for name in given if table.column_names.count(name) > 1)
        raise ValueError(f"{what} has several columns '{twice}'; rename or leave out all but one")
    missing = [name for name in known if name not in given]
    if not missing and not strict:  # the usual case, and no time lost
        return table
    for name in given.difference(known):
        near = nearest(name, known) if strict else nearest(name, missing, likeness=_TYPING_ERROR)
        advice = (elsewhere or {}).get(name) or (f"Did you mean '{near}'?" if near else listed(known))
        if strict or near:
            raise ValueError(f"{what}: nothing reads a column '{name}'. {advice}")
    found = [name for name in known if name in given]
    nulls = [pa.nulls(table.num_rows)] * len(missing)
    return pa.Table.from_arrays([*table.select(found).columns, *nulls], names=[*found, *missing])
