"""How well one feature alone tells a label: so well that it cannot be known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mtl.checking.findings import Finding
from torchrec_mtl.checking.report import LeakFigures
from torchrec_mtl.checking.sample import Sampled
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.data.rows import Bools, Ints, Jagged
from torchrec_mtl.training.metrics import auc, ranks

_FEWEST = 20  # rows of either class; of chance alone, no AUC comes near 0.98 then
_STRONG = 0.95
_BINS = 256
_BETTER = 0.005  # else the simpler explanation stands
_BY = {
    "ids": "by its ids",
    "values": "by its value",
    "bins": "by which values it has",
    "length": "by its length",
    "target": "by whether the item is in it",
}


@dataclass(frozen=True)
class _Target:
    """What is to be told: [n] numbers, and which of the rows count."""

    name: str
    measure: str
    values: Doubles
    rows: Bools


def find_leaks(sampled: Sampled, run: RunConfig) -> tuple[LeakFigures, ...]:
    """Return the strongest figure of each feature for each task, strongest first.

    Scores that have to be fitted (of ids and of bins) are fitted to one half of the rows and judged on the other, so
    that an id which is met once tells nothing. Scores that are there already are judged on all rows, either way up.
    """
    found: dict[tuple[str, str], LeakFigures] = {}
    targets = [(task.name, t) for k, task in enumerate(run.tasks) for t in _targets(sampled, k, task.kind)]
    for feature, by, score in _plain(sampled, run):
        for task, target in targets:
            if _enough(target, target.rows):
                _keep(found, task, feature, by, target, score, target.rows)
    for feature, by, codes, size in _codes(sampled):
        for task, target in targets:
            judged, known = target.rows & ~sampled.fitted, target.rows & sampled.fitted
            if _enough(target, judged) and known.any():
                _keep(found, task, feature, by, target, _encode(codes, size, target, known), judged)
    return tuple(sorted(found.values(), key=lambda f: (-f.value, f.task, f.feature)))


def leak_findings(figures: Sequence[LeakFigures], run: RunConfig, limit: float) -> Iterator[Finding]:
    """Flag the figures above ``limit``, and note those that come near."""
    columns = {feature.name: feature.source for feature in (*run.features.pooled, *run.features.unpooled)}
    columns |= {dense.name: dense.source for dense in run.features.dense}
    for figure in figures:
        if figure.value > min(limit, _STRONG):
            measure = "AUC" if figure.measure == "auc" else "rank correlation"
            what = (
                f"feature '{figure.feature}' alone tells the {figure.target} of task '{figure.task}' with {measure} "
                f"{figure.value:.4f} ({_BY[figure.by]}, on {figure.rows:,} rows)"
            )
            column = columns[figure.feature]
            if figure.value > limit:
                advice = (
                    "It is hardly known before the label is: leave it out, and name its column in data.outcomes. If it "
                    "is known, raise --leak-auc."
                )
                yield Finding("error", "leak", "train", column, what, advice)
            else:
                yield Finding("note", "strong", "train", column, what, "See that it is known before the label is.")


def _targets(sampled: Sampled, k: int, kind: str) -> Iterator[_Target]:
    label, rows = sampled.labels[:, k], sampled.usable[:, k]
    if kind == "binary":
        yield _Target("label", "auc", label, rows)
        return
    by_rank = np.zeros(len(label))
    if rows.any():
        by_rank[rows] = ranks(label[rows])  # also where scores are fitted: a few huge amounts would drown the others
    yield _Target("label", "spearman", by_rank, rows)
    yield _Target("label > 0", "auc", (label > 0).astype(np.float64), rows)


def _enough(target: _Target, rows: Bools) -> bool:
    values = target.values[rows]
    if target.measure == "spearman":
        return len(values) >= 2 * _FEWEST and values.min() < values.max()
    positive = int(values.sum())
    return min(positive, len(values) - positive) >= _FEWEST


def _keep(
    found: dict[tuple[str, str], LeakFigures],
    task: str,
    feature: str,
    by: str,
    target: _Target,
    score: Doubles,
    rows: Bools,
) -> None:
    labels, scores = target.values[rows], score[rows]
    if target.measure == "auc":
        value = auc(labels, scores)
        value = value if by in {"ids", "bins"} else max(value, 1 - value)
    else:
        value = abs(_correlation(labels, ranks(scores)))
    before = found.get((task, feature))
    if not np.isnan(value) and (before is None or value > before.value + _BETTER):
        figure = LeakFigures(task, feature, by, target.measure, target.name, value, int(rows.sum()))
        found[task, feature] = figure


def _correlation(x: Doubles, y: Doubles) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else np.nan


def _codes(sampled: Sampled) -> Iterator[tuple[str, str, Ints | Jagged, int]]:
    """Yield every feature as numbers from 0 up, and how many numbers there are."""
    for name, ids in sampled.single.items():
        values, places = np.unique(ids, return_inverse=True)
        yield name, "ids", places, len(values)
    for name, jagged in sampled.lists.items():
        values, places = np.unique(jagged.flat, return_inverse=True)
        if len(values):
            yield name, "ids", Jagged.from_lengths(places, jagged.lengths), len(values)
    for name, numbers in sampled.dense.items():
        known = numbers[~np.isnan(numbers)]
        if len(known):
            edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1], method="lower"))
            places = np.where(np.isnan(numbers), len(edges) + 1, np.searchsorted(edges, numbers, side="left"))
            yield name, "bins", places, len(edges) + 2


def _plain(sampled: Sampled, run: RunConfig) -> Iterator[tuple[str, str, Doubles]]:
    """Yield the scores that are there already."""
    for name, numbers in sampled.dense.items():
        known = ~np.isnan(numbers)
        if known.any():
            yield name, "values", np.where(known, numbers, numbers[known].mean())  # as the model reads nulls
    for name, jagged in sampled.lists.items():
        yield name, "length", jagged.lengths.astype(np.float64)
    for sequence in run.features.sequences:
        target = sequence.target
        if target in sampled.single and sequence.name in sampled.lists:
            jagged = sampled.lists[sequence.name]
            rows = np.repeat(np.arange(len(jagged.lengths)), jagged.lengths)
            same = (jagged.flat == sampled.single[target][rows]).astype(np.float64)
            yield sequence.name, "target", (np.bincount(rows, same, len(jagged.lengths)) > 0).astype(np.float64)


def _encode(codes: Ints | Jagged, size: int, target: _Target, known: Bools) -> Doubles:
    """Return the mean target [n] of each row's id among the ``known`` rows, pulled to the mean of all by one row."""
    values = target.values
    prior = float(values[known].mean())
    if not isinstance(codes, Jagged):
        return _means(codes[known], values[known], size, prior)[codes]
    lengths = codes.lengths
    rows = np.repeat(np.arange(len(lengths)), lengths)
    of_known = known[rows]
    means = _means(codes.flat[of_known], values[rows[of_known]], size, prior)
    empty = known & (lengths == 0)
    scores = np.bincount(rows, means[codes.flat], len(lengths)) / lengths.clip(1)
    return np.where(lengths == 0, values[empty].mean() if empty.any() else prior, scores)


def _means(codes: Ints, values: Doubles, size: int, prior: float) -> Doubles:
    means: Doubles = (np.bincount(codes, values, size) + prior) / (np.bincount(codes, minlength=size) + 1)
    return means
