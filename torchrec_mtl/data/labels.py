"""Labels of one task, collected over the data: their statistics, and what its loss or gate cannot take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import Doubles
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools, Floats
from torchrec_mtl.data.statistics import LabelStatistics, Moments, Sample, to_bins
from torchrec_mtl.losses.base import LossConfig

_MOST_NOT_ABOVE_0 = 0.01


class LabelCollector:
    """Statistics of one task's label over the rows that its loss sees."""

    def __init__(self, tasks: Sequence[TaskConfig], k: int) -> None:
        self._task, self._index = tasks[k], k
        self._gate = next((i for i, task in enumerate(tasks) if task.name == self._task.gate), None)
        self._loss = self._task.loss if isinstance(self._task.loss, LossConfig) else LossConfig(type="plain")
        self._rows, self._moments, self._positive = 0, Moments(), Moments()
        self._open_rows, self._not_above_0 = 0, 0
        self._target, self._logs, self._sample = Moments(), Moments(), Sample()

    def add(self, labels: Floats, weights: Floats, problems: Problems) -> None:
        """Add labels [N, K] of all tasks where the weight [N, K] of this one is positive, and its gate open."""
        label, weight = labels[:, self._index].astype(np.float64), weights[:, self._index].astype(np.float64)
        rows: Bools = weight > 0
        if self._gate is None:
            self._check_domain(label, rows, problems)
        else:
            gate = labels[:, self._gate]
            self._check_gate(label, gate, rows & (weights[:, self._gate] > 0), problems)
            rows &= (gate == 1) & (label > 0)
        self._add(label[rows], weight[rows])

    def result(self) -> LabelStatistics:
        """Return the statistics of all labels added."""
        moments = self._moments
        statistics = LabelStatistics(
            rows=self._rows,
            weight=moments.weight,
            mean=moments.mean,
            std=moments.std,
            positive_rate=self._positive.mean,
        )
        if self._task.kind == "binary":
            return statistics
        quantiles, shares, bin_means = (tuple(values.tolist()) for values in to_bins(self._sample.sorted()))
        shape = {
            "target_mean": self._target.mean,
            "target_std": self._target.std,
            "log_mean": self._logs.mean,
            "log_std": self._logs.std,
            "quantiles": quantiles,
            "shares": shares,
            "bin_means": bin_means,
        }
        return statistics.model_copy(update=shape)

    def _add(self, label: Doubles, weight: Doubles) -> None:
        self._rows += len(label)
        self._moments.add(label, weight)
        positive = label > 0
        self._positive.add(positive.astype(np.float64), weight)
        if self._task.kind == "regression":
            self._target.add(self._loss.target(label), weight)
            self._logs.add(np.log(label[positive]), weight[positive])
            self._sample.add(label)

    def _check_domain(self, label: Doubles, rows: Bools, problems: Problems) -> None:
        if self._loss.domain == "real":
            return
        loss, strict = f"loss '{self._loss.type}'", self._loss.domain == "positive"
        bad: Bools = rows & ((label <= 0) if strict else (label < 0))
        what = f"labels {'of 0 or below' if strict else 'below 0'}, which {loss} cannot take"
        advice = "Take another loss, or leave these rows out with a space column."
        if strict:
            advice = "Name in gate an earlier binary task that is 1 where the label is above 0, or use a space column."
        self._report(what, label, bad, problems, advice)

    def _check_gate(self, label: Doubles, gate: Floats, judged: Bools, problems: Problems) -> None:
        """Refuse rows where the gate does not say that the label is above 0: P(gate) E[y | gate] would not be E[y]."""
        advice = f"The label of '{self._task.gate}' must be 1 wherever this one is not 0; correct it, or drop gate."
        closed, opened = judged & (gate == 0) & (label != 0), judged & (gate == 1)
        self._report(f"labels other than 0 where gate '{self._task.gate}' is 0", label, closed, problems, advice)
        self._open_rows += int(opened.sum())
        self._not_above_0 += int((opened & (label <= 0)).sum())

    def finish(self, problems: Problems) -> None:
        """After the last table: let pass a few labels of 0 behind an open gate (a free item bought), refuse many."""
        what = f"labels of 0 or below where gate '{self._task.gate}' is 1"
        if self._not_above_0 > _MOST_NOT_ABOVE_0 * self._open_rows:
            advice = f"Of {self._open_rows:,} such rows this is too much for E[y | y > 0] to stand for them; drop gate."
            problems.add(self._where, what, count=self._not_above_0, advice=advice)
        elif self._not_above_0:
            problems.tolerated[f"{what} (left out of the loss of '{self._task.name}')"] += self._not_above_0

    def check_spread(self, problems: Problems) -> None:
        """After the last table: refuse labels that are all equal where the loss tells labels apart."""
        if not self._loss.wants_spread:
            return
        sample = self._sample.sorted()
        if len(sample) and sample[0] == sample[-1]:
            what = f"labels that are all equal, of which loss '{self._loss.type}' can learn nothing"
            value, advice = float(sample[0]), "Take another loss, or leave the task out."
            problems.add(self._where, what, count=self._rows, low=value, high=value, advice=advice)

    def _report(self, what: str, label: Doubles, bad: Bools, problems: Problems, advice: str) -> None:
        if bad.any():
            found = label[bad]
            low, high = float(found.min()), float(found.max())
            problems.add(self._where, what, count=len(found), low=low, high=high, advice=advice)

    @property
    def _where(self) -> str:
        return f"label of task '{self._task.name}', column '{self._task.label}'"
