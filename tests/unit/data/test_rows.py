import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from torchrec_mtl.data.rows import Jagged, Rows

lists = st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=12)


def jagged(rows):
    values = np.array([value for row in rows for value in row], np.int64)
    return Jagged.from_lengths(values, np.array([len(row) for row in rows], np.int64))


def unpack(jagged, values=None):
    values = jagged.values if values is None else values
    return [values[a:b].tolist() for a, b in zip(jagged.offsets, jagged.offsets[1:])]


def make(n, names=("a", "b"), present=None, start=0):
    number = np.arange(start, start + n)
    return Rows(
        dense=np.stack([number, -number], axis=1).astype(np.float32),
        labels=number[:, None].astype(np.float32),
        weights=np.ones((n, 1), np.float32),
        ids={"group": number},
        single_names=tuple(names),
        single=np.stack([number * 10 + i for i in range(len(names))], axis=1),
        present=present,
        lists={"l": jagged([[k] * (k % 3) for k in number.tolist()])},
    )


@given(lists, st.data())
def test_jagged_behaves_as_a_list_of_lists(rows, data):
    encoded = jagged(rows)
    assert unpack(encoded) == rows
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    part = encoded.slice(start, stop)
    assert unpack(part) == rows[start:stop]
    assert part.flat.tolist() == [value for row in rows[start:stop] for value in row]
    if start < stop:
        indices = data.draw(st.lists(st.integers(0, stop - start - 1), max_size=20))
        assert unpack(part.take(np.array(indices, np.int64))) == [rows[start:stop][i] for i in indices]
    assert unpack(Jagged.concat([part, encoded])) == rows[start:stop] + rows


@given(lists, st.data())
def test_gaps_go_with_their_ids(rows, data):
    encoded = jagged(rows)
    encoded = dataclasses.replace(encoded, gaps=(99 - encoded.values).astype(np.uint8))
    start = data.draw(st.integers(0, len(rows)))
    part = encoded.slice(start, len(rows))
    joined = Jagged.concat([part, encoded])
    taken = joined.take(np.array(data.draw(st.permutations(range(len(joined.lengths)))), np.int64))
    for some in (part, joined, taken):
        assert unpack(some, some.gaps) == [[99 - value for value in row] for row in unpack(some)]
        assert some.flat_gaps.tolist() == (99 - some.flat).tolist()
    assert jagged(rows).slice(start, len(rows)).flat_gaps is None


def test_take_of_a_slice_of_a_join_finds_the_rows():
    rows = Rows.concat([make(5), make(4, start=5), make(0)]).slice(2, 8).take(np.array([5, 0, 0]))
    assert len(rows) == 3
    assert rows.ids["group"].tolist() == [7, 2, 2]
    assert rows.dense.tolist() == [[7, -7], [2, -2], [2, -2]]
    assert rows.labels[:, 0].tolist() == [7, 2, 2]
    assert rows.single.tolist() == [[70, 71], [20, 21], [20, 21]]
    assert unpack(rows.lists["l"]) == [[7], [2, 2], [2, 2]]


def test_join_of_rows_with_and_without_nulls():
    mask = np.array([[True, False], [False, True]])
    rows = Rows.concat([make(1), make(2, present=mask)])
    assert rows.present is not None
    assert rows.present.tolist() == [[True, True], [True, False], [False, True]]
    assert Rows.concat([make(1), make(1)]).present is None


def test_join_refuses_other_layouts():
    with pytest.raises(ValueError, match="b: a list in one file, one id a row in another"):
        Rows.concat([make(1), make(1, names=("a",))])
