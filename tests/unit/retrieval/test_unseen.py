"""Searches that leave out what was seen: against brute force, in every kind of index."""

import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.retrieval.index import IndexOptions, ItemIndex
from torchrec_mtl.retrieval.unseen import search_unseen

pytest.importorskip("faiss")
N, D, B, K = 60, 8, 12, 9
TASKS = ("click", "buy")
WEIGHTS = {"buy": 3.0}
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(N, D)).astype(np.float32)
QUERIES = RNG.normal(size=(B, len(TASKS), D)).astype(np.float32)
NAMES = [f"i{place}" for place in RNG.permutation(N)]

EXACT = {
    "flat": IndexOptions(),
    "ivf, all lists": IndexOptions(kind="ivf", lists=4, probes=4),
    "hnsw, all candidates": IndexOptions(kind="hnsw", ef_search=4 * N),
}
APPROXIMATE = {
    "ivf, one list": IndexOptions(kind="ivf", lists=12, probes=1),
    "hnsw, few candidates": IndexOptions(kind="hnsw", neighbours=2, ef_construction=2, ef_search=1),
}


def index_of(options):
    return ItemIndex.build(pa.array(NAMES), VECTORS, TASKS, options)


def seen_of(counts):
    """As many ids as told for each query, the best ones of each, and one that the index lacks."""
    order = np.argsort(-scores_of(), axis=1)
    lists = [[*(NAMES[i] for i in row[:count]), "elsewhere"] for row, count in zip(order, counts, strict=True)]
    return pa.array(lists, pa.list_(pa.string()))


def scores_of():
    return (QUERIES * np.float32([[[1], [3]]])).sum(1) @ VECTORS.T


def by_hand(seen, k):
    """The best k of each query, one item at a time."""
    found = []
    for hidden, mine in zip(seen.to_pylist(), scores_of().tolist(), strict=True):
        left = [(score, name) for name, score in zip(NAMES, mine, strict=True) if name not in hidden]
        best = sorted(left, reverse=True)[:k]
        found.append(best + [(-np.inf, None)] * (k - len(best)))
    return found


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize(
    "counts", [[0] * B, [*range(B)], [N] * B, [N - 2] * B, [0, N - 3] * (B // 2)], ids=lambda c: f"{c[0]}..{c[-1]}"
)
def test_what_is_found_is_the_best_of_what_was_not_seen(options, counts):
    seen = seen_of(counts)
    ids, scores = search_unseen(index_of(options), QUERIES, K, WEIGHTS, seen)
    rows = [ids.to_pylist()[i * K : (i + 1) * K] for i in range(B)]
    for row, mine, expected in zip(rows, scores, by_hand(seen, K), strict=True):
        assert row == [name for _, name in expected]
        np.testing.assert_allclose(mine, [score for score, _ in expected], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", APPROXIMATE.values(), ids=APPROXIMATE)
@pytest.mark.parametrize("count", [0, 3, N - K + 2])
def test_an_approximate_index_finds_nothing_that_was_seen_and_tells_where_there_is_no_more(options, count):
    seen = seen_of([count] * B)
    ids, scores = search_unseen(index_of(options), QUERIES, K, WEIGHTS, seen)
    names, score_of = ids.to_pylist(), [dict(zip(NAMES, mine, strict=True)) for mine in scores_of().tolist()]
    assert scores.shape == (B, K)
    for query, hidden in enumerate(seen.to_pylist()):
        row, mine = names[query * K : (query + 1) * K], scores[query]
        there = [name for name in row if name is not None]
        assert row == there + [None] * (K - len(there))  # empty places are the last
        assert not {*there} & {*hidden}
        assert len({*there}) == len(there)
        assert len(there) == min(K, N - count)
        np.testing.assert_allclose(mine[: len(there)], [score_of[query][name] for name in there], rtol=1e-4, atol=1e-5)
        assert (np.diff(mine[: len(there)]) <= 0).all()
        assert np.isneginf(mine[len(there) :]).all()


def test_an_empty_query_or_none_seen_is_as_a_plain_search():
    index = index_of(IndexOptions())
    plain_ids, plain = index.search(QUERIES, K, WEIGHTS)
    for seen in (None, pa.array([[]] * B, pa.list_(pa.string())), pa.array([None] * B, pa.list_(pa.string()))):
        ids, scores = search_unseen(index, QUERIES, K, WEIGHTS, seen)
        assert ids.equals(plain_ids.flatten())
        assert scores.tolist() == plain.tolist()
