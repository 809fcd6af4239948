"""Which metrics the tables show, which way each is better, and the one number that tuning maximises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from torchrec_mtl.config.base import did_you_mean
from torchrec_mtl.config.checks_tasks import METRICS
from torchrec_mtl.config.tasks import TaskConfig

Values = Mapping[str, Mapping[str, float | None]]

PRIMARY: Final = {"binary": "auc", "regression": "gini"}
MAIN: Final = {"binary": ("auc",), "regression": ("gini", "nrmse")}
MORE: Final = {"binary": ("logloss",), "regression": ("nmae", "spearman")}

MEAN: Final = "mean"

_HIGHER: Final = frozenset({"auc", "gauc", "spearman", "gini"})
_RETRIEVAL: Final = frozenset({"recall", "ndcg", "hit"})
_LOWER: Final = frozenset({"logloss", "ne", "ece", "rmse", "mae", "nrmse", "nmae", "loss"})


def direction(metric: str) -> int:
    """Return 1 where higher is better, -1 where lower is, 0 where neither is (calibration: 1 is best)."""
    name, at, _ = metric.partition("@")
    if at:  # of a retrieval: recall@50
        return 1 if name in _RETRIEVAL else 0
    return 1 if metric in _HIGHER else -1 if metric in _LOWER else 0


def trained(tasks: Sequence[TaskConfig]) -> list[TaskConfig]:
    """Return the tasks whose losses count; all where none does, since the head then has losses of its own."""
    return [task for task in tasks if task.weight > 0] or list(tasks)


def score(rule: str, tasks: Sequence[TaskConfig], values: Values) -> float | None:
    """Return what tuning maximises; None where a metric is not defined.

    Args:
        rule: ``auto``, the mean of the trained tasks' AUC (binary) and Gini (regression); ``task/metric``; or
            ``mean/metric``, over the trained tasks.
        tasks: of the run.
        values: task -> metric -> value.
    """
    if rule == "auto":
        wanted = [(t.name, PRIMARY[t.kind]) for t in trained(tasks)]
    else:
        task, _, name = rule.rpartition("/")
        wanted = [(t.name, name) for t in trained(tasks)] if task == MEAN else [(task, name)]
    found = [(values.get(task, {}).get(name), direction(name)) for task, name in wanted]
    numbers = [value * sign for value, sign in found if value is not None and math.isfinite(value)]
    return float(np.mean(numbers)) if len(numbers) == len(wanted) else None


def score_problem(rule: str, tasks: Sequence[TaskConfig], retrieval: Sequence[str] = ()) -> str | None:
    """Return what is wrong with a rule for these tasks.

    Args:
        rule: see `score`.
        tasks: of the run.
        retrieval: further metrics that every task has.
    """
    if rule == "auto":
        return None
    name, separator, metric = rule.rpartition("/")
    asked = trained(tasks) if name == MEAN else [t for t in tasks if t.name == name]
    if not separator:
        example = f"{tasks[0].name}/{PRIMARY[tasks[0].kind]}"
        return f"score: expected auto, or task/metric such as {example} (found '{rule}')"
    if not asked:
        return f"score: no task is called '{name}'.{did_you_mean(name, [t.name for t in tasks])}"
    for task in asked:
        fitting = [m for m in (*METRICS[task.kind], *retrieval) if direction(m)]
        if metric not in fitting:
            return f"score: nothing to maximise in '{metric}' of a {task.kind} task.{did_you_mean(metric, fitting)}"
    return None
