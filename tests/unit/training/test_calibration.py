"""Groups of rows by prediction: what they are of, and that the order of the rows is none of it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.training.calibration import (
    Calibration,
    Group,
    group_rows,
    lifts,
    load_calibration,
    save_calibration,
)


def rows_of(seed, count=1_003):
    rng = np.random.default_rng(seed)
    predictions = rng.integers(0, 40, count) / 40  # many ties
    return (rng.random(count) < predictions).astype(float), predictions, (rng.random(count) < 0.8).astype(float)


def test_ten_groups_are_means_of_neighbours():
    labels, predictions = np.arange(20.0), np.arange(20.0) / 20
    groups = group_rows(labels, predictions, np.ones(20))
    assert [group.rows for group in groups] == [2] * 10
    assert [group.label for group in groups] == [0.5 + 2 * i for i in range(10)]
    assert [group.prediction for group in groups] == pytest.approx([(0.5 + 2 * i) / 20 for i in range(10)])
    assert groups[0].half == pytest.approx(1.96 * 0.5 / math.sqrt(2))


def test_intervals_of_labels_far_from_0_are_those_of_labels_near_it():
    rng = np.random.default_rng(0)
    labels, predictions = rng.normal(0, 5, 1_000), rng.integers(0, 200, 1_000)
    near, far = (group_rows(labels + shift, predictions, np.ones(1_000)) for shift in (0.0, 1.7e9))
    assert [g.half for g in far] == pytest.approx([g.half for g in near], rel=1e-5)
    assert min(g.half for g in near) > 0.5


def test_rows_without_a_weight_do_not_count_and_other_weights_count_as_one():
    labels, predictions, weights = rows_of(0)
    labels[weights == 0] = math.nan
    kept = weights > 0
    expected = group_rows(labels[kept], predictions[kept], np.ones(kept.sum()))
    assert group_rows(labels, predictions, 3.5 * weights) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(seed):
    labels, predictions, weights = rows_of(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    one, other = group_rows(labels, predictions, weights), group_rows(labels[order], predictions[order], weights[order])
    assert [g.rows for g in one] == [g.rows for g in other]
    for name in ("prediction", "label", "half"):
        assert [getattr(g, name) for g in one] == pytest.approx([getattr(g, name) for g in other], rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=60))
def test_groups_add_up_to_all_rows(pairs):
    labels, predictions = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]) / 5
    groups = group_rows(labels, predictions, np.ones(len(pairs)))
    assert len(groups) == min(10, len(pairs))
    assert sum(g.rows for g in groups) == len(pairs)
    assert sum(g.rows * g.label for g in groups) == pytest.approx(labels.sum())
    assert sum(g.rows * g.prediction for g in groups) == pytest.approx(predictions.sum())
    assert [g.prediction for g in groups] == sorted(g.prediction for g in groups)


def test_a_constant_prediction_has_no_lift():
    groups = group_rows([0, 1] * 50, [0.5] * 100, [1] * 100)
    assert lifts(groups) == [1.0] * 10


def test_perfect_order_puts_all_labels_in_the_last_groups():
    labels = [0] * 90 + [1] * 10
    assert lifts(group_rows(labels, np.arange(100), np.ones(100))) == [0.0] * 9 + [10.0]


@pytest.mark.parametrize("predictions", [[], [0.5, math.nan], [0.5, math.inf]])
def test_there_are_no_groups_of_nothing_and_none_of_what_is_not_finite(predictions):
    assert group_rows([1.0] * len(predictions), predictions, [1.0] * len(predictions)) == ()


def test_lift_over_a_mean_that_is_not_above_0_is_undefined():
    assert all(map(math.isnan, lifts([Group(1, 0.0, -1.0, 0.0), Group(1, 0.0, 1.0, 0.0)])))
    assert lifts([]) == []


def test_the_file_comes_back_as_it_was(tmp_path):
    found = Calibration(7, "test", {"click": group_rows([0, 1], [0.1, 0.9], [1, 1]), "none": ()})
    save_calibration(tmp_path / "calibration.json", found)
    assert load_calibration(tmp_path / "calibration.json") == found


def test_a_file_of_a_later_release_is_refused(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text('{"version": 2, "step": 1, "split": "test", "tasks": {}}')
    with pytest.raises(ValueError, match=r"calibration\.json does not hold .*version 2, this release reads 1"):
        load_calibration(path)
