"""How often each item stands in the training data: what in-batch negatives are corrected by."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchrec_mtl.data.arrow import get_array
from torchrec_mtl.data.files import DataFile, read_tables
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.rows import Floats, Ints


@dataclass(frozen=True)
class Frequencies:
    """Items by their share of the rows.

    Attributes:
        column: that names the item.
        keys: [N], sorted.
        log_shares: [N].
        log_rest: of an item that is not there: as if it were in half a row.
    """

    column: str
    keys: Ints
    log_shares: Floats
    log_rest: float

    def log_share(self, keys: Ints) -> Floats:
        """Return log Q of each key [n]."""
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        found = self.keys[places] == keys
        return np.where(found, self.log_shares[places], np.float32(self.log_rest)).astype(np.float32)

    def share(self, keys: Ints) -> npt.NDArray[np.float64]:
        """Return the share of each key [n], 0 of an item that is not there."""
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, np.exp(self.log_shares[places].astype(np.float64)), 0.0)

    def mixed(self, corpus: Ints, *, rows: int, popular: int, uniform: int) -> Frequencies:
        """Return the shares of the items of a batch to which others are drawn (Yang et al., WWW 2020, companion).

        Args:
            corpus: [N] keys.
            rows: of a batch.
            popular: items drawn by their share among those of the corpus.
            uniform: items drawn alike from the corpus.
        """
        keys = np.union1d(self.keys, corpus)
        share, here = self.share(keys), np.isin(keys, corpus)
        known = share[here].sum()
        by_share = np.where(here, share / known, 0.0) if known else np.zeros(len(keys))
        mixed = (rows * share + popular * by_share + uniform * here / len(corpus)) / (rows + popular + uniform)
        log_shares = np.log(mixed[mixed > 0]).astype(np.float32)
        return Frequencies(self.column, keys[mixed > 0], log_shares, self.log_rest)


def count_items(files: Sequence[DataFile], column: str) -> Frequencies:
    """Count the items of all rows, row group by row group.

    Args:
        files: of the training data.
        column: that names the item.
    """
    counts: collections.Counter[int] = collections.Counter()
    for table in read_tables(files, [column]):
        keys = encode_keys(get_array(table, column))
        counts.update(dict(zip(*(part.tolist() for part in np.unique(keys, return_counts=True)), strict=True)))
    found = np.array(sorted(counts.items()), np.int64)
    total = found[:, 1].sum()
    return Frequencies(column, found[:, 0], np.log(found[:, 1] / total).astype(np.float32), math.log(0.5 / total))
