"""The order of samples: a function of (row groups, seed, epoch, batch size, streams) alone, never of the world size.

The row groups are permuted and laid end to end; S streams own equal slices of these rows, and shuffle them within
windows. Global batch t is mini-slice t (batch_size / S rows) of every stream. A position is (epoch, step).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from torchrec_mtl.data.rows import Ints


@dataclasses.dataclass(frozen=True)
class Order:
    """Which rows make up which global batch.

    Attributes:
        groups: rows of each row group, in file order.
        batch_size: rows of a global batch.
        streams: S, slices that make up a batch.
        window: rows of a stream shuffled together; rounded up to whole mini-slices.
        shuffle: False keeps the row groups in file order, and the rows of each stream in theirs.
        seed: of the shuffling.
    """

    groups: tuple[int, ...]
    batch_size: int
    streams: int
    window: int
    shuffle: bool
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size % self.streams:
            lower = self.batch_size // self.streams * self.streams
            choices = f"{lower} or {lower + self.streams}" if lower else str(self.streams)
            raise ValueError(
                f"batch size {self.batch_size} is no multiple of data.streams {self.streams}. "
                f"Use a batch size of {choices}, or other streams."
            )

    @property
    def slice_rows(self) -> int:
        """Rows of a stream in each global batch."""
        return self.batch_size // self.streams

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return sum(self.groups)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; the last is padded."""
        longest = -(-self.num_rows // self.streams)
        return -(-longest // self.slice_rows)

    @property
    def steps_per_window(self) -> int:
        """Global batches of a window."""
        return -(-self.window // self.slice_rows)

    def epoch(self, epoch: int) -> EpochOrder:
        """Return the order of one epoch; without shuffling all are alike."""
        count = len(self.groups)
        groups = np.random.default_rng([self.seed, epoch]).permutation(count) if self.shuffle else np.arange(count)
        return EpochOrder(self, epoch, groups)


@dataclasses.dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        order: of the run.
        epoch: its number.
        groups: row groups in the order in which they are laid end to end.
    """

    order: Order
    epoch: int
    groups: Ints

    @functools.cached_property
    def _starts(self) -> Ints:
        """First row of each laid row group, and the number of rows."""
        return np.concatenate([[0], np.cumsum(np.asarray(self.order.groups, np.int64)[self.groups])])

    def rows(self, stream: int, window: int) -> tuple[int, int]:
        """Return the laid rows start .. stop - 1 of one window of a stream.

        When shuffling, odd streams walk their slice from its end: so two neighbours need the row group that both own
        parts of at the same time, and one process decodes each row group once.
        """
        order = self.order
        first = stream * order.num_rows // order.streams
        last = (stream + 1) * order.num_rows // order.streams
        width = order.steps_per_window * order.slice_rows
        start, stop = min(window * width, last - first), min((window + 1) * width, last - first)
        if order.shuffle and stream % 2:
            return last - stop, last - start
        return first + start, first + stop

    def pieces(self, stream: int, window: int) -> list[tuple[int, int, int]]:
        """Return (row group, its first row, its row after the last) that make up one window, in laid order."""
        start, stop = self.rows(stream, window)
        pieces = []
        place = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            offset, end = int(self._starts[place]), min(int(self._starts[place + 1]), stop)
            if end > start:
                pieces.append((int(self.groups[place]), start - offset, end - offset))
            start, place = end, place + 1
        return pieces

    def permutation(self, stream: int, window: int) -> Ints:
        """Return the order of a window's rows, as places in its pieces laid end to end."""
        start, stop = self.rows(stream, window)
        if not self.order.shuffle:
            return np.arange(stop - start)
        return np.random.default_rng([self.order.seed, self.epoch, stream + 1, window]).permutation(stop - start)
