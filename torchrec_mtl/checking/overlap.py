"""Rows of train that come again: in train itself, and in the data that is to judge the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from torchrec_mtl.checking.findings import Finding, Level, percent, share
from torchrec_mtl.checking.hashes import hash_rows
from torchrec_mtl.checking.report import OverlapFigures
from torchrec_mtl.data.hashing import UInts

MOST_ROWS = 1 << 22

_NOT_NAMED = 0.1  # keys do not name rows where so large a share of train's rows have those of another, different row
_ERROR, _WARNING = 0.05, 0.001
_CHANCE = 0.01
_MANY_TWICE = 0.05


class Overlap:
    """Hashes of train's rows by some columns, and how many rows of other splits are among them.

    Of more than ``most_rows`` rows those of the smallest hashes are kept: all rows with equal columns or none, in
    whatever order they come.
    """

    def __init__(self, by: str, columns: Sequence[str], train_rows: int, most_rows: int = MOST_ROWS) -> None:
        self.by, self.columns = by, tuple(columns)
        self._limit = None if train_rows <= most_rows else np.uint64(most_rows / train_rows * 2.0**64)
        self._parts: list[UInts] = []
        self._train: UInts | None = None
        self._twins, self._repeats = 0, 0
        self._compared: dict[str, list[int]] = {}

    def add(self, table: pa.Table, split: str) -> None:
        """Add the rows of a split; all of train first."""
        hashes = hash_rows(table, self.columns)
        if self._limit is not None:
            hashes = hashes[hashes < self._limit]
        if split == "train":
            self._parts.append(hashes)
            return
        train = self._close()
        compared = self._compared.setdefault(split, [0, 0])
        compared[0] += len(hashes)
        if len(train):
            places = np.searchsorted(train, hashes).clip(max=len(train) - 1)
            compared[1] += int((train[places] == hashes).sum())

    def _close(self) -> UInts:
        """Sort what train has."""
        if self._train is None:
            self._train = np.concatenate(self._parts) if self._parts else np.zeros(0, np.uint64)
            self._parts = []
            self._train.sort()
            again = self._train[1:] == self._train[:-1]
            self._repeats = int(again.sum())
            alone = np.ones(len(self._train), bool)
            alone[1:] &= ~again
            alone[:-1] &= ~again
            self._twins = len(alone) - int(alone.sum())
        return self._train

    @property
    def twins(self) -> float:
        """Share of train's rows that have an equal one in train."""
        return share(self._twins, len(self._close()))

    def figures(self) -> Iterator[OverlapFigures]:
        """Yield those of train, then those of the other splits."""
        train, sampled = self._close(), self._limit is not None
        if len(train):
            repeats = self._repeats
            yield OverlapFigures("train", self.by, len(train), repeats, share(repeats, len(train)), sampled)
        for split, (rows, found) in self._compared.items():
            yield OverlapFigures(split, self.by, rows, found, share(found, rows), sampled)


def overlap_findings(keys: Overlap | None, columns: Overlap) -> Iterator[Finding]:
    """Judge how much comes again.

    Args:
        keys: by ``data.keys``, where there are any.
        columns: by all that is read, keys among it.
    """
    named = ", ".join(keys.columns) if keys is not None else ""
    if keys is not None and keys.twins - columns.twins > _NOT_NAMED:  # rows written twice are another matter
        what = (
            f"data.keys ({named}) name no single row: {percent(keys.twins)} of train's rows share theirs with another"
        )
        advice = "Rows of train in other splits are looked for by all columns that are read; add a column to find more."
        yield Finding("note", "keys_not_unique", "train", named, what, advice)
        keys = None
    elif keys is not None:
        repeats = next((f for f in keys.figures() if f.split == "train"), None)
        if repeats is not None and repeats.found:
            what = f"{repeats.found:,} rows ({percent(repeats.share)}) repeat the keys ({named}) of an earlier one"
            advice = "Keep such rows in one split, or drop them if they are copies."
            yield Finding("note", "keys_repeat", "train", named, what, advice, repeats.found)
    for figures in columns.figures():
        if figures.split != "train":
            yield from _found(figures, keys, columns)
        elif named and figures.share > _MANY_TWICE:
            what = (
                f"{figures.found:,} rows ({percent(figures.share)}) equal an earlier one in all columns that are read"
            )
            advice = "See whether rows were written twice: these weigh double."
            yield Finding("warning", "rows_repeat", "train", "", what, advice, figures.found)


def _found(figures: OverlapFigures, keys: Overlap | None, columns: Overlap) -> Iterator[Finding]:
    level: Level
    if keys is not None:
        found = next(f for f in keys.figures() if f.split == figures.split)
        level = "error" if found.share > _ERROR else "warning" if found.share > _WARNING else "note"
        if found.found:
            named = ", ".join(keys.columns)
            what = f"{found.found:,} rows ({percent(found.share)}) have the keys ({named}) of a row of train"
            advice = "A model is flattered by rows it trained on; take them out of one of the two."
            yield Finding(level, "overlap", figures.split, named, what, advice, found.found)
        return
    # Rows of few and coarse columns are equal by chance; then train's own rows are, too, about as often.
    excess = figures.share - columns.twins
    if excess > _CHANCE:
        what = (
            f"{figures.found:,} rows ({percent(figures.share)}) equal a row of train in all columns that are read; of "
            f"train's own, {percent(columns.twins)} equal another"
        )
        advice = "A model is flattered by rows it trained on: take them out, or name a row in data.keys to be certain."
        level = "error" if excess > 0.5 else "warning"
        yield Finding(level, "overlap", figures.split, "", what, advice, figures.found)
