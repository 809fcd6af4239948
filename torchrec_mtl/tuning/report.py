"""The report of a study: the points beside the untuned config, their settings, all trials, plots."""

from __future__ import annotations

import json
import math

from torchrec_mtl.bench.identity import section
from torchrec_mtl.bench.report import Cell, Mark, Report, Section, Table
from torchrec_mtl.bench.results import several
from torchrec_mtl.bench.scores import MAIN, MORE, direction
from torchrec_mtl.bench.statistics import Difference, holm
from torchrec_mtl.bench.tables import ALPHA, compared, estimated
from torchrec_mtl.tuning.course import Trial
from torchrec_mtl.tuning.objectives import Objective
from torchrec_mtl.tuning.plots import plots_of
from torchrec_mtl.tuning.results import Point, Result, Split

_ROWS = {
    "validation": "The rows that the trials were scored on, with new seeds: the points were found there, so these "
    "figures flatter them. The choice is made by these means.",
    "test": "Rows that had no say in the search or the choice.",
}


def make_report(result: Result) -> Report:
    """Return the whole report."""
    tables = [comparison(result, "validation")]
    if result.split == "test":
        tables.append(comparison(result, "test"))
    tables += [_settings(result), _more(result), _trials(result)]
    whole = Section("Front", tuple(tables), tuple(plots_of(result)), tuple(failures(result)))
    return Report(f"Tuning {result.study.config}", tuple(head(result)), (whole,))


def head(result: Result) -> list[str]:
    """Say how the figures came about; no dates, so that the same runs give the same files."""
    study, trials = result.study, result.trials
    space, failed = study.space, sum(trial.gains is None for trial in trials)
    goals = [f"{o.name} ({'higher' if o.sign > 0 else 'lower'} is better)" for o in study.objectives]
    if study.weights is not None:
        goals = [f"{w:g} x {goal}" for w, goal in zip(study.weights, goals, strict=True)]
    rows = [trial.row for trial in trials] + [row for point in result.points for row in point.rows]
    beaten = f"{result.on_front} not beaten by another" + (f", {failed} failed" if failed else "")
    count = len(result.points)
    return [
        f"Objectives: {'; '.join(goals)}" + (", summed." if study.weights is not None else "."),
        f"Trials: {len(trials)}, of them {beaten}; seed {space.tuning_seed}, scored on the validation rows.",
        f"Points trained with every seed: {count}. Seeds: {' '.join(map(str, space.seeds))}.",
        f"Chosen: {'none' if result.chosen is None else result.chosen.name} ({result.choice.said}).",
        f"Machine: {several([row.machine for row in rows])}. Device: {several([row.device for row in rows])}.",
        f"Versions: {several([row.versions for row in rows])}.",
    ]


def comparison(result: Result, split: Split) -> Table:
    """Return the objectives of all points, each above its difference to the untuned config."""
    objectives = result.study.objectives
    differences = _differences(result, split)
    corrected = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    rows = []
    for point in result.points:
        cells = [Cell(point.name, _tags(result, point, split), number=False)]
        for objective in objectives:
            key = (point.name, objective)
            cells.append(_compared(point, objective, split, differences.get(key), corrected.get(key, math.nan)))
        rows.append(tuple(cells))
    notes = [f"{_ROWS[split]} Mean ± 95 % interval over seeds (Student's t)."]
    if split == "test":
        notes.append("Second line, ▲ and ▼: as above.")
    elif result.untuned is not None:
        notes.append(
            "Second line: difference to the untuned config, paired by seed; p of a paired t-test, corrected for all "
            f"differences of this table (Holm). ▲ better, ▼ worse: p < {ALPHA:g}."
        )
    else:
        notes.append("The untuned config failed: there is nothing to compare with.")
    return Table(f"{split.capitalize()} rows", ("point", *(_head(o) for o in objectives)), tuple(rows), tuple(notes))


def against_untuned(result: Result) -> list[str]:
    """Return a line an objective: what tuning has won, on rows that had no say in it where there are any."""
    chosen, untuned = result.chosen, result.untuned
    if chosen is None or untuned is None or chosen is untuned:
        return []
    found = []
    for objective in result.study.objectives:
        d = chosen.difference(untuned, objective, result.split)
        found.append(f"{objective.task} {objective.metric} {_verdict(d, objective)}")
    return found


