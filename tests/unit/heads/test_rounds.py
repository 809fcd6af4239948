"""What rounds have found survives in buffers, and the best is chosen whatever is unknown."""

import math

import pytest
import torch

from torchrec_mtl.heads.rounds import Rounds

N = 13


def mask(seed, density=0.5):
    return torch.rand(N, generator=torch.Generator().manual_seed(seed)) < density


def scored(*scores):
    rounds = Rounds(2, len(scores) - 1, N)
    for number, score in enumerate(scores):
        rounds.score([0], number, score)
    return rounds


def test_tasks_start_with_the_full_network():
    rounds = Rounds(3, 2, N)
    assert rounds.current().tolist() == [[True] * N] * 3
    assert rounds.density(1, 0) == 1.0
    assert rounds.density(1, 1) == 0.0


def test_a_round_that_begins_is_that_of_its_tasks_alone():
    rounds = Rounds(3, 2, N)
    rounds.begin([0, 2], 1, mask(1))
    rounds.begin([2], 2, mask(2))
    assert torch.equal(rounds.current(), torch.stack([mask(1), torch.ones(N).bool(), mask(2)]))
    assert torch.equal(rounds.current(torch.tensor([2, 0])), torch.stack([mask(2), mask(1)]))
    assert torch.equal(rounds.of_round(2, 1), mask(1))
    assert rounds.density(2, 2) == pytest.approx(mask(2).float().mean().item())
    assert rounds.used.tolist() == [1, 0, 2]


@pytest.mark.parametrize(("better", "expected"), [("higher", 2), ("lower", 1)])
def test_the_best_of_the_candidates_is_used(better, expected):
    rounds = scored(0.9 if better == "higher" else 0.1, 0.6, 0.8, 0.7)
    assert rounds.choose([0], range(1, 4), better) == expected
    assert rounds.used.tolist() == [expected, 0]
    assert rounds.choose([0], range(4), better) == 0


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_of_equals_the_first_is_used(better):
    assert scored(0.1, 0.5, 0.5).choose([0], range(1, 3), better) == 1


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("unknown", [math.nan, math.inf, -math.inf])
def test_a_round_without_a_score_is_never_chosen(better, unknown):
    rounds = scored(unknown, 0.5, unknown)
    assert rounds.choose([0], range(3), better) == 1


def test_without_any_score_there_is_nothing_to_choose_by():
    rounds = scored(0.5, math.nan, math.nan)
    with pytest.raises(ValueError, match=r"none of the rounds \[1, 2\] has a score"):
        rounds.choose([0], range(1, 3), "higher")
    assert rounds.used.tolist() == [0, 0]


def test_a_state_dict_carries_everything():
    rounds = scored(0.5, 0.7)
    rounds.begin([1], 1, mask(1))
    fresh = Rounds(2, 1, N)
    fresh.load_state_dict(rounds.state_dict())
    assert torch.equal(fresh.current(), rounds.current())
    assert torch.equal(fresh.scores, rounds.scores)
    assert fresh.choose([0], range(2), "higher") == 1


def test_scores_are_kept_to_the_last_digit():
    assert scored(0.7, 0.7 + 1e-12).choose([0], range(2), "higher") == 1
