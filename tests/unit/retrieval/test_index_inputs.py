"""What an item index refuses, in words, and that it changes nothing then; ids of every type it takes."""

import datetime
import decimal
import uuid

import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.retrieval.index import IndexOptions, ItemIndex
from torchrec_mtl.retrieval.index_options import parse_options

TASKS = ("click", "purchase")
KINDS = ("flat", "ivf", "hnsw")


def build(kind="flat", ids=("a", "b", "c", "d"), **options):
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    return ItemIndex.build(pa.array(ids), vectors, TASKS, IndexOptions(kind, **options))


def floats(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([3, 1, 2], pa.int8()),
        ([2**64 - 1, 0, 5], pa.uint64()),
        (["x", "", "é"], pa.large_string()),
        (["x", "", "é"], pa.dictionary(pa.int8(), pa.string())),
        ([b"x", b"", b"\xff"], pa.binary()),
        ([uuid.UUID(int=n).bytes for n in range(3)], pa.binary(16)),
        ([datetime.date(2024, 1, n) for n in (1, 2, 3)], pa.date32()),
        ([decimal.Decimal(n) / 10 for n in (1, 2, 3)], pa.decimal128(5, 1)),
    ],
)
@pytest.mark.parametrize("kept", KINDS)
def test_ids_of_any_type(kept, values, kind, tmp_path):
    ids = pa.array(values, kind)
    vectors = np.array([[1, 0], [2, 0], [3, 0]], np.float32)
    index = ItemIndex.build(ids[:2], vectors[:2], TASKS, IndexOptions(kept))
    index.add(pa.chunked_array([ids[2:]]), vectors[2:])
    index.remove(ids[:1])
    index.save(tmp_path / "day=1" / "id=2")
    for there in (index, ItemIndex.load(tmp_path / "day=1" / "id=2")):
        found, _ = there.search(floats(1, 2, 2), 3)
        assert found.to_pylist() == [[values[2], values[1], None]]
        assert found.type.value_type == (pa.string() if pa.types.is_dictionary(kind) else kind)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (pa.array([1, 2, 1, 3, 3, 3]), floats(6, 2), r"^2 ids are given more than once: 1, 3; give each item once$"),
        (pa.array(list(range(9)) * 2), floats(18, 2), r"^9 ids are given more than once: 0, 1, 2, 3, 4, \.\.\.;"),
        (pa.array([1, None]), floats(2, 2), r"^1 of 2 ids are null; leave"),
        (pa.array([{"a": 1}]), floats(1, 2), r"^ids of type struct<a: int64> cannot be looked up; give integers"),
        ([1, 2], floats(2, 2), r"^ids must be a pyarrow Array, found list; convert"),
        (pa.array([1, 2]), floats(3, 2), r"^2 ids and 3 vectors; give one vector an id"),
        (pa.array([1, 2]), floats(2), r"^vectors must have shape \[2, D\], one row an id, found \[2\]$"),
        (pa.array([1, 2]), floats(2, 0), r"^vectors must have shape \[2, D\], one row an id, found \[2, 0\]$"),
        (pa.array([1, 2]), np.ones((2, 2), int), r"^vectors must be floats, found int64; convert"),
        (pa.array([1, 2]), np.array([[1, 1], [1, np.nan]]), r"1 of 2 rows hold NaN or infinity: 1\. Leave"),
        (pa.array([1, 2]), np.array([[1e39, 1], [1, -np.inf]]), r"2 of 2 rows hold NaN or infinity: 0, 1\."),
        (pa.array([], pa.int64()), floats(0, 2), r"^no items to build an index of; give at least one$"),
    ],
)
def test_items_that_are_refused(ids, vectors, message):
    with pytest.raises(ValueError, match=message):
        ItemIndex.build(ids, vectors, TASKS)


