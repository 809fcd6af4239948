"""Counts of small whole numbers, such as lengths of lists and buckets of time, and their quantiles."""

from __future__ import annotations

import numpy as np

from torchrec_mtl.data.rows import Buckets, Ints

_LONGEST_COUNTED = 1 << 16


class Counts:
    """How often each number from 0 up was seen; those of 65,536 and more are counted together.

    Example:
        >>> counts = Counts()
        >>> counts.add(np.array([0, 2, 2, 9]))
        >>> counts.total, counts.mean, counts.quantile(0.5), counts.largest
        (4, 3.25, 2, 9)
    """

    def __init__(self) -> None:
        self._counts: Ints = np.zeros(1, np.int64)
        self.total, self.sum, self.largest = 0, 0, 0

    def add(self, numbers: Ints | Buckets) -> None:
        """Count numbers [n]."""
        if not len(numbers):
            return
        self.total += len(numbers)
        self.sum += int(numbers.sum(dtype=np.int64))
        self.largest = max(self.largest, int(numbers.max()))
        found = np.bincount(np.minimum(numbers.astype(np.int64), _LONGEST_COUNTED))
        if len(found) > len(self._counts):
            self._counts = np.pad(self._counts, (0, len(found) - len(self._counts)))
        self._counts[: len(found)] += found

    @property
    def mean(self) -> float:
        """Of all numbers; 0 of none."""
        return self.sum / self.total if self.total else 0.0

    @property
    def zeros(self) -> int:
        """How many numbers were 0."""
        return int(self._counts[0])

    def quantile(self, share: float) -> int:
        """Return the smallest number that so large a share of the numbers do not exceed; at most 65,536."""
        return int(np.searchsorted(np.cumsum(self._counts), share * self.total))
