"""Vectors of a retrieval head, and what it finds in a whole corpus."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.distributed as dist

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.config.features import Side
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.arrow import get_array, split_lists, to_doubles
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.one_side import one_sided
from torchrec_mtl.data.prefetch import prefetch
from torchrec_mtl.data.reader import ParquetReader
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.retrieval.metrics import InnerProduct, Pairs, retrieval_metrics
from torchrec_mtl.training.evaluation import Metrics

if TYPE_CHECKING:
    from torchrec_mtl.training.session import Session

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Shapes: N items, Q queries, K tasks, D of the vectors.


class Queries:
    """Collects one vector a query from the outputs of an evaluation: that of its first row.

    Attributes:
        keys: query -> its vector [D].
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.vectors: dict[int, Floats] = {}

    def watch(self, outputs: Iterable[StepOutput]) -> Iterator[StepOutput]:
        """Yield the outputs, and keep what is new."""
        for out in outputs:
            counts = (out.weights > 0).any(1)  # no padding, and no row of no task
            keys = out.ids["query"][counts].cpu().numpy()
            unique, first = np.unique(keys, return_index=True)
            new = [i for key, i in zip(unique.tolist(), first.tolist(), strict=True) if key not in self.vectors]
            vectors = out.vectors["query"][counts].sum(1).float().cpu().numpy()[new]
            self.vectors |= dict(zip(keys[new].tolist(), vectors, strict=True))
            yield out

    def gathered(self) -> dict[int, Floats]:
        """Return those of all ranks on rank 0, none elsewhere."""
        if world_size() == 1:
            return self.vectors
        parts: list[dict[int, Floats] | None] | None = [None] * world_size() if rank() == 0 else None
        dist.gather_object(self.vectors, parts, dst=0)
        found: dict[int, Floats] = {}
        for part in reversed(parts or ()):
            found |= part or {}
        return found


def corpus_metrics(
    session: Session, files: Sequence[DataFile], corpus: Sequence[DataFile], queries: Queries
) -> Metrics:
    """Rank the whole corpus for every query; return task -> metric -> value, the same on every rank.

    Args:
        session: in evaluation mode.
        files: that the queries came from.
        corpus: files of the items.
        queries: what `Queries` collected.
    """
    config = session.config.retrieval
    assert config is not None
    items = np.concatenate([*vectors_of(session, corpus, "item")])
    asked, found = queries.gathered(), list[Metrics | None]([None])
    if rank() == 0:
        found = [_metrics(session.config, config, files, corpus, asked, items)]
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    return found[0]


def vectors_of(session: Session, files: Sequence[DataFile], side: Side) -> Generator[Floats, None, None]:
    """Yield the vectors of rows of one side, in the order of the files: of users [n, K, D], of items [n, D].

    Every rank reads all rows, and gets all vectors.
    """
    config, name = session.config, {"user": "query", "item": "item"}[side]
    encoder = Encoder(config.data, config.features, config.tasks, session.statistics, labels=False)
    reader = ParquetReader(
        one_sided(files, config.features, side),
        encoder,
        batch_size=config.data.eval_batch_size or 4 * config.data.batch_size,
        streams=1,
        window=config.data.window,
        shuffle=False,
    )
    left, was_training = reader.num_rows, session.model.training
    session.model.eval()
    batches = prefetch(reader.epoch(0), config.data.prefetch)
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
    asked: Mapping[int, Floats],
    items: Floats,
) -> Metrics:
    if not asked:
        return {}
    places = _Places(retrieval, asked, _keys(corpus, retrieval.item))
    relevant: dict[str, list[tuple[Ints, Ints]]] = {task.name: [] for task in config.tasks}
    seen: list[tuple[Ints, Ints]] = []
    columns = [retrieval.query, retrieval.item, *([retrieval.seen] if retrieval.seen else [])]
    columns += [name for task in config.tasks for name in (task.label, task.space) if name is not None]
    for table in _tables(files, list(dict.fromkeys(columns))):
        queries, found = places.of(get_array(table, retrieval.query)), places.items(get_array(table, retrieval.item))
        if retrieval.seen is not None:
            seen.append(places.pairs(queries, get_array(table, retrieval.seen)))
        for task in config.tasks:
            wanted = _is_set(table, task.label) & (True if task.space is None else _is_set(table, task.space))
            wanted &= (queries >= 0) & (found >= 0)
            relevant[task.name].append((queries[wanted], found[wanted]))
    vectors = np.stack([asked[key] for key in places.queries])
    metrics = retrieval_metrics(
        InnerProduct(vectors, items),
        {task: _joined(pairs) for task, pairs in relevant.items()},
        retrieval.ks,
        seen=_joined(seen) if retrieval.seen else None,
    )
    return {task: {**values, **metrics.coverage} for task, values in metrics.tasks.items()}


class _Places:
    """Keys of queries and items to their places."""

    def __init__(self, config: RetrievalConfig, asked: Mapping[int, Floats], items: Ints) -> None:
        self.queries = sorted(asked)
        self._queries, self._items = np.array(self.queries, np.int64), items
        self._order = np.argsort(items, kind="stable")
        ordered = items[self._order]
        if (same := ordered[1:][ordered[1:] == ordered[:-1]]).size:
            raise ValueError(
                f"retrieval.items: {len(same)} rows name an item that another row names (the first is key {same[0]} of "
                f"column {config.item}); keep one row an item"
            )
        self._ordered = ordered

    def of(self, names: pa.Array) -> Ints:
        """Return the places of queries, -1 where there is none."""
        return _find(self._queries, encode_keys(names))

    def items(self, names: pa.Array) -> Ints:
        """Return the places of items in the corpus, -1 where there is none."""
        found = _find(self._ordered, encode_keys(names))
        return np.where(found >= 0, self._order[found], -1)

    def pairs(self, queries: Ints, lists: pa.Array) -> tuple[Ints, Ints]:
        """Return (query, item) of every item in the rows' lists, without unknown ones."""
        starts, lengths, elements = split_lists(lists)
        assert (starts[1:] == (starts + lengths)[:-1]).all()
        owners, found = np.repeat(queries, lengths), self.items(elements)
        known = (owners >= 0) & (found >= 0)
        return owners[known], found[known]


def _find(ordered: Ints, keys: Ints) -> Ints:
    if not len(ordered):
        return np.full(len(keys), -1)
    places = np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)
    return np.where(ordered[places] == keys, places, -1)


def _joined(pairs: Sequence[tuple[Ints, Ints]]) -> Pairs:
    queries, items = (np.concatenate([pair[i] for pair in pairs] or [np.zeros(0, np.int64)]) for i in (0, 1))
    return Pairs(queries, items)


def _keys(files: Sequence[DataFile], column: str) -> Ints:
    return np.concatenate([encode_keys(get_array(table, column)) for table in _tables(files, [column])])


def _tables(files: Sequence[DataFile], columns: Sequence[str]) -> Iterator[pa.Table]:
    for file in files:
        for group in range(len(file.row_groups)):
            yield file.read_row_group(group, columns)


def _is_set(table: pa.Table, column: str) -> npt.NDArray[np.bool_]:
    return to_doubles(get_array(table, column)) > 0  # not so for null, which is NaN
