"""Exact metrics over all ranks: predictions are gathered, not averaged rank by rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from torchrec_mtl.collectives import all_sum, rank, world_size
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.calibration import Group, group_rows
from torchrec_mtl.training.metrics import task_metrics

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        tasks: task -> metric -> value.
        loss: sum of the tasks' weighted mean losses; a task without rows adds nothing, and nan where none has any.
        groups: task -> rows grouped by prediction, where asked for; on rank 0.
    """

    tasks: Metrics
    loss: float
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict, compare=False)

    def value(self, metric: str) -> float:
        """Return ``loss`` or ``task/metric``."""
        if metric == "loss":
            return self.loss
        task, _, name = metric.partition("/")
        return self.tasks[task][name]


def evaluate(outputs: Iterable[StepOutput], tasks: Sequence[TaskConfig], *, grouped: bool = False) -> Evaluation:
    """Gather the outputs of all ranks and compute the metrics on rank 0; every rank gets the result.

    Args:
        outputs: this rank's, the same number and sizes on every rank.
        tasks: in the order of the columns.
        grouped: group the rows by prediction, too.
    """
    k = len(tasks)
    columns: list[Tensor] = []
    groups: list[Tensor] = []
    totals = torch.zeros(2, k, dtype=torch.float64)
    for out in outputs:
        columns.append(torch.cat([out.predictions.float(), out.labels, out.weights], dim=1).cpu())
        groups += [out.ids["group"].cpu()] if "group" in out.ids else []
        totals += torch.stack([out.loss_sums[:k], out.weight_sums[:k]]).double().cpu()
    values = gather_rows(torch.cat(columns))
    group = gather_rows(torch.cat(groups)) if groups else None
    loss_sums, weight_sums = all_sum(totals).numpy()
    found: list[Metrics | None] = [None]
    by_prediction: dict[str, Sequence[Group]] = {}
    if values is not None:
        by_prediction = _groups(values.numpy(), tasks) if grouped else {}
        found = [_metrics(values.numpy(), None if group is None else group.numpy(), tasks)]
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    means = loss_sums / np.maximum(weight_sums, np.finfo(np.float32).tiny)
    defined = np.where(weight_sums > 0, means, np.nan)
    metrics = {t.name: {**found[0][t.name], "loss": float(defined[i])} for i, t in enumerate(tasks)}
    loss = float(sum(t.weight * m for t, m in zip(tasks, means, strict=True)))
    return Evaluation(tasks=metrics, loss=loss if weight_sums.any() else math.nan, groups=by_prediction)


def gather_rows(rows: Tensor) -> Tensor | None:
    """Return the rows of all ranks on rank 0, None elsewhere; every rank has as many."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())] if rank() == 0 else None
    dist.gather(rows, parts, dst=0)
    return None if parts is None else torch.cat(parts)


def _metrics(values: np.ndarray[Any, Any], groups: np.ndarray[Any, Any] | None, tasks: Sequence[TaskConfig]) -> Metrics:
    predictions, labels, weights = np.split(values, 3, axis=1)
    return {
        t.name: task_metrics(t.kind, labels[:, i], predictions[:, i], weights[:, i], groups)
        for i, t in enumerate(tasks)
    }


def _groups(values: np.ndarray[Any, Any], tasks: Sequence[TaskConfig]) -> dict[str, Sequence[Group]]:
    predictions, labels, weights = np.split(values, 3, axis=1)
    return {t.name: group_rows(labels[:, i], predictions[:, i], weights[:, i]) for i, t in enumerate(tasks)}


def as_json(step: int, evaluation: Evaluation | None) -> str:
    """Return ``{"step": ..., "tasks": {task: {metric: value}}}``; a metric that is undefined is null."""
    tasks: Metrics = {} if evaluation is None else evaluation.tasks
    finite = {t: {n: None if math.isnan(v) else v for n, v in m.items()} for t, m in tasks.items()}
    return json.dumps({"step": step, "tasks": finite}, indent=2)
