"""What a search found for the queries of the training rows: hard negatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import get_array, split_lists, to_doubles
from torchrec_mtl.data.columns import found_column
from torchrec_mtl.data.files import DataFile, read_tables
from torchrec_mtl.data.ids import encode_keys
from torchrec_mtl.data.lookup import Lookup
from torchrec_mtl.data.rows import Ints

# Shapes: Q queries, M items found for all of them, N items of the corpus.


class Found:
    """Items by query.

    Args:
        queries: [M] keys.
        items: [M] places in the corpus.
    """

    def __init__(self, queries: Ints, items: Ints) -> None:
        """See the class."""
        order = np.argsort(queries, kind="stable")
        keys, self._starts, self._lengths = np.unique(queries[order], return_index=True, return_counts=True)
        self._items, self._queries = items[order], Lookup(keys)

    def pick(self, queries: Ints, luck: npt.NDArray[np.float64]) -> Ints:
        """Return one of the items found for each query, -1 where there is none.

        Args:
            queries: keys, of any shape.
            luck: numbers in 0 .. 1 of the same shape.
        """
        places = self._queries.find(queries.ravel())
        if not len(self._items):
            return places.reshape(queries.shape)
        lengths = self._lengths[places]
        picked = self._starts[places] + np.minimum((luck.ravel() * lengths).astype(np.int64), lengths - 1)
        return np.where(places < 0, -1, self._items[picked]).reshape(queries.shape)


def read_found(
    files: Sequence[DataFile],
    train: Sequence[DataFile],
    retrieval: RetrievalConfig,
    tasks: Sequence[TaskConfig],
    items: Lookup,
) -> Found:
    """Read what was found, but for what the query has a positive label of in the training data.

    Args:
        files: that a search wrote.
        train: the training data.
        retrieval: names the columns.
        tasks: whose labels count.
        items: keys of the corpus.

    Raises:
        ValueError: nothing is left.
    """
    queries, found, ids = list[Ints](), list[Ints](), found_column().name
    for table in read_tables(files, [retrieval.query, ids]):
        _, lengths, elements = split_lists(get_array(table, ids))
        queries.append(np.repeat(encode_keys(get_array(table, retrieval.query)), lengths))
        found.append(items.find(encode_keys(elements)))
    owners, places = np.concatenate(queries), np.concatenate(found)
    asked = Lookup(np.unique(owners))
    liked = _positives(train, retrieval, tasks, asked, items)
    kept = (places >= 0) & ~np.isin(_pair(asked.find(owners), places), liked)
    if not kept.any():
        raise ValueError(
            "retrieval.negatives.found: no item is left of what was found; its items are not in retrieval.items, or "
            "all are positives of their query. Search for more items a query (-k)"
        )
    return Found(owners[kept], places[kept])


def _positives(
    train: Sequence[DataFile], retrieval: RetrievalConfig, tasks: Sequence[TaskConfig], queries: Lookup, items: Lookup
) -> Ints:
    labels, found = [task.label for task in tasks], list[Ints]()
    for table in read_tables(train, [retrieval.query, retrieval.item, *labels]):
        liked = np.any([to_doubles(get_array(table, label)) > 0 for label in labels], axis=0)
        rows = queries.find(encode_keys(get_array(table, retrieval.query)))
        places = items.find(encode_keys(get_array(table, retrieval.item)))
        found.append(np.unique(_pair(rows, places)[liked & (rows >= 0) & (places >= 0)]))
    return np.unique(np.concatenate(found))


def _pair(rows: Ints, places: Ints) -> Ints:
    """Return one number a pair."""
    return (rows << 32) | (places & 0xFFFFFFFF)
