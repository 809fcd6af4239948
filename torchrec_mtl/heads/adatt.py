"""AdaTT (Li et al., "Adaptive Task-to-Task Fusion", KDD 2023): tasks read each other's experts, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.expert_sets import ExpertSets
from torchrec_mtl.heads.experts import mix
from torchrec_mtl.heads.layers import Norm, StackedLinear
from torchrec_mtl.heads.towers import Towers
from torchrec_mtl.heads.watched import WatchedGate, numbered, numbered_all

# Shapes: B batch, D representation, K tasks, n experts of a task, s shared experts, E = K n + s, U units (the tasks,
# and the shared one where a level after this one reads it), I input width, H expert width.

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Fusion(nn.Module):
    """One level: experts of every unit, and for each unit ``sum_e (softmax(G_u x_u)_e + v_ue) E_e``.

    The softmax is over the experts of all units (AllExpertGF); v is 0 but for the unit's own experts (NativeExpertLF),
    where it is learned, or 1 where no unit has several.

    Args:
        num_tasks: K.
        experts: n and s.
        in_features: I.
        sizes: widths of each expert's layers.
        norm: none, batch (over all ranks), or layer.
        last: no level comes after it, so that the shared experts need no mixture of their own.
    """

    native: Tensor

    def __init__(
        self,
        num_tasks: int,
        experts: tuple[int, int],
        in_features: int,
        sizes: Sequence[int],
        *,
        norm: Norm,
        last: bool,
    ) -> None:
        """See the class."""
        super().__init__()
        own, shared = experts
        self.num_tasks, self.out_features = num_tasks, sizes[-1]
        self.task_experts = ExpertSets(num_tasks, own, in_features, sizes, norm=norm)
        self.shared_experts = ExpertSets(1, shared, in_features, sizes, norm=norm) if shared else None
        owner = torch.tensor([k for k in range(num_tasks) for _ in range(own)] + [num_tasks] * shared)
        self.num_units = num_tasks + (shared > 0 and not last)
        self.gates = StackedLinear(self.num_units, in_features, len(owner))
        is_native = owner == torch.arange(self.num_units).unsqueeze(1)
        self.register_buffer("native", is_native.float().unsqueeze(1), persistent=False)  # [U, 1, E]
        bound = 1 / owner.bincount()[owner].sqrt()
        drawn = torch.empty(len(owner)).uniform_(-1, 1) * bound
        self.native_weights = nn.Parameter(drawn) if max(own, shared) > 1 else None  # [E]

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Return [U, B, H].

        Args:
            x: [K, B, I], and one row more for the shared experts where there are some; or one [B, I] for all.
            valid: [B], 1 for rows that count.
        """
        several = x.dim() == 3
        values = self.task_experts(x[: self.num_tasks] if several else x, valid).flatten(0, 1)
        if self.shared_experts is not None:
            shared = self.shared_experts(x[self.num_tasks :] if several else x, valid).flatten(0, 1)
            values = torch.cat([values, shared])
        gates = torch.softmax(self.gates(x[: self.num_units] if several else x), dim=-1)
        native = self.native if self.native_weights is None else self.native * self.native_weights
        return mix(gates + native, values.transpose(0, 1))

    def watched_gates(self, title: str, tasks: Sequence[str]) -> WatchedGate:
        """Return the units' gates over the experts of all units."""
        shared = 0 if self.shared_experts is None else self.shared_experts.num_experts
        columns = (*numbered_all(tasks, self.task_experts.num_experts), *(numbered("shared", shared) if shared else ()))
        rows = (*tasks, "shared")[: self.num_units]
        note = "What the own experts weigh besides is a parameter, and not in it."
        return WatchedGate(title, self.gates, rows, columns, len(tasks), softmax=True, note=note)


class AdaTT(Head):
    """Levels of experts a task, fused by gates over all tasks' experts plus a task's own ones (AdaTT-sp).

    ``x_k^l = sum_e softmax(G_k^l x_k^(l-1))_e E_e^l + sum_i v_ki E_ki^l`` (`Fusion`), where task j's experts E_j^l read
    x_j^(l-1), then ``tower_k(x_k^L)``. With ``shared_experts`` there is a unit more that belongs to no task, fused in
    the same way in all levels but the last. As in the authors' code, the gates have biases, v starts uniformly within
    1 / sqrt(n), and is 1 where no unit has several experts.

    Under a bottom that makes one representation a task, task k's experts and gate read it in the first level, and the
    shared ones, a unit of no task, ``representation.shared``. An expert reads what its unit does, whoever mixes it, so
    that task k's output depends on the other tasks' representations too.

    Example:
        >>> import torch
        >>> head = AdaTT(8, ["click", "buy"], AdaTT.Config(levels=((16,), (8,)), tower=(4,)))
        >>> {task: tuple(z.shape) for task, z in head(Representation(torch.zeros(5, 8))).logits.items()}
        {'click': (5,), 'buy': (5,)}
    """

    class Config(HeadConfig):
        """Options of ``head: {type: adatt}``."""

        type: str = "adatt"
        levels: Annotated[tuple[Widths, ...], Field(min_length=1)] = ((128,), (64,))
        """Widths of the experts' layers, level by level."""
        task_experts: PositiveInt = 1
        """Number of experts of each task, in each level."""
        shared_experts: NonNegativeInt = 0
        """Number of experts in each level that belong to no task."""
        tower: tuple[PositiveInt, ...] = (64,)
        """Widths of each task's layers."""
        norm: Norm = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        widths = [in_features, *(sizes[-1] for sizes in config.levels)]
        experts = (config.task_experts, config.shared_experts)
        last = len(config.levels) - 1
        self.levels = nn.ModuleList(
            Fusion(self.num_tasks, experts, i, sizes, norm=config.norm, last=level == last)
            for level, (i, sizes) in enumerate(zip(widths, config.levels, strict=False))
        )
        self.with_shared = config.shared_experts > 0
        self.towers = Towers(widths[-1], config.tower, self.outputs, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        x, valid = representation.by_task(), representation.valid
        if self.with_shared and x.dim() == 3:
            x = torch.cat([x, representation.shared.unsqueeze(0)])
        for level in self.levels:
            x = level(x, valid)
        return HeadOutput(logits=self.towers.logits(x, valid))

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the gates of all levels."""
        levels = [(f"Use of experts, level {i}", level) for i, level in enumerate(self.levels, 1)]
        return [cast(Fusion, level).watched_gates(title, tuple(self.outputs)) for title, level in levels]
