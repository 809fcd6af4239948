"""The tables of one data set: metrics beside the best baseline, negative transfer, further metrics, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from torchrec_mtl.bench.report import Cell, Mark, Table
from torchrec_mtl.bench.rows import Row
from torchrec_mtl.bench.scores import MAIN, MORE, direction
from torchrec_mtl.bench.statistics import Difference, Estimate, estimate, holm, paired_difference
from torchrec_mtl.bench.suite import Suite
from torchrec_mtl.bench.tuning import Outcome, num_trials
from torchrec_mtl.config.tasks import TaskConfig

ALPHA = 0.05
_COSTS = (
    "validation score",
    "dense parameters",
    "table parameters",
    "samples/s",
    "peak MiB",
    "trials",
    "seeds",
    "failed",
)

Column = tuple[str, str]  # task, metric


def tasks_of(outcomes: Sequence[Outcome]) -> list[TaskConfig]:
    """Return the tasks of a data set; a model may leave some out."""
    return list({task.name: task for outcome in outcomes for task in outcome.pair.run.tasks}.values())


def by_seed(outcome: Outcome, column: Column) -> dict[int, float]:
    """Return the values of a metric on the test rows, of the seeds that have one."""
    task, metric = column
    found = {row.seed: row.metrics.get(task, {}).get(metric) for row in outcome.seeds}
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def best_baseline(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the baseline whose tuning came to the best score on the validation rows; test rows have no say."""
    scored = [
        (outcome.best.score, outcome)
        for outcome in outcomes
        if outcome.pair.model.role == "baseline" and outcome.best is not None and outcome.best.score is not None
    ]
    return max(scored, key=lambda item: item[0])[1] if scored else None


def single_task(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return the model that learns each task alone: the one of this name, or the first with this head."""
    named = [o for o in outcomes if o.pair.model.name == "single_task"]
    return next(iter(named + [o for o in outcomes if o.pair.run.head.type == "single_task"]), None)


def main_table(suite: Suite, outcomes: Sequence[Outcome]) -> Table:
    """Return the metrics on the test rows, each below its difference to the best baseline, and what models cost."""
    columns = _columns(outcomes, MAIN, searched=("recall",))
    baseline = best_baseline(outcomes)
    differences = _differences(outcomes, baseline, columns)
    corrected = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    rows = []
    for outcome in outcomes:
        cells = [_name(outcome, best=outcome is baseline)]
        for column in columns:
            key = (outcome.pair.model.name, column)
            cells.append(_compared(outcome, column, differences.get(key), corrected.get(key, math.nan)))
        rows.append((*cells, *_costs(suite, outcome)))
    notes = [f"Test rows; mean ± 95 % interval over seeds (Student's t). {_legend(columns)}"]
    if baseline is not None:
        notes.append(
            f"Second line: difference to {baseline.pair.model.name}, the baseline with the best validation score, "
            "paired by seed; p of a paired t-test, corrected for all differences of this table (Holm). "
            f"▲ better, ▼ worse: p < {ALPHA:g}."
        )
    notes.append(
        "samples/s: training steps alone, mean over seeds, while the other processes of the bench were running. "
        "peak MiB: resident memory of the run's process, libraries included, largest over seeds."
    )
    return Table("Metrics", ("model", *map(" ".join, columns), *_COSTS), tuple(rows), tuple(notes))


def transfer_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Return each task's metrics minus those of the single-task model; None without one, or without another."""
    reference = single_task(outcomes)
    others = [o for o in outcomes if o is not reference]
    if reference is None or not others:
        return None
    columns = _columns(outcomes, MAIN, searched=("recall",))
    differences = _differences(outcomes, reference, columns)
    rows = [
        (_name(o), *(_transfer(differences.get((o.pair.model.name, column)), column) for column in columns))
        for o in others
    ]
    notes = (
        f"Each model minus {reference.pair.model.name}, paired by seed, ± 95 % interval. ▼ negative transfer: the "
        "interval leaves out 0 on the bad side; ▲ on the good side. Not corrected for the number of cells.",
    )
    return Table("Negative transfer", ("model", *map(" ".join, columns)), tuple(rows), notes)


def more_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the further metrics."""
    columns = _columns(outcomes, MORE, searched=("ndcg", "hit", "coverage"))
    rows = tuple((_name(o), *(Cell(estimated(_estimate(o, column))) for column in columns)) for o in outcomes)
    return Table("Further metrics", ("model", *map(" ".join, columns)), rows, (_legend(columns),), folded=True)


def settings_table(outcomes: Sequence[Outcome]) -> Table:
    """Return what tuning chose."""
    rows = []
    for outcome in outcomes:
        own, best = outcome.pair.words(), outcome.best
        chosen = [] if best is None else [word for word in best.overrides if word not in own]
        text = " ".join(chosen) or ("as given" if best is not None else "-")
        rows.append((_name(outcome), Cell(" ".join(own) or "as given", number=False), Cell(text, number=False)))
    return Table("Settings", ("model", "given", "chosen by tuning"), tuple(rows), folded=True)


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line a failed run."""
    return [
        f"{row.model}, {row.phase}, seed {row.seed}: {row.error}"
        for outcome in outcomes
        for row in (*outcome.trials, *outcome.seeds)
        if row.status == "failed"
    ]


def _columns(
    outcomes: Sequence[Outcome], shown: Mapping[str, Sequence[str]], *, searched: Sequence[str]
) -> list[Column]:
    """Return the columns of each task: its kind's metrics, and where a corpus is searched those of every length."""
    ks = sorted({k for o in outcomes if o.pair.run.retrieval is not None for k in o.pair.run.retrieval.ks})
    found = [f"{name}@{k}" for name in searched for k in ks]
    return [(task.name, metric) for task in tasks_of(outcomes) for metric in (*shown[task.kind], *found)]


def _differences(
    outcomes: Sequence[Outcome], reference: Outcome | None, columns: Sequence[Column]
) -> dict[tuple[str, Column], Difference]:
    """Return model, column -> difference to the reference, over the seeds that both have."""
    found: dict[tuple[str, Column], Difference] = {}
    for outcome in outcomes:
        for column in columns if reference is not None and outcome is not reference else ():
            assert reference is not None
            ours, theirs = by_seed(outcome, column), by_seed(reference, column)
            seeds = [seed for seed in ours if seed in theirs]
            if seeds:
                difference = paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])
                found[outcome.pair.model.name, column] = difference
    return found


