"""Calibration curves and lift: what was predicted and what came, by groups of rows with like predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from torchrec_mtl.bench.report import Cell, Table
from torchrec_mtl.findings import shown
from torchrec_mtl.report_page.groups import Group
from torchrec_mtl.report_page.html import charts, folded, table_of
from torchrec_mtl.report_page.svg import Curve, Look, figure
from torchrec_mtl.training import calibration
from torchrec_mtl.training.calibration import lifts

HOW_TO_READ = (
    "The rows of each task in ten groups of as many rows, by prediction. Calibration: the mean label of each group "
    "over its mean prediction, on the dotted line where they agree; bars: 95 % interval by the normal approximation. "
    "Axes are logarithmic where all numbers are above 0. Lift: the mean label of each group over that of all rows; "
    "group 10 has the highest predictions."
)
_BY_PREDICTION = Look("mean prediction", first=None, diagonal=True, log=True, last=False, unit="mean prediction")
_BY_GROUP = Look("groups of rows by prediction", first=0, levels=(1.0,), last=False, unit="group")


def reliability_of(groups: Sequence[Group]) -> str:
    """Return a pair of charts a task, with all runs, and the numbers of the first; "" where there are none."""
    tasks = list(dict.fromkeys(task for group in groups for task in group.tasks))
    parts = [_task(groups, task) for task in tasks]
    return f"<p class=soft>{HOW_TO_READ}</p>{''.join(parts)}" if any(parts) else ""


def _task(groups: Sequence[Group], task: str) -> str:
    found = [(group, mean) for group in groups if (mean := _mean(group, task))]
    if not found:
        return ""
    curves = [
        Curve(group.name, group.colour, tuple((g.prediction, g.label) for g in mean), band=_bars(mean), dash=group.dash)
        for group, mean in found
    ]
    lift = [Curve(group.name, group.colour, tuple(enumerate(lifts(mean), 1)), dash=group.dash) for group, mean in found]
    drawn = [
        figure(f"calibration of {task}", curves, look=_BY_PREDICTION),
        figure(f"lift of {task}", lift, look=_BY_GROUP),
    ]
    numbers = "".join(_numbers(mean, group.name) for group, mean in found)
    return f"<h3>{escape(task)}</h3>{charts([d for d in drawn if d])}{folded(f'Numbers of {task}', numbers)}"


def _bars(groups: Sequence[calibration.Group]) -> tuple[tuple[float, float, float], ...]:
    return tuple((g.prediction, g.label - g.half, g.label + g.half) for g in groups)


def _mean(group: Group, task: str) -> tuple[calibration.Group, ...]:
    """Return the groups of rows, their means over seeds where these are of the same rows."""
    seeds = [run.calibration.tasks.get(task, ()) for run in group.runs if run.calibration is not None]
    seeds = [rows for rows in seeds if rows]
    if not seeds or len({tuple(g.rows for g in rows) for rows in seeds}) > 1:
        return tuple(seeds[0]) if seeds else ()
    count = len(seeds)
    return tuple(
        calibration.Group(
            same[0].rows,
            sum(g.prediction for g in same) / count,
            sum(g.label for g in same) / count,
            math.nan if count > 1 else same[0].half,  # the seeds saw the same rows: their intervals are not independent
        )
        for same in zip(*seeds, strict=True)
    )


def _numbers(found: Sequence[calibration.Group], title: str) -> str:
    rows = tuple(
        tuple(Cell(shown(value)) for value in (i, g.rows, g.prediction, g.label, g.half, lift))
        for i, (g, lift) in enumerate(zip(found, lifts(found), strict=True), 1)
    )
    columns = ("group", "rows", "mean prediction", "mean label", "±", "lift")
    return table_of(Table(title, columns, rows))