@pytest.mark.parametrize("tasks", [(), "click", ("click", "click")])
def test_tasks_that_are_refused(tasks):
    with pytest.raises(ValueError, match="tasks must be a list of different names, at least one; found"):
        ItemIndex.build(pa.array([1]), floats(1, 2), tasks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i.add(pa.array(["e", "b", "a"]), floats(3, 2)),
            r"^2 ids are in the index already: 'b', 'a'; remove",
        ),
        (lambda i: i.add(pa.array(["e", "f", "e"]), floats(3, 2)), r"^1 ids are given more than once: 'e'"),
        (
            lambda i: i.add(pa.array([7]), floats(1, 2)),
            r"^ids are of type int64, and those of the index of type string;",
        ),
        (lambda i: i.add(pa.array(["e"]), floats(1, 3)), r"^vectors must have shape \[1, 2\].* found \[1, 3\]$"),
        (lambda i: i.add(pa.array(["e"]), floats(1, 2) / np.float32(0)), "1 of 1 rows hold NaN or infinity"),
        (lambda i: i.remove(pa.array(["a", "z", "y"])), r"^2 ids are not in the index: 'z', 'y'; leave them out$"),
        (lambda i: i.remove(pa.array(["a", "a"])), r"^1 ids are given more than once: 'a'"),
        (lambda i: i.remove(pa.array([7])), r"^ids are of type int64"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_refused_change_changes_nothing(kind, change, message):
    index, same = build(kind), build(kind)
    with pytest.raises(ValueError, match=message):
        change(index)
    for there in (index, same):
        there.add(pa.array(["e"]), floats(1, 2))
        there.remove(pa.array(["b"]))
    queries = np.random.default_rng(0).standard_normal((5, 2, 2)).astype(np.float32)
    (ids, scores), (same_ids, same_scores) = index.search(queries, 6), same.search(queries, 6)
    assert ids.equals(same_ids)
    np.testing.assert_array_equal(scores, same_scores)


@pytest.mark.parametrize(
    ("queries", "weights", "message"),
    [
        (floats(3, 2), {}, r"^queries must have shape \[B, 2, 2\], a row for each of the tasks click, purchase; found"),
        (floats(3, 1, 2), {}, r"found \[3, 1, 2\]$"),
        (floats(3, 2, 4), {}, r"found \[3, 2, 4\]$"),
        (np.ones((1, 2, 2), int), {}, r"^queries must be floats, found int64"),
        (np.full((8, 2, 2), np.nan), {}, r"^queries must be finite; 8 of 8 rows .*: 0, 1, 2, 3, 4, \.\.\.\. Leave"),
        (
            floats(1, 2, 2),
            {"clicks": 1},
            r"^weights name 'clicks', which is not a task of this index\. Did you mean 'click'",
        ),
        (floats(1, 2, 2), {"click": np.inf}, r"^the weight of task 'click' is inf; give a finite number$"),
    ],
)
def test_queries_and_weights_that_are_refused(queries, weights, message):
    index = build()
    for call in (index.search, index.recall):
        with pytest.raises(ValueError, match=message):
            call(queries, 1, weights)


def test_at_least_one_result_is_asked_for():
    with pytest.raises(ValueError, match="k must be at least 1, found 0"):
        build().search(floats(1, 2, 2), 0)
    with pytest.raises(ValueError, match="recall of 0 queries, 3 items each; give at least one of both"):
        build().recall(floats(0, 2, 2), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hsnw"}, r"^no kind of index 'hsnw'\. Did you mean 'hnsw'"),
        ({"kind": "flat", "probes": 3}, r"^probes is a setting of kind 'ivf', and the kind is 'flat'; leave it out$"),
        ({"kind": "ivf", "ef_search": 3}, r"^ef_search is a setting of kind 'hnsw'"),
        ({"kind": "hnsw", "seed": 0}, r"^seed is a setting of kind 'ivf'"),
        ({"kind": "ivf", "probes": 0}, r"^probes must be a whole number of at least 1, found 0$"),
        ({"kind": "ivf", "seed": -1}, r"^seed must be a whole number of at least 0, found -1$"),
        ({"kind": "hnsw", "neighbours": 1}, r"^neighbours must be a whole number of at least 2, found 1$"),
        ({"kind": "hnsw", "ef_search": 1.5}, r"^ef_search must be a whole number of at least 1, found 1\.5$"),
        ({"threads": True}, r"^threads must be a whole number of at least 1, found True$"),
        ({"kind": "ivf", "lists": 5}, r"^lists is 5 for 4 items; give at most one list an item, or leave it out$"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_options_from_words():
    assert parse_options([]) == IndexOptions()
    assert parse_options(["kind=ivf", "probes=8", "seed=0"]) == IndexOptions("ivf", probes=8, seed=0)
    for word, message in (
        ("kind", "expected key=value"),
        ("probs=3", "Did you mean 'probes'"),
        ("seed=-1", "whole number"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: .*{message}"):
            parse_options(["kind=ivf", word])
