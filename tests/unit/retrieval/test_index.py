"""The item index: exact where it says so, near to it elsewhere, and always k items that are there, whatever is removed.

Shapes: N items, D width, B queries, K tasks.
"""

import faiss
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from torchrec_mtl.retrieval.index import IndexOptions, ItemIndex

KINDS = ("flat", "ivf", "hnsw")
TASKS = ("click", "purchase")
# One probe: what lists miss must be looked for elsewhere.
OPTIONS = {"flat": IndexOptions(), "ivf": IndexOptions("ivf", lists=3, probes=1), "hnsw": IndexOptions("hnsw")}
EXACT = {"flat": IndexOptions(), "ivf": IndexOptions("ivf", lists=3, probes=3)}


def whole(rng, *shape):
    """Small whole numbers as floats: their products are exact, and many are equal."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def catalogue(rng, num_items, dim=16, spread=0.8):
    """Clusters whose items vary in length, as those of popular items do, and queries that look for them."""
    centres = rng.standard_normal((30, dim))
    vectors = centres[rng.integers(0, 30, num_items)] + 0.6 * rng.standard_normal((num_items, dim))
    vectors *= np.exp(spread * rng.standard_normal((num_items, 1)))
    queries = centres[rng.integers(0, 30, 60)] + 0.8 * rng.standard_normal((60, dim))
    return vectors.astype(np.float32), np.stack([queries, queries[::-1] / 2], 1).astype(np.float32)


def reference(vectors, queries, k, weights=(1, 1)):
    """All scores [B, N], and the k largest [B, k] of each query: one loop a line of the definition."""
    scores = np.zeros((len(queries), len(vectors)))
    for w, q in zip(weights, queries.transpose(1, 0, 2)):
        scores += w * (q.astype(np.float64) @ vectors.T.astype(np.float64))
    return scores, -np.sort(-scores, axis=1)[:, :k]


def check_found(found, held, queries, k, exact):
    """What was found is in the index, once, with its own score, the largest first; and nothing is better, if exact."""
    ids, scores = found
    names = list(held)
    vectors = np.array(list(held.values()), np.float32).reshape(len(held), queries.shape[2])
    expected, best = reference(vectors, queries, k)
    count = min(k, len(held))
    for row, (rows_ids, row_scores) in enumerate(zip(ids.to_pylist(), scores)):
        assert len(rows_ids) == len(row_scores) == k
        assert None not in rows_ids[:count]
        assert len(set(rows_ids[:count])) == count
        assert rows_ids[count:] == [None] * (k - count)
        assert (row_scores[count:] == -np.inf).all()
        assert row_scores[:count].tolist() == [expected[row, names.index(i)] for i in rows_ids[:count]]
        assert (np.diff(row_scores[:count]) <= 0).all()
        if exact:
            assert row_scores[:count].tolist() == best[row].tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changes_leave_what_is_there_to_be_found(kind, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    options = data.draw(st.sampled_from([OPTIONS[kind], EXACT.get(kind, OPTIONS[kind])]))
    held = {f"i{n}": whole(rng, 3) for n in range(data.draw(st.integers(3, 30)))}
    index = ItemIndex.build(pa.array(list(held)), np.stack(list(held.values())), TASKS, options)
    came = len(held)
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            new = {f"i{n}": whole(rng, 3) for n in range(came, came + data.draw(st.integers(0, 9)))}
            index.add(pa.array(list(new), pa.string()), np.array(list(new.values()), np.float32).reshape(-1, 3))
            held |= new
            came += len(new)
        else:
            gone = data.draw(st.lists(st.sampled_from(sorted(held)), unique=True)) if held else []
            index.remove(pa.array(gone, pa.string()))
            held = {name: vector for name, vector in held.items() if name not in gone}
        queries, k = whole(rng, 2, 2, 3), data.draw(st.integers(1, 40))
        check_found(index.search(queries, k), held, queries, k, exact=options == EXACT.get(kind))
        assert index.ids.to_pylist() == list(held)
        assert len(index) == len(held)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_weighted_sums_over_tasks(kind):
    rng = np.random.default_rng(0)
    vectors, queries = whole(rng, 50, 4), whole(rng, 7, 2, 4)
    index = ItemIndex.build(pa.array(range(50)), vectors, TASKS, OPTIONS[kind])
    for weights, row in (
        ({"purchase": 4}, (1, 4)),
        ({"click": 0}, (0, 1)),
        ({"click": -1, "purchase": 0.5}, (-1, 0.5)),
    ):
        _, best = reference(vectors, queries, 50, row)
        np.testing.assert_array_equal(index.search(queries, 50, weights)[1], best)
    np.testing.assert_array_equal(index.search(queries, 50)[1], index.search(queries, 50, {})[1])


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_defaults_find_nearly_all_where_lengths_vary(kind):
    vectors, queries = catalogue(np.random.default_rng(1), 4000)
    index = ItemIndex.build(pa.array(range(4000)), vectors, TASKS, IndexOptions(kind))
    assert index.recall(queries, 50) > 0.95


def test_recall_is_the_share_of_the_best_that_is_found():
    vectors, queries = catalogue(np.random.default_rng(2), 3000)
    ids = np.random.default_rng(0).permutation(3000)
    index = ItemIndex.build(pa.array(ids), vectors, TASKS, IndexOptions("ivf", probes=2))
    scores, _ = reference(vectors, queries, 20, (1, 3))
    best = ids[np.argsort(-scores, axis=1)[:, :20]]
    found = index.search(queries, 20, {"purchase": 3})[0].to_pylist()
    share = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(best.tolist(), found)])
    assert 0.1 < share < 0.95
    assert index.recall(queries, 20, {"purchase": 3}) == pytest.approx(share)
    assert index.recall(queries, 20) != pytest.approx(share)
    index.tune(probes=index.options.lists)
    assert index.recall(queries, 20) == 1


def test_lists_by_distance_find_more_than_those_of_faiss():
    vectors, queries = catalogue(np.random.default_rng(3), 8000)
    best = np.argsort(-reference(vectors, queries, 10)[0], axis=1)[:, :10]
    index = ItemIndex.build(pa.array(range(8000)), vectors, TASKS, IndexOptions("ivf", lists=200, probes=20))

    def recall_of(plain):
        plain.add(vectors)  # to the list of the largest inner product
        found = plain.search(queries.sum(1), 10, params=faiss.SearchParametersIVF(nprobe=20))[1]
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best.tolist(), found.tolist())])

    plain = faiss.index_factory(16, "IVF200,Flat", faiss.METRIC_INNER_PRODUCT)
    plain.cp.min_points_per_centroid = 1
    plain.train(vectors)
    assert index.recall(queries, 10) > recall_of(plain) + 0.15
    same_lists = faiss.IndexIVFFlat(index._engine.index.quantizer, 16, 200, faiss.METRIC_INNER_PRODUCT)
    same_lists.is_trained = True
    assert index.recall(queries, 10) > recall_of(same_lists) + 0.03


def test_a_graph_whose_items_are_mostly_gone_still_finds_the_best():
    rng = np.random.default_rng(4)
    vectors, queries = catalogue(rng, 4000)
    index = ItemIndex.build(pa.array(range(4000)), vectors, TASKS, IndexOptions("hnsw"))
    best = np.argsort(-reference(vectors, queries, 10)[0], axis=1)[:, :10]
    gone = np.union1d(best, rng.choice(4000, 3000, replace=False))  # what the walk leads to, and most of the rest
    index.remove(pa.array(gone))
    ids = index.search(queries, 100)[0].flatten()
    assert ids.null_count == 0
    assert not np.isin(ids.to_numpy(), gone).any()
    assert index.recall(queries, 100) > 0.95


def test_items_that_no_walk_reaches_are_found_when_all_are_asked_for():
    vectors, queries = catalogue(np.random.default_rng(3), 300)
    index = ItemIndex.build(pa.array(range(300)), vectors, TASKS, IndexOptions("hnsw", neighbours=2, ef_construction=2))
    walked = index._engine.index.search(queries.sum(1), 300, params=faiss.SearchParametersHNSW(efSearch=300))[1]
    assert (walked < 0).any(), "else this graph would not need a second look"
    assert all(sorted(row) == list(range(300)) for row in index.search(queries, 300)[0].to_pylist())


def test_harder_searches_find_more():
    vectors, queries = catalogue(np.random.default_rng(5), 4000)
    for kind, setting, low, high in (("ivf", "probes", 1, 40), ("hnsw", "ef_search", 1, 400)):
        index = ItemIndex.build(pa.array(range(4000)), vectors, TASKS, IndexOptions(kind))
        index.tune(**{setting: low})
        before = index.recall(queries, 10)
        index.tune(**{setting: high})
        assert index.recall(queries, 10) > before
        assert getattr(index.options, setting) == high
    with pytest.raises(ValueError, match="probes is a setting of kind 'ivf', and the kind is 'hnsw'"):
        index.tune(probes=3)


@pytest.mark.parametrize("kind", KINDS)
def test_building_twice_makes_the_same_index(kind):
    vectors, _ = catalogue(np.random.default_rng(6), 2000)

    def built(**options):
        index = ItemIndex.build(pa.array(range(2000)), vectors, TASKS, IndexOptions(kind, **options))
        return faiss.serialize_index(index._engine.index)

    np.testing.assert_array_equal(built(), built())
    if kind == "ivf":
        assert not np.array_equal(built(seed=1), built())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [np.zeros((40, 3)), np.ones((40, 3)), np.eye(1, 3)])
def test_vectors_that_cannot_be_told_apart(kind, vectors):
    index = ItemIndex.build(pa.array(range(len(vectors))), vectors.astype(np.float32), TASKS, IndexOptions(kind))
    ids, scores = index.search(np.ones((1, 2, 3), np.float32), 40)
    assert sorted(i for i in ids.to_pylist()[0] if i is not None) == list(range(len(vectors)))
    assert set(scores[0, : len(vectors)].tolist()) == {2 * vectors[0].sum()}


@pytest.mark.parametrize("kind", KINDS)
def test_no_queries_and_no_items_left(kind):
    index = ItemIndex.build(pa.array(["a"]), np.ones((1, 3), np.float32), TASKS, IndexOptions(kind))
    ids, scores = index.search(np.zeros((0, 2, 3), np.float32), 5)
    assert (len(ids), scores.shape) == (0, (0, 5))
    index.remove(pa.array(["a"]))
    queries = np.ones((2, 2, 3), np.float32)
    ids, scores = index.search(queries, 2)
    assert ids.to_pylist() == [[None, None]] * 2
    assert (scores == -np.inf).all()
    with pytest.raises(ValueError, match="recall of 2 queries, 0 items each"):
        index.recall(queries, 3)
    index.add(pa.array(["a"]), np.full((1, 3), 2, np.float32))
    assert index.search(queries, 2)[0].to_pylist() == [["a", None]] * 2


def test_settings_left_out_are_filled_in():
    vectors = np.ones((100, 3), np.float32)
    index = ItemIndex.build(pa.array(range(100)), vectors, TASKS, IndexOptions("ivf"))
    assert index.options == IndexOptions("ivf", lists=40, probes=64, seed=0)
    assert (index.dim, index.tasks, len(index)) == (3, TASKS, 100)


def test_building_and_adding_take_the_threads_they_are_given_and_give_them_back(monkeypatch):
    before, taken, set_threads = faiss.omp_get_max_threads(), [], faiss.omp_set_num_threads
    monkeypatch.setattr(faiss, "omp_set_num_threads", lambda count: (taken.append(count), set_threads(count)))
    index = ItemIndex.build(pa.array([1]), np.ones((1, 3), np.float32), TASKS, IndexOptions(threads=before + 2))
    assert (taken, faiss.omp_get_max_threads()) == ([before + 2, before], before)
    index.add(pa.array([2]), np.ones((1, 3), np.float32))
    assert (taken, faiss.omp_get_max_threads()) == ([before + 2, before] * 2, before)
