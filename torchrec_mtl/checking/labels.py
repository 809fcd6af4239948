"""The tasks' labels in one split: rates, spaces, and whatever stops a run or teaches nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from torchrec_mtl.checking.days import DayColumn, DayScan
from torchrec_mtl.checking.findings import Finding, Level, of_problems, percent, share
from torchrec_mtl.checking.report import LabelFigures
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import Doubles, get_array, to_doubles
from torchrec_mtl.data.labels import LabelCollector
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools
from torchrec_mtl.data.statistics import Moments
from torchrec_mtl.data.targets import TargetEncoder

_OUTSIDE_WARNING = 0.01  # of the positives
_SHIFT, _ERRORS = 0.5, 5.0
_NULLS = "null labels"


class _Task:
    """Sums of one task."""

    def __init__(self) -> None:
        self.rows, self.inside, self.nulls, self.bad, self.outside, self.zeros = 0, 0, 0, 0, 0, 0
        self.moments = Moments()
        self.smallest, self.largest = np.inf, -np.inf

    def add(self, task: TaskConfig, table: pa.Table, label: Doubles, usable: Bools) -> None:
        space = np.ones(len(label)) if task.space is None else to_doubles(get_array(table, task.space))
        inside: Bools = space == 1
        self.outside += int(((np.isnan(space) | (space == 0)) & (label > 0)).sum())
        if task.sample_weight is not None:
            inside &= to_doubles(get_array(table, task.sample_weight)) > 0
        null = np.isnan(label)
        self.rows += len(label)
        self.inside += int(inside.sum())
        self.nulls += int((inside & null).sum())
        self.bad += int((inside & ~null & ~usable).sum())
        known = label[usable]
        if len(known):
            self.moments.add(known)
            self.zeros += int((known == 0).sum())
            self.smallest = min(self.smallest, float(known.min()))
            self.largest = max(self.largest, float(known.max()))


class LabelScan:
    """Figures of all tasks, added table by table."""

    def __init__(self, tasks: Sequence[TaskConfig], data: DataConfig, split: str, day: DayColumn | None) -> None:
        self._tasks, self._data, self._split, self._day = tasks, data, split, day
        # "error", whatever the config says, so that null labels are counted by file.
        self._encoder = TargetEncoder(tasks, "error")
        self._sums = [_Task() for _ in tasks]
        self._collectors = [LabelCollector(tasks, k) for k in range(len(tasks))]
        self._problems = Problems()
        self.days = DayScan(split, [task.name for task in tasks])

    def add(self, table: pa.Table, file: str) -> None:
        """Add the labels of N rows."""
        self._problems.file = file
        labels, weights = self._encoder.encode(table, self._problems)
        usable = weights > 0
        raw = np.stack([to_doubles(get_array(table, task.label)) for task in self._tasks], axis=1)
        for k, (task, sums) in enumerate(zip(self._tasks, self._sums)):
            sums.add(task, table, raw[:, k], usable[:, k])
            self._collectors[k].add(labels, weights, self._problems)
        if self._day is not None and self._day.name in table.column_names:
            self.days.add(self._day.read(table), usable, raw)

    def figures(self) -> Iterator[LabelFigures]:
        """Yield the figures of each task."""
        for task, sums in zip(self._tasks, self._sums):
            any_label = sums.moments.weight > 0
            std = 0.0 if sums.smallest == sums.largest else sums.moments.std
            yield LabelFigures(
                task=task.name,
                kind=task.kind,
                column=task.label,
                split=self._split,
                rows=sums.rows,
                inside=sums.inside,
                nulls=sums.nulls,
                bad=sums.bad,
                outside_positive=sums.outside,
                mean=sums.moments.mean if any_label else None,
                std=std if any_label else None,
                zeros=share(sums.zeros, sums.moments.weight) if any_label else None,
                smallest=sums.smallest if any_label else None,
                largest=sums.largest if any_label else None,
            )

    def findings(self, train: Sequence[LabelFigures], *, shifts: bool) -> Iterator[Finding]:
        """Judge the labels.

        Args:
            train: figures of train, in the tasks' order; empty for train itself.
            shifts: whether rates should be those of train.
        """
        for collector in self._collectors:
            collector.finish(self._problems)
            if self._split == "train":
                collector.check_spread(self._problems)
        for problem in self._problems:
            masked = problem.what == _NULLS and self._data.null_labels == "mask"
            if masked:
                problem = dataclasses.replace(problem, advice="They are masked, as data.null_labels says.")
            kind = "null_labels" if problem.what == _NULLS else "labels"
            column = next((task.label for task in self._tasks if f"task '{task.name}'" in problem.where), "")
            yield from of_problems([problem], self._split, kind, column, level="note" if masked else "error")
        for k, (task, figures) in enumerate(zip(self._tasks, self.figures())):
            yield from self._judge(task, figures)
            if train and shifts:
                yield from self._shift(train[k], figures)

    def _judge(self, task: TaskConfig, figures: LabelFigures) -> Iterator[Finding]:
        level: Level = "error" if self._split == "train" else "warning"
        if figures.rows and figures.mean is None:
            inside = f"where its space '{task.space}' is 1" if task.space is not None else "with a label that counts"
            what, advice = (
                f"no row {inside}",
                "Nothing is learned or judged of it: mend the column, or remove the task.",
            )
            yield self._finding(level, "no_labels", figures, what, advice)
        elif figures.std == 0 and figures.kind == "binary":
            what = f"the label is {figures.smallest:g} in every row that counts"
            yield self._finding(level, "one_class", figures, what, "A binary task needs both; see how it was made.")
        if figures.outside_positive:
            positive = figures.outside_positive + round((1 - (figures.zeros or 0.0)) * (figures.inside - figures.nulls))
            of = share(figures.outside_positive, positive)
            what = (
                f"{figures.outside_positive:,} rows outside its space '{task.space}' have a label above 0 "
                f"({percent(of)} of all such rows)"
            )
            advice = "They are left out of its loss and metrics; correct the space, or the label, if that is not meant."
            level = "warning" if of > _OUTSIDE_WARNING else "note"
            yield self._finding(level, "outside_space", figures, what, advice, figures.outside_positive)

    def _shift(self, train: LabelFigures, figures: LabelFigures) -> Iterator[Finding]:
        """Tell a mean that moved by more than half of train's, and by more than chance."""
        if train.mean is None or figures.mean is None or train.std is None or figures.std is None:
            return
        off = figures.mean - train.mean
        error = max(train.std, figures.std) / max(figures.inside - figures.nulls, 1) ** 0.5
        if abs(off) > _SHIFT * abs(train.mean) and abs(off) > _ERRORS * error:
            noun = "rate" if figures.kind == "binary" else "mean"
            what = f"its {noun} is {figures.mean:.4g}, but {train.mean:.4g} in train"
            advice = "Calibration will be off by as much; see whether rows were sampled, or labels are late."
            yield self._finding("warning", "label_shift", figures, what, advice)

    def _finding(
        self, level: Level, kind: str, figures: LabelFigures, what: str, advice: str, count: int | None = None
    ) -> Finding:
        what = f"task '{figures.task}': {what}"
        return Finding(level, kind, self._split, figures.column, what, advice, count)
