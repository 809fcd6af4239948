import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchrec_mtl.bench.statistics import estimate, holm, paired_difference

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-3)


@given(numbers)
def test_interval_is_scipy_s(values):
    found = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_interval_of_few_values():
    assert estimate([]).count == 0
    assert math.isnan(estimate([]).mean)
    assert estimate([2.0]).mean == 2.0
    assert math.isnan(estimate([2.0]).half)


def test_equal_values_have_no_spread_whatever_their_rounding():
    found = estimate([0.7] * 3)
    assert (found.mean, found.half, found.count) == (0.7, 0.0, 3)
    assert math.isnan(estimate([math.nan] * 3).half)


@given(numbers)
def test_paired_test_is_scipy_s(ours):
    theirs = [value / 2 + (-1) ** i for i, value in enumerate(ours)]
    found = paired_difference(ours, theirs)
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_a_difference_without_spread(shift, p):
    found = paired_difference([1.0 + shift, 2.0 + shift], [1.0, 2.0])
    assert (found.mean, found.half, found.p) == (shift, 0.0, p)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


def test_holm_by_hand():
    # sorted 0.005 0.01 0.03 0.04: times 4, 3, 2, 1, and never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested():
    assert holm([0.02, math.nan, 0.01])[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(holm([0.02, math.nan])[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni_s(p_values):
    for p, corrected in zip(p_values, holm(p_values)):
        assert p <= corrected <= min(1.0, len(p_values) * p) or corrected == max(holm(p_values))
        assert corrected <= 1.0
