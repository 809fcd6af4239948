"""Arrow columns as NumPy arrays: nulls, lists of every kind, and sliced arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrec_mtl.data.rows import Ints

Doubles = npt.NDArray[np.float64]


def get_array(table: pa.Table, name: str) -> pa.Array:
    """Return one column as a single array."""
    column = table.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()


def is_string(kind: pa.DataType) -> bool:
    """Whether values of this type are strings or bytes."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists that ``split_lists`` understands."""
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def to_doubles(array: pa.Array) -> Doubles:
    """Return numbers or booleans [N] as float64, null as NaN; the result may be read-only."""
    if not array.null_count and (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        plain: Doubles = array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)  # in a third of the time
        return plain
    doubles: Doubles = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return doubles


def list_bounds(array: pa.Array) -> tuple[Ints, Ints, pa.Array]:
    """Take a list column apart: a null list is empty.

    Args:
        array: [N] lists, or nulls of no type.

    Returns:
        [N] where each row's elements start, [N] how many there are, and the elements [M] that these point into.
    """
    if pa.types.is_null(array.type):  # a column without any value
        return np.zeros(len(array), np.int64), np.zeros(len(array), np.int64), pa.nulls(0)
    if pa.types.is_fixed_size_list(array.type):
        offsets = (array.offset + np.arange(len(array) + 1)) * array.type.list_size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    elements = array.values.slice(first, last - first)
    starts, ends = offsets[:-1] - first, offsets[1:] - first
    if array.null_count:  # a null list may own elements
        ends = np.where(array.is_null().to_numpy(zero_copy_only=False), starts, ends)
    return starts, ends - starts, elements


def split_lists(array: pa.Array) -> tuple[Ints, Ints, pa.Array]:
    """As ``list_bounds``, and null elements are left out."""
    starts, lengths, elements = list_bounds(array)
    if elements.null_count:
        kept = np.concatenate([[0], np.cumsum(elements.is_valid().to_numpy(zero_copy_only=False))])
        starts, ends, elements = kept[starts], kept[starts + lengths], elements.drop_null()
        lengths = ends - starts
    return starts, lengths, elements
