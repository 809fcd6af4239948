"""How long ago each event of a history was: exact at the edges, beside its id whatever is left out, never negative."""

from fractions import Fraction
from typing import get_args

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings

from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import GAP_BUCKETS, FeaturesConfig, TimeUnit
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.reader import ParquetReader

SECONDS = {"ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": Fraction(1)}
SECONDS |= {"min": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)}
NOW = 1_700_000_000_123_456_789
ROWS = 40


def encoder(unit="s", max_length=9, sparse=(), dated=True, labels=True, **data):
    sequence = {"name": "seen", "table": "t", "max_length": max_length}
    moments = {"times": "at", "now": "now", "time_unit": unit} if dated else {}
    features = {
        "tables": [{"name": "t", "rows": ROWS, "dim": 4}],
        "sparse": sparse,
        "sequences": [sequence | moments],
    }
    return Encoder(DataConfig(train="f", **data), FeaturesConfig.model_validate(features), (), labels=labels)


def lists(values, kind=None):
    return pa.array(values, pa.list_(kind or pa.int64()))


def encode(ids, times, now, **options):
    """Ids and buckets, as lists, and the counts of what was left out."""
    encode = encoder(**options)
    seen = encode.encode(pa.table({"seen": ids, "at": times, "now": now}), "x").lists["seen"]
    rows = [slice(a, b) for a, b in zip(seen.offsets, seen.offsets[1:])]
    return [seen.values[row].tolist() for row in rows], [seen.gaps[row].tolist() for row in rows]


def reference(seconds):
    """Whole numbers from 2^b to 2^(b + 1) - 1 have b + 1 digits."""
    return min(int(1 + seconds).bit_length() - 1, GAP_BUCKETS - 1)


