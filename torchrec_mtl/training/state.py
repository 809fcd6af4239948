"""Where a run stands: what a checkpoint notes beside its tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torchrec_mtl.config.training import MonitorConfig

_HIGHER_IS_BETTER = frozenset({"auc", "gauc", "spearman", "gini", "recall", "ndcg", "hit", "coverage"})


@dataclass
class TrainState:
    """Position and record of a run.

    Attributes:
        phase: number of the phase.
        phase_start: steps trained before it.
        epoch: epoch within the phase.
        epoch_step: steps of this epoch that were trained.
        step: steps trained in all.
        passes: epochs that count as read before this phase, for the order of the rows; rewinding sets it back.
        updates: steps that the tables have seen; rewinding them sets it back.
        origin_passes: ``passes`` where training rewinds to.
        origin_updates: ``updates`` there.
        best: best value of the monitored metric so far.
        best_step: its step.
        stale: evaluations since.
        evaluated: step of the last evaluation.
        settled: step after which evaluation and saving were last seen to; a stop may come before them.
        finished: nothing is left to train.
        data: fingerprint of the training files.
    """

    phase: int = 0
    phase_start: int = 0
    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    passes: int = 0
    updates: int = 0
    origin_passes: int = 0
    origin_updates: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    evaluated: int = 0
    settled: int = 0
    finished: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    def notes(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def begin_phase(self, *, rewind: bool, tables: bool) -> None:
        """Go on to the next phase.

        Args:
            rewind: the order of the rows starts again from the origin.
            tables: the tables went back there too.
        """
        self.passes = self.origin_passes if rewind else self.passes + self.epoch
        self.updates = self.origin_updates if tables else self.updates
        self.phase, self.phase_start, self.epoch, self.epoch_step = self.phase + 1, self.step, 0, 0
        # What was best in one phase says nothing about the next, which trains something else.
        self.best, self.stale = None, 0

    def mark_origin(self) -> None:
        """Have later phases rewind to the end of this one."""
        self.origin_passes, self.origin_updates = self.passes + self.epoch, self.updates

    def record(self, value: float, monitor: MonitorConfig) -> bool:
        """Take the monitored value of an evaluation; return whether it is the best so far. NaN never is."""
        self.evaluated = self.step
        higher = monitor.mode == "max" or (
            monitor.mode == "auto" and monitor.metric.rpartition("/")[2].partition("@")[0] in _HIGHER_IS_BETTER
        )
        better = not math.isnan(value) and (self.best is None or (value > self.best if higher else value < self.best))
        if better:
            self.best, self.best_step, self.stale = value, self.step, 0
        else:
            self.stale += 1
        return better
