"""Labels, spaces, and sample weights of the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.arrow import Doubles, get_array, to_doubles
from torchrec_mtl.data.dense import LARGEST
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Bools, Floats


class TargetEncoder:
    """Encodes the labels and weights of all tasks."""

    def __init__(self, tasks: Sequence[TaskConfig], null_labels: Literal["error", "mask"]) -> None:
        self._tasks = tasks
        self._null_labels = null_labels

    def encode(self, table: pa.Table, problems: Problems) -> tuple[Floats, Floats]:
        """Encode the tasks' columns.

        Args:
            table: N rows.
            problems: takes values that are not labels, spaces, or weights; only rows of a positive weight are checked.

        Returns:
            Labels [N, K], and weights [N, K]: space times sample weight. The label is 0 where the weight is 0.
        """
        shape = (table.num_rows, len(self._tasks))
        labels, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for k, task in enumerate(self._tasks):
            weight = _weight(task, table, problems)
            label = to_doubles(get_array(table, task.label))
            usable = self._usable(task, label, weight, problems)
            labels[:, k] = np.where(usable, label, 0.0)
            weights[:, k] = np.where(usable, weight, 0.0)
        return labels, weights

    def _usable(self, task: TaskConfig, label: Doubles, weight: Doubles, problems: Problems) -> Bools:
        """Return [N] whether the row counts: it has a positive weight and a label."""
        where = f"label of task '{task.name}', column '{task.label}'"
        inside, null = weight > 0, np.isnan(label)
        missing = inside & null
        if self._null_labels == "error" and missing.any():
            advice = "Fill them, set data.null_labels to mask, or give the task a space column."
            problems.add(where, "null labels", count=int(missing.sum()), advice=advice)
        elif missing.any():
            problems.tolerated[f"null labels of task '{task.name}' (masked)"] += int(missing.sum())
        bad: Bools = inside & ~null
        if task.kind == "binary":
            bad &= (label != 0) & (label != 1)
            _report(where, "labels other than 0 and 1", label, bad, problems, "A binary task wants 0 and 1.")
        else:
            bad &= np.abs(label) > LARGEST
            _report(where, "infinite labels", label, bad, problems, "Write finite numbers.")
        usable: Bools = inside & ~null & ~bad
        return usable


def _weight(task: TaskConfig, table: pa.Table, problems: Problems) -> Doubles:
    """Return [N] space times sample weight."""
    weight = np.ones(table.num_rows)
    if task.space is not None:
        space = to_doubles(get_array(table, task.space))
        weight = np.where(np.isnan(space), 0.0, space)
        where = f"space of task '{task.name}', column '{task.space}'"
        bad = (weight != 0) & (weight != 1)
        _report(where, "values other than 0 and 1", weight, bad, problems, "1 marks the rows the task is defined on.")
    if task.sample_weight is not None:
        sample = to_doubles(get_array(table, task.sample_weight))
        where = f"sample_weight of task '{task.name}', column '{task.sample_weight}'"
        bad = (weight > 0) & ~((sample >= 0) & (sample <= LARGEST))
        _report(where, "null, negative, or infinite weights", sample, bad, problems, "Write numbers from 0 up.")
        weight = np.where((weight > 0) & ~bad, sample, 0.0)
    return weight


def _report(where: str, what: str, values: Doubles, bad: Bools, problems: Problems, advice: str) -> None:
    if not bad.any():
        return
    found = values[bad & ~np.isnan(values)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (None, None)
    problems.add(where, what, count=int(bad.sum()), low=low, high=high, advice=advice)
