"""The ranking teacher of DMMP: experts, gates, and towers, whose logits are a chain over all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.experts import Experts, Gates, mix
from torchrec_mtl.heads.layers import MLP, Norm
from torchrec_mtl.heads.ple import Level
from torchrec_mtl.heads.towers import Towers
from torchrec_mtl.heads.watched import WatchedGate, numbered

# Shapes: B batch, K tasks, D representation, H expert.

TeacherKind = Literal["cgc", "mmoe", "shared_bottom"]


class Teacher(nn.Module):
    """Logits of the conditionals ``P(t | t - 1)``, K of them, from what all features tell.

    cgc: customized gate control, shared experts and experts of each task, one level (PLE; Tang et al., RecSys 2020);
    mmoe: as many experts, all shared; shared_bottom: one network.

    Args:
        kind: cgc, mmoe, or shared_bottom.
        in_features: D.
        tasks: names, in causal order.
        expert: widths of an expert's layers.
        shared_experts: number of them.
        task_experts: number a task; with mmoe these are shared, too.
        tower: widths of each task's layers.
        norm: none, batch, or layer.
    """

    def __init__(
        self,
        kind: TeacherKind,
        in_features: int,
        tasks: Sequence[str],
        *,
        expert: Sequence[int],
        shared_experts: int,
        task_experts: int,
        tower: Sequence[int],
        norm: Norm,
    ) -> None:
        """See the class."""
        super().__init__()
        count = len(tasks)
        self.body: nn.Module
        if kind == "cgc":
            self.body = Level(
                count,
                in_features,
                expert,
                shared_experts=shared_experts,
                task_experts=task_experts,
                first=True,
                feeds_another=False,
                norm=norm,
            )
        elif kind == "mmoe":
            self.body = _Mixture(count, in_features, shared_experts + count * task_experts, expert, norm)
        else:
            self.body = _One(in_features, expert, norm)
        self.towers = Towers(expert[-1], tower, dict.fromkeys(tasks, 1), norm=norm)

    def forward(self, representation: Representation) -> Tensor:
        """Return [K, B]."""
        valid = representation.valid
        _, mixed = self.body(representation.shared, representation.by_task(), valid)
        return torch.stack(list(self.towers.logits(mixed, valid).values()))

    def watched_gates(self, tasks: Sequence[str]) -> list[WatchedGate]:
        """Return the tasks' gates over the experts, if there are any."""
        title = "Teacher: use of experts"
        if isinstance(self.body, Level):
            return self.body.watched_gates(title, tasks)
        if isinstance(self.body, _Mixture):
            columns = numbered("expert", self.body.experts.num_experts)
            return [WatchedGate(title, self.body.gates, tuple(tasks), columns)]
        return []


class _Mixture(nn.Module):
    """Experts that all tasks share, mixed by a gate a task."""

    def __init__(self, num_tasks: int, in_features: int, num_experts: int, sizes: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.experts = Experts(num_experts, in_features, sizes, norm=norm)
        self.gates = Gates(num_tasks, in_features, num_experts)

    def forward(self, shared: Tensor, by_task: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        return shared, mix(self.gates(by_task), self.experts(by_task, valid))


class _One(nn.Module):
    """One network for all tasks."""

    def __init__(self, in_features: int, sizes: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.mlp = MLP(in_features, sizes, norm=norm)

    def forward(self, shared: Tensor, by_task: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = by_task.flatten(0, -2)
        repeated = valid.repeat(len(by_task)) if valid is not None and by_task.dim() == 3 else valid
        return shared, self.mlp(rows, repeated).view(*by_task.shape[:-1], -1)
