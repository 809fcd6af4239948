"""How long before its row each event of a history was, in buckets: floor(log2(1 + seconds)), at most GAP_BUCKETS - 1.

Shapes: N rows, M events: the ids that the rows' histories keep, row by row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrec_mtl.config.features import GAP_BUCKETS, SequenceConfig, TimeUnit
from torchrec_mtl.data.arrow import get_array, list_bounds, to_doubles
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools, Buckets, Ints, element_indices

_Numbers = npt.NDArray[Any]  # integers of any width, or float64

_SECONDS: Mapping[TimeUnit, Fraction] = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}


@dataclasses.dataclass(frozen=True)
class Events:
    """Where in the data the ids stand that are kept.

    Attributes:
        rows: [M] row of each.
        places: [M] place of each in its row's list, null ids counted.
        sizes: [N] how many ids each row's list has, null ones counted.
    """

    rows: Ints
    places: Ints
    sizes: Ints

    @classmethod
    def of(cls, array: pa.Array, starts: Ints, offsets: Ints) -> Events:
        """Find the ids that are kept of lists.

        Args:
            array: [N] lists, as they are in the data.
            starts: [N] first id of each row that is kept, among the elements of ``split_lists(array)``.
            offsets: [N + 1] of the kept ids, from 0.
        """
        first, sizes, elements = list_bounds(array)
        rows = np.repeat(np.arange(len(first)), np.diff(offsets))
        sources = element_indices(starts, offsets)
        if elements.null_count:
            sources = np.flatnonzero(elements.is_valid().to_numpy(zero_copy_only=False))[sources]
        return cls(rows, sources - first[rows], sizes)

    def keep(self, mask: Bools) -> Events:
        """Leave out the events where ``mask`` [M] is false."""
        return Events(self.rows[mask], self.places[mask], self.sizes)


def encode_gaps(feature: SequenceConfig, table: pa.Table, events: Events, problems: Problems) -> Buckets:
    """Return the bucket [M] of each event.

    Args:
        feature: a sequence with ``times`` and ``now``.
        table: N rows.
        events: M ids that are kept.
        problems: takes times of another length than the ids, moments that are missing, and events after their row.
    """
    assert feature.times is not None
    assert feature.now is not None
    starts, sizes, elements = list_bounds(get_array(table, feature.times))
    times, dated = _moments(elements)
    nows, known = _moments(get_array(table, feature.now))
    report = _Report(feature, problems)
    fits: Bools = sizes == events.sizes
    report.lengths(~fits)
    report.rows(~known, events.rows)
    told = (fits & known)[events.rows]
    rows, at = events.rows[told], (starts[events.rows] + events.places)[told]
    found = dated[at]
    report.times(~found)
    told[told] = found
    time, now = times[at[found]], nows[rows[found]]
    report.future(time, now)
    buckets = np.zeros(len(events.rows), np.uint8)
    buckets[told] = _bucket(_between(time, now), feature.time_unit)
    return buckets


def _moments(array: pa.Array) -> tuple[_Numbers, Bools]:
    """Return numbers [n], and which of them are neither null nor infinite."""
    if pa.types.is_floating(array.type):
        doubles = to_doubles(array)
        return doubles, np.isfinite(doubles)
    if pa.types.is_null(array.type):  # a column without any value
        return np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    integers = array.fill_null(0) if array.null_count else array
    return integers.to_numpy(zero_copy_only=False), array.is_valid().to_numpy(zero_copy_only=False)


def _between(earlier: _Numbers, later: _Numbers) -> _Numbers:
    """Return ``later - earlier`` where it is at least 0: uint64, exact, between integers, else float64."""
    if "f" in earlier.dtype.kind + later.dtype.kind:
        return later.astype(np.float64) - earlier.astype(np.float64)
    return later.astype(np.uint64) - earlier.astype(np.uint64)  # modulo 2^64, where no such difference is cut


def _bucket(gaps: _Numbers, unit: TimeUnit) -> Buckets:
    """Return the buckets of gaps of at least 0, by their edges: these are exact where a logarithm is not."""
    edges = [((1 << bucket) - 1) / _SECONDS[unit] for bucket in range(1, GAP_BUCKETS)]
    exact = np.array([math.ceil(edge) if gaps.dtype.kind == "u" else float(edge) for edge in edges], gaps.dtype)
    return np.searchsorted(exact, gaps, side="right").astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _Report:
    """What may be wrong with the moments of one history."""

    feature: SequenceConfig
    problems: Problems

    def lengths(self, bad: Bools) -> None:
        """Refuse rows [N] whose times are more or fewer than their ids."""
        what = f"lists of another length than those of the ids, column '{self.feature.source}'"
        self._add(self._times, what, bad, "Write one time for each id, in the same order.")

    def rows(self, unknown: Bools, rows: Ints) -> None:
        """Refuse rows [N] without a moment of their own among those of events [M]."""
        busy = np.zeros(len(unknown), bool)
        busy[rows] = True
        where = f"now of sequence '{self.feature.name}', column '{self.feature.now}'"
        self._add(where, "null or infinite moments of rows with events", unknown & busy, "Write when the row was.")

    def times(self, bad: Bools) -> None:
        """Refuse events [n] without a moment."""
        self._add(self._times, "null or infinite times", bad, "Write when each event was, or leave out its id too.")

    def future(self, time: _Numbers, now: _Numbers) -> None:
        """Refuse events [n] after the moment [n] of their row."""
        late = time > now
        if late.any():
            excess = _between(now[late], time[late])
            self.problems.add(
                self._times,
                f"events lie after the row's moment, column '{self.feature.now}', by so many {self.feature.time_unit}",
                count=len(excess),
                low=excess.min().item(),
                high=excess.max().item(),
                advice="A history that reads its row's future is a leak: leave these events out, or correct the times.",
            )

    @property
    def _times(self) -> str:
        return f"times of sequence '{self.feature.name}', column '{self.feature.times}'"

    def _add(self, where: str, what: str, bad: Bools, advice: str) -> None:
        if bad.any():
            self.problems.add(where, what, count=int(bad.sum()), advice=advice)
