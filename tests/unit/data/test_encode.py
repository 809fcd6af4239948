"""The encoder against a slow reference in plain Python, and the message for every kind of bad value."""

import hashlib
import math

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.statistics import DenseStatistics, Statistics

ROWS = 7
WORDS = st.sampled_from(["", "a", "b", "user42", "müller"])
IDS = st.integers(0, ROWS - 1)
BIG = st.integers(-(2**63), 2**63 - 1)


def encoder(sparse=(), sequences=(), dense=(), tasks=(), statistics=None, labels=True, **data):
    features = FeaturesConfig.model_validate(
        {
            "tables": [{"name": "t", "rows": ROWS, "dim": 2}, {"name": "s", "rows": ROWS, "dim": 2}],
            "sparse": [{"table": "t", **f} for f in sparse],
            "sequences": [{"table": "s", **f} for f in sequences],
            "dense": dense,
        }
    )
    parsed = [TaskConfig.model_validate({"loss": {"type": "x"}, **task}) for task in tasks]
    return Encoder(DataConfig(train="f", **data), features, parsed, statistics, labels=labels)


def ids_of(rows, name):
    """Ids of each row, as lists."""
    if name in rows.lists:
        jagged = rows.lists[name]
        return [jagged.values[a:b].tolist() for a, b in zip(jagged.offsets, jagged.offsets[1:])]
    column = rows.single_names.index(name)
    present = np.ones(len(rows), bool) if rows.present is None else rows.present[:, column]
    return [[value] if there else [] for value, there in zip(rows.single[:, column].tolist(), present)]


def reference_id(value):
    if isinstance(value, str):
        digest = hashlib.blake2b(value.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % ROWS
    return value


def reference_hash(value):
    if isinstance(value, str):
        return reference_id(value)
    mixed = (value + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return (mixed ^ (mixed >> 31)) % ROWS


def reference_lists(rows, max_length, encode):
    kept = [[value for value in row or [] if value is not None] for row in rows]
    return [[encode(value) for value in (row[-max_length:] if max_length else row)] for row in kept]


def columns(element):
    return st.lists(st.none() | element, min_size=1, max_size=12)


def list_columns(element):
    return columns(st.lists(st.none() | element, max_size=5))


def sliced(values, kind, cut):
    """Return an array whose first ``cut`` values are cut off by an offset."""
    return pa.array([*values[:cut], *values], kind).slice(min(cut, len(values)))


@settings(max_examples=60)
@given(columns(IDS), st.sampled_from([pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.int64()]), st.integers(0, 3))
def test_single_integers(values, kind, cut):
    rows = encoder([{"name": "f"}]).encode(pa.table({"f": sliced(values, kind, cut)}), "x")
    assert ids_of(rows, "f") == [[] if value is None else [value] for value in values]


@settings(max_examples=60)
@given(st.one_of(columns(WORDS), columns(BIG)), st.integers(0, 3), st.booleans())
def test_single_hashes(values, cut, as_dictionary):
    kind = pa.string() if any(isinstance(value, str) for value in values) else pa.int64()
    array = sliced(values, kind, cut)
    array = array.dictionary_encode() if as_dictionary else array
    rows = encoder([{"name": "f", "encode": "hash"}]).encode(pa.table({"f": array}), "x")
    assert ids_of(rows, "f") == [[] if value is None else [reference_hash(value)] for value in values]


@settings(max_examples=120)
@given(
    st.one_of(list_columns(IDS), list_columns(WORDS)),
    st.sampled_from([pa.list_, pa.large_list]),
    st.integers(0, 3),
    st.none() | st.integers(1, 4),
)
def test_lists(values, list_type, cut, max_length):
    strings = any(isinstance(value, str) for row in values for value in row or [])
    array = sliced(values, list_type(pa.string() if strings else pa.int32()), cut)
    encoded = encoder([{"name": "f", "max_length": max_length}]).encode(pa.table({"f": array}), "x")
    assert ids_of(encoded, "f") == reference_lists(values, max_length, reference_id)


@settings(max_examples=40)
@given(columns(st.lists(st.none() | IDS, min_size=3, max_size=3)), st.integers(0, 2), st.integers(1, 4))
def test_fixed_size_lists(values, cut, max_length):
    array = sliced(values, pa.list_(pa.int64(), 3), cut)
    rows = encoder(sequences=[{"name": "f", "max_length": max_length}]).encode(pa.table({"f": array}), "x")
    assert ids_of(rows, "f") == reference_lists(values, max_length, reference_id)


def test_null_list_that_owns_elements_is_empty():
    array = pa.ListArray.from_arrays([0, 2, 4, 5], pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False]))
    rows = encoder([{"name": "f"}]).encode(pa.table({"f": array}), "x")
    assert ids_of(rows, "f") == [[1, 2], [], [5]]


