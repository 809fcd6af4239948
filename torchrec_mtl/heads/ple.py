"""Progressive layered extraction (Tang et al., RecSys 2020); with one level, customized gate control (CGC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.expert_sets import ExpertSets
from torchrec_mtl.heads.experts import Experts, Gates, mix
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.towers import Towers
from torchrec_mtl.heads.watched import WatchedGate, numbered, numbered_all

# Shapes: B batch, K tasks, S shared experts, T experts of a task, E = S + K T, I input width, H expert width.


class Level(nn.Module):
    """One level of extraction: task k's output mixes the shared experts and its own, never another task's.

    ``g_k = sum_i softmax(W_k x_k)_i V_i`` over the S shared experts, which read ``x_s``, and the T experts of task k,
    which read ``x_k`` (Eq. 1 to 3); ``g_s = sum_i softmax(W_s x_s)_i V_i`` over all E experts (Section 4.2). At the
    first level, where a bottom may make one ``x_k`` a task, the shared experts read that, too, for ``g_k``.

    Args:
        num_tasks: K.
        in_features: I.
        sizes: widths of each expert's layers.
        shared_experts: S.
        task_experts: T.
        first: no level stands before it.
        feeds_another: make the shared output ``g_s``, which the next level reads.
        norm: none, batch (over all ranks), or layer.
    """

    def __init__(
        self,
        num_tasks: int,
        in_features: int,
        sizes: Sequence[int],
        *,
        shared_experts: int,
        task_experts: int,
        first: bool,
        feeds_another: bool,
        norm: Norm,
    ) -> None:
        """See the class."""
        super().__init__()
        self.first = first
        self.shared_experts = Experts(shared_experts, in_features, sizes, norm=norm)
        self.task_experts = ExpertSets(num_tasks, task_experts, in_features, sizes, norm=norm)
        self.gates = Gates(num_tasks, in_features, shared_experts + task_experts)
        num_experts = shared_experts + num_tasks * task_experts
        self.shared_gate = nn.Linear(in_features, num_experts, bias=False) if feeds_another else None
        self.out_features = self.shared_experts.out_features

    def forward(self, shared: Tensor, by_task: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``g_s`` [B, H] (the input where no level follows) and the tasks' outputs ``g_k`` [K, B, H].

        Args:
            shared: [B, I], ``x_s``.
            by_task: [K, B, I], each task's ``x_k``, or ``shared`` itself where all read the same.
            valid: [B], 1 for rows that count.
        """
        common, for_all = self._shared_values(shared, by_task, valid)
        own = self.task_experts(by_task, valid)
        # Mixtures of shared and of own experts apart, so that no value is copied for each task.
        count = self.shared_experts.num_experts
        gates = self.gates(by_task)
        mixed = mix(gates[..., :count], common) + mix(gates[..., count:], own.transpose(1, 2))
        if self.shared_gate is None:
            return shared, mixed
        gate = torch.softmax(self.shared_gate(shared), dim=-1).unsqueeze(0)
        of_all = mix(gate[..., :count], for_all) + mix(gate[..., count:], own.flatten(0, 1).transpose(0, 1))
        return of_all.squeeze(0), mixed

    def _shared_values(self, shared: Tensor, by_task: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the shared experts' values for ``g_k``, [B, S, H] or [K, B, S, H], and for ``g_s``, [B, S, H]."""
        if not self.first or by_task.dim() == 2:
            values = self.shared_experts(shared, valid)
            return values, values
        # Without g_s nobody looks at the second.
        x = by_task if self.shared_gate is None else torch.cat([by_task, shared.unsqueeze(0)])
        values = self.shared_experts(x, valid)
        return values[: len(by_task)], values[-1]

    def watched_gates(self, title: str, tasks: Sequence[str]) -> list[WatchedGate]:
        """Return the tasks' gates over shared and own experts, and the shared gate over all of them."""
        common, count = numbered("shared", self.shared_experts.num_experts), self.task_experts.num_experts
        found = [WatchedGate(title, self.gates, tuple(tasks), (*common, *numbered("own", count)))]
        if self.shared_gate is not None:
            columns = (*common, *numbered_all(tasks, count))
            found.append(WatchedGate(f"{title}, shared gate", self.shared_gate, ("shared",), columns, 0, softmax=True))
        return found


class PLE(Head):
    """Shared experts and experts of each task, level upon level, then a tower a task (Eq. 5, 6).

    At each level the shared experts are one product a layer, and the experts of all tasks another. At the first, under
    a bottom that makes one representation a task, task k's gate mixes its own and the shared experts, all of which read
    that of task k (DTRN; Liu et al., CIKM 2023); the shared gate, which belongs to no task, reads
    ``representation.shared``, and so do the shared experts that it mixes with each task's own ones.

    Example:
        >>> head = PLE(8, ["click", "buy"], PLE.Config(levels=((16,), (8,)), tower=(4,)))
        >>> {task: tuple(z.shape) for task, z in head(Representation(torch.zeros(5, 8))).logits.items()}
        {'click': (5,), 'buy': (5,)}
    """

    class Config(HeadConfig):
        """Options of ``head: {type: ple}``."""

        type: str = "ple"
        shared_experts: PositiveInt = 2
        """Number of experts that all tasks share, at each level."""
        task_experts: PositiveInt = 1
        """Number of experts of each task, at each level."""
        levels: Annotated[tuple[Annotated[tuple[PositiveInt, ...], Field(min_length=1)], ...], Field(min_length=1)] = (
            (128, 64),
        )
        """Widths of each expert's layers, level by level; one level is CGC."""
        tower: tuple[PositiveInt, ...] = (64,)
        """Widths of each task's layers."""
        norm: Norm = "none"

    def __init__(
        self, in_features: int, outputs: Mapping[str, int] | Sequence[str], config: Config | None = None
    ) -> None:
        """See `Head`."""
        config = config or self.Config()
        super().__init__(in_features, outputs, config)
        self.levels = nn.ModuleList()
        for i, sizes in enumerate(config.levels):
            level = Level(
                self.num_tasks,
                in_features,
                sizes,
                shared_experts=config.shared_experts,
                task_experts=config.task_experts,
                first=i == 0,
                feeds_another=i + 1 < len(config.levels),
                norm=config.norm,
            )
            self.levels.append(level)
            in_features = level.out_features
        self.towers = Towers(in_features, config.tower, self.outputs, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        shared, by_task, valid = representation.shared, representation.by_task(), representation.valid
        for level in self.levels:
            shared, by_task = level(shared, by_task, valid)
        return HeadOutput(logits=self.towers.logits(by_task, valid))

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the gates of all levels."""
        levels = [(f"Use of experts, level {i}", level) for i, level in enumerate(self.levels, 1)]
        tasks = tuple(self.outputs)
        return [gate for title, level in levels for gate in cast(Level, level).watched_gates(title, tasks)]
