import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.bench.fronts import unbeaten
from torchrec_mtl.tuning.choose import Choice, choose

FRONT = [(0.0, 10.0), (4.0, 9.0), (8.0, 6.0), (10.0, 0.0)]
clouds = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8)


@given(clouds, st.sampled_from(["ideal", "rank"]), st.sampled_from([1.0, 3.0]))
def test_what_is_chosen_is_beaten_by_no_other(points, rule, weight):
    assert choose(points, rule, (weight, 1.0)) in unbeaten(points)


def test_ideal_is_the_point_nearest_to_the_best_of_everything():
    scaled = np.array(FRONT) / 10
    assert choose(FRONT, "ideal", (1, 1)) == np.argmin(((1 - scaled) ** 2).sum(axis=1)) == 2


@pytest.mark.parametrize(("weights", "chosen"), [((9, 1), 2), ((100, 1), 3), ((1, 9), 1), ((1, 100), 0)])
def test_a_preference_moves_the_choice_towards_its_objective(weights, chosen):
    assert choose(FRONT, "ideal", weights) == chosen


def test_units_of_an_objective_make_no_difference():
    assert choose([(x, y * 1000 - 5) for x, y in FRONT], "ideal", (1, 1)) == 2


def test_rank_takes_the_best_mean_rank():
    front = [(1, 9, 9), (2, 8, 8), (9, 1, 1)]
    assert choose(front, "rank", (1, 1, 1)) == 0
    assert choose(front, "rank", (9, 1, 1)) == 2


def test_a_beaten_point_far_off_has_no_say():
    assert choose([*FRONT, (-1000.0, -1000.0)], "ideal", (1, 1)) == 2


def test_the_only_point_is_chosen():
    assert choose([(1.0,)], "ideal", (1,)) == choose([(1.0,)], "rank", (1,)) == 0


def test_a_rule_is_said_in_words():
    assert Choice().said == "nearest to the ideal point"
    assert Choice("rank", {"click/auc": 2.0}).said == "best mean rank, weights: click/auc 2"
    assert Choice(3).said == "asked for by --choose"
