import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mtl.bench.labels import Box, place_labels

BOUNDS = Box(0, 0, 800, 600)
places = st.tuples(st.floats(100, 700), st.floats(100, 500))


@settings(max_examples=40, deadline=None)
@given(st.lists(places, min_size=1, max_size=8))
def test_labels_cover_neither_each_other_nor_points(points):
    dots = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    boxes = place_labels(points, [(60.0, 11.0)] * len(points), dots, BOUNDS)
    assert all(a.overlap(b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(box.overlap(dot) == 0 for box in boxes for dot in dots)
    assert all(box.outside(BOUNDS) < 1e-6 for box in boxes)


def test_a_label_without_neighbours_lies_right_of_its_point():
    [box] = place_labels([(400, 300)], [(60.0, 11.0)], [], BOUNDS)
    assert 400 < box.left < 410
    assert box.bottom < 300 < box.top


def test_without_room_the_least_covering_place_is_taken():
    [box] = place_labels([(30, 10)], [(60.0, 11.0)], [], Box(0, 0, 62, 20))
    assert box.outside(Box(0, 0, 62, 20)) < 60 * 11
