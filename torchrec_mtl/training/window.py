"""Windowed metrics during training, by TorchRec's ``RecMetricModule``; updated when a line is logged, not each step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchrec_mtl.collectives import rank, world_size
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.objective import StepOutput

if TYPE_CHECKING:
    from torchrec.metrics.metric_module import RecMetricModule

_METRICS = {"binary": ("NE", "CALIBRATION"), "regression": ("MSE", "CALIBRATION")}  # names of ``RecMetricEnum``
_SHOWN = {"ne": "ne", "rmse": "rmse", "calibration": "calibration"}


class WindowMetrics:
    """Metrics of the last rows trained: ``ne`` (binary tasks), ``rmse`` (regressions), ``calibration`` (both).

    They are for watching: a resumed run starts with an empty window.

    Args:
        tasks: in the order of the columns.
        rows: length of the window, over all ranks.
        update_rows: rows of an update on this rank.
        device: of the model.
    """

    def __init__(self, tasks: Sequence[TaskConfig], *, rows: int, update_rows: int, device: torch.device) -> None:
        self._tasks, self._rows, self._update_rows, self._device = tasks, rows, update_rows, device
        self._held: list[Tensor] = []

    @cached_property
    def _module(self) -> RecMetricModule:
        # Slow to import: not before there is something to show.
        from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
        from torchrec.metrics.metrics_config import MetricsConfig, RecMetricDef, RecMetricEnum, RecTaskInfo

        tasks = self._tasks
        infos = [RecTaskInfo(t.name, f"{t.name}-label", f"{t.name}-prediction", f"{t.name}-weight") for t in tasks]
        definitions = {
            RecMetricEnum[metric]: RecMetricDef(
                rec_tasks=[i for i, t in zip(infos, tasks, strict=True) if metric in _METRICS[t.kind]],
                window_size=max(self._rows, self._update_rows * world_size()),
            )
            for metric in dict.fromkeys(m for t in tasks for m in _METRICS[t.kind])
        }
        module: RecMetricModule = generate_metric_module(
            RecMetricModule,
            MetricsConfig(rec_tasks=infos, rec_metrics=definitions, throughput_metric=None, state_metrics=[]),
            batch_size=self._update_rows,
            world_size=world_size(),
            my_rank=rank(),
            state_metrics_mapping={},
            device=self._device,
        )
        return module

    def hold(self, output: StepOutput) -> None:
        """Keep a step's predictions for the next update; nothing is read back."""
        self._held.append(torch.stack([output.predictions, output.labels, output.weights]))

    def compute(self) -> dict[str, float]:
        """Take in what is held and return ``task/metric`` over the window; on all ranks together."""
        predictions, labels, weights = torch.cat(self._held, dim=1)
        self._held.clear()
        columns: dict[str, Tensor] = {}
        for k, task in enumerate(self._tasks):
            columns |= {f"{task.name}-prediction": predictions[:, k], f"{task.name}-label": labels[:, k]}
            columns[f"{task.name}-weight"] = weights[:, k]
        self._module.update(columns)
        found = self._module.compute()
        values: dict[str, float] = {}
        for key, value in found.items():  # "ne-click|window_ne"
            of_task = key.partition("-")[2].partition("|")[0]
            name = key.rpartition("|")[2]
            if name.startswith("window_") and name.removeprefix("window_") in _SHOWN:
                values[f"{of_task}/{name.removeprefix('window_')}"] = float(value)
        return values
