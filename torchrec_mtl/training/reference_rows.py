"""The two reference models of `torchrec_mtl.references`, fitted to the features of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.rows import Jagged, Rows
from torchrec_mtl.references import DesignData, fit_references
from torchrec_mtl.training.evaluation import Metrics
from torchrec_mtl.training.metrics import task_metrics

_MOST_ROWS = 500_000


def reference_metrics(
    config: RunConfig, encoder: Encoder, train: Sequence[DataFile], test: Sequence[DataFile]
) -> dict[str, Metrics]:
    """Return model -> task -> metric -> value for a constant and for logistic/ridge regression.

    Both read the run's features: ids one-hot, lists as the mean of theirs, dense columns normalised. They are held in
    memory, so at most the last 500,000 training rows are used.
    """
    tested = _read(test, encoder)
    references = fit_references(
        _design(_tail(_read(train, encoder, _MOST_ROWS)), config),
        _design(tested, config),
        [t.kind for t in config.tasks],
    )
    groups = tested.ids.get("group")
    return {
        name: {
            t.name: task_metrics(t.kind, tested.labels[:, k], p[:, k], tested.weights[:, k], groups)
            for k, t in enumerate(config.tasks)
        }
        for name, p in references.rows().items()
    }


def _read(files: Sequence[DataFile], encoder: Encoder, most: int | None = None) -> Rows:
    """Read all row groups, or the last ones that hold ``most`` rows."""
    groups = [(file, group) for file in files for group in range(len(file.row_groups))]
    parts: list[Rows] = []
    for file, group in reversed(groups):
        if most is not None and sum(len(p) for p in parts) >= most:
            break
        parts.append(encoder.encode(file.read_row_group(group, encoder.columns), file.path))
    return Rows.concat(parts[::-1])


def _tail(rows: Rows) -> Rows:
    return rows.slice(max(len(rows) - _MOST_ROWS, 0), len(rows))


def _design(rows: Rows, config: RunConfig) -> DesignData:
    sizes = {t.name: t.rows for t in config.features.tables}
    table = {f.name: f.table for f in config.features.sparse} | {f.name: f.table for f in config.features.sequences}
    blocks = []
    for i, name in enumerate(rows.single_names):
        present = np.ones(len(rows), dtype=bool) if rows.present is None else rows.present[:, i]
        one = Jagged.from_lengths(rows.single[present, i], present.astype(np.int64))
        blocks.append(_one_hot(one, len(rows), sizes[table[name]]))
    blocks += [_one_hot(jagged, len(rows), sizes[table[name]]) for name, jagged in rows.lists.items()]
    joined = sparse.hstack(blocks, format="csr") if blocks else sparse.csr_array((len(rows), 0))
    return DesignData(rows.dense, sparse.csr_array(joined), rows.labels, rows.weights)


def _one_hot(jagged: Jagged, num_rows: int, width: int) -> sparse.csr_array:
    lengths = np.asarray(jagged.lengths)
    values = np.repeat(1 / np.maximum(lengths, 1), lengths)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_array((values, np.asarray(jagged.flat), bounds), shape=(num_rows, width))
