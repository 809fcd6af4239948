"""Which evaluation is the best, and for how long none was."""

import json
import math

import pytest

from torchrec_mtl.config.training import MonitorConfig
from torchrec_mtl.training.state import TrainState


def record(values: list[float], **monitor: str) -> tuple[list[bool], TrainState]:
    state, config = TrainState(), MonitorConfig.model_validate(monitor)
    found = []
    for value in values:
        state.step += 1
        found.append(state.record(value, config))
    return found, state


@pytest.mark.parametrize("metric", ["loss", "click/ne", "watch_time/rmse", "click/calibration"])
def test_lower_is_better_by_default(metric: str) -> None:
    found, state = record([3.0, 2.0, 2.0, 2.5], metric=metric)
    assert found == [True, True, False, False]
    assert (state.best, state.best_step, state.stale, state.evaluated) == (2.0, 2, 2, 4)


HIGHER = ["click/auc", "click/gauc", "click/recall@50", "click/ndcg@10", "watch_time/spearman", "watch_time/gini"]


@pytest.mark.parametrize("metric", HIGHER)
def test_higher_is_better_for_rankings(metric: str) -> None:
    assert record([0.6, 0.7, 0.65], metric=metric)[0] == [True, True, False]
    assert record([0.6, 0.7, 0.65], metric=metric, mode="min")[0] == [True, False, False]


def test_the_mode_can_be_told() -> None:
    assert record([1.0, 2.0], metric="click/calibration", mode="max")[0] == [True, True]


def test_nan_is_never_the_best() -> None:
    found, state = record([math.nan, 1.0, math.nan])
    assert found == [False, True, False]
    assert (state.best, state.best_step, state.stale) == (1.0, 2, 1)


def test_notes_are_json_and_come_back() -> None:
    _, state = record([1.0])
    assert TrainState(**json.loads(json.dumps(state.notes()))) == state
