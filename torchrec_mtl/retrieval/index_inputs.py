"""What comes into an item index, checked: ids, vectors, queries and weights.

Shapes: N items, D width of vectors, B queries, K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.retrieval.index_engines import Floats

_NAMED = 5


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the names of tasks.

    Raises:
        ValueError: there are none, a name is there twice, or there is one string instead of several.
    """
    names = tuple(tasks)
    if isinstance(tasks, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"tasks must be a list of different names, at least one; found {tasks!r}")
    return names


def check_ids(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return ids [N] as one array without a dictionary.

    Raises:
        ValueError: not an Arrow array, null ids, an id twice, or a type without equality.
    """
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        raise ValueError(f"ids must be a pyarrow Array, found {type(ids).__name__}; convert them with pyarrow.array")
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} ids are null; leave these items out")
    try:
        counts = pc.value_counts(array)
    except pa.ArrowNotImplementedError as error:
        raise ValueError(f"ids of type {array.type} cannot be looked up; give integers or strings") from error
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise ValueError(f"{len(twice)} ids are given more than once: {name_some(twice)}; give each item once")
    return array


def check_same_type(ids: pa.Array, known: pa.Array) -> None:
    """Raise a ValueError if ids have another type than the known ones."""
    if ids.type != known.type:
        raise ValueError(
            f"ids are of type {ids.type}, and those of the index of type {known.type}; cast them: ids.cast(...)"
        )


def name_some(ids: pa.Array) -> str:
    """Return the first few ids."""
    shown = ", ".join(repr(value) for value in ids[:_NAMED].to_pylist())
    return shown + (", ..." if len(ids) > _NAMED else "")


def check_vectors(vectors: npt.ArrayLike, num_items: int, dim: int | None = None) -> Floats:
    """Return vectors [N, D] as float32.

    Raises:
        ValueError: another shape or type, or numbers that are not finite.
    """
    array = _floats("vectors", vectors)
    if array.ndim != 2 or array.shape[1] == 0 or (dim is not None and array.shape[1] != dim):
        width = "D" if dim is None else dim
        raise ValueError(f"vectors must have shape [{num_items}, {width}], one row an id, found {list(array.shape)}")
    if len(array) != num_items:
        raise ValueError(f"{num_items} ids and {len(array)} vectors; give one vector an id, in the same order")
    _check_finite("vectors", array)
    return array


def fold_queries(queries: npt.ArrayLike, tasks: Sequence[str], dim: int, weights: Mapping[str, float] | None) -> Floats:
    """Return [B, D], the sum of queries [B, K, D] over tasks, by weight: <sum_k w_k q_k, v> = sum_k w_k <q_k, v>.

    Raises:
        ValueError: another shape or type, numbers that are not finite, or a weight of a task that is not there.
    """
    array = _floats("queries", queries)
    if array.ndim != 3 or array.shape[1:] != (len(tasks), dim):
        raise ValueError(
            f"queries must have shape [B, {len(tasks)}, {dim}], a row for each of the tasks {', '.join(tasks)}; "
            f"found {list(array.shape)}"
        )
    _check_finite("queries", array)
    by_task = _weights(tasks, weights or {})
    return np.ascontiguousarray(np.einsum("bkd,k->bd", array, by_task))


def _weights(tasks: Sequence[str], weights: Mapping[str, float]) -> Floats:
    """Return [K]; a task that is not named weighs 1."""
    for name, weight in weights.items():
        if name not in tasks:
            raise ValueError(f"weights name '{name}', which is not a task of this index.{did_you_mean(name, tasks)}")
        if not math.isfinite(weight):
            raise ValueError(f"the weight of task '{name}' is {weight}; give a finite number")
    return np.array([weights.get(task, 1.0) for task in tasks], np.float32)


def _floats(what: str, values: npt.ArrayLike) -> Floats:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.dtype.kind != "f":
        raise ValueError(f"{what} must be floats, found {array.dtype}; convert them to float32")
    with np.errstate(over="ignore"):  # infinite then, and refused
        return np.ascontiguousarray(array, np.float32)


def _check_finite(what: str, array: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(array).all(tuple(range(1, array.ndim))))
    if len(bad):
        rows = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
        raise ValueError(
            f"{what} must be finite; {len(bad)} of {len(array)} rows hold NaN or infinity: {rows}. Leave them out, or "
            "look for what went wrong in training"
        )
