"""Columns to batches: one encoder for training, evaluation, and serving."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import get_array
from torchrec_mtl.data.columns import config_columns, item_column, query_column, schema_problems
from torchrec_mtl.data.dense import DenseEncoder
from torchrec_mtl.data.frequencies import Frequencies
from torchrec_mtl.data.ids import IdEncoder, Single, encode_keys
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools, Floats, Ints, Jagged, Rows
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.data.targets import TargetEncoder
from torchrec_mtl.features import Candidates

if TYPE_CHECKING:
    from torchrec_mtl.data.batch import Batch

_BLOCK = 1000  # no power of two: the columns of a block would share cache lines


class Encoder:
    """Encodes Arrow tables as a config says.

    Attributes:
        columns: columns to read.
        fits: the last schema that was found to fit.
        counts: bad ids and null labels let pass so far (``data.bad_ids``, ``data.null_labels``), each reading counted.

    Example:
        >>> from torchrec_mtl.config.features import FeaturesConfig
        >>> features = FeaturesConfig.model_validate({
        ...     "tables": [{"name": "item", "rows": 10, "dim": 4}],
        ...     "sparse": [{"name": "item_id", "table": "item"}],
        ... })
        >>> encoder = Encoder(DataConfig(train="train.parquet"), features, ())
        >>> rows = encoder.encode(pa.table({"item_id": [3, 1, None]}), "train.parquet")
        >>> encoder.batch(rows, slots=np.arange(4), step=0, global_size=4).sparse["item_id"].lengths()
        tensor([1, 1, 0, 0], dtype=torch.int32)
    """

    def __init__(
        self,
        data: DataConfig,
        features: FeaturesConfig,
        tasks: Sequence[TaskConfig],
        statistics: Statistics | None = None,
        *,
        labels: bool = True,
        frequencies: Frequencies | None = None,
        query: str | None = None,
    ) -> None:
        """Prepare for one config.

        Args:
            data: what to do with bad ids and null labels; the group column.
            features: inputs.
            tasks: K tasks.
            statistics: of the training data; None leaves dense values as they are.
            labels: False where only predictions are made: the columns of the tasks and the group are not read, labels
                and weights are [N, K] zeros.
            frequencies: of the items, where batches shall say how frequent theirs are.
            query: column of the rows' queries, where items are drawn for them.
        """
        rows = {table.name: table.rows for table in features.tables}
        scales = {} if statistics is None else {name: (d.mean, d.std) for name, d in statistics.dense.items()}
        self.wanted = config_columns(data, features, tasks, labels=labels)
        if frequencies is not None and labels:
            self.wanted += (item_column(frequencies.column),)
        if query is not None and labels:
            self.wanted += (query_column(query),)
        self.columns = tuple(dict.fromkeys(column.name for column in self.wanted))
        self.counts: collections.Counter[str] = collections.Counter()
        self.dense = DenseEncoder(features.dense, scales)
        self.targets = TargetEncoder(tasks, data.null_labels)
        self.ids = [IdEncoder(f, rows[f.table], data.bad_ids) for f in (*features.pooled, *features.unpooled)]
        self._pooled = [feature.name for feature in features.pooled]
        self._unpooled = [feature.name for feature in features.unpooled]
        self._num_tasks = len(tasks)
        self._labels = labels
        self._frequencies = frequencies
        item = None if frequencies is None else frequencies.column
        keys = {"group": data.group, "item": item, "query": query} if labels else {}
        self._keys = {name: column for name, column in keys.items() if column is not None}
        self.fits: pa.Schema | None = None

    def encode(self, table: pa.Table, file: str) -> Rows:
        """Encode all rows of a table.

        Args:
            table: N rows with at least ``columns``.
            file: where they come from, for messages.

        Returns:
            N encoded rows.

        Raises:
            ValueError: Columns are missing or mistyped, or hold bad values; every problem is named.
        """
        self.check_schema(table.schema, file)
        problems = Problems()
        problems.file = file
        rows = self.encode_checked(table, problems)
        problems.raise_if_any()
        self.counts += problems.tolerated
        return rows

    def check_schema(self, schema: pa.Schema, file: str) -> None:
        """Raise ``ValueError`` where a column is missing or of a type that does not fit."""
        if self.fits is not None and self.fits.equals(schema):  # so are most
            return
        if found := schema_problems([(file, schema)], self.wanted):
            raise ValueError("\n".join(found))
        self.fits = schema

    def encode_checked(self, table: pa.Table, problems: Problems) -> Rows:
        """Encode a table whose schema fits; bad values go to ``problems``."""
        dense = self.dense.encode(table, problems)
        labels, weights = self._encode_targets(table, problems)
        encoded = {ids.feature.name: ids.encode(table, problems) for ids in self.ids}
        single = {name: column for name, column in encoded.items() if isinstance(column, Single)}
        return Rows(
            dense=dense,
            labels=labels,
            weights=weights,
            ids={name: encode_keys(get_array(table, column)) for name, column in self._keys.items()},
            single_names=tuple(single),
            single=_stack(list(single.values()), table.num_rows),
            present=_stack_present(list(single.values()), table.num_rows),
            lists={name: column for name, column in encoded.items() if isinstance(column, Jagged)},
        )

    def batch(self, rows: Rows, *, slots: Ints, step: int, global_size: int, num_drawn: int = 0) -> Batch:
        """Turn encoded rows into a batch.

        Args:
            rows: n rows.
            slots: [B] places in the global batch, of the n rows and then of B - n rows of padding.
            step: number of the global batch.
            global_size: rows of the global batch.
            num_drawn: of the n rows, the last so many are items drawn, no data.

        Returns:
            A batch of B rows; see ``assemble.make_batch``.
        """
        from torchrec_mtl.data.assemble import make_batch  # TorchRec's; whoever serves encodes without it

        batch = make_batch(
            rows, self._pooled, self._unpooled, slots=slots, step=step, global_size=global_size, num_drawn=num_drawn
        )
        if self._frequencies is None:
            return batch
        keys = batch.ids["item"]
        shares = torch.from_numpy(self._frequencies.log_share(keys.numpy()))
        # ``present`` also where all rows of this rank are there: all ranks exchange it, or none does.
        present = (torch.arange(len(slots)) < len(rows)).float()
        candidates = Candidates(keys, shares, present, len(rows) - num_drawn)
        return dataclasses.replace(batch, candidates=candidates)

    def _encode_targets(self, table: pa.Table, problems: Problems) -> tuple[Floats, Floats]:
        if self._labels:
            return self.targets.encode(table, problems)
        shape = (table.num_rows, self._num_tasks)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def _stack(columns: Sequence[Single], num_rows: int) -> Ints:
    """Return [N, F1], transposed in blocks that stay in the cache."""
    stacked = np.empty((num_rows, len(columns)), np.int64)
    for start in range(0, num_rows if columns else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        stacked[block] = np.stack([column.values[block] for column in columns]).T
    return stacked


def _stack_present(columns: Sequence[Single], num_rows: int) -> Bools | None:
    if all(column.present is None for column in columns):
        return None
    present = np.ones((num_rows, len(columns)), bool)
    for i, column in enumerate(columns):
        if column.present is not None:
            present[:, i] = column.present
    return present
