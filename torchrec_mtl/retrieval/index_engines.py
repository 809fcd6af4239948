"""The three kinds of index in faiss behind one face. Whoever calls has checked what comes in.

Items are known by labels, whole numbers that grow: a label is never given to two items that are in an index at once.

Shapes: N vectors of width D, B queries, k results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from torchrec_mtl.retrieval.index_options import IndexOptions, Kind

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Found = tuple[Floats, Labels]
"""Scores [B, k], the largest first, and labels [B, k]. For k of at most the items that are there, all are found."""

_K_MEANS_ROUNDS = 10
_BLOCK = 1024  # queries


def import_faiss() -> Any:  # noqa: ANN401 - a module
    """Return the module faiss.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ImportError('faiss is missing; run: pip install "torchrec_mtl[retrieval]"') from error
    return faiss


class Engine(Protocol):
    """What an index of any kind does with vectors and labels."""

    index: Any
    """faiss's."""

    def add(self, vectors: Floats, labels: Labels) -> None:
        """Take vectors [N, D] with labels [N], which are larger than all that came before."""

    def remove(self, labels: Labels) -> None:
        """Forget labels that are there."""

    def search(self, queries: Floats, k: int, options: IndexOptions) -> Found:
        """Find large inner products with queries [B, D]."""

    def exact(self, queries: Floats, k: int) -> Found:
        """Find the largest inner products with queries [B, D], of all items."""


def build(vectors: Floats, labels: Labels, options: IndexOptions) -> Engine:
    """Return a new index of vectors [N, D] with labels [N], which start at 0; options are resolved."""
    with threads(options.threads):
        engine = _MAKERS[options.kind](vectors, options)
        engine.add(vectors, labels)
    return engine


def restore(index: Any, labels: Labels, options: IndexOptions) -> Engine:  # noqa: ANN401 - faiss's, without a type
    """Return the engine of an index that was read from a file, and of the labels [N] that are in it."""
    if options.kind == "hnsw":
        alive = np.zeros(index.ntotal, bool)
        alive[labels] = True
        return _Hnsw(index, alive)
    return _Flat(index) if options.kind == "flat" else _Ivf(index)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let faiss use so many threads."""
    faiss = import_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class _Flat:
    """All vectors, one after another."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401 - faiss's
        self.index = index

    @classmethod
    def make(cls, vectors: Floats, options: IndexOptions) -> _Flat:
        faiss = import_faiss()
        return cls(faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1])))

    def add(self, vectors: Floats, labels: Labels) -> None:
        self.index.add_with_ids(vectors, labels)

    def remove(self, labels: Labels) -> None:
        self.index.remove_ids(labels)

    def search(self, queries: Floats, k: int, options: IndexOptions) -> Found:
        return self.exact(queries, k)

    def exact(self, queries: Floats, k: int) -> Found:
        scores, labels = self.index.search(queries, k)
        return scores, labels


class _Ivf:
    """Lists of vectors.

    An item goes to the list whose centroid is nearest by distance, and a query to those of the largest inner product.
    faiss would use the inner product for both, with centroids of length 1: lists then mix long items with short ones,
    and the long ones, which most queries look for, are in all of them.
    """

    def __init__(self, index: Any) -> None:  # noqa: ANN401 - faiss's
        self.index = index

    @classmethod
    def make(cls, vectors: Floats, options: IndexOptions) -> _Ivf:
        faiss = import_faiss()
        dim = vectors.shape[1]
        kmeans = faiss.Kmeans(dim, options.lists, niter=_K_MEANS_ROUNDS, seed=options.seed, min_points_per_centroid=1)
        kmeans.train(vectors)
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(kmeans.centroids)
        index = faiss.IndexIVFFlat(quantizer, dim, options.lists, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
        return cls(index)

    def add(self, vectors: Floats, labels: Labels) -> None:
        faiss = import_faiss()
        nearest = faiss.IndexFlatL2(vectors.shape[1])
        nearest.add(faiss.downcast_index(self.index.quantizer).reconstruct_n(0, self.index.nlist))
        lists = np.ascontiguousarray(nearest.search(vectors, 1)[1][:, 0])
        self.index.add_core(len(vectors), *map(faiss.swig_ptr, (vectors, labels, lists)))

    def remove(self, labels: Labels) -> None:
        self.index.remove_ids(labels)

    def search(self, queries: Floats, k: int, options: IndexOptions) -> Found:
        assert options.probes is not None, "resolved"
        probes = options.probes
        scores, labels = self._search(queries, k, probes)
        while probes < self.index.nlist and (short := (labels < 0).any(1)).any():
            probes *= 2  # lists of long items are short
            scores[short], labels[short] = self._search(queries[short], k, probes)
        return scores, labels

    def exact(self, queries: Floats, k: int) -> Found:
        return self._search(queries, k, self.index.nlist)

    def _search(self, queries: Floats, k: int, probes: int) -> Found:
        params = import_faiss().SearchParametersIVF(nprobe=probes)
        # By blocks: faiss holds which lists to look at, for every query of a call.
        starts = range(0, max(1, len(queries)), _BLOCK)
        parts = [self.index.search(queries[start : start + _BLOCK], k, params=params) for start in starts]
        scores, labels = zip(*parts)
        return np.concatenate(scores), np.concatenate(labels)


class _Hnsw:
    """A graph of vectors.

    faiss cannot take an item out of it: removed ones stay as stepping stones, and are kept out of what is found.
    """

    def __init__(self, index: Any, alive: npt.NDArray[np.bool_]) -> None:  # noqa: ANN401 - faiss's
        self.index = index
        self.alive = alive

    @classmethod
    def make(cls, vectors: Floats, options: IndexOptions) -> _Hnsw:
        faiss = import_faiss()
        index = faiss.IndexHNSWFlat(vectors.shape[1], options.neighbours, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = options.ef_construction
        return cls(index, np.zeros(0, bool))

    def add(self, vectors: Floats, labels: Labels) -> None:
        assert labels[0] == self.index.ntotal, "faiss counts on from what it holds"
        self.index.add(vectors)
        self.alive = np.concatenate([self.alive, np.ones(len(labels), bool)])

    def remove(self, labels: Labels) -> None:
        self.alive[labels] = False

    def search(self, queries: Floats, k: int, options: IndexOptions) -> Found:
        assert options.ef_search is not None, "resolved"
        # Candidates include removed items: this many leave as many of the others as without removals.
        candidates = max(options.ef_search, k) * len(self.alive) // max(1, int(self.alive.sum()))
        params = import_faiss().SearchParametersHNSW(efSearch=min(candidates, len(self.alive)), sel=self._selector())
        scores, labels = self.index.search(queries, k, params=params)
        short = (labels < 0).any(1)
        if short.any():  # the walk ended early: among removed items, or in a part of the graph of its own
            scores[short], labels[short] = self.exact(queries[short], k)
        return scores, labels

    def exact(self, queries: Floats, k: int) -> Found:
        faiss = import_faiss()
        storage = faiss.downcast_index(self.index.storage)
        scores, labels = storage.search(queries, k, params=faiss.SearchParameters(sel=self._selector()))
        return scores, labels

    def _selector(self) -> Any:  # noqa: ANN401 - faiss's
        if self.alive.all():
            return None
        return import_faiss().IDSelectorBitmap(np.packbits(self.alive, bitorder="little"))


_MAKERS: Mapping[Kind, Callable[[Floats, IndexOptions], Engine]] = {
    "flat": _Flat.make,
    "ivf": _Ivf.make,
    "hnsw": _Hnsw.make,
}
