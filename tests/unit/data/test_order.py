import collections

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from torchrec_mtl.data.order import Order

orders = st.builds(
    Order,
    groups=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any).map(tuple),
    batch_size=st.sampled_from([4, 8, 32]),
    streams=st.sampled_from([1, 2, 4]),
    window=st.integers(1, 30),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
)


def windows(order):
    return -(-order.steps_per_epoch // order.steps_per_window)


@settings(max_examples=150)
@given(orders, st.integers(0, 5))
def test_every_row_belongs_to_one_window_of_one_stream(order, number):
    epoch = order.epoch(number)
    seen = collections.Counter()
    for stream in range(order.streams):
        for window in range(windows(order)):
            pieces = epoch.pieces(stream, window)
            places = epoch.permutation(stream, window)
            assert sorted(places.tolist()) == list(range(sum(stop - start for _, start, stop in pieces)))
            seen.update((group, row) for group, start, stop in pieces for row in range(start, stop))
        assert epoch.pieces(stream, windows(order)) == []
    assert set(seen.values()) == {1}
    assert len(seen) == order.num_rows


def test_without_shuffling_one_stream_is_file_order():
    order = Order((3, 0, 4), batch_size=2, streams=1, window=3, shuffle=False, seed=0)
    pieces = [piece for window in range(windows(order)) for piece in order.epoch(9).pieces(0, window)]
    assert pieces == [(0, 0, 3), (2, 0, 1), (2, 1, 4)]
    assert order.epoch(9).permutation(0, 0).tolist() == [0, 1, 2, 3]


def test_seeds_and_epochs_permute_differently():
    def first(seed, epoch):
        order = Order((50,) * 20, batch_size=8, streams=4, window=64, shuffle=True, seed=seed).epoch(epoch)
        return order.pieces(0, 0), order.permutation(0, 0).tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)
    assert first(1, 0) != first(0, 1)


def test_streams_of_a_window_are_shuffled_apart():
    epoch = Order((1000,), batch_size=8, streams=4, window=64, shuffle=True, seed=0).epoch(0)
    assert not np.array_equal(epoch.permutation(0, 0), epoch.permutation(1, 0))
    assert not np.array_equal(epoch.permutation(0, 0), epoch.permutation(0, 1))


@pytest.mark.parametrize(("batch_size", "advice"), [(30, "Use a batch size of 24 or 32"), (5, "Use a batch size of 8")])
def test_batch_size_must_be_a_multiple_of_streams(batch_size, advice):
    with pytest.raises(ValueError, match=f"batch size {batch_size} is no multiple of data.streams 8. {advice}"):
        Order((100,), batch_size=batch_size, streams=8, window=64, shuffle=True, seed=0)