def bucket(now, time, unit="s"):
    """The bucket of one event, its times as Arrow arrays of one value."""
    (found,) = encode(lists([[0]]), pa.ListArray.from_arrays([0, 1], time), now, unit=unit)[1]
    return found[0]


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(0, 0), (1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (3600, 11), (2**30 - 2, 29), (2**31 - 2, 30), (2**31 - 1, 31)],
)
def test_edges_in_seconds(gap, expected):
    for kind in (pa.int64(), pa.float64()):
        now, time = pa.array([NOW // 10**9], kind), pa.array([NOW // 10**9 - gap], kind)
        assert bucket(now, time) == expected


def test_every_bucket_begins_where_it_should_in_every_unit():
    for unit in get_args(TimeUnit):
        for number in range(1, GAP_BUCKETS):
            first = -(-(2**number - 1) // SECONDS[unit])  # whole units that reach it
            now, then = pa.array([2**62]), pa.array([2**62 - first])
            assert bucket(now, then, unit) == reference(first * SECONDS[unit]) >= number
            assert bucket(now, pa.array([2**62 - first + 1]), unit) < number


INTEGERS = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=200)
@given(INTEGERS, INTEGERS, st.sampled_from(get_args(TimeUnit)))
@example(2**63 - 1, -(2**63), "ns")
@example(NOW, NOW - 10**9 + 1, "ns")
def test_integers_are_exact_however_far_apart(one, other, unit):
    time, now = min(one, other), max(one, other)
    assert bucket(pa.array([now]), pa.array([time]), unit) == reference((now - time) * SECONDS[unit])


def test_unsigned_integers_beyond_int64():
    large = pa.array([2**64 - 6], pa.uint64())
    assert bucket(pa.array([2**64 - 1], pa.uint64()), large) == 2
    with pytest.raises(ValueError, match=rf"lie after the row's moment.*\(found {2**64 - 9}\)"):
        bucket(pa.array([3]), large)


@pytest.mark.parametrize(
    ("now", "time", "unit", "expected"),
    [
        (pa.array([10.5]), pa.array([9.75]), "s", 0),
        (pa.array([10], pa.int16()), pa.array([8.5]), "s", 1),
        (pa.array([1.5], pa.float32()), pa.array([1], pa.int8()), "h", 10),  # 1800 s
        (pa.array([2], pa.uint8()), pa.array([1], pa.int64()), "d", 16),
        (pa.array([0], pa.int8()), pa.array([-3], pa.int64()), "s", 2),
    ],
)
def test_columns_of_any_numbers(now, time, unit, expected):
    assert bucket(now, time, unit) == expected


EVENT = st.tuples(st.none() | st.integers(-3, ROWS + 3), st.integers(0, 3000))
HISTORY = st.none() | st.lists(EVENT, max_size=6)


def sliced(values, kind, cut):
    """An array whose first ``cut`` values are cut off by an offset."""
    return pa.array([*values[:cut], *values], kind).slice(min(cut, len(values)))


@settings(max_examples=150)
@given(
    st.lists(HISTORY, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from(["drop", "clamp"]),
    st.sampled_from([pa.list_, pa.large_list]),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_a_gap_stays_with_its_id(histories, max_length, bad_ids, list_type, cuts):
    ids = [None if h is None else [i for i, _ in h] for h in histories]
    times = [None if h is None else [None if i is None else 5000 - g for i, g in h] for h in histories]
    found = encode(
        sliced(ids, list_type(pa.int64()), cuts[0]),
        sliced(times, list_type(pa.int64()), cuts[1]),
        pa.array([5000] * len(ids)),
        max_length=max_length,
        bad_ids=bad_ids,
    )
    kept = [[(i, g) for i, g in h or [] if i is not None][-max_length:] for h in histories]
    if bad_ids == "drop":
        kept = [[(i, g) for i, g in row if 0 <= i < ROWS] for row in kept]
    assert found[0] == [[i if 0 <= i < ROWS else 0 for i, _ in row] for row in kept]
    assert found[1] == [[reference(g) for _, g in row] for row in kept]


def test_fixed_size_lists_beside_others():
    ids = pa.array([[1, 2], None, [None, 4]], pa.list_(pa.int64(), 2))
    found = encode(ids, lists([[0, 7], None, [5, 9]]), pa.array([10, None, 10]))
    assert found == ([[1, 2], [], [4]], [[3, 2], [], [1]])


def test_a_null_list_may_own_elements():
    mask = pa.array([False, True, False])
    ids = pa.ListArray.from_arrays([0, 2, 4, 5], pa.array([1, 2, 3, 4, 5]), mask=mask)
    times = pa.ListArray.from_arrays([0, 2, 2, 3], pa.array([10, 7, 3]))
    assert encode(ids, times, pa.array([10, 10, 10])) == ([[1, 2], [], [5]], [[0, 2], [], [3]])


def test_words_have_times_too():
    found = encode(lists([["a", None, "b"]], pa.string()), lists([[1, 2, 3]]), pa.array([4]))
    assert found[1] == [[2, 1]]


# What is refused.

WHERE = "times of sequence 'seen', column 'at' of x"


def refused(ids, times, now, **options):
    with pytest.raises(ValueError, match="of x: ") as error:
        encode(ids, times, now, **options)
    return str(error.value).splitlines()


@pytest.mark.parametrize(("kind", "least", "most"), [(pa.int64(), "2", "50"), (pa.float64(), "2.0", "50.0")])
def test_events_after_their_row_are_a_leak(kind, least, most):
    found = refused(lists([[1, 2], [3, 4]]), lists([[10, 12], [60, 9]], kind), pa.array([10, 10], kind), unit="ms")
    assert found == [
        f"{WHERE}: 2 events lie after the row's moment, column 'now', by so many ms (found {least} to {most}). A "
        "history that reads its row's future is a leak: leave these events out, or correct the times."
    ]


def test_a_nanosecond_too_late_is_too_late():
    (found,) = refused(lists([[1]]), lists([[NOW + 1]]), pa.array([NOW]), unit="ns")
    assert "1 events lie after the row's moment, column 'now', by so many ns (found 1)." in found


def test_lists_of_another_length_are_counted():
    found = refused(lists([[1, 2], [3], [4], []]), lists([[1], [2, 3], [4], [5]]), pa.array([9, 9, 9, 9]))
    assert found == [
        f"{WHERE}: 3 lists of another length than those of the ids, column 'seen'. Write one time for each id, in the "
        "same order."
    ]


@pytest.mark.parametrize("times", [lists([[1, None], [None], [2]]), lists([[1, np.nan], [np.inf], [2]], pa.float64())])
def test_missing_times_are_counted(times):
    found = refused(lists([[1, 2], [3], [4]]), times, pa.array([9, 9, 9]))
    assert found == [f"{WHERE}: 2 null or infinite times. Write when each event was, or leave out its id too."]


@pytest.mark.parametrize("now", [pa.array([None, 9, None, None]), pa.array([np.inf, 9, np.nan, None], pa.float64())])
def test_missing_moments_of_rows_with_events_are_counted(now):
    found = refused(lists([[1, 2], [3], [4], []]), lists([[1, 1], [2], [3], []]), now)
    assert found == [
        "now of sequence 'seen', column 'now' of x: 2 null or infinite moments of rows with events. Write when the row "
        "was."
    ]


def test_problems_of_other_rows_do_not_hide_each_other():
    ids, times = lists([[1], [2], [3], [99]]), lists([[], [8], [None], [3]])
    found = refused(ids, times, pa.array([5, 5, 5, None]), bad_ids="clamp")
    assert [line.split("of x: ")[1].split(".")[0] for line in found] == [
        "1 lists of another length than those of the ids, column 'seen'",
        "1 null or infinite moments of rows with events",
        "1 null or infinite times",
        "1 events lie after the row's moment, column 'now', by so many s (found 3)",
    ]


def test_what_is_left_out_is_not_judged():
    """An id that is null, too old, or outside the table takes its time with it; a row without ids needs no moment."""
    ids, times = [[1, None, 2], [7, 3, 5], [99, 4], [99], []], [[1, 60, 2], [None, 8, 9], [70, 6], [None], []]
    found = encode(lists(ids), lists(times), pa.array([9, 9, 9, None, None]), max_length=2, bad_ids="drop")
    assert found == ([[1, 2], [3, 5], [4], [], []], [[3, 3], [1, 0], [2], [], []])


# Batches.


def dated(num_rows, seed=0):
    """Histories of up to 5 events of which each id is the event's bucket."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, GAP_BUCKETS, n).tolist() for n in rng.integers(0, 6, num_rows)]
    now = rng.integers(2**40, 2**41, num_rows)
    times = [[moment - 2**i + 1 for i in row] for row, moment in zip(ids, now.tolist())]
    return pa.table({"seen": lists(ids), "at": lists(times), "now": now, "row": [[n] for n in range(num_rows)]})


def test_buckets_lie_as_the_ids_do_in_slices_joins_and_padding():
    encode, table = encoder(), dated(50)
    rows = encode.encode(table, "x")
    some = type(rows).concat([rows.slice(5, 20), rows, rows.slice(3, 3)]).take(np.array([40, 2, 2, 17, 60]))
    batch = encode.batch(some.slice(1, 5), slots=np.arange(8), step=0, global_size=8)
    ids = batch.sequences["seen"].values()
    assert batch.gaps["seen"].dtype == torch.int64
    assert batch.gaps["seen"].tolist() == ids.tolist()
    assert len(set(ids.tolist())) > 3
    assert list(batch.gaps) == ["seen"]


@pytest.mark.parametrize(
    ("ids", "times"), [(lists([[], []]), lists([[], []])), (pa.nulls(2), pa.nulls(2)), (lists([None, []]), pa.nulls(2))]
)
def test_a_batch_without_any_event_has_no_buckets(ids, times):
    encode = encoder()
    rows = encode.encode(pa.table({"seen": ids, "at": times, "now": pa.nulls(2)}), "x")
    gaps = encode.batch(rows, slots=np.arange(4), step=0, global_size=4).gaps["seen"]
    assert (gaps.shape, gaps.dtype) == ((0,), torch.int64)


def test_a_column_without_any_id_takes_no_times():
    found = refused(pa.nulls(2), lists([[3], []]), pa.array([5, 5]))
    assert "1 lists of another length than those of the ids" in found[0]


def test_buckets_move_with_the_batch():
    encode = encoder()
    batch = encode.batch(encode.encode(dated(4), "x"), slots=np.arange(4), step=0, global_size=4)
    assert batch.to(torch.device("cpu")).gaps["seen"].tolist() == batch.gaps["seen"].tolist()
    assert batch.to(torch.device("meta")).gaps["seen"].device.type == "meta"


def test_sequences_without_times_have_none():
    encode = encoder(dated=False)
    rows = encode.encode(dated(9), "x")
    assert encode.columns == ("seen",)
    assert rows.lists["seen"].gaps is None
    assert encode.batch(rows, slots=np.arange(9), step=0, global_size=9).gaps == {}


def test_lists_that_are_pooled_have_none():
    encode = encoder(sparse=[{"name": "row", "table": "t"}])
    batch = encode.batch(encode.encode(dated(9), "x"), slots=np.arange(9), step=0, global_size=9)
    assert batch.sequences["row"].values().tolist() == list(range(9))
    assert list(batch.gaps) == ["seen"]


def test_prediction_reads_the_moments():
    encode = encoder(labels=False, group="g")
    assert encode.columns == ("seen", "at", "now")
    assert encode.encode(dated(3), "x").lists["seen"].gaps is not None


def test_two_ranks_make_the_batches_of_one(write):
    """With every history told apart by its slot, in an order that is shuffled."""
    table = dated(300, seed=3)
    files = open_files(str(write("a.parquet", table, [100, 37, 163])))

    def slots(world_size):
        """Of every step: slot -> (ids, buckets) of its history."""
        readers = [
            ParquetReader(files, encoder(), batch_size=32, window=50, seed=7, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        steps = []
        for batches in zip(*(reader.epoch(0) for reader in readers), strict=True):
            step = {}
            for batch in batches:
                lengths = batch.sequences["seen"].lengths().tolist()
                ids = batch.sequences["seen"].values().split(lengths)
                step |= zip(batch.rows.tolist(), zip(ids, batch.gaps["seen"].split(lengths)))
            steps.append({slot: (ids.tolist(), gaps.tolist()) for slot, (ids, gaps) in sorted(step.items())})
        return steps

    alone = slots(1)
    assert slots(2) == alone
    histories = [pair for step in alone for pair in step.values()]
    assert all(ids == gaps for ids, gaps in histories)
    assert sorted(ids for ids, _ in histories if ids) == sorted(row for row in table["seen"].to_pylist() if row)
