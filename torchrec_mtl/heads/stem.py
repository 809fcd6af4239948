"""STEM-Net (Su et al., AAAI 2024): shared and task-specific embedding tables, joined by gates that pass no gradient on.

All forward, task-specific backward: a task reads the experts of all tasks, and trains its own and the shared ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.expert_sets import ExpertSets
from torchrec_mtl.heads.experts import Experts, Gates, mix
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.towers import Towers
from torchrec_mtl.heads.watched import WatchedGate, numbered, numbered_all

# Shapes: B batch, D representation, K tasks, s shared experts, n experts of a task, H expert width.


class STEM(Head):
    """Shared and own tables and experts, mixed by a gate a task over all experts, stop-gradient on other tasks' ones.

    ``z_k = sum_i g_ki S_i(x_0) + sum_i g'_ki E_ki(x_k) + sum_(j != k, i) g''_kji sg(E_ji(x_j))`` and ``tower_k(z_k)``,
    where x_0 is made of the shared tables, x_k of those of task k, and the weights are ``softmax(G_k (x_k + x_0))``
    over all experts. The loss of a task then trains its own tables, experts and gate, and the shared ones, only; its
    logits depend on the tables of all.

    Choices of ours: one layer of experts, which is the authors' default too, and gates that are one linear map as
    MMoE's; in the authors' code they may have hidden layers.

    Example:
        >>> import torch
        >>> head = STEM(8, ["click", "buy"], STEM.Config(expert=(16,), tower=(4,)))
        >>> shared, own = torch.zeros(5, 8), (torch.zeros(5, 8), torch.zeros(5, 8))
        >>> {task: tuple(z.shape) for task, z in head(Representation(shared, own)).logits.items()}
        {'click': (5,), 'buy': (5,)}
    """

    tables = "both"
    foreign: Tensor

    class Config(HeadConfig):
        """Options of ``head: {type: stem}``."""

        type: str = "stem"
        shared_experts: PositiveInt = 1
        """Number of experts that read the shared tables."""
        task_experts: PositiveInt = 1
        """Number of experts of each task, which read its own tables."""
        expert: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 64)
        """Widths of each expert's layers."""
        tower: tuple[PositiveInt, ...] = (64,)
        """Widths of each task's layers."""
        norm: Norm = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        tasks, own = self.num_tasks, config.task_experts
        self.shared_experts = Experts(config.shared_experts, in_features, config.expert, norm=config.norm)
        self.task_experts = ExpertSets(tasks, own, in_features, config.expert, norm=config.norm)
        self.gates = Gates(tasks, in_features, config.shared_experts + tasks * own)
        self.towers = Towers(self.task_experts.out_features, config.tower, self.outputs, norm=config.norm)
        others = 1 - torch.eye(tasks).repeat_interleave(own, dim=1).unsqueeze(1)
        self.register_buffer("foreign", others, persistent=False)  # [K, 1, K n]

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        valid, shared, x = representation.valid, representation.shared, representation.by_task()
        common, own = self.shared_experts(shared, valid), self.task_experts(x, valid)
        gates = self.gates(x + shared)
        of_shared, of_tasks = gates.split([common.shape[1], self.foreign.shape[2]], dim=2)
        of_own = of_tasks.unflatten(2, own.shape[:2]).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        mixed = (
            mix(of_shared, common)
            + mix(of_own, own.transpose(1, 2))
            + mix(of_tasks * self.foreign, own.detach().flatten(0, 1).transpose(0, 1))
        )
        return HeadOutput(logits=self.towers.logits(mixed, valid))

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the tasks' gates over the shared experts and those of all tasks."""
        tasks = tuple(self.outputs)
        columns = (
            *numbered("shared", self.shared_experts.num_experts),
            *numbered_all(tasks, self.task_experts.num_experts),
        )
        return (WatchedGate("Use of experts", self.gates, tasks, columns),)