def _compared(outcome: Outcome, column: Column, difference: Difference | None, p: float) -> Cell:
    found = _estimate(outcome, column)
    if not found.count:
        return Cell("failed" if _num_failed(outcome) else "-", mark="failed" if _num_failed(outcome) else "")
    return compared(found, difference, p, direction(column[1]))


def compared(found: Estimate, difference: Difference | None, p: float, sign: int) -> Cell:
    """Return a mean above its difference to what it is compared with.

    Args:
        found: of one value or more.
        difference: None: there is nothing to compare with.
        p: of the difference, corrected; nan: not tested.
        sign: 1 where higher is better, -1 where lower is.
    """
    if difference is None:
        return Cell(estimated(found))
    mark = better_or_worse(difference.mean, sign) if p < ALPHA else ""
    tested = "" if math.isnan(p) else f", p {p_value(p)}"
    return Cell(estimated(found), f"{estimated(difference, sign='+')}{tested}", mark)


def _transfer(difference: Difference | None, column: Column) -> Cell:
    if difference is None:
        return Cell("-")
    excludes_0 = not math.isnan(difference.half) and (difference.low > 0 or difference.high < 0)
    mark = better_or_worse(difference.mean, direction(column[1])) if excludes_0 else ""
    return Cell(estimated(difference, sign="+"), mark=mark)


def better_or_worse(difference: float, sign: int) -> Mark:
    """Return the mark of a difference that is beyond chance; ``sign`` as in `compared`."""
    return "better" if difference * sign > 0 else "worse"


def _costs(suite: Suite, outcome: Outcome) -> list[Cell]:
    done = [row for row in outcome.seeds if row.status == "ok"]
    failed, first = _num_failed(outcome), next(iter(done), None)
    speeds = [row.samples_per_s for row in done if row.samples_per_s is not None]
    memory = [row.peak_memory_mib for row in done if row.peak_memory_mib is not None]
    score = None if outcome.best is None else outcome.best.score
    return [
        Cell("-" if score is None else f"{score:.4f}"),
        Cell(_whole(None if first is None else first.dense_parameters)),
        Cell(_whole(None if first is None else first.table_parameters)),
        Cell(_whole(float(np.mean(speeds)) if speeds else None)),
        Cell(_whole(max(memory, default=None))),
        Cell(_of(len(outcome.trials), num_trials(suite, outcome.pair))),
        Cell(_of(len(done), len(suite.seeds))),
        Cell(str(failed), mark="failed" if failed else ""),
    ]


def _num_failed(outcome: Outcome) -> int:
    rows: Sequence[Row] = (*outcome.trials, *outcome.seeds)
    return sum(row.status == "failed" for row in rows)


def _name(outcome: Outcome, *, best: bool = False) -> Cell:
    model = outcome.pair.model
    role = "" if model.role == "system" else "best baseline" if best else "baseline"
    return Cell(model.name, role, number=False)


def _estimate(outcome: Outcome, column: Column) -> Estimate:
    return estimate(list(by_seed(outcome, column).values()))


def estimated(found: Estimate, sign: str = "") -> str:
    """Return mean and half interval as text."""
    if not found.count:
        return "-"
    mean = f"{found.mean:{sign}.4f}"
    return mean if math.isnan(found.half) else f"{mean} ± {found.half:.4f}"


def p_value(p: float) -> str:
    """Return a p as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _of(done: int, wanted: int) -> str:
    return str(done) if done == wanted else f"{done} of {wanted}"


def _legend(columns: Sequence[Column]) -> str:
    metrics = dict.fromkeys(metric for _, metric in columns)
    higher, lower = ([m for m in metrics if direction(m) == sign] for sign in (1, -1))
    said = [f"{', '.join(names)}: {word} is better" for names, word in ((higher, "higher"), (lower, "lower")) if names]
    return "; ".join(said) + "."
