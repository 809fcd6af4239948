"""Exact retrieval metrics: every query ranks every item of the corpus, nothing is sampled or approximated.

Sampled candidates may order models otherwise than the corpus does: Krichene and Rendle, "On sampled metrics for item
recommendation", KDD 2020. Equal scores are ranked by the lower item index, so two runs agree, and a scorer that cannot
tell items apart ranks them by their indices. It gets no credit for its ties, unless the indices know something: where
they are given by popularity, a constant scorer is the popularity baseline. Number the items at random then.

Shapes: B queries, N items of the corpus, D dimensions, M pairs; b queries and n items of one block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from torchrec_mtl.data.rows import Floats, Ints

_Doubles = npt.NDArray[np.float64]

# A score and its item in one integer that sorts like (score, -item): the 32 bits of the score, put in order, above
# _LOW - item, for N < 2^32. Keys differ wherever items do, so there is one selection of the k largest, ties or not.
_LOW: Final = 0xFFFFFFFF
_NONE: Final = np.iinfo(np.int64).min  # below the key of any finite score: no item


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which items belong to which queries, in any order; a pair that is there twice counts once.

    Attributes:
        queries: [M] index of each pair's query.
        items: [M] index of its item in the corpus.
    """

    queries: Ints
    items: Ints

    def __post_init__(self) -> None:
        columns = (self.queries, self.items)
        if any(c.ndim != 1 or c.dtype.kind not in "iu" or c.shape != self.items.shape for c in columns):
            found = " and ".join(f"{c.dtype} {c.shape}" for c in columns)
            raise ValueError(f"pairs must be two columns of integers [M]: found {found}, name a query for each item")


class Scorer(Protocol):
    """Scores any block of queries against any block of items; the higher an item's score, the earlier its rank."""

    @property
    def num_queries(self) -> int:
        """B."""

    @property
    def num_items(self) -> int:
        """N."""

    def scores(self, queries: slice, items: slice) -> Floats:
        """Returns finite scores [b, n] for a block that has both bounds; the caller does not write into them."""


@dataclasses.dataclass(frozen=True)
class InnerProduct:
    """Scores an item by the inner product of its vector and the query's.

    The sum is taken in float64 and rounded to float32. In float32, BLAS adds up in an order that depends on where in
    the block an item stands: items of equal vectors would not tie, and block sizes would show in the ranking.

    Attributes:
        queries: [B, D] float32. Several query vectors with weights are one: their weighted sum.
        items: [N, D] float32.

    Raises:
        ValueError: for other shapes or dtypes, and values that are not finite.
    """

    queries: Floats
    items: Floats

    def __post_init__(self) -> None:
        both = {"queries": self.queries, "items": self.items}
        if any(v.ndim != 2 or v.dtype != np.float32 or v.shape[1:] != self.items.shape[1:] for v in both.values()):
            found = " and ".join(f"{name} {v.dtype} {v.shape}" for name, v in both.items())
            raise ValueError(f"vectors must be float32 [rows, D], with one D: found {found}, take both from one model")
        for name, vectors in both.items():
            _check_finite(f"vectors of {name}", vectors, "take a model that has not diverged, all of its rows")

    @property
    def num_queries(self) -> int:
        """B."""
        return len(self.queries)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.items)

    def scores(self, queries: slice, items: slice) -> Floats:
        """Returns inner products [b, n]."""
        products = self.queries[queries].astype(np.float64) @ self.items[items].astype(np.float64).T
        with np.errstate(over="ignore"):  # an infinite score is found, and named, by whoever ranks
            return products.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class RetrievalMetrics:
    """What `retrieval_metrics` finds.

    Attributes:
        tasks: For each task `queries`, the number of queries that have something to find, and `recall@k`, `ndcg@k` and
            `hit@k` for each k: means over these queries, nan where there are none.
        coverage: `coverage@k` for each k, the share of the corpus that stands in the top k of any query, those with
            nothing to find included; nan for an empty corpus.
    """

    tasks: Mapping[str, Mapping[str, float]]
    coverage: Mapping[str, float]


