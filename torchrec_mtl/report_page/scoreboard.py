"""Final metrics of several runs side by side, the best of each marked, and what learning tasks together did to each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torchrec_mtl.bench.report import Cell, Mark, Table
from torchrec_mtl.bench.scores import MAIN, direction
from torchrec_mtl.bench.statistics import Estimate, estimate
from torchrec_mtl.findings import shown
from torchrec_mtl.report_page.groups import Group

_HOW_TO_READ = (
    "▲: the best of these runs; with one seed, or where intervals overlap, that may be chance. Of calibration the "
    "nearest to 1 is best. Where a config has several seeds: mean ± 95 % interval over seeds (Student's t)."
)


def metrics_tables(groups: Sequence[Group]) -> list[Table]:
    """Return a table a task, a row a config."""
    tables = []
    for task, kind in _tasks(groups).items():
        there = [group for group in groups if any(task in run.metrics for run in group.runs)]
        names = list(dict.fromkeys(n for group in there for run in group.runs for n in run.metrics.get(task, {})))
        if names:
            rows = _rows(there, task, names)
            tables.append(Table(f"{task} ({kind})", ("run", *names), rows, ()))
    return tables


def how_to_read(groups: Sequence[Group]) -> list[str]:
    """Return what to know of the tables, and what stands against comparing these runs."""
    lines = [_HOW_TO_READ]
    if len({str(group.first.evaluated_on) for group in groups}) > 1:
        files = "; ".join(f"{g.name}: {g.first.split} data {_files(g.first.evaluated_on)}" for g in groups)
        lines.append(f"Not evaluated on the same files, so the figures may not be comparable. {files}.")
    if waiting := [run.name for group in groups for run in group.runs if run.step is None]:
        lines.append(f"No final evaluation yet: {', '.join(waiting)}.")
    return lines


def _files(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _tasks(groups: Sequence[Group]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for group in groups:
        found = {**found, **{task: kind for task, kind in group.tasks.items() if task not in found}}
    return found


def _rows(groups: Sequence[Group], task: str, names: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    columns = {name: [group.mean_of(task, name) for group in groups] for name in names}
    best = {name: _best(name, means) for name, means in columns.items()}
    return tuple(
        (
            Cell(group.name, f"{len(group.runs)} seeds" if len(group.runs) > 1 else "", number=False),
            *(_cell(columns[name][i], i in best[name], len(group.runs)) for name in names),
        )
        for i, group in enumerate(groups)
    )


def _best(name: str, means: Sequence[Estimate | None]) -> set[int]:
    """Return the places of the best; none where all are alike, or nothing is better."""
    sign = direction(name)
    values = {i: mean.mean for i, mean in enumerate(means) if mean is not None}
    if name == "calibration":
        values, sign = {i: -abs(math.log(v)) if v > 0 else -math.inf for i, v in values.items()}, 1
    if not sign or len(values) < 2 or len(set(values.values())) < 2:
        return set()
    best = max(sign * value for value in values.values())
    return {i for i, value in values.items() if sign * value == best}


def _cell(found: Estimate | None, best: bool, seeds: int) -> Cell:
    if found is None:
        return Cell("-")
    value = int(found.mean) if found.mean.is_integer() and found.mean >= 1000 else found.mean
    interval = "" if math.isnan(found.half) or not found.half else f" ± {found.half:.2g}"
    missing = f"{found.count} of {seeds} seeds" if found.count < seeds else ""
    return Cell(shown(value) + interval, missing, "better" if best else "")


def transfer_table(groups: Sequence[Group]) -> Table | None:
    """Return each task's metrics minus those of a run that learned it alone; None without one, or without another."""
    alone = {task: group for group in reversed(groups) for task in group.tasks if _learns_alone(group)}
    together = [group for group in groups if not _learns_alone(group) and set(group.tasks) & set(alone)]
    if not together:
        return None
    columns = [(t, m) for t, kind in _tasks(groups).items() if t in alone for m in MAIN.get(kind, ())]
    rows = tuple(
        (Cell(group.name, number=False), *(_difference(group, alone[task], task, metric) for task, metric in columns))
        for group in together
    )
    names = ", ".join(dict.fromkeys(group.name for group in alone.values()))
    notes = (
        f"Each run minus {names}, where a task learns alone. With several seeds in common: paired by seed, ± 95 % "
        "interval; ▼ negative transfer: the interval leaves out 0 on the bad side; ▲ on the good side. Not corrected "
        "for the number of cells. With one seed a difference may be chance, and is not marked.",
        *_on_other_files(together, alone),
    )
    return Table(
        "Tasks together against each alone", ("run", *(f"{task} {metric}" for task, metric in columns)), rows, notes
    )


def _on_other_files(together: Sequence[Group], alone: Mapping[str, Group]) -> list[str]:
    """Return a line on runs that were evaluated on other files than what they are compared with."""
    apart = [
        f"{group.name} against {other.name}"
        for group in together
        for other in {alone[task].number: alone[task] for task in group.tasks if task in alone}.values()
        if str(group.first.evaluated_on) != str(other.first.evaluated_on)
    ]
    said = f"Not evaluated on the same files, so the differences may be of the data: {', '.join(apart)}."
    return [said] if apart else []


def _learns_alone(group: Group) -> bool:
    return group.first.head == "single_task" or len(group.tasks) == 1


def _difference(group: Group, alone: Group, task: str, metric: str) -> Cell:
    ours, theirs = group.by_seed(task, metric), alone.by_seed(task, metric)
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not pairs:
        mine, other = group.mean_of(task, metric), alone.mean_of(task, metric)
        if mine is None or other is None:
            return Cell("-")
        return Cell(f"{mine.mean - other.mean:+.4f}", "other seeds")
    found = estimate(pairs)
    if math.isnan(found.half):
        return Cell(f"{found.mean:+.4f}")
    beyond = abs(found.mean) > found.half
    mark: Mark = "" if not beyond else "better" if found.mean * direction(metric) > 0 else "worse"
    return Cell(f"{found.mean:+.4f} ± {found.half:.4f}", mark=mark)
