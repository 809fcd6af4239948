"""A 64-bit hash of every row: equal for rows that are equal in some columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from torchrec_mtl.data.arrow import get_array, is_list, is_string, list_bounds, to_doubles
from torchrec_mtl.data.hashing import UInts, hash_integers, hash_strings
from torchrec_mtl.data.ids import plain_integers
from torchrec_mtl.data.rows import Ints, element_indices

_NULL = np.uint64(0x6A09E667F3BCC909)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(table: pa.Table, columns: Sequence[str]) -> UInts:
    """Return a hash [N] of each row's values in ``columns``, in their order.

    Example:
        >>> table = pa.table({"a": [1, 1, 2], "b": [[1, 2], [1, 2], [2, 1]]})
        >>> first, second, third = hash_rows(table, ["a", "b"]).tolist()
        >>> first == second, first == third
        (True, False)
    """
    hashes = np.zeros(table.num_rows, np.uint64)
    for name in columns:
        hashes = _mix(hashes * _STEP + hash_values(get_array(table, name)))
    return hashes


def hash_values(array: pa.Array) -> UInts:
    """Return a hash [N] of each value: numbers, strings, dates, or lists of them; all nulls have one."""
    if is_list(array.type):
        return _with_nulls(_hash_lists(array), array)
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if pa.types.is_null(kind):
        return np.full(len(array), _NULL)
    if pa.types.is_temporal(kind):
        # Days are 32 bits wide, all other moments 64.
        array = (
            array.cast(pa.int32()) if pa.types.is_date32(kind) or pa.types.is_time32(kind) else array.cast(pa.int64())
        )
        kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return _with_nulls(hash_integers(np.ascontiguousarray(plain_integers(array))), array)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        doubles = to_doubles(array) + 0.0  # -0.0 becomes 0.0
        return _with_nulls(_mix(np.where(np.isnan(doubles), np.nan, doubles).view(np.uint64)), array)
    if not is_string(kind):
        array = pa.array([str(value) for value in array.to_pylist()])  # seldom: structs, maps
    hashes, places = hash_strings(array)
    return _with_nulls(hashes[places], array)


def _hash_lists(array: pa.Array) -> UInts:
    starts, lengths, elements = list_bounds(array)
    offsets: Ints = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    hashes = hash_values(elements)[element_indices(starts, offsets)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(hashes + places.astype(np.uint64) * _STEP))])
    return _mix(sums[offsets[1:]] - sums[offsets[:-1]] + lengths.astype(np.uint64))


def _with_nulls(hashes: UInts, array: pa.Array) -> UInts:
    return np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, hashes) if array.null_count else hashes


def _mix(values: UInts) -> UInts:
    return hash_integers(values.view(np.int64))
