"""A sample of train's rows, spread over all files, encoded as the model would read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.arrow import Doubles, get_array, to_doubles
from torchrec_mtl.data.dense import transform
from torchrec_mtl.data.hashing import hash_integers
from torchrec_mtl.data.ids import IdEncoder, Single
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools, Ints, Jagged
from torchrec_mtl.data.targets import TargetEncoder

_LONGEST = 64


@dataclass(frozen=True)
class Sampled:
    """n rows.

    Attributes:
        labels: [n, K].
        usable: [n, K] rows that count.
        fitted: [n] whether the row belongs to the half that scores are fitted to.
        single: ids [n] by feature, -1 where there is none.
        lists: of ids by feature.
        lengths: [n] by feature of lists, before ``max_length`` cuts them.
        dense: [n] by feature, NaN where there is none.
    """

    labels: Doubles
    usable: Bools
    fitted: Bools
    single: dict[str, Ints]
    lists: dict[str, Jagged]
    dense: dict[str, Doubles]


class Sample:
    """Takes each row by a hash of its number in the whole of train: files and row groups do not matter."""

    def __init__(self, run: RunConfig, train_rows: int, most_rows: int) -> None:
        rows = {table.name: table.rows for table in run.features.tables}
        features = (*run.features.pooled, *run.features.unpooled)
        self._ids = [IdEncoder(feature, rows[feature.table], "drop") for feature in features]
        self._dense, self._tasks = run.features.dense, run.tasks
        self._targets = TargetEncoder(run.tasks, "mask")
        self._limit = None if train_rows <= most_rows else np.uint64(most_rows / train_rows * 2.0**64)
        self._parts: list[Sampled] = []

    def add(self, table: pa.Table, first: int) -> None:
        """Offer rows, the first of which is number ``first`` of train."""
        hashes = hash_integers(np.arange(first, first + table.num_rows))
        kept = np.flatnonzero(hashes < self._limit) if self._limit is not None else np.arange(table.num_rows)
        if not len(kept):
            return
        table = table.take(pa.array(kept)) if len(kept) < table.num_rows else table
        scratch = Problems()  # what is wrong is told elsewhere
        labels, weights = self._targets.encode(table, scratch)
        single, lists = dict[str, Ints](), dict[str, Jagged]()
        for encoder in self._ids:
            name, encoded = encoder.feature.name, encoder.encode(table, scratch)
            if isinstance(encoded, Single):
                present = encoded.present
                single[name] = encoded.values if present is None else np.where(present, encoded.values, -1)
            else:
                lists[name] = _last(encoded)
        dense = {f.name: transform(f, get_array(table, f.source), scratch) for f in self._dense}
        # Labels in float64 again: the order of large ones matters.
        raw = np.stack([to_doubles(get_array(table, task.label)) for task in self._tasks], axis=1)
        usable = weights > 0
        fitted = (hashes[kept] ^ (hashes[kept] >> np.uint64(32))) & np.uint64(1) == 0
        self._parts.append(Sampled(np.where(usable, raw, labels), usable, fitted, single, lists, dense))

    def rows(self) -> Sampled | None:
        """Hand over all rows taken; None where there is none, or where files hold a feature in different ways."""
        parts, self._parts = self._parts, []
        if not parts or any(p.single.keys() != parts[0].single.keys() for p in parts):
            return None
        first = parts[0]
        return Sampled(
            labels=np.concatenate([p.labels for p in parts]),
            usable=np.concatenate([p.usable for p in parts]),
            fitted=np.concatenate([p.fitted for p in parts]),
            single={name: np.concatenate([p.single[name] for p in parts]) for name in first.single},
            lists={name: Jagged.concat([p.lists[name] for p in parts]) for name in first.lists},
            dense={name: np.concatenate([p.dense[name] for p in parts]) for name in first.dense},
        )


def _last(jagged: Jagged) -> Jagged:
    """Cut lists to their last 64 ids, so that the sample is bounded."""
    lengths = jagged.lengths
    kept = np.minimum(lengths, _LONGEST)
    if int(kept.sum()) == int(lengths.sum()):
        return Jagged(jagged.values, jagged.offsets)
    return Jagged.from_ranges(jagged.values, jagged.offsets[1:] - kept, kept)