def _verdict(d: Difference, objective: Objective) -> str:
    if not d.count:
        return "cannot be compared: not defined on these rows"
    better = d.mean * objective.sign
    word = "the same" if better == 0 else "better" if better > 0 else "worse"
    if math.isnan(d.half):
        sure = " with one seed, which says nothing of chance"
    else:
        sure = "" if d.low > 0 or d.high < 0 else "; the interval holds 0"
    return f"{estimated(d, sign='+')} ({word}{sure})"


def failures(result: Result) -> list[str]:
    """Return a line a failed run."""
    trials = [f"trial {trial.number}: {trial.row.error}" for trial in result.trials if trial.gains is None]
    seeds = [(point.name, row) for point in result.points for row in point.rows if row.status == "failed"]
    return trials + [f"{name}, seed {row.seed}: {row.error}" for name, row in seeds]


def settings_of(result: Result, trial: Trial) -> dict[str, object]:
    """Return searched setting -> value of a trial."""
    words = dict(word.partition("=")[::2] for word in trial.words)
    return {
        d.name: json.loads(words[d.name]) if d.name in words else section(result.study.run, d.name)
        for d in result.study.space.search
    }


def _head(objective: Objective) -> str:
    return f"{objective.task} {objective.metric} {'↑' if objective.sign > 0 else '↓'}"


def _tags(result: Result, point: Point, split: Split) -> str:
    beaten = [other.name for other in result.beaten_by(point)] if split == "validation" else []
    tags = ["chosen"] if point is result.chosen else []
    tags += [] if point.complete else ["a seed failed: cannot be chosen"]
    tags += [f"beaten by {', '.join(beaten[:3])}"] if beaten else []
    return "; ".join(tags)


def _differences(result: Result, split: Split) -> dict[tuple[str, Objective], Difference]:
    untuned = result.untuned
    found = {
        (point.name, objective): point.difference(untuned, objective, split)
        for point in result.points
        for objective in result.study.objectives
        if untuned is not None and point is not untuned
    }
    return {key: difference for key, difference in found.items() if difference.count}


def _compared(point: Point, objective: Objective, split: Split, difference: Difference | None, p: float) -> Cell:
    found = point.estimate(objective, split)
    if not found.count:
        return Cell("-") if point.complete else Cell("failed", mark="failed")
    return compared(found, difference, p, objective.sign)


def _settings(result: Result) -> Table:
    names = [d.name for d in result.study.space.search]
    rows = []
    for point in result.points:
        values = settings_of(result, point.trial)
        rows.append((Cell(point.name, number=False), *(Cell(_written(values[name])) for name in names)))
    return Table("Settings", ("point", *names), tuple(rows))


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _more(result: Result) -> Table:
    """Return the other metrics that are shown of such tasks."""
    asked = [(o.task, o.metric) for o in result.study.objectives]
    columns = [
        Objective(task.name, metric)
        for task in result.study.run.tasks
        for metric in (*MAIN[task.kind], *MORE[task.kind])
        if (task.name, metric) not in asked and direction(metric)
    ]
    rows = tuple(
        (Cell(p.name, number=False), *(Cell(estimated(p.estimate(o, result.split))) for o in columns))
        for p in result.points
    )
    heads = ("point", *(_head(o) for o in columns))
    return Table(f"Further metrics, {result.split} rows", heads, rows, folded=True)


def _trials(result: Result) -> Table:
    objectives = result.study.objectives
    names = [d.name for d in result.study.space.search]
    rows = []
    for trial in result.trials:
        values, failed = settings_of(result, trial), trial.gains is None
        cells = [Cell(str(trial.number), mark="failed" if failed else "")]
        cells += [Cell(_value(o.of(trial.row.validation), failed=failed), mark=_failed(failed)) for o in objectives]
        cells.append(Cell("-" if trial.row.seconds is None else f"{trial.row.seconds:.1f}"))
        rows.append((*cells, *(Cell(_written(values[name])) for name in names)))
    heads = ("trial", *(_head(o) for o in objectives), "seconds", *names)
    note = "One seed, validation rows; trial 1 is the config as it is. Seconds: the whole run, beside others."
    return Table("All trials", heads, tuple(rows), (note,), folded=True)


def _value(value: float | None, *, failed: bool) -> str:
    return "failed" if failed else "-" if value is None else f"{value:.4f}"


def _failed(failed: bool) -> Mark:
    return "failed" if failed else ""
