"""Id columns as integers: taken as they are and checked against the table, or hashed; lists cut to their last ids."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.features import SequenceConfig, SparseConfig
from torchrec_mtl.data.arrow import get_array, is_list, is_string, split_lists
from torchrec_mtl.data.gaps import Events, encode_gaps
from torchrec_mtl.data.hashing import hash_integers, hash_strings
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools, Ints, Jagged

_INT64 = pa.int64()
NULL_KEY = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class Single:
    """At most one id a row: values [N], and whether there is one [N] (None where all have)."""

    values: Ints
    present: Bools | None


@dataclasses.dataclass(frozen=True)
class IdEncoder:
    """Encodes the columns of one feature.

    Attributes:
        feature: its config.
        rows: rows of its table.
        bad: what to do with an id outside the table.
    """

    feature: SparseConfig | SequenceConfig
    rows: int
    bad: Literal["error", "drop", "clamp"]

    def encode(self, table: pa.Table, problems: Problems) -> Single | Jagged:
        """Encode all rows.

        Null elements are left out, then a list keeps its last ``max_length`` ids, then these are checked.

        Args:
            table: N rows; the columns are of types that ``Column.layout`` accepts.
            problems: takes ids outside the table, and moments that cannot be.

        Returns:
            Ids in 0 .. rows - 1, and how long ago each was where the feature has ``times``.
        """
        array = get_array(table, self.feature.source)
        if isinstance(self.feature, SequenceConfig) or (array.type != _INT64 and is_list(array.type)):
            return self._encode_lists(array, table, problems)
        return self._encode_single(array, problems)

    def _encode_single(self, array: pa.Array, problems: Problems) -> Single:
        present = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
        values = self.integers(array)
        outside = self._find_outside(values if present is None else values[present], problems)
        if outside is not None and self.bad == "clamp":
            values = np.where((values < 0) | (values >= self.rows), 0, values)
        elif outside is not None:
            inside = (values >= 0) & (values < self.rows)
            present = inside if present is None else present & inside
        return Single(values, present)

    def _encode_lists(self, array: pa.Array, table: pa.Table, problems: Problems) -> Jagged:
        starts, lengths, elements = split_lists(array)
        if self.feature.max_length is not None:
            kept = np.minimum(lengths, self.feature.max_length)
            starts, lengths = starts + lengths - kept, kept
        values = self.integers(elements)
        if lengths.sum() == len(values):  # nothing to leave out
            jagged = Jagged.from_lengths(values, lengths)
        else:
            jagged = Jagged.from_ranges(values, starts, lengths)
        outside = self._find_outside(jagged.values, problems)
        encoded = jagged if outside is None else self._mend(jagged, outside)
        feature = self.feature
        if not isinstance(feature, SequenceConfig) or feature.times is None:
            return encoded
        events = Events.of(array, starts, jagged.offsets)
        if outside is not None and self.bad != "clamp":
            events = events.keep(~outside)
        return dataclasses.replace(encoded, gaps=encode_gaps(feature, table, events, problems))

    def _mend(self, jagged: Jagged, outside: Bools) -> Jagged:
        if self.bad == "clamp":
            return Jagged(np.where(outside, 0, jagged.values), jagged.offsets)
        kept = np.concatenate([[0], np.cumsum(~outside)])
        return Jagged(jagged.values[~outside], kept[jagged.offsets])

    def integers(self, array: pa.Array) -> Ints:
        """Return ids [N], hashed where asked for, not yet checked; 0 for null."""
        if array.type == _INT64 and self.feature.encode != "hash" and not array.null_count:  # most are
            plain: Ints = array.to_numpy()
            return plain
        kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
        if is_string(kind):
            hashes, places = hash_strings(array)
            return (hashes % np.uint64(self.rows)).astype(np.int64)[places]
        values = plain_integers(array)
        if self.feature.encode == "hash":
            return (hash_integers(values) % np.uint64(self.rows)).astype(np.int64)
        return values

    def _find_outside(self, values: Ints, problems: Problems) -> Bools | None:
        """Return which ids are outside the table, None where none is."""
        # As unsigned numbers, those below 0 are the largest there are.
        if not len(values) or values.view(np.uint64).max() < self.rows:
            return None
        outside = (values < 0) | (values >= self.rows)
        count = int(outside.sum())
        if self.bad != "error":
            done = "left out" if self.bad == "drop" else "put on row 0"
            problems.tolerated[f"ids of feature '{self.feature.name}' outside its table ({done})"] += count
            return outside
        found, table = values[outside], self.feature.table
        problems.add(
            f"feature '{self.feature.name}', column '{self.feature.source}'",
            f"ids outside table '{table}' of {self.rows:,} rows (0 to {self.rows - 1})",
            count=count,
            low=int(found.min()),
            high=int(found.max()),
            advice=f"Give table '{table}' more rows, use encode: hash, or set data.bad_ids to drop or clamp.",
        )
        return outside


def plain_integers(array: pa.Array) -> Ints:
    """Return integers or booleans [N] as int64, those of 2^63 and more modulo 2^64; 0 for null. May be read-only."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    plain = array.fill_null(0) if array.null_count else array
    values: Ints = plain.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return values


def encode_keys(array: pa.Array) -> Ints:
    """Encode a key column: integers as they are, strings by their 64-bit hash, null as the smallest integer.

    Args:
        array: [N] integers, booleans, or strings.

    Returns:
        [N] int64, a copy.
    """
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if is_string(kind):
        hashes, places = hash_strings(array)
        keys: Ints = hashes.view(np.int64)[places]
    else:
        keys = plain_integers(array).copy()
    if array.null_count:
        keys[array.is_null().to_numpy(zero_copy_only=False)] = NULL_KEY
    return keys
