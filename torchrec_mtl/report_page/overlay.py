"""What several runs logged, in the same charts: a colour a config, its seeds as a mean with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from torchrec_mtl.bench.statistics import interval_factor
from torchrec_mtl.report_page.curves import KINDS, LEVELS, NOT_DRAWN
from torchrec_mtl.report_page.groups import Group
from torchrec_mtl.report_page.html import charts, folded
from torchrec_mtl.report_page.log import Series
from torchrec_mtl.report_page.svg import Curve, Look, figure

_MAIN = frozenset({"auc", "gauc", "gini", "nrmse"})
_MOST_STEPS = 2_000  # that a mean over seeds is made at


def losses_of(groups: Sequence[Group]) -> str:
    """Return a chart a task of the loss on evaluation data, that of training closed at first; else of training."""
    drawn, closed = [*_drawn(groups, "all tasks, evaluation", "eval/loss")], []
    for name in _names(groups, "train/loss"):
        evaluated = list(_drawn(groups, f"{name}, evaluation", f"eval/{name}/loss"))
        training = list(_drawn(groups, f"{name}, training", f"train/loss/{name}", faint=True))
        drawn += evaluated or training
        closed += training if evaluated else []
    return charts(drawn) + (folded("Losses of training", charts(closed)) if closed else "")


def metrics_of(groups: Sequence[Group]) -> str:
    """Return a chart a task and metric on evaluation data; those besides the main ones closed at first."""
    names = [n for n in _names(groups, "eval") if "/" in n and n.rpartition("/")[2] not in NOT_DRAWN]
    main = [n for n in names if n.rpartition("/")[2] in _MAIN or "recall@" in n]
    open_, others = ([d for n in ns for d in _metric(groups, n)] for ns in (main, [n for n in names if n not in main]))
    return charts(open_) + (folded("Further metrics", charts(others)) if others else "")


def gradients_of(groups: Sequence[Group]) -> str:
    """Return a chart a kind of number and task; "" where nothing was logged."""
    drawn: list[str] = []
    for kind, words in KINDS.items():
        for task in _names(groups, f"train/gradient/{kind}"):
            look = Look(levels=LEVELS.get(kind, ()))
            drawn += _drawn(groups, f"{words}: {task}", f"train/gradient/{kind}/{task}", faint=True, look=look)
    return charts(drawn) if drawn else ""


def speed_of(groups: Sequence[Group]) -> str:
    """Return a chart of the samples trained in a second."""
    return charts(list(_drawn(groups, "samples per second", "train/samples_per_s", faint=True)))


def _metric(groups: Sequence[Group], name: str) -> Iterator[str]:
    task, _, metric = name.rpartition("/")
    return _drawn(groups, f"{task}: {metric}", f"eval/{name}", look=Look(levels=LEVELS.get(metric, ())))


def _names(groups: Sequence[Group], prefix: str) -> list[str]:
    """Return the names below a prefix that some run has, in the order of first appearance."""
    logs = [run.log for group in groups for run in group.runs if run.log is not None]
    return list(dict.fromkeys(name for log in logs for name in log.below(prefix)))


def _drawn(
    groups: Sequence[Group], title: str, key: str, *, faint: bool = False, look: Look | None = None
) -> Iterator[str]:
    curves = [curve for group in groups for curve in _curves(group, key, faint)]
    if drawn := figure(title, curves, look=look):
        yield drawn


def _curves(group: Group, key: str, faint: bool) -> list[Curve]:
    """Return the mean over seeds with its interval; each seed's own curve where they have no step in common."""
    logs = [run.log for run in group.runs if run.log is not None]
    found = [log.series[key] for log in logs if key in log.series]
    means = _means(found) if len(found) > 1 else []
    if not means:
        return [Curve(group.name, group.colour, series.points(), faint, dash=group.dash) for series in found]
    points = tuple((step, mean) for step, mean, _ in means)
    band = tuple((step, mean - half, mean + half) for step, mean, half in means)
    return [Curve(group.name, group.colour, points, faint, band, group.dash)]


def _means(found: Sequence[Series]) -> list[tuple[float, float, float]]:
    """Return (step, mean, half the width of its interval) of the steps that all seeds have, the last one among them.

    A mean is not finite where a seed's value is not; there is nothing where all are so.
    """
    common = reduce(np.intersect1d, [np.asarray(series.steps) for series in found])
    common = common[:: -max(1, math.ceil(len(common) / _MOST_STEPS))][::-1]
    if not len(common):
        return []
    values = np.stack([_at(series, common) for series in found])  # [seeds, steps]
    with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverged
        means, halves = values.mean(axis=0), interval_factor(len(values)) * values.std(axis=0, ddof=1)
    if not np.isfinite(means).any():
        return []
    return list(zip(map(float, common), means.tolist(), halves.tolist(), strict=True))


def _at(series: Series, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the last value of each of the steps, all of which the series has."""
    mine = np.asarray(series.steps)
    order = np.argsort(mine, kind="stable")
    values: NDArray[np.float64] = np.asarray(series.values)[
        order[np.searchsorted(mine[order], steps, side="right") - 1]
    ]
    return values