def test_chunks_with_other_dictionaries():
    chunks = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"]).dictionary_encode()])
    rows = encoder([{"name": "f"}]).encode(pa.table({"f": chunks}), "x")
    assert ids_of(rows, "f") == [[reference_id(word)] for word in "abbc"]


def test_columns_without_any_value():
    features = {"sparse": [{"name": "f"}], "sequences": [{"name": "q", "max_length": 3}], "dense": ["d"]}
    rows = encoder(**features).encode(pa.table({"f": pa.nulls(2), "q": pa.nulls(2), "d": pa.nulls(2)}), "x")
    assert ids_of(rows, "f") == ids_of(rows, "q") == [[], []]
    assert rows.dense.tolist() == [[0.0], [0.0]]


def test_booleans_are_ids():
    rows = encoder([{"name": "f"}]).encode(pa.table({"f": [True, False, None]}), "x")
    assert ids_of(rows, "f") == [[1], [0], []]


BAD = {"one": [3, ROWS, None, -2], "many": [[1, 900, 2], [900], [-5, 6], []]}


def test_bad_ids_stop_with_every_column_named():
    table = pa.table(BAD)
    with pytest.raises(ValueError, match="outside table") as error:
        encoder([{"name": "u", "column": "one"}], [{"name": "many", "max_length": 9}]).encode(table, "day1.parquet")
    assert str(error.value).splitlines() == [
        "feature 'u', column 'one' of day1.parquet: 2 ids outside table 't' of 7 rows (0 to 6) (found -2 to 7). "
        "Give table 't' more rows, use encode: hash, or set data.bad_ids to drop or clamp.",
        "feature 'many', column 'many' of day1.parquet: 3 ids outside table 's' of 7 rows (0 to 6) (found -5 to 900). "
        "Give table 's' more rows, use encode: hash, or set data.bad_ids to drop or clamp.",
    ]


@pytest.mark.parametrize(
    ("bad_ids", "one", "many"),
    [("drop", [[3], [], [], []], [[1, 2], [], [6], []]), ("clamp", [[3], [0], [], [0]], [[1, 0, 2], [0], [0, 6], []])],
)
def test_bad_ids_are_dropped_or_clamped_and_counted(bad_ids, one, many):
    encode = encoder([{"name": "one"}], [{"name": "many", "max_length": 9}], bad_ids=bad_ids)
    rows = encode.encode(pa.table(BAD), "x")
    assert (ids_of(rows, "one"), ids_of(rows, "many")) == (one, many)
    encode.encode(pa.table(BAD), "y")
    counts = {key.split("'")[1]: count for key, count in encode.counts.items()}
    assert counts == {"one": 4, "many": 6}


def test_integers_beyond_int64_are_outside():
    with pytest.raises(ValueError, match="1 ids outside table"):
        encoder([{"name": "f"}]).encode(pa.table({"f": pa.array([2**64 - 1], pa.uint64())}), "x")


@settings(max_examples=60)
@given(columns(st.floats(-1e6, 1e6, width=32) | st.just(math.nan)), st.booleans(), st.booleans())
def test_dense(values, log, normalize):
    feature = {"name": "d", "transform": "log1p" if log else "none", "normalize": normalize}
    scale = DenseStatistics(mean=2.0, std=4.0, nulls=0)
    statistics = Statistics(rows=1, dense={"d": scale}, labels={}, features={})
    rows = encoder(dense=[feature], statistics=statistics).encode(pa.table({"d": pa.array(values, pa.float32())}), "x")
    for found, value in zip(rows.dense[:, 0].tolist(), values):
        expected = value
        if value is None or math.isnan(value):
            expected = 2.0 if normalize else 0.0
        elif log:
            expected = math.copysign(math.log1p(abs(value)), value)
        assert found == pytest.approx((expected - 2.0) / 4.0 if normalize else expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([0, 1]),
        pa.array([False, True]),
        pa.array([0, 1], pa.uint8()),
        pa.array([0, 1]).cast(pa.decimal128(21, 2)),
    ],
)
def test_dense_takes_any_number(array):
    assert encoder(dense=["d"]).encode(pa.table({"d": array}), "x").dense.tolist() == [[0], [1]]


