"""Losses and metrics over the last rows trained; worked out when a line is logged, not each step."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchrec_mtl.collectives import all_sum
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.objective import StepOutput
from torchrec_mtl.training.metrics import CLIP, entropy, ratio


@dataclass
class StepSums:
    """Sums since the last log line, kept on the device: nothing is read back in a step.

    A resumed run starts with an empty one, so its first line is a mean over fewer steps.
    """

    losses: Tensor | None = None
    steps: Tensor | float = 0.0
    rows: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, output: StepOutput, on: Tensor, rows: int) -> None:
        """Take a step's losses [T], of the tasks and terms that ``on`` [T] marks."""
        losses = output.losses * on
        self.losses = losses if self.losses is None else self.losses + losses
        self.steps = self.steps + on
        self.rows += rows

    def means(self) -> list[float]:
        """Return [T]; nan of what no step trained."""
        assert self.losses is not None, "a line comes after a step"
        means: list[float] = (self.losses / self.steps).tolist()
        return means


class WindowMetrics:
    """Metrics of the last rows trained: ``ne`` (binary tasks), ``rmse`` (regressions), ``calibration`` (both).

    They are for watching: a resumed run starts with an empty window. Not TorchRec's ``RecMetricModule``, which takes
    longer to import than many steps (docs/decisions/003).

    Args:
        tasks: in the order of the columns.
        rows: length of the window, over all ranks; whole updates are forgotten, the latest never.
    """

    def __init__(self, tasks: Sequence[TaskConfig], *, rows: int) -> None:
        self._tasks, self._rows = tasks, rows
        self._held: list[Tensor] = []
        self._updates: deque[tuple[float, Tensor]] = deque()

    def hold(self, output: StepOutput) -> None:
        """Keep a step's predictions for the next update; nothing is read back."""
        self._held.append(torch.stack([output.predictions, output.labels, output.weights]))

    def compute(self) -> dict[str, float]:
        """Take in what is held and return ``task/metric`` over the window; on all ranks together.

        A metric that its rows do not define is nan.
        """
        predictions, labels, weights = torch.cat(self._held, dim=1).double()
        self._held.clear()
        # Rows of weight 0 may have labels that mean nothing, nan included.
        kept = weights > 0
        sums = self._sums(predictions.where(kept, 0.5), labels.where(kept, 0.0), weights)
        rows = sums.new_tensor([predictions.shape[0]])
        update = all_sum(torch.cat([rows, sums.flatten()])).cpu()
        self._updates.append((float(update[0]), update[1:].view_as(sums)))
        while len(self._updates) > 1 and sum(n for n, _ in self._updates) > self._rows:
            self._updates.popleft()
        return self._values(torch.stack([of_update for _, of_update in self._updates]).sum(0))

    def _sums(self, p: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Return the sums over rows of weight, label, prediction, and loss, [4, K]; all arguments [B, K]."""
        q = p.clamp(CLIP, 1 - CLIP)
        binary = torch.tensor([t.kind == "binary" for t in self._tasks], device=p.device)
        logloss = -(y * q.log() + (1 - y) * (1 - q).log())
        loss = torch.where(binary, logloss, (p - y).square())
        return torch.stack([w, w * y, w * p, w * loss]).sum(1)

    def _values(self, sums: Tensor) -> dict[str, float]:
        values: dict[str, float] = {}
        for task, (weight, label, prediction, loss) in zip(self._tasks, sums.t().tolist(), strict=True):
            mean = ratio(loss, weight)
            if task.kind == "binary":
                values[f"{task.name}/ne"] = ratio(mean, entropy(ratio(label, weight)))
            else:
                values[f"{task.name}/rmse"] = math.sqrt(mean)
            values[f"{task.name}/calibration"] = ratio(prediction, label)
        return values
