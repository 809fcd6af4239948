"""Multi-gate mixture of experts (Ma et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput
from torchrec_mtl.heads.experts import Experts, Gates, mix
from torchrec_mtl.heads.layers import Norm
from torchrec_mtl.heads.towers import Towers
from torchrec_mtl.heads.watched import WatchedGate, numbered


class MMoE(Head):
    """Experts shared by all tasks, mixed by a gate a task: ``y_k = tower_k(sum_i softmax(G_k x)_i E_i(x))`` (Eq. 6, 7).

    Under a bottom that makes one representation a task, task k's gate and the experts read that of task k.

    Example:
        >>> import torch
        >>> head = MMoE(8, ["click", "buy"], MMoE.Config(experts=3, expert=(16,), tower=(4,)))
        >>> {task: tuple(z.shape) for task, z in head(Representation(torch.zeros(5, 8))).logits.items()}
        {'click': (5,), 'buy': (5,)}
    """

    class Config(HeadConfig):
        """Options of ``head: {type: mmoe}``."""

        type: str = "mmoe"
        experts: PositiveInt = 4
        """Number of experts."""
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
        self.experts = Experts(config.experts, in_features, config.expert, norm=config.norm)
        self.gates = Gates(self.num_tasks, in_features, config.experts)
        self.towers = Towers(self.experts.out_features, config.tower, self.outputs, norm=config.norm)

    def forward(self, representation: Representation) -> HeadOutput:
        """Return one logit a task (or as many as its loss needs)."""
        x, valid = representation.by_task(), representation.valid
        mixed = mix(self.gates(x), self.experts(x, valid))
        return HeadOutput(logits=self.towers.logits(mixed, valid))

    def watched_gates(self) -> Sequence[WatchedGate]:
        """Return the tasks' gates over the experts."""
        columns = numbered("expert", self.experts.num_experts)
        return (WatchedGate("Use of experts", self.gates, tuple(self.outputs), columns),)
