"""How many different ids there are, and which of later ones are new: in at most 1 MiB, whatever the table's size."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from torchrec_mtl.data.hashing import UInts, hash_integers
from torchrec_mtl.data.rows import Ints

_MOST_ROWS_MARKED = 1 << 20
SKETCH = 1 << 16


class Distinct(Protocol):
    """A set of ids, or as much of it as its memory holds."""

    def add(self, ids: Ints) -> None:
        """Put ids [n] in."""

    @property
    def count(self) -> int:
        """Different ids so far."""

    @property
    def exact(self) -> bool:
        """Whether ``count`` is counted, not estimated."""

    def missing(self, ids: Ints) -> tuple[int, int]:
        """Return how many of the ids [n] can be judged, and how many of these were never put in."""


def make_distinct(rows: int) -> Distinct:
    """Return an empty set of ids below ``rows``."""
    return Marks(rows) if rows <= _MOST_ROWS_MARKED else Sketch()


class Marks:
    """A mark for each row of a table: exact.

    Example:
        >>> marks = Marks(10)
        >>> marks.add(np.array([3, 3, 7]))
        >>> marks.count, marks.exact, marks.missing(np.array([3, 4, 4]))
        (2, True, (3, 2))
    """

    exact = True

    def __init__(self, rows: int) -> None:
        self._seen = np.zeros(rows, bool)

    def add(self, ids: Ints) -> None:
        """Put ids [n] in."""
        self._seen[ids] = True

    @property
    def count(self) -> int:
        """Different ids so far."""
        return int(self._seen.sum())

    def missing(self, ids: Ints) -> tuple[int, int]:
        """Return how many ids were asked for, and how many of these were never put in."""
        return len(ids), len(ids) - int(self._seen[ids].sum())


class Sketch:
    """The smallest hashes of all ids (Bar-Yossef et al. 2002): exact while they are few, then within 0.4 % or so.

    Which ids are kept depends on the ids alone, so that the order and the blocks in which they come do not matter, and
    a later id is judged if its hash is among the small ones: a fair sample of ids.
    """

    def __init__(self, size: int = SKETCH) -> None:
        self._size = size
        self._hashes: UInts = np.zeros(0, np.uint64)

    def add(self, ids: Ints) -> None:
        """Put ids [n] in."""
        hashes = hash_integers(np.ascontiguousarray(ids, np.int64))
        if not self.exact:
            hashes = hashes[hashes < self._hashes[-1]]
        self._hashes = np.union1d(self._hashes, hashes)[: self._size]

    @property
    def exact(self) -> bool:
        """Whether all hashes are kept."""
        return len(self._hashes) < self._size

    @property
    def count(self) -> int:
        """Different ids so far, estimated from how densely the smallest hashes lie."""
        if self.exact:
            return len(self._hashes)
        return round((self._size - 1) / (float(self._hashes[-1]) / 2.0**64))

    def missing(self, ids: Ints) -> tuple[int, int]:
        """Return how many of the ids [n] are in the sample of ids, and how many of these were never put in."""
        hashes = hash_integers(np.ascontiguousarray(ids, np.int64))
        if not self.exact:
            hashes = hashes[hashes <= self._hashes[-1]]
        if not len(self._hashes):
            return len(hashes), len(hashes)
        places = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        return len(hashes), int((self._hashes[places] != hashes).sum())