def retrieval_metrics(
    scorer: Scorer,
    relevant: Mapping[str, Pairs],
    ks: Sequence[int],
    *,
    seen: Pairs | None = None,
    block: int = 256,
    item_block: int = 4096,
) -> RetrievalMetrics:
    """Ranks the whole corpus for every query and measures where the relevant items stand.

    With h_r = 1 where rank r = 1, 2, ... holds one of a query's R relevant items, and 0 elsewhere:

    - recall@k = sum_{r <= k} h_r / R. It is R that divides, not min(R, k): a query with R > k cannot reach 1.
    - ndcg@k = sum_{r <= k} h_r / log2(r + 1), divided by the same sum for min(R, k) relevant items at the first ranks.
    - hit@k = 1 where any h_r with r <= k is 1, else 0.

    Args:
        scorer: `InnerProduct` of vectors, or any other.
        relevant: For each task, what each query should find.
        ks: Where to cut the ranking; a k beyond the corpus cuts nothing off.
        seen: What each query is not to find again, as its training items: not ranked for it, and not relevant to it.
        block: The most queries scored at once.
        item_block: The most items scored at once. No more than ``block * item_block`` scores are in memory.

    Returns:
        The metrics of each task, and what share of the corpus is shown.

    Raises:
        ValueError: for `ks` or blocks below 1, indices out of range, and scores that are not finite float32 [b, n].

    Example:
        >>> vectors, clicks = np.float32([[3], [2], [1]]), Pairs(np.array([0, 0]), np.array([1, 2]))
        >>> retrieval_metrics(InnerProduct(np.float32([[1]]), vectors), {"click": clicks}, [2]).tasks["click"]
        {'queries': 1.0, 'recall@2': 0.5, 'ndcg@2': 0.386..., 'hit@2': 1.0}
    """
    _check_positive(ks=ks, block=[block], item_block=[item_block])
    hidden = _codes("seen", seen, scorer)
    wanted = {t: _codes(f"relevant['{t}']", pairs, scorer) for t, pairs in relevant.items()}
    wanted = {t: np.setdiff1d(codes, hidden, assume_unique=True) for t, codes in wanted.items()}
    found: dict[str, list[_Doubles]] = {task: [np.empty((0, 3, len(ks)))] for task in wanted}
    shown = np.zeros((len(ks), scorer.num_items + 1), bool)  # the last, which -1 also names, stands for no item
    for rows, keys in _rank(scorer, max(ks), hidden, block, item_block):
        top = _split(keys)[0]
        for mark, k in zip(shown, ks):
            mark[top[:, :k]] = True
        for task, codes in wanted.items():
            found[task].append(_judge(top, rows, codes, scorer, ks))
    coverage = {f"coverage@{k}": mark[:-1].mean().item() if mark.size > 1 else np.nan for k, mark in zip(ks, shown)}
    return RetrievalMetrics({task: _means(np.concatenate(parts), ks) for task, parts in found.items()}, coverage)


def top_items(
    scorer: Scorer, k: int, *, seen: Pairs | None = None, block: int = 256, item_block: int = 4096
) -> tuple[Ints, Floats]:
    """Finds the k best items of each query, exactly, equal scores by the lower item index.

    Args:
        scorer: `InnerProduct` of vectors, or any other.
        k: How many items, also more than there are.
        seen: What is left out of each query's ranking.
        block: The most queries scored at once.
        item_block: The most items scored at once.

    Returns:
        Item indices [B, k], best first, and their scores [B, k]; -1 and -inf where fewer than k items are left.

    Raises:
        ValueError: for `k` or blocks below 1, indices out of range, and scores that are not finite float32 [b, n].

    Example:
        >>> vectors = InnerProduct(np.float32([[1]]), np.float32([[3], [5], [5]]))
        >>> top_items(vectors, 3, seen=Pairs(np.array([0]), np.array([0])))
        (array([[ 1,  2, -1]]), array([[  5.,   5., -inf]], dtype=float32))
    """
    _check_positive(k=[k], block=[block], item_block=[item_block])
    ranked = [keys for _, keys in _rank(scorer, k, _codes("seen", seen, scorer), block, item_block)]
    return _split(np.concatenate([np.empty((0, k), np.int64), *ranked]))


def _rank(scorer: Scorer, k: int, hidden: Ints, block: int, item_block: int) -> Iterator[tuple[slice, Ints]]:
    """Yields queries and the keys [b, k] of their best items, best first."""
    for start in range(0, scorer.num_queries, block):
        rows = slice(start, min(start + block, scorer.num_queries))
        best = np.full((rows.stop - rows.start, k), _NONE)
        _, own, item = _block(hidden, rows, scorer)
        for first in range(0, scorer.num_items, item_block):
            columns = slice(first, min(first + item_block, scorer.num_items))
            keys = np.empty((len(best), k + columns.stop - first), np.int64)
            keys[:, :k] = best
            _write_keys(keys[:, k:], _scores(scorer, rows, columns), columns)
            here = (item >= first) & (item < columns.stop)
            keys[own[here], k + item[here] - first] = _NONE
            keys.partition(columns.stop - first, axis=1)
            best = keys[:, -k:].copy()  # without the copy it would keep the whole block
        yield rows, np.sort(best, axis=1)[:, ::-1]


