import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.bench.fronts import unbeaten
from torchrec_mtl.tuning.geometry import hypervolume, hypervolumes, spread

# Two points that differ in the last digit: their volume rounds to 0.
ULP = [(0.7, 0.5000000000000001), (0.7000000000000001, 0.5)]


def clouds(most_goals, largest=4, most_points=7):
    """Points with whole coordinates 0 to ``largest``."""
    goals = st.integers(1, most_goals)
    return goals.flatmap(
        lambda k: st.lists(st.tuples(*[st.integers(0, largest)] * k), min_size=1, max_size=most_points)
    )


@given(clouds(4))
def test_the_front_is_what_no_other_point_beats(points):
    kept = set(unbeaten(points))
    for i, point in enumerate(points):
        beaten = any(min(a - b for a, b in zip(other, point)) >= 0 and other != point for other in points)
        assert (i in kept) != beaten


@given(clouds(3))
def test_a_hypervolume_is_the_number_of_unit_cells_below_a_point(points):
    cells = itertools.product(range(4), repeat=len(points[0]))
    covered = sum(any(all(c < x for c, x in zip(cell, p)) for p in points) for cell in cells)
    assert hypervolume(points, [0] * len(points[0])) == covered


@given(clouds(4))
def test_a_hypervolume_grows_with_every_point_and_is_that_of_the_front(points):
    reference = [0] * len(points[0])
    sizes = [hypervolume(points[:n], reference) for n in range(1, len(points) + 1)]
    assert sizes == sorted(sizes)
    assert hypervolume([points[i] for i in unbeaten(points)], reference) == sizes[-1]


def test_what_lies_below_the_reference_adds_nothing():
    assert hypervolume([(5, -1), (2, 2)], (0, 0)) == 4
    assert hypervolume([(-1, -1)], (0, 0)) == 0


def test_hypervolumes_rise_to_one_and_failed_trials_add_nothing():
    found = hypervolumes([None, (0.0, 1.0), (0.5, 0.5), None, (0.4, 0.4), (1.0, 0.0)])
    assert found[0] == 0
    assert found[2] == found[3] == found[4]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    "points", [[], [None], [(1.0,), (2.0,)], [(1.0, 1.0), (0.0, 0.0)], [(1.0,) * 5, (2.0,) * 5], ULP]
)
def test_without_a_volume_there_is_none(points):
    assert hypervolumes(points) is None


@given(clouds(3, most_points=12), st.integers(1, 5))
def test_of_many_points_the_ends_are_kept(points, most):
    kept = spread(points, most)
    assert len(kept) == len(set(kept)) == min(most, len(points))
    assert kept == sorted(kept)
    if most >= len(points[0]):
        for k in range(len(points[0])):
            assert max(points[i][k] for i in kept) == max(p[k] for p in points)


def test_the_third_is_the_one_farthest_from_the_ends():
    assert spread([(0, 10), (1, 9), (2, 8), (5, 5), (9, 1), (10, 0)], 3) == [0, 3, 5]
