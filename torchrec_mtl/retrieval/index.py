"""An index of the items of a retrieval student: the items of the largest scores for a user, without a model.

A student's score is a sum over tasks of inner products, sum_k w_k <q_k, v>, of a query a task and one vector an item.
It is the inner product of v and of the weighted sum of queries, so one index of plain vectors serves every weighting.

Needs numpy, pyarrow and faiss, and neither torch nor torchrec: ``pip install "torchrec_mtl[retrieval]"``.

Shapes: N items, D width of vectors, B queries, K tasks, k results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.retrieval import index_files
from torchrec_mtl.retrieval.index_engines import Engine, Floats, Labels, build, restore, threads
from torchrec_mtl.retrieval.index_inputs import (
    check_ids,
    check_same_type,
    check_tasks,
    check_vectors,
    fold_queries,
    name_some,
)
from torchrec_mtl.retrieval.index_options import IndexOptions

__all__ = ["IndexOptions", "ItemIndex"]


class ItemIndex:
    """Items by id, searched by inner product; made by ``build`` or ``load``.

    Searches may run in several threads at once; ``add``, ``remove`` and ``tune`` may not run beside anything.

    Example:
        >>> vectors = np.array([[1, 0], [0, 1], [2, 2]], np.float32)
        >>> index = ItemIndex.build(pa.array(["a", "b", "c"]), vectors, ["click", "purchase"])
        >>> queries = np.array([[[1, 0], [0, 3]]], np.float32)  # one user; a query a task
        >>> ids, scores = index.search(queries, 2)
        >>> ids.to_pylist(), scores.tolist()
        ([['c', 'b']], [[8.0, 3.0]])
        >>> ids, scores = index.search(queries, 2, {"purchase": 0})
        >>> ids.to_pylist(), scores.tolist()
        ([['c', 'a']], [[2.0, 1.0]])
    """

    def __init__(
        self,
        engine: Engine,
        ids: pa.Array,
        labels: Labels,
        tasks: tuple[str, ...],
        options: IndexOptions,
        notes: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._ids = ids
        self._labels = labels  # [N], ascending
        self._tasks = tasks
        self._options = options
        self._notes = dict(notes)

    @classmethod
    def build(
        cls,
        ids: pa.Array | pa.ChunkedArray,
        vectors: Floats,
        tasks: Sequence[str],
        options: IndexOptions | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> ItemIndex:
        """Build an index.

        Args:
            ids: [N], of any Arrow type with equality (integers, strings), each once.
            vectors: [N, D] of floats, kept as float32.
            tasks: K names, in the order of the queries' tasks.
            options: kind and settings [exact].
            notes: kept with it, such as what made the vectors.

        Raises:
            ValueError: no items, ids that are null or there twice, or vectors that do not fit them or are not finite.
            ImportError: faiss is not installed.
        """
        names = check_tasks(tasks)
        array = check_ids(ids)
        rows = check_vectors(vectors, len(array))
        if not len(array):
            raise ValueError("no items to build an index of; give at least one")
        settings = (options or IndexOptions()).resolved(len(array))
        labels = np.arange(len(array))
        return cls(build(rows, labels, settings), array, labels, names, settings, notes or {})

    @classmethod
    def load(cls, folder: str | Path) -> ItemIndex:
        """Read what ``save`` wrote.

        Raises:
            ValueError: there is no index, its format is another one, or it is not whole.
            ImportError: faiss is not installed.
        """
        stored = index_files.read(folder)
        about = stored.about
        try:
            options, tasks = IndexOptions(**about["options"]), check_tasks(about["tasks"])
            notes = {str(name): str(value) for name, value in about["notes"].items()}
            engine = restore(stored.index, stored.labels, options)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the index in {folder} says what cannot be: {error!r}; save it again") from error
        return cls(engine, stored.ids, stored.labels, tasks, options, notes)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder of its own: ``index.faiss``, ``ids.parquet`` and ``index.json``.

        An index that is there is replaced when the new one is whole: stopped anywhere, ``load`` finds one of them. One
        process may save to a folder at a time. One that loads during a save may find parts of both, and says so where
        it can tell: give a folder to each version where that matters.

        Raises:
            ValueError: the folder holds anything else.
        """
        about = {
            "dim": self.dim,
            "tasks": self._tasks,
            "options": dataclasses.asdict(self._options),
            "notes": self._notes,
        }
        index_files.write(folder, index_files.Stored(self._engine.index, self._ids, self._labels, about))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> pa.Array:
        """[N] ids, in the order in which they came."""
        return self._ids

    @property
    def dim(self) -> int:
        """D, width of vectors."""
        return int(self._engine.index.d)

    @property
    def tasks(self) -> tuple[str, ...]:
        """K names."""
        return self._tasks

    @property
    def options(self) -> IndexOptions:
        """Kind and settings, those that were left out filled in."""
        return self._options

    @property
    def notes(self) -> Mapping[str, str]:
        """What was noted when it was built."""
        return MappingProxyType(self._notes)

    def search(
        self, queries: Floats, k: int, weights: Mapping[str, float] | None = None
    ) -> tuple[pa.FixedSizeListArray, Floats]:
        """Find the items of the largest scores sum_k w_k <q_k, v>.

        Args:
            queries: [B, K, D] of floats.
            k: how many items a query.
            weights: task -> w_k; 1 for tasks that it leaves out. Negative ones are allowed.

        Returns:
            ids [B, k], a list of k a query, and scores [B, k], the largest first. In an index of fewer than k items,
            the last ids are null, and their scores -inf; otherwise there are always k, of any kind of index.

        Raises:
            ValueError: queries of another shape or not finite, or a weight of a task that is not there.
        """
        folded = fold_queries(queries, self._tasks, self.dim, weights)
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k}")
        scores, labels = self._engine.search(folded, max(1, min(k, len(self))), self._options)  # faiss refuses k = 0
        beyond = ((0, 0), (0, k - scores.shape[1]))
        labels = np.pad(labels, beyond, constant_values=-1)
        missing = labels < 0
        scores = np.where(missing, np.float32(-np.inf), np.pad(scores, beyond))
        places = pa.array(np.searchsorted(self._labels, labels).ravel(), mask=missing.ravel())
        return pa.FixedSizeListArray.from_arrays(self._ids.take(places), k), scores

    def recall(self, queries: Floats, k: int, weights: Mapping[str, float] | None = None) -> float:
        """Return the share of the k items of the largest scores that ``search`` finds, over all queries [B, K, D].

        An item whose score equals that of the last of the k may be counted as missing.

        Raises:
            ValueError: as ``search``, or no queries, or no items.
        """
        folded = fold_queries(queries, self._tasks, self.dim, weights)
        k = min(k, len(self))
        if k < 1 or not len(folded):
            raise ValueError(f"recall of {len(folded)} queries, {k} items each; give at least one of both")
        rows = np.arange(len(folded))[:, None] * self._next_label()
        found, exact = self._engine.search(folded, k, self._options)[1], self._engine.exact(folded, k)[1]
        return float(np.isin(exact + rows, found + rows).mean())

    def add(self, ids: pa.Array | pa.ChunkedArray, vectors: Floats) -> None:
        """Add items, without building the rest again. ``ivf`` keeps the lists that it was built with.

        Args:
            ids: [N], new ones, of the type of those that are there.
            vectors: [N, D] of floats.

        Raises:
            ValueError: as ``build``, or some ids are in the index (to replace an item, remove it first). Nothing
                changes then.
        """
        array = check_ids(ids)
        check_same_type(array, self._ids)
        rows = check_vectors(vectors, len(array), self.dim)
        known = array.filter(pc.is_in(array, value_set=self._ids))
        if len(known):
            raise ValueError(f"{len(known)} ids are in the index already: {name_some(known)}; remove them first")
        if not len(array):
            return
        first = self._next_label()
        labels = np.arange(first, first + len(array))
        with threads(self._options.threads):
            self._engine.add(rows, labels)
        self._ids = pa.concat_arrays([self._ids, array])
        self._labels = np.concatenate([self._labels, labels])

    def remove(self, ids: pa.Array | pa.ChunkedArray) -> None:
        """Remove items, without building the rest again.

        ``hnsw`` keeps their vectors, and walks over them: searches slow down as their share grows. Build it again when
        many are gone.

        Args:
            ids: some that are there, of their type.

        Raises:
            ValueError: some are not in the index, or are given twice. Nothing changes then.
        """
        array = check_ids(ids)
        check_same_type(array, self._ids)
        unknown = array.filter(pc.invert(pc.is_in(array, value_set=self._ids)))
        if len(unknown):
            raise ValueError(f"{len(unknown)} ids are not in the index: {name_some(unknown)}; leave them out")
        if not len(array):
            return
        gone = pc.is_in(self._ids, value_set=array)
        mask = gone.to_numpy(zero_copy_only=False)
        self._engine.remove(self._labels[mask])
        self._ids = self._ids.filter(pc.invert(gone))
        self._labels = self._labels[~mask]

    def tune(self, *, probes: int | None = None, ef_search: int | None = None) -> None:
        """Change how hard searches look, without building again; what is left out stays as it is.

        Raises:
            ValueError: a setting of another kind, or a number below 1.
        """
        now = self._options
        self._options = dataclasses.replace(
            now,
            probes=now.probes if probes is None else probes,
            ef_search=now.ef_search if ef_search is None else ef_search,
        )

    def _next_label(self) -> int:
        """Return a label above all that are there, in ``hnsw`` the removed ones too."""
        last = int(self._labels[-1]) if len(self._labels) else -1
        return max(last + 1, int(self._engine.index.ntotal))
