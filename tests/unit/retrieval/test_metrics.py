"""Rankings and metrics against full sorts in plain Python: ties, what was seen, blocks of every size, empty inputs."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchrec_mtl.retrieval.metrics import InnerProduct, Pairs, RetrievalMetrics, retrieval_metrics, top_items


@dataclasses.dataclass
class Table:
    """Scores that are there already, and what was asked of them."""

    table: np.ndarray
    asked: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def num_queries(self):
        return self.table.shape[0]

    @property
    def num_items(self):
        return self.table.shape[1]

    def scores(self, queries, items):
        found = self.table[queries, items]
        self.asked.append((queries.stop - queries.start, items.stop - items.start))
        return found


def pairs(found):
    queries, items = zip(*found) if found else ((), ())
    return Pairs(np.array(queries, np.int64), np.array(items, np.int64))


def ranking(scores, seen, query):
    """All items that are not seen: by score, downwards, then by index."""
    left = [item for item in range(scores.shape[1]) if (query, item) not in seen]
    return sorted(left, key=lambda item: (-scores[query, item], item))


def reference(scores, relevant, seen, k):
    """The mean of recall, ndcg and hit, and how many queries it is of."""
    rows = []
    for query in range(len(scores)):
        wanted = {item for q, item in relevant if q == query and (q, item) not in seen}
        top = ranking(scores, seen, query)[:k]
        gains = [1 / math.log2(rank + 2) for rank in range(k)]
        hits = [item in wanted for item in top]
        if wanted:
            dcg = sum(gain for gain, hit in zip(gains, hits) if hit)
            rows.append((sum(hits) / len(wanted), dcg / sum(gains[: len(wanted)]), float(any(hits))))
    return [sum(column) / len(rows) for column in zip(*rows)] if rows else [math.nan] * 3, len(rows)


@st.composite
def cases(draw):
    """Scores of few values, so that ties are the rule, and pairs that may be there twice or be seen too."""
    shape = draw(st.tuples(st.integers(0, 6), st.integers(0, 9)))
    values = st.sampled_from([-1.5, -1.0, -0.0, 0.0, 1e-40, 2.0, 3e38])
    size = shape[0] * shape[1]
    scores = np.array(draw(st.lists(values, min_size=size, max_size=size)), np.float32).reshape(shape)
    pair = st.tuples(*(st.integers(0, max(length - 1, 0)) for length in shape))
    pairs_of = st.lists(pair, max_size=20 if size else 0)
    return scores, draw(pairs_of), draw(pairs_of)


BLOCKS = st.fixed_dictionaries({"block": st.integers(1, 8), "item_block": st.integers(1, 11)})


@settings(max_examples=200)
@given(cases(), st.integers(1, 12), BLOCKS)
def test_top_items_equal_a_full_sort(case, k, blocks):
    scores, _, seen = case
    items, values = top_items(Table(scores), k, seen=pairs(seen), **blocks)
    assert items.dtype == np.int64
    assert values.dtype == np.float32
    assert items.shape == values.shape == (len(scores), k)
    for query in range(len(scores)):
        expected = ranking(scores, seen, query)[:k]
        padding = k - len(expected)
        assert items[query].tolist() == expected + [-1] * padding
        assert values[query].tolist() == [*scores[query, expected], *[-np.inf] * padding]


@settings(max_examples=200)
@given(cases(), st.lists(st.integers(1, 12), min_size=1, max_size=3), BLOCKS)
def test_metrics_equal_a_full_sort(case, ks, blocks):
    scores, relevant, seen = case
    found = retrieval_metrics(Table(scores), {"click": pairs(relevant)}, ks, seen=pairs(seen), **blocks)
    shown = {k: {i for q in range(len(scores)) for i in ranking(scores, seen, q)[:k]} for k in ks}
    for k in ks:
        means, count = reference(scores, relevant, seen, k)
        names = (f"recall@{k}", f"ndcg@{k}", f"hit@{k}")
        np.testing.assert_allclose([found.tasks["click"][name] for name in names], means, rtol=1e-12)
        assert found.tasks["click"]["queries"] == count
        expected = len(shown[k]) / scores.shape[1] if scores.shape[1] else math.nan
        np.testing.assert_allclose(found.coverage[f"coverage@{k}"], expected, rtol=1e-12)


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(FINITE, min_size=1, max_size=20))
@example([np.finfo(np.float32).max, np.finfo(np.float32).min, np.finfo(np.float32).smallest_subnormal, 0.0])
def test_every_finite_score_keeps_its_order_and_its_value(scores):
    table = np.float32([scores])
    items, values = top_items(Table(table), len(scores))
    assert items[0].tolist() == ranking(table, [], 0)
    np.testing.assert_array_equal(values, table[0, items])


def test_the_two_zeros_tie():
    assert top_items(Table(np.float32([[-0.0, 0.0, -0.0]])), 3)[0].tolist() == [[0, 1, 2]]


def test_ndcg_recall_and_hit_by_hand():
    # Ranks 1 to 5 hold the items 4, 3, 2, 1, 0; three of them are relevant, at the ranks 2, 3 and 5.
    found = retrieval_metrics(Table(np.float32([[1, 2, 3, 4, 5]])), {"buy": pairs([(0, 0), (0, 2), (0, 3)])}, [1, 2, 5])
    second, third, fifth = 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(6)
    expected = {
        1: (0, 0, 0),
        2: (1 / 3, second / (1 + second), 1),
        5: (1, (second + third + fifth) / (1 + second + third), 1),
    }
    for k, values in expected.items():
        names = (f"recall@{k}", f"ndcg@{k}", f"hit@{k}")
        assert [found.tasks["buy"][name] for name in names] == pytest.approx(values, rel=1e-12)
    assert found.tasks["buy"]["ndcg@2"] == pytest.approx(0.386853, abs=1e-6)
    assert found.coverage == {"coverage@1": 0.2, "coverage@2": 0.4, "coverage@5": 1}


def test_a_perfect_ranking_has_ndcg_of_exactly_one():
    scores, relevant = (
        np.float32([np.arange(100)] * 3),
        pairs([(q, i) for q in range(3) for i in range(99, 40 + q, -1)]),
    )
    found = retrieval_metrics(Table(scores), {"click": relevant}, [1, 10, 50, 70, 200]).tasks["click"]
    assert {found[f"ndcg@{k}"] for k in (1, 10, 50, 70, 200)} == {1.0}
    assert found["recall@200"] == 1


def test_tasks_share_one_ranking_and_have_their_own_queries():
    scores = np.float32([[3, 2, 1], [1, 2, 3], [1, 3, 2]])
    relevant = {"click": pairs([(0, 0), (1, 0), (2, 2)]), "buy": pairs([(1, 2)]), "never": pairs([])}
    found = retrieval_metrics(Table(scores), relevant, [1])
    assert found.tasks["click"] == {"queries": 3, "recall@1": 1 / 3, "ndcg@1": 1 / 3, "hit@1": 1 / 3}
    assert found.tasks["buy"] == {"queries": 1, "recall@1": 1, "ndcg@1": 1, "hit@1": 1}
    assert found.tasks["never"]["queries"] == 0
    assert math.isnan(found.tasks["never"]["recall@1"])
    assert found.coverage == {"coverage@1": 1.0}


def test_no_query_and_no_task():
    nothing = retrieval_metrics(Table(np.empty((0, 4), np.float32)), {"click": pairs([])}, [2])
    assert nothing.tasks["click"]["queries"] == 0
    assert nothing.coverage == {"coverage@2": 0}
    assert retrieval_metrics(Table(np.eye(2, dtype=np.float32)), {}, [1]) == RetrievalMetrics({}, {"coverage@1": 1.0})


def test_a_relevant_item_that_was_seen_is_neither_ranked_nor_missed():
    scores, both = np.float32([[9, 8, 7]]), pairs([(0, 0), (0, 1)])
    found = retrieval_metrics(Table(scores), {"click": both}, [1], seen=pairs([(0, 0)])).tasks["click"]
    assert found == {"queries": 1, "recall@1": 1, "ndcg@1": 1, "hit@1": 1}
    assert retrieval_metrics(Table(scores), {"click": both}, [1], seen=both).tasks["click"]["queries"] == 0


def test_a_constant_scorer_is_the_order_of_the_indices():
    scores = np.zeros((2, 50), np.float32)
    first, last = (retrieval_metrics(Table(scores), {"t": pairs([(0, i), (1, i)])}, [10]) for i in (0, 49))
    assert first.tasks["t"]["recall@10"] == 1
    assert last.tasks["t"]["recall@10"] == 0
    assert first.coverage == {"coverage@10": 0.2}


def test_no_more_is_scored_at_once_than_the_blocks_allow():
    table = Table(np.random.default_rng(0).standard_normal((23, 41), np.float32))
    retrieval_metrics(table, {"t": pairs([(0, 0)])}, [3, 30], block=5, item_block=7)
    assert max(queries for queries, _ in table.asked) == 5
    assert max(items for _, items in table.asked) == 7
    assert sum(queries * items for queries, items in table.asked) == 23 * 41  # and nothing twice


def test_the_scores_are_left_as_they_were():
    scores = np.broadcast_to(np.float32([1, 3, 2]), (4, 3))  # popularity: read-only, without a row of its own
    assert top_items(Table(scores), 2, seen=pairs([(3, 1)]))[0].tolist() == [[1, 2]] * 3 + [[2, 0]]


def test_inner_products_do_not_depend_on_blocks_and_tie_for_equal_vectors():
    generator = np.random.default_rng(0)
    queries, distinct = generator.standard_normal((40, 67), np.float32), generator.standard_normal((8, 67), np.float32)
    groups = generator.integers(0, 8, 501)
    scorer = InnerProduct(queries, distinct[groups])
    items, scores = top_items(scorer, 501)
    for blocks in ({"block": 7, "item_block": 33}, {"block": 1, "item_block": 1000}):
        other = top_items(scorer, 501, **blocks)
        np.testing.assert_array_equal(other[0], items)
        np.testing.assert_array_equal(other[1], scores)
    best = np.argmax(queries @ distinct.T, axis=1)
    for row, group in zip(items, best):
        members = np.flatnonzero(groups == group)
        np.testing.assert_array_equal(row[: len(members)], members)


def test_inner_products_equal_their_table():
    generator = np.random.default_rng(1)
    queries, items = generator.integers(-3, 4, (9, 5)), generator.integers(-3, 4, (30, 5))
    vectors, table = InnerProduct(np.float32(queries), np.float32(items)), Table(np.float32(queries @ items.T))
    relevant = {"t": Pairs(generator.integers(0, 9, 40), generator.integers(0, 30, 40))}
    assert retrieval_metrics(vectors, relevant, [1, 5, 20]) == retrieval_metrics(table, relevant, [1, 5, 20])


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("queries", "items", "message"),
    [
        (ONES, np.ones((4, 2), np.float32), r"with one D: found queries float32 \(2, 3\) and items float32 \(4, 2\)"),
        (ONES, ONES[0], r"float32 \[rows, D\].*items float32 \(3,\)"),
        (ONES[0], ONES[0], r"float32 \[rows, D\].*queries float32 \(3,\)"),
        (ONES.astype(float), ONES, r"found queries float64 \(2, 3\)"),
        (
            np.where([1, 0, 1], ONES, np.float32(np.nan)),
            ONES,
            "vectors of queries must be finite: found 2 nan or inf of 6",
        ),
        (ONES, ONES * np.float32(np.inf), "vectors of items must be finite: found 6 nan or inf of 6"),
    ],
)
def test_vectors_that_are_not_two_finite_tables_of_one_width(queries, items, message):
    with pytest.raises(ValueError, match=message):
        InnerProduct(queries, items)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.float32([[1, np.nan]]), "scores must be finite: found 1 nan or inf of 2"),
        (np.float32([[1, -np.inf]]), "scores must be finite"),
        (np.float64([[1, 2]]), r"scores must be float32 \(1, 2\): found float64 \(1, 2\)"),
    ],
)
def test_scores_that_cannot_be_ranked(scores, message):
    with pytest.raises(ValueError, match=message):
        top_items(Table(scores), 1)


def test_scores_of_another_block():
    table = Table(np.ones((2, 5), np.float32))
    table.scores = lambda queries, items: table.table[queries]
    with pytest.raises(ValueError, match=r"must be float32 \(2, 4\): found float32 \(2, 5\), cast or slice them"):
        top_items(table, 1, item_block=4)


def test_inner_products_beyond_float32():
    with pytest.raises(ValueError, match=r"scores must be finite: found 4 nan or inf of 4 .*shorten"):
        top_items(InnerProduct(ONES * np.float32(1e30), ONES * np.float32(1e30)), 1)


@pytest.mark.parametrize(
    ("queries", "items", "found"),
    [
        ([0, 1], [1], r"int64 \(2,\) and int64 \(1,\)"),
        ([[0]], [[1]], r"int64 \(1, 1\)"),
        ([0.0], [1], r"float64 \(1,\)"),
        ([0], [True], r"bool \(1,\)"),
    ],
)
def test_pairs_that_are_not_two_columns_of_integers(queries, items, found):
    with pytest.raises(ValueError, match=f"two columns of integers.*{found}"):
        Pairs(np.array(queries), np.array(items))


@pytest.mark.parametrize(("query", "item"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_indices_out_of_range(query, item):
    kind, found, total = ("query", query, 2) if item == 0 else ("item", item, 3)
    span = f"a {kind} index is out of range: found {min(found, 0)} to {max(found, 0)} where the scorer has {total}"
    outside = pairs([(0, 0), (query, item)])
    with pytest.raises(ValueError, match=rf"relevant\['buy'\]: {span}"):
        retrieval_metrics(Table(ONES), {"buy": outside}, [1])
    with pytest.raises(ValueError, match=f"seen: {span}"):
        top_items(Table(ONES), 1, seen=outside)


@pytest.mark.parametrize("ks", [[], [0], [5, -1]])
def test_cuts_must_be_positive(ks):
    with pytest.raises(ValueError, match=rf"ks must be at least 1: found \{str(ks)[:-1]}"):
        retrieval_metrics(Table(ONES), {}, ks)


@pytest.mark.parametrize("setting", ["k", "block", "item_block"])
def test_blocks_must_be_positive(setting):
    with pytest.raises(ValueError, match=rf"^{setting} must be at least 1: found \[0\]"):
        top_items(Table(ONES), **({"k": 1} | {setting: 0}))