def test_infinite_dense_values_are_counted():
    table = pa.table({"d": [1.0, math.inf, -math.inf, 1e39]})
    with pytest.raises(ValueError, match=r"dense feature 'e', column 'd' of x: 3 infinite values\. Write null"):
        encoder(dense=[{"name": "e", "column": "d"}]).encode(table, "x")


CLICK = {"name": "click", "kind": "binary", "label": "y"}
TIME = {"name": "time", "kind": "regression", "label": "z", "space": "y", "sample_weight": "w"}


def test_targets_are_masked_by_space_and_weight():
    table = pa.table({"y": [1, 0, 1, None, 1], "z": [2.5, 9.0, None, 4.0, 7.0], "w": [0.5, 2.0, 1.0, 1.0, 0.0]})
    rows = encoder(tasks=[CLICK, TIME], null_labels="mask").encode(table, "x")
    assert rows.labels.tolist() == [[1, 2.5], [0, 0], [1, 0], [0, 0], [1, 0]]
    assert rows.weights.tolist() == [[1, 0.5], [1, 0], [1, 0], [0, 0], [1, 0]]


def test_labels_outside_the_space_do_not_matter():
    table = pa.table({"y": [False, True, None], "z": [None, 3.0, math.inf], "w": [-1.0, 1.0, None]})
    rows = encoder(tasks=[TIME]).encode(table, "x")
    assert rows.labels[:, 0].tolist() == [0, 3, 0]


@pytest.mark.parametrize(
    ("columns", "tasks", "message"),
    [
        ({"y": [1, None, None]}, [CLICK], "label of task 'click', column 'y' of x: 2 null labels. Fill them"),
        ({"y": [0, 1, 5, 3]}, [CLICK], r"column 'y' of x: 2 labels other than 0 and 1 \(found 3.0 to 5.0\). A binary"),
        ({"y": [1, 1], "z": [math.inf, 1], "w": [1, 1]}, [TIME], r"column 'z' of x: 1 infinite labels \(found inf\)"),
        ({"y": [1, 1], "z": [math.nan, 1], "w": [1, 1]}, [TIME], "column 'z' of x: 1 null labels"),
        (
            {"y": [1, 2], "z": [1, 1], "w": [1, 1]},
            [TIME],
            r"space of task 'time', column 'y' of x: 1 values other than",
        ),
        (
            {"y": [1, 1, 1], "z": [1, 1, 1], "w": [-1.0, None, 1]},
            [TIME],
            r"column 'w' of x: 2 null, negative, or infin",
        ),
    ],
)
def test_bad_targets_are_named(columns, tasks, message):
    with pytest.raises(ValueError, match=message):
        encoder(tasks=tasks).encode(pa.table(columns), "x")


def test_prediction_reads_no_targets():
    encode = encoder([{"name": "f"}], tasks=[CLICK, TIME], labels=False, group="g")
    rows = encode.encode(pa.table({"f": [1, 2]}), "x")
    assert encode.columns == ("f",)
    assert rows.weights.tolist() == [[0, 0], [0, 0]]
    assert rows.ids == {}


def test_missing_column_and_wrong_type_are_told_together():
    with pytest.raises(ValueError, match="not in x") as error:
        encoder([{"name": "f"}, {"name": "g"}]).encode(pa.table({"g": [1.5]}), "x")
    assert "column 'f': not in x" in str(error.value)
    assert "column 'g' of x: holds double" in str(error.value)


def test_group_is_kept_as_ids():
    rows = encoder(group="g").encode(pa.table({"g": [5, 7]}), "x")
    assert rows.ids["group"].tolist() == [5, 7]
