"""Vectors of a retrieval head, and what it finds in a whole corpus."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from torchrec_mtl.config.features import Side
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.arrow import get_array, split_lists, to_doubles
from torchrec_mtl.data.corpus import check_names
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile, read_tables
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.lookup import Lookup
from torchrec_mtl.data.one_side import OneSidedFile, first_of_each, one_sided
from torchrec_mtl.data.prefetch import prefetch
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.retrieval.metrics import InnerProduct, Pairs, retrieval_metrics
from torchrec_mtl.training.distributed import on_rank_0
from torchrec_mtl.training.evaluation import Metrics

if TYPE_CHECKING:
    from torchrec_mtl.training.session import Session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Shapes: N items, Q queries, K tasks, D of the vectors.


def corpus_metrics(session: Session, files: Sequence[DataFile], corpus: Sequence[DataFile]) -> Metrics:
    """Rank the whole corpus for every query; return task -> metric -> value, the same on every rank.

    Args:
        session: of a head that retrieves.
        files: of rows; a query has the features of its first row in them, whatever the number of ranks.
        corpus: files of the items.
    """
    config = session.config.retrieval
    assert config is not None
    features = session.config.features
    keys, first = first_of_each(one_sided(files, features, "user"), config.query)
    queries = np.concatenate([vectors.sum(1) for vectors in vectors_of(session, first, "user")])
    items = np.concatenate([*vectors_of(session, one_sided(corpus, features, "item"), "item")])
    return on_rank_0(lambda: _metrics(session.config, config, files, corpus, keys, InnerProduct(queries, items)))


def vectors_of(session: Session, files: Sequence[OneSidedFile], side: Side) -> Generator[Floats, None, None]:
    """Yield the vectors of rows of one side, in the order of the files: of users [n, K, D], of items [n, D].

    Every rank reads all rows, and gets all vectors.

    Args:
        session: of a head that retrieves.
        files: with the columns of this side's features (`one_sided`).
        side: user or item.
    """
    config, name = session.config, {"user": "query", "item": "item"}[side]
    encoder = Encoder(config.data, config.features, config.tasks, session.statistics, labels=False)
    reader = ParquetReader(
        files,
        encoder,
        batch_size=config.data.eval_batch_size or 4 * config.data.batch_size,
        streams=1,
        window=config.data.window,
        shuffle=False,
    )
    left, was_training = reader.num_rows, session.model.training
    session.model.eval()
    batches = prefetch(reader.epoch(0), config.data.prefetch, config.train.timeout_s)
    try:
        with torch.no_grad():
            for output in session.run(batches):
                vectors = output.vectors[name].float().cpu().numpy()[:left]
                left -= len(vectors)
                yield vectors
    finally:
        batches.close()
        session.model.train(was_training)


def _metrics(
    config: RunConfig,
    retrieval: RetrievalConfig,
    files: Sequence[DataFile],
    corpus: Sequence[DataFile],
    queries: Ints,
    scorer: InnerProduct,
) -> Metrics:
    places = _Places(retrieval, queries, _keys(corpus, retrieval.item))
    relevant: dict[str, list[tuple[Ints, Ints]]] = {task.name: [] for task in config.tasks}
    seen: list[tuple[Ints, Ints]] = []
    columns = [retrieval.query, retrieval.item, *([retrieval.seen] if retrieval.seen else [])]
    columns += [name for task in config.tasks for name in (task.label, task.space) if name is not None]
    for table in read_tables(files, list(dict.fromkeys(columns))):
        asked, found = places.queries(get_array(table, retrieval.query)), places.items(get_array(table, retrieval.item))
        if retrieval.seen is not None:
            seen.append(places.pairs(asked, get_array(table, retrieval.seen)))
        for task in config.tasks:
            wanted = _is_set(table, task.label) & (True if task.space is None else _is_set(table, task.space))
            wanted &= (asked >= 0) & (found >= 0)
            relevant[task.name].append((asked[wanted], found[wanted]))
    metrics = retrieval_metrics(
        scorer,
        {task: _joined(pairs) for task, pairs in relevant.items()},
        retrieval.ks,
        seen=_joined(seen) if retrieval.seen else None,
    )
    return {task: {**values, **metrics.coverage} for task, values in metrics.tasks.items()}


class _Places:
    """Keys of queries and items to their places."""

    def __init__(self, config: RetrievalConfig, queries: Ints, items: Ints) -> None:
        self._of_queries, self._of_items = (Lookup(keys) for keys in (queries, items))
        check_names(self._of_items, config.item)

    def queries(self, names: pa.Array) -> Ints:
        """Return the places of queries, -1 where there is none."""
        return self._of_queries.find(encode_keys(names))

    def items(self, names: pa.Array) -> Ints:
        """Return the places of items in the corpus, -1 where there is none."""
        return self._of_items.find(encode_keys(names))

    def pairs(self, queries: Ints, lists: pa.Array) -> tuple[Ints, Ints]:
        """Return (query, item) of every item in the rows' lists, without unknown ones."""
        starts, lengths, elements = split_lists(lists)
        assert (starts[1:] == (starts + lengths)[:-1]).all()
        owners, found = np.repeat(queries, lengths), self.items(elements)
        known = (owners >= 0) & (found >= 0)
        return owners[known], found[known]


def _joined(pairs: Sequence[tuple[Ints, Ints]]) -> Pairs:
    queries, items = (np.concatenate([pair[i] for pair in pairs] or [np.zeros(0, np.int64)]) for i in (0, 1))
    return Pairs(queries, items)


def _keys(files: Sequence[DataFile], column: str) -> Ints:
    return np.concatenate([encode_keys(get_array(table, column)) for table in read_tables(files, [column])])


def _is_set(table: pa.Table, column: str) -> npt.NDArray[np.bool_]:
    return to_doubles(get_array(table, column)) > 0  # not so for null, which is NaN
