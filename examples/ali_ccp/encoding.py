"""Values as ids: which values get one, and a field as columns of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from examples.ali_ccp import release
else:  # in a script, its own folder is on the path
    import release

Ints = release.Ints
Vocabulary = dict[str, Ints]  # the values with an id of each field, ascending; value i has id i + 1


class Counts:
    """How often each value was seen. Memory grows with the distinct values, not with what is added."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Ints, Ints]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]

    def add(self, values: Ints, weights: Ints | None = None) -> None:
        """Counts values, each once or as often as its weight says."""
        self._pieces.append(_sum_by_value(values, np.ones(len(values), np.int64) if weights is None else weights))
        waiting = sum(len(values) for values, _ in self._pieces[1:])
        if waiting > max(1 << 20, len(self._pieces[0][0])):  # seldom enough that merging costs little
            self._merge()

    def frequent(self, min_count: int) -> Ints:
        """Returns the values seen at least `min_count` times, ascending."""
        self._merge()
        values, counts = self._pieces[0]
        return values[counts >= min_count]

    def _merge(self) -> None:
        values, counts = (np.concatenate(column) for column in zip(*self._pieces, strict=True))
        self._pieces = [_sum_by_value(values, counts)]


def _sum_by_value(values: Ints, counts: Ints) -> tuple[Ints, Ints]:
    distinct, inverse = np.unique(values, return_inverse=True)
    return distinct, np.bincount(inverse, weights=counts, minlength=len(distinct)).astype(np.int64)


def look_up(values: Ints, vocabulary: Ints) -> Ints:
    """Returns the id of each value: 1 for the first of the vocabulary and so forth, 0 for those that are not in it."""
    if not len(vocabulary):
        return np.zeros(len(values), np.int64)
    positions = np.minimum(np.searchsorted(vocabulary, values), len(vocabulary) - 1)
    return np.where(vocabulary[positions] == values, positions + 1, 0)


def to_columns(name: str, entries: release.Entries) -> dict[str, pa.Array]:
    """Turns a field into its columns.

    Args:
        name: Of the field.
        entries: Its ids on N lines, encoded.

    Returns:
        f<name>, [N] ids or lists of ids, 0 for a missing or a rare value, and for some fields v<name>, [N] the sum of
        their values, 0 where there is none.
    """
    if name in release.LISTS:
        offsets = pa.array(np.concatenate([[0], np.cumsum(entries.lengths)]), pa.int32())
        columns = {f"f{name}": pa.ListArray.from_arrays(offsets, pa.array(entries.ids, pa.int32()))}
    else:
        ids = np.zeros(len(entries.lengths), np.int64)
        ids[entries.lengths > 0] = entries.ids
        columns = {f"f{name}": pa.array(ids, pa.int32())}
    if name in release.VALUED:
        columns[f"v{name}"] = pa.array(entries.totals, pa.float32())
    return columns
