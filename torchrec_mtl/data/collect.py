"""One pass over the training data before training: statistics, and every bad value found on the way, all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import get_array
from torchrec_mtl.data.columns import schema_problems
from torchrec_mtl.data.dense import transform
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.ids import IdEncoder
from torchrec_mtl.data.labels import LabelCollector
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Jagged
from torchrec_mtl.data.statistics import (
    DenseStatistics,
    IdStatistics,
    Moments,
    Statistics,
)

_MOST_ROWS_COUNTED = 1 << 20


def collect(
    files: Sequence[DataFile],
    data: DataConfig,
    features: FeaturesConfig,
    tasks: Sequence[TaskConfig],
    *,
    training: bool = True,
) -> Statistics:
    """Read at most ``data.statistics_rows`` rows, in row groups spread evenly over the files.

    Args:
        files: of one split.
        data: how to read them.
        features: what the model reads of them.
        tasks: what it predicts.
        training: they will be learned from, so that labels that leave a loss nothing to learn are a problem too.

    Raises:
        ValueError: Columns are missing or mistyped, or rows hold bad values: every problem of the rows read, with its
            count.
    """
    encoder = Encoder(data, features, tasks)
    if found := schema_problems([(file.path, file.schema) for file in files], encoder.wanted):
        raise ValueError("\n".join(found))
    problems, collector, left = Problems(), _Collector(encoder, features, tasks), data.statistics_rows
    for file, group in _spread(files, data.statistics_rows):
        if left <= 0:
            break
        table = file.read_row_group(group, encoder.columns).slice(0, left)
        left -= table.num_rows
        problems.file = file.path
        collector.add(table, problems)
    collector.finish(problems, training=training)
    problems.raise_if_any()
    return collector.result().model_copy(update={"tolerated": dict(problems.tolerated)})


def _spread(files: Sequence[DataFile], most_rows: int) -> list[tuple[DataFile, int]]:
    """Choose row groups at even distances, as many as hold about ``most_rows`` rows."""
    groups = [(file, i) for file in files for i, rows in enumerate(file.row_groups) if rows]
    share = min(1.0, most_rows / sum(file.metadata.num_rows for file in files))
    count = max(1, int(share * len(groups)))
    return [groups[int((i + 0.5) * len(groups) / count)] for i in range(count)]


class _Collector:
    """Statistics of the tables added so far."""

    def __init__(self, encoder: Encoder, features: FeaturesConfig, tasks: Sequence[TaskConfig]) -> None:
        self._encoder = encoder
        self._rows = 0
        self._dense = {feature: (Moments(), [0]) for feature in features.dense}
        self._labels = {task.name: LabelCollector(tasks, k) for k, task in enumerate(tasks)}
        self._ids = {ids.feature.name: _IdCollector(ids.rows) for ids in encoder.ids}

    def add(self, table: pa.Table, problems: Problems) -> None:
        self._rows += table.num_rows
        for feature, (moments, nulls) in self._dense.items():
            values = transform(feature, get_array(table, feature.source), problems)
            known = values[~np.isnan(values)]
            moments.add(known)
            nulls[0] += len(values) - len(known)
        labels, weights = self._encoder.targets.encode(table, problems)
        for label in self._labels.values():
            label.add(labels, weights, problems)
        for ids in self._encoder.ids:
            self._ids[ids.feature.name].add(ids, table, problems)

    def finish(self, problems: Problems, *, training: bool) -> None:
        """Judge what takes all tables to judge."""
        for label in self._labels.values():
            label.finish(problems)
            if training:
                label.check_spread(problems)

    def result(self) -> Statistics:
        dense = {f.name: DenseStatistics(mean=m.mean, std=m.std, nulls=n[0]) for f, (m, n) in self._dense.items()}
        return Statistics(
            rows=self._rows,
            dense=dense,
            labels={name: label.result() for name, label in self._labels.items()},
            features={name: ids.result() for name, ids in self._ids.items()},
        )


class _IdCollector:
    def __init__(self, table_rows: int) -> None:
        self._ids, self._empty, self._largest = 0, 0, -1
        self._table_rows = table_rows
        self._seen = np.zeros(table_rows, bool) if table_rows <= _MOST_ROWS_COUNTED else None

    def add(self, encoder: IdEncoder, table: pa.Table, problems: Problems) -> None:
        """Add the feature of one table."""
        encoded = encoder.encode(table, problems)
        if isinstance(encoded, Jagged):
            values, empty = encoded.flat, int((encoded.lengths == 0).sum())
        else:
            values = encoded.values if encoded.present is None else encoded.values[encoded.present]
            empty = table.num_rows - len(values)
        self._ids += len(values)
        self._empty += empty
        self._largest = max(self._largest, int(values.max(initial=-1)))
        if self._seen is not None:
            self._seen[values[(values >= 0) & (values < self._table_rows)]] = True

    def result(self) -> IdStatistics:
        distinct = None if self._seen is None else int(self._seen.sum())
        largest = None if self._largest < 0 else self._largest
        return IdStatistics(ids=self._ids, empty=self._empty, largest=largest, distinct=distinct)