def _scores(scorer: Scorer, rows: slice, columns: slice) -> Floats:
    scores = scorer.scores(rows, columns)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    if scores.shape != shape or scores.dtype != np.float32:
        raise ValueError(f"scores must be float32 {shape}: found {scores.dtype} {scores.shape}, cast or slice them")
    _check_finite("scores", scores, "shorten vectors beyond float32, and give a low score where there is none")
    return scores


def _write_keys(keys: Ints, scores: Floats, columns: slice) -> None:
    keys[:] = _flip((scores + np.float32(0)).view(np.int32))  # -0.0 + 0 is 0.0, its equal
    keys <<= 32
    keys |= _LOW - np.arange(columns.start, columns.stop)


def _split(keys: Ints) -> tuple[Ints, Floats]:
    """Returns items and scores, -1 and -inf for no item."""
    none = keys == _NONE
    scores = _flip((keys >> 32).astype(np.int32)).view(np.float32)
    return np.where(none, -1, _LOW - (keys & _LOW)), np.where(none, np.float32(-np.inf), scores)


def _flip(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Returns integers that sort like the floats of these bits, or the bits again: below 0, floats sort backwards."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _codes(name: str, pairs: Pairs | None, scorer: Scorer) -> Ints:
    """Returns each pair once as ``query * N + item``, sorted."""
    if pairs is None:
        return np.empty(0, np.int64)
    queries, items = pairs.queries.astype(np.int64), pairs.items.astype(np.int64)
    for kind, found, total in (("query", queries, scorer.num_queries), ("item", items, scorer.num_items)):
        if len(found) and not 0 <= found.min() <= found.max() < total:
            span = f"found {found.min()} to {found.max()} where the scorer has {total}, from 0"
            raise ValueError(f"{name}: a {kind} index is out of range: {span}; leave out pairs of any other {kind}")
    return np.unique(queries * scorer.num_items + items)


def _block(codes: Ints, rows: slice, scorer: Scorer) -> tuple[Ints, Ints, Ints]:
    """Returns the codes [m] of the queries of a block, the row [m] of each in the block, and its item [m]."""
    size = max(scorer.num_items, 1)  # without items there are no codes
    first, last = np.searchsorted(codes, [rows.start * size, rows.stop * size])
    query, item = np.divmod(codes[first:last], size)
    return codes[first:last], query - rows.start, item


def _judge(top: Ints, rows: slice, codes: Ints, scorer: Scorer, ks: Sequence[int]) -> _Doubles:
    """Returns recall, ndcg and hit [queries with anything to find, 3, len(ks)] for rankings [b, max k]."""
    own, row, _ = _block(codes, rows, scorer)
    sizes = np.bincount(row, minlength=len(top))
    busy = np.flatnonzero(sizes)
    top, sizes = top[busy], sizes[busy]
    hits = (top >= 0) & np.isin((rows.start + busy)[:, None] * scorer.num_items + top, own)
    cuts = np.array(ks)
    counts = hits.cumsum(axis=1)[:, cuts - 1]
    gains = 1 / np.log2(np.arange(2, max(ks) + 2))
    ideal = gains.cumsum()[np.minimum(sizes[:, None], cuts) - 1]
    ndcg = (hits * gains).cumsum(axis=1)[:, cuts - 1] / ideal  # added up in the ideal's order: at most 1, and 1 exactly
    return np.stack([counts / sizes[:, None], ndcg, counts > 0], axis=1)


def _means(found: _Doubles, ks: Sequence[int]) -> dict[str, float]:
    """Returns the means of recall, ndcg and hit [queries, 3, len(ks)] by name."""
    means = found.mean(axis=0) if len(found) else np.full(found.shape[1:], np.nan)
    metrics = {"queries": float(len(found))}
    for k, values in zip(ks, means.T):
        metrics |= zip((f"recall@{k}", f"ndcg@{k}", f"hit@{k}"), values.tolist())
    return metrics


def _check_positive(**numbers: Sequence[int]) -> None:
    for name, values in numbers.items():
        if min(values, default=0) < 1:
            raise ValueError(f"{name} must be at least 1: found {list(values)}, pass how many to take")


def _check_finite(name: str, values: Floats, advice: str) -> None:
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(f"{name} must be finite: found {wrong} nan or inf of {values.size} values, {advice}")
